"""The files that an experiment on texts will read, read before any row becomes tokens and any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.config import Config, EvaluationConfig, Source
from dpo_jax.data.sources import COMPLETIONS, PROMPTS, Layout, check_sources, paths
from dpo_jax.errors import BadRow, UserError
from dpo_jax.experiments.outputs import judged_text, read_benchmark, read_matched
from dpo_jax.experiments.rows import layout_of, rules_of
from dpo_jax.reading import Origins, located


def check_inputs(config: Config, origins: Origins, *sections: str) -> None:
    """Refuse sources and files of the evaluation that cannot be read, and rows of theirs that cannot be used.

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
    if asked("data.chat_template"):
        with located("data.chat_template", origins):
            rules_of(config)
    if asked("evaluation"):
        _check_evaluation(config.evaluation, origins)


def _sources(config: Config) -> Iterator[tuple[str, Layout[Any], Sequence[Source]]]:
    """Each list of sources with its key and the form of its rows."""
    if config.scratch and not Path(config.model.weights).exists():
        yield "scratch.data", COMPLETIONS, config.scratch.data
    yield "data.train", layout_of(config), config.data.train
    yield "data.eval", layout_of(config), config.data.eval
    if config.sft:
        yield "sft.data.train", COMPLETIONS, config.sft.data.train
    yield "pairs.prompts", PROMPTS, config.pairs.prompts


def _check_evaluation(options: EvaluationConfig, origins: Origins) -> None:
    if outputs := options.outputs:
        for name, path in vars(outputs).items():
            if path is not None:
                with located(f"evaluation.outputs.{name}", origins):
                    _check_first(path)
        with located("evaluation.outputs", origins):
            read_matched(outputs)
    if options.rewardbench:
        with located("evaluation.rewardbench", origins):
            pairs, _ = read_benchmark(options.rewardbench)
            for pair in pairs if options.judge else ():
                for slot in (0, 1):
                    judged_text(pair, slot)


def _check_first(path: str) -> None:
    first = next(paths.read({"path": path}), None)
    if first is None:
        raise UserError(f"{path} holds no responses: it is empty.")
    if isinstance(first, BadRow):
        raise first
