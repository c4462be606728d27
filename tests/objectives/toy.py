"""A model in float64 small enough to say by hand what the step must give, and the step on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import LossConfig
from dpo_jax.data.batches import Batches
from dpo_jax.data.shapes import Packing
from dpo_jax.experiments.losses import needs_mismatched, read_terms
from dpo_jax.experiments.texts import BATCH_AXES
from dpo_jax.losses import TOKEN_LEVEL, UNPAIRED
from dpo_jax.mesh import named_sharding
from dpo_jax.objectives.preference import preference_objective
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import gradients
from dpo_jax.types import Objective, PairBatch, TokenRow, Unembedding

VOCABULARY, WIDTH, PAIRS = 16, 8, 8


class Toy(NamedTuple):
    """A model in float64: each hidden state is a mean of what was read so far."""

    lora: None = None

    def apply(self, params, tokens_RT, positions_RT, segments_RT, key=None, sequences=None):
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
            packing=Packing(row_multiple=8),
            columns={
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
    """((loss, metrics, memory), gradient) of a mixture; compiled once for the same losses and shapes."""
    terms = read_terms(losses, {})
    live = any(term.name in TOKEN_LEVEL for term in terms)
    batch = batch or make_batch(
        unpaired=losses[0].name in UNPAIRED,
        mismatched=needs_mismatched(losses),
        micro_batches=micro_batches,
        reference=not live,
    )
    step = _STEPS.setdefault(repr(losses), jitted_gradients(preference_objective(Toy().apply, terms, live=live)))  # type: ignore[arg-type]
    rest = {"losses": [term.knobs(0) for term in terms]}, tuple(warm(term.memory()) for term in terms)
    params, frozen = parameters(0), parameters(1) if live else None
    if mesh is None:
        return jax.device_get(step(params, frozen, batch, *rest))
    split = named_sharding(mesh, ("vocab", "embed"), (VOCABULARY, WIDTH))
    with jax.set_mesh(mesh):
        return jax.device_get(step(*jax.device_put((params, frozen), split), place(batch, mesh), *rest))


_STEPS: dict[str, Callable[..., Any]] = {}


def jitted_gradients(objective: Objective) -> Callable[..., Any]:
    """`f(params, frozen, batch, knobs, memory)`: what `gradients` gives of the first step."""

    def run(params: Any, frozen: Any, batch: PairBatch, knobs: Any, memory: Any) -> Any:
        state = TrainState(jnp.zeros((), jnp.int32), params, None, jnp.zeros(2, jnp.uint32), memory, frozen)
        return gradients(objective, state, batch, knobs, jax.random.key(5))

    return jax.jit(run)


@jax.jit
def all_logps(params: Any, batch: PairBatch) -> jax.Array:
    """The log-probs of all tokens at every scored place, [R, N, V], from all logits at once."""
    hidden_RTD, unembedding = Toy().apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
    hidden_RND = jnp.take_along_axis(hidden_RTD, batch.source_RN[..., None], axis=1)
    return jax.nn.log_softmax(jnp.einsum("rnd,vd->rnv", hidden_RND, unembedding.weight_VD))


def of_responses(array_RN: jax.Array, batch: PairBatch) -> jax.Array:
    """[R, N] to [B, P, N]."""
    pairs, slots = batch.response_tokens_BP.shape
    return array_RN[: pairs * slots].reshape(pairs, slots, -1)


@jax.jit
def by_token(params: Any, batch: PairBatch) -> tuple[jax.Array, ...]:
    """Log-probs, log sum_v p_v^2, mask and likeliest token of every response, [B, P, N]."""
    logps_RNV = all_logps(params, batch)
    found = (
        jnp.take_along_axis(logps_RNV, batch.target_RN[..., None], axis=2)[..., 0],
        jax.nn.logsumexp(2 * logps_RNV, axis=-1),
        batch.response_RN >= 0,
        logps_RNV.argmax(axis=-1),
    )
    return tuple(of_responses(x, batch) for x in found)


@jax.jit
def sums_BP(params: Any, batch: PairBatch) -> jax.Array:
    logps_BPN, _, mask_BPN, _ = by_token(params, batch)
    return jnp.where(mask_BPN, logps_BPN, 0).sum(axis=2)


def first_micro_batch(batch: PairBatch) -> PairBatch:
    return jax.tree.map(lambda x: x[0], batch)
