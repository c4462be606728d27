"""A model of preferences, trained on the pairs: its training, its held-out accuracy and its folder."""

from __future__ import annotations

import dataclasses

from dpo_jax.commands import reference
from dpo_jax.evaluation.intervals import in_words
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_json
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Trains into WORKDIR/reward, says how often it is right on held-out pairs, and exports it."""
    term = experiment.reward_term()
    check_sinks(experiment.config.logging, experiment.origins)
    if experiment.reward_needs_start:
        reference.prepare(experiment)
    fit(experiment, experiment.reward_training(term))
    if experiment.has_heldout:
        rewards_nP, losses_n = experiment.heldout_rewards(term)
        heldout = dataclasses.replace(reward_metrics(rewards_nP), loss=float(losses_n.mean()))
        path = experiment.run.reward.evaluation
        write_json(path, Evaluation(heldout=heldout).to_json())
        say(
            "reward",
            f"{heldout.pairs} held-out pairs: accuracy {heldout.accuracy:.3f} "
            f"({in_words(heldout.accuracy_interval, '.3f')}), margin {heldout.margin:.3f}; wrote {path}",
        )
    else:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
    experiment.export_reward()
