"""The user's own code as a judge: a Python function, or a program that reads JSON lines and writes one for each.

A function is loaded from the file or module that the user named; a program is started once, without a shell.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import math
import queue
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dpo_jax.errors import UserError, each_once, ending, nearest, told
from dpo_jax.evaluation.judges.interface import Comparing, Scoring
from dpo_jax.evaluation.judges.process import TooMuch, run_program
from dpo_jax.types import Prompt

_SECONDS = 600.0
_SHOWN_LINES = 3
_MOST_BYTES = 1 << 20
"""That a program may write, and a line more for each row."""
_MOST_BYTES_A_LINE = 1 << 12


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


def scoring_function(function: Callable[..., Any], *, timeout_seconds: float = _SECONDS) -> Scoring:
    """`function(prompts, responses)`, lists of texts, gives as many scores within `timeout_seconds`."""
    _check_call(function, "prompts, responses")
    return Scoring("python", lambda *asked: _call(function, timeout_seconds, *_texts(*asked)))


def comparing_function(function: Callable[..., Any], *, timeout_seconds: float = _SECONDS) -> Comparing:
    """`function(prompts, a, b)`, lists of texts, gives as many numbers from 0 to 1: how likely a is better."""
    _check_call(function, "prompts, a, b")
    return Comparing("python", lambda *asked: _call(function, timeout_seconds, *_texts(*asked)))


def scoring_command(command: str, *, timeout_seconds: float = _SECONDS) -> Scoring:
    """A program that reads `{"prompt", "response"}` and writes a score: a number, or `{"score": number}`.

    It is started once for the texts of a call, and is stopped after `timeout_seconds`.
    """
    names = ("prompt", "response")
    return Scoring("command", lambda *asked: _ask(command, _rows(names, *asked), "score", timeout_seconds))


def comparing_command(command: str, *, timeout_seconds: float = _SECONDS) -> Comparing:
    """A program that reads `{"prompt", "a", "b"}` and writes how likely a is better, from 0 to 1.

    It writes a number, or `{"verdict": number}`, and is started once for the comparisons of a call.
    """
    names = ("prompt", "a", "b")
    return Comparing("command", lambda *asked: _ask(command, _rows(names, *asked), "verdict", timeout_seconds))


def _texts(prompts: Sequence[Prompt], *responses: Sequence[str]) -> list[list[str]]:
    """The texts of prompts, and responses without the white space around them."""
    return [[prompt.text for prompt in prompts], *([text.strip() for text in texts] for texts in responses)]


def _rows(names: Sequence[str], prompts: Sequence[Prompt], *responses: Sequence[str]) -> list[dict[str, str]]:
    columns = _texts(prompts, *responses)
    return [dict(zip(names, texts, strict=True)) for texts in zip(*columns, strict=True)]


def _check_call(function: Callable[..., Any], names: str) -> None:
    """Refuse a function that cannot be called with as many lists, as a UserError."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some builtins nobody knows it
        return
    try:
        signature.bind(*names.split(", "))
    except TypeError as error:
        raise UserError(
            f"judge python: the function takes {signature}, and is called with ({names}): {error}."
        ) from None


def _module(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise UserError(f"judge python: there is no file {place}. Paths are relative to {Path.cwd()}.")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        written = path.stat()
        return _loaded(path.resolve(), (written.st_mtime_ns, written.st_size))
    except (Exception, SystemExit) as error:
        raise UserError(f"judge python: {place} cannot be imported: {type(error).__name__}: {told(error)}") from error


@functools.cache
def _loaded(path: Path, written: tuple[int, int]) -> ModuleType:
    """The module of a file, which runs once, as an imported one does, until the file is written anew."""
    spec = importlib.util.spec_from_file_location(f"dpo_jax_judge_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def _call(function: Callable[..., Any], timeout_seconds: float, *arguments: list[str]) -> Any:
    """What the function returns; one that does not end is left to a thread that ends with the process."""
    answers = queue.SimpleQueue[tuple[Any, BaseException | None]]()

    def work() -> None:
        try:
            answers.put((function(*arguments), None))
        except BaseException as error:  # SystemExit, too: it would end the thread without a word
            answers.put((None, error))

    threading.Thread(target=work, daemon=True, name="judge").start()
    try:
        answer, error = answers.get(timeout=timeout_seconds)
    except queue.Empty:
        raise UserError(
            f"judge python: the function had not ended after {timeout_seconds:g} s; allow it more in the judge's "
            "`timeout_seconds`."
        ) from None
    if error is None:
        return answer
    frame = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(frame.filename).name}:{frame.lineno}"
    raise UserError(f"judge python: the function failed at {at}: {type(error).__name__}: {told(error)}") from error


def _ask(command: str, rows: Sequence[Mapping[str, str]], key: str, timeout_seconds: float) -> list[float]:
    given = "".join(json.dumps(row) + "\n" for row in rows).encode()
    most = _MOST_BYTES + _MOST_BYTES_A_LINE * len(rows)
    try:
        ended = run_program(shlex.split(command), given, seconds=timeout_seconds, most_bytes=most)
    except TimeoutError:
        raise UserError(
            f"judge command: {command!r} had not ended after {timeout_seconds:g} s; allow it more in "
            "the judge's `timeout_seconds`."
        ) from None
    except TooMuch:
        raise UserError(
            f"judge command: {command!r} was stopped: it wrote more than {most:,} bytes for {len(rows)} rows. A line "
            "with one number is wanted for each."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"judge command: {command!r} cannot be started: {error}.") from None
    if ended.code:
        said = told(" | ".join(ended.said.strip().splitlines()[-_SHOWN_LINES:])) or "nothing on its standard error"
        raise UserError(f"judge command: {command!r} {ending(ended.code)}; it said: {said}")
    lines = [line for line in ended.wrote.split("\n") if line.strip()]
    if len(lines) != len(rows):
        raise UserError(f"judge command: {command!r} wrote {len(lines)} lines for {len(rows)} that it was given.")
    return [_number(command, line, number, key) for number, line in enumerate(lines, 1)]


def _number(command: str, line: str, number: int, key: str) -> float:
    try:
        value = json.loads(line, object_pairs_hook=each_once)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"judge command: line {number} that {command!r} wrote is '{told(line, 80)}', neither a number nor "
            f'{{"{key}": number}}.'
        )
    try:
        return float(value)
    except OverflowError:  # a whole number of any length
        return math.inf
