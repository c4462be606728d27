"""Preference training: the policy against the stored reference.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np

from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.errors import UserError
from dpo_jax.losses import PAIRWISE, PairLogps
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Store
from dpo_jax.stages import evaluate, reference
from dpo_jax.stages.fit import fit
from dpo_jax.stages.objectives import loss_knobs, preference_objective
from dpo_jax.stages.progress import say
from dpo_jax.stages.setup import Setup
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Params

_CHECKED_ROWS = 4
_TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (0.5, 2e-2)}  # absolute in nats, relative; bfloat16 has layout noise


def run(setup: Setup) -> None:
    """Trains into WORKDIR, after fine-tuning and the reference pass where they are missing."""
    config = setup.config
    knobs = {"losses": loss_knobs(config.loss, setup.origins)}
    reference.fine_tune_first(setup)
    start = cache(setup.start_params)
    store = reference.complete_store(setup, start)
    scores = store.lookup([row.row_id for row in setup.train_rows])
    batches = Batches(
        setup.train_rows,
        batch_pairs=config.train.batch_pairs,
        micro_batch_pairs=config.train.micro_batch_pairs or config.train.batch_pairs,
        seed=config.seed,
        order=config.data.order,
        row_multiple=setup.row_multiple,
        reference_logps=scores.logps_nP,
    )

    if Checkpoints(setup.workdir / "checkpoints").latest() is not None:
        start.cache_clear()  # a resumed policy is read from there: the reference must not lie beside it

    def start_once() -> Params:
        params = start()
        start.cache_clear()  # the state takes these buffers over
        return params

    def every(done: int, params: Params) -> dict[str, float]:
        if not config.evaluation.every or done % config.evaluation.every:
            return {}
        found = evaluate.heldout(setup, store, params)
        return {f"eval/{name}": value for name, value in found.items() if isinstance(value, float)}

    fit(
        setup,
        stage="train",
        folder=setup.workdir,
        start=start_once,
        objective=preference_objective(setup.model, config.loss),
        batches=batches,
        optimizer=config.optimizer,
        train=config.train,
        knobs=knobs,
        check=lambda params: check_start(setup, store, params, knobs["losses"]),
        every=every,
    )


def check_start(setup: Setup, store: Store, params: Params, knobs: list[dict[str, float]]) -> None:
    """The invariant of step 0, where policy and reference are one: stored log-probs are today's, the loss is known.

    Raises:
        UserError: they do not; the message says what to check.
    """
    rows = setup.train_rows[:_CHECKED_ROWS]
    batches = evaluation_batches(rows, pairs=setup.config.reference.batch_pairs, row_multiple=setup.row_multiple)
    row_ids, now = score_rows(setup.score, params, batches, place=setup.place)
    stored = store.lookup(row_ids)
    absolute, relative = _TOLERANCE[setup.config.model.dtype]
    off_nP = np.abs(now.logps_nP - stored.logps_nP)
    if not np.all(off_nP <= absolute + relative * np.abs(stored.logps_nP)) or not np.array_equal(
        now.tokens_nP, stored.tokens_nP
    ):
        row = int(np.argmax(off_nP.max(axis=1)))
        raise UserError(
            f"step 0: row {row_ids[row]} has log-probs {now.logps_nP[row].tolist()} under the policy, but "
            f"{stored.logps_nP[row].tolist()} in {store.folder}. Before the first step they are the same model: check "
            "that the weights did not change since `dpo-jax reference`, or delete that folder and score again."
        )
    policy, frozen = (PairLogps(*map(jnp.asarray, (s.logps_nP[:, 0], s.logps_nP[:, 1]))) for s in (now, stored))
    for term, options in zip(setup.config.loss, knobs, strict=True):
        entry = PAIRWISE[term.name]
        value, known = float(jnp.mean(entry.function(policy, frozen, **options))), entry.at_reference(options)
        if not abs(value - known) <= absolute + relative * abs(known):
            raise UserError(
                f"step 0: the {term.name} loss is {value:.6f}; with policy and reference equal it is {known:.6f}. "
                f"Check loss.options and the store {store.folder}."
            )
    say("train", f"step 0: policy and reference agree on {len(rows)} rows to {off_nP.max():.1e} nats")
