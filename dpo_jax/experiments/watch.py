"""Measurements while a policy trains on texts: held-out rows, samples, and the KL that `alpha: auto` follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import jax
import numpy as np

from dpo_jax.config import SamplingConfig
from dpo_jax.experiments.heldout import heldout
from dpo_jax.experiments.stores import heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_atomic
from dpo_jax.mesh import place
from dpo_jax.objectives.terms import KlBudget
from dpo_jax.reference.store import Store
from dpo_jax.runtime.progress import say
from dpo_jax.training.loop import After
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params

Watch = Callable[[int, TrainState], dict[str, float]]
"""Steps done and state -> numbers for the metrics, none where nothing is due."""


def make_callback(experiment: TextExperiment, store: Store | None, steps: int) -> After:
    """The callback after each of `steps` steps: steers alpha, and measures where the configuration asks for that."""
    again = cache(experiment.start_params)

    def before(state: TrainState) -> Params:
        return state.frozen or {} if experiment.model.lora else again()

    steer, watch = _steer_alpha(experiment, before, steps), _make_watch(experiment, store, before)

    def callback(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        state, numbers = steer(done, state) if steer else (state, {})
        return state, numbers | watch(done, state)

    return callback


def _make_watch(experiment: TextExperiment, store: Store | None, before: Callable[[TrainState], Params]) -> Watch:
    """Every `evaluation.every` steps held-out metrics as `eval/NAME`, and samples into WORKDIR/samples/STEP.jsonl.

    `before` gives the parameters of the reference.
    """
    options = experiment.config.evaluation
    stores = [store] if store else []
    sample = _make_sampler(experiment) if options.every and options.watched else None

    def watch(done: int, state: TrainState) -> dict[str, float]:
        if not options.every or done % options.every:
            return {}
        if not stores:
            stores.append(heldout_store(experiment, lambda: before(state)))
        policy = experiment.policy_of(state)
        measured = heldout(
            experiment.eval_data, experiment.terms, experiment.scorer, stores[0], policy, state.loss_state
        )
        numbers = {f"eval/{name}": value for name, value in measured.to_json().items() if isinstance(value, float)}
        return numbers | (sample(done, policy) if sample else {})

    return watch


def _make_sampler(experiment: TextExperiment) -> Callable[[int, Params], dict[str, float]]:
    """Writes the same prompts' responses at each call, drawn by the same key, and says how long they are."""
    options = experiment.config.evaluation
    prompts = experiment.eval_data.prompts[: options.watched]
    sample = experiment.evaluation_sampler(prompts)

    def write(done: int, params: Params) -> dict[str, float]:
        samples = sample(params, jax.random.key(experiment.config.seed))
        lines = [
            json.dumps({"step": done, "instruction": prompt.text, "output": text}) + "\n"
            for prompt, text in zip(prompts, samples.texts, strict=True)
        ]
        write_atomic(experiment.run.samples_folder / f"{done:06}.jsonl", "".join(lines))
        tokens = sum(len(row.responses[0]) for row in samples.rows)
        return {"eval/sampled_tokens": tokens / len(samples.rows)}

    return write


def next_alpha(kl: float, previous_kl: float, done: int, steps: int, budget: KlBudget) -> float:
    """Alpha for the steps until the next measurement.

    The KL is to grow evenly and reach its budget with the last step. Alpha is in proportion to how far it will be from
    that line by the next measurement, if it goes on as since the last one: above 0 below the line, because a positive
    alpha pushes hardest the pairs that have moved furthest, and below 0 above it. To wait until the budget is reached
    would be too late: what has moved does not come back.
    """
    line = budget.kl_budget * min(1.0, (done + budget.kl_every) / steps)
    short = (line - (kl + (kl - previous_kl))) / budget.kl_budget
    return float(np.clip(budget.kl_gain * short, budget.alpha_low, budget.alpha_high))


def _steer_alpha(experiment: TextExperiment, before: Callable[[TrainState], Params], steps: int) -> After | None:
    """The callback that steers a loss with `alpha: auto`; None if there is none.

    `steps` are those of the whole run; `before` gives the parameters of the reference, asked for at a measurement. The
    prompts are the first ones of the training data, always the same; alpha lives in the train state, and so in its
    checkpoints.
    """
    terms = experiment.terms
    steered = [(index, term.budget) for index, term in enumerate(terms) if term.budget]
    if not steered:
        return None
    index, budget = steered[0]
    name = terms[index].name
    prompts = experiment.train_data.prompts
    chosen = [prompts[i % len(prompts)] for i in range(budget.kl_samples)]
    rows_at_once = experiment.config.evaluation.batch_rows
    drawing = SamplingConfig(max_new_tokens=budget.kl_max_new_tokens, batch_rows=rows_at_once)
    sample = experiment.sampler(chosen, drawing)
    say("train", f"{name}: alpha is steered to {budget.kl_budget:g} nats of KL, measured every {budget.kl_every} steps")

    def steer(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        if done % budget.kl_every:
            return state, {}
        key = jax.random.fold_in(jax.random.key(experiment.config.seed), done)
        rows = sample(experiment.policy_of(state), key).rows
        # Both in an order that depends on the rows alone.
        ours, theirs = (experiment.scorer(of(state), rows)[1].logps_nP[:, 0] for of in (experiment.policy_of, before))
        kl = float(np.mean(ours - theirs))
        own = state.loss_state[index]
        measured = {"alpha": next_alpha(kl, float(own["kl"]), done, steps, budget), "kl": kl}
        moved = {key: place(own[key].sharding, np.array(value, np.float32)) for key, value in measured.items()}
        loss_state = (*state.loss_state[:index], {**own, **moved}, *state.loss_state[index + 1 :])
        return state._replace(loss_state=loss_state), {f"{name}/kl": kl}

    return steer
