"""The store of an experiment's reference scores: which one it is, filling it, and comparing it with the model.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dpo_jax import locks
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.meeting import meet
from dpo_jax.reference.fingerprint import as_ids, make_fingerprint
from dpo_jax.reference.store import Errors, OtherStore, Scores, Store, listing
from dpo_jax.runtime import hosts
from dpo_jax.runtime.preemption import leave_if_told
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.types import Params

TOLERANCE: dict[type, dict[str, tuple[float, float]]] = {  # absolute, relative; bfloat16 has layout noise
    Scores: {"float32": (1e-3, 1e-4), "bfloat16": (0.5, 2e-2)},  # nats
    Errors: {"float32": (1e-4, 0.0), "bfloat16": (2e-2, 0.0)},
}

Kind = TypeVar("Kind", Scores, Errors)

SCORED: dict[type, str] = {Scores: "log-probs", Errors: "errors"}
UNITS: dict[type, str] = {Scores: " nats", Errors: ""}
"""Words for what a store holds, for messages."""


def agree(now: Scores | Errors, stored: Scores | Errors, dtype: str) -> np.ndarray:
    """Which rows of a store say what the model says now, bool [n]."""
    absolute, relative = TOLERANCE[type(now)][dtype]
    agree_n = np.ones(len(now[0]), bool)
    for now_nP, stored_nP in zip(now, stored, strict=True):
        if now_nP.dtype.kind == "i":
            near_nP = now_nP == stored_nP
        else:
            near_nP = np.abs(now_nP - stored_nP) <= absolute + relative * np.abs(stored[0])
        agree_n &= near_nP.all(axis=1)
    return agree_n


def check_scores(row_ids: Sequence[str], now: Kind, stored: Kind, *, where: str, dtype: str) -> None:
    """Checks that the policy says of rows what the reference says; `where` says where that comes from.

    Raises:
        UserError: it does not; the message says what to check.
    """
    same = agree(now, stored, dtype)
    if not same.all():
        row = int(np.argmin(same))
        raise UserError(
            f"step 0: row {row_ids[row]} has {SCORED[type(now)]} {now[0][row].tolist()} under the policy, but "
            f"{stored[0][row].tolist()} in {where}. Before the first step they are the same model: check that the "
            "weights did not change since `dpo-jax reference`, or delete the store and score again."
        )


def heldout_store(experiment: Experiment, params: Callable[[], Params]) -> Store:
    """The store that an evaluation reads: that of the training, where there is one."""
    return complete_store(experiment, params, heldout_only=not experiment.reads_store)


def complete_store(experiment: Experiment, params: Callable[[], Params], *, heldout_only: bool = False) -> Store:
    """Opens the store and scores the rows that it lacks; says which it was.

    `params` gives the frozen parameters; the store is compared with them even when nothing is missing.
    `heldout_only` leaves the training rows out, where training itself has no use for them.
    """
    config = experiment.config
    parts = experiment.stored_rows(heldout_only=heldout_only)
    row_ids = np.concatenate([as_ids(row_ids_of(rows)) for rows in parts])
    fingerprint = make_fingerprint(
        params(), row_ids, experiment.scoring_facts(), model=experiment.spec, dtype=config.model.dtype
    )
    folder = experiment.store_folder(fingerprint, heldout_only=heldout_only)
    meet("the store is found", sees=folder)
    with _advised():
        store = Store(folder, fingerprint, kind=experiment.score_type)
    store.serves(str(experiment.workdir.resolve()))
    if hosts.alike(len(store)) and not len(store.missing(row_ids)):
        say("reference", f"{len(store)} rows in {store.folder}: nothing to score")
        return store
    lock = locks.Lock(locks.inside(folder), experiment.command, waits=True, tell=lambda words: say("reference", words))
    with hosts.held(lock), _advised():
        store.read_on()
        missing = store.missing(row_ids)
        if len(missing):
            shards = _shards(parts, missing, config.reference.rows_per_shard)
            _fill(store, shards, len(missing), functools.partial(experiment.scorer, params()))
        else:
            say("reference", f"{len(store)} rows in {store.folder}: nothing is left to score")
    return store


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    """The context in which a store of something else is refused with what to do about it."""
    try:
        yield
    except OtherStore as other:
        advice = "Undo the change, or delete the folder, or name another with `--reference.store FOLDER`."
        raise UserError(f"{other}\n{advice}") from None


def _fill(store: Store, shards: Iterator[Sequence[Any]], count: int, score: Callable[..., Any]) -> None:
    """Scores `count` rows into a store, shard by shard, and says how fast."""
    there = f", {len(store)} are there" if len(store) else ""
    say("reference", f"scores {count} rows into {store.folder}{there}")
    start = time.perf_counter()
    with Progress("reference", count, unit="rows") as progress:
        done = 0

        def tell(rows: int) -> None:
            progress.update(done + rows)
            leave_if_told("reference")

        for shard in shards:
            store.append(*score(shard, progress=tell))
            done += len(shard)
    say("reference", f"done: {count} rows, {count / (time.perf_counter() - start):.1f} rows/s")


def score_again(experiment: Experiment, store: Store[Any], params: Params, count: int) -> None:
    """Scores some training rows once more, drawn by the seed.

    Raises:
        UserError: the store says otherwise.
    """
    rows = experiment.train_data.rows
    picks = np.random.default_rng(experiment.config.seed).choice(len(rows), min(count, len(rows)), replace=False)
    row_ids, now = experiment.scorer(params, take(rows, picks))
    stored, name = store.lookup(row_ids), SCORED[type(now)]
    off_n = np.abs(now[0] - stored[0]).max(axis=1)
    worst = int(off_n.argmax())
    say("reference", f"{len(picks)} rows scored again: the largest difference is {off_n[worst]:.2e}{UNITS[type(now)]}")
    if not agree(now, stored, experiment.config.model.dtype).all():
        raise UserError(
            f"{store.folder}: row {row_ids[worst]} has {name} {stored[0][worst].tolist()} there, and now "
            f"{now[0][worst].tolist()}. Delete the folder and score again."
        )


def describe(root: Path) -> str:
    """A few lines for each store at `root` or below: where it is, what it holds, which runs read it.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"command line: store ls: {root} is not a folder.")
    lines: list[str] = []
    for store in listing(root):
        made = store.fingerprint
        lines += [
            f"{store.folder}: {store.rows:,} rows",
            f"    model {made.get('weights', '?')[:12]} in {made.get('dtype', '?')}, "
            f"tokenizer {made.get('tokenizer', '?')[:12]}, template {made.get('template', '?').split()[0]}",
            f"    read by {', '.join(store.used_by) or 'no run yet'}",
        ]
    return "\n".join(lines) or f"no reference store in {root} or below"


def _shards(parts: Sequence[Sequence[Any]], picks: np.ndarray, size: int) -> Iterator[Sequence[Any]]:
    """The picked rows of all parts behind each other, at most `size` at a time, each time of one part."""
    start = 0
    for rows in parts:
        own = picks[(picks >= start) & (picks < start + len(rows))] - start
        for first in range(0, len(own), size):
            yield take(rows, own[first : first + size])
        start += len(rows)
