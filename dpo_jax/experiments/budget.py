"""`alpha: auto`: the policy's KL to the reference is measured on its own samples, and alpha follows a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from dpo_jax.config import SamplingConfig
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.mesh import place
from dpo_jax.objectives.terms import KlBudget, Term
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params

After = Callable[[int, TrainState], tuple[TrainState, dict[str, float]]]


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


def steer_alpha(
    experiment: TextExperiment,
    terms: Sequence[Term],
    policy: Callable[[TrainState], Params],
    frozen: Callable[[TrainState], Params],
    steps: int,
) -> After | None:
    """The callback that steers a loss with `alpha: auto`; None if there is none.

    `steps` are those of the whole run; `policy` and `frozen` give the parameters of the policy and of the reference,
    which are asked for at a measurement. The prompts are the first ones of the training data, always the same; alpha
    lives in the train state, and so in its checkpoints.
    """
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

    def after(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        if done % budget.kl_every:
            return state, {}
        key = jax.random.fold_in(jax.random.key(experiment.config.seed), done)
        rows = sample(policy(state), key).rows
        # Both in an order that depends on the rows alone.
        ours, theirs = (experiment.scorer(of(state), rows)[1].logps_nP[:, 0] for of in (policy, frozen))
        kl = float(np.mean(ours - theirs))
        own = state.loss_state[index]
        measured = {"alpha": next_alpha(kl, float(own["kl"]), done, steps, budget), "kl": kl}
        moved = {key: place(own[key].sharding, np.array(value, np.float32)) for key, value in measured.items()}
        loss_state = (*state.loss_state[:index], {**own, **moved}, *state.loss_state[index + 1 :])
        return state._replace(loss_state=loss_state), {f"{name}/kl": kl}

    return after
