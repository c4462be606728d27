"""Blocks of queries: one head or all at once, by rows and heads on a mesh, and never all scores of a row."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import AttentionMask, blocks
from dpo_jax.models.model import Model, make_model
from dpo_jax.networks import REMAT_POLICIES
from dpo_jax.types import Params
from tests.models.attention.cases import LENGTH, assert_like_dense, heads, make_rows, mixed_and_gradients
from tests.models.test_decoder import SPEC

SLOW = pytest.mark.slow("further meshes")


def test_all_heads_at_once_as_accelerators_do():
    """The other branch of `platform_dependent`: the functions of one head under vmap."""
    rows = make_rows("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
        assert_like_dense(heads(4), rows, AttentionMask(*rows, "blocks", (40,)))


@pytest.mark.parametrize(
    ("axes", "groups", "part"),
    [
        ({"fsdp": 2, "tensor": 4}, 2, (2, LENGTH, 1)),
        # heads by the axis that splits the length, which four heads are not by eight
        pytest.param({"tensor": 2, "sequence": 2, "fsdp": 2}, 1, (2, LENGTH, 1), marks=SLOW),
        pytest.param({"sequence": 8}, 2, (4, LENGTH, 4), marks=SLOW),
    ],
)
def test_on_a_mesh_each_device_has_its_rows_and_heads(
    monkeypatch: pytest.MonkeyPatch, axes: dict[str, int], groups: int, part: tuple[int, ...]
):
    """With fewer groups than tensor shards too."""
    rows = make_rows("shared")
    qkv, mask = heads(4, groups=groups), AttentionMask(*rows, "blocks", (40, None), jnp.asarray(0))
    wanted = mixed_and_gradients(qkv, rows, mask)
    attend_part, parts = blocks._attend, []
    monkeypatch.setattr(blocks, "_attend", lambda q, *rest: parts.append(q.shape[:3]) or attend_part(q, *rest))
    with jax.set_mesh(make_mesh(**{"fsdp": 1, **axes})):
        found = mixed_and_gradients(qkv, rows, mask)
    assert set(parts) == {part}
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def gradient(model: Model) -> Callable[[Params], Params]:
    """The gradient of a sum over rows of `LENGTH` tokens."""
    tokens_RT = jnp.zeros((2, LENGTH), jnp.int32)
    return jax.grad(lambda params: model.apply(params, tokens_RT, tokens_RT, tokens_RT + 1)[0].sum())


@pytest.mark.parametrize(
    ("backend", "platform", "held"),
    [("dense", "cpu", True), ("blocks", "cpu", False), ("blocks", "tpu", False), ("blocks", "cuda", False)],
)
def test_no_array_of_length_by_length(backend: str, platform: str, held: bool):
    model = make_model(SPEC, attention=backend)
    text = jax.jit(gradient(model)).trace(model.shapes).lower(lowering_platforms=(platform,)).as_text()
    assert bool(re.search(rf"tensor<(\d+x)*{LENGTH}x{LENGTH}x\w+>", text)) == held


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_no_policy_keeps_scores_for_the_backward_pass(remat: str):
    """Where matmuls are kept, what attention gives is kept in place of what it is made of."""
    model = make_model(SPEC, remat=remat)
    tokens_RT = jnp.zeros((2, LENGTH), jnp.int32)

    def forward(params: Params) -> tuple:
        return jax.vjp(lambda params: model.apply(params, tokens_RT, tokens_RT, tokens_RT + 1)[0], params)

    kept = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(forward, model.shapes)[1])]
    assert any(LENGTH in shape for shape in kept)
    assert not [shape for shape in kept if sum(size >= 128 for size in shape) > 1]
    # [L, R, T, H, K], what attention gave
    of_heads = [shape for shape in kept if shape == (SPEC.layers, 2, LENGTH, SPEC.heads, SPEC.head_size)]
    assert bool(of_heads) == (remat != "full")
