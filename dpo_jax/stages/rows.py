"""The data of a configuration as tokens: pairs, or labelled completions where the losses read those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.config import Config, Source
from dpo_jax.data.sources import read_pairs, read_unpaired
from dpo_jax.data.tokenize import tokenize
from dpo_jax.data.tokens import write_table
from dpo_jax.errors import UserError
from dpo_jax.stages.progress import say
from dpo_jax.stages.terms import is_unpaired, needs_mismatched
from dpo_jax.types import Completion, PreferencePair, TokenRow, UnpairedCompletion


class DataRows(NamedTuple):
    """The rows of some sources in data order, and their different prompts as text."""

    rows: Sequence[TokenRow]
    prompts: list[str]
    desirable: np.ndarray | None = None  # bool [rows], the labels of unpaired completions


def read_rows(config: Config, tokenizer: Any, name: str, sources: Sequence[Source]) -> DataRows:
    """Reads, checks and tokenizes; `name` is the key of the configuration, for what is said of the rows."""
    if not sources:
        return DataRows([], [])
    losses, on_error = config.loss, config.data.on_error
    if not is_unpaired(losses):
        pairs = read_pairs(sources, on_error=on_error)
        return DataRows(as_tokens(config, tokenizer, name, pairs.rows, pairs.skipped), _prompts(pairs.rows))
    labelled = read_unpaired(sources, on_error=on_error, mismatched=needs_mismatched(losses))
    desirable = np.array([row.desirable for row in labelled.rows])
    if desirable.all() or not desirable.any():
        raise UserError(f"{name}: all {len(desirable)} labels are {bool(desirable[0])}; both labels are needed.")
    return DataRows(
        as_tokens(config, tokenizer, name, labelled.rows, labelled.skipped), _prompts(labelled.rows), desirable
    )


def _prompts(rows: Sequence[PreferencePair | UnpairedCompletion]) -> list[str]:
    return list(dict.fromkeys(row.prompt for row in rows))


def as_tokens(
    config: Config,
    tokenizer: Any,
    name: str,
    rows: Sequence[PreferencePair | Completion | UnpairedCompletion],
    skipped: dict[str, int],
) -> Sequence[TokenRow]:
    """Rows as tokens, on disk; what was changed or skipped is said."""
    data = config.data
    done = tokenize(
        rows,
        tokenizer,
        template=data.template,
        max_prompt_tokens=data.max_prompt_tokens,
        max_tokens=data.max_tokens,
    )
    notes = [f"{count} skipped ({reason})" for reason, count in skipped.items()]
    notes += [f"{count} {field.replace('_', ' ')}" for field, count in done.counts._asdict().items() if count]
    say("data", f"{name}: {len(done.rows)} rows" + "".join(f", {note}" for note in notes))
    return write_table(done.rows, Path(config.workdir) / "tokens")
