"""The user's own code as a judge: a Python function, or a program that reads JSON lines and writes one for each.

A function is loaded from the file or module that the user named; a program is started once, without a shell.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.judges.interface import Comparing, Scoring
from dpo_jax.types import Prompt

_SHOWN_LINES = 3


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


def scoring_function(function: Callable[..., Any]) -> Scoring:
    """`function(prompts, responses)`, lists of texts, gives as many scores."""
    return Scoring("python", lambda *asked: _call(function, *_texts(*asked)))


def comparing_function(function: Callable[..., Any]) -> Comparing:
    """`function(prompts, a, b)`, lists of texts, gives as many numbers from 0 to 1: how likely a is better."""
    return Comparing("python", lambda *asked: _call(function, *_texts(*asked)))


def scoring_command(command: str, *, timeout_seconds: float) -> Scoring:
    """A program that reads `{"prompt", "response"}` and writes a score: a number, or `{"score": number}`.

    It is started once for all texts, and is stopped after `timeout_seconds`.
    """
    names = ("prompt", "response")
    return Scoring("command", lambda *asked: _ask(command, _rows(names, *asked), "score", timeout_seconds))


def comparing_command(command: str, *, timeout_seconds: float) -> Comparing:
    """A program that reads `{"prompt", "a", "b"}` and writes how likely a is better, from 0 to 1.

    It writes a number, or `{"verdict": number}`, and is started once, with all comparisons in both orders.
    """
    names = ("prompt", "a", "b")
    return Comparing("command", lambda *asked: _ask(command, _rows(names, *asked), "verdict", timeout_seconds))


def _texts(prompts: Sequence[Prompt], *responses: Sequence[str]) -> list[list[str]]:
    """The texts of prompts, and responses without the white space around them."""
    return [[prompt.text for prompt in prompts], *([text.strip() for text in texts] for texts in responses)]


def _rows(names: Sequence[str], prompts: Sequence[Prompt], *responses: Sequence[str]) -> list[dict[str, str]]:
    columns = _texts(prompts, *responses)
    return [dict(zip(names, texts, strict=True)) for texts in zip(*columns, strict=True)]


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


def _ask(command: str, rows: Sequence[Mapping[str, str]], key: str, timeout_seconds: float) -> list[float]:
    sent = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, input=sent, capture_output=True, timeout=timeout_seconds, encoding="utf8", errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"judge command: {command!r} had not ended after {timeout_seconds:g} s; allow it more in "
            "the judge's `timeout_seconds`."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"judge command: {command!r} cannot be started: {error}.") from None
    if done.returncode:
        said = " | ".join(done.stderr.strip().splitlines()[-_SHOWN_LINES:]) or "nothing on its standard error"
        raise UserError(f"judge command: {command!r} ended with exit code {done.returncode}; it said: {said}")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if len(lines) != len(rows):
        raise UserError(f"judge command: {command!r} wrote {len(lines)} lines for {len(rows)} that it was given.")
    return [_number(command, line, number, key) for number, line in enumerate(lines, 1)]


def _number(command: str, line: str, number: int, key: str) -> float:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        value = value.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f'judge command: line {number} that {command!r} wrote is {line[:80]!r}, neither a number nor {{"{key}": '
            "number}."
        )
    return float(value)
