"""Every loss in the step, in float64, at unequal lengths: micro-batches and a mesh change no value and no gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.data.batches import Batches
from dpo_jax.losses import TOKEN_LEVEL, UNPAIRED, PairLogps, dpo, ld_reduce, wpo_weights
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.stages.objectives import preference_objective
from dpo_jax.stages.setup import BATCH_AXES
from dpo_jax.stages.terms import TRAINED, needs_mismatched, read_terms
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import Objective, gradients
from dpo_jax.types import PairBatch, TokenRow, Unembedding

VOCABULARY, WIDTH, PAIRS = 13, 6, 8


class Toy(NamedTuple):
    """A model in float64: each hidden state is a mean of what was read so far."""

    def apply(self, params, tokens_RT, positions_RT, segments_RT):
        read_RTD = params["read"][tokens_RT] * (segments_RT > 0)[..., None]
        hidden_RTD = jnp.cumsum(read_RTD, axis=1) / (positions_RT + 1.0)[..., None]
        return jnp.tanh(hidden_RTD), Unembedding(params["say"], VOCABULARY)


def parameters(seed: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=(VOCABULARY, WIDTH))) for name in ("read", "say")}


def make_batch(*, unpaired: bool, mismatched: bool, micro_batches: int, reference: bool) -> PairBatch:
    random = np.random.default_rng(3)
    slots = 2 if mismatched or not unpaired else 1
    rows = [
        TokenRow(
            f"{i}",
            random.integers(0, VOCABULARY, random.integers(1, 5)).astype(np.int32),
            tuple(random.integers(0, VOCABULARY, random.integers(1, 9)).astype(np.int32) for _ in range(slots)),
        )
        for i in range(PAIRS)
    ]
    return (
        Batches(
            rows,
            batch_pairs=PAIRS,
            micro_batch_pairs=PAIRS // micro_batches,
            seed=0,
            row_multiple=8,
            reference={
                "reference_logps_BP": random.normal(-12.0, 4.0, (PAIRS, slots)).astype(np.float32),
                "reference_heads_BP": random.normal(-6.0, 2.0, (PAIRS, slots)).astype(np.float32),
            }
            if reference
            else None,
            desirable=np.arange(PAIRS) % 3 > 0 if unpaired else None,
        )
        .batch(0)
        .arrays
    )


def place(batch: PairBatch, mesh: Any) -> PairBatch:
    """Rows split over the mesh, as a run places them."""
    placed = {
        name: place(array, mesh)
        if isinstance(array, PairBatch)
        else array
        if array is None
        else jax.device_put(array, named_sharding(mesh, (None, *BATCH_AXES[name]), array.shape))
        for name, array in batch._asdict().items()
    }
    return PairBatch(**placed)


def warm(memory: Any) -> Any:
    """A memory of earlier batches."""
    return jax.tree.map(lambda x: jnp.asarray(x + 0.7, jnp.float64), memory)


def found_by(losses: list[LossConfig], *, micro_batches: int, mesh: Any = None, batch: PairBatch | None = None) -> Any:
    terms = read_terms(losses, {})
    live = any(term.name in TOKEN_LEVEL for term in terms)
    objective: Objective = preference_objective(Toy(), terms)  # type: ignore[arg-type]
    batch = batch or make_batch(
        unpaired=losses[0].name in UNPAIRED,
        mismatched=needs_mismatched(losses),
        micro_batches=micro_batches,
        reference=not live,
    )
    memory = tuple(warm(term.memory()) for term in terms)
    knobs = {"losses": [term.knobs(0) for term in terms]}

    def run(params: Any, frozen: Any, batch: PairBatch, knobs: Any, memory: Any) -> Any:
        state = TrainState(jnp.zeros((), jnp.int32), params, None, jnp.zeros(2, jnp.uint32), memory, frozen)
        return gradients(objective, state, batch, knobs, jax.random.key(5))

    arguments = (parameters(0), parameters(1) if live else None, batch, knobs, memory)
    if mesh is None:
        return jax.device_get(jax.jit(run)(*arguments))
    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(run)(*arguments[:2], place(batch, mesh), knobs, memory))


MIXTURES = {
    "mpo": [
        LossConfig(name="dpo", weight=0.8),
        LossConfig(name="bco_pair", weight=0.2),
        LossConfig(name="sft", weight=1.0),
    ],
    "two that remember": [LossConfig(name="alpha_dpo"), LossConfig(name="beta_dpo", weight=0.5)],
    "sft by sequence": [
        LossConfig(name="orpo", weight=0.1),
        LossConfig(name="sft", options={"nll_reduction": "sequence"}),
    ],
    "unpaired": [LossConfig(name="kto"), LossConfig(name="bco", weight=0.3)],
    "ld and wpo": [LossConfig(name="dpo", ld_alpha=0.3), LossConfig(name="aot", wpo=True)],
}
CASES = {name: [LossConfig(name=name)] for name in TRAINED} | MIXTURES


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_on_eight_devices_equal_one_batch_on_one(x64, name: str):
    whole = found_by(CASES[name], micro_batches=1)
    parts = found_by(CASES[name], micro_batches=4, mesh=make_mesh(data=2, fsdp=4))
    assert whole[0][0].dtype == np.float64
    for ours, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-11)


def by_token(params: Any, batch: PairBatch) -> tuple[jax.Array, ...]:
    """Log-probs, log sum_v p_v^2, mask and likeliest token of every response, [B, P, N], from all logits at once."""
    hidden_RTD, unembedding = Toy().apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
    hidden_RND = jnp.take_along_axis(hidden_RTD, batch.source_RN[..., None], axis=1)
    logps_RNV = jax.nn.log_softmax(jnp.einsum("rnd,vd->rnv", hidden_RND, unembedding.weight_VD))
    found = (
        jnp.take_along_axis(logps_RNV, batch.target_RN[..., None], axis=2)[..., 0],
        jax.nn.logsumexp(2 * logps_RNV, axis=-1),
        batch.response_RN >= 0,
        logps_RNV.argmax(axis=-1),
    )
    return tuple(x[: 2 * PAIRS].reshape(PAIRS, 2, -1) for x in found)


@pytest.mark.parametrize(("ld_alpha", "wpo"), [(0.3, False), (None, True), (0.0, True)])
def test_token_weights_in_the_step_equal_the_pure_functions(x64, ld_alpha: float | None, wpo: bool):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    likeliest_RN = by_token(parameters(0), jax.tree.map(lambda x: x[0], whole))[3].reshape(2 * PAIRS, -1)
    whole.target_RN[0, :PAIRS] = likeliest_RN[:PAIRS]  # half of the pairs are just what the policy would say
    batch = jax.tree.map(lambda x: x[0], whole)
    logps_BPN, squares_BPN, mask_BPN, _ = by_token(parameters(0), batch)
    heads_BP, totals_BP = (jnp.asarray(x, jnp.float64) for x in (batch.reference_heads_BP, batch.reference_logps_BP))
    if ld_alpha is None:
        policy_BP, reference_BP = (logps_BPN * mask_BPN).sum(-1), totals_BP
    else:
        policy_BP = ld_reduce(logps_BPN, mask_BPN, alpha=ld_alpha)
        reference_BP = heads_BP + ld_alpha * (totals_BP - heads_BP)
    losses_B = dpo(PairLogps(*policy_BP.T), PairLogps(*reference_BP.T))
    if wpo:
        weights_B = wpo_weights(logps_BPN, squares_BPN, mask_BPN, clamp=jnp.inf).prod(axis=1)
        assert (weights_B < 1).any() and (weights_B > 1).any()
        losses_B *= jnp.minimum(weights_B, 1.0)
    (loss, _, _), _ = found_by([LossConfig(name="dpo", ld_alpha=ld_alpha, wpo=wpo)], micro_batches=1, batch=whole)
    # the reference is float32, and so is its head
    np.testing.assert_allclose(loss, losses_B.mean(), rtol=1e-7 if ld_alpha else 1e-9)


def test_a_mixture_is_the_weighted_sum_of_its_losses(x64):
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)
    losses = [LossConfig(name="dpo"), LossConfig(name="bco_pair", options={"beta": 0.3}), LossConfig(name="sft")]
    singles = [found_by([loss], micro_batches=2, batch=batch) for loss in losses]
    weights = (0.8, 0.2, 1.5)
    mixture = [replace(loss, weight=weight) for loss, weight in zip(losses, weights, strict=True)]
    (loss, _, memory), gradient = found_by(mixture, micro_batches=2, batch=batch)
    expected = [
        jax.tree.map(lambda *parts: sum(w * part for w, part in zip(weights, parts, strict=True)), *found)
        for found in ([single[0][0] for single in singles], [single[1] for single in singles])
    ]
    for ours, wanted in zip(jax.tree.leaves((loss, gradient)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)
    assert [jax.tree.leaves(one) for one in memory] == [jax.tree.leaves(single[0][2]) for single in singles]
    assert memory[1]["state"].count == pytest.approx(0.7 + 2 * PAIRS)


def first_micro_batch(batch: PairBatch) -> PairBatch:
    return jax.tree.map(lambda x: x[0], batch)


def test_two_losses_that_draw_lots_draw_different_ones_in_a_mixture(x64):
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    logps_BPN, _, mask_BPN, _ = by_token(parameters(0), first_micro_batch(batch))
    close_BP = (logps_BPN * mask_BPN).sum(-1) + np.random.default_rng(0).normal(0, 0.5, (PAIRS, 2))
    batch = batch._replace(reference_logps_BP=np.asarray(close_BP, np.float32)[None])  # so close that chance decides
    lots = LossConfig(name="beta_dpo", options={"filter_fraction": 0.5})
    (one, _, _), _ = found_by([lots], micro_batches=1, batch=batch)
    (two, _, _), _ = found_by([lots, lots], micro_batches=1, batch=batch)
    assert abs(two / one - 2) > 1e-3


def test_the_sft_term_is_a_mean_over_the_chosen_tokens(x64):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    logps_BPN, _, mask_BPN, _ = by_token(parameters(0), first_micro_batch(whole))
    (loss, _, _), _ = found_by([LossConfig(name="sft")], micro_batches=1, batch=whole)
    np.testing.assert_allclose(loss, -(logps_BPN * mask_BPN)[:, 0].sum() / mask_BPN[:, 0].sum(), rtol=1e-9)


REAL = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)


def test_losses_of_single_pairs_are_meant_over_the_real_ones(x64):
    """8 L(all) = 6 L(6 of them) + 2 L(the other 2)."""
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)

    def total(weights: np.ndarray) -> Any:
        batch = whole._replace(weight_B=weights.reshape(2, 4))
        (loss, _, _), gradient = found_by([LossConfig(name="dpo")], micro_batches=2, batch=batch)
        return jax.tree.map(lambda x: weights.sum() * x, (loss, gradient))

    for both, one, other in zip(*map(jax.tree.leaves, map(total, (np.ones(8), REAL, 1 - REAL))), strict=True):
        np.testing.assert_allclose(one + other, both, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["aot", "beta_dpo", "bco_pair", "kto"])
def test_a_pair_of_weight_0_changes_nothing_for_the_others(x64, name: str):
    losses = [LossConfig(name=name)]
    batch = make_batch(
        unpaired=name in UNPAIRED, mismatched=needs_mismatched(losses), micro_batches=2, reference=True
    )._replace(weight_B=REAL.reshape(2, 4))

    def junk(batch: PairBatch) -> PairBatch:
        logps_BP = np.where(REAL.reshape(2, 4, 1) > 0, batch.reference_logps_BP, 40.0)
        mismatched = None if batch.mismatched is None else junk(batch.mismatched)
        return batch._replace(reference_logps_BP=logps_BP.astype(np.float32), mismatched=mismatched)

    ((clean, _, remembered), gradient), ((dirty, _, also), other) = (
        found_by(losses, micro_batches=2, batch=which) for which in (batch, junk(batch))
    )
    for ours, wanted in zip(
        jax.tree.leaves((dirty, also, other)), jax.tree.leaves((clean, remembered, gradient)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)
