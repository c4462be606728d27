"""Metrics of rows that are not trained on, and how well the start of a training fits the chosen responses.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.data.rows import DataRows
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError
from dpo_jax.evaluation.heldout import (
    accuracy_by_length,
    accuracy_by_source,
    calibration,
    perplexity,
    perplexity_interval,
    preference_metrics,
    unpaired_metrics,
)
from dpo_jax.evaluation.intervals import groups_of, in_words, mean_interval
from dpo_jax.evaluation.records import Fitted, Heldout, Sides
from dpo_jax.experiments.stores import TOLERANCE
from dpo_jax.files import write_json
from dpo_jax.losses import LossInputs, PairLogps, mismatched_kl
from dpo_jax.objectives.terms import Term, TermInputs, as_pair
from dpo_jax.reference.store import Scores, Store
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params, TokenRow

RowScorer = Callable[[Params, Sequence[TokenRow]], tuple[list[str], Scores]]
LossState = Sequence[Mapping[str, Any]]
"""Of each loss what it remembers."""

_ROWS = 64
_FITTED = 0.95  # of the base's perplexity: above that fine-tuning has done next to nothing for these responses


def heldout(
    data: DataRows,
    terms: Sequence[Term],
    scorer: RowScorer,
    store: Store,
    policy: Params,
    loss_state: LossState | None = None,
) -> Heldout:
    """Reward accuracy, margin and loss on the held-out rows `data`, against the reference of the store.

    Of pairs also calibration, accuracy by length and source, and the perplexity of the chosen responses, a token.

    A loss that remembers earlier batches begins anew here, and is measured by the statistics of the held-out rows
    themselves; only what `alpha: auto` came to is taken from `loss_state`. Where a loss reads token distributions,
    which are not scored here (TDPO, WPO), or rows have soft labels, which a loss cannot read, `loss` is left out.
    """
    row_ids, now = scorer(policy, data.rows)
    frozen = store.lookup(row_ids)
    beta = next((term.options["beta"] for term in terms if "beta" in term.options), 1.0)
    desirable, source, groups = data.desirable, data.source_B, prompt_groups(data.rows)
    if desirable is None:
        margins_n = _margins(now, frozen)
        perplexities = Sides(
            policy=_first_perplexity(now),
            policy_interval=_first_perplexity_interval(now, groups),
            reference=_first_perplexity(frozen),
            reference_interval=_first_perplexity_interval(frozen, groups),
        )
        metrics = dataclasses.replace(
            preference_metrics(now.logps_nP, frozen.logps_nP, beta=beta, groups_B=groups),
            calibration=calibration(margins_n, beta=beta, soft_label_B=data.soft_label_B, groups_B=groups),
            perplexity=perplexities,
            by_length=accuracy_by_length(margins_n, now.tokens_nP, groups),
            by_source={} if source is None else accuracy_by_source(margins_n, source, data.sources, groups),
        )
    else:
        metrics = unpaired_metrics(now.logps_nP[:, 0], frozen.logps_nP[:, 0], desirable, beta=beta, groups_n=groups)
    unread = data.soft_label_B is not None and not all(term.reads_soft_labels for term in terms)
    if unread or any(term.entry.needs_distribution or term.wpo for term in terms):
        return metrics
    brought = {"loss_weight_B": data.weight_B, "soft_label_B": data.soft_label_B}
    losses_n = loss_of_rows(terms, now, frozen, desirable, loss_state, **brought)
    return dataclasses.replace(
        metrics, loss=float(losses_n.mean()), loss_interval=mean_interval(np.asarray(losses_n), groups)
    )


def prompt_groups(rows: Sequence[TokenRow]) -> np.ndarray:
    """The group of each row, [n]: rows of one prompt are no independent ones."""
    return groups_of([row.prompt.tobytes() for row in rows])


def _margins(now: Scores, frozen: Scores) -> np.ndarray:
    """The chosen log-ratio less the rejected one, nats, [n]."""
    log_ratios_nP = now.logps_nP.astype(np.float64) - frozen.logps_nP
    return log_ratios_nP[:, 0] - log_ratios_nP[:, 1]


def loss_of_rows(
    terms: Sequence[Term],
    now: Scores,
    frozen: Scores,
    desirable: np.ndarray | None,
    loss_state: LossState | None,
    *,
    loss_weight_B: np.ndarray | None = None,
    soft_label_B: np.ndarray | None = None,
) -> jax.Array:
    """The weighted losses of scored rows, [n], every loss without a past."""
    policy, reference = _pairs(now.logps_nP, now), _pairs(frozen.logps_nP, frozen)
    read = LossInputs(policy, reference, desirable_B=None if desirable is None else jnp.asarray(desirable))
    if desirable is not None and now.logps_nP.shape[1] > 1:
        read = read._replace(mismatched_kl=mismatched_kl(policy.rejected, reference.rejected))
    inputs = TermInputs(
        read,
        policy_heads=_pairs(now.heads_nP, now),
        reference_heads=_pairs(frozen.heads_nP, frozen),
        loss_weight_B=None if loss_weight_B is None else jnp.asarray(loss_weight_B),
        soft_label_B=None if soft_label_B is None else jnp.asarray(soft_label_B),
    )
    total_n = jnp.zeros(len(now.logps_nP))
    for index, term in enumerate(terms):
        steered = {"alpha": loss_state[index]["alpha"]} if term.budget and loss_state else {}
        losses_n, _ = term.evaluate(inputs, term.knobs(0), {**term.memory(), **steered}, jax.random.key(index))
        total_n += term.weight * losses_n
    return total_n


def known_loss(term: Term, scores: Scores, desirable: np.ndarray | None) -> float | jax.Array:
    """The loss of these rows where the policy is the reference."""
    assert term.entry.at_reference is not None
    data = _pairs(scores.logps_nP, scores) if desirable is None else jnp.asarray(desirable)
    return term.entry.at_reference(data, **term.options)


def check_losses(
    terms: Sequence[Term], now: Scores, stored: Scores, desirable: np.ndarray | None, *, where: str, dtype: str
) -> None:
    """Checks that each loss of rows has its known value where the policy, which says `now`, is the reference.

    Raises:
        UserError: one has not.
    """
    absolute, relative = TOLERANCE[Scores][dtype]
    for term in terms:
        if term.entry.at_reference is None or term.entry.needs_distribution:  # those read what is not scored here
            continue
        plain = term._replace(weight=1.0, ld_alpha=None, wpo=False)
        value = float(jnp.mean(loss_of_rows([plain], now, stored, desirable, None)))
        known = float(jnp.mean(known_loss(term, now, desirable)))
        if not abs(value - known) <= absolute + relative * abs(known):
            raise UserError(
                f"step 0: the {term.name} loss is {value:.6f}; with policy and reference equal it is {known:.6f}. "
                f"Check loss.options and {where}."
            )


def _pairs(logps_nP: np.ndarray, scores: Scores) -> PairLogps:
    return as_pair(jnp.asarray(logps_nP), jnp.asarray(scores.tokens_nP))


def say_how_fitted(
    data: DataRows,
    scorer: RowScorer,
    store: Store | None,
    start: Callable[[], Params],
    *,
    base: Callable[[], Params] | None,
    path: Path,
) -> None:
    """Says the perplexity of chosen (or desirable) responses where training starts, and before fine-tuning.

    It warns where that is hardly lower. What the store knows is not computed again. The file `path` keeps it. `base`
    gives the parameters before fine-tuning; None: there was none.
    """
    chosen = np.arange(len(data.rows)) if data.desirable is None else np.flatnonzero(data.desirable)
    rows = take(data.rows, chosen[np.linspace(0, len(chosen) - 1, min(_ROWS, len(chosen))).astype(int)])
    scores = store.lookup(row_ids_of(rows)) if store else scorer(start(), rows)[1]
    groups = prompt_groups(rows)
    now, interval = _first_perplexity(scores), _first_perplexity_interval(scores, groups)
    of = f"{len(rows)} chosen responses: perplexity {now:.2f} a token ({in_words(interval, '.2f')})"
    if base is None:
        write_json(path, Fitted(responses=len(rows), perplexity=now, perplexity_interval=interval).to_json())
        say("train", f"{of}; no `sft:` section: unless they are the model's own, fine-tune on such responses first")
        return
    before = _first_perplexity(scorer(base(), rows)[1])
    fitted = now < _FITTED * before
    record = Fitted(
        responses=len(rows),
        perplexity=now,
        perplexity_interval=interval,
        before_fine_tuning=before,
        fitted=fitted,
    )
    write_json(path, record.to_json())
    say("train", f"{of} after fine-tuning, {before:.2f} before")
    if not fitted:
        say(
            "train",
            "warning: fine-tuning has not fitted the policy to the chosen responses. Preference training then lifts "
            "what the policy hardly ever writes; fine-tune longer, or on responses such as these.",
        )


def _first_perplexity(scores: Scores) -> float:
    """That of the first response of each row, a token."""
    return perplexity(scores.logps_nP[:, 0], scores.tokens_nP[:, 0])


def _first_perplexity_interval(scores: Scores, groups: np.ndarray | None) -> tuple[float, float]:
    return perplexity_interval(scores.logps_nP[:, 0], scores.tokens_nP[:, 0], groups)
