"""The settings that fit into a machine, weighed by the figures of `dpo-jax plan`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dpo_jax.config import Config, LoraConfig
from dpo_jax.experiments.planned import Planned
from dpo_jax.planning.outcomes import Outcome
from dpo_jax.planning.tables import gib
from dpo_jax.planning.topologies import Machine
from dpo_jax.reading import Origins
from dpo_jax.runtime.progress import quiet
from dpo_jax.weights.opening import Outline

_SHARE = 0.8  # of the memory: the figures are an analysis, and other things want some too

Changes = Mapping[str, object]


class Fit(NamedTuple):
    """Settings that the machine holds, or the smallest of all, and what they need there."""

    changes: Changes
    outcome: Outcome
    fits: bool
    first: Outcome  # of the settings that would be taken if memory were no matter

    def in_words(self) -> str:
        """What they need, and what there is."""
        has, needs = gib(self.outcome["has"]), gib(self.outcome["needs"])
        return f"{needs} of the {has}" if self.fits else f"{needs}, and there are {has}"


def weigh(config: Config, origins: Origins, machine: Machine, outline: Outline) -> Fit:
    """Find the settings nearest to those of `config` that the machine holds.

    Raises:
        UserError: the rows, the model or the devices do not go together.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet():
        config = dataclasses.replace(config, workdir=scratch)
        planned = Planned(config, origins, command="", machine=machine)
        planned.outline = outline
        planned.fix_date()
        lengths = planned.find_lengths()
        weighed: dict[str, Outcome] = {}

        def outcome(changes: Changes) -> Outcome:
            key = f"{changes}"
            if key not in weighed:
                weighed[key] = planned.but(changes).analyse_train(lengths.data)
            return weighed[key]

        first = outcome({})
        smallest: Changes = {}
        for ladder in _ladders(config):
            smallest = ladder[-1]
            if _fits(outcome(ladder[0])) or _fits(outcome(smallest)):
                changes = next(each for each in ladder if _fits(outcome(each)))
                return Fit(changes, outcome(changes), True, first)
        return Fit(smallest, outcome(smallest), False, first)


def _fits(outcome: Outcome) -> bool:
    return outcome["needs"] is not None and outcome["needs"] <= _SHARE * outcome["has"]


def _ladders(config: Config) -> Iterator[list[Changes]]:
    """All weights, an adapter, an adapter over a base in bfloat16: each from least work to least memory."""
    batch = config.train.batch_pairs
    micro = [batch // 2**n for n in range(1, 10) if batch % 2**n == 0]
    steps: list[Changes] = [{}, {"model.remat": "dots"}, {"model.remat": "full"}]
    steps += [{"model.remat": "full", "train.micro_batch_pairs": pairs} for pairs in micro]
    bases: list[Changes] = [{}, {"lora": LoraConfig()}]
    if config.model.dtype == "float32":
        bases.append({"lora": LoraConfig(), "model.dtype": "bfloat16"})
    for base in bases:
        yield [{**base, **step} for step in steps]
