"""The data of a configuration as tokens: pairs, or labelled completions where the losses read those.

Rows stream from their sources through the tokenizer to disk; what stays of each is a few numbers.

Dimension key: n rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.config import Config, Source
from dpo_jax.data.rules import Rules
from dpo_jax.data.sources import PAIRS, UNPAIRED, read_sources, stream
from dpo_jax.data.sources.labels import with_mismatched
from dpo_jax.data.sources.messages import key_of
from dpo_jax.data.tokenize import Counts, tokenize_chunks
from dpo_jax.data.tokens import write_table
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import is_unpaired, needs_mismatched
from dpo_jax.runtime.progress import say
from dpo_jax.types import Prompt, TokenRow

ABSENT = {"weight": 1.0, "margin": 0.0, "soft_label": 1.0}
"""What a row brings that has none, where others have one."""
_PROMPTS_KEPT = 100_000


class DataRows(NamedTuple):
    """The rows of some sources in data order, their different prompts, and what the rows bring beside their texts."""

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


def read_rows(
    config: Config, tokenizer: Any, name: str, sources: Sequence[Source], *, limit: int | None = None
) -> DataRows:
    """Reads, checks and tokenizes; `name` is the key of the configuration, for what is said of the rows.

    No more than `limit` rows, the first ones, if that is given.
    """
    if not sources:
        return DataRows([], [])
    losses, reading = config.loss, {"on_error": config.data.on_error, "seed": config.seed}
    skipped: Counter[str] = Counter()
    if not is_unpaired(losses):
        pairs = islice(stream(PAIRS, sources, **reading, skipped=skipped), limit)
        return as_tokens(config, tokenizer, name, sources, pairs, skipped)
    labelled, left_out = read_sources(UNPAIRED, sources, **reading)
    labelled = with_mismatched(labelled) if needs_mismatched(losses) else labelled
    skipped.update(left_out)
    found = as_tokens(config, tokenizer, name, sources, islice(labelled, limit), skipped)
    desirable = found.desirable
    assert desirable is not None
    if desirable.all() or not desirable.any():
        raise UserError(f"{name}: all {len(desirable)} labels are {bool(desirable[0])}; both labels are needed.")
    return found


def as_tokens(
    config: Config, tokenizer: Any, name: str, sources: Sequence[Source], rows: Iterable[Any], skipped: Counter[str]
) -> DataRows:
    """The rows as tokens, on disk, and what they bring; what was changed or left out is said.

    `skipped` counts what `rows` left out so far.

    Raises:
        UserError: a row cannot be used (with data.on_error "stop"), or none is left.
    """
    beside, counts, left_out = _Columns(), np.zeros(len(Counts()), int), Counter[str]()

    def tokens() -> Iterator[TokenRow]:
        for chunk in tokenize_chunks(rows, tokenizer, Rules(**rules_of(config)), on_error=config.data.on_error):
            beside.add(chunk.rows)
            counts[:] += np.array(chunk.counts)
            left_out.update(chunk.skipped)
            yield from chunk.tokens

    table = write_table(tokens(), Path(config.workdir) / "tokens")
    left_out.update(skipped)
    changes = Counts(*counts.tolist())
    notes = [f"{count} skipped ({reason})" for reason, count in left_out.items()]
    notes += [f"{count} {field.replace('_', ' ')}" for field, count in changes._asdict().items() if count]
    if not len(table):
        reasons = ", ".join(notes) or "the sources are empty"
        raise UserError(f"{name}: no rows are left of {[dict(source) for source in sources]}: {reasons}.")
    say("data", f"{name}: {len(table)} rows" + "".join(f", {note}" for note in notes))
    return DataRows(table, **beside.arrays(), counts=changes, skipped=dict(left_out))


class _Columns:
    """What rows bring beside their texts, collected chunk by chunk."""

    def __init__(self) -> None:
        self._prompts: dict[str, Prompt] = {}
        self._names: dict[str, int] = {}
        self._sources: list[np.ndarray] = []
        self._numbers: dict[str, list[np.ndarray]] = {name: [] for name in (*ABSENT, "desirable")}

    def add(self, rows: Sequence[Any]) -> None:
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
        found: dict[str, Any] = {"prompts": list(self._prompts.values()), "sources": tuple(self._names)}
        for name, chunks in self._numbers.items():
            values_n = np.concatenate(chunks)
            if np.isnan(values_n).all():
                continue
            if name == "desirable":
                found[name] = values_n > 0
            else:
                found[f"{name}_B"] = np.where(np.isnan(values_n), np.float32(ABSENT[name]), values_n)
        return {**found, "source_B": np.concatenate(self._sources)}
