"""The planted bugs still apply, each to one place, and the script that plants them judges rightly."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest

from dpo_jax.losses import PAIRWISE, REFERENCE_FREE, STATEFUL, TOKEN_LEVEL, UNPAIRED
from tests.contracts import plant
from tests.contracts.mutants.equivalent import EQUIVALENT
from tests.contracts.mutants.lists import LISTS
from tests.contracts.mutants.mutant import Mutant, planted

ALL = [mutant for mutants in LISTS.values() for mutant in mutants]


@pytest.mark.parametrize("name", LISTS)
def test_every_bug_applies_to_one_place(name: str):
    for mutant in LISTS[name]:
        text = (plant.ROOT / "dpo_jax" / mutant.file).read_text(encoding="utf8")
        assert text.count(mutant.old) == 1 and mutant.old != mutant.new, mutant
        assert len(mutant.name) > 10, mutant


def test_names_are_told_apart_and_their_tests_exist():
    twice = [place for place, count in Counter((m.file, m.name) for m in ALL).items() if count > 1]
    assert not twice
    for tests in {tests for mutant in ALL for tests in mutant.tests}:
        files = [word for word in shlex.split(tests) if word.startswith("tests/")]
        assert files and all((plant.ROOT / file).exists() for file in files), tests


def test_every_loss_has_two_bugs_of_its_own():
    bugs = Counter(m.name.partition(":")[0] for m in ALL if "knobs" not in m.name and "reference" not in m.name)
    for name in (*PAIRWISE, *REFERENCE_FREE, *TOKEN_LEVEL, *STATEFUL, *UNPAIRED):
        assert bugs[name] >= 2, name


def test_equivalent_bugs_are_planted_and_proved():
    places = {f"{mutant.file}: {mutant.name}" for mutant in ALL}
    assert places >= EQUIVALENT.keys()
    assert all(len(proof.split()) > 5 and proof.endswith(".") for proof in EQUIVALENT.values())


FILE = "losses/double.py"
CODE = "def double(x):\n    bound = 2**64\n    return min(2 * x, bound)\n"
TEST = "from dpo_jax.losses.double import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one file and two tests; its packages hide the installed ones of their names."""
    files = {"dpo_jax/__init__.py": "", "dpo_jax/losses/__init__.py": "", f"dpo_jax/{FILE}": CODE}
    for name, text in {**files, "tests/test_double.py": TEST, "tests/test_red.py": "assert 0\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_judgements(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    bugs = planted(
        FILE,
        ("tests/test_double.py",),
        ("three times", "2 * x", "3 * x"),
        ("no bound", "min(2 * x, bound)", "2 * x"),
        ("another bound", "2**64", "2**65"),
        ("not a word of it", "5 * x", "6 * x"),
        ("in two places", "x", "y"),
        ("no Python", "return min", "return return min"),
    )
    bugs += planted(FILE, ("tests/test_red.py",), ("behind a test that fails anyway", "2 * x", "3 * x"))
    monkeypatch.setitem(EQUIVALENT, f"{FILE}: another bound", "No test doubles a number as large as that.")
    verdicts = {verdict.mutant.name: verdict for verdict in plant.judge_all(tree, bugs, jobs=2)}
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {
        "three times": plant.CAUGHT,
        "no bound": plant.MISSED,
        "another bound": plant.EQUAL,
        "not a word of it": plant.STALE,
        "in two places": plant.STALE,
        "no Python": plant.BROKEN,
        "behind a test that fails anyway": plant.RED,
    }
    assert verdicts["three times"].test == "tests/test_double.py::test_double"
    assert plant.table(verdicts.values())[-1] == "| all | 7 | 1 | 1 | 5 |"
    assert (tree / "dpo_jax" / FILE).read_text() == CODE  # the bugs were planted elsewhere
    assert f"{'MISSED':<23}losses/double.py: no bound" in capsys.readouterr().out


def test_a_bug_that_hangs_is_not_taken_for_caught(tree: Path):
    (bug,) = planted(
        FILE, ("tests/test_double.py",), ("for ever", "    return min", "    while True: x\n    return min")
    )
    assert plant.judge(tree, bug, timeout_seconds=3).outcome == plant.LATE


@pytest.mark.parametrize(("outcome", "status"), [(plant.CAUGHT, 0), (plant.EQUAL, 0), (plant.MISSED, 1)])
def test_the_command_fails_on_a_missed_bug(monkeypatch: pytest.MonkeyPatch, outcome: str, status: int):
    bug = Mutant("some bug", FILE, "a", "b", ("tests",))
    monkeypatch.setattr(plant, "judge_all", lambda root, mutants, jobs: [plant.Verdict(m, outcome) for m in mutants])
    assert plant.main([], lists={"losses": [bug]}) == status


def test_counts_go_between_the_markers_of_their_name(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- losses -->\nold\n<!-- end of losses -->\nb\n<!-- data -->\n<!-- end of data -->\n")
    plant.write("losses", ["new", "table"], readme)
    assert readme.read_text() == (
        "a\n<!-- losses -->\nnew\ntable\n<!-- end of losses -->\nb\n<!-- data -->\n<!-- end of data -->\n"
    )
    with pytest.raises(SystemExit, match="no markers of stages"):
        plant.write("stages", [], readme)
