"""A scorer of preferences, trained on the pairs; it can judge samples, and rank them into new pairs.

Dimension key: n rows, P members.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.commands.pictures import reference
from dpo_jax.commands.pictures.sft import batches_of
from dpo_jax.errors import UserError
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.losses import read_term
from dpo_jax.experiments.picture_judging import in_parts, members, scorer_of
from dpo_jax.experiments.picture_model import ScorerModel
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.experiments.training import make_training
from dpo_jax.files import write_json
from dpo_jax.losses import Loss, preference_score
from dpo_jax.objectives.diffusion import pixels, scoring_objective
from dpo_jax.objectives.terms import Term
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings


def check(experiment: PictureExperiment) -> Term:
    """The loss and its options.

    Raises:
        UserError: the configuration asks for no scorer, or for one that cannot be.
    """
    config = experiment.config.reward
    if config is None:
        raise UserError(
            "reward: the configuration has no `reward:` section, which would say how to train a scorer; "
            "`reward: {train: {epochs: 10}}` is enough."
        )
    if experiment.is_labelled:
        raise UserError(
            f"{experiment.at('loss')}: reward: a scorer learns from pairs, and the loss reads labelled samples."
        )
    return read_term(
        "preference_score",
        Loss(preference_score),
        config.options,
        lambda name: f"{experiment.at(f'reward.options.{name}')}: reward",
    )


def run(experiment: PictureExperiment) -> None:
    """Trains into WORKDIR/reward, then says how often it is right on held-out pairs."""
    term, config = check(experiment), experiment.config
    assert config.reward is not None
    if config.pairs:  # else a scorer needs no model
        reference.prepare(experiment)
    scorer = scorer_of(experiment, config.reward)
    model, folder = ScorerModel(scorer), experiment.workdir / "reward"
    born = jax.jit(scorer.init, out_shardings=param_shardings(experiment.mesh, *model.tree))
    training = make_training(
        config.reward,
        stage="reward",
        folder=folder,
        model=model,
        start=lambda: born(jax.random.key(config.seed)),
        objective=scoring_objective(scorer),
        batches=batches_of(experiment.train_data.rows, config.reward.train, seed=config.seed, order=config.data.order),
        hyperparams=lambda step: {"options": term.knobs(step)},
        seed=config.seed,
    )
    fit(experiment, training)
    if experiment.eval_data is None:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
        return
    params = experiment.restored(folder, "reward", model)
    score = jax.jit(lambda samples: scorer.scores(params, pixels(samples)))
    rows = experiment.eval_data.rows
    scores_nP = np.stack([in_parts(score, members(rows, slot)) for slot in (0, 1)], axis=1)
    losses_n = preference_score(*jnp.asarray(scores_nP.T), **term.knobs(0))
    found = reward_metrics(scores_nP)
    write_json(folder / "evaluation.json", {"heldout": {**found, "loss": float(losses_n.mean())}})
    low, high = found["accuracy_interval"]
    say(
        "reward",
        f"{found['pairs']} held-out pairs: accuracy {found['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}); "
        f"wrote {folder / 'evaluation.json'}",
    )
