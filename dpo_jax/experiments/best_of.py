"""What choosing among the reference's own responses gains, as the judge sees it: the frontier without training."""

from __future__ import annotations

from typing import Any

import jax

from dpo_jax.errors import UserError
from dpo_jax.evaluation.best_of import best_of_table, soft_best_of_table
from dpo_jax.evaluation.judges import Scoring
from dpo_jax.experiments.judging import AnyJudge
from dpo_jax.experiments.samples import make_sampling
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params


def measure_best_of(experiment: TextExperiment, frozen: Params, judge: AnyJudge | None) -> list[dict[str, Any]]:
    """`best_of_table` and `soft_best_of_table` of `evaluation.best_of` responses to each of the first held-out prompts.

    There are `evaluation.samples` prompts, or as many as there are.

    Raises:
        UserError: the judge gives no scores.
    """
    if not isinstance(judge, Scoring):
        raise UserError(
            "evaluation.best_of: the best response is the one with the highest score: name a judge that scores."
        )
    options = experiment.config.evaluation
    prompts = experiment.eval_data.prompts[: options.samples]
    total = len(prompts) * options.best_of
    sample = make_sampling(
        experiment,
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        samples=options.best_of,
        batch_rows=options.batch_rows,
    )
    say("evaluate", f"samples {total} responses from the reference, for the best of {options.best_of}")
    found = sample(frozen, jax.random.key(experiment.config.seed))
    every = [prompt for prompt in prompts for _ in range(options.best_of)]
    scores_NS = judge.scores(every, found.written).reshape(len(prompts), options.best_of)
    table = best_of_table(scores_NS)
    best = table[-1]
    say("evaluate", f"best of {best['n']}: mean score {best['score']:.3f} at {best['kl']:.2f} nats at most")
    return table + soft_best_of_table(scores_NS)
