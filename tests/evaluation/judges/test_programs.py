"""A user's command and a user's function as judges, and every way in which they fail."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.programs import (
    comparing_command,
    comparing_function,
    load_function,
    scoring_command,
    scoring_function,
)
from dpo_jax.types import Prompt

PROMPTS = [Prompt("a \u2028 question", None, "here"), Prompt(({"role": "user", "content": "hello"},), None, "here")]
A, B = [" aaa\n", "b"], ["a", "bbb"]

SCORER = "import json, sys\nfor line in sys.stdin:\n    row = json.loads(line)\n"


def program(tmp_path: Path, text: str) -> str:
    (tmp_path / "judge.py").write_text(text)
    return shlex.join([sys.executable, "-I", str(tmp_path / "judge.py")])


def test_a_command_scores(tmp_path: Path):
    text = f"{SCORER}    assert row['prompt'], row\n    print(json.dumps({{'score': len(row['response'])}}))\n"
    judge = scoring_command(program(tmp_path, text), timeout_seconds=30)
    assert judge.scores(PROMPTS, A).tolist() == [3.0, 1.0]
    assert judge.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0]


def test_a_command_compares_and_reads_conversations(tmp_path: Path):
    text = f"{SCORER}    print(0.9 if row['prompt'] == 'user: hello' else 1 * (len(row['a']) > len(row['b'])))\n"
    found = comparing_command(program(tmp_path, text), timeout_seconds=30).orders(PROMPTS, A, B)
    assert found.a_first.tolist() == [1.0, 0.9] and found.b_first.tolist() == [1.0, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys\nsys.exit('out of luck')", "exit code 1; it said: out of luck"),
        ("print(1)", "wrote 1 lines for 2"),
        ("print(1); print('warm')", "line 2 that .* wrote is 'warm', neither a number nor"),
        ("print(1); print('{\"verdict\": 1}')", "line 2 that"),
        ("print(1); print('true')", "line 2 that"),
        ("print(1); print('NaN')", "number 2 of 2 is nan"),
        ("import time\ntime.sleep(60)", "had not ended after 0.7 s; .*timeout_seconds"),
    ],
)
def test_a_command_that_fails_says_how(tmp_path: Path, text: str, says: str):
    with pytest.raises(UserError, match=f"judge command: .*{says}"):
        scoring_command(program(tmp_path, text), timeout_seconds=0.7 if "sleep" in text else 30).scores(PROMPTS, A)


@pytest.mark.parametrize("command", ["/nowhere/at/all", "'unclosed"])
def test_a_command_that_is_none(command: str):
    with pytest.raises(UserError, match="cannot be started"):
        scoring_command(command, timeout_seconds=5).scores(PROMPTS, A)


def test_a_function_of_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine_to_judge.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Length:\n    of: 'str'\n"  # which looks its module up
        "def score(prompts, responses):\n    return [len(Length(r).of) for r in responses]\n"
        "def compare(prompts, a, b):\n    return [float(x > y) for x, y in zip(a, b)]\n"
    )
    judge = scoring_function(load_function(f"{tmp_path / 'mine_to_judge.py'}:score"))
    assert judge.scores(PROMPTS, A).tolist() == [3.0, 1.0]
    monkeypatch.syspath_prepend(str(tmp_path))
    compare = comparing_function(load_function("mine_to_judge:compare"))
    assert compare.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("judge.py", "names no function"),
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("no.such.module:score", "cannot be imported: ModuleNotFoundError"),
        ("bad.py:score", "cannot be imported: ZeroDivisionError"),
        ("good.py:scor", "has no function 'scor'. Did you mean 'score'"),
    ],
)
def test_a_function_that_is_none(tmp_path: Path, monkeypatch, location: str, says: str):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("1 / 0\n")
    Path("good.py").write_text("def score(prompts, responses):\n    return [1 / 0]\n")
    with pytest.raises(UserError, match=f"judge python: .*{says}"):
        load_function(location)
    with pytest.raises(UserError, match=r"the function failed at good.py:2: ZeroDivisionError"):
        scoring_function(load_function("good.py:score")).scores(PROMPTS, A)
