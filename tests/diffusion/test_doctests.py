"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from dpo_jax import diffusion, scorers

MODULES = [
    importlib.import_module(f"{room.__name__}.{module.name}")
    for room in (diffusion, scorers)
    for module in pkgutil.iter_modules(room.__path__)
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0
