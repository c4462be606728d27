"""The same log-probs and gradients in every layout and by every form of attention; and no pair sees another."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import Batches
from dpo_jax.data.layouts import LAYOUTS
from dpo_jax.data.shapes import Packing
from dpo_jax.logprobs import batch_scores
from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import BACKENDS, kernels
from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, LayerKind, Spec
from dpo_jax.types import PairBatch, Params, TokenRow

SIZES = {"vocabulary": 50, "width": 16, "heads": 4, "head_size": 4, "mlp_width": 24, "norm_epsilon": 1e-5, "tied": True}
SPECS: dict[str, Spec] = {
    "windows": DecoderSpec(
        **SIZES, layers=3, kv_heads=1, kinds=(LayerKind(1e4), LayerKind(1e2, 5)), kind_of_layer=(1, 0, 1)
    ),
    "gpt2": Gpt2Spec(**SIZES, layers=2, kv_heads=4, positions=40),
}
PAIRS = 8


class Way(NamedTuple):
    """How log-probs are computed; gpt2 on eight devices, where rows, heads and lengths are split."""

    layout: str
    backend: str = "blocks"
    spec: str = "windows"

    @property
    def axes(self) -> dict[str, int]:
        on_mesh = self.spec == "gpt2" and self.backend != "dense"
        return {"data": 2, "tensor": 2, "sequence": 2, "fsdp": 1} if on_mesh else {}


def make_rows(seed: int = 0) -> list[TokenRow]:
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(0, 50, random.integers(low, high)).astype(np.int32)

    return [TokenRow(f"{i}", ids(1, 12), (ids(1, 14), ids(1, 14))) for i in range(PAIRS)]


@pytest.fixture(autouse=True)
def _without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax.nn's own form in place of cuDNN, with the same arguments; the splash kernel interpreted."""
    monkeypatch.setattr(kernels, "CUDNN_IMPLEMENTATION", "xla")
    monkeypatch.setattr(kernels, "SPLASH_INTERPRET", True)


@functools.cache
def params_of(spec: str) -> Params:
    return jax.tree.map(lambda x: 4 * x, jax.jit(make_model(SPECS[spec]).init)(jax.random.key(0)))


@functools.cache
def step_of(spec: str, backend: str) -> Callable[..., Any]:
    """Log-probs [B, P], those of the heads, and the gradient of a weighted sum of them."""
    model = make_model(SPECS[spec], attention=backend)

    def weighed(params: Params, batch: PairBatch, weights_BP: jax.Array) -> tuple:
        rows_RT = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        hidden_RTD, unembedding = model.apply(params, *rows_RT, sequences=batch.sequences)
        logps_BP, heads_BP = batch_scores(hidden_RTD, unembedding, batch)
        return (weights_BP * logps_BP).sum(), (logps_BP, heads_BP)

    return jax.jit(jax.value_and_grad(weighed, has_aux=True))


def scores(
    way: Way, rows: list[TokenRow] | None = None, *, micro: int = PAIRS
) -> tuple[np.ndarray, np.ndarray, Params]:
    """Log-probs [B, P], those of the heads, and the gradient of a weighted sum of them."""
    rows = rows or make_rows()
    batch = (
        Batches(
            rows,
            batch_pairs=PAIRS,
            micro_batch_pairs=micro,
            seed=0,
            order="sequential",
            packing=Packing(way.layout, 2, BACKENDS[way.backend].unpacks),
        )
        .batch(0)
        .arrays
    )
    weights_ABP = np.random.default_rng(1).standard_normal((PAIRS // micro, micro, 2)).astype(np.float32)
    parts = []
    with jax.set_mesh(make_mesh(**way.axes)) if way.axes else contextlib.nullcontext():
        for number, weights_BP in enumerate(weights_ABP):
            part = jax.tree.map(lambda x, number=number: jnp.asarray(x[number]), batch)
            (_, found), gradient = jax.device_get(step_of(way.spec, way.backend)(params_of(way.spec), part, weights_BP))
            parts.append((*found, gradient))
    logps, heads, gradients = zip(*parts, strict=True)
    return np.concatenate(logps), np.concatenate(heads), jax.tree.map(lambda *each: np.sum(each, axis=0), *gradients)


@functools.cache
def witness(spec: str) -> tuple:
    return scores(Way("padded", "dense", spec))


WAYS = [
    *(Way(layout, spec=spec) for layout in LAYOUTS for spec in SPECS),
    Way("shared", "cudnn"),
    Way("packed", "cudnn", "gpt2"),
    Way("packed", "splash"),
    Way("shared", "splash", "gpt2"),
]


def params(ways: list[Way]) -> list:
    """By default all layouts and each form of attention once, and one layout on eight devices."""
    dear = pytest.mark.slow("on eight devices")
    return [
        pytest.param(way, id="-".join(way), marks=dear if way.axes and way[:2] != ("shared", "blocks") else ())
        for way in ways
    ]


def test_every_layout_and_form_of_attention_is_compared():
    assert {way.layout for way in WAYS} == LAYOUTS.keys()
    assert {way.backend for way in WAYS} == BACKENDS.keys() - {"dense"}


@pytest.mark.parametrize("way", params(WAYS))
def test_log_probs_and_gradients_are_those_of_padded_rows_and_dense_attention(way: Way):
    ours, wanted = scores(way), witness(way.spec)
    tokens_BP = np.array([[len(response) for response in row.responses] for row in make_rows()])
    for found, logps in zip(ours[:2], wanted[:2], strict=True):
        assert np.abs((found - logps) / tokens_BP).max() < 1e-5  # nats per token
    for found, gradient in zip(*map(jax.tree.leaves, (ours[2], wanted[2])), strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("way", params([way for way in WAYS if way.spec == "windows" or way.backend == "splash"]))
def test_a_pair_that_changes_leaves_the_others_bit_for_bit(way: Way):
    rows = make_rows()
    prompt, (chosen, rejected) = rows[3].prompt, rows[3].responses
    rows[3] = TokenRow("3", (prompt + 1) % 50, ((chosen + 7) % 50, (rejected + 3) % 50))
    for ours, wanted in zip(scores(way, rows)[:2], scores(way)[:2], strict=True):
        same = ours == wanted
        assert same[np.arange(PAIRS) != 3].all() and not same[3].any()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "padded"])
def test_a_response_does_not_see_the_other(layout: str):
    way = Way(layout, spec="gpt2")
    other = [row._replace(responses=(row.responses[0], (row.responses[1] + 3) % 50)) for row in make_rows()]
    for ours, wanted in zip(scores(way, other)[:2], scores(way)[:2], strict=True):
        np.testing.assert_array_equal(ours[:, 0], wanted[:, 0])
        assert (ours[:, 1] != wanted[:, 1]).all()


def test_micro_batches_are_packed_each_for_itself():
    np.testing.assert_allclose(scores(Way("shared"), micro=2)[0], witness("windows")[0], rtol=1e-5)
