"""The examples in the docstrings run, and every public loss has one, its formula's source, and its arguments named."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

from dpo_jax import losses

MODULES = [importlib.import_module(f"dpo_jax.losses.{found.name}") for found in pkgutil.iter_modules(losses.__path__)]
FUNCTIONS = [getattr(losses, name) for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_that_returns_losses_shows_one(function):
    text = inspect.getdoc(function)
    metrics = {"implicit_rewards", "preference_metrics"}  # tested by hand; they return what the page calls metrics
    assert ">>>" in text or function.__name__ in metrics
    if function.__name__ not in metrics:
        for parameter in inspect.signature(function).parameters:
            assert f"{parameter}:" in text, parameter
