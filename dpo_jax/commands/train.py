"""Preference training: the policy against the reference, from the store or beside it.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from dpo_jax.commands import check_data, reference, scratch
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import UserError
from dpo_jax.experiments.budget import steer_alpha
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.fitted import say_how_fitted
from dpo_jax.experiments.heldout import known_loss, loss_of_rows, values_of
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.stores import TOLERANCE, agree, complete_store, reads_store, why_no_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import preference_training, runs_beside
from dpo_jax.experiments.watch import make_watch
from dpo_jax.objectives.terms import needs_reference
from dpo_jax.reference.store import Scores
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params, join

_CHECKED_ROWS = 4


def run(experiment: TextExperiment) -> None:
    """Trains into WORKDIR, after fine-tuning and the reference pass where they are missing."""
    scratch.prepare(experiment)
    check_sinks(experiment)
    terms, model = experiment.terms, experiment.model
    _say_what_is_unusual(experiment)
    reference.fine_tune_first(experiment)
    base = cache(experiment.start_params)
    store = complete_store(experiment, base) if reads_store(experiment) else None
    check_data.warn(experiment)
    data = experiment.train_data
    scores = store.lookup(row_ids_of(data.rows)) if store else None
    resumes = Checkpoints(experiment.workdir / "checkpoints").latest() is not None
    if not resumes:
        say_how_fitted(experiment, store, base)
    elif not model.lora:
        base.cache_clear()  # a resumed policy is read from there: the reference must not lie beside it

    def base_once() -> Params:
        params = base()
        base.cache_clear()  # the state takes these buffers over
        return params

    def policy(state: TrainState) -> Params:
        return join(state.frozen or {}, state.params) if model.lora else state.params

    again = cache(experiment.start_params)

    def before(state: TrainState) -> Params:
        return state.frozen or {} if model.lora else again()

    live = runs_beside(experiment)

    def check(state: TrainState) -> None:
        if store:
            check_start(experiment, policy(state), store.lookup, str(store.folder))
        elif live:
            check_start(experiment, policy(state), scored_by(experiment, state.frozen or {}), "the reference beside it")

    taken_over: dict[str, Any] = {"frozen": base_once} if model.lora else {"start": base_once}
    training = preference_training(experiment, data, scores, check=check, **taken_over)
    steer = steer_alpha(experiment, terms, policy, before, training.steps)
    watch = make_watch(experiment, store, policy, before)

    def callback(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        state, numbers = steer(done, state) if steer else (state, {})
        return state, numbers | watch(done, state)

    fit(experiment, dataclasses.replace(training, callback=callback))


def _say_what_is_unusual(experiment: TextExperiment) -> None:
    terms = experiment.terms
    reason = why_no_store(experiment)
    if reason and needs_reference(terms):
        say("reference", f"no store: {reason}")
    if not needs_reference(terms):
        say("reference", f"no store: {' and '.join(term.name for term in terms)} needs no reference")
    alone = [term.name for term in terms if term.entry.beside_sft]
    if alone and not any(term.entry.likelihood for term in terms):
        say("train", f"{alone[0]} is published beside an sft term; `loss` names none, so none is added")


def scored_by(experiment: TextExperiment, frozen: Params) -> Callable[[Sequence[str]], Scores]:
    """What `Store.lookup` gives, from the reference itself, for the rows that `check_start` looks at."""
    rows = experiment.train_data.rows[:_CHECKED_ROWS]
    return lambda row_ids: experiment.scorer(frozen, rows)[1]


def check_start(
    experiment: TextExperiment, params: Params, lookup: Callable[[Sequence[str]], Scores], where: str
) -> None:
    """The invariant of step 0, where policy and reference are one: its log-probs are the policy's, each loss is known.

    `lookup` gives what the reference says of rows, `where` says where that comes from.

    Raises:
        UserError: they do not; the message says what to check.
    """
    data = experiment.train_data
    rows = data.rows[:_CHECKED_ROWS]
    row_ids, now = experiment.scorer(params, rows)
    stored = lookup(row_ids)
    same = agree(now, stored, experiment.config.model.dtype)
    if not same.all():
        row = int(np.argmin(same))
        raise UserError(
            f"step 0: row {row_ids[row]} has log-probs {now.logps_nP[row].tolist()} under the policy, but "
            f"{stored.logps_nP[row].tolist()} in {where}. Before the first step they are the same model: check "
            "that the weights did not change since `dpo-jax reference`, or delete the store and score again."
        )
    absolute, relative = TOLERANCE[experiment.config.model.dtype]
    desirable = values_of(rows, data.desirable, row_ids)
    for term in experiment.terms:
        if term.entry.at_reference is None or term.entry.needs_distribution:  # those read what is not scored here
            continue
        plain = term._replace(weight=1.0, ld_alpha=None, wpo=False)
        value = float(jnp.mean(loss_of_rows([plain], now, stored, desirable, None)))
        known = float(jnp.mean(known_loss(term, now, desirable)))
        if not abs(value - known) <= absolute + relative * abs(known):
            raise UserError(
                f"step 0: the {term.name} loss is {value:.6f}; with policy and reference equal it is {known:.6f}. "
                f"Check loss.options and {where}."
            )
    off = np.abs(now.logps_nP - stored.logps_nP).max()
    say("train", f"step 0: policy and reference agree on {len(rows)} rows to {off:.1e} nats")
