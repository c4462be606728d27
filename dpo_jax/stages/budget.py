"""`alpha: auto`: the policy's KL to the reference is measured on its own samples, and alpha follows a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.stages.progress import say
from dpo_jax.stages.samples import make_sampling, sampled_logps
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.terms import KlBudget, Term
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params

After = Callable[[int, TrainState], tuple[TrainState, dict[str, float]]]


def next_alpha(alpha: float, kl: float, budget: KlBudget) -> float:
    """Alpha for the steps until the next measurement.

    It falls where the KL is above the budget, because a positive alpha pushes hardest the pairs that have moved
    furthest, and rises below it; in proportion to the distance, by `kl_gain` at most.
    """
    error = np.clip((budget.kl_budget - kl) / budget.kl_budget, -1.0, 1.0)
    return float(np.clip(alpha + budget.kl_gain * error, budget.alpha_low, budget.alpha_high))


def steer_alpha(setup: Setup, terms: Sequence[Term], frozen: Callable[[], Params]) -> After | None:
    """What is done after a step where a loss has `alpha: auto`: None if none has.

    `frozen` gives the reference's parameters; they are asked for at the first measurement. The prompts are the first
    ones of the training data, always the same; alpha lives in the train state, and so in its checkpoints.
    """
    steered = [(index, term.budget) for index, term in enumerate(terms) if term.budget]
    if not steered:
        return None
    index, budget = steered[0]
    name = terms[index].name
    prompts = setup.train_data.prompts
    chosen = [prompts[i % len(prompts)] for i in range(budget.kl_samples)]
    sample = make_sampling(
        setup,
        chosen,
        max_new_tokens=budget.kl_max_new_tokens,
        temperature=1.0,
        batch_rows=setup.config.evaluation.batch_rows,
    )
    say("train", f"{name}: alpha is steered to {budget.kl_budget:g} nats of KL, measured every {budget.kl_every} steps")

    def after(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        if done % budget.kl_every:
            return state, {}
        key = jax.random.fold_in(jax.random.key(setup.config.seed), done)
        rows = sample(state.params, key).rows
        kl = float(np.mean(sampled_logps(setup, rows, state.params) - sampled_logps(setup, rows, frozen())))
        alpha = state.memory[index]["alpha"]
        moved = jax.device_put(jnp.asarray(next_alpha(float(alpha), kl, budget), alpha.dtype), alpha.sharding)
        memory = tuple({**own, "alpha": moved} if i == index else own for i, own in enumerate(state.memory))
        return state._replace(memory=memory), {f"{name}/kl": kl}

    return after
