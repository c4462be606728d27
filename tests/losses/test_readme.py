"""The page about the losses: its example runs, and its tables name every loss with the knobs and defaults it has."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

from dpo_jax import losses
from dpo_jax.losses.knobs import knobs
from dpo_jax.losses.stateful import RunningMean

PAGE = Path(losses.__file__).with_name("README.md")
TABLES = losses.PAIRWISE | losses.REFERENCE_FREE | losses.TOKEN_LEVEL | losses.STATEFUL | losses.UNPAIRED
LINES = PAGE.read_text(encoding="utf8").splitlines()
CELLS = [[cell.strip("` ") for cell in re.split(r"\s*\|\s*", line)[1:-1]] for line in LINES if line.startswith("|")]
ROWS = {cells[0]: cells for cells in CELLS if cells[0] in TABLES}


def test_the_example_runs():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.failed == 0 and found.attempted >= 12
    example = [line for line in LINES if re.match(r"    (>>>|\.\.\.) ", line)]
    assert len(example) <= 20


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_its_row(name: str):
    entry, cells = TABLES[name], ROWS[name]
    stated = dict(re.findall(r"(\w+)(?: [a-z])? ([\d.e-]+|true|false|none|reverse_kl|token)", cells[2]))
    for knob, spec in knobs(entry.function).items():
        words = isinstance(spec.default, bool | str) or spec.default is None
        shown = {None: "none"}.get(spec.default, str(spec.default).lower()) if words else spec.default
        assert (stated.get(knob) if words else float(stated[knob])) == shown, knob
    needs = set(cells[3].split("(")[0].split())
    assert ("n" in needs) == entry.averages
    assert ("r" in needs) == (name not in losses.REFERENCE_FREE)
    assert ("k" in needs) == (name in losses.TOKEN_LEVEL)
    assert ("l" in needs) == (name in losses.UNPAIRED) and ("x" in needs) == entry.mismatched
    assert ("B" in needs) == entry.batch_global
    assert ("m" in needs) == (entry.state not in (None, RunningMean))  # whose mean is asked for in brackets


def test_every_public_function_is_on_the_page():
    page = "\n".join(LINES)
    functions = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]
    assert [name for name in functions if f"`{name}" not in page] == []
