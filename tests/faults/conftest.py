"""The number of trials of a fault, the table of what held, and what the trials begin with.

bash launch/test.sh tests/faults --full-trials --write-results
"""

from __future__ import annotations

import datetime
import platform
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.faults import tiny_run
from tests.faults.damaged import copy_of, place_nothing, whole_folder

RESULTS = Path(__file__).parent / "README.md"
HEAD = ("| fault | tried in | trials | what held | date |", "| --- | --- | --- | --- | --- |")
TRIED = pytest.StashKey[dict[str, set[str]]]()
"""Fault -> the files of the collected tests that try it, also of those that are left out of this run; "": all files."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-trials", action="store_true", help="all trials of each fault, instead of a few")
    parser.addoption("--write-results", action="store_true", help="put what held into tests/faults/README.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): a row of tests/faults/README.md; parameters fill its {}")
    if config.getoption("--full-trials", default=False):  # unknown where all tests are run
        config.option.everything = True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tried = config.stash[TRIED] = {"": set()}
    for item in items:
        if item.path.parent == RESULTS.parent:
            for fault in {"", _fault(item)}:
                tried.setdefault(fault, set()).add(item.path.name)


def _fault(item: Any) -> str:
    """The row that a test fills, if it tells what held."""
    marker = "held" in item.fixturenames and item.get_closest_marker("fault")
    return marker.args[0].format(**(item.callspec.params if "{" in marker.args[0] else {})) if marker else ""


@pytest.fixture(scope="session")
def trials(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`trials(quick, full)` is the number of trials of this run; a test that has none in it is skipped."""
    full = request.config.getoption("--full-trials", default=False)

    def count(quick: int, all_of_them: int) -> int:
        if not full and not quick:
            pytest.skip("one of --full-trials")
        return all_of_them if full else quick

    return count


@pytest.fixture
def held(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[int, str], None]:
    """`held(count, what)`, called once the fault of this test was seen to do no more; that of several tests adds up."""
    fault = _fault(request.node)
    assert fault, "mark the test with the row of the table that it fills, pytest.mark.fault"
    return lambda count, what: record_property("fault", (fault, request.path.name, count, what))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that is scored (scores.jsonl), trained to step 6 and exported; to be copied."""
    train = {"steps": 6, "save_every": 2, "keep": 2}
    folder = tiny_run.make_experiment(tmp_path_factory.mktemp("trained"), train=train, rows=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (["reference", "e.yaml", "--jsonl", "scores.jsonl"], ["train", "e.yaml"], ["export", "e.yaml"]):
            cli.main(command)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a copy of it, which lies in the current folder."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))
    return Path("runs/demo")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_folder(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Weights to be damaged."""
    return copy_of(whole, tmp_path)


@pytest.fixture
def nothing_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    place_nothing(monkeypatch)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found: dict[str, tuple[set[str], int, list[str]]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "fault":
                fault, file, count, what = value  # type: ignore[misc]
                files, before, words = found.get(fault, (set(), 0, []))
                found[fault] = files | {file}, before + count, words if what in words else [*words, what]
    today = datetime.date.today().isoformat()
    rows = {
        fault: f"| {fault} | {', '.join(sorted(files))} | {count:,} | {'; '.join(words)} | {today} |"
        for fault, (files, count, words) in found.items()
    }
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


def results(path: Path) -> dict[str, list[str]]:
    """The rows of the table of a file: fault -> its cells."""
    _, table, _ = re.split(r"<!-- /?results -->\n", path.read_text(encoding="utf8"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {cells[0]: cells for cells in rows[2:]}


def write_results(path: Path, rows: dict[str, str]) -> None:
    """Replaces the rows of these faults in the table of a file, and says on which machine; other rows stay."""
    before, _, after = re.split(r"<!-- /?results -->\n", path.read_text(encoding="utf8"))
    kept = {fault: f"| {' | '.join(cells)} |" for fault, cells in results(path).items()}
    where = f"Last run on {_processor()}, Python {platform.python_version()}, jax {version('jax')}, orbax-checkpoint"
    lines = [f"{where} {version('orbax-checkpoint')}.", "", *HEAD, *{**kept, **rows}.values()]
    path.write_text(f"{before}<!-- results -->\n" + "\n".join(lines) + f"\n<!-- /results -->\n{after}", encoding="utf8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()
