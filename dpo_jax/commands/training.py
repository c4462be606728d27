"""The commands that train, each after what must come before it: fine-tuning, reference pass, policy, reward model."""

from __future__ import annotations

import dataclasses
import json

from dpo_jax.errors import UserError
from dpo_jax.evaluation.heldout import reward_metrics
from dpo_jax.evaluation.intervals import in_words, mean_interval
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.experiments.steps import Start, Steps
from dpo_jax.experiments.stores import complete_store, score_again
from dpo_jax.experiments.training import check_sinks, fit
from dpo_jax.files import named_output, write_atomic, write_json
from dpo_jax.runtime.progress import say


def sft(experiment: Steps) -> None:
    """Fine-tune, or pre-train, into WORKDIR/sft; do nothing where that is done."""
    if experiment.config.sft is None:
        raise UserError("sft: the configuration has no `sft:` section, which would say what to train on first.")
    check_sinks(experiment.config.logging, experiment.origins)
    experiment.check_inputs()
    experiment.prepare()
    fit(experiment, experiment.sft_training())


def prepare_start(experiment: Steps) -> None:
    """Fine-tune and make pairs, where the configuration asks for that and it is not done: the start of all else."""
    if experiment.config.sft:
        experiment.before_sft()
        sft(experiment)
    experiment.make_missing_pairs()


def reference(experiment: Steps, *, jsonl: str | None = None, verify: str | None = None) -> None:
    """Complete the store; with `jsonl`, also write the scores of the training rows, in data order.

    `verify` is how many rows, drawn by the seed, are scored once more and compared.
    """
    if verify is not None and not (verify.isdecimal() and int(verify)):
        raise UserError(f"command line: --verify {verify!r}: give the number of rows to score again, such as 100.")
    if reason := experiment.why_no_store():
        raise UserError(f"reference: nothing to store: {reason}.")
    output = jsonl and named_output("--jsonl", jsonl)
    experiment.check_inputs()
    prepare_start(experiment)
    params = Start(experiment.load_start)
    store = complete_store(experiment, params)
    if output:
        lines = experiment.score_lines(store)
        write_atomic(output, "".join(json.dumps(line) + "\n" for line in lines))
        say("reference", f"wrote {len(lines)} rows to {jsonl}")
    if verify:
        score_again(experiment, store, params(), int(verify))


def train(experiment: Steps) -> None:
    """Train the policy into WORKDIR, after fine-tuning, pairs and reference pass where they are missing."""
    experiment.check_inputs()
    experiment.prepare()
    check_sinks(experiment.config.logging, experiment.origins)
    experiment.check()
    prepare_start(experiment)
    experiment.read_all()  # a bad row is told before hours of scoring and training
    start = Start(experiment.load_start)
    store = complete_store(experiment, start) if experiment.reads_store else None
    experiment.warn_of_data()
    fit(experiment, experiment.training(store, start))


def reward(experiment: Steps) -> None:
    """Train into WORKDIR/reward, say how often it is right on held-out pairs, and export it."""
    term = experiment.reward_term()
    experiment.check_exports()
    check_sinks(experiment.config.logging, experiment.origins)
    experiment.check_inputs()
    if experiment.reward_needs_start:
        experiment.before_sft()
        prepare_start(experiment)
    experiment.check_reward()
    fit(experiment, experiment.reward_training(term))
    if experiment.has_heldout:
        rewards_nP, losses_n = experiment.heldout_rewards(term)
        groups = experiment.heldout_groups()
        heldout = dataclasses.replace(
            reward_metrics(rewards_nP, groups),
            loss=float(losses_n.mean()),
            loss_interval=mean_interval(losses_n, groups),
        )
        path = experiment.run.reward.evaluation
        write_json(path, Evaluation(**experiment.run.reward.measured(), heldout=heldout).to_json())
        say(
            "reward",
            f"{heldout.pairs} held-out pairs: accuracy {heldout.accuracy:.3f} "
            f"({in_words(heldout.accuracy_interval, '.3f')}), margin {heldout.margin:.3f} "
            f"({in_words(heldout.margin_interval, '.3f')}); wrote {path}",
        )
    else:
        say("reward", "no held-out accuracy: the configuration names no held-out pairs (data.eval)")
    experiment.export_reward()
