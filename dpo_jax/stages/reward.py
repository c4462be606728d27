"""A Bradley-Terry reward model on the preference rows: its training, its held-out accuracy and its folder.

Dimension key: B pairs, P slot in the pair, n rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.config import file_bytes
from dpo_jax.data.batches import Batches
from dpo_jax.errors import UserError
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.files import write_json
from dpo_jax.losses import Loss, bradley_terry
from dpo_jax.losses.knobs import knobs
from dpo_jax.models.heads import RewardModel, trunk_of
from dpo_jax.models.lora import join
from dpo_jax.reading import locate
from dpo_jax.stages import reference
from dpo_jax.stages.fit import fit
from dpo_jax.stages.progress import say
from dpo_jax.stages.scoring import merged_reward, reward_folder, reward_model, score_rewards, trained_reward
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.terms import Term, is_unpaired, read_options
from dpo_jax.training.state import param_shardings
from dpo_jax.training.step import Counts, Knobs, Objective
from dpo_jax.types import Mean, Metrics, PairBatch, Params
from dpo_jax.weights.reward import export_reward


def run(setup: Setup) -> None:
    """Trains into WORKDIR/reward, from where the policy starts; then held-out accuracy, and the Hugging Face folder."""
    term = check(setup)
    reference.fine_tune_first(setup)
    _train(setup, term)
    _evaluate(setup, term)
    _export(setup)


def check(setup: Setup) -> Term:
    """The loss and its options.

    Raises:
        UserError: the configuration asks for no reward model, or for one that cannot be.
    """
    config, origins = setup.config.reward, setup.origins
    if config is None:
        raise UserError(
            "reward: the configuration has no `reward:` section, which would say how to train a reward model; "
            "`reward: {train: {epochs: 1}}` is enough."
        )
    if is_unpaired(setup.config.loss):
        raise UserError(
            f"{locate('loss', origins)}: reward: a reward model learns from pairs, but with loss "
            f"{setup.config.loss[0].name} the rows are labelled completions. Name a loss on pairs."
        )
    static, numbers = read_options(
        "bradley_terry",
        knobs(bradley_terry),
        config.options,
        lambda name: f"{locate(f'reward.options.{name}', origins)}: reward",
    )
    return Term("bradley_terry", Loss(bradley_terry), 1.0, static, numbers)


def reward_objective(model: RewardModel) -> Objective:
    """The Bradley-Terry loss, meant over the pairs of the batch."""

    def weigh(batch: PairBatch) -> Counts:
        return {"pairs": batch.weight_B.sum()}

    def forward(params: Params, frozen: Params | None, batch: PairBatch, key: jax.Array) -> jax.Array:
        whole = params if frozen is None else join(jax.lax.stop_gradient(frozen), params)
        return model.rewards(whole, batch, key if model.lora else None)

    def loss(
        rewards_BP: jax.Array, batch: PairBatch, knobs: Knobs, counts: Counts, memory: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics, Any]:
        chosen_B, rejected_B = rewards_BP[:, 0], rewards_BP[:, 1]
        losses_B = bradley_terry(chosen_B, rejected_B, **knobs["options"])
        watched = {
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "rewards/margins": chosen_B - rejected_B,
            "rewards/accuracies": (chosen_B > rejected_B).astype(chosen_B.dtype),
        }
        metrics = {
            name: Mean((value_B * batch.weight_B).sum(), batch.weight_B.sum())
            for name, value_B in jax.lax.stop_gradient(watched).items()
        }
        return (losses_B * batch.weight_B).sum() / counts["pairs"], metrics, memory

    return Objective(weigh, forward, loss)


def _train(setup: Setup, term: Term) -> None:
    config, model = setup.config, reward_model(setup)
    assert config.reward is not None
    train = config.reward.train
    batches = Batches(
        setup.train_data.rows,
        batch_pairs=train.batch_pairs,
        micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
        seed=config.seed,
        order=config.data.order,
        row_multiple=setup.row_multiple,
        layout=config.data.layout,
    )
    head_key, adapter_key = jax.random.split(jax.random.key(config.seed))

    def start() -> Params:
        trunk = model.trunk.init_adapter(adapter_key) if model.lora else trunk_of(setup.start_params())
        return jax.device_put({**trunk, **model.init_head(head_key)}, param_shardings(setup.mesh, *model.trained))

    fit(
        setup,
        stage="reward",
        folder=reward_folder(setup),
        model=model,
        start=start,
        frozen=(lambda: trunk_of(setup.start_params())) if model.lora else None,
        objective=reward_objective(model),
        batches=batches,
        optimizer=config.reward.optimizer,
        train=train,
        knobs=lambda step: {"options": term.knobs(step)},
    )


def _evaluate(setup: Setup, term: Term) -> None:
    if not setup.config.data.eval:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
        return
    rewards_nP = score_rewards(setup, reward_model(setup), trained_reward(setup), setup.eval_data.rows)
    found = reward_metrics(rewards_nP)
    losses_n = bradley_terry(jnp.asarray(rewards_nP[:, 0]), jnp.asarray(rewards_nP[:, 1]), **term.knobs(0))
    path = reward_folder(setup) / "evaluation.json"
    write_json(path, {"heldout": {**found, "loss": float(losses_n.mean())}})
    low, high = found["accuracy_interval"]
    say(
        "reward",
        f"{found['pairs']} held-out pairs: accuracy {found['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"margin {found['margin']:.3f}; wrote {path}",
    )


def _export(setup: Setup) -> None:
    options, folder = setup.config.export, reward_folder(setup) / "export"
    can_pad = export_reward(
        folder,
        merged_reward(setup),
        reward_model(setup),
        setup.source,
        ends={int(response[-1]) for row in setup.train_data.rows for response in row.responses},
        dtype=options.dtype,
        max_shard_bytes=file_bytes(options.max_shard_size),
    )
    alone = "" if can_pad else "; its tokenizer has no token to pad with, so score one sequence at a time"
    say("reward", f"wrote {folder} ({options.dtype}, for AutoModelForSequenceClassification{alone})")
