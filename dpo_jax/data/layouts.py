"""How rows of tokens lie in a batch: padded, packed, or packed with a prompt that its responses share.

A layout turns token rows into runs, each a stretch of tokens in one row of the batch, and says where each run goes. All
else, a padded batch among it, is one function that writes runs.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.tokens import Sizes, sizes_of
from dpo_jax.types import SEGMENT_PARTS, PairBatch, TokenRow

PAD_TOKEN = 0  # any id would do: nothing looks at it


class Run(NamedTuple):
    """Tokens side by side, and which of them are scored; `source` counts from the first of them."""

    tokens: np.ndarray
    positions: np.ndarray
    parts: np.ndarray  # 0 what all see, else what only those of the same part see
    source: np.ndarray  # for each scored token the one that predicts it
    target: np.ndarray
    response: np.ndarray


class Places(NamedTuple):
    """Places of runs: the row of each and its first token there; and how large the arrays must be."""

    row: np.ndarray
    start: np.ndarray
    rows: int
    scored: int  # in the fullest row


class Shape(NamedTuple):
    """The static sizes of one batch: R rows of T tokens and N scored tokens, and the shapes of its sequences."""

    rows: int
    length: int
    scored: int
    sequences: tuple[tuple[int, int, int], ...] | None = None  # see `PairBatch`


class Layout(NamedTuple):
    """One layout: how runs are made of rows, how long they are, and how they are placed in rows of a length.

    `runs(rows)` and `lengths(sizes) -> (tokens, scored)`, int [runs], name the same runs in the same order, and
    `sequences(sizes)`, int [runs, S], the tokens of the sequences in them.
    """

    runs: Callable[[Sequence[TokenRow]], list[Run]]
    lengths: Callable[[Sizes], tuple[np.ndarray, np.ndarray]]
    sequences: Callable[[Sizes], np.ndarray]
    packs: bool  # several runs in a row


def cut_slots(rows: Sequence[TokenRow], slots: slice) -> list[TokenRow]:
    """Return the rows with some of their responses."""
    return [row._replace(responses=row.responses[slots], masks=row.masks and row.masks[slots]) for row in rows]


def _apart(rows: Sequence[TokenRow]) -> list[Run]:
    """Each response behind a prompt of its own."""
    runs, responses = [], 0
    for row in rows:
        for slot in range(len(row.responses)):
            ends = _scored(row, slot, len(row.prompt), responses)
            tokens = np.concatenate([row.prompt, row.responses[slot]])
            runs.append(Run(tokens, np.arange(len(tokens)), np.zeros(len(tokens), np.int32), *ends))
            responses += 1
    return runs


def _apart_lengths(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    return (sizes.prompt[:, None] + sizes.responses).ravel(), sizes.scored.ravel()


def _shared(rows: Sequence[TokenRow]) -> list[Run]:
    """The prompt once, then its responses: each sees the prompt and itself, and begins where the prompt ends."""
    runs, responses = [], 0
    for row in rows:
        parts = [np.zeros(len(row.prompt), np.int32)]
        positions, ends, start = [np.arange(len(row.prompt))], [], len(row.prompt)
        for slot, response in enumerate(row.responses):
            positions.append(len(row.prompt) + np.arange(len(response)))
            parts.append(np.full(len(response), slot + 1, np.int32))
            ends.append(_scored(row, slot, start, responses))
            start += len(response)
            responses += 1
        tokens = np.concatenate([row.prompt, *row.responses])
        joined = [np.concatenate(each) for each in zip(*ends, strict=True)]
        runs.append(Run(tokens, np.concatenate(positions), np.concatenate(parts), *joined))
    return runs


def _scored(row: TokenRow, slot: int, start: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, targets and response number of the scored tokens of a response that begins at `start` of its run."""
    response = row.responses[slot]
    source = start - 1 + np.arange(len(response))
    source[0] = len(row.prompt) - 1  # the first token follows the prompt, wherever it lies
    kept = slice(None) if row.masks is None else row.masks[slot]
    return source[kept], response[kept], np.full(len(response), number, np.int32)[kept]


_PADDED = Layout(_apart, _apart_lengths, lambda sizes: _apart_lengths(sizes)[0][:, None], packs=False)
LAYOUTS: dict[str, Layout] = {
    "padded": _PADDED,
    "packed": _PADDED._replace(packs=True),
    "shared": Layout(
        _shared,
        lambda sizes: (sizes.prompt + sizes.responses.sum(axis=1), sizes.scored.sum(axis=1)),
        lambda sizes: sizes.prompt[:, None] + sizes.responses,
        packs=True,
    ),
}


def place_runs(layout: Layout, lengths: np.ndarray, scored: np.ndarray, *, length: int) -> Places:
    """Place runs of these lengths in rows of `length` tokens: each alone, or the longest first where they fit."""
    if not layout.packs:
        return Places(np.arange(len(lengths)), np.zeros(len(lengths), int), len(lengths), int(scored.max(initial=0)))
    row, start = np.zeros((2, len(lengths)), int)
    used: list[int] = []
    for run in np.argsort(-lengths, kind="stable"):
        at = next((r for r, tokens in enumerate(used) if tokens + lengths[run] <= length), len(used))
        if at == len(used):
            used.append(0)
        row[run], start[run] = at, used[at]
        used[at] += int(lengths[run])
    return Places(row, start, len(used), int(np.bincount(row, scored).max(initial=0)))


def fill(
    layout: Layout,
    rows: Sequence[TokenRow],
    places: Places,
    *,
    shape: Shape,
    pairs: int,
    extra: Mapping[str, np.ndarray] | None = None,
) -> PairBatch:
    """Return the batch: runs at their places in arrays of `shape`.

    Args:
        pairs: B; those beyond the rows get weight 0.
        extra: more arrays of the batch by their names, float32 [len(rows), P].
    """
    count, length, scored, sequences = shape
    tokens_RT = np.full((count, length), PAD_TOKEN, np.int32)
    positions_RT, segments_RT = np.zeros((2, count, length), np.int32)
    source_RN, target_RN = np.zeros((2, count, scored), np.int32)
    response_RN = np.full((count, scored), -1, np.int32)
    groups, ends = np.zeros((2, count), int)  # runs and scored tokens in a row so far
    for run, row, start in zip(layout.runs(rows), places.row, places.start, strict=True):
        here = (row, slice(start, start + len(run.tokens)))
        tokens_RT[here], positions_RT[here] = run.tokens, run.positions
        segments_RT[here] = 1 + SEGMENT_PARTS * groups[row] + run.parts
        there = (row, slice(ends[row], ends[row] + len(run.target)))
        source_RN[there], target_RN[there], response_RN[there] = start + run.source, run.target, run.response
        groups[row] += 1
        ends[row] += len(run.target)
    arrays: dict[str, Any] = {
        "tokens_RT": tokens_RT,
        "positions_RT": positions_RT,
        "segments_RT": segments_RT,
        "source_RN": source_RN,
        "target_RN": target_RN,
        "response_RN": response_RN,
        "response_tokens_BP": _filled(sizes_of(rows).scored, pairs),
        "weight_B": _filled(np.ones(len(rows)), pairs),
        "sequences": find_sequences(segments_RT, sequences) if sequences else sequences,
    }
    return PairBatch(**arrays, **{name: _filled(values, pairs) for name, values in (extra or {}).items()})


def _filled(values: np.ndarray, pairs: int) -> Any:
    """Float32 values of the first pairs, and 0 for the others."""
    filled = np.zeros((pairs, *values.shape[1:]), np.float32)
    filled[: len(values)] = values
    return filled


def find_sequences(segments_RT: np.ndarray, shapes: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, ...]:
    """Find each sequence of a batch, a prompt and one response, for attention that knows nothing of segments.

    Arrays of these shapes, [U, M, L] as in `shapes`, ascending in L: places of tokens among those of their part, -1
    where there is none.
    """
    arrays = tuple(np.full(shape, -1, np.int32) for shape in shapes)
    parts, lengths = shapes[0][0], [length for _, _, length in shapes]
    used = np.zeros((parts, len(shapes)), int)
    rows_in_part, row_tokens = len(segments_RT) // parts, segments_RT.shape[1]
    for row, segments_T in enumerate(segments_RT):
        part, start = row // rows_in_part, row % rows_in_part * row_tokens
        for places in _sequences_of(segments_T):
            size = np.searchsorted(lengths, len(places))
            arrays[size][part, used[part, size], : len(places)] = start + places
            used[part, size] += 1
    return arrays


def _sequences_of(segments_T: np.ndarray) -> Iterator[np.ndarray]:
    """The places of each sequence of a row, in order."""
    segment_T, part_T = np.divmod(segments_T - 1, SEGMENT_PARTS)  # padding is segment -1
    for segment in range(segment_T.max() + 1):
        places = np.flatnonzero(segment_T == segment)
        part = part_T[places]
        for response in np.unique(part[part > 0]) if part.any() else (0,):
            yield places[(part == 0) | (part == response)]
