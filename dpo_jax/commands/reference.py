"""The reference pass: every row scored once by the frozen model, into the store."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from dpo_jax.commands import sft
from dpo_jax.errors import UserError
from dpo_jax.experiments.steps import Steps
from dpo_jax.experiments.stores import complete_store, score_again
from dpo_jax.files import write_atomic
from dpo_jax.runtime.progress import say


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
        lines = experiment.score_lines(store)
        write_atomic(Path(jsonl), "".join(json.dumps(line) + "\n" for line in lines))
        say("reference", f"wrote {len(lines)} rows to {jsonl}")
    if count:
        score_again(experiment, store, params(), count)


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
