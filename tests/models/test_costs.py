"""Work and memory by arithmetic: by hand, against masks, and against what XLA counts and allocates on a toy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import padded
from dpo_jax.data.layouts import LAYOUTS, Shape, fill, place_runs
from dpo_jax.data.tokens import sizes_of
from dpo_jax.logprobs import batch_logps
from dpo_jax.models.attention.mask import Places, sees
from dpo_jax.models.costs import MicroBatch, activation_bytes, forward_flops, matmul_parameters, pair_flops
from dpo_jax.models.model import Model, make_model
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, LayerKind
from dpo_jax.types import Lora, PairBatch, TokenRow
from tests.processes import evaluate

SPEC = DecoderSpec(
    vocabulary=1024,
    width=256,
    layers=1,
    heads=4,
    kv_heads=2,
    head_size=64,
    mlp_width=768,
    norm_epsilon=1e-5,
    tied=False,
)


def test_matmul_parameters_are_those_of_the_linear_maps():
    width, heads, keys, wide = 256, 4 * 64, 2 * 64, 768
    by_hand = width * heads + 2 * width * keys + heads * width + 3 * width * wide
    # with biases, norms on heads and more norms: nothing of that is multiplied with every token by a matrix
    more = dataclasses.replace(SPEC, layers=3, qkv_bias=True, qk_norm=True, sandwich_norms=True)
    assert matmul_parameters(make_model(SPEC).tree) == by_hand
    assert matmul_parameters(make_model(more).tree) == 3 * by_hand


def test_matmul_parameters_of_gpt2():
    sizes: dict[str, Any] = {"vocabulary": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "head_size": 8}
    spec = Gpt2Spec(**sizes, mlp_width=128, norm_epsilon=1e-5, tied=True, positions=64)
    assert matmul_parameters(make_model(spec).tree) == 2 * (4 * 32 * 32 + 2 * 32 * 128)


def test_flops_by_hand():
    # a prompt of 3 tokens, responses of 2 and 1: shared 6 tokens, apart 9; keys seen 6 + 4 + 5 + 4, apart 6 more
    trunk, head, attention = 1000, 256 * 1024, 4 * 4 * 64
    assert pair_flops(SPEC, trunk, 3, (2, 1), shared=True) == 6 * (6 * trunk + 3 * head) + 3 * attention * 19
    assert pair_flops(SPEC, trunk, 3, (2, 1), shared=False) == 6 * (9 * trunk + 3 * head) + 3 * attention * 25
    assert forward_flops(SPEC, trunk, 3, (2, 1), shared=True) * 3 == pair_flops(SPEC, trunk, 3, (2, 1), shared=True)
    adapted = pair_flops(SPEC, trunk, 3, (2, 1), shared=True, adapter=10)
    assert adapted == 4 * (6 * trunk + 3 * head) + 3 * attention * 19 + 6 * 10 * 6


@pytest.mark.parametrize("window", [None, 4])
def test_attention_counts_what_the_mask_shows(window: int | None):
    spec = dataclasses.replace(SPEC, kinds=(LayerKind(1e4), LayerKind(1e4, window)), kind_of_layer=(0, 1, 1), layers=3)
    row = TokenRow("0", np.ones(7, np.int32), (np.ones(5, np.int32), np.ones(2, np.int32)))
    layout = LAYOUTS["shared"]
    places = place_runs(layout, *layout.lengths(sizes_of([row])), length=16)
    batch = fill(layout, [row], places, shape=Shape(1, 16, 8), pairs=1)
    real = batch.segments_RT[0] > 0
    order_T, own = np.arange(16), np.stack([batch.segments_RT[0], batch.positions_RT[0]])
    masks = [
        sees(Places(order_T[:, None], *own[:, :, None]), Places(order_T, *own[:, None]), each)[real]
        for each in (None, window, window)
    ]
    seen = sum(int(mask[:, real].sum()) for mask in masks)
    head = 7 * spec.width * spec.vocabulary
    assert pair_flops(spec, 0, 7, (5, 2), shared=True) == 6 * head + 3 * 4 * 256 * seen


def compiled(model: Model, batch: PairBatch, *, gradient: bool, **tiles: int) -> Any:
    def loss(params, batch):
        hidden_RTD, unembedding = model.apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        return batch_logps(hidden_RTD, unembedding, batch, **tiles).sum()

    return jax.jit(jax.grad(loss) if gradient else loss).lower(model.shapes, batch).compile()


def rows_of(count: int, length: int, scored: int) -> PairBatch:
    prompt, response = np.ones(length - scored, np.int32), np.ones(scored, np.int32)
    row = TokenRow("0", prompt, (response, response))
    return padded([row] * (count // 2), length=length, scored=scored)


@pytest.mark.parametrize("gradient", [False, True])
def test_flops_are_what_xla_counts_of_one_layer(gradient: bool):
    model, length = make_model(SPEC, attention="dense"), 128
    batch = rows_of(4, length, 96)
    found = compiled(model, batch, gradient=gradient, tile_tokens=2**20, tile_vocabulary=2**20).cost_analysis()["flops"]
    count = pair_flops if gradient else forward_flops
    causal = 2 * count(SPEC, matmul_parameters(model.tree), length - 96, (96, 96), shared=False)
    # The dense form computes the scores above the diagonal as well.
    above = (3 if gradient else 1) * 4 * 4 * SPEC.heads * SPEC.head_size * (length**2 - length * (length + 1) // 2)
    assert found == pytest.approx(causal + above, rel=0.02)  # norms, softmax and rotation: 1 % of it


SHAPES = {
    "long rows": (8, 256, 4, 768, 256),
    "many layers": (12, 128, 8, 512, 128),
    "short rows": (8, 256, 4, 1024, 64),
}


def estimated_and_allocated(name: str, remat: str) -> tuple[float, float]:
    layers, width, rows, mlp_width, length = SHAPES[name]
    spec = dataclasses.replace(SPEC, layers=layers, width=width, mlp_width=mlp_width)
    model = make_model(spec, remat=remat, attention="dense")
    found = compiled(model, rows_of(rows, length, length // 2), gradient=True)
    estimate = activation_bytes(spec, MicroBatch(rows, length, length // 2), width_bytes=4, remat=remat)
    return estimate.total, found.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_near_what_xla_allocates(name: str):
    estimate, allocated = estimated_and_allocated(name, "none")
    assert estimate == pytest.approx(allocated, rel=0.25)


@pytest.mark.slow("compiles wide models as a user's process does")
def test_activations_of_every_policy_are_near_what_xla_allocates_for_a_user():
    cases = [("long rows", "dots"), ("many layers", "full"), ("short rows", "full")]
    found = evaluate("tests.models.test_costs", f"[m.estimated_and_allocated(*case) for case in {cases}]")
    for case, (estimate, allocated) in zip(cases, found, strict=True):
        rel = 0.27 if case == ("many layers", "full") else 0.25  # 26 % there, where XLA leaves out YNNPACK
        assert estimate == pytest.approx(allocated, rel=rel), case


def test_activations_split_over_tensor_shards_and_without_scores():
    batch, options = MicroBatch(4, 512, 256), {"width_bytes": 2, "remat": "none"}
    whole, split = (activation_bytes(SPEC, batch, **options, tensor=tensor) for tensor in (1, 2))
    flash = activation_bytes(SPEC, batch, **options, dense_attention=False)
    assert split.kept < whole.kept and whole.kept - flash.kept == 4 * 4 * 512**2 * 10


def test_an_adapter_counts_by_its_own_parameters():
    model = make_model(SPEC, lora=Lora(4, 8.0, 0.0, (("layers", "attention", "query"),)))
    assert matmul_parameters(model.tree) == matmul_parameters(make_model(SPEC).tree)
    assert sum(x.size for x in jax.tree.leaves(model.trained.shapes)) == 4 * 256 + 4 * 256
    assert jnp.dtype(model.dtype) == jnp.float32
