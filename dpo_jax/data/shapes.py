"""The few static shapes that the batches of a data set may have: each one that occurs is compiled.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens; of sequences U parts of the rows, M
sequences in a part, L tokens in a sequence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from dpo_jax.data.layouts import LAYOUTS, Places, Shape, place_runs
from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import nearest
from dpo_jax.types import TokenRow

Part = tuple[np.ndarray, slice]
"""What goes into one micro-batch: rows, and which of their responses."""

_MULTIPLE = 8
_LENGTHS = 8  # T is so many eighths of the limit of the data set
_SEQUENCE_LENGTHS = 4
_MOST = 8  # shapes that are compiled for a data set, but for batches that are larger than all examples
_GAIN = 0.01  # share of what a further shape must save
EXAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Packing:
    """The form of batches: how rows lie in them, what divides R, and the layouts whose sequences are wanted."""

    layout: str = "padded"  # of `LAYOUTS`
    row_multiple: int = 1
    unpack: Collection[str] | None = None  # None: nobody asks for sequences

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}. {nearest(str(self.layout), LAYOUTS)}")


class Shapes:
    """Chooses the shape of each batch, and places its runs.

    A few shapes are drawn from example batches so that those make the fewest tokens, in rows and scored. A batch gets
    the smallest that holds it; one that none holds gets its own, in multiples of the largest number of rows.

    Where the sequences of the layout are wanted, rows are dealt out to the `row_multiple` parts of a batch.

    Args:
        pairs: how many a part may hold.
        examples: batches as they may come; the first few hundred are looked at.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        packing: Packing,
        *,
        pairs: int,
        examples: Iterable[Sequence[Part]] = (),
    ):
        self.layout, self.sizes = LAYOUTS[packing.layout], sizes_of(rows)
        self._pairs, self._row_multiple = pairs, packing.row_multiple
        longest = self.layout.lengths(self.sizes)[0].max()
        self._lengths = _shares(longest, _LENGTHS)
        examples = list(islice(examples, EXAMPLES))
        needed = [[shape for _, shape in self._places(parts)] for parts in examples]
        self._known = sorted(_chosen(needed), key=_cost) if needed else []
        self._unpacked = None if packing.unpack is None else ()
        self._sequences: SequenceShapes | None = None
        self._deals = packing.layout in (packing.unpack or ())
        if self._deals:
            tokens = self.layout.sequences(self.sizes)
            held = (each for parts in examples for each in self._held(parts, *self.of(parts)))
            sizes = _shares(tokens.max(), _SEQUENCE_LENGTHS)
            self._sequences = SequenceShapes(tokens.ravel(), sizes, parts=self._row_multiple, examples=held)

    def of(self, parts: Sequence[Part]) -> tuple[list[Places], Shape]:
        """The places of the runs of each part, and the shape that holds every part."""
        places, shape = self._smallest(parts)
        if self._deals:
            dealt = (spread(place.row, rows=shape.rows, parts=self._row_multiple) for place in places)
            places = [place._replace(row=row) for place, row in zip(places, dealt, strict=True)]
        sequences = self._sequences.of(self._held(parts, places, shape)) if self._sequences else self._unpacked
        return places, shape._replace(sequences=sequences)

    def _smallest(self, parts: Sequence[Part]) -> tuple[list[Places], Shape]:
        possible = list(self._places(parts))
        for known in self._known:
            for places, need in possible:
                if need.length == known.length and _holds(known, need):
                    return places, known
        places, need = min(possible, key=lambda each: _cost(each[1]))
        most = max((known.rows for known in self._known), default=self._row_multiple)
        return places, need._replace(rows=round_up(need.rows, most))

    def _held(self, parts: Sequence[Part], places: Sequence[Places], shape: Shape) -> Iterator[Sequences]:
        """The sequences of each part, at these places."""
        for (picks, slots), place in zip(parts, places, strict=True):
            tokens = self.layout.sequences(self.sizes.of(picks, slots))
            of_run = place.row // (shape.rows // self._row_multiple)
            yield Sequences(tokens.ravel(), np.repeat(of_run, tokens.shape[1]))

    def _places(self, parts: Sequence[Part]) -> Iterator[tuple[list[Places], Shape]]:
        """For each length of rows that is enough: the places, and what they need."""
        lengths = [self.layout.lengths(self.sizes.of(picks, slots)) for picks, slots in parts]
        longest = max(int(tokens.max()) for tokens, _ in lengths)
        for length in self._lengths:
            if length < longest:
                continue
            places = [place_runs(self.layout, *each, length=length) for each in lengths]
            rows = max(place.rows for place in places)
            if not self.layout.packs:  # as many as in a full batch
                both = zip(places, parts, strict=True)
                rows = max(place.rows * self._pairs // len(picks) for place, (picks, _) in both)
            scored = max(place.scored for place in places)
            yield places, Shape(round_up(rows, self._row_multiple), length, round_up(scored, _MULTIPLE))


class Sequences(NamedTuple):
    """Sequences of a micro-batch: the tokens of each, and the part of the rows that it is in."""

    tokens: np.ndarray
    part: np.ndarray


class SequenceShapes:
    """Chooses how many sequences, and how long, the parts of a batch are made for.

    L is one of some sizes, as far as any sequence of the data needs them; M what the fullest part of the examples
    needs, or a multiple.

    Args:
        tokens: those of all sequences of the data set.
        sizes: lengths to choose from, ascending; the last holds every sequence.
    """

    def __init__(self, tokens: np.ndarray, sizes: Sequence[int], *, parts: int, examples: Iterable[Sequences]):
        needed = np.bincount(np.searchsorted(sizes, tokens), minlength=len(sizes))
        self._lengths, self._parts = [size for size, count in zip(sizes, needed, strict=True) if count], parts
        self._most = np.max([self._needed(held) for held in examples] or [np.ones(len(self._lengths), int)], axis=0)

    def of(self, batches: Iterable[Sequences]) -> tuple[tuple[int, int, int], ...]:
        """Return [U, M, L] of arrays that hold the sequences of any of these."""
        most = np.maximum(self._most, 1)
        counts = -(-np.max([self._needed(each) for each in batches], axis=0) // most)
        chosen = zip(np.maximum(counts, 1) * most, self._lengths, strict=True)
        return tuple((self._parts, int(count), length) for count, length in chosen)

    def _needed(self, held: Sequences) -> np.ndarray:
        """Number of sequences in the fullest part, for each length."""
        size = np.searchsorted(self._lengths, held.tokens)
        counts = np.zeros((self._parts, len(self._lengths)), int)
        np.add.at(counts, (held.part, size), 1)
        return counts.max(axis=0)


def spread(row: np.ndarray, *, rows: int, parts: int) -> np.ndarray:
    """Deal rows out to the parts one by one: side by side those first filled would hold all long sequences."""
    return row % parts * (rows // parts) + row // parts


def _shares(longest: int, count: int) -> tuple[int, ...]:
    """So many equal steps up to the longest, rounded up; the shortest first."""
    shares = {round_up(math.ceil(longest * part / count), _MULTIPLE) for part in range(1, count + 1)}
    return tuple(sorted(shares))


def _cost(shape: Shape) -> int:
    return shape.rows * (shape.length + shape.scored)


def _holds(shape: Shape, need: Shape) -> bool:
    return need.rows <= shape.rows and need.scored <= shape.scored


def _chosen(needed: Sequence[Sequence[Shape]]) -> list[Shape]:
    """Few shapes, one of which holds each example in some length of rows; each is the one that then saves the most."""
    whole = [shapes[-1] for shapes in needed]  # the limit, which every example has
    chosen = [Shape(max(s.rows for s in whole), whole[0].length, max(s.scored for s in whole))]
    least = np.full(len(needed), _cost(chosen[0]))
    candidates = sorted({shape for shapes in needed for shape in shapes})
    costs = np.array([_costs(candidate, needed) for candidate in candidates])
    while len(chosen) < _MOST:
        totals = np.minimum(costs, least).sum(axis=1)
        best = int(totals.argmin())
        if totals[best] > (1 - _GAIN) * least.sum():
            break
        chosen.append(candidates[best])
        least = np.minimum(least, costs[best])
    return chosen


def _costs(shape: Shape, needed: Sequence[Sequence[Shape]]) -> list[float]:
    """Cost of each example in this shape, which is infinite where it does not fit."""
    fits = (any(need.length == shape.length and _holds(shape, need) for need in shapes) for shapes in needed)
    return [_cost(shape) if fit else math.inf for fit in fits]


def round_up(size: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-int(size) // multiple) * multiple
