"""The README is true: its code runs, and its commands are those that are tested."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = [page for folder in ("", "*/", "*/*/") for page in sorted(ROOT.glob(f"{folder}README.md"))]


def test_the_library_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code and len(code[1].splitlines()) == 12
    names: dict = {}
    exec(code[1], names)
    # margins 3 and -6, beta 0.1
    np.testing.assert_allclose(names["value"], np.mean(np.log1p(np.exp([-0.3, 0.6]))), rtol=1e-6)


def test_ci_runs_the_test_command_as_shown():
    command = re.search(r"^    (bash launch/test\.sh)", README, re.MULTILINE)
    assert command and f" {command[1]} --everything\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_is_there(page: Path):
    named = set(re.findall(r"\btests/[\w/.]*\w", page.read_text(encoding="utf8")))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"{page}: {', '.join(missing)}"


def test_every_value_says_which_test_shows_it():
    _, _, table = README.partition("| what | value | shown by |\n| --- | --- | --- |\n")
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()))
    assert len(rows) > 10 and "tests/" in rows[0]
    assert [row for row in rows if not re.search(r"tests/|the same \|$", row)] == []
