"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from dpo_jax.data.batches import evaluation_batches
from dpo_jax.files import digest, write_atomic
from dpo_jax.reference.fingerprint import make_fingerprint
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Scores, Store
from dpo_jax.stages import sft
from dpo_jax.stages.progress import Progress, say
from dpo_jax.stages.setup import Setup
from dpo_jax.types import Params, TokenRow


def run(setup: Setup, *, jsonl: str | None = None) -> None:
    """Completes the store; with `jsonl`, also writes the scores of the training rows, in data order."""
    fine_tune_first(setup)
    params = cache(setup.start_params)
    store = complete_store(setup, params)
    if jsonl:
        scores = store.lookup([row.row_id for row in setup.train_rows])
        write_atomic(Path(jsonl), "".join(_lines(setup.train_rows, scores)))
        say("reference", f"wrote {len(setup.train_rows)} rows to {jsonl}")


def fine_tune_first(setup: Setup) -> None:
    """Fine-tuning, where the configuration asks for it: its result is the reference."""
    if setup.config.sft:
        sft.run(setup)


def store_folder(setup: Setup) -> Path:
    """The store of this model on these sources: named by what the user calls them; what they hold is fingerprinted."""
    config = setup.config
    root = Path(config.reference.store) if config.reference.store else setup.workdir / "stores"
    weights = str(setup.workdir / "sft") if config.sft else config.model.weights
    sources = [dict(source) for source in (*config.data.train, *config.data.eval)]
    name = Path(weights.removeprefix("package:")).name or "model"
    return root / f"{name}-{digest(json.dumps([weights, sources], sort_keys=True).encode())[:12]}"


def complete_store(setup: Setup, params: Callable[[], Params]) -> Store:
    """Opens the store and scores the rows that it lacks; says which it was.

    `params` gives the frozen parameters; the store is compared with them even when nothing is missing.
    """
    rows = [*setup.train_rows, *setup.eval_rows]
    fingerprint = make_fingerprint(
        params(),
        [row.row_id for row in rows],
        setup.tokenization(),
        model=setup.model.spec,
        dtype=setup.config.model.dtype,
    )
    store = Store(store_folder(setup), fingerprint)
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


def _lines(rows: list[TokenRow], scores: Scores) -> list[str]:
    names = ("chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")
    columns = np.concatenate([scores.logps_nP.astype(object), scores.tokens_nP.astype(object)], axis=1)
    return [
        json.dumps({"row_id": row.row_id, **dict(zip(names, values, strict=True))}) + "\n"
        for row, values in zip(rows, columns.tolist(), strict=True)
    ]
