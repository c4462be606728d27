"""One more step of a trained run, taken apart: what it does to each pair of its batch, and by whose pull.

Dimension key: A pairs of the batch (each a micro-batch of its own), B pairs, P slot in the pair.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.analysis.displacement import Pulls, edit_similarity, pair_pulls
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.experiments.fit import restored
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import preference_training
from dpo_jax.mesh import replicated
from dpo_jax.reference.fingerprint import RowIndex, as_ids
from dpo_jax.reference.store import Store
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.optimizer import make_schedule
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import gradients
from dpo_jax.types import Objective, PairBatch, Params

_SLOTS = ("chosen", "rejected")
_EXCERPT = 160  # characters


class Step(NamedTuple):
    """Log-probs [A, P] before and after a step, nats, and what moved them, [A, P] each."""

    before_AP: jax.Array
    after_AP: jax.Array
    pulls: Pulls


def one_step(
    experiment: TextExperiment, step: int, store: Store | None, base: Callable[[], Params], *, most_pairs: int
) -> dict[str, Any]:
    """Takes a step from a checkpoint, with the run's own optimizer at its peak learning rate, on a few pairs.

    The pairs come as the run's order has them. A schedule may have come to 0: its peak is what the run was given.
    `base()` gives the frozen parameters, where the step needs them.
    """
    config, data = experiment.config, experiment.train_data
    pairs = min(most_pairs, len(data.rows))
    scores = store.lookup(row_ids_of(data.rows)) if store else None
    train = dataclasses.replace(config.train, batch_pairs=pairs, micro_batch_pairs=1)
    training = preference_training(experiment, data, scores, train=train)
    peak = make_schedule("constant", warmup_steps=0, steps=step + 1)
    training = dataclasses.replace(training, schedule=peak)
    host = training.batches.batch(step)
    program = training.program(experiment.mesh, experiment.batch_shardings(host.arrays, micro_batches=True))
    frozen = base() if training.frozen and training.objective.refresh is None else None
    state = restored(training, program, Checkpoints(experiment.run.checkpoints), step, frozen=frozen)
    knobs = training.knobs(step)
    batch = experiment.place(host.arrays, micro_batches=True)
    before = jax.tree.map(jnp.copy, state._replace(optimizer=()))  # the step uses its own up
    after, metrics = program.step(state, batch, knobs)
    apart = jax.jit(functools.partial(take_apart, training.objective), out_shardings=replicated(experiment.mesh))
    step_taken = jax.device_get(apart(before, after.params, batch, knobs))
    return {
        "step": step,
        "learning_rate": config.optimizer.learning_rate,
        "grad_norm": float(metrics["grad_norm"]),
        "unexplained": _unexplained(step_taken),
        "pairs": _lines(experiment, host.row_ids, step_taken),
    }


def take_apart(objective: Objective, before: TrainState, after: Params, batch: PairBatch, knobs: Any) -> Step:
    """The effect of the step from `before` to the parameters `after`; each micro-batch of `batch` is one pair."""
    key = jax.random.fold_in(jax.random.wrap_key_data(before.key), before.step)
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.weigh)(batch))
    _, gradient = gradients(objective, before, batch, knobs, key)
    change = jax.tree.map(jnp.subtract, after, before.params)
    indices = jnp.arange(len(batch.weight_B))

    def forward(params: Params, index: jax.Array) -> Any:
        own = jax.tree.map(lambda x: x[index], batch)
        return objective.forward(params, before.frozen, own, jax.random.fold_in(key, index))

    def loss(read: Any) -> jax.Array:
        whole, joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (read, batch))
        return objective.loss(whole, joined, knobs, counts, before.loss_state, jax.random.fold_in(key, 0))[0]

    read = jax.lax.map(lambda index: forward(before.params, index), indices)
    slopes = jax.grad(loss)(read)

    def pulls(index: jax.Array) -> Pulls:
        def own(params: Params) -> tuple[jax.Array, Any]:
            read = forward(params, index)
            return read.policy_BP[0], read

        return pair_pulls(own, before.params, jax.tree.map(lambda x: x[index], slopes), gradient, change)

    moved_AP = jax.lax.map(lambda index: forward(after, index).policy_BP[0], indices)
    return Step(read.policy_BP[:, 0], moved_AP, jax.lax.map(pulls, indices))


def _unexplained(step: Step) -> float:
    """By how much the first order misses what happened, as a share of it."""
    happened_AP = step.after_AP - step.before_AP
    size = np.abs(happened_AP).sum()
    return float(np.abs(happened_AP - step.pulls.first_order).sum() / size) if size else float("nan")


def _lines(experiment: TextExperiment, row_ids: Sequence[str], step: Step) -> list[dict[str, Any]]:
    rows, lines = experiment.train_data.rows, []
    places = RowIndex(as_ids(row_ids_of(rows))).find(as_ids(row_ids))
    for index, (row_id, row) in enumerate(zip(row_ids, take(rows, places), strict=True)):
        texts = [experiment.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row.prompt, *row.responses)]
        similarity = edit_similarity(*row.responses)
        line: dict[str, Any] = {"row_id": row_id, "edit_similarity": similarity, "prompt": texts[0][-_EXCERPT:]}
        for slot, name in enumerate(_SLOTS):
            numbers = {field: float(values[index, slot]) for field, values in step.pulls._asdict().items()}
            before, after = float(step.before_AP[index, slot]), float(step.after_AP[index, slot])
            line[name] = {"text": texts[1 + slot][:_EXCERPT], "before": before, "happened": after - before, **numbers}
        lines.append(line)
    return lines
