"""Pictures and clips looked at before training: what was read and left out, and what is odd about the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dpo_jax.data.pictures import Pictures
from dpo_jax.experiments.picture_judging import members, metrics_of
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.pictures import data_url
from dpo_jax.types import PictureRow

_SHOWN = 24
_MEASURED = 512
"""Rows whose members are compared by quality metrics."""
_SHORTCUT = 0.9
"""From which share on a metric alone tells chosen from rejected."""


def reports_of(splits: Mapping[str, Pictures]) -> list[SplitReport]:
    """One report for each split, by its name in the configuration."""
    known = {row.row_id for row in splits["data.train"].rows} if "data.train" in splits else set()
    return [_report(name, data, known if name == "data.eval" else set()) for name, data in splits.items()]


def _report(name: str, data: Pictures, known: set[str]) -> SplitReport:
    rows, counts = data.rows, Counter(row.row_id for row in data.rows)
    facts = [(f"rows ({len(rows[0].samples)} in each)", f"{len(rows):,}", False)]
    facts += [(f"rows left out: {reason}", f"{count:,}", True) for reason, count in data.skipped.items()]
    facts += [("ties left out", f"{data.ties:,}", False)] if data.ties else []
    if repeated := len(rows) - len(counts):
        facts.append(("rows that are there before, pixel for pixel", f"{repeated:,}", True))
    if shared := len(known & counts.keys()):
        facts.append(("rows that are training rows too", f"{shared:,}", True))
    facts += _of_labels(rows)
    if len(rows[0].samples) == 2:
        facts += _of_metrics(rows[:_MEASURED])
    pictures = [(_label(row), [data_url(sample()) for sample in row.samples]) for row in rows[:_SHOWN]]
    return SplitReport(name, facts, (), {}, (), pictures)


def _of_labels(rows: Sequence[PictureRow]) -> list[tuple[str, str, bool]]:
    classes = Counter(row.shown for row in rows if isinstance(row.shown, int))
    good = sum(bool(row.desirable) for row in rows)
    facts = [(f"show class {label}", f"{count:,}", False) for label, count in sorted(classes.items())]
    if rows[0].desirable is not None:
        facts.append(("desirable", f"{good:,}", False))
    return facts


def _of_metrics(rows: Sequence[PictureRow]) -> list[tuple[str, str, bool]]:
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
