"""The data of a configuration as tokens: pairs, or labelled completions where the losses read those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.config import Config, Source
from dpo_jax.data.rules import Rules
from dpo_jax.data.sources import read_pairs, read_unpaired
from dpo_jax.data.sources.messages import key_of
from dpo_jax.data.tokenize import Counts, tokenize_chunks
from dpo_jax.errors import UserError
from dpo_jax.stages.progress import say
from dpo_jax.stages.terms import is_unpaired, needs_mismatched
from dpo_jax.types import Prompt, TokenRow

ABSENT = {"weight": 1.0, "margin": 0.0, "soft_label": 1.0}
"""What a row that does not say means, where others do: it counts once, by no margin, and chosen is better."""


class DataRows(NamedTuple):
    """The rows of some sources in data order, their different prompts, and what the rows bring beside their texts."""

    rows: list[TokenRow]
    prompts: list[Prompt]
    desirable: np.ndarray | None = None  # bool [rows], the labels of unpaired completions
    # float32 [rows]; None where no row has one, `ABSENT` for a row that has none
    weight_B: np.ndarray | None = None
    margin_B: np.ndarray | None = None
    soft_label_B: np.ndarray | None = None
    source_B: np.ndarray | None = None  # int32 [rows], places in `sources`
    sources: tuple[str, ...] = ()  # the names of the sources, in their order


def rules_of(config: Config) -> dict[str, Any]:
    """How text becomes tokens, as `data` says it: the fields of `Rules`."""
    data = config.data
    return {
        "template": data.template,
        "chat_template": _chat_template(data.chat_template),
        "score": data.score,
        "special_tokens": data.special_tokens,
        "truncation": data.truncation,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_tokens": data.max_tokens,
    }


def _chat_template(given: str | None) -> str | None:
    """A template in jinja: that of a file, or what is given itself, where it can be nothing else."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: the file {given} cannot be read ({error}). Name a file, or write the template itself."
        ) from None


def read_rows(config: Config, tokenizer: Any, name: str, sources: Sequence[Source]) -> DataRows:
    """Reads, checks and tokenizes; `name` is the key of the configuration, for what is said of the rows."""
    if not sources:
        return DataRows([], [])
    losses, reading = config.loss, {"on_error": config.data.on_error, "seed": config.seed}
    if not is_unpaired(losses):
        pairs = read_pairs(sources, **reading)
        rows, tokens = as_tokens(config, tokenizer, name, pairs.rows, pairs.skipped)
        return _with_columns(DataRows(tokens, _prompts(rows)), rows)
    labelled = read_unpaired(sources, **reading, mismatched=needs_mismatched(losses))
    rows, tokens = as_tokens(config, tokenizer, name, labelled.rows, labelled.skipped)
    desirable = np.array([row.desirable for row in rows])
    if desirable.all() or not desirable.any():
        raise UserError(f"{name}: all {len(desirable)} labels are {bool(desirable[0])}; both labels are needed.")
    return _with_columns(DataRows(tokens, _prompts(rows), desirable), rows)


def _prompts(rows: Iterable[Any]) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    for row in rows:
        prompt = Prompt(row.prompt, None, row.where, row.tools, row.chat_template_kwargs)
        found.setdefault(key_of((key_of(row.prompt), row.tools, row.chat_template_kwargs)), prompt)  # type: ignore[arg-type]
    return list(found.values())


def _with_columns(data: DataRows, rows: Sequence[Any]) -> DataRows:
    values: dict[str, Any] = {}
    for name, absent in ABSENT.items():
        given = [row._asdict().get(name) for row in rows]
        if any(value is not None for value in given):
            values[f"{name}_B"] = np.array([absent if value is None else value for value in given], np.float32)
    names = tuple(dict.fromkeys(row.source for row in rows))
    places = {name: place for place, name in enumerate(names)}
    source_B = np.array([places[row.source] for row in rows], np.int32)
    return data._replace(**values, source_B=source_B, sources=names)


def as_tokens(
    config: Config, tokenizer: Any, name: str, rows: Sequence[Any], skipped: Mapping[str, int]
) -> tuple[list[Any], list[TokenRow]]:
    """The rows that can be used, and their tokens; what was changed or skipped is said.

    Raises:
        UserError: a row cannot be used (with data.on_error "stop"), or none is left.
    """
    left_out, counts = Counter(skipped), np.zeros(len(Counts()), int)
    kept: list[Any] = []
    tokens: list[TokenRow] = []
    for chunk in tokenize_chunks(rows, tokenizer, Rules(**rules_of(config)), on_error=config.data.on_error):
        kept += chunk.rows
        tokens += chunk.tokens
        counts += chunk.counts
        left_out.update(chunk.skipped)
    notes = [f"{count} skipped ({reason})" for reason, count in left_out.items()]
    changes = Counts(*counts.tolist())._asdict()
    notes += [f"{count} {field.replace('_', ' ')}" for field, count in changes.items() if count]
    if not tokens:
        raise UserError(f"{name}: no rows are left: {', '.join(notes)}.")
    say("data", f"{name}: {len(tokens)} rows" + "".join(f", {note}" for note in notes))
    return kept, tokens
