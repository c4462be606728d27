"""Rows of pictures or clips to batches: which rows a step holds, decoded by threads when the batch is asked for.

Dimension key: A micro-batches, B pairs, P slot in the pair, K draw epochs, W words of a row id; X stands for all axes
of a picture, [H, W, C], or of a clip, [F, H, W, C].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dpo_jax.data.order import epoch_order, require_both_labels
from dpo_jax.data.pictures import WORKERS
from dpo_jax.errors import UserError
from dpo_jax.types import HostPictures, PictureBatch, PictureRow, row_words


class PictureBatches:
    """The training batches: epoch after epoch without a gap, step s holding rows [s * B, (s+1) * B).

    B is `batch_pairs`. Every batch depends on its step alone, so resuming is asking for the next step. Where rows have
    labels, every batch holds both; where some have a weight, every batch has `loss_weight_B`.

    `columns` holds more arrays of a batch by their names there, [rows] each. `reference_errors`,
    float32 [rows, K, P], are the reference's denoising errors at K draws; epoch e brings those of e modulo K.
    """

    def __init__(
        self,
        rows: Sequence[PictureRow],
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        columns: Mapping[str, np.ndarray] | None = None,
        reference_errors: np.ndarray | None = None,
    ):
        if batch_pairs % micro_batch_pairs:
            raise UserError(
                f"train.micro_batch_pairs is {micro_batch_pairs}; it must divide train.batch_pairs, {batch_pairs}."
            )
        desirable = None if rows[0].desirable is None else np.array([row.desirable for row in rows], bool)
        if desirable is not None:
            require_both_labels(desirable, batch_pairs=batch_pairs)
        self._rows, self._columns, self._errors = rows, columns or {}, reference_errors
        self._weighted = any(row.weight is not None for row in rows)
        self._batch_pairs, self._micro_batch_pairs = batch_pairs, micro_batch_pairs
        of_epoch = functools.partial(epoch_order, len(rows), seed=seed, order=order, desirable=desirable)
        self._order = functools.lru_cache(maxsize=2)(of_epoch)
        self._order(epoch=0)  # an unknown order is told here

    def steps(self, epochs: float) -> int:
        """How many steps pass over the data `epochs` times; the last may reach into the next epoch."""
        return math.ceil(epochs * len(self._rows) / self._batch_pairs)

    def batch(self, step: int) -> HostPictures:
        """The batch of one step; every array has a leading axis A, and `row_ids` run micro-batch after micro-batch.

        Raises:
            BadRow: a file is no longer what it was when the rows were read.
        """
        epochs, places = np.divmod(np.arange(self._batch_pairs) + step * self._batch_pairs, len(self._rows))
        picks = np.concatenate([self._order(epoch=int(e))[places[epochs == e]] for e in np.unique(epochs)])
        rows = [self._rows[pick] for pick in picks]
        arrays = _arrays(rows, weighted=self._weighted)._replace(
            epoch_B=epochs.astype(np.int32),
            **{name: values[picks].astype(np.float32) for name, values in self._columns.items()},
        )
        if self._errors is not None:
            arrays = arrays._replace(reference_errors_BP=self._errors[picks, epochs % self._errors.shape[1]])
        micro = (-1, self._micro_batch_pairs)
        arrays = PictureBatch(*(None if x is None else x.reshape(*micro, *x.shape[1:]) for x in arrays))
        return HostPictures(arrays, tuple(row.row_id for row in rows))


def evaluation_batches(rows: Sequence[PictureRow], *, pairs: int) -> Iterator[HostPictures]:
    """Every row once, in order, `pairs` at a time; the last batch is filled up with copies of weight 0 of its last row.

    `row_ids` holds real rows only.
    """
    weighted = any(row.weight is not None for row in rows)
    for start in range(0, len(rows), pairs):
        real = rows[start : start + pairs]
        filled = np.minimum(np.arange(pairs), len(real) - 1)
        arrays = PictureBatch(*(None if x is None else x[filled] for x in _arrays(real, weighted=weighted)))
        arrays.weight_B[len(real) :] = 0.0  # type: ignore[index]
        yield HostPictures(arrays, tuple(row.row_id for row in real))


def _arrays(rows: Sequence[PictureRow], *, weighted: bool) -> PictureBatch:
    """What rows bring by themselves, in their first epoch."""
    with ThreadPoolExecutor(WORKERS) as pool:
        samples = list(pool.map(lambda sample: sample(), [sample for row in rows for sample in row.samples]))
    stacked = np.stack(samples)
    found: dict[str, Any] = {}
    if rows[0].shown is not None:
        shown = np.stack([np.asarray(row.shown) for row in rows])
        found["shown_B"] = shown.astype(np.int32 if shown.ndim == 1 else np.float32)
    if rows[0].desirable is not None:
        found["desirable_B"] = np.array([row.desirable for row in rows], np.float32)
    if weighted:
        found["loss_weight_B"] = np.array([1.0 if row.weight is None else row.weight for row in rows], np.float32)
    return PictureBatch(
        samples_BPX=stacked.reshape(len(rows), -1, *stacked.shape[1:]),
        words_BW=row_words([row.row_id for row in rows]),
        epoch_B=np.zeros(len(rows), np.int32),
        weight_B=np.ones(len(rows), np.float32),
        **found,
    )
