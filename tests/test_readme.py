"""The pages are true: their code runs, their commands and settings are real, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpo_jax import __version__, cli
from dpo_jax.commands.sweep import point_of
from dpo_jax.commands.table import COMMANDS, Command
from dpo_jax.experiments.grid import read_points
from dpo_jax.experiments.losses import TRAINED
from dpo_jax.planning.topologies import open_machine

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "configs", "dpo_jax", "launch", "tests")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for each in FOLDERS for page in sorted((ROOT / each).rglob("*.md")))]
README, MANUAL = ((ROOT / folder / "README.md").read_text(encoding="utf8") for folder in (".", "configs"))
RESULTS = (ROOT / "configs" / "RESULTS.md").read_text(encoding="utf8")
of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """The command lines of a page, in blocks and in `code`, without comments and without the brackets of [options]."""
    starts = r"(?:dpo-jax|bash|python|pip install) "
    lines = re.findall(rf"^(?: {{4}})?({starts}.+)$", text, re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(rf"`({starts}[^`]+)`", text.replace("```", ""))]
    for line in lines:
        line = re.sub(r"\s#.*| \[[a-z. ]+\]| \.\.\.", "", line)
        yield from re.sub(r" \[(-[^]]*)\]", r" \1", line).strip().split(" && ")


def test_the_library_example_runs():
    code = next(each for each in blocks(README, "python") if "dpo_jax.losses" in each)
    names: dict[str, Any] = {}
    exec(code, names)
    # margins 3 and -6, beta 0.1
    np.testing.assert_allclose(names["value"], np.mean(np.log1p(np.exp([-0.3, 0.6]))), rtol=1e-6)


def test_ci_runs_the_test_command_as_shown():
    command = re.search(r"^    (bash launch/test\.sh)", README, re.MULTILINE)
    assert command and f" {command[1]} --everything\n" in (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] <= 120 and "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert all("body" in yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))


def test_the_changes_name_this_version():
    changes = (ROOT / ".github" / "CHANGELOG.md").read_text(encoding="utf8")
    versions = re.findall(r"^## (\S+) \(20\d\d-\d\d-\d\d\)$", changes, re.MULTILINE)
    assert __version__ in versions and versions == sorted(versions, reverse=True)


def test_the_first_screen():
    lines = README.splitlines()
    data, door = blocks(README, "yaml")[0].splitlines(), blocks(README, "python")[0].splitlines()
    assert len(lines) <= 120 and len(data) <= 12 and len(door) <= 15
    assert lines.index("```", lines.index("```yaml")) < 20  # own data
    assert f"| offline preference losses | {len(TRAINED)}," in README
    assert any(line.startswith("![") for line in lines[:40])
    assert all(path.stat().st_size < 150_000 for path in ROOT.glob(".github/*.png"))


def test_the_figures_are_those_of_the_results():
    table = README.partition("## Five figures")[2].partition("\n\nWhere we lose")[0]
    numbers = re.findall(r"\d[\d.,e-]*\d|\d(?= %)", table.partition("| --- |")[2].replace("](configs/RESULTS.md", ""))
    assert len(table.strip().splitlines()) == 7 and len(numbers) > 12
    assert [number for number in numbers if number not in RESULTS] == []


@of_page
def test_every_test_that_a_page_names_is_there(page: Path):
    named = set(re.findall(r"\btests/[\w/.]*\w", page.read_text(encoding="utf8")))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing, f"{page}: {', '.join(missing)}"


def test_every_value_says_which_test_shows_it():
    _, _, table = RESULTS.partition("| what | value | shown by |\n| --- | --- | --- |\n")
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()))
    assert len(rows) > 10 and "tests/" in rows[0]
    assert [row for row in rows if not re.search(r"tests/|the same \|$", row)] == []


def test_every_result_has_its_date_machine_and_command():
    """But for what the tests measure, and what is written beside its command elsewhere."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", RESULTS, re.DOTALL | re.MULTILINE))
    assert len(sections) > 8
    for name, text in sections.items():
        assert re.search(r"20\d\d-\d\d-\d\d", text) and re.search(r"\bcores\b", text), name
        assert any(commands(text)) or "tests/benchmarks" in text, name


def anchors(page: Path) -> set[str]:
    """The names under which headings can be linked to, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_page
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf8")):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        at = (page.parent / name).resolve() if name else page
        assert at.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(at), f"{page}: {target}"


def test_the_index_names_every_page_and_experiment():
    linked = {(ROOT / "configs" / name).resolve() for name in re.findall(r"\]\(([^)#\s]+)\)", MANUAL)}
    beside = {ROOT / folder / "README.md" for folder in ("dpo_jax/losses", "launch", "tests")}
    assert {*(ROOT / "configs").glob("*.md"), *beside} - {ROOT / "configs" / "README.md"} <= linked
    assert {path.name for path in ROOT.glob("configs/*.yaml")} == {
        *re.findall(r"^\| `(\w+\.yaml)`", MANUAL, re.MULTILINE)
    }


def stand_in(command: Command) -> Callable[..., None]:
    """Takes what the runner of a command takes, and looks at what it would read first."""
    runner = command.load()

    def run(experiment: Any, **flags: Any) -> None:
        inspect.signature(runner).bind(experiment, **flags)
        assert experiment.terms  # the losses and their options
        if flags.get("topology"):
            open_machine(flags["topology"])
        if "grid" in flags and (flags["grid"] or experiment.config.sweep):
            config, origins = experiment.config, experiment.origins
            points = read_points(flags["grid"] or (), config.sweep, origins, kind=type(config))
            for number in (0, -1):  # which have the first and the last value of every key
                assert point_of(experiment, "point", points[number]).terms

    return run


@pytest.fixture
def understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Whether a `dpo-jax` command line is understood to its end; nothing is trained. Gives what is said against it."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name in ("mine.yaml", "CONFIG"):
        Path(name).write_text(blocks(MANUAL, "yaml")[0])
    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, command._replace(load=lambda command=command: stand_in(command), dry=True))
    for name in ("verify", "doctor", "init"):  # of a run, of this machine, of rows
        monkeypatch.setitem(cli._WITHOUT_CONFIG, name, lambda known: None)

    def says(line: str) -> str:
        words = [{"COMMAND": "train", "N": "0"}.get(word, word) for word in shlex.split(line)[1:]]
        if all(re.fullmatch("[a-z-]+", word) for word in words):  # a command that is spoken of
            words.append("--help")
        try:
            cli.main(words)
        except SystemExit as stop:
            return capsys.readouterr().err if stop.code else ""
        return ""

    return says


@of_page
def test_every_command_of_a_page_is_understood(page: Path, understood: Callable[[str], str]):
    wrong = {}
    for line in commands(page.read_text(encoding="utf8")):
        program, what, *rest = shlex.split(line)
        if program == "bash" and what == "launch/local.sh" and "CONFIG" not in rest and "--install" not in rest:
            wrong[line] = understood(shlex.join(["dpo-jax", "run", *rest]))
        if program == "dpo-jax":
            wrong[line] = understood(line)
        elif program == "bash" or what.endswith(".py"):
            wrong[line] = wrong.get(line) or unknown_to_script(ROOT / what, rest)
        elif what == "-m" and importlib.util.find_spec(rest[0]) is None:
            wrong[line] = "no such module"
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            wrong[line] = ", ".join({*re.findall(r"dpo-jax\[(\w+)\]", line)} - {*extras})
    assert {line: says for line, says in wrong.items() if says} == {}


def unknown_to_script(script: Path, words: list[str]) -> str:
    """What stands against a command line: the script, files or options that are not there."""
    if not script.is_file():
        return "no such script"
    read = [script, *ROOT.glob("launch/*.sh"), *ROOT.glob("tests/**/conftest.py")]
    known = "\n".join(path.read_text(encoding="utf8") for path in read)
    own = ("--collect-only", "--durations")  # pytest's
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    if script.name != "local.sh" and (
        lost := [flag for flag in flags if flag not in own and not re.search(rf"{flag}(?![\w-])", known)]
    ):
        return f"{script.name} knows no {', '.join(lost)}"
    paths = [word for word in words if re.match(r"(tests|configs|dpo_jax|launch)/", word)]
    return ", ".join(f"no {path}" for path in paths if not (ROOT / path.partition("::")[0]).exists())


YAML = [(page, block) for page in PAGES for block in blocks(page.read_text(encoding="utf8"), "yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=lambda each: getattr(each, "stem", None))
def test_every_experiment_of_a_page_is_one(page: Path, block: str, understood: Callable[[str], str]):
    """A part of a file stands in a whole one."""
    part = yaml.safe_load(block)
    Path("part.yaml").write_text(yaml.safe_dump(yaml.safe_load(blocks(MANUAL, "yaml")[0]) | part))
    assert understood(f"dpo-jax {'sweep' if 'sweep' in part else 'check-data'} part.yaml") == ""


def test_what_is_wrong_on_a_page_is_found(understood: Callable[[str], str]):
    for line in (
        "dpo-jax trian mine.yaml",
        "dpo-jax train mine.yaml --train.stepz 3",
        "dpo-jax train mine.yaml --jsonl scores.jsonl",
        "dpo-jax train mine.yaml --loss.options.gamma 1",
        "dpo-jax train configs/no_such.yaml",
        "dpo-jax sweep mine.yaml --grid loss.options.betta=1,2",
        "dpo-jax sweep mine.yaml --grid loss.name=dpo,ippo",
        "dpo-jax plan mine.yaml --topology v5e-256",
        "dpo-jax store list",
    ):
        assert understood(line), line
    assert unknown_to_script(ROOT / "launch/test.sh", ["--everythin"])
    assert unknown_to_script(ROOT / "launch/no.sh", []) and unknown_to_script(ROOT / "launch/test.sh", ["tests/no"])
