"""The commands. A stage introduces the mathematics to the machinery, and alone reads the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dpo_jax.stages.setup import Setup


class Stage(NamedTuple):
    """One command: what it does, the function that runs it, its own flags, and short names of settings.

    A flag has its help; a short name the key of the configuration that it sets.
    """

    help: str
    run: Callable[..., None]
    flags: Mapping[str, str] = {}
    settings: Mapping[str, str] = {}


# The imports happen when a stage is called, so that `dpo-jax --help` needs none of them.
def _run(setup: Setup) -> None:
    from dpo_jax.stages import run

    run.run(setup)


def _sft(setup: Setup) -> None:
    from dpo_jax.stages import sft

    sft.run(setup)


def _check_data(setup: Setup) -> None:
    from dpo_jax.stages import check_data

    check_data.run(setup)


def _reference(setup: Setup, *, jsonl: str | None, verify: str | None) -> None:
    from dpo_jax.stages import reference

    reference.run(setup, jsonl=jsonl, verify=verify)


def _train(setup: Setup) -> None:
    from dpo_jax.stages import train

    train.run(setup)


def _reward(setup: Setup) -> None:
    from dpo_jax.stages import reward

    reward.run(setup)


def _evaluate(setup: Setup) -> None:
    from dpo_jax.stages import evaluate

    evaluate.run(setup)


def _sample(setup: Setup, *, prompts: str | None, output: str | None, model: str | None) -> None:
    from dpo_jax.stages import sample

    sample.run(setup, prompts=prompts, output=output, model=model)


def _export(setup: Setup) -> None:
    from dpo_jax.stages import export

    export.run(setup)


def _report(setup: Setup) -> None:
    from dpo_jax.stages import report

    report.run(setup)


STAGES: dict[str, Stage] = {
    "run": Stage("all that the configuration asks for, in order", _run),
    "sft": Stage("supervised fine-tuning, the start of the policy and the reference", _sft),
    "check-data": Stage("what is in the data, and what is odd about it, into WORKDIR/data.html", _check_data),
    "reference": Stage(
        "score every row with the frozen reference, into the store",
        _reference,
        {
            "jsonl": "also write the scores, one object per data row, to this file",
            "verify": "score so many rows of the store once more and say by how much they differ",
        },
    ),
    "train": Stage("train on preferences (with what must come before, if it is missing)", _train),
    "reward": Stage("train a reward model on the same pairs, into WORKDIR/reward; it can judge samples", _reward),
    "evaluate": Stage("held-out pairs, samples, judge and KL, into WORKDIR/evaluation.json", _evaluate),
    "sample": Stage(
        "answer prompts with the trained model, in the format that AlpacaEval reads",
        _sample,
        {
            "prompts": "JSON Lines with a column `prompt` or `instruction`; default: the prompts of data.eval",
            "output": "the file to write, .jsonl or, for AlpacaEval, .json; default: WORKDIR/samples.jsonl",
            "model": "policy, the newest checkpoint (default), or reference, the start of the training",
        },
    ),
    "export": Stage(
        "write the trained model as a Hugging Face folder, WORKDIR/export",
        _export,
        settings={"dtype": "export.dtype", "max-shard-size": "export.max_shard_size", "lora": "export.lora"},
    ),
    "report": Stage("write WORKDIR/report.html", _report),
}
"""Name on the command line -> stage. To add one: its file, a function above, and its line here."""
