"""A Bradley-Terry reward model on the preference rows: its training, its held-out accuracy and its folder.

Dimension key: B pairs, P slot in the pair, n rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.commands import reference
from dpo_jax.config import file_bytes
from dpo_jax.errors import UserError
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.losses import is_unpaired, read_term
from dpo_jax.experiments.rows import DataRows
from dpo_jax.experiments.scoring import merged_reward, reward_folder, reward_model, score_rewards, trained_reward
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import batches_of, make_training, present, several
from dpo_jax.files import write_json
from dpo_jax.losses import Loss, bradley_terry
from dpo_jax.models.heads import trunk_of
from dpo_jax.objectives.reward import reward_objective, with_margins
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import locate
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings
from dpo_jax.types import Params
from dpo_jax.weights.reward import export_reward


def run(experiment: TextExperiment) -> None:
    """Trains into WORKDIR/reward, from where the policy starts; then held-out accuracy, and the Hugging Face folder."""
    term = check(experiment)
    reference.fine_tune_first(experiment)
    _train(experiment, term)
    _evaluate(experiment, term)
    _export(experiment)


def check(experiment: TextExperiment) -> Term:
    """The loss and its options.

    Raises:
        UserError: the configuration asks for no reward model, or for one that cannot be.
    """
    config, origins = experiment.config.reward, experiment.origins
    if config is None:
        raise UserError(
            "reward: the configuration has no `reward:` section, which would say how to train a reward model; "
            "`reward: {train: {epochs: 1}}` is enough."
        )
    if is_unpaired(experiment.config.loss):
        raise UserError(
            f"{locate('loss', origins)}: reward: a reward model learns from pairs, but with loss "
            f"{experiment.config.loss[0].name} the rows are labelled completions. Name a loss on pairs."
        )
    return read_term(
        "bradley_terry",
        Loss(bradley_terry),
        config.options,
        lambda name: f"{locate(f'reward.options.{name}', origins)}: reward",
    )


def _columns(data: DataRows) -> Mapping[str, np.ndarray]:
    """What rows bring, by its name in a batch.

    Raises:
        UserError: soft labels, which the loss cannot read.
    """
    if data.soft_label_B is not None:
        raise UserError(
            "reward: data.train has soft labels, which a reward model cannot read. Take the column soft_label out of "
            "the rows."
        )
    return present(loss_weight_B=data.weight_B, margin_B=data.margin_B, source_B=several(data))


def _train(experiment: TextExperiment, term: Term) -> None:
    config, model = experiment.config, reward_model(experiment)
    assert config.reward is not None
    head_key, adapter_key = jax.random.split(jax.random.key(config.seed))

    def start() -> Params:
        trunk = model.trunk.init_adapter(adapter_key) if model.lora else trunk_of(experiment.start_params())
        return jax.device_put({**trunk, **model.init_head(head_key)}, param_shardings(experiment.mesh, *model.trained))

    data = experiment.train_data
    training = make_training(
        config.reward,
        stage="reward",
        folder=reward_folder(experiment),
        model=model,
        objective=reward_objective(model.rewards, adapter=model.lora is not None, sources=data.sources),
        batches=batches_of(experiment, config.reward.train, data.rows, seed=config.seed, columns=_columns(data)),
        start=start,
        frozen=(lambda: trunk_of(experiment.start_params())) if model.lora else None,
        hyperparams=lambda step: {"options": term.knobs(step)},
        seed=config.seed,
    )
    fit(experiment, training)


def _evaluate(experiment: TextExperiment, term: Term) -> None:
    if not experiment.config.data.eval:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
        return
    data = experiment.eval_data
    rewards_nP = score_rewards(experiment, reward_model(experiment), trained_reward(experiment), data.rows)
    found = reward_metrics(rewards_nP)
    losses_n = bradley_terry(*jnp.asarray(rewards_nP.T), **with_margins(term.knobs(0), data.margin_B))
    path = reward_folder(experiment) / "evaluation.json"
    write_json(path, {"heldout": {**found, "loss": float(losses_n.mean())}})
    low, high = found["accuracy_interval"]
    say(
        "reward",
        f"{found['pairs']} held-out pairs: accuracy {found['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"margin {found['margin']:.3f}; wrote {path}",
    )


def _export(experiment: TextExperiment) -> None:
    options, folder = experiment.config.export, reward_folder(experiment) / "export"
    can_pad = export_reward(
        folder,
        merged_reward(experiment),
        reward_model(experiment),
        experiment.source,
        ends={int(response[-1]) for row in experiment.train_data.rows for response in row.responses},
        dtype=options.dtype,
        max_shard_bytes=file_bytes(options.max_shard_size),
    )
    alone = "" if can_pad else "; its tokenizer has no token to pad with, so score one sequence at a time"
    say("reward", f"wrote {folder} ({options.dtype}, for AutoModelForSequenceClassification{alone})")
