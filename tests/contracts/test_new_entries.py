"""A new loss, model family, source, judge or command: each place that it must touch is named where it is missing.

| new | its places |
| --- | --- |
| loss | its function; `losses/__init__.py`, which exports it and has its line in `LOSSES`; its row of the page |
| model family | a `Family`; its line in `FAMILIES` |
| source | a function that yields records; its line in `KINDS`, or in `PACKAGES` |
| judge | its options in `dpo_jax/config`; its opener and its line in `JUDGES`; its row of the page |
| command | the function that runs it; its line in `COMMANDS` |

The battery of a table asks for a sample beside: how to write a source, say.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, get_args, get_type_hints

import jax
import pytest

from dpo_jax import commands, losses
from dpo_jax.commands import results
from dpo_jax.commands.table import COMMANDS, Command
from dpo_jax.config import evaluation
from dpo_jax.config import pictures as picture_config
from dpo_jax.data import pictures, sources
from dpo_jax.data.pictures import folders, layouts, packages
from dpo_jax.data.sources import formats, hub, paths
from dpo_jax.experiments.judging import JUDGES
from dpo_jax.experiments.picture_evaluation import PICTURE_JUDGES
from dpo_jax.losses import LOSSES, Loss, PairLogps, absolute
from dpo_jax.losses.knobs import Positive, check_knobs
from dpo_jax.models import families
from dpo_jax.models.families import FAMILIES, Family, llama
from dpo_jax.models.model import MODULES
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.weights.resolve import _completed
from tests.contracts import families as family_samples
from tests.contracts import test_judges, test_picture_sources, test_sources
from tests.contracts.formulas import FORMULAS
from tests.contracts.loss_cases import CASES

ROOT = Path(__file__).parents[2]


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package, each imported."""
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


def functions(package: ModuleType) -> Iterator[Callable[..., Any]]:
    """The public functions of a package, each from the module that defines it."""
    for module in modules(package):
        for name, member in vars(module).items():
            if inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_"):
                yield member


def forgotten_of_losses() -> Iterator[str]:
    """Losses tell of themselves that they give one number for each pair, and read the policy first."""
    page = Path(inspect.getfile(losses)).with_name("README.md").read_text("utf8")
    listed = {entry.function for entry in LOSSES.values()}
    for function in functions(losses):
        first = next(iter(inspect.signature(function).parameters), "")
        if "One loss per" in (inspect.getdoc(function) or "") and first.startswith("policy") and function not in listed:
            yield f"add the line of {function.__name__} to LOSSES in dpo_jax/losses/__init__.py"
    for name, entry in LOSSES.items():
        if name not in losses.__all__ or getattr(losses, name, None) is not entry.function:
            yield f"export {name} from dpo_jax/losses/__init__.py: import it there, and name it in __all__"
        if not re.search(rf"^\| `{name}\b", page, re.MULTILINE):
            yield f"add the row of {name} to dpo_jax/losses/README.md"
    tried = {*LOSSES, *(case.function.__name__ for case in CASES)}
    yield from (f"add the formula of {name} to tests/contracts/formulas.py" for name in sorted(tried - FORMULAS.keys()))
    yield from (f"take {name} from tests/contracts/formulas.py" for name in sorted(FORMULAS.keys() - tried))


def forgotten_of_families() -> Iterator[str]:
    """A family without samples fails all tests of families as well."""
    for module in modules(families):
        for name, member in vars(module).items():
            if isinstance(member, Family) and all(member is not known for known in FAMILIES.values()):
                yield f"add the line of {module.__name__}.{name} to FAMILIES in dpo_jax/models/families/__init__.py"
    for name, family in FAMILIES.items():
        samples = [sample for sample in family_samples.SAMPLES if sample.split(",")[0] == name]
        for sample in samples[:1]:
            _, config, _ = _completed(family_samples.config_of(sample), family.inner)
            if (kind := type(family.spec(config))) not in MODULES:
                yield f"name in MODULES of dpo_jax/models/model.py what computes {kind.__name__}, the spec of {name}"
        if not samples:
            yield family_samples.ADD.format(name)


def readers(package: ModuleType, *parameters: str) -> Iterator[Callable[..., Any]]:
    """The functions of a package that take a source and yield its records."""
    for function in functions(package):
        signature = inspect.signature(function)
        yields = signature.return_annotation == "Records"
        if yields and function.__name__.startswith("read") and tuple(signature.parameters) == parameters:
            yield function


def forgotten_of_sources() -> Iterator[str]:
    """The model card names the data of a source by the key in `KINDS`: `test_the_model_card_names_the_data`."""
    listed = {kind.read for kind in sources.KINDS.values()}
    for function in readers(sources, "spec"):
        if function not in listed:
            yield f"add the line of {function.__module__}.{function.__name__} to KINDS in dpo_jax/data/sources"
    known = {sample.of for sample in test_sources.SAMPLES.values()}
    tables = {"KINDS": sources.KINDS, "READERS": paths.READERS, "FORMATS": formats.FORMATS}
    for name, entry in ((name, entry) for name, table in tables.items() for entry in table):
        if (name, entry) not in known:
            yield f"add a sample of {entry!r} of {name} to SAMPLES in tests/contracts/test_sources.py: how to write it"


def forgotten_of_picture_sources() -> Iterator[str]:
    """The same of pictures and clips; a package of theirs is a source with code of its own."""
    listed = {kind.read for kind in pictures.KINDS.values()} | {each.read for each in packages.PACKAGES.values()}
    for function in readers(pictures, "spec", "shape"):
        if function not in listed:
            yield f"add the line of {function.__module__}.{function.__name__} to KINDS in dpo_jax/data/pictures"
    known = {sample.of for sample in test_picture_sources.SAMPLES.values()}
    known |= {("LAYOUTS", layout) for layout in test_picture_sources.LAYOUT_ROWS}
    tables: dict[str, Iterable[str]] = {
        "KINDS": pictures.KINDS.keys() - {"package"},
        "PACKAGES": packages.PACKAGES,
        "LAYOUTS": layouts.LAYOUTS,
    }
    for name, entry in ((name, entry) for name, table in tables.items() for entry in table):
        if (name, entry) not in known:
            where = "LAYOUT_ROWS" if name == "LAYOUTS" else "SAMPLES"
            yield f"add a sample of {entry!r} of {name} to {where} in tests/contracts/test_picture_sources.py"


def name_of(options: type) -> str:
    (name,) = get_args(get_type_hints(options)["name"])
    return name


def forgotten_of_judges() -> Iterator[str]:
    """Each option must be in the row of its judge."""
    page = (ROOT / "configs/evaluation.md").read_text("utf8")
    _, _, table = page.partition("| judge | what it is shown | options |")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+)$", table.partition("\n\n")[0], re.MULTILINE))
    known = {name_of(options): options for options in get_args(evaluation.JudgeConfig)}
    for options in vars(evaluation).values():
        own = inspect.isclass(options) and issubclass(options, evaluation.Judge) and options is not evaluation.Judge
        if own and options not in known.values():
            yield f"name {options.__name__} in JudgeConfig of dpo_jax/config/evaluation.py"
    for name, options in known.items():
        if name not in JUDGES:
            yield f"add the opener of {name} and its line to JUDGES in dpo_jax/experiments/judging.py"
        if name not in rows:
            yield f"add the row of the judge {name} to configs/evaluation.md"
        elif missing := [
            each.name for each in fields(options) if each.name != "name" and f"`{each.name}" not in rows[name]
        ]:
            yield f"name {', '.join(missing)} in the row of the judge {name} in configs/evaluation.md"
    for name in JUDGES:
        if name not in known:
            yield f"add the options of {name} to dpo_jax/config/evaluation.py, and to JudgeConfig there"
        if name not in test_judges.SAMPLES:
            yield f"add the judge {name!r} to SAMPLES in tests/contracts/test_judges.py"


def forgotten_of_picture_judges() -> Iterator[str]:
    """The same of pictures, whose judges are shown by their use."""
    page = (ROOT / "configs/pictures.md").read_text("utf8")
    known = {name_of(options) for options in get_args(picture_config.PictureJudgeConfig)}
    for name in known | PICTURE_JUDGES.keys():
        if name not in PICTURE_JUDGES:
            yield f"add the line of {name} to PICTURE_JUDGES in dpo_jax/experiments/picture_evaluation.py"
        if name not in known:
            yield f"add the options of {name} to PictureJudgeConfig in dpo_jax/config/pictures.py"
        if f"{{name: {name}" not in page:
            yield f"show the judge {name} in configs/pictures.md"


def names_in(code: CodeType) -> set[str]:
    """The names that a function uses, and those inside it."""
    return {*code.co_names}.union(*(names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


def forgotten_of_commands() -> Iterator[str]:
    """What runs a command takes an experiment and gives nothing back; what other commands call needs no line."""
    loaded: set[object] = set()
    called: set[str] = set()
    for name, command in COMMANDS.items():
        runner = command.load()
        modules_of_it = [each for each in inspect.getclosurevars(runner).nonlocals.values() if inspect.ismodule(each)]
        loaded |= {runner, *(getattr(module, "run", None) for module in modules_of_it)}
        parameters = list(inspect.signature(runner).parameters.values())[1:]
        taken = {parameter.name for parameter in parameters}
        flags = {flag.replace("-", "_") for flag in (*command.flags, *command.lists, *command.switches)}
        needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
        if not command.help:
            yield f"say in its line in dpo_jax/commands/table.py what {name} does"
        yield from (f"let the runner of {name} take {flag!r}, a flag of its line" for flag in sorted(flags - taken))
        yield from (f"give {name} the flag {flag!r}, which its runner takes" for flag in sorted(needed - flags))
    for function in functions(commands):
        called |= names_in(function.__code__) - {"run"}
    for function in functions(commands):
        signature = inspect.signature(function)
        runs = next(iter(signature.parameters), "") == "experiment" and signature.return_annotation in (None, "None")
        if runs and function not in loaded and function.__name__ not in called:
            yield f"add the line of {function.__module__}.{function.__name__} to COMMANDS in dpo_jax/commands/table.py"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "loss": forgotten_of_losses,
    "family": forgotten_of_families,
    "source": forgotten_of_sources,
    "picture source": forgotten_of_picture_sources,
    "judge": forgotten_of_judges,
    "picture judge": forgotten_of_picture_judges,
    "command": forgotten_of_commands,
}


@pytest.mark.parametrize("table", CHECKS)
def test_nothing_is_forgotten(table: str):
    assert list(CHECKS[table]()) == []


def made_up(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> jax.Array:
    """A made-up loss.

    Returns:
        One loss per pair, [B].
    """
    check_knobs(made_up, beta=beta)
    return beta * (policy.chosen - reference.chosen)


@dataclass(frozen=True, kw_only=True)
class MadeUpJudge(evaluation.Judge):
    name: Literal["made-up"] = "made-up"
    taste: float = 0.5


def read_made_up(spec: Any) -> Any:
    raise NotImplementedError


def read_made_up_pixels(spec: Any, shape: Any) -> Any:
    raise NotImplementedError


def line(table: Any, entry: Any, name: str = "made_up") -> Callable[..., None]:
    """Plant an entry of a table, and nothing else."""
    return lambda patch, folder: patch.setitem(table, name, entry)


def function(module: ModuleType, function: Callable[..., Any], returns: str = "jax.Array") -> Callable[..., None]:
    """Plant a function, and no line that names it."""

    def plant(patch: pytest.MonkeyPatch, folder: Path) -> None:
        patch.setattr(function, "__module__", module.__name__)
        patch.setitem(function.__annotations__, "return", returns)
        patch.setattr(module, function.__name__, function, raising=False)

    return plant


def judge_without_union(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(evaluation, "MadeUpJudge", MadeUpJudge, raising=False)


def judge_with_options_only(patch: pytest.MonkeyPatch, folder: Path) -> None:
    judge_without_union(patch, folder)
    patch.setattr(evaluation, "JudgeConfig", evaluation.JudgeConfig | MadeUpJudge)


def picture_judge_with_options_only(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(picture_config, "PictureJudgeConfig", picture_config.PictureJudgeConfig | MadeUpJudge)


def command_without_line(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "made_up.py").write_text("def run(experiment) -> None: ...\n")
    patch.setattr(commands, "__path__", [*commands.__path__, str(folder)])
    patch.delitem(sys.modules, "dpo_jax.commands.made_up", raising=False)


def option_without_word(patch: pytest.MonkeyPatch, folder: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class LexiconJudge(evaluation.LexiconJudge):
        taste: float = 0.5

    kinds = [LexiconJudge if name_of(kind) == "lexicon" else kind for kind in get_args(evaluation.JudgeConfig)]
    patch.setattr(evaluation, "JudgeConfig", functools.reduce(operator.or_, kinds))
    patch.setattr(evaluation, "LexiconJudge", LexiconJudge)


def run_made_up(experiment: Any) -> None:
    raise NotImplementedError


def a_runner(experiment: Any, *, taste: str) -> None:
    raise NotImplementedError


PLANTED: dict[str, tuple[str, Callable[..., None], list[str]]] = {
    "a function of a loss": ("loss", function(absolute, made_up), ["add the line of made_up to LOSSES"]),
    "a line of a loss": (
        "loss",
        line(LOSSES, Loss(made_up)),
        ["export made_up from", "row of made_up to dpo_jax/losses/README.md", "formula of made_up to tests/contracts"],
    ),
    "a formula": ("loss", line(FORMULAS, None), ["take made_up from tests/contracts/formulas.py"]),
    "a family": (
        "family",
        lambda patch, folder: patch.setattr(llama, "MADE_UP", llama.LLAMA._replace(), raising=False),
        ["families.llama.MADE_UP to FAMILIES"],
    ),
    "a line of a family": ("family", line(FAMILIES, llama.LLAMA), ["add a sample of the family 'made_up'"]),
    "a reader": ("source", function(hub, read_made_up, "Records"), ["sources.hub.read_made_up to KINDS"]),
    "a line of a source": ("source", line(sources.KINDS, sources.Kind(read_made_up)), ["'made_up' of KINDS"]),
    "a format": ("source", line(formats.FORMATS, None), ["'made_up' of FORMATS"]),
    "a kind of file": ("source", line(paths.READERS, None, ".made"), ["'.made' of READERS"]),
    "a reader of pictures": (
        "picture source",
        function(folders, read_made_up_pixels, "Records"),
        ["folders.read_made_up_pixels to KINDS"],
    ),
    "a line of pictures": (
        "picture source",
        line(pictures.KINDS, pictures.Kind(read_made_up_pixels, lambda spec: ())),
        ["'made_up' of KINDS to SAMPLES"],
    ),
    "a layout": ("picture source", line(layouts.LAYOUTS, None), ["'made_up' of LAYOUTS to LAYOUT_ROWS"]),
    "options of a judge": ("judge", judge_without_union, ["name MadeUpJudge in JudgeConfig"]),
    "named options of a judge": (
        "judge",
        judge_with_options_only,
        ["line to JUDGES", "row of the judge made-up to configs/evaluation.md"],
    ),
    "a line of a judge": (
        "judge",
        line(JUDGES, None),
        ["options of made_up to dpo_jax/config", "judge 'made_up' to SAMPLES"],
    ),
    "an option of a judge": ("judge", option_without_word, ["name taste in the row of the judge lexicon"]),
    "options of a judge of pictures": (
        "picture judge",
        picture_judge_with_options_only,
        ["line of made-up to PICTURE_JUDGES", "show the judge made-up"],
    ),
    "a line of a judge of pictures": (
        "picture judge",
        line(PICTURE_JUDGES, None),
        ["made_up to PictureJudgeConfig", "show the judge made_up"],
    ),
    "a file of a command": ("command", command_without_line, ["made_up.run to COMMANDS in dpo_jax/commands/table.py"]),
    "a function of a command": ("command", function(results, run_made_up, "None"), ["results.run_made_up to COMMANDS"]),
    "a line of a command": (
        "command",
        line(COMMANDS, Command("", lambda: a_runner, {"colour": "a flag that it does not take"})),
        ["what made_up does", "let the runner of made_up take 'colour'", "give made_up the flag 'taste'"],
    ),
}


@pytest.mark.parametrize(("table", "plant", "named"), PLANTED.values(), ids=list(PLANTED))
def test_a_forgotten_place_is_named(
    table: str, plant: Callable[..., None], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each of them, in words, and nothing else."""
    plant(monkeypatch, tmp_path)
    forgotten = list(CHECKS[table]())
    assert len(forgotten) == len(named), forgotten
    for says, words in zip(forgotten, named, strict=True):
        assert words in says


def test_a_spec_that_nothing_computes_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(MODULES, DecoderSpec)
    assert any(
        "MODULES of dpo_jax/models/model.py what computes DecoderSpec" in says for says in forgotten_of_families()
    )
