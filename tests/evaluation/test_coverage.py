"""Every interval that is printed holds the truth about as often as it says: `simulated` has the worlds."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest

import dpo_jax
from tests.evaluation.simulated import WORLDS, coverage

_LARGEST = 100  # larger ones are in the table alone


@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind, world in WORLDS.items() for size in world.sizes if size <= _LARGEST]
)
def test_intervals_hold_the_truth(kind: str, size: int):
    world = WORLDS[kind]
    trials = 200 if size <= 25 else 100
    chance = 2 * math.sqrt(0.05 * 0.95 / trials)  # two standard errors
    found = coverage(world, size, trials)
    assert {name: held for name, held in found.items() if held < world.floor(size) - chance} == {}
    if size >= world.exact_from:
        assert np.mean(list(found.values())) <= 0.98


def test_every_printed_interval_is_simulated():
    named = {name.partition(",")[0] for world in WORLDS.values() for name in world.draw(np.random.default_rng(0), 40)}
    assert _printed() - named == set(), "no line of tests/evaluation/simulated.py draws these"


def _printed() -> set[str]:
    """The fields of all classes that hold an interval of `evaluation.intervals`."""
    root, fields = Path(dpo_jax.__file__).parent, set[str]()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "dpo_jax.evaluation.intervals"
            for name in node.names
        }
        if "Interval" not in imported:
            continue
        for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for field in (node for node in owner.body if isinstance(node, ast.AnnAssign)):
                assert isinstance(field.target, ast.Name)
                held = {name.id for name in ast.walk(field.annotation) if isinstance(name, ast.Name)}
                if held & {"Interval", "Figure"} and "Callable" not in held:
                    fields.add(f"{owner.name}.{field.target.id}")
    return fields
