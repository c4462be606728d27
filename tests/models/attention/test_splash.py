"""The splash kernel, interpreted, gives what the dense form gives."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import attend, splash
from tests.models.attention.cases import LAYOUTS, LENGTH, assert_like_dense, heads, mixed_and_gradients, told


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "INTERPRET", True)


@pytest.mark.parametrize(
    ("layout", "groups", "windows", "soft_cap"),
    [
        ("padded", 4, (None,), None),
        ("packed", 2, (40,), 3.0),
        ("packed", 1, (None, 40), None),
        ("shared", 2, (40,), 3.0),
    ],
)
def test_like_dense(layout: str, groups: int, windows: tuple, soft_cap: float | None):
    rows, seen = told(layout, "splash", windows=windows, kind=jnp.asarray(len(windows) - 1))
    assert_like_dense(heads(4, groups=groups), rows, seen, scale=0.4, soft_cap=soft_cap)


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_on_a_mesh(layout: str):
    rows, seen = told(layout, "splash", parts=2)
    qkv = heads(4)
    wanted = mixed_and_gradients(qkv, rows, seen)
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, sequence=2)):
        found = mixed_and_gradients(qkv, rows, seen)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("axes", [{}, {"data": 2, "tensor": 2, "sequence": 2}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lowered_for_a_tpu_it_is_the_kernel_and_no_array_of_length_by_length(
    monkeypatch: pytest.MonkeyPatch, layout: str, axes: dict[str, int]
):
    monkeypatch.setattr(splash, "INTERPRET", False)
    _, seen = told(layout, "splash", parts=2, windows=(None, 40), kind=jnp.asarray(1))
    gradient = jax.jit(jax.grad(lambda *qkv: attend(*qkv, seen).sum()))
    with jax.set_mesh(make_mesh(**{"fsdp": 1, **axes})) if axes else contextlib.nullcontext():
        text = gradient.trace(*heads(4)).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 4  # forward and backward, of two kinds of layer
    for length in (LENGTH, 256):  # as it is, and as the kernel has it
        assert not re.search(rf"tensor<(\d+x)*{length}x{length}x\w+>", text)
