"""The data looked at before anything is trained: what was read, cut and left out, and what is odd about the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.check import PERCENTILES, Findings, Overlap, Split, check_rows, overlap
from dpo_jax.data.pictures import Pictures
from dpo_jax.data.rows import DataRows
from dpo_jax.experiments.picture_evaluation import members, metrics_of
from dpo_jax.files import write_json
from dpo_jax.reporting.data import Example, Piece, SplitReport
from dpo_jax.reporting.pictures import data_url
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.types import PictureRow, TokenRow

_EXAMPLES = 3
_BIASED = 0.1
"""How far from even the share of pairs with the longer one chosen may be before it is called odd."""
_SHOWN = 24
_MEASURED = 512
"""Rows whose members are compared by quality metrics."""
_SHORTCUT = 0.9
"""From which share on a metric alone tells chosen from rejected."""

Fact = tuple[str, str, bool]
"""What is counted, the count in words, and whether it is odd."""


def reports_of_texts(
    tokenizer: Any, stop_tokens: Collection[int], trained: Mapping[str, DataRows], held_out: DataRows | None
) -> list[SplitReport]:
    """One report for each split; `trained` has the rows that are learned from, by their key."""
    ((name, train),) = trained.items()
    own = _split(tokenizer, stop_tokens, train)
    reports = [_text_report(tokenizer, name, train, own.findings, None)]
    if held_out is not None:
        other = _split(tokenizer, stop_tokens, held_out)
        reports.append(_text_report(tokenizer, "data.eval", held_out, other.findings, overlap(own, other)))
    return reports


def keep(workdir: Path, reports: Sequence[SplitReport]) -> None:
    """Writes WORKDIR/data.json, without the examples: those are the data themselves."""
    write_json(Run(workdir).data, [{**report._asdict(), "examples": [], "pictures": []} for report in reports])


def warn(reports: Sequence[SplitReport]) -> None:
    """Says the odd facts alone."""
    odd = [(report.name, what, count) for report in reports for what, count, is_odd in report.facts if is_odd]
    for name, what, count in odd:
        say("data", f"{name}: {count} {what}")
    if odd:
        say("data", "`dpo-jax check-data` shows these and the rest, with examples")


def _rows_read(name: str, count: int, skipped: Mapping[str, int]) -> list[Fact]:
    """How many rows were kept and, by reason, left out."""
    return [
        (name, f"{count:,}", False),
        *((f"rows left out: {reason}", f"{left:,}", True) for reason, left in skipped.items()),
    ]


def _split(tokenizer: Any, stop_tokens: Collection[int], data: DataRows) -> Split:
    return check_rows(data.rows, ends=stop_tokens, bos=tokenizer.bos_token_id, desirable=data.desirable)


def _text_report(tokenizer: Any, name: str, data: DataRows, findings: Findings, shared: Overlap | None) -> SplitReport:
    facts = _rows_read("rows kept", findings.rows, data.skipped)
    unread = [
        (f"of {name}.{place}: columns not read", columns)
        for place, columns in enumerate(data.unread_columns)
        if columns
    ]
    facts += [(what, ", ".join(columns), False) for what, columns in unread]
    counted = {
        "prompts truncated, their end kept": data.counts.prompts_truncated,
        "responses truncated, their start kept": data.counts.responses_truncated,
        "rows with special tokens, read as text": data.counts.special_tokens_as_text,
        "over-long rows dropped": data.counts.long_rows_dropped,
        **{f"rows with {name}, unread by the chat template": count for name, count in data.unread.items()},
        "pairs nearly identical": findings.nearly_identical,
        "responses that do not end with a stop token": findings.responses_without_end,
        "prompts that begin with BOS twice": findings.prompts_with_two_bos,
        "rows that stand there twice": findings.repeated,
        "pairs labelled both ways": findings.both_orders,
    }
    if shared is not None:
        counted |= {"rows that are also in data.train": shared.rows, "prompts also in data.train": shared.prompts}
    facts += [(what, f"{count:,}", bool(count > 0)) for what, count in counted.items()]
    if findings.longer_chosen is not None:
        odd = abs(findings.longer_chosen - 0.5) > _BIASED
        facts.append(("of the pairs have the longer response chosen", f"{findings.longer_chosen:.0%}", odd))
    picks = np.linspace(0, len(data.rows) - 1, min(_EXAMPLES, len(data.rows))).astype(int)
    names = tuple(findings.lengths)[1:]
    examples = [_example(tokenizer.decode, data.rows[pick], names) for pick in picks]
    return SplitReport(
        name, facts, PERCENTILES, findings.lengths, examples, shared=None if shared is None else shared.rows
    )


def _example(decode: Callable[[Any], str], row: TokenRow, names: tuple[str, ...]) -> Example:
    responses = []
    for slot, name in enumerate(names):
        response = row.responses[slot]
        scored = np.ones(len(response), bool) if row.masks is None else row.masks[slot]
        cuts = [0, *(np.flatnonzero(np.diff(scored)) + 1).tolist(), len(response)]
        pieces = [Piece(decode(row.prompt), "prompt")]
        for start, end in pairwise(cuts):
            pieces.append(Piece(decode(response[start:end]), "scored" if scored[start] else "unscored"))
        responses.append((name, pieces))
    return Example(row.row_id, responses)


def reports_of_pictures(splits: Mapping[str, Pictures]) -> list[SplitReport]:
    """One report for each split, by its name in the configuration."""
    known = {row.row_id for row in splits["data.train"].rows} if "data.train" in splits else set()
    return [_picture_report(name, data, known if name == "data.eval" else set()) for name, data in splits.items()]


def _picture_report(name: str, data: Pictures, known: set[str]) -> SplitReport:
    rows, counts = data.rows, Counter(row.row_id for row in data.rows)
    facts = _rows_read(f"rows ({len(rows[0].samples)} in each)", len(rows), data.skipped)
    facts += [("ties left out", f"{data.ties:,}", False)] if data.ties else []
    if repeated := len(rows) - len(counts):
        facts.append(("rows that are there before, pixel for pixel", f"{repeated:,}", True))
    shared = len(known & counts.keys())
    if shared:
        facts.append(("rows that are training rows too", f"{shared:,}", True))
    facts += _of_labels(rows)
    if len(rows[0].samples) == 2:
        facts += _of_metrics(rows[:_MEASURED])
    pictures = [(_label(row), [data_url(sample()) for sample in row.samples]) for row in rows[:_SHOWN]]
    return SplitReport(name, facts, (), {}, (), pictures, shared if name == "data.eval" else None)


def _of_labels(rows: Sequence[PictureRow]) -> list[Fact]:
    classes = Counter(row.shown for row in rows if isinstance(row.shown, int))
    good = sum(bool(row.desirable) for row in rows)
    facts = [(f"show class {label}", f"{count:,}", False) for label, count in sorted(classes.items())]
    if rows[0].desirable is not None:
        facts.append(("desirable", f"{good:,}", False))
    return facts


def _of_metrics(rows: Sequence[PictureRow]) -> list[Fact]:
    """In how many pairs the chosen member has more of each quality metric."""
    chosen, rejected = (metrics_of(members(rows, slot)) for slot in (0, 1))
    shares = {name: float(np.mean(chosen[name] > rejected[name])) for name in chosen}
    return [
        (f"of {len(rows):,} chosen members have more {name.replace('_', ' ')}", f"{share:.0%}", _tells(share))
        for name, share in shares.items()
    ]


def _tells(share: float) -> bool:
    return not 1.0 - _SHORTCUT < share < _SHORTCUT


def _label(row: PictureRow) -> str:
    named = f"class {row.shown}" if isinstance(row.shown, int) else ""
    return named if row.desirable is None else f"{named} {'desirable' if row.desirable else 'undesirable'}".strip()
