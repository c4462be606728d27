"""What is compiled does not grow with the number of layers."""

from __future__ import annotations

import pytest

from tests.benchmarks.compile_time import SPECS, deep, step


@pytest.mark.parametrize("remat", ["full", pytest.param("none", marks=pytest.mark.slow("the same layers"))])
@pytest.mark.parametrize("name", SPECS)
def test_the_program_does_not_grow_with_depth(name: str, remat: str):
    few, many = (step(deep(SPECS[name], layers), remat=remat).as_text().splitlines() for layers in (4, 12))
    assert len(few) == len(many) > 200
    # Longer only by the digits of 12 in shapes, and by the kind of each layer.
    assert sum(map(len, many)) < 1.02 * sum(map(len, few))
