"""The same log-probs and gradients whatever the layout, for every kind of layer; and no pair sees another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import Batches
from dpo_jax.data.layouts import LAYOUTS
from dpo_jax.logprobs import batch_scores
from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import BACKENDS, cudnn, splash
from dpo_jax.models.decoder import make_model
from dpo_jax.models.gpt2 import Gpt2Spec
from dpo_jax.models.spec import DecoderSpec, LayerKind, Spec
from dpo_jax.types import Params, TokenRow

SIZES = {"vocabulary": 50, "width": 16, "heads": 4, "head_size": 4, "mlp_width": 24, "norm_epsilon": 1e-5, "tied": True}
SPECS: dict[str, Spec] = {
    "llama": DecoderSpec(**SIZES, layers=2, kv_heads=2),
    "windows, two kinds": DecoderSpec(
        **SIZES, layers=3, kv_heads=1, kinds=(LayerKind(1e4), LayerKind(1e2, 5)), kind_of_layer=(1, 0, 1)
    ),
    "gpt2": Gpt2Spec(**SIZES, layers=2, kv_heads=4, positions=40),
}
PAIRS = 8


def make_rows(seed: int = 0) -> list[TokenRow]:
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return random.integers(0, 50, random.integers(low, high)).astype(np.int32)

    return [TokenRow(f"{i}", ids(1, 12), (ids(1, 14), ids(1, 14))) for i in range(PAIRS)]


@pytest.fixture(autouse=True)
def _without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax.nn's own form in place of cuDNN, with the same arguments; the splash kernel interpreted."""
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(splash, "INTERPRET", True)


def scores(
    spec: Spec, rows: list[TokenRow], layout: str, *, micro: int = PAIRS, backend: str = "blocks", **axes: int
) -> tuple[np.ndarray, np.ndarray, Params]:
    """Log-probs [B, P], those of the heads, and the gradient of a weighted sum of them."""
    model = make_model(spec, attention=backend)
    params = jax.tree.map(lambda x: 4 * x, model.init(jax.random.key(0)))
    stream = Batches(
        rows,
        batch_pairs=PAIRS,
        micro_batch_pairs=micro,
        seed=0,
        order="sequential",
        row_multiple=2,
        layout=layout,
        unpack=BACKENDS[backend].unpacks,
    )
    batch = stream.batch(0).arrays
    weights_BP = jnp.asarray(np.random.default_rng(1).standard_normal((PAIRS, 2)), jnp.float32)

    def weighed(params: Params) -> tuple:
        found = []
        for a in range(PAIRS // micro):
            part = jax.tree.map(lambda x, a=a: jnp.asarray(x[a]), batch)
            rows_RT = (part.tokens_RT, part.positions_RT, part.segments_RT)
            hidden_RTD, unembedding = model.apply(params, *rows_RT, sequences=part.sequences)
            found.append(batch_scores(hidden_RTD, unembedding, part))
        logps_BP, heads_BP = (jnp.concatenate(each) for each in zip(*found, strict=True))
        return (weights_BP * logps_BP).sum(), (logps_BP, heads_BP)

    step = jax.jit(jax.value_and_grad(weighed, has_aux=True))
    if axes:
        with jax.set_mesh(make_mesh(**axes)):
            (_, (logps_BP, heads_BP)), gradient = step(params)
    else:
        (_, (logps_BP, heads_BP)), gradient = step(params)
    return np.asarray(logps_BP), np.asarray(heads_BP), jax.device_get(gradient)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "padded"])
@pytest.mark.parametrize("name", SPECS)
def test_every_layout_gives_the_log_probs_and_gradients_of_the_padded_one(name: str, layout: str):
    rows = make_rows()
    axes = {"data": 2, "tensor": 2, "sequence": 2, "fsdp": 1} if name == "llama" else {}
    plain, other = scores(SPECS[name], rows, "padded"), scores(SPECS[name], rows, layout, **axes)
    tokens_BP = np.array([[len(response) for response in row.responses] for row in rows])
    for ours, wanted in zip(other[:2], plain[:2], strict=True):
        assert np.abs((ours - wanted) / tokens_BP).max() < 1e-5  # nats per token
    for ours, wanted in zip(*map(jax.tree.leaves, (other[2], plain[2])), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("backend", "name", "layout", "axes"),
    [
        ("cudnn", "windows, two kinds", "shared", {}),
        ("cudnn", "gpt2", "packed", {"data": 2, "tensor": 2, "sequence": 2, "fsdp": 1}),
        ("splash", "windows, two kinds", "packed", {}),
        ("splash", "llama", "shared", {"data": 2, "tensor": 2, "sequence": 2, "fsdp": 1}),
    ],
)
def test_every_form_of_attention_gives_those_of_the_dense_one(backend: str, name: str, layout: str, axes: dict):
    rows = make_rows()
    plain, other = (
        scores(SPECS[name], rows, "padded", backend="dense"),
        scores(SPECS[name], rows, layout, backend=backend, **axes),
    )
    tokens_BP = np.array([[len(response) for response in row.responses] for row in rows])
    assert np.abs((other[0] - plain[0]) / tokens_BP).max() < 1e-5  # nats per token
    for ours, wanted in zip(*map(jax.tree.leaves, (other[2], plain[2])), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("layout", "backend"),
    [
        *((layout, "blocks") for layout in LAYOUTS),
        ("shared", "cudnn"),
        ("packed", "splash"),
        ("shared", "splash"),
    ],
)
def test_a_pair_that_changes_leaves_the_others_bit_for_bit(layout: str, backend: str):
    rows = make_rows()
    prompt, (chosen, rejected) = rows[3].prompt, rows[3].responses
    other = [*rows]
    other[3] = TokenRow("3", (prompt + 1) % 50, ((chosen + 7) % 50, (rejected + 3) % 50))
    for ours, wanted in zip(
        *(scores(SPECS["llama"], each, layout, backend=backend)[:2] for each in (other, rows)), strict=True
    ):
        same = ours == wanted
        assert same[np.arange(PAIRS) != 3].all() and not same[3].any()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "padded"])
def test_a_response_does_not_see_the_other(layout: str):
    rows = make_rows()
    other = [row._replace(responses=(row.responses[0], (row.responses[1] + 3) % 50)) for row in rows]
    for ours, wanted in zip(*(scores(SPECS["gpt2"], each, layout)[:2] for each in (other, rows)), strict=True):
        np.testing.assert_array_equal(ours[:, 0], wanted[:, 0])
        assert (ours[:, 1] != wanted[:, 1]).all()


def test_micro_batches_are_packed_each_for_itself():
    rows = make_rows()
    whole, parts = (scores(SPECS["llama"], rows, "shared", micro=micro)[0] for micro in (PAIRS, 2))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
