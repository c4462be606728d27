"""Whether the policy was fitted to the chosen responses before it learns to prefer them: by their perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_json
from dpo_jax.reference.store import Scores, Store
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params, TokenRow

_ROWS = 64
_FITTED = 0.95  # of the base's perplexity: above that fine-tuning has done next to nothing for these responses


def say_how_fitted(experiment: TextExperiment, store: Store | None, start: Callable[[], Params]) -> None:
    """Says the perplexity of chosen (or desirable) responses where training starts, and before fine-tuning.

    It warns where that is hardly lower. What the store knows is not computed again. WORKDIR/fitted.json keeps it.
    """
    data = experiment.train_data
    chosen = np.arange(len(data.rows)) if data.desirable is None else np.flatnonzero(data.desirable)
    rows = take(data.rows, chosen[np.linspace(0, len(chosen) - 1, min(_ROWS, len(chosen))).astype(int)])
    now = perplexity(store.lookup(row_ids_of(rows)) if store else _score(experiment, rows, start()))
    of = f"{len(rows)} chosen responses: perplexity {now:.2f} a token"
    found = {"responses": len(rows), "perplexity": now}
    if experiment.config.sft is None:
        write_json(experiment.workdir / "fitted.json", found)
        say("train", f"{of}; no `sft:` section: unless they are the model's own, fine-tune on such responses first")
        return
    base = perplexity(_score(experiment, rows, experiment.pretrained(held=True)))
    fitted = now < _FITTED * base
    write_json(experiment.workdir / "fitted.json", {**found, "before_fine_tuning": base, "fitted": fitted})
    say("train", f"{of} after fine-tuning, {base:.2f} before")
    if not fitted:
        say(
            "train",
            "warning: fine-tuning has not fitted the policy to the chosen responses. Preference training then lifts "
            "what the policy hardly ever writes; fine-tune longer, or on responses such as these.",
        )


def perplexity(scores: Scores) -> float:
    """Of the first response of each row, a token; infinite where one is impossible."""
    mean = float(scores.logps_nP[:, 0].sum(dtype=np.float64) / scores.tokens_nP[:, 0].sum())
    return math.exp(-mean) if mean > -700 else math.inf


def _score(experiment: TextExperiment, rows: Sequence[TokenRow], params: Params) -> Scores:
    return experiment.scorer(params, rows)[1]
