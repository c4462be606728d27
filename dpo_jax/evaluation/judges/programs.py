"""A Python function of the user's own as a judge, loaded from the file or module that the user named."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.judges.interface import Comparing, Scoring
from dpo_jax.types import Prompt


def load_function(location: str) -> Callable[..., Any]:
    """`file.py:name` or `package.module:name`; the code of that file or module runs.

    Raises:
        UserError: there is no such file, module or function, or it cannot be imported.
    """
    place, colon, name = location.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"judge python: {location!r} names no function; write file.py:name or package.module:name.")
    module = _module(place)
    found = vars(module).get(name)
    if not callable(found):
        functions = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise UserError(f"judge python: {place} has no function {name!r}. {nearest(name, functions)}")
    return found


def scoring_function(function: Callable[..., Any], *, name: str = "python") -> Scoring:
    """`function(prompts, responses)`, lists of texts, gives as many scores."""

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        return _call(function, [prompt.text for prompt in prompts], _stripped(responses))

    return Scoring(name, score)


def comparing_function(function: Callable[..., Any], *, name: str = "python") -> Comparing:
    """`function(prompts, a, b)`, lists of texts, gives as many numbers from 0 to 1: how likely a is better."""

    def compare(prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Any:
        return _call(function, [prompt.text for prompt in prompts], _stripped(a), _stripped(b))

    return Comparing(name, compare)


def _stripped(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts]


def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).is_file():
            raise UserError(f"judge python: there is no file {place}.")
        spec = importlib.util.spec_from_file_location(f"dpo_jax_judge_{Path(place).stem}", place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look there
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"judge python: {place} cannot be imported: {type(error).__name__}: {error}") from error


def _call(function: Callable[..., Any], *arguments: list[str]) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        raise UserError(f"judge python: the function failed at {at}: {type(error).__name__}: {error}") from error
