"""A Bradley-Terry reward model on the preference rows: its training, its held-out accuracy and its folder.

Dimension key: B pairs, P slot in the pair, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import file_bytes
from dpo_jax.data.batches import Batches
from dpo_jax.errors import UserError
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.files import write_json
from dpo_jax.losses import bradley_terry
from dpo_jax.models.heads import RewardModel, trunk_of
from dpo_jax.models.lora import join
from dpo_jax.reading import locate
from dpo_jax.stages import reference
from dpo_jax.stages.fit import fit
from dpo_jax.stages.objectives import pair_means
from dpo_jax.stages.progress import say
from dpo_jax.stages.rows import DataRows
from dpo_jax.stages.scoring import merged_reward, reward_folder, reward_model, score_rewards, trained_reward
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.terms import Term, is_unpaired, read_term
from dpo_jax.training.state import param_shardings
from dpo_jax.training.step import Counts, Knobs, Objective
from dpo_jax.types import Metrics, PairBatch, Params
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
    return read_term(
        "bradley_terry",
        bradley_terry,
        config.options,
        lambda name: f"{locate(f'reward.options.{name}', origins)}: reward",
    )


def reward_objective(model: RewardModel, sources: Sequence[str] = ()) -> Objective:
    """The Bradley-Terry loss, meant over the pairs of the batch; a pair's own margin is added to that of the options.

    `sources` are the names of the data's sources, for metrics of each.
    """

    def weigh(batch: PairBatch) -> Counts:
        return {"pairs": batch.weight_B.sum()}

    def forward(params: Params, frozen: Params | None, batch: PairBatch, key: jax.Array) -> jax.Array:
        whole = params if frozen is None else join(jax.lax.stop_gradient(frozen), params)
        return model.rewards(whole, batch, key if model.lora else None)

    def loss(
        rewards_BP: jax.Array, batch: PairBatch, knobs: Knobs, counts: Counts, memory: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics, Any]:
        chosen_B, rejected_B = rewards_BP[:, 0], rewards_BP[:, 1]
        losses_B = bradley_terry(chosen_B, rejected_B, **_with_margins(knobs["options"], batch.margin_B))
        if batch.loss_weight_B is not None:
            losses_B *= batch.loss_weight_B
        watched = {
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "rewards/margins": chosen_B - rejected_B,
            "rewards/accuracies": (chosen_B > rejected_B).astype(chosen_B.dtype),
        }
        metrics = pair_means(jax.lax.stop_gradient(watched), batch, sources)
        return (losses_B * batch.weight_B).sum() / counts["pairs"], metrics, memory

    return Objective(weigh, forward, loss)


def _with_margins(options: dict[str, Any], margin_B: Any) -> dict[str, Any]:
    return options if margin_B is None else {**options, "margin": options["margin"] + margin_B}


def _columns(data: DataRows) -> dict[str, np.ndarray]:
    """What rows bring, by its name in a batch.

    Raises:
        UserError: soft labels, which the loss cannot read.
    """
    if data.soft_label_B is not None:
        raise UserError(
            "reward: data.train has soft labels, which a reward model cannot read. Take the column soft_label out of "
            "the rows."
        )
    several = data.source_B if len(data.sources) > 1 else None
    given = {"loss_weight_B": data.weight_B, "margin_B": data.margin_B, "source_B": several}
    return {name: values for name, values in given.items() if values is not None}


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
        unpack=setup.unpack,
        columns=_columns(setup.train_data),
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
        objective=reward_objective(model, setup.train_data.sources),
        batches=batches,
        optimizer=config.reward.optimizer,
        train=train,
        knobs=lambda step: {"options": term.knobs(step)},
    )


def _evaluate(setup: Setup, term: Term) -> None:
    if not setup.config.data.eval:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
        return
    data = setup.eval_data
    rewards_nP = score_rewards(setup, reward_model(setup), trained_reward(setup), data.rows)
    found = reward_metrics(rewards_nP)
    losses_n = bradley_terry(*jnp.asarray(rewards_nP.T), **_with_margins(term.knobs(0), data.margin_B))
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
