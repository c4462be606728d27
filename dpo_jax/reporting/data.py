"""What was found in the data, as lines for a terminal and as one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax.reporting.page import page


class Piece(NamedTuple):
    """A stretch of text of one kind: prompt, scored, or part of a response that is not scored."""

    text: str
    kind: str


class Example(NamedTuple):
    """One row as the model sees it: its responses, each with its prompt."""

    row_id: str
    responses: Sequence[tuple[str, Sequence[Piece]]]


class SplitReport(NamedTuple):
    """One split in words: facts as (what, how many, what it means), the odd ones marked; and its lengths."""

    name: str
    facts: Sequence[tuple[str, str, bool]]
    percentiles: Sequence[int]
    lengths: Mapping[str, Sequence[int]]
    examples: Sequence[Example]
    pictures: Sequence[tuple[str, Sequence[str]]] = ()  # of rows what they show, and the data URLs of their members
    shared: int | None = None  # rows that are also in data.train; None: not counted


def shared_rows(splits: Sequence[SplitReport]) -> int:
    """How many held-out rows were found to be training rows, too."""
    return sum(split.shared or 0 for split in splits)


def as_text(splits: Sequence[SplitReport]) -> list[str]:
    """The lines of a terminal; odd facts begin with `!`."""
    lines: list[str] = []
    for split in splits:
        lines.append(f"{split.name}:")
        lines += [f"  {'!' if odd else ' '} {count:>9}  {what}" for what, count, odd in split.facts]
        if not split.lengths:
            continue
        header = "  ".join(f"{f'{share} %' if share < 100 else 'longest':>7}" for share in split.percentiles)
        lines.append(f"    {'tokens':<12}{header}")
        for name, counts in split.lengths.items():
            lines.append(f"    {name:<12}" + "  ".join(f"{count:>7,}" for count in counts))
    return lines


def as_html(title: str, splits: Sequence[SplitReport]) -> str:
    """The page."""
    return page("data.html.jinja", title=title, splits=splits)
