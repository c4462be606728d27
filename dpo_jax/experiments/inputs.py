"""The files that an experiment on texts will read, opened before any row becomes tokens and any weights are loaded."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.config import Config, Source
from dpo_jax.config.evaluation import (
    ClassifierJudge,
    CommandJudge,
    HttpJudge,
    JudgeConfig,
    LexiconJudge,
    PythonJudge,
)
from dpo_jax.data.sources import COMPLETIONS, PAIRS, PROMPTS, Layout, check_labelled, check_sources, paths
from dpo_jax.errors import BadRow, UserError
from dpo_jax.experiments.rows import layout_of, located
from dpo_jax.reading import Origins, mistake


def check_inputs(config: Config, origins: Origins, *sections: str) -> None:
    """Refuse sources that cannot be opened, or whose first row cannot be used, and files of the evaluation.

    Args:
        config: the experiment.
        origins: where its settings were given.
        sections: the keys whose files are looked at, such as data.eval; without any, all.

    Raises:
        UserError: a file is missing, empty or of another form; it names file, line and key of the configuration.
    """

    def asked(key: str) -> bool:
        return not sections or key.startswith(sections)

    for key, layout, sources in _sources(config):
        if asked(key):
            with located(key, origins):
                check_sources(layout, sources, on_error=config.data.on_error)
    for key, path in _files(config):
        if asked(key):
            _check_file(key, path, origins)
    for key, judge in (("evaluation.judge", config.evaluation.judge), ("pairs.judge", config.pairs.judge)):
        if asked(key) and isinstance(judge, ClassifierJudge):
            with located(f"{key}.data", origins):
                check_labelled(judge.data)
        elif asked(key) and judge:
            _check_judge(key, judge, origins)


def _sources(config: Config) -> Iterator[tuple[str, Layout[Any], Sequence[Source]]]:
    """Each list of sources with its key and the form of its rows."""
    if config.scratch and not Path(config.model.weights).exists():
        yield "scratch.data", COMPLETIONS, config.scratch.data
    yield "data.train", layout_of(config), config.data.train
    yield "data.eval", layout_of(config), config.data.eval
    if config.sft:
        yield "sft.data.train", COMPLETIONS, config.sft.data.train
    yield "pairs.prompts", PROMPTS, config.pairs.prompts


def _files(config: Config) -> Iterator[tuple[str, str]]:
    """Each file of rows that the evaluation reads, with its key."""
    options = config.evaluation
    if options.outputs:
        for name, path in vars(options.outputs).items():
            if path is not None:
                yield f"evaluation.outputs.{name}", path
    if options.rewardbench:
        yield "evaluation.rewardbench", options.rewardbench


def _check_file(key: str, path: str, origins: Origins) -> None:
    with located(key, origins):
        first = next(paths.read({"path": path}), None)
        if first is None:
            raise UserError(f"{path} holds no {'rows' if key.endswith('rewardbench') else 'responses'}: it is empty.")
        if isinstance(first, BadRow):
            raise first
        if key == "evaluation.rewardbench":
            PAIRS.make(first, {name: name for name in PAIRS.columns})


def _check_judge(key: str, judge: JudgeConfig, origins: Origins) -> None:
    """Refuse a judge whose file or program is missing; none of its code runs yet."""
    name, path = "", None
    if isinstance(judge, LexiconJudge):
        name, path = "words", judge.words
    elif isinstance(judge, HttpJudge):
        name, path = "template", judge.template
    elif isinstance(judge, PythonJudge) and (place := judge.function.rpartition(":")[0]).endswith(".py"):
        name, path = "function", place
    elif isinstance(judge, CommandJudge):
        try:
            program = next(iter(shlex.split(judge.command)), "")
        except ValueError as error:
            raise mistake(f"{key}.command", origins, f"{judge.command!r} is no command: {error}.") from None
        if shutil.which(program) is None:
            raise mistake(f"{key}.command", origins, f"there is no program {program!r} that can be started.")
    if path is not None and not Path(path).is_file():
        says = (
            f"the file {path} cannot be read: there is none. Paths are relative to the current directory, {Path.cwd()}."
        )
        raise mistake(f"{key}.{name}", origins, says)
