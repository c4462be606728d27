"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.batches import evaluation_batches
from dpo_jax.errors import UserError
from dpo_jax.files import digest, write_atomic
from dpo_jax.losses import TOKEN_LEVEL
from dpo_jax.reference.fingerprint import make_fingerprint
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Scores, Store
from dpo_jax.stages import sft
from dpo_jax.stages.progress import Progress, say
from dpo_jax.stages.setup import Setup
from dpo_jax.stages.terms import is_unpaired, needs_mismatched, needs_reference
from dpo_jax.types import Params


def run(setup: Setup, *, jsonl: str | None = None) -> None:
    """Completes the store; with `jsonl`, also writes the scores of the training rows, in data order."""
    reason = why_no_store(setup)
    if reason:
        raise UserError(f"reference: nothing to store: {reason}.")
    fine_tune_first(setup)
    params = cache(setup.start_params)
    store = complete_store(setup, params)
    if jsonl:
        rows = setup.train_data.rows
        lines = _lines(setup, store.lookup([row.row_id for row in rows]))
        write_atomic(Path(jsonl), "".join(lines))
        say("reference", f"wrote {len(rows)} rows to {jsonl}")


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
    weights = str(setup.workdir / "sft") if config.sft else config.model.weights
    train = () if heldout_only else config.data.train
    named: list[Any] = [weights, [dict(source) for source in (*train, *config.data.eval)]]
    if any("weight" in source for source in (*train, *config.data.eval)):  # the seed draws the rows
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
    rows = [*([] if heldout_only else setup.train_data.rows), *setup.eval_data.rows]
    fingerprint = make_fingerprint(
        params(),
        [row.row_id for row in rows],
        setup.tokenization(),
        model=setup.model.spec,
        dtype=setup.config.model.dtype,
    )
    store = Store(store_folder(setup, heldout_only=heldout_only), fingerprint)
    missing = [rows[index] for index in store.missing([row.row_id for row in rows])]
    if not missing:
        say("reference", f"{len(store)} rows in {store.folder}: nothing to score")
        return store
    say(
        "reference",
        f"scores {len(missing)} rows into {store.folder}" + (f", {len(store)} are there" if len(store) else ""),
    )
    options = setup.config.reference
    start = time.perf_counter()
    with Progress("reference", len(missing), unit="rows") as progress:
        for first in range(0, len(missing), options.rows_per_shard):
            shard = missing[first : first + options.rows_per_shard]
            row_ids, scores = score_rows(
                setup.score,
                params(),
                evaluation_batches(shard, pairs=options.batch_pairs, row_multiple=setup.row_multiple),
                place=setup.place,
                progress=lambda done, first=first: progress.update(first + done),
            )
            store.append(row_ids, scores)
    seconds = time.perf_counter() - start
    say("reference", f"done: {len(missing)} rows, {len(missing) / seconds:.1f} rows/s")
    return store


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
