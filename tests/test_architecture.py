"""The shape of the house: who imports whom, no circles, no long files, heavy packages where they belong.

The checks take the folder that holds `dpo_jax` as an argument, so that mistakes can be planted in a copy of its shape.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "dpo_jax", "launch", "configs", "tests"}
LONGEST_FILE = 400
MOST_FLOORS = 7
"""The longest chain of imports within a room."""
MOST_ARROWS: dict[str, int] = {"experiments": 60}
"""Imports between the files of a room."""
MOST_PARAMETERS = 8
"""Of a function; the options of a loss do not count."""
MOST_HOLDERS = 61
"""Functions that take a whole experiment."""

# Room -> the rooms of ours it may import, besides itself and `errors`.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": {"masking"},
    "files": set(),
    "reading": set(),
    "masking": set(),
    "locks": {"masking"},
    "mesh": set(),
    "meeting": set(),
    "networks": {"types", "mesh"},
    "planning": set(),
    "losses": {"types"},
    "logprobs": {"types", "mesh"},
    "models": {"types", "mesh", "networks"},
    "diffusion": {"types", "mesh", "networks"},
    "scorers": {"types", "mesh", "networks"},
    "objectives": {"types", "losses", "logprobs", "diffusion", "scorers"},
    "weights": {"types", "mesh", "meeting", "models", "diffusion", "files", "locks"},
    "data": {"types", "files"},
    "training": {"types", "mesh", "meeting", "files"},
    "reference": {"types", "logprobs", "mesh", "meeting", "files", "locks"},
    "evaluation": {"types", "logprobs", "masking"},
    "analysis": {"types", "logprobs", "losses"},
    "reporting": {"types", "evaluation", "reading"},  # the form of YAML
    "runtime": {"files", "locks", "masking", "meeting"},
    "runs": {"files", "locks", "reading", "masking"},
    "config": {"reading", "masking"},
}
MAY_IMPORT["experiments"] = set(MAY_IMPORT)
MAY_IMPORT["drafting"] = {
    "experiments",
    "config",
    "data",
    "weights",
    "planning",
    "runtime",
    "reading",
    "types",
    "masking",
}
# A command cannot rebuild machinery: it asks an experiment, and shows or writes what it gets.
MAY_IMPORT["commands"] = {"experiments", "runs", "runtime", "evaluation", "reporting", "planning", "config", "files"}
MAY_IMPORT["commands"] |= {"types", "reading", "masking", "drafting"}
MAY_IMPORT["cli"] = {"commands", "experiments", "config", "runtime", "runs", "masking"}
MAY_IMPORT["api"] = MAY_IMPORT["experiments"] | {"experiments", "commands"}  # an experiment that Python opens
MAY_IMPORT[""] = {"api"}  # dpo_jax/__init__.py, when they are used

# Package or module of others -> where alone in dpo_jax it may be imported.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "jax.experimental.topologies": ("planning/topologies.py",),
    "orbax": ("training/checkpoint.py", "reference/store.py"),
    "flax": ("networks.py", "models/", "diffusion/", "scorers/"),
}


class Arrow(NamedTuple):
    """One import: a line of a file, and the dotted module it names (with each name it takes from it)."""

    file: Path
    line: int
    module: str


def arrows(root: Path) -> Iterator[Arrow]:
    """Every import in dpo_jax, wherever it stands in a file; `from a import b` gives `a.b`."""
    for file in sorted((root / "dpo_jax").rglob("*.py")):
        package = file.relative_to(root).parent.parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"), str(file))):
            if isinstance(node, ast.Import):
                yield from (Arrow(file, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) - node.level + 1] if node.level else ()
                module = ".".join([*start, *([node.module] if node.module else [])])
                yield from (Arrow(file, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def module_file(root: Path, module: str) -> Path | None:
    """The file of dpo_jax that `module` means, a name inside it counting as the file; None for others' modules."""
    parts = module.split(".")
    if parts[0] != "dpo_jax":
        return None
    for end in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def room(root: Path, file: Path) -> str:
    """`losses` for dpo_jax/losses/pairwise.py, `types` for dpo_jax/types.py, the empty word for dpo_jax/__init__.py."""
    first = file.relative_to(root / "dpo_jax").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def illegal_arrows(root: Path) -> list[str]:
    """One line for each import that the tables do not allow, starting with file:line."""
    found = []
    for arrow in arrows(root):
        here = room(root, arrow.file)
        place = f"{arrow.file.relative_to(root).as_posix()}:{arrow.line}"
        target = module_file(root, arrow.module)
        if target is not None:
            there = room(root, target)
            if there not in (here, "errors", "") and there not in MAY_IMPORT.get(here, set()):
                found.append(f"{place}: {here or 'dpo_jax'} may not import {there}")
            continue
        inside = arrow.file.relative_to(root / "dpo_jax").as_posix()
        for package, places in ONLY_IN.items():
            if f"{arrow.module}.".startswith(f"{package}.") and not inside.startswith(places):
                found.append(f"{place}: {package} may be imported only in {', '.join(places)}")
    return list(dict.fromkeys(found))


def unknown_rooms(root: Path) -> set[str]:
    """Files and folders of dpo_jax that the import table does not name."""
    return {room(root, file) for file in (root / "dpo_jax").rglob("*.py")} - set(MAY_IMPORT)


def import_circle(root: Path) -> list[str]:
    """The files of one import circle in order, or nothing. Imports inside functions count too."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows(root):
        target = module_file(root, arrow.module)
        if arrow.file == root / "dpo_jax" / "__init__.py":  # what it names is imported when it is used
            continue
        if target is not None and target != arrow.file:
            source = arrow.file.relative_to(root).as_posix()
            graph.setdefault(source, set()).add(target.relative_to(root).as_posix())
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def long_files(root: Path) -> list[str]:
    """Python files of the package and its tests that are longer than any file may be."""
    files = [file for folder in ("dpo_jax", "tests") for file in sorted((root / folder).rglob("*.py"))]
    lengths = {file: len(file.read_text(encoding="utf8").splitlines()) for file in files}
    return [f"{file.relative_to(root).as_posix()}: {n} lines" for file, n in lengths.items() if n > LONGEST_FILE]


def inner_arrows(root: Path) -> dict[Path, set[Path]]:
    """Each file of a room that imports others of it -> those files."""
    graph: dict[Path, set[Path]] = {}
    for arrow in arrows(root):
        target = module_file(root, arrow.module)
        inside = target is not None and room(root, target) == room(root, arrow.file) and target.name != "__init__.py"
        if target is not None and inside and target != arrow.file and arrow.file.name != "__init__.py":
            graph.setdefault(arrow.file, set()).add(target)
    return graph


def tangled_rooms(root: Path) -> list[str]:
    """Rooms in which too many files import each other."""
    counts = Counter[str]()
    for file, targets in inner_arrows(root).items():
        counts[room(root, file)] += len(targets)
    return [f"{name}: {counts[name]} arrows" for name, most in MOST_ARROWS.items() if counts[name] > most]


def deep_rooms(root: Path) -> list[str]:
    """Rooms in which a chain of imports is too long."""
    graph = inner_arrows(root)
    floors: dict[Path, int] = {}
    for file in graphlib.TopologicalSorter(graph).static_order():
        floors[file] = 1 + max((floors[target] for target in graph.get(file, ())), default=0)
    deepest: dict[str, int] = {}
    for file, floor in floors.items():
        deepest[room(root, file)] = max(floor, deepest.get(room(root, file), 0))
    return [f"{name}: {floor} floors" for name, floor in sorted(deepest.items()) if floor > MOST_FLOORS]


class Taken(NamedTuple):
    """A function, the number of its parameters, and how it uses a whole experiment that it takes."""

    where: str
    parameters: int
    attributes: int | None  # of the experiment; None where it takes none
    uses: int


def functions(root: Path) -> Iterator[Taken]:
    """Every function of dpo_jax."""
    for file in sorted((root / "dpo_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"), str(file))):
            if not isinstance(node, ast.FunctionDef):
                continue
            parameters = [each for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            own = [each for each in parameters if each.arg not in ("self", "cls")]
            attributes, uses = None, 0
            for each in own:
                kind = ast.unparse(each.annotation) if each.annotation else ""
                if each.arg == "experiment" or (
                    not kind.startswith("Callable") and re.search(r"\b(\w*Experiment|\w*Steps)\b", kind)
                ):
                    names = [x for x in ast.walk(node) if isinstance(x, ast.Name) and x.id == each.arg]
                    read = [x for x in ast.walk(node) if isinstance(x, ast.Attribute) and x.value in names]
                    attributes, uses = len(read), len(names)
            where = f"{file.relative_to(root).as_posix()}:{node.lineno} {node.name}"
            yield Taken(where, len(own), attributes, uses)


def greedy_functions(root: Path) -> list[str]:
    """Functions with too many parameters, or that take a whole experiment only to hand it on."""
    losses = "dpo_jax/losses/"
    return [
        *(
            f"{each.where}: {each.parameters} parameters"
            for each in functions(root)
            if each.parameters > MOST_PARAMETERS and not each.where.startswith(losses)
        ),
        *(f"{each.where}: hands an experiment on" for each in functions(root) if each.attributes == 0 and each.uses),
    ]


def test_no_deep_room():
    assert not deep_rooms(ROOT)


def test_no_tangled_room():
    assert not tangled_rooms(ROOT)


def test_no_greedy_function():
    assert not greedy_functions(ROOT)
    assert sum(each.attributes is not None for each in functions(ROOT)) <= MOST_HOLDERS


def test_no_illegal_arrow():
    assert not unknown_rooms(ROOT), "name the room in MAY_IMPORT, and in the design, or move the file"
    assert not illegal_arrows(ROOT)


def test_no_circle():
    assert not import_circle(ROOT)


def test_no_long_file():
    assert not long_files(ROOT)


def test_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    visible = {line.split("/")[0] for line in listed.stdout.splitlines() if not line.startswith(".")}
    assert visible == TOP_LEVEL


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of dpo_jax in which every file is empty, to plant mistakes in."""
    for file in (ROOT / "dpo_jax").rglob("*.py"):
        _append(tmp_path / file.relative_to(ROOT), "")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("losses/planted.py", "import dpo_jax.models.decoder", "losses may not import models"),
        ("losses/planted.py", "from dpo_jax import mesh", "losses may not import mesh"),
        ("losses/planted.py", "from ..models.decoder import Decoder", "losses may not import models"),
        ("losses/planted.py", "from .. import logprobs", "losses may not import logprobs"),
        ("data/planted.py", "def late():\n    import dpo_jax.losses", "data may not import losses"),
        ("models/planted.py", "if TYPE_CHECKING:\n    from dpo_jax.weights import x", "models may not import weights"),
        ("training/planted.py", "from dpo_jax.losses.pairwise import dpo", "training may not import losses"),
        ("reference/planted.py", "from dpo_jax.config import x", "reference may not import config"),
        ("types.py", "import dpo_jax.mesh", "types may not import mesh"),
        ("cli.py", "import dpo_jax.losses", "cli may not import losses"),
        ("__init__.py", "from dpo_jax.losses import dpo", "dpo_jax may not import losses"),
        ("commands/planted.py", "import orbax.checkpoint", "orbax may be imported only in training/checkpoint.py"),
        ("training/planted.py", "def late():\n    from orbax import checkpoint", "orbax may be imported only in"),
        ("training/planted.py", "from flax import nnx", "flax may be imported only in networks.py, models/"),
        (
            "commands/planted.py",
            "from jax.experimental import topologies",
            "jax.experimental.topologies may be imported",
        ),
        ("planning/planted.py", "import dpo_jax.models.decoder", "planning may not import models"),
        ("commands/planted.py", "from dpo_jax.training import loop", "commands may not import training"),
        ("experiments/planted.py", "from dpo_jax.commands import train", "experiments may not import commands"),
    ],
)
def test_planted_arrow_is_named(house: Path, file: str, line: str, complaint: str):
    planted = house / "dpo_jax" / file
    _append(planted, line)
    (found,) = illegal_arrows(house)
    last = len(planted.read_text(encoding="utf8").splitlines())
    assert found.startswith(f"dpo_jax/{file}:{last}: {complaint}")


def test_allowed_arrows_are_not_named(house: Path):
    _append(house / "dpo_jax/training/checkpoint.py", "import orbax.checkpoint\nfrom dpo_jax import errors, files")
    _append(house / "dpo_jax/diffusion/planted.py", "from flax import nnx\nfrom ..mesh import constrain")
    _append(
        house / "dpo_jax/experiments/planted.py", "from dpo_jax import losses, models\nfrom dpo_jax.training import x"
    )
    assert not illegal_arrows(house)


def test_planted_circle_is_named(house: Path):
    _append(house / "dpo_jax/losses/planted_one.py", "from dpo_jax.losses import planted_two")
    _append(house / "dpo_jax/losses/planted_two.py", "def late():\n    from .planted_one import x")
    circle = import_circle(house)
    assert set(circle) == {"dpo_jax/losses/planted_one.py", "dpo_jax/losses/planted_two.py"}


def test_planted_room_and_long_file_are_named(house: Path):
    _append(house / "dpo_jax/utils.py", "x = 1\n" * LONGEST_FILE)
    assert unknown_rooms(house) == {"utils"}
    assert long_files(house) == [f"dpo_jax/utils.py: {LONGEST_FILE + 1} lines"]


def test_planted_depth_and_greed_are_named(house: Path):
    for number in range(MOST_FLOORS + 1):
        line = f"from dpo_jax.runs import planted_{number + 1}" if number < MOST_FLOORS else ""
        _append(house / f"dpo_jax/runs/planted_{number}.py", line)
    assert deep_rooms(house) == [f"runs: {MOST_FLOORS + 1} floors"]
    _append(house / "dpo_jax/runs/planted_0.py", "def hand(experiment: Steps):\n    return other(experiment)")
    _append(house / "dpo_jax/runs/planted_0.py", "def take(a, b, c, d, e, f, g, h, *, i):\n    return experiment.mesh")
    hands, takes = sorted(greedy_functions(house), key=lambda each: "parameters" in each)
    assert "planted_0.py:2 hand: hands an experiment on" in hands and "take: 9 parameters" in takes


def test_planted_tangle_is_named(house: Path):
    most = MOST_ARROWS["experiments"]
    lines = [f"from dpo_jax.experiments import planted_{number}" for number in range(most + 1)]
    for number in range(most + 1):
        _append(house / f"dpo_jax/experiments/planted_{number}.py", "")
    planted = house / "dpo_jax/experiments/planted.py"
    _append(planted, "\n".join([*lines[:-1], lines[0]]))
    assert not tangled_rooms(house)
    _append(planted, lines[-1])
    assert tangled_rooms(house) == [f"experiments: {most + 1} arrows"]


def _append(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf8") as stream:
        stream.write(text + "\n")
