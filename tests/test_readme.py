"""What the README shows is true: its code runs, and its commands are those that are tested."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")


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
