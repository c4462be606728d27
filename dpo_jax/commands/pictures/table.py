"""The commands for experiments on pictures and clips; they are called as those for texts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_jax.experiments.pictures import PictureSetup


# The imports happen when a command is called, as for texts.
def _run(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import run

    run.run(setup)


def _sft(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import sft

    sft.run(setup)


def _check_data(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import check_data

    check_data.run(setup)


def _pairs(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import pairs

    pairs.run(setup, **flags)


def _reference(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import reference

    reference.run(setup, **flags)


def _train(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import train

    train.run(setup)


def _reward(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import reward

    reward.run(setup)


def _evaluate(setup: PictureSetup) -> None:
    from dpo_jax.commands.pictures import evaluate

    evaluate.run(setup)


def _sample(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import sample

    sample.run(setup, **flags)


def _export(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import export

    export.run(setup, **flags)


def _sweep(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import sweep

    sweep.run(setup, **flags)


def _report(setup: PictureSetup, **flags: Any) -> None:
    from dpo_jax.commands.pictures import report

    report.run(setup, **flags)


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
