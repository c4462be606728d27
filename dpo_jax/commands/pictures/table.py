"""The commands for experiments on pictures and clips; they are called as those for texts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_jax.experiments.pictures import PictureExperiment


# The imports happen when a command is called, as for texts.
def _run(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import run

    run.run(experiment)


def _sft(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import sft

    sft.run(experiment)


def _check_data(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import check_data

    check_data.run(experiment)


def _pairs(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import pairs

    pairs.run(experiment, **flags)


def _reference(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import reference

    reference.run(experiment, **flags)


def _train(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import train

    train.run(experiment)


def _reward(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import reward

    reward.run(experiment)


def _evaluate(experiment: PictureExperiment) -> None:
    from dpo_jax.commands.pictures import evaluate

    evaluate.run(experiment)


def _sample(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import sample

    sample.run(experiment, **flags)


def _export(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import export

    export.run(experiment, **flags)


def _sweep(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import sweep

    sweep.run(experiment, **flags)


def _report(experiment: PictureExperiment, **flags: Any) -> None:
    from dpo_jax.commands.pictures import report

    report.run(experiment, **flags)


PICTURE_COMMANDS: dict[str, Callable[..., None]] = {
    "run": _run,
    "sft": _sft,
    "check-data": _check_data,
    "pairs": _pairs,
    "reference": _reference,
    "train": _train,
    "reward": _reward,
    "evaluate": _evaluate,
    "sample": _sample,
    "export": _export,
    "sweep": _sweep,
    "report": _report,
}
"""Name on the command line, as in `COMMANDS`, which has their help and flags -> the function that runs it."""
