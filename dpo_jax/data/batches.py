"""Token rows to batches of fixed shapes: which pairs a step holds, how long its rows are, and how they are filled.

Dimension key: A micro-batches, B pairs, P slot in the pair, R rows, T tokens, N scored tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.order import epoch_order, require_both_labels
from dpo_jax.errors import UserError
from dpo_jax.types import HostBatch, PairBatch, TokenRow

PAD_TOKEN = 0  # any id would do: nothing looks at it
_SIZES = 3  # sizes of T and of N: every shape that occurs is compiled
_MULTIPLE = 8


class Shape(NamedTuple):
    """The static sizes of one batch: T tokens in a row, N scored tokens in a row."""

    length: int
    scored: int


class Buckets:
    """The few shapes that the batches of a data set may have: its limits, their halves and their quarters."""

    def __init__(self, rows: Sequence[TokenRow]):
        self._scored = np.array([max(map(len, row.responses)) for row in rows])
        self.lengths = self._scored + np.array([len(row.prompt) for row in rows])  # of each pair's longest row
        self._length_sizes, self._scored_sizes = _sizes(self.lengths.max()), _sizes(self._scored.max())

    def shape(self, picks: np.ndarray) -> Shape:
        """The smallest shape that holds these rows."""
        length = next(size for size in self._length_sizes if size >= self.lengths[picks].max())
        return Shape(length, next(size for size in self._scored_sizes if size >= self._scored[picks].max()))


class Batches:
    """The training batches: epoch after epoch without a gap, step s holding pairs [s * B, (s+1) * B).

    B is `batch_pairs`. Every batch depends on its step alone, so resuming is asking for the next step.
    `reference` holds more arrays of a batch by their names there, float32 [rows, P] in the order of the rows: the
    reference's log-probs, `reference_logps_BP`.

    With the labels of unpaired completions, `desirable`, bool [rows], every batch holds both labels; its arrays are of
    the first response of each row, and `mismatched` is the same batch of the second, where rows have one.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        row_multiple: int = 1,
        reference: Mapping[str, np.ndarray] | None = None,
        desirable: np.ndarray | None = None,
    ):
        if batch_pairs % micro_batch_pairs:
            raise UserError(
                f"train.micro_batch_pairs is {micro_batch_pairs}; it must divide train.batch_pairs, {batch_pairs}."
            )
        if desirable is not None:
            desirable = np.asarray(desirable, bool)  # `~` of numbers is no negation
            require_both_labels(desirable, batch_pairs=batch_pairs)
        self._rows, self._reference, self._desirable = rows, reference or {}, desirable
        self._batch_pairs, self._micro_batch_pairs = batch_pairs, micro_batch_pairs
        self._row_multiple = row_multiple
        self._buckets = Buckets(rows)
        of_epoch = functools.partial(epoch_order, len(rows), seed=seed, order=order, desirable=desirable)
        self._order = functools.lru_cache(maxsize=2)(of_epoch)
        self._order(epoch=0)

    def steps(self, epochs: float) -> int:
        """How many steps pass over the data `epochs` times; the last may reach into the next epoch."""
        return math.ceil(epochs * len(self._rows) / self._batch_pairs)

    def batch(self, step: int) -> HostBatch:
        """The batch of one step; every array has a leading axis A, and `row_ids` run micro-batch after micro-batch."""
        picks = self._picks(step)
        arrays = self._arrays(picks) if self._desirable is None else self._labelled_arrays(picks, self._desirable)
        return HostBatch(arrays, tuple(self._rows[pick].row_id for pick in picks))

    def _labelled_arrays(self, picks: np.ndarray, desirable: np.ndarray) -> PairBatch:
        has_mismatched = len(self._rows[0].responses) > 1
        return self._arrays(picks, slice(0, 1))._replace(
            desirable_B=desirable[picks].astype(np.float32).reshape(-1, self._micro_batch_pairs),
            mismatched=self._arrays(picks, slice(1, 2)) if has_mismatched else None,
        )

    def _arrays(self, picks: np.ndarray, slots: slice = slice(None)) -> PairBatch:
        shape = self._buckets.shape(picks)
        sizes = {"pairs": self._micro_batch_pairs, "row_multiple": self._row_multiple}
        micro_batches = picks.reshape(-1, self._micro_batch_pairs)
        parts = [_fill(self._rows, part, shape, self._reference, slots, **sizes) for part in micro_batches]
        stacked: list[Any] = [None if arrays[0] is None else np.stack(arrays) for arrays in zip(*parts, strict=True)]
        return PairBatch(*stacked)

    def _picks(self, step: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(self._batch_pairs) + step * self._batch_pairs, len(self._rows))
        return np.concatenate([self._order(epoch=int(e))[places[epochs == e]] for e in np.unique(epochs)])


def evaluation_batches(rows: Sequence[TokenRow], *, pairs: int, row_multiple: int = 1) -> Iterator[HostBatch]:
    """Every row once, longest first, `pairs` at a time; the last batch is filled up with pairs of weight 0.

    `row_ids` holds real rows only. Longest first pads little, and what does not fit in memory fails at once.
    """
    if not rows:
        return
    buckets = Buckets(rows)
    by_length = np.argsort(-buckets.lengths, kind="stable")
    for start in range(0, len(rows), pairs):
        picks = by_length[start : start + pairs]
        shape = buckets.shape(picks)
        arrays = _fill(rows, picks, shape, {}, slice(None), pairs=pairs, row_multiple=row_multiple)
        yield HostBatch(arrays, tuple(rows[pick].row_id for pick in picks))


def _fill(
    rows: Sequence[TokenRow],
    picks: np.ndarray,
    shape: Shape,
    reference: Mapping[str, np.ndarray],
    slots: slice,
    *,
    pairs: int,
    row_multiple: int,
) -> PairBatch:
    return padded(
        [rows[pick]._replace(responses=rows[pick].responses[slots]) for pick in picks],
        length=shape.length,
        scored=shape.scored,
        pairs=pairs,
        row_multiple=row_multiple,
        reference={name: array[picks, slots] for name, array in reference.items()},
    )


def padded(
    rows: Sequence[TokenRow],
    *,
    length: int,
    scored: int,
    pairs: int | None = None,
    row_multiple: int = 1,
    reference: Mapping[str, np.ndarray] | None = None,
) -> PairBatch:
    """The padded layout: each response in a row of its own behind its prompt, pair after pair, padding on the right.

    T is `length`, N `scored`, B `pairs` (those beyond the rows get weight 0), and R is B * P rounded up to
    `row_multiple` by empty rows. `reference` holds more arrays of the batch by their names, float32 [len(rows), P].
    """
    slots = len(rows[0].responses)
    pairs = len(rows) if pairs is None else pairs
    count = _round_up(pairs * slots, row_multiple)
    sequences = [(row.prompt, response) for row in rows for response in row.responses]
    prompts_R, responses_R = np.zeros((2, count), np.int32)
    prompts_R[: len(sequences)] = [len(prompt) for prompt, _ in sequences]
    responses_R[: len(sequences)] = [len(response) for _, response in sequences]
    real_RT = np.arange(length) < (prompts_R + responses_R)[:, None]
    scored_RN = np.arange(scored) < responses_R[:, None]
    last_prompt_R1 = prompts_R[:, None] - 1  # it predicts the first token of the response
    arrays: dict[str, Any] = {
        "tokens_RT": _right_padded([np.concatenate(both) for both in sequences], (count, length), PAD_TOKEN),
        "positions_RT": np.where(real_RT, np.arange(length), 0).astype(np.int32),
        "segments_RT": real_RT.astype(np.int32),
        "source_RN": np.where(scored_RN, last_prompt_R1 + np.arange(scored), 0).astype(np.int32),
        "target_RN": _right_padded([response for _, response in sequences], (count, scored), 0),
        "response_RN": np.where(scored_RN, np.arange(count)[:, None], -1).astype(np.int32),
        "response_tokens_BP": responses_R[: pairs * slots].reshape(pairs, slots).astype(np.float32),
        "weight_B": (np.arange(pairs) < len(rows)).astype(np.float32),
    }
    for name, values in (reference or {}).items():
        arrays[name] = np.zeros((pairs, slots), np.float32)
        arrays[name][: len(rows)] = values
    return PairBatch(**arrays)


def _right_padded(sequences: Sequence[np.ndarray], shape: tuple[int, int], pad: int) -> np.ndarray:
    array = np.full(shape, pad, np.int32)
    for r, ids in enumerate(sequences):
        array[r, : len(ids)] = ids
    return array


def _sizes(longest: int) -> tuple[int, ...]:
    limit = _round_up(longest, _MULTIPLE)
    return tuple(_round_up(-(-limit // (1 << halving)), _MULTIPLE) for halving in reversed(range(_SIZES)))


def _round_up(size: int, multiple: int) -> int:
    return -(-int(size) // multiple) * multiple
