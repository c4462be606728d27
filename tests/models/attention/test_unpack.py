"""Un-packed sequences: the copies, and attention by causal kernels that know no segments; cuDNN on a GPU."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import AttentionMask, attend
from dpo_jax.models.attention.unpack import attend_unpacked, unpacking_of
from tests.models.attention.cases import LAYOUTS, LENGTH, assert_like_dense, heads, told


def test_places_by_hand():
    """A prompt of two tokens with responses of one and two, a token alone, padding."""
    places = jnp.array([[[0, 1, 2, -1], [0, 1, 3, 4], [5, -1, -1, -1]]])
    unpacking = unpacking_of((places,), rows=1, length=7)
    assert unpacking.homes_UN2 is not None and unpacking.owned_US is not None
    assert unpacking.homes_UN2[0].tolist() == [[0, 4], [1, 5], [2, -1], [6, -1], [7, -1], [8, -1], [-1, -1]]
    assert unpacking.owned_US[0].tolist() == [0, 1, 2, -1, -1, -1, 3, 4, 5, -1, -1, -1]


def test_copies_and_their_gradients_by_hand():
    """Each sequence's sum so far in place of attention; the prompt's gradients come from both of its copies."""
    places = jnp.array([[[0, 1, 2, -1], [0, 1, 3, 4], [5, -1, -1, -1]]])
    unpacking = unpacking_of((places,), rows=1, length=7)
    segments = jnp.array([[1, 1, 2, 3, 3, 4, 0]])

    @jax.jit
    def sums(x_T: jax.Array) -> jax.Array:
        x_RTHK = x_T[None, :, None, None]
        causal = lambda there_BL, query, key, value: jnp.cumsum(value * there_BL[..., None, None], axis=1)  # noqa: E731
        return attend_unpacked(x_RTHK, x_RTHK, x_RTHK, segments, unpacking, causal).ravel()

    x_T = jnp.array([1.0, 2, 4, 8, 16, 32, 64])
    assert sums(x_T).tolist() == [1, 3, 7, 11, 27, 32, 0]
    # of the sum over all tokens: token 0 is in five of them, 1 in four, 2 and 4 in one, 3 in two
    assert jax.jit(jax.grad(lambda x: sums(x).sum()))(x_T).tolist() == [5, 4, 1, 2, 1, 1, 0]


def test_parts_of_sequences_that_do_not_go_with_the_mesh_are_refused():
    says = "4 rows and 1 parts of their sequences on a mesh that splits by 2"
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, sequence=2)), pytest.raises(ValueError, match=says):
        attend(*heads(4), told("shared", "cudnn")[1])


def test_rows_without_their_sequences_are_refused():
    rows, mask = told("packed", "cudnn")
    with pytest.raises(ValueError, match="cudnn attention must be told the sequences of the rows"):
        attend(*heads(4), AttentionMask(*rows, mask.backend))


@pytest.mark.parametrize(
    ("layout", "axes"), [("padded", {}), ("packed", {}), ("shared", {"data": 2, "tensor": 2, "sequence": 2})]
)
def test_lowered_for_a_gpu_it_is_the_kernel_and_no_array_of_length_by_length(
    monkeypatch: pytest.MonkeyPatch, layout: str, axes: dict[str, int]
):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    _, mask = told(layout, "cudnn", parts=2, windows=(None, 40), kind=jnp.asarray(1))
    qkv = heads(4, dtype=jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda *qkv: attend(*qkv, mask).astype(jnp.float32).sum()))
    with jax.set_mesh(make_mesh(**{"fsdp": 1, **axes})) if axes else contextlib.nullcontext():
        text = gradient.trace(*qkv).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") >= 2 and text.count("@__cudnn$fmhaSoftmaxBackward(") >= 2
    assert "PADDING_CAUSAL" in text and r"sliding_window_length\22: 40" in text
    assert not re.search(rf"tensor<(\d+x)*{LENGTH}x{LENGTH}x\w+>", text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cudnn(layout: str):
    """On a GPU of its own, since tests run on pretend CPU devices: JAX_PLATFORMS=cuda."""
    if jax.default_backend() != "gpu":
        pytest.skip("cuDNN runs on NVIDIA GPUs, and this process has none")
    rows, mask = told(layout, "cudnn", windows=(None, 40), kind=jnp.asarray(1))
    assert_like_dense(heads(4, size=64, dtype=jnp.bfloat16), rows, mask, near=2e-2)
