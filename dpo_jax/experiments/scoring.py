"""Reward models at work: that of a run or of a folder, and the rewards of rows and of texts.

Dimension key: P slot in the pair, n rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from dpo_jax.config import Config, ExportConfig
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import UserError
from dpo_jax.experiments.rows import rules_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.mesh import constrain
from dpo_jax.models.heads import RewardModel, make_reward_model, trunk_of
from dpo_jax.networks import merge
from dpo_jax.reading import typed
from dpo_jax.runs.run import Run
from dpo_jax.runtime.translate import sized_by
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Completion, Params, Prompt, Text, TokenRow, join
from dpo_jax.weights.reward import describe_reward, load_reward

Rewards = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
"""Prompts and responses, one each, to rewards [n]."""


class RewardExperiment(TextExperiment):
    """An experiment on texts with its reward model."""

    @property
    def reward_folder(self) -> Path:
        """The folder of the reward model."""
        return self.run.reward.folder

    @cached_property
    def reward_model(self) -> RewardModel:
        """The reward model as pure functions."""
        options, model = self.config.model, self.model
        return make_reward_model(model.spec, dtype=options.dtype, remat=options.remat, lora=model.lora)

    def trained_reward(self) -> Params:
        """The reward model of the newest checkpoint; an adapter is joined to its base."""
        trained = self.restored(self.reward_folder, "reward", self.reward_model)
        return join(trunk_of(self.start_params()), trained) if self.model.lora else trained

    def merged_reward(self) -> Params:
        """The reward model of the newest checkpoint without an adapter, in float32."""
        trained, lora = self.restored(self.reward_folder, "reward", self.reward_model), self.model.lora
        if lora is None:
            return trained
        return {**merge(trunk_of(self.start_params(held=False)), trained, lora), "head": trained["head"]}

    @sized_by("reference.batch_pairs")
    def score_rewards(self, model: RewardModel, params: Params, rows: Sequence[TokenRow]) -> np.ndarray:
        """The rewards of rows under a reward model, [n, P], in their order."""
        score = jax.jit(lambda params, batch: constrain(model.rewards(params, batch), None, None))
        rewards: dict[str, np.ndarray] = {}
        for batch in self.scoring_batches(rows):
            rewards_BP = jax.device_get(score(params, self.place(batch.arrays)))
            rewards |= zip(batch.row_ids, rewards_BP, strict=False)  # pairs that only fill the batch have no id
        return np.stack([rewards[row.row_id] for row in rows])

    def judge_rewards(
        self, model: RewardModel, params: Params, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> np.ndarray:
        """The rewards of responses [n], whatever is in them, formatted and cut as rows are."""
        rows = [_answered(f"{n}", *both) for n, both in enumerate(zip(prompts, responses, strict=True), 1)]
        rules = dataclasses.replace(rules_of(self.config), special_tokens="allow")
        tokens = tokenize(rows, self.tokenizer, rules).rows
        return self.score_rewards(model, params, tokens)[:, 0]

    def other(self, config: Config) -> RewardExperiment:
        """Another experiment, on the same mesh."""
        return RewardExperiment(dataclasses.replace(config, mesh=self.config.mesh), {}, command=self.command)


def open_rewards(experiment: TextExperiment, location: str | None, *, key: str) -> Rewards:
    """The reward model of a run (by default of this one), or of a Hugging Face folder.

    That of a run formats and cuts text as in its training, one of a folder as this run does. Whether there is one is
    looked at now; its parameters are read when it judges.

    Raises:
        UserError: there is none; it names `key`, the setting.
    """
    folder = Path(location) if location else experiment.workdir
    opened = RewardExperiment(experiment.config, experiment.origins, command=experiment.command)
    if location is None or Run(folder).exists:
        owner = opened.other(_config_of(folder))
        if location is None:
            owner.sft_folder = experiment.sft_folder  # that of a point of a sweep is shared
        return lambda prompts, responses: owner.judge_rewards(
            owner.reward_model, owner.trained_reward(), prompts, responses
        )
    config = dataclasses.replace(experiment.config.model, weights=location)
    own = dataclasses.replace(experiment.config, model=config, lora=None, sft=None, export=ExportConfig())
    owner = opened.other(own)
    try:
        _ = owner.model  # has it positions enough?
        model = describe_reward(owner.source, owner.resolved, dtype=config.dtype)
    except UserError as error:
        raise UserError(f"{experiment.at(key)}: {key}: {error}") from None

    def judge(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        params = load_reward(owner.source, owner.resolved, model, owner.mesh)
        return owner.judge_rewards(model, params, prompts, responses)

    return judge


def _answered(number: str, prompt: Prompt, response: str) -> Completion:
    """A prompt and a sampled response to it, in the form of the prompt."""
    answer: Text = response if isinstance(prompt.prompt, str) else ({"role": "assistant", "content": response},)
    return Completion(number, prompt.prompt, answer, f"sample {number}", prompt.tools, prompt.chat_template_kwargs)


def _config_of(folder: Path) -> Config:
    """The configuration of the run in a folder, as it was when its reward model was trained."""
    checkpoints = Checkpoints(Run(folder).reward.checkpoints)
    step = checkpoints.latest()
    if step is None:
        raise UserError(
            f"{folder / 'reward' / 'checkpoints'}: no reward model yet; run `dpo-jax reward` with the configuration of "
            "that run first."
        )
    return dataclasses.replace(typed(Config, checkpoints.record(step)["config"], {}), workdir=str(folder))
