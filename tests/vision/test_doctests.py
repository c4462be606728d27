"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from dpo_jax import vision

MODULES = [importlib.import_module(f"dpo_jax.vision.{found.name}") for found in pkgutil.iter_modules(vision.__path__)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0
