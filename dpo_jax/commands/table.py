"""The commands: their help, their flags, and what runs them on an opened experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from dpo_jax import config
from dpo_jax.reading import Origins

Runner = Callable[..., None]
"""Runs a command: `runner(experiment, **flags)`."""


class Command(NamedTuple):
    """One command: what it does, where its runner is, its own flags, and short names of settings.

    A flag, a switch, which takes no value, and a list, which may be given again and again, have their help; a short
    name has the key of the configuration that it sets. What is `dry` makes no working directory. `kinds` are those of
    experiments that have it. `sections` of the configuration are those whose settings its help lists; None: all. `read`
    is what opens the file that it is given, which `named` describes.
    """

    help: str
    load: Callable[[], Runner]
    flags: Mapping[str, str] = {}
    settings: Mapping[str, str] = {}
    switches: Mapping[str, str] = {}
    lists: Mapping[str, str] = {}
    dry: bool = False
    kinds: frozenset[str] = frozenset({"texts", "pictures"})
    sections: frozenset[str] | None = None
    read: Callable[[str, Sequence[str]], tuple[config.AnyConfig, Origins]] = config.load
    named: str = "an experiment file"


_TEXTS = frozenset({"texts"})
_START = frozenset(["workdir", "seed", "pictures", "model", "scratch", "data", "sft", "mesh", "logging", "profile"])
_SCORED = _START | frozenset(["loss", "lora", "reference", "tiles"])
_JUDGED = _SCORED | frozenset(["evaluation", "sampling"])


# The imports happen when a command is called, so that `dpo-jax --help` needs none of them.
def _training() -> ModuleType:
    from dpo_jax.commands import training

    return training


def _results() -> ModuleType:
    from dpo_jax.commands import results

    return results


def _run() -> Runner:
    from dpo_jax.commands.run import run

    return run


def _sweep() -> Runner:
    from dpo_jax.commands.sweep import run

    return run


def _plan() -> Runner:
    from dpo_jax.commands.plan import run

    return run


def _chat() -> Runner:
    from dpo_jax.commands.chat import run

    return run


def _check_data() -> Runner:
    from dpo_jax.commands.report import check_data

    return check_data


def _report() -> Runner:
    from dpo_jax.commands.report import run

    return run


COMMANDS: dict[str, Command] = {
    "run": Command("all that the configuration asks for, in order", _run),
    "scratch": Command(
        "make a small model from nothing, a tokenizer and random weights, at model.weights",
        lambda: lambda experiment: experiment.make_scratch(),
        kinds=_TEXTS,
        sections=frozenset({"workdir", "seed", "model", "scratch"}),
    ),
    "sft": Command(
        "supervised fine-tuning, the start of the policy and the reference",
        lambda: _training().sft,
        sections=_START | {"tiles"},
    ),
    "check-data": Command(
        "what is in the data, and what is odd about it, into WORKDIR/data.html",
        _check_data,
        sections=_START | {"loss"},
    ),
    "reference": Command(
        "score every row with the frozen reference, into the store",
        lambda: _training().reference,
        {
            "jsonl": "also write the scores, one object per data row, to this file",
            "verify": "score so many rows of the store once more and say by how much they differ",
        },
        sections=_SCORED,
    ),
    "train": Command(
        "train on preferences (with what must come before, if it is missing)",
        lambda: _training().train,
        sections=_JUDGED | {"optimizer", "train", "pairs"},
    ),
    "reward": Command(
        "train a reward model on the same pairs, into WORKDIR/reward; it can judge samples",
        lambda: _training().reward,
        sections=_JUDGED | {"reward", "pairs"},
    ),
    "evaluate": Command(
        "held-out pairs, samples, judge and KL, into WORKDIR/evaluation.json",
        lambda: _results().evaluate,
        sections=_JUDGED,
    ),
    "analyse": Command(
        "why log-probs moved as they did, pair by pair, into WORKDIR/analysis.json",
        lambda: _results().analyse,
        kinds=_TEXTS,
        sections=_SCORED | {"optimizer", "train", "analysis"},
    ),
    "sample": Command(
        "answer prompts with the trained model, in the format that AlpacaEval reads",
        lambda: _results().sample,
        {
            "prompts": "JSON Lines with a column `prompt` or `instruction`; default: the prompts of data.eval",
            "output": "the file to write, .jsonl or, for AlpacaEval, .json; default: WORKDIR/samples.jsonl",
            "model": "policy, the newest checkpoint (default), or reference, the start of the training",
        },
        sections=_START | {"lora", "sampling", "tiles"},
    ),
    "chat": Command(
        "talk to the policy and the reference side by side, or to any model, line by line",
        _chat,
        {"model": "both (default), policy, the newest checkpoint, or reference, the start of the training"},
        settings={
            "temperature": "sampling.temperature",
            "top-p": "sampling.top_p",
            "top-k": "sampling.top_k",
            "max-new-tokens": "sampling.max_new_tokens",
        },
        dry=True,
        kinds=_TEXTS,
        sections=_START | {"lora", "sampling", "tiles"},
        read=config.load_or_make,
        named="an experiment file, or a model: a folder, a hub id, a .gguf file, package:NAME",
    ),
    "pairs": Command(
        "answer prompts several times, judge the answers, and write the better and the worse ones as new pairs",
        lambda: lambda experiment, output: experiment.write_pairs(output),
        {"output": "the file to write; default: WORKDIR/pairs.jsonl"},
        sections=_JUDGED | {"pairs"},
    ),
    "export": Command(
        "write the trained model as a Hugging Face folder, WORKDIR/export",
        lambda: _results().export,
        settings={"dtype": "export.dtype", "max-shard-size": "export.max_shard_size", "lora": "export.lora"},
        switches={
            "fine-tuned": "write the result of the fine-tuning instead, into WORKDIR/sft/export",
            "base": "write the weights before any training instead, into WORKDIR/base: of an adapter the base",
        },
        sections=_START | {"lora", "export"},
    ),
    "plan": Command(
        "compile the reference pass and the step for a machine that is not here, and say what they need",
        _plan,
        {
            "topology": "the machine: v5e:16x16, v5p:4x4x4, v6e:4x4, v4:2x2x2 (with libtpu); gpu:8, h200:8 by analysis",
            "json": "also write the figures to this file",
            "mfu": "share of the chips' peak for which pairs per second are said; default 0.4",
            "seconds": "no alternative is begun that would end later; default 180, 0 for none",
        },
        switches={
            "search": "find the largest train.micro_batch_pairs that fits, by bisection",
            "full": "compile at full effort, as a run does: minutes instead of seconds",
        },
        dry=True,
        kinds=_TEXTS,
        sections=_SCORED | {"optimizer", "train"},
    ),
    "sweep": Command(
        "train and evaluate every combination of some settings, into one table and one plot",
        _sweep,
        lists={"grid": "KEY=VALUE,VALUE,... to vary, such as loss.options.beta=0.1,0.5; default: the section `sweep`"},
        switches={"lean": "delete the checkpoints of each point once it is evaluated"},
    ),
    "report": Command(
        "write WORKDIR/report.html, or, of several runs, WORKDIR/comparison.html",
        _report,
        lists={"compare": "the WORKDIR or the configuration of a run to show beside this one; once for each"},
        sections=_START | {"evaluation"},
    ),
}
"""Name on the command line -> command. To add one: its function, and its line here."""
