"""A model of preferences, trained on the pairs: its training, its held-out accuracy and its folder."""

from __future__ import annotations

from dpo_jax.commands import reference
from dpo_jax.evaluation.rewards import reward_metrics
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_json
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Trains into WORKDIR/reward, says how often it is right on held-out pairs, and exports it."""
    term = experiment.reward_term()
    check_sinks(experiment)
    if experiment.reward_needs_start:
        reference.prepare(experiment)
    fit(experiment, experiment.reward_training(term))
    if experiment.has_heldout:
        rewards_nP, losses_n = experiment.heldout_rewards(term)
        metrics = reward_metrics(rewards_nP)
        path = experiment.workdir / "reward" / "evaluation.json"
        write_json(path, {"heldout": {**metrics, "loss": float(losses_n.mean())}})
        low, high = metrics["accuracy_interval"]
        say(
            "reward",
            f"{metrics['pairs']} held-out pairs: accuracy {metrics['accuracy']:.3f} (95 % interval {low:.3f} to "
            f"{high:.3f}), margin {metrics['margin']:.3f}; wrote {path}",
        )
    else:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
    experiment.export_reward()
