"""Every form of attention of the table gives what the dense form gives, in values and gradients, and on a mesh."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.layouts import LAYOUTS
from dpo_jax.mesh import make_mesh
from dpo_jax.models.attention import BACKENDS, AttentionMask, attend, kernels
from tests.models.attention.cases import heads, make_rows, mixed_and_gradients, told


class Case(NamedTuple):
    """What is attended over and how; queries have four heads."""

    layout: str
    groups: int = 2
    windows: tuple[int | None, ...] = (None,)
    kind: int = 0
    scale: float | None = None
    soft_cap: float | None = None
    parts: int = 1  # of the rows, where sequences are told


CASES = {
    "padded": Case("padded", groups=4),
    "packed, a window, scaled": Case("packed", groups=1, windows=(40,), scale=0.4),
    "shared, in two parts": Case("shared", windows=(40,), parts=2),
    "shared, capped": Case("shared", soft_cap=3.0),
    "packed, of the second kind, capped": Case("packed", windows=(None, 40), kind=1, scale=0.7, soft_cap=3.0),
}
SLOW = pytest.mark.slow("a kernel that is interpreted")
FORMS = [name for name in BACKENDS if name != "dense"]
CAPLESS = ("cudnn",)  # which is never chosen for a model that caps, see `test_choice`


@pytest.fixture(autouse=True)
def _without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax.nn's own form in place of cuDNN, with the same arguments; the splash kernel interpreted."""
    monkeypatch.setattr(kernels, "CUDNN_IMPLEMENTATION", "xla")
    monkeypatch.setattr(kernels, "SPLASH_INTERPRET", True)


@functools.cache
def computed(case: Case, backend: str) -> list[np.ndarray]:
    options: dict[str, Any] = {"windows": case.windows, "kind": jnp.asarray(case.kind)}
    rows, mask = told(case.layout, backend, parts=case.parts, **options)
    return mixed_and_gradients(heads(4, groups=case.groups), rows, mask, scale=case.scale, soft_cap=case.soft_cap)


def assert_near(ours: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Up to 2e-5 of the largest."""
    for found, value in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=2e-5 * np.abs(value).max())


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(backend, case, marks=SLOW if backend == "splash" and case == "shared, capped" else ())
        for backend in FORMS
        for case in CASES
    ],
)
def test_like_dense(backend: str, case: str):
    asked = CASES[case]
    if backend in CAPLESS:
        asked = asked._replace(soft_cap=None)
    assert_near(computed(asked, backend), computed(asked._replace(parts=1), "dense"))


def test_the_cases_have_every_layout():
    assert {case.layout for case in CASES.values()} == LAYOUTS.keys()


@pytest.mark.parametrize("backend", [pytest.param(name, marks=SLOW if name == "splash" else ()) for name in FORMS])
def test_on_a_mesh(backend: str):
    case = CASES["shared, in two parts"]
    with jax.set_mesh(make_mesh(data=2, fsdp=1, tensor=2, sequence=2)):
        found = computed.__wrapped__(case, backend)
    assert_near(found, computed(case, backend))


@pytest.mark.parametrize("backend", FORMS)
def test_padding_gives_nothing(backend: str):
    """Whatever stands there, and whatever the kernel makes of it."""
    if BACKENDS[backend].unpacks is None:
        pytest.skip("padding attends to itself, and nothing reads it")
    rows, mask = told("shared", backend)
    qkv = [jnp.where(rows.real_RT[..., None, None], x, jnp.nan) for x in heads(4)]
    mixed = np.asarray(jax.jit(lambda *qkv: attend(*qkv, mask))(*qkv))
    assert not mixed[~rows.real_RT].any() and mixed[np.asarray(rows.real_RT)].all()


@pytest.mark.slow("three gradients")
def test_bfloat16_is_as_near_as_in_the_dense_form():
    """Weights, results and gradients of scores are rounded; in the dense form the last are float32 to the end."""
    rows = make_rows("shared")
    qkv = heads(4, dtype=jnp.bfloat16)
    assert attend(*qkv, AttentionMask(*rows, "blocks")).dtype == jnp.bfloat16
    exact = mixed_and_gradients([x.astype(jnp.float32) for x in qkv], rows, AttentionMask(*rows, "dense"))
    dense, ours = (mixed_and_gradients(qkv, rows, AttentionMask(*rows, backend)) for backend in ("dense", "blocks"))
    for wanted, theirs, found, most in zip(exact, dense, ours, (1.1, 2.5, 2.5, 1.1), strict=True):
        assert ((found - wanted) ** 2).mean() ** 0.5 < most * ((theirs - wanted) ** 2).mean() ** 0.5
