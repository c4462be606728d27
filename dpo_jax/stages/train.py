"""Preference training: the policy against the reference, from the store or beside it.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import TrainConfig
from dpo_jax.data.batches import Batches
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import UserError
from dpo_jax.losses import TOKEN_LEVEL
from dpo_jax.models.lora import join
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Scores
from dpo_jax.stages import check_data, reference, scratch
from dpo_jax.stages.budget import steer_alpha
from dpo_jax.stages.fit import fit, planned_steps
from dpo_jax.stages.fitted import say_how_fitted
from dpo_jax.stages.heldout import known_loss, loss_of_rows, values_of
from dpo_jax.stages.objectives import Refresh, preference_objective
from dpo_jax.stages.progress import say
from dpo_jax.stages.rows import DataRows
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.sinks import check_sinks
from dpo_jax.stages.terms import needs_reference, reads_soft_labels, soft_labelled
from dpo_jax.stages.watch import make_watch
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import Knobs, Objective
from dpo_jax.types import Params

_CHECKED_ROWS = 4


def run(setup: Setup) -> None:
    """Trains into WORKDIR, after fine-tuning and the reference pass where they are missing."""
    scratch.prepare(setup)
    check_sinks(setup)
    config, terms, model = setup.config, setup.terms, setup.model
    _say_what_is_unusual(setup)
    reference.fine_tune_first(setup)
    base = cache(setup.start_params)
    store = reference.complete_store(setup, base) if reference.reads_store(setup) else None
    check_data.warn(setup)
    data = setup.train_data
    batches = training_batches(setup, data, store.lookup(row_ids_of(data.rows)) if store else None)

    resumes = Checkpoints(setup.workdir / "checkpoints").latest() is not None
    if not resumes:
        say_how_fitted(setup, store, base)
    elif not model.lora:
        base.cache_clear()  # a resumed policy is read from there: the reference must not lie beside it

    def base_once() -> Params:
        params = base()
        base.cache_clear()  # the state takes these buffers over
        return params

    def policy(state: TrainState) -> Params:
        return join(state.frozen or {}, state.params) if model.lora else state.params

    again = cache(setup.start_params)

    def before(state: TrainState) -> Params:
        return state.frozen or {} if model.lora else again()

    steer = steer_alpha(setup, terms, policy, before, planned_steps(config.train, batches))
    watch = make_watch(setup, store, policy, before)

    def after(done: int, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        state, numbers = steer(done, state) if steer else (state, {})
        return state, numbers | watch(done, state)

    live = runs_beside(setup)

    def check(state: TrainState) -> None:
        if store:
            check_start(setup, policy(state), store.lookup, str(store.folder))
        elif live:
            check_start(setup, policy(state), scored_by(setup, state.frozen or {}), "the reference beside it")

    fit(
        setup,
        stage="train",
        folder=setup.workdir,
        model=model,
        start=(lambda: setup.fresh_adapter(model, seed=config.seed)) if model.lora else base_once,
        frozen=base_once if model.lora else setup.start_params if live else None,
        objective=policy_objective(setup, setup.train_data.sources),
        batches=batches,
        optimizer=config.optimizer,
        train=config.train,
        knobs=lambda step: loss_knobs(setup, step),
        memory=tuple(term.memory() for term in terms),
        check=check,
        after=after,
    )


def training_batches(
    setup: Setup, data: DataRows, reference: Scores | None, *, train: TrainConfig | None = None
) -> Batches:
    """The batches of a run; `reference` are the stored log-probs of the rows, if there is a store.

    `train` says how large they are; by default as the configuration does.
    """
    config, train = setup.config, train or setup.config.train
    return Batches(
        data.rows,
        batch_pairs=train.batch_pairs,
        micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
        seed=config.seed,
        order=config.data.order,
        row_multiple=setup.row_multiple,
        layout=config.data.layout,
        unpack=setup.unpack,
        reference=_attached(reference) if reference else None,
        columns=_columns(setup, data),
        desirable=data.desirable,
    )


def runs_beside(setup: Setup) -> bool:
    """Whether the reference runs in every step, where its log-probs do not come from a store."""
    return needs_reference(setup.terms) and not reference.reads_store(setup)


def policy_objective(setup: Setup, sources: Sequence[str]) -> Objective:
    """What training on preferences minimises; of several `sources` each has metrics of its own."""
    live, refresh = runs_beside(setup), _refresh(setup)
    return preference_objective(setup.model, setup.terms, live=live, refresh=refresh, sources=sources, **setup.tiles)


def loss_knobs(setup: Setup, step: int) -> Knobs:
    """The losses' numbers in a step, counted from 0."""
    return {"losses": [term.knobs(step) for term in setup.terms]}


def _say_what_is_unusual(setup: Setup) -> None:
    terms = setup.terms
    reason = reference.why_no_store(setup)
    if reason and needs_reference(terms):
        say("reference", f"no store: {reason}")
    if not needs_reference(terms):
        say("reference", f"no store: {' and '.join(term.name for term in terms)} needs no reference")
    alone = [term.name for term in terms if term.entry.beside_sft]
    if alone and all(term.name != "sft" for term in terms):
        say("train", f"{alone[0]} is published beside an sft term; `loss` names none, so none is added")


def _columns(setup: Setup, data: DataRows) -> dict[str, np.ndarray]:
    """What rows bring, by its name in a batch.

    Raises:
        UserError: soft labels, and a loss that cannot read them.
    """
    if data.margin_B is not None:
        say("train", "data.train: the column margin is read by `dpo-jax reward` alone, and by no loss here")
    if data.soft_label_B is not None:
        deaf = [term.name for term in setup.terms if not reads_soft_labels(term)]
        if deaf:
            raise UserError(
                f"data.train has soft labels, which {deaf[0]} cannot read. Allowed: {', '.join(soft_labelled())}, "
                "and sft beside them; or take the column soft_label out of the rows."
            )
    given = {"loss_weight_B": data.weight_B, "soft_label_B": data.soft_label_B}
    found = {name: values for name, values in given.items() if values is not None}
    return found | ({"source_B": data.source_B} if data.source_B is not None and len(data.sources) > 1 else {})


def _attached(scores: Scores) -> dict[str, np.ndarray]:
    return {"reference_logps_BP": scores.logps_nP, "reference_heads_BP": scores.heads_nP}


def _refresh(setup: Setup) -> Refresh | None:
    """TR-DPO: how the reference moves to the policy."""
    every, share = setup.config.reference.update_every, setup.config.reference.update_share
    if not every:
        return None

    def moved(params: Params, frozen: Params) -> Params:
        return jax.tree.map(lambda p, f: (share * p + (1.0 - share) * f).astype(f.dtype), params, frozen)

    def refresh(params: Params, frozen: Params, done: jax.Array) -> Params:
        return jax.lax.cond(done % every == 0, moved, lambda params, frozen: frozen, params, frozen)

    return refresh


def scored_by(setup: Setup, frozen: Params) -> Callable[[Sequence[str]], Scores]:
    """What `Store.lookup` gives, from the reference itself, for the rows that `check_start` looks at."""
    rows = setup.train_data.rows[:_CHECKED_ROWS]
    return lambda row_ids: score_rows(setup.score, frozen, setup.scoring_batches(rows), place=setup.place)[1]


def check_start(setup: Setup, params: Params, lookup: Callable[[Sequence[str]], Scores], where: str) -> None:
    """The invariant of step 0, where policy and reference are one: its log-probs are the policy's, each loss is known.

    `lookup` gives what the reference says of rows, `where` says where that comes from.

    Raises:
        UserError: they do not; the message says what to check.
    """
    data = setup.train_data
    rows = data.rows[:_CHECKED_ROWS]
    batches = setup.scoring_batches(rows)
    row_ids, now = score_rows(setup.score, params, batches, place=setup.place)
    stored = lookup(row_ids)
    same = reference.agree(now, stored, setup.config.model.dtype)
    if not same.all():
        row = int(np.argmin(same))
        raise UserError(
            f"step 0: row {row_ids[row]} has log-probs {now.logps_nP[row].tolist()} under the policy, but "
            f"{stored.logps_nP[row].tolist()} in {where}. Before the first step they are the same model: check "
            "that the weights did not change since `dpo-jax reference`, or delete the store and score again."
        )
    absolute, relative = reference.TOLERANCE[setup.config.model.dtype]
    desirable = values_of(rows, data.desirable, row_ids)
    for term in setup.terms:
        if term.entry.at_reference is None or term.name in TOKEN_LEVEL:  # those read what is not scored here
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
