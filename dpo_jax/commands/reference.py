"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from dpo_jax.commands import sft
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import is_unpaired
from dpo_jax.experiments.stores import agree, complete_store, why_no_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_atomic
from dpo_jax.reference.store import Scores, Store
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params


def run(experiment: TextExperiment, *, jsonl: str | None = None, verify: str | None = None) -> None:
    """Completes the store; with `jsonl`, also writes the scores of the training rows, in data order.

    `verify` is how many rows, drawn by the seed, are scored once more and compared.
    """
    count = _row_count(verify)
    reason = why_no_store(experiment)
    if reason:
        raise UserError(f"reference: nothing to store: {reason}.")
    fine_tune_first(experiment)
    params = cache(experiment.start_params)
    store = complete_store(experiment, params)
    if jsonl:
        rows = experiment.train_data.rows
        lines = _lines(experiment, store.lookup(row_ids_of(rows)))
        write_atomic(Path(jsonl), "".join(lines))
        say("reference", f"wrote {len(rows)} rows to {jsonl}")
    if count:
        _verify(experiment, store, params(), count)


def _row_count(text: str | None) -> int:
    if text is not None and not (text.isdecimal() and int(text)):
        raise UserError(f"command line: --verify {text!r}: give the number of rows to score again, such as 100.")
    return int(text or 0)


def _verify(experiment: TextExperiment, store: Store, params: Params, count: int) -> None:
    """Scores some training rows again.

    Raises:
        UserError: the store says otherwise.
    """
    rows = experiment.train_data.rows
    picks = np.random.default_rng(experiment.config.seed).choice(len(rows), min(count, len(rows)), replace=False)
    row_ids, now = experiment.scorer(params, take(rows, picks))
    stored = store.lookup(row_ids)
    off_n = np.abs(now.logps_nP - stored.logps_nP).max(axis=1)
    worst = int(off_n.argmax())
    say("reference", f"{len(picks)} rows scored again: the largest difference is {off_n[worst]:.2e} nats")
    if not agree(now, stored, experiment.config.model.dtype).all():
        raise UserError(
            f"{store.folder}: row {row_ids[worst]} has log-probs {stored.logps_nP[worst].tolist()} there, and now "
            f"{now.logps_nP[worst].tolist()}. Delete the folder and score again."
        )


def fine_tune_first(experiment: TextExperiment) -> None:
    """Fine-tuning, where the configuration asks for it: its result is the reference. No row is bad when it begins."""
    if experiment.config.sft:
        experiment.read_data()
        sft.run(experiment)


def _lines(experiment: TextExperiment, scores: Scores) -> list[str]:
    names = ("chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")
    if is_unpaired(experiment.config.loss):
        kinds = ("completion", "mismatched")[: scores.logps_nP.shape[1]]
        names = tuple(f"{kind}_{what}" for what in ("logps", "tokens") for kind in kinds)
    columns = np.concatenate([scores.logps_nP.astype(object), scores.tokens_nP.astype(object)], axis=1)
    return [
        json.dumps({"row_id": row.row_id, **dict(zip(names, values, strict=True))}) + "\n"
        for row, values in zip(experiment.train_data.rows, columns.tolist(), strict=True)
    ]
