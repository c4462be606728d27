"""Held-out rows: each loss by the library's own function, labels with their rows, no past but the steered alpha."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.data.batches import evaluation_batches
from dpo_jax.data.rows import DataRows
from dpo_jax.evaluation.records import Heldout
from dpo_jax.experiments.heldout import heldout, known_loss, loss_of_rows
from dpo_jax.experiments.losses import TRAINED, read_terms
from dpo_jax.losses import AlphaDPOState, PairLogps, alpha_dpo, bco, bco_pair, dpo, implicit_rewards, kto
from dpo_jax.objectives.terms import Term, as_pair
from dpo_jax.reference.score import Scorer
from dpo_jax.reference.store import Scores
from dpo_jax.types import TokenRow

ROWS = 5
LABELS = np.array([True, False, False, True, True])


def scores(seed: int) -> Scores:
    random = np.random.default_rng(seed)
    logps, heads = (random.normal(-10, 3, (ROWS, 2)).astype(np.float32) for _ in range(2))
    return Scores(logps, random.integers(1, 9, (ROWS, 2)).astype(np.int32), heads)


NOW, FROZEN = scores(1), scores(0)
POLICY, REFERENCE = (as_pair(scores.logps_nP, scores.tokens_nP) for scores in (NOW, FROZEN))


def terms(*losses: dict[str, Any]) -> list[Term]:
    return read_terms([LossConfig(**loss) for loss in losses], {})


def test_a_mixture_is_the_weighted_sum_of_its_losses():
    found = loss_of_rows(
        terms({"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}), NOW, FROZEN, None, None
    )
    delta = jnp.concatenate(implicit_rewards(POLICY, REFERENCE, beta=0.1)).mean()
    expected = 0.8 * dpo(POLICY, REFERENCE) + 0.2 * bco_pair(POLICY, REFERENCE, delta=delta)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ld_reads_the_heads_of_both():
    found = loss_of_rows(terms({"name": "dpo", "ld_alpha": 0.3}), NOW, FROZEN, None, None)
    reduced = (PairLogps(*(0.7 * rows.heads_nP + 0.3 * rows.logps_nP).T) for rows in (NOW, FROZEN))
    np.testing.assert_allclose(found, dpo(*map(lambda p: PairLogps(*map(jnp.asarray, p[:2])), reduced)), rtol=1e-5)


def test_kl_and_level_of_labelled_completions_are_those_of_these_rows():
    good, (a_n, mismatched_n) = jnp.asarray(LABELS), (NOW.logps_nP - FROZEN.logps_nP).T
    found = loss_of_rows(terms({"name": "kto", "options": {"beta": 0.5}}), NOW, FROZEN, LABELS, None)
    assert a_n.mean() != mismatched_n.mean() and mismatched_n.mean() > 0
    expected = kto(POLICY.chosen, REFERENCE.chosen, good, mismatched_n.mean(), beta=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = loss_of_rows(terms({"name": "bco"}), NOW, FROZEN, LABELS, None)
    np.testing.assert_allclose(found, bco(POLICY.chosen, REFERENCE.chosen, good, 0.1 * a_n.mean()), rtol=1e-5)


def test_nothing_is_taken_from_training_but_the_steered_alpha():
    options = {"alpha": "auto", "kl_budget": 3.0, "alpha_start": 0.1}
    past = [{"alpha": np.float32(0.4), "kl": np.float32(1.0), "state": AlphaDPOState(*map(np.float32, (9, 9, 9)))}]
    found = loss_of_rows(terms({"name": "alpha_dpo", "options": options}), NOW, FROZEN, None, past)
    expected, _ = alpha_dpo(POLICY, REFERENCE, AlphaDPOState(), alpha=0.4, bias_correction=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    fixed = loss_of_rows(terms({"name": "alpha_dpo", "options": {"alpha": 0.1}}), NOW, FROZEN, None, past)
    assert not np.allclose(fixed, found)


def test_what_is_known_of_each_loss_where_policy_and_reference_agree():
    (weighted,) = terms({"name": "kto", "options": {"undesirable_weight": 3.0}})
    np.testing.assert_allclose(known_loss(weighted, NOW, LABELS), [0.5, 1.5, 1.5, 0.5, 0.5])
    (longer,) = terms({"name": "r_dpo", "options": {"penalty": 0.1}})
    margin = 0.1 * (NOW.tokens_nP[:, 0] - NOW.tokens_nP[:, 1])
    np.testing.assert_allclose(known_loss(longer, NOW, None), np.log1p(np.exp(-margin)), rtol=1e-5)


def evaluated(
    loss: dict[str, Any], labels: np.ndarray | None = None, rows: Sequence[int] = range(ROWS), **brought: Any
) -> Heldout:
    """`heldout` of rows of which policy and reference say NOW and FROZEN; a number twice is one row again."""
    slots = 2 if labels is None else 1
    data = [TokenRow(f"{i}", np.zeros(1 + i, np.int32), (np.zeros(2, np.int32),) * slots) for i in rows]

    def score(params: Any, batch: Any) -> Any:
        lengths_R = batch.segments_RT.sum(axis=1)[: slots * len(batch.weight_B)]
        picks = np.maximum(lengths_R[::slots] - 3, 0)  # a row is known by its length: the longest comes first
        return NOW.logps_nP[picks, :slots], NOW.heads_nP[picks, :slots]

    def lookup(row_ids: list[str]) -> Scores:
        return Scores(*(field[[int(row_id) for row_id in row_ids], :slots] for field in FROZEN))

    scorer = Scorer(score, lambda rows: evaluation_batches(rows, pairs=2), lambda batch: batch)
    store: Any = SimpleNamespace(lookup=lookup)
    return heldout(DataRows(data, [], labels, **brought), terms(loss), scorer, store, {})


def test_pairs_are_measured_with_the_losss_own_beta():
    found = evaluated({"name": "dpo", "options": {"beta": 0.5}})
    margins = (NOW.logps_nP - FROZEN.logps_nP) @ np.array([1, -1])
    assert found.accuracy == (margins > 0).mean()
    assert found.reward_margin == pytest.approx(0.5 * margins.mean(), rel=1e-5)
    assert found.loss == pytest.approx(np.log1p(np.exp(-0.5 * margins)).mean(), rel=1e-5)
    surprise = -NOW.logps_nP[:, 0].sum() / 2 / ROWS  # the tokens of a response that it was scored as having
    low, high = found.perplexity.policy_interval or (0, 0)
    assert low < found.perplexity.policy < high and found.perplexity.reference
    assert found.perplexity.policy == pytest.approx(np.exp(surprise), rel=1e-5)


def test_labels_go_with_their_rows():
    found = evaluated({"name": "bco"}, LABELS)
    ratios = (NOW.logps_nP - FROZEN.logps_nP)[:, 0]
    assert found.margin == pytest.approx(ratios[LABELS].mean() - ratios[~LABELS].mean(), rel=1e-5)
    good = jnp.asarray(LABELS)
    expected = bco(POLICY.chosen, REFERENCE.chosen, good, 0.1 * ratios.mean()).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


def test_soft_labels_and_weights_count_as_in_training():
    soft, weights = np.linspace(0.5, 1, ROWS, dtype=np.float32), np.arange(ROWS, dtype=np.float32)
    found = evaluated({"name": "dpo"}, soft_label_B=soft, weight_B=weights)
    expected = weights * dpo(POLICY, REFERENCE, label_smoothing=1 - soft)
    assert found.loss == pytest.approx(float(expected.mean()), rel=1e-5)


SOFT_LABELLED = sorted(name for name, loss in TRAINED.items() if loss.reads_soft_labels)
TWICE = [0, 1, 2, 3, 4, 1, 3, 1]  # rows that stand there again, with other values beside them


@pytest.mark.parametrize("name", SOFT_LABELLED)
def test_a_soft_label_may_prefer_the_rejected_response(name: str):
    soft = np.linspace(0, 1, ROWS, dtype=np.float32)
    scored = POLICY._replace(chosen_tokens=jnp.full(ROWS, 2.0), rejected_tokens=jnp.full(ROWS, 2.0))
    both = [scored, REFERENCE][: 1 + TRAINED[name].needs_reference]
    right, wrong = (TRAINED[name].function(*both, label_smoothing=each) for each in (0.0, jnp.ones(ROWS)))
    found = evaluated({"name": name}, soft_label_B=soft)
    assert found.loss == pytest.approx(float((soft * right + (1 - soft) * wrong).mean()), rel=1e-5)


def test_a_row_that_stands_there_twice_counts_by_its_own_soft_label_and_weight():
    soft, weights = (np.linspace(*ends, len(TWICE), dtype=np.float32) for ends in ((0, 1), (3, 0)))
    found = evaluated({"name": "dpo"}, rows=TWICE, soft_label_B=soft, weight_B=weights)
    logits = 0.1 * ((NOW.logps_nP - FROZEN.logps_nP) @ np.array([1.0, -1.0]))[TWICE]
    losses = soft * np.logaddexp(0, -logits) + (1 - soft) * np.logaddexp(0, logits)
    assert found.loss == pytest.approx((weights * losses).mean(), rel=1e-5)
    assert found.calibration and found.calibration.log_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.calibration.brier == pytest.approx(np.mean((soft - 1 / (1 + np.exp(-logits))) ** 2), rel=1e-5)


def test_a_row_that_stands_there_twice_counts_for_its_own_source_and_label():
    source, margins = np.array([0, 0, 1, 1, 0, 1, 0, 2]), (NOW.logps_nP - FROZEN.logps_nP) @ np.array([1.0, -1.0])
    found = evaluated({"name": "ipo"}, rows=TWICE, source_B=source, sources=("a", "b", "c"))
    right = {name: float((margins[TWICE][source == place] > 0).mean()) for place, name in enumerate("abc")}
    assert {name: part.accuracy for name, part in found.by_source.items()} == right
    labels = np.array([True, False, False, True, True, True, False, False])
    found, ratios = evaluated({"name": "bco"}, labels, TWICE), (NOW.logps_nP - FROZEN.logps_nP)[TWICE, 0]
    assert found.margin == pytest.approx(ratios[labels].mean() - ratios[~labels].mean(), rel=1e-5)


def test_soft_labels_that_a_loss_cannot_read_leave_it_out():
    found = evaluated({"name": "robust_dpo"}, soft_label_B=np.full(ROWS, 0.5, np.float32))
    assert found.loss is None and found.calibration


@pytest.mark.parametrize("loss", [{"name": "tdpo1"}, {"name": "dpo", "wpo": True}])
def test_a_loss_that_is_not_measured_here_is_left_out(loss: dict[str, Any]):
    found = evaluated(loss)
    assert found.loss is None and found.accuracy is not None
