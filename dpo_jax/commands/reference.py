"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.commands import sft
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError
from dpo_jax.experiments.steps import Steps
from dpo_jax.experiments.stores import SCORED, UNITS, agree, complete_store
from dpo_jax.files import write_atomic
from dpo_jax.reference.store import Store
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params


def run(experiment: Steps, *, jsonl: str | None = None, verify: str | None = None) -> None:
    """Completes the store; with `jsonl`, also writes the scores of the training rows, in data order.

    `verify` is how many rows, drawn by the seed, are scored once more and compared.
    """
    count = _row_count(verify)
    if reason := experiment.why_no_store():
        raise UserError(f"reference: nothing to store: {reason}.")
    prepare(experiment)
    params = cache(experiment.start_params)
    store = complete_store(experiment, params)
    if jsonl:
        rows = experiment.train_data.rows
        lines = experiment.score_lines(store.lookup(row_ids_of(rows)))
        write_atomic(Path(jsonl), "".join(json.dumps(line) + "\n" for line in lines))
        say("reference", f"wrote {len(rows)} rows to {jsonl}")
    if count:
        _verify(experiment, store, params(), count)


def prepare(experiment: Steps) -> None:
    """Fine-tunes and makes pairs, where the configuration asks for that and it is not done: the start of all else."""
    if experiment.config.sft:
        experiment.before_sft()
        sft.run(experiment)
    experiment.make_missing_pairs()


def _row_count(text: str | None) -> int:
    if text is not None and not (text.isdecimal() and int(text)):
        raise UserError(f"command line: --verify {text!r}: give the number of rows to score again, such as 100.")
    return int(text or 0)


def _verify(experiment: Steps, store: Store[Any], params: Params, count: int) -> None:
    """Scores some training rows again.

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
