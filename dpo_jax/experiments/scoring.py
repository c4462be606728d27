"""Reward models at work: that of a run or of a folder, and the rewards of rows and of texts.

Dimension key: P slot in the pair, n rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from dpo_jax.config import Config
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import UserError
from dpo_jax.experiments.rows import rules_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.mesh import constrain
from dpo_jax.models.heads import RewardModel, make_reward_model, trunk_of
from dpo_jax.models.lora import merge
from dpo_jax.reading import locate, typed
from dpo_jax.runtime.translate import sized_by
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Completion, Params, Prompt, Text, TokenRow, join
from dpo_jax.weights.reward import describe_reward, load_reward

Rewards = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
"""Prompts and responses, one each, to rewards [n]."""


def reward_folder(experiment: TextExperiment) -> Path:
    """Where the reward model of a run lies."""
    return experiment.workdir / "reward"


def reward_model(experiment: TextExperiment) -> RewardModel:
    """The reward model of a run as pure functions."""
    options = experiment.config.model
    return make_reward_model(
        experiment.model.spec, dtype=options.dtype, remat=options.remat, lora=experiment.model.lora
    )


def trained_reward(experiment: TextExperiment) -> Params:
    """The reward model of the newest checkpoint; an adapter is joined to its base."""
    found = experiment.restored(reward_folder(experiment), "reward", reward_model(experiment))
    return join(trunk_of(experiment.start_params()), found) if experiment.model.lora else found


def merged_reward(experiment: TextExperiment) -> Params:
    """The same without an adapter, in float32."""
    found, lora = (
        experiment.restored(reward_folder(experiment), "reward", reward_model(experiment)),
        experiment.model.lora,
    )
    return (
        {**merge(trunk_of(experiment.start_params(held=False)), found, lora), "head": found["head"]} if lora else found
    )


@sized_by("reference.batch_pairs")
def score_rewards(
    experiment: TextExperiment, model: RewardModel, params: Params, rows: Sequence[TokenRow]
) -> np.ndarray:
    """The rewards of rows, [n, P], in their order."""
    score = jax.jit(lambda params, batch: constrain(model.rewards(params, batch), None, None))
    found: dict[str, np.ndarray] = {}
    for batch in experiment.scoring_batches(rows):
        rewards_BP = jax.device_get(score(params, experiment.place(batch.arrays)))
        found |= zip(batch.row_ids, rewards_BP, strict=False)  # pairs that only fill the batch have no id
    return np.stack([found[row.row_id] for row in rows])


def open_rewards(experiment: TextExperiment, location: str | None, *, key: str) -> Rewards:
    """The reward model of a run (by default of this one), or of a Hugging Face folder.

    That of a run formats and cuts text as in its training, one of a folder as this run does. Whether there is one is
    looked at now; its parameters are read when it judges.

    Raises:
        UserError: there is none; it names `key`, the setting.
    """
    folder = Path(location) if location else experiment.workdir
    if location is None or (folder / "config.yaml").exists() or (folder / "reward").exists():
        run = _run_in(experiment, folder)
        return lambda prompts, responses: _judge(run, reward_model(run), trained_reward(run), prompts, responses)
    config = dataclasses.replace(experiment.config.model, weights=location)
    own = _beside(experiment, dataclasses.replace(experiment.config, model=config, lora=None, sft=None))
    try:
        _ = own.model  # has it positions enough?
        model = describe_reward(own.source, own.resolved, dtype=config.dtype)
    except UserError as error:
        raise UserError(f"{locate(key, experiment.origins)}: {key}: {error}") from None

    def judge(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        return _judge(own, model, load_reward(own.source, own.resolved, model, own.mesh), prompts, responses)

    return judge


def _judge(
    experiment: TextExperiment, model: RewardModel, params: Params, prompts: Sequence[Prompt], responses: Sequence[str]
) -> np.ndarray:
    rows = [_answered(f"{n}", *both) for n, both in enumerate(zip(prompts, responses, strict=True), 1)]
    # What a model wrote is judged whatever it is.
    tokens = tokenize(rows, experiment.tokenizer, **{**rules_of(experiment.config), "special_tokens": "allow"}).rows
    return score_rewards(experiment, model, params, tokens)[:, 0]


def _answered(number: str, prompt: Prompt, response: str) -> Completion:
    """A prompt and a sampled response to it, in the form of the prompt."""
    answer: Text = response if isinstance(prompt.prompt, str) else ({"role": "assistant", "content": response},)
    return Completion(number, prompt.prompt, answer, f"sample {number}", prompt.tools, prompt.chat_template_kwargs)


def _run_in(experiment: TextExperiment, folder: Path) -> TextExperiment:
    """The run in a folder, as it was when its reward model was trained."""
    checkpoints = Checkpoints(folder / "reward" / "checkpoints")
    step = checkpoints.latest()
    if step is None:
        raise UserError(
            f"{folder / 'reward' / 'checkpoints'}: no reward model yet; run `dpo-jax reward` with the configuration of "
            "that run first."
        )
    config = typed(Config, checkpoints.record(step)["config"], {})
    return _beside(experiment, dataclasses.replace(config, workdir=str(folder)))


def _beside(experiment: TextExperiment, config: Config) -> TextExperiment:
    return TextExperiment(dataclasses.replace(config, mesh=experiment.config.mesh), {}, command=experiment.command)
