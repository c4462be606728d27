"""The splash kernel on a TPU: what it is lowered to."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import attend
from tests.models.attention.cases import LENGTH, heads, told


@pytest.mark.parametrize(
    ("layout", "axes"), [("padded", {}), ("packed", {}), ("shared", {"data": 2, "tensor": 2, "sequence": 2})]
)
def test_lowered_for_a_tpu_it_is_the_kernel_and_no_array_of_length_by_length(layout: str, axes: dict[str, int]):
    _, mask = told(layout, "splash", parts=2, windows=(None, 40), kind=jnp.asarray(1))
    gradient = jax.jit(jax.grad(lambda *qkv: attend(*qkv, mask).sum()))
    with jax.set_mesh(make_mesh(**{"fsdp": 1, **axes})) if axes else contextlib.nullcontext():
        text = gradient.trace(*heads(4)).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 4  # forward and backward, of two kinds of layer
    for length in (LENGTH, 256):  # as it is, and as the kernel has it
        assert not re.search(rf"tensor<(\d+x)*{length}x{length}x\w+>", text)
