"""Where the sequences of a batch stand, each a prompt and one response, for attention that knows nothing of segments.

Dimension key: U parts of the rows, M sequences in a part, L tokens in a sequence, R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.types import SEGMENT_PARTS


class Held(NamedTuple):
    """Sequences of a batch: the tokens of each, and the part of the rows that it is in."""

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

    def __init__(self, tokens: np.ndarray, sizes: Sequence[int], *, parts: int, examples: Iterable[Held]):
        needed = np.bincount(np.searchsorted(sizes, tokens), minlength=len(sizes))
        self._lengths, self._parts = [size for size, count in zip(sizes, needed, strict=True) if count], parts
        self._most = np.max([self._needed(held) for held in examples] or [np.ones(len(self._lengths), int)], axis=0)

    def of(self, held: Iterable[Held]) -> tuple[tuple[int, int, int], ...]:
        """Return [U, M, L] of arrays that hold the sequences of any of these."""
        most = np.maximum(self._most, 1)
        counts = -(-np.max([self._needed(each) for each in held], axis=0) // most)
        chosen = zip(np.maximum(counts, 1) * most, self._lengths, strict=True)
        return tuple((self._parts, int(count), length) for count, length in chosen)

    def _needed(self, held: Held) -> np.ndarray:
        """Number of sequences in the fullest part, for each length."""
        size = np.searchsorted(self._lengths, held.tokens)
        counts = np.zeros((self._parts, len(self._lengths)), int)
        np.add.at(counts, (held.part, size), 1)
        return counts.max(axis=0)


def spread(row: np.ndarray, *, rows: int, parts: int) -> np.ndarray:
    """Deal rows out to the parts one by one: side by side those first filled would hold all long sequences."""
    return row % parts * (rows // parts) + row // parts


def find_sequences(segments_RT: np.ndarray, shapes: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, ...]:
    """Arrays of these shapes, ascending in L: places of tokens among those of their part, -1 where there is none."""
    arrays = tuple(np.full(shape, -1, np.int32) for shape in shapes)
    parts, lengths = shapes[0][0], [length for _, _, length in shapes]
    used = np.zeros((parts, len(shapes)), int)
    rows_in_part, row_tokens = len(segments_RT) // parts, segments_RT.shape[1]
    for row, segments_T in enumerate(segments_RT):
        part, start = row // rows_in_part, row % rows_in_part * row_tokens
        for places in _of_row(segments_T):
            size = np.searchsorted(lengths, len(places))
            arrays[size][part, used[part, size], : len(places)] = start + places
            used[part, size] += 1
    return arrays


def _of_row(segments_T: np.ndarray) -> Iterator[np.ndarray]:
    """The places of each sequence of a row, in order."""
    segment_T, part_T = np.divmod(segments_T - 1, SEGMENT_PARTS)  # padding is segment -1
    for segment in range(segment_T.max() + 1):
        places = np.flatnonzero(segment_T == segment)
        part = part_T[places]
        for response in np.unique(part[part > 0]) if part.any() else (0,):
            yield places[(part == 0) | (part == response)]
