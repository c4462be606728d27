"""Rows that are not trained on: does the policy prefer what it should, and what is the loss there.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.evaluation.calibration import accuracy_by_length, accuracy_by_source, calibration
from dpo_jax.evaluation.preference import preference_metrics, unpaired_metrics
from dpo_jax.experiments.fitted import perplexity
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.losses import LossInputs, PairLogps, mismatched_kl
from dpo_jax.objectives.terms import Term, TermInputs, as_pair
from dpo_jax.reference.store import Scores, Store
from dpo_jax.types import Params, TokenRow


def heldout(
    experiment: TextExperiment, store: Store, policy: Params, memory: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Reward accuracy, margin and loss on the held-out rows.

    Of pairs also calibration, accuracy by length and source, and the perplexity of the chosen responses, a token.

    A loss that remembers earlier batches begins anew here, and is measured by the statistics of the held-out rows
    themselves; only what `alpha: auto` came to is taken from `memory`. Where a loss reads token distributions, which
    are not scored here (TDPO, WPO), `loss` is left out.
    """
    data = experiment.eval_data
    row_ids, now = experiment.scorer(policy, data.rows)
    frozen = store.lookup(row_ids)
    beta = next((term.options["beta"] for term in experiment.terms if "beta" in term.options), 1.0)
    desirable, source = (values_of(data.rows, values, row_ids) for values in (data.desirable, data.source_B))
    brought = {"loss_weight_B": data.weight_B, "soft_label_B": data.soft_label_B}
    beside = {name: values_of(data.rows, values, row_ids) for name, values in brought.items()}
    if desirable is None:
        found = preference_metrics(now.logps_nP, frozen.logps_nP, beta=beta)
        margins_n = _margins(now, frozen)
        found["calibration"] = calibration(margins_n, beta=beta, soft_label_B=beside["soft_label_B"])
        found["perplexity"] = {"policy": perplexity(now), "reference": perplexity(frozen)}
        found["by_length"] = accuracy_by_length(margins_n, now.tokens_nP)
        if source is not None:
            found["by_source"] = accuracy_by_source(margins_n, source, data.sources)
    else:
        found = unpaired_metrics(now.logps_nP[:, 0], frozen.logps_nP[:, 0], desirable, beta=beta)
    if any(term.entry.needs_distribution or term.wpo for term in experiment.terms):
        return found
    return {**found, "loss": float(loss_of_rows(experiment.terms, now, frozen, desirable, memory, **beside).mean())}


def _margins(now: Scores, frozen: Scores) -> np.ndarray:
    """The chosen log-ratio less the rejected one, nats, [n]."""
    log_ratios_nP = now.logps_nP.astype(np.float64) - frozen.logps_nP
    return log_ratios_nP[:, 0] - log_ratios_nP[:, 1]


def values_of(rows: Sequence[TokenRow], values: np.ndarray | None, row_ids: Sequence[str]) -> np.ndarray | None:
    """The values, [n], of rows, which begin with those of `rows`, in the order of these ids; None if none."""
    if values is None:
        return None
    found = dict(zip((row.row_id for row in rows), values[: len(rows)], strict=True))
    return np.array([found[row_id] for row_id in row_ids])


def loss_of_rows(
    terms: Sequence[Term],
    now: Scores,
    frozen: Scores,
    desirable: np.ndarray | None,
    memory: Sequence[Any] | None,
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
        steered = {"alpha": memory[index]["alpha"]} if term.budget and memory else {}
        losses_n, _ = term.evaluate(inputs, term.knobs(0), {**term.memory(), **steered}, jax.random.key(index))
        total_n += term.weight * losses_n
    return total_n


def known_loss(term: Term, scores: Scores, desirable: np.ndarray | None) -> float | jax.Array:
    """The loss of these rows where the policy is the reference."""
    assert term.entry.at_reference is not None
    data = _pairs(scores.logps_nP, scores) if desirable is None else jnp.asarray(desirable)
    return term.entry.at_reference(data, **term.options)


def _pairs(logps_nP: np.ndarray, scores: Scores) -> PairLogps:
    return as_pair(jnp.asarray(logps_nP), jnp.asarray(scores.tokens_nP))
