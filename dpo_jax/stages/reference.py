"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError
from dpo_jax.files import digest, write_atomic
from dpo_jax.losses import TOKEN_LEVEL
from dpo_jax.reference.fingerprint import make_fingerprint
from dpo_jax.reference.rows import as_ids
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Scores, Store
from dpo_jax.stages import sft
from dpo_jax.stages.preemption import leave_if_told
from dpo_jax.stages.progress import Progress, say
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.terms import is_unpaired, needs_mismatched, needs_reference
from dpo_jax.types import Params, TokenRow

TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (0.5, 2e-2)}  # absolute in nats, relative; bfloat16 has layout noise


def run(setup: Setup, *, jsonl: str | None = None, verify: str | None = None) -> None:
    """Completes the store; with `jsonl`, also writes the scores of the training rows, in data order.

    `verify` is how many rows, drawn by the seed, are scored once more and compared.
    """
    count = _row_count(verify)
    reason = why_no_store(setup)
    if reason:
        raise UserError(f"reference: nothing to store: {reason}.")
    fine_tune_first(setup)
    params = cache(setup.start_params)
    store = complete_store(setup, params)
    if jsonl:
        rows = setup.train_data.rows
        lines = _lines(setup, store.lookup(row_ids_of(rows)))
        write_atomic(Path(jsonl), "".join(lines))
        say("reference", f"wrote {len(rows)} rows to {jsonl}")
    if count:
        _verify(setup, store, params(), count)


def _row_count(text: str | None) -> int:
    if text is not None and not (text.isdecimal() and int(text)):
        raise UserError(f"command line: --verify {text!r}: give the number of rows to score again, such as 100.")
    return int(text or 0)


def _verify(setup: Setup, store: Store, params: Params, count: int) -> None:
    """Scores some training rows again.

    Raises:
        UserError: the store says otherwise.
    """
    rows = setup.train_data.rows
    picks = np.random.default_rng(setup.config.seed).choice(len(rows), min(count, len(rows)), replace=False)
    row_ids, now = score_rows(setup.score, params, setup.scoring_batches(take(rows, picks)), place=setup.place)
    stored = store.lookup(row_ids)
    off_n = np.abs(now.logps_nP - stored.logps_nP).max(axis=1)
    worst = int(off_n.argmax())
    say("reference", f"{len(picks)} rows scored again: the largest difference is {off_n[worst]:.2e} nats")
    if not agree(now, stored, setup.config.model.dtype).all():
        raise UserError(
            f"{store.folder}: row {row_ids[worst]} has log-probs {stored.logps_nP[worst].tolist()} there, and now "
            f"{now.logps_nP[worst].tolist()}. Delete the folder and score again."
        )


def agree(now: Scores, stored: Scores, dtype: str) -> np.ndarray:
    """Which rows of a store say what the model says now, bool [n]."""
    absolute, relative = TOLERANCE[dtype]
    off_nP = np.maximum(np.abs(now.logps_nP - stored.logps_nP), np.abs(now.heads_nP - stored.heads_nP))
    near_nP = off_nP <= absolute + relative * np.abs(stored.logps_nP)
    return (near_nP & (now.tokens_nP == stored.tokens_nP)).all(axis=1)


def why_no_store(setup: Setup) -> str | None:
    """Why training cannot read the reference's log-probs from a store; None where it can."""
    every = setup.config.reference.update_every
    if every:
        return (
            f"the reference moves to the policy every {every} steps (reference.update_every), so that stored log-probs "
            "would soon be of another model; it runs in every step instead"
        )
    whole = [term.name for term in setup.terms if term.name in TOKEN_LEVEL]
    if whole:
        return (
            f"{whole[0]} reads the reference's whole distribution at every token, which no store holds; the reference "
            "runs in every step instead"
        )
    if setup.config.lora and not setup.config.reference.store:
        return (
            "the reference is the base under the adapter, which is at hand in every step (name a reference.store, and "
            "it scores every row once instead)"
        )
    return None


def fine_tune_first(setup: Setup) -> None:
    """Fine-tuning, where the configuration asks for it: its result is the reference. No row is bad when it begins."""
    if setup.config.sft:
        setup.read_data()
        sft.run(setup)


def store_folder(setup: Setup, *, heldout_only: bool = False) -> Path:
    """The store of this model on these sources: named by what the user calls them; what they hold is fingerprinted."""
    config = setup.config
    root = Path(config.reference.store) if config.reference.store else setup.workdir / "stores"
    weights = str(setup.sft_folder) if config.sft else config.model.weights
    train = () if heldout_only else config.data.train
    named: list[Any] = [weights, [dict(source) for source in (*train, *config.data.eval)]]
    if any({"weight", "flip"} & source.keys() for source in (*train, *config.data.eval)):  # the seed draws the rows
        named.append(config.seed)
    if is_unpaired(config.loss):  # other rows of the same file
        named.append("mismatched" if needs_mismatched(config.loss) else "unpaired")
    name = Path(weights.removeprefix("package:")).name or "model"
    return root / f"{name}-{digest(json.dumps(named, sort_keys=True).encode())[:12]}"


def heldout_store(setup: Setup, params: Callable[[], Params]) -> Store:
    """The store that an evaluation reads: that of the training, where there is one."""
    return complete_store(setup, params, heldout_only=not reads_store(setup))


def reads_store(setup: Setup) -> bool:
    """Whether training takes the reference's log-probs from a store."""
    return needs_reference(setup.terms) and why_no_store(setup) is None


def complete_store(setup: Setup, params: Callable[[], Params], *, heldout_only: bool = False) -> Store:
    """Opens the store and scores the rows that it lacks; says which it was.

    `params` gives the frozen parameters; the store is compared with them even when nothing is missing.
    `heldout_only` leaves the training rows out, where training itself has no use for them.
    """
    config = setup.config
    parts = [*([] if heldout_only else [setup.train_data.rows]), *([setup.eval_data.rows] if config.data.eval else [])]
    row_ids = np.concatenate([as_ids(row_ids_of(rows)) for rows in parts])
    fingerprint = make_fingerprint(
        params(),
        row_ids,
        setup.tokenization(),
        model=setup.model.spec,
        dtype=config.model.dtype,
    )
    store = Store(store_folder(setup, heldout_only=heldout_only), fingerprint)
    store.serves(str(setup.workdir.resolve()))
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
            found = score_rows(
                setup.score,
                params(),
                setup.scoring_batches(shard),
                place=setup.place,
                progress=count,
            )
            store.append(*found)
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


def _lines(setup: Setup, scores: Scores) -> list[str]:
    names = ("chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")
    if is_unpaired(setup.config.loss):
        kinds = ("completion", "mismatched")[: scores.logps_nP.shape[1]]
        names = tuple(f"{kind}_{what}" for what in ("logps", "tokens") for kind in kinds)
    columns = np.concatenate([scores.logps_nP.astype(object), scores.tokens_nP.astype(object)], axis=1)
    return [
        json.dumps({"row_id": row.row_id, **dict(zip(names, values, strict=True))}) + "\n"
        for row, values in zip(setup.train_data.rows, columns.tolist(), strict=True)
    ]
