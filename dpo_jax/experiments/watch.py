"""What is looked at while a policy trains: held-out rows, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax

from dpo_jax.experiments.heldout import heldout
from dpo_jax.experiments.stores import heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_atomic
from dpo_jax.reference.store import Store
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params

Watch = Callable[[int, TrainState], dict[str, float]]
"""Steps done and state -> numbers for the metrics, none where nothing is due."""


def make_watch(
    experiment: TextExperiment,
    store: Store | None,
    policy: Callable[[TrainState], Params],
    before: Callable[[TrainState], Params],
) -> Watch:
    """Every `evaluation.every` steps held-out metrics as `eval/NAME`, and samples into WORKDIR/samples/STEP.jsonl.

    `policy` and `before` give the parameters of the policy and of the reference.
    """
    options = experiment.config.evaluation
    stores = [store] if store else []
    sample = _make_sampler(experiment) if options.every and options.watched else None

    def watch(done: int, state: TrainState) -> dict[str, float]:
        if not options.every or done % options.every:
            return {}
        if not stores:
            stores.append(heldout_store(experiment, lambda: before(state)))
        measured = heldout(
            experiment.eval_data, experiment.terms, experiment.scorer, stores[0], policy(state), state.loss_state
        )
        numbers = {f"eval/{name}": value for name, value in measured.to_json().items() if isinstance(value, float)}
        return numbers | (sample(done, policy(state)) if sample else {})

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
