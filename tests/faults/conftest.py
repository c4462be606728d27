"""How many trials a fault gets, and the table of what held.

bash launch/test.sh tests/faults --full-trials --write-results
"""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "README.md"
HEAD = ("| fault | trials | what held | date |", "| --- | --- | --- | --- |")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-trials", action="store_true", help="all trials of each fault, instead of a few")
    parser.addoption("--write-results", action="store_true", help="put what held into tests/faults/README.md")


@pytest.fixture(scope="session")
def trials(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`trials(quick, full)` is the number of trials of this run; the option is unknown where all tests are run.

    A test that has no trials in the quick run is skipped.
    """
    full = request.config.getoption("--full-trials", default=False)

    def count(quick: int, all_of_them: int) -> int:
        if not full and not quick:
            pytest.skip("one of --full-trials")
        return all_of_them if full else quick

    return count


@pytest.fixture
def held(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """`held(fault, trials, what)`, called once all of it was seen to hold; the same fault of several tests adds up."""
    return lambda fault, count, what: record_property("fault", (fault, count, what))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found: dict[str, tuple[int, list[str]]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "fault":
                fault, count, what = value  # type: ignore[misc]
                before, words = found.get(fault, (0, []))
                found[fault] = before + count, words if what in words else [*words, what]
    today = datetime.date.today().isoformat()
    rows = {fault: f"| {fault} | {count:,} | {'; '.join(words)} | {today} |" for fault, (count, words) in found.items()}
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("\n".join((*HEAD, *rows.values())))
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist, which has seen a part of the tests
    if (
        config.getoption("--write-results", default=False)
        and not is_worker
        and not terminalreporter.getreports("failed")
    ):
        write_results(RESULTS, rows)


def write_results(path: Path, rows: dict[str, str]) -> None:
    """Replaces the rows of these faults in the table of a file, and says on which machine; other rows stay."""
    text = path.read_text(encoding="utf8")
    before, old, after = re.split(r"<!-- /?results -->\n", text)
    kept = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("|")}
    table = [line for name, line in {**kept, **rows}.items() if name not in ("fault", "---")]
    where = f"Last run on {_processor()}, Python {platform.python_version()}, jax {version('jax')}, orbax-checkpoint"
    lines = [f"{where} {version('orbax-checkpoint')}.", "", *HEAD, *table]
    path.write_text(f"{before}<!-- results -->\n" + "\n".join(lines) + f"\n<!-- /results -->\n{after}", encoding="utf8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()
