"""A program as a judge: it reads JSON lines on its standard input and writes one JSON line for each."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.interface import Comparing, Scoring
from dpo_jax.types import Prompt

_SHOWN_LINES = 3


def scoring_command(command: str, *, timeout_seconds: float) -> Scoring:
    """A program that reads `{"prompt", "response"}` and writes a score: a number, or `{"score": number}`.

    It is started once for all texts, without a shell, and is stopped after `timeout_seconds`.
    """

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        rows = [
            {"prompt": prompt.text, "response": response.strip()}
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return _ask(command, rows, "score", timeout_seconds)

    return Scoring("command", score)


def comparing_command(command: str, *, timeout_seconds: float) -> Comparing:
    """A program that reads `{"prompt", "a", "b"}` and writes how likely a is better, from 0 to 1.

    It writes a number, or `{"verdict": number}`, and is started once, with all comparisons in both orders.
    """

    def compare(prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[float]:
        rows = [
            {"prompt": prompt.text, "a": left.strip(), "b": right.strip()}
            for prompt, left, right in zip(prompts, a, b, strict=True)
        ]
        return _ask(command, rows, "verdict", timeout_seconds)

    return Comparing("command", compare)


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
