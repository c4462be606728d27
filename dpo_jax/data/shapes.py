"""The few static shapes that the batches of a data set may have: each one that occurs is compiled.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from dpo_jax.data.layouts import LAYOUTS, Places, Shape, place_runs
from dpo_jax.data.sequences import Held, SequenceShapes, spread
from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import TokenRow

Part = tuple[np.ndarray, slice]
"""What goes into one micro-batch: rows, and which of their responses."""

_MULTIPLE = 8
_HALVES = 3
_QUANTILES = (0.5, 0.9, 1.0)
EXAMPLES = 256


class Shapes:
    """Chooses the shape of each batch, and places its runs.

    Padded, T and N are the limit of the data set, its half or its quarter, and R is always the same. Packed, T is the
    limit, and R and N are what half, nine tenths or all of some example batches need; a batch that needs more gets the
    next multiple of the largest.

    Where the sequences of the layout are wanted, rows are dealt out to the `row_multiple` parts of a batch.

    Args:
        pairs: how many a part may hold.
        row_multiple: what divides R.
        unpack: the layouts whose sequences are wanted; None: nobody asks for them.
        examples: batches as they may come; the first few hundred are looked at.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        layout: str,
        *,
        pairs: int,
        row_multiple: int,
        unpack: Collection[str] | None = None,
        examples: Iterable[Sequence[Part]] = (),
    ):
        if layout not in LAYOUTS:
            raise UserError(f"data.layout is {layout!r}. {nearest(str(layout), LAYOUTS)}")
        self.layout, self.sizes = LAYOUTS[layout], sizes_of(rows)
        self._pairs, self._row_multiple = pairs, row_multiple
        tokens, scored = self.layout.lengths(self.sizes)
        self._length_sizes, self._scored_sizes = _halves(tokens.max()), _halves(scored.max())
        self._row_sizes: tuple[int, ...] = ()
        if self.layout.packs:
            self._length_sizes = self._length_sizes[-1:]
            examples = list(islice(examples, EXAMPLES))
            needed = [self._place(parts)[1] for parts in examples]
            self._row_sizes = _quantiles([shape.rows for shape in needed], row_multiple)
            self._scored_sizes = _quantiles([shape.scored for shape in needed], _MULTIPLE)
        self._unpacked = None if unpack is None else ()
        self._sequences: SequenceShapes | None = None
        self._deals = bool(unpack) and layout in unpack
        if self._deals:
            tokens = self.layout.sequences(self.sizes)
            held = (each for parts in examples for each in self._held(parts, *self.of(parts)))
            self._sequences = SequenceShapes(tokens.ravel(), _halves(tokens.max()), parts=row_multiple, examples=held)

    def of(self, parts: Sequence[Part]) -> tuple[list[Places], Shape]:
        """The places of the runs of each part, and the shape that holds every part."""
        places, (rows, length, scored, _) = self._place(parts)
        rows = _at_least(self._row_sizes or (rows,), rows, self._row_multiple)
        shape = Shape(rows, length, _at_least(self._scored_sizes, scored, _MULTIPLE), self._unpacked)
        if self._deals:
            places = [place._replace(row=spread(place.row, rows=rows, parts=self._row_multiple)) for place in places]
        if self._sequences:
            shape = shape._replace(sequences=self._sequences.of(self._held(parts, places, shape)))
        return places, shape

    def _held(self, parts: Sequence[Part], places: Sequence[Places], shape: Shape) -> Iterator[Held]:
        """The sequences of each part, at these places."""
        for (picks, slots), place in zip(parts, places, strict=True):
            tokens = self.layout.sequences(self.sizes.of(picks, slots))
            of_run = place.row // (shape.rows // self._row_multiple)
            yield Held(tokens.ravel(), np.repeat(of_run, tokens.shape[1]))

    def _place(self, parts: Sequence[Part]) -> tuple[list[Places], Shape]:
        """The places, and what they need."""
        lengths = [self.layout.lengths(self.sizes.of(picks, slots)) for picks, slots in parts]
        length = _at_least(self._length_sizes, max(int(tokens.max()) for tokens, _ in lengths), _MULTIPLE)
        places = [place_runs(self.layout, *each, length=length) for each in lengths]
        rows = max(place.rows for place in places)
        if not self.layout.packs:  # as many as in a full batch
            rows = max(place.rows * self._pairs // len(picks) for place, (picks, _) in zip(places, parts, strict=True))
        return places, Shape(rows, length, max(place.scored for place in places))


def _halves(longest: int) -> tuple[int, ...]:
    """The longest, a half and a quarter of it, the smallest first."""
    limit = round_up(longest, _MULTIPLE)
    return tuple(round_up(-(-limit // (1 << halving)), _MULTIPLE) for halving in reversed(range(_HALVES)))


def _quantiles(needed: Sequence[int], multiple: int) -> tuple[int, ...]:
    found = np.quantile(needed or [1], _QUANTILES, method="higher")
    return tuple(sorted({round_up(int(need), multiple) for need in found}))


def _at_least(sizes: Sequence[int], wanted: int, multiple: int) -> int:
    """The smallest of the sizes that holds what is wanted, or a multiple of the largest."""
    return round_up(next((size for size in sizes if size >= wanted), round_up(wanted, sizes[-1])), multiple)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-int(size) // multiple) * multiple
