"""The store of reference log-probs of an experiment on texts: which one it is, and filling it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.experiments.losses import is_unpaired, needs_mismatched
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import digest
from dpo_jax.objectives.terms import needs_reference
from dpo_jax.reference.fingerprint import make_fingerprint
from dpo_jax.reference.rows import as_ids
from dpo_jax.reference.store import Scores, Store
from dpo_jax.runtime.preemption import leave_if_told
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.types import Params, TokenRow

TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (0.5, 2e-2)}  # absolute in nats, relative; bfloat16 has layout noise


def agree(now: Scores, stored: Scores, dtype: str) -> np.ndarray:
    """Which rows of a store say what the model says now, bool [n]."""
    absolute, relative = TOLERANCE[dtype]
    off_nP = np.maximum(np.abs(now.logps_nP - stored.logps_nP), np.abs(now.heads_nP - stored.heads_nP))
    near_nP = off_nP <= absolute + relative * np.abs(stored.logps_nP)
    return (near_nP & (now.tokens_nP == stored.tokens_nP)).all(axis=1)


def why_no_store(experiment: TextExperiment) -> str | None:
    """Why training cannot read the reference's log-probs from a store; None where it can."""
    every = experiment.config.reference.update_every
    if every:
        return (
            f"the reference moves to the policy every {every} steps (reference.update_every), so that stored log-probs "
            "would soon be of another model; it runs in every step instead"
        )
    whole = [term.name for term in experiment.terms if term.entry.needs_distribution]
    if whole:
        return (
            f"{whole[0]} reads the reference's whole distribution at every token, which no store holds; the reference "
            "runs in every step instead"
        )
    if experiment.config.lora and not experiment.config.reference.store:
        return (
            "the reference is the base under the adapter, which is at hand in every step (name a reference.store, and "
            "it scores every row once instead)"
        )
    return None


def store_folder(experiment: TextExperiment, *, heldout_only: bool = False) -> Path:
    """The store of this model on these sources: named by what the user calls them; what they hold is fingerprinted."""
    config = experiment.config
    root = Path(config.reference.store) if config.reference.store else experiment.workdir / "stores"
    weights = str(experiment.sft_folder) if config.sft else config.model.weights
    train = () if heldout_only else config.data.train
    named: list[Any] = [weights, [dict(source) for source in (*train, *config.data.eval)]]
    if any({"weight", "flip"} & source.keys() for source in (*train, *config.data.eval)):  # the seed draws the rows
        named.append(config.seed)
    if is_unpaired(config.loss):  # other rows of the same file
        named.append("mismatched" if needs_mismatched(config.loss) else "unpaired")
    name = Path(weights.removeprefix("package:")).name or "model"
    return root / f"{name}-{digest(json.dumps(named, sort_keys=True).encode())[:12]}"


def heldout_store(experiment: TextExperiment, params: Callable[[], Params]) -> Store:
    """The store that an evaluation reads: that of the training, where there is one."""
    return complete_store(experiment, params, heldout_only=not reads_store(experiment))


def reads_store(experiment: TextExperiment) -> bool:
    """Whether training takes the reference's log-probs from a store."""
    return needs_reference(experiment.terms) and why_no_store(experiment) is None


def complete_store(experiment: TextExperiment, params: Callable[[], Params], *, heldout_only: bool = False) -> Store:
    """Opens the store and scores the rows that it lacks; says which it was.

    `params` gives the frozen parameters; the store is compared with them even when nothing is missing.
    `heldout_only` leaves the training rows out, where training itself has no use for them.
    """
    config = experiment.config
    parts = [
        *([] if heldout_only else [experiment.train_data.rows]),
        *([experiment.eval_data.rows] if config.data.eval else []),
    ]
    row_ids = np.concatenate([as_ids(row_ids_of(rows)) for rows in parts])
    fingerprint = make_fingerprint(
        params(),
        row_ids,
        experiment.tokenization(),
        model=experiment.model.spec,
        dtype=config.model.dtype,
    )
    store = Store(store_folder(experiment, heldout_only=heldout_only), fingerprint)
    store.serves(str(experiment.workdir.resolve()))
    missing = store.missing(row_ids)
    if not len(missing):
        say("reference", f"{len(store)} rows in {store.folder}: nothing to score")
        return store
    say(
        "reference",
        f"scores {len(missing)} rows into {store.folder}" + (f", {len(store)} are there" if len(store) else ""),
    )
    start = time.perf_counter()
    with Progress("reference", len(missing), unit="rows") as progress:
        done = 0

        def count(rows: int) -> None:
            progress.update(done + rows)
            leave_if_told("reference")

        for shard in _shards(parts, missing, config.reference.rows_per_shard):
            store.append(*experiment.scorer(params(), shard, progress=count))
            done += len(shard)
    seconds = time.perf_counter() - start
    say("reference", f"done: {len(missing)} rows, {len(missing) / seconds:.1f} rows/s")
    return store


def _shards(parts: Sequence[Sequence[TokenRow]], picks: np.ndarray, size: int) -> Iterator[Sequence[TokenRow]]:
    """The picked rows of all parts behind each other, at most `size` at a time, each time of one part."""
    start = 0
    for rows in parts:
        own = picks[(picks >= start) & (picks < start + len(rows))] - start
        for first in range(0, len(own), size):
            yield take(rows, own[first : first + size])
        start += len(rows)
