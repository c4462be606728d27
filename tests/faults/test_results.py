"""The table of README.md says what these tests try."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import RESULTS, TRIED, results


def test_every_fault_of_the_table_is_tried_where_it_says(request: pytest.FixtureRequest):
    tried = dict(request.config.stash[TRIED])
    if tried.pop("") != {path.name for path in Path(__file__).parent.glob("test_*.py")}:
        pytest.skip("only some of these tests were collected")
    table = {fault: set(cells[1].split(", ")) for fault, cells in results(RESULTS).items()}
    assert table == tried, "tests/faults/README.md: bash launch/test.sh tests/faults --full-trials --write-results"
