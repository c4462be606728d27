"""Rows of some sources as tokens, and the columns that they have beside their texts.

Rows stream from their sources through the tokenizer to disk; what stays of each is a few numbers.

Dimension key: n rows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_jax.data.encoding import Rules
from dpo_jax.data.sources import Layout, stream
from dpo_jax.data.sources.labels import with_mismatched
from dpo_jax.data.sources.messages import key_of
from dpo_jax.data.sources.record import Spec
from dpo_jax.data.specials import Row
from dpo_jax.data.tokenize import Counts, tokenize_chunks
from dpo_jax.data.tokens import write_table
from dpo_jax.errors import Skipped, UserError
from dpo_jax.types import Prompt, TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ABSENT = {"weight": 1.0, "margin": 0.0, "soft_label": 1.0}
"""Value of a row that has none, where others have one."""
_PROMPTS_KEPT = 100_000


class DataRows(NamedTuple):
    """The rows of some sources in data order, their different prompts, and their columns beside the texts."""

    rows: Sequence[TokenRow]
    prompts: list[Prompt]  # the first 100,000 of them
    desirable: np.ndarray | None = None  # bool [n], the labels of unpaired completions
    # float32 [n]; None where no row has one, `ABSENT` for a row that has none
    weight_B: np.ndarray | None = None
    margin_B: np.ndarray | None = None
    soft_label_B: np.ndarray | None = None
    source_B: np.ndarray | None = None  # int32 [n], places in `sources`
    sources: tuple[str, ...] = ()  # the names of the sources, in their order
    counts: Counts = Counts()  # what tokenization changed
    skipped: Mapping[str, int] = MappingProxyType({})  # reason -> rows that were left out
    unread: Mapping[str, int] = MappingProxyType({})  # name -> rows that say it, and the chat template does not
    unread_columns: tuple[tuple[str, ...], ...] = ()  # of each source the columns that nobody has read

    @property
    def notes(self) -> list[str]:
        """Counts of the rows that were left out and changed on the way, for messages."""
        left_out = [f"{count} skipped ({reason})" for reason, count in self.skipped.items()]
        changed = [f"{n} {field.replace('_', ' ')}" for field, n in self.counts._asdict().items() if n]
        return left_out + changed + [f"{n} with {name} unread by the chat template" for name, n in self.unread.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Rules for reading rows."""

    rules: Rules
    folder: Path  # for the tokens, while they are used
    on_error: str = "stop"  # or skip: a bad row is left out, and counted
    seed: int = 0  # draws the rows where a source has a weight or wrong labels


def read_rows(
    layout: Layout[Row],
    sources: Sequence[Spec],
    tokenizer: PreTrainedTokenizerFast,
    reading: Reading,
    *,
    name: str,
    mismatched: bool = False,
    limit: int | None = None,
) -> DataRows:
    """Read, check and tokenize the rows of some sources.

    Args:
        layout: the form of the rows.
        sources: where they are.
        tokenizer: makes tokens of them.
        reading: rules for both.
        name: of the rows, for messages.
        mismatched: give each labelled completion that of a row with another prompt.
        limit: no more rows than this, the first ones.

    Raises:
        UserError: a source or (with on_error "stop") a row cannot be used, none is left, or all have the same label.
    """
    unusable, dropped, unread = Skipped(), Counter[str](), Counter[str]()
    unread_columns = list[Counter[str]]()
    told: dict[str, Any] = {"skipped": unusable, "unread": unread_columns}
    rows: Iterable[Row] = stream(layout, sources, on_error=reading.on_error, seed=reading.seed, **told)
    if mismatched:
        rows = with_mismatched(list(rows))  # type: ignore[arg-type]
    columns, counts = _Columns(), np.zeros(len(Counts()), int)

    def tokens() -> Iterator[TokenRow]:
        for chunk in tokenize_chunks(islice(rows, limit), tokenizer, reading.rules, on_error=reading.on_error):
            columns.add(chunk.rows)
            counts[:] += np.array(chunk.counts)
            dropped.update(chunk.skipped)
            unread.update(chunk.unread)
            yield from chunk.tokens

    table = write_table(tokens(), reading.folder)
    data = DataRows(
        table,
        [],
        counts=Counts(*counts.tolist()),
        skipped=dict(dropped + unusable),
        unread=dict(sorted(unread.items())),
        unread_columns=tuple(map(tuple, unread_columns)),
    )
    if not len(table):
        reasons = f"{', '.join(data.notes) or 'the sources are empty'}.{unusable.in_words()}"
        raise UserError(f"{name}: no rows are left of {[dict(source) for source in sources]}: {reasons}")
    data = data._replace(**columns.arrays())
    if data.desirable is not None and len(set(data.desirable.tolist())) < 2:
        all_labels = f"all {len(table)} labels are {bool(data.desirable[0])}"
        raise UserError(f"{name}: {all_labels}; both labels are needed.")
    return data


class _Columns:
    """The values of rows beside their texts, collected chunk by chunk."""

    def __init__(self) -> None:
        self._prompts: dict[str, Prompt] = {}
        self._names: dict[str, int] = {}
        self._sources: list[np.ndarray] = []
        self._numbers: dict[str, list[np.ndarray]] = {name: [] for name in (*ABSENT, "desirable")}

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if len(self._prompts) < _PROMPTS_KEPT:
                prompt = Prompt(row.prompt, None, row.where, row.tools, row.chat_template_kwargs)
                key = key_of((key_of(row.prompt), row.tools, row.chat_template_kwargs))  # type: ignore[arg-type]
                self._prompts.setdefault(key, prompt)
        places = [self._names.setdefault(row.source, len(self._names)) for row in rows]
        self._sources.append(np.array(places, np.int32))
        for name, chunks in self._numbers.items():
            given = [row._asdict().get(name) for row in rows]
            chunks.append(np.array([np.nan if value is None else value for value in given], np.float32))

    def arrays(self) -> dict[str, Any]:
        """The fields of `DataRows`; NaN stands for what a row does not have."""
        fields: dict[str, Any] = {"prompts": list(self._prompts.values()), "sources": tuple(self._names)}
        for name, chunks in self._numbers.items():
            values_n = np.concatenate(chunks)
            if np.isnan(values_n).all():
                continue
            if name == "desirable":
                fields[name] = values_n > 0
            else:
                fields[f"{name}_B"] = np.where(np.isnan(values_n), np.float32(ABSENT[name]), values_n)
        return {**fields, "source_B": np.concatenate(self._sources)}
