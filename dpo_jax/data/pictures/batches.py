"""Rows of pictures or clips to batches: which rows a step holds, decoded by threads when the batch is asked for.

Dimension key: A micro-batches, B pairs, P slot in the pair, K draw epochs, W words of a row id; X stands for all axes
of a picture, [H, W, C], or of a clip, [F, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dpo_jax.data.order import StepRows
from dpo_jax.data.pictures import WORKERS
from dpo_jax.types import HostPictures, PictureBatch, PictureRow, row_words


class PictureBatches(StepRows):
    """Training batches by their step; which rows a step holds says `StepRows`, which also has the errors.

    Where rows have labels, every batch holds both; where some have a weight, every batch has `loss_weight_B`.
    `reference_errors`, float32 [rows, K, P], are the reference's denoising errors at K draws; epoch e brings those of e
    modulo K.
    """

    def __init__(
        self,
        rows: Sequence[PictureRow],
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        reference_errors: np.ndarray | None = None,
    ):
        self._rows, self._errors, self._micro_batch_pairs = rows, reference_errors, micro_batch_pairs
        self._weighted = any(row.weight is not None for row in rows)
        super().__init__(
            len(rows),
            batch_pairs=batch_pairs,
            micro_batch_pairs=micro_batch_pairs,
            seed=seed,
            order=order,
            desirable=None if rows[0].desirable is None else np.array([row.desirable for row in rows], bool),
        )

    def batch(self, step: int) -> HostPictures:
        """Batch of one step; every array has a leading axis A, and `row_ids` run micro-batch after micro-batch.

        Raises:
            BadRow: a file is no longer what it was when the rows were read.
        """
        picks, epochs = self.of(step)
        rows = [self._rows[pick] for pick in picks]
        arrays = _arrays(rows, weighted=self._weighted)._replace(epoch_B=epochs.astype(np.int32))
        if self._errors is not None:
            arrays = arrays._replace(reference_errors_BP=self._errors[picks, epochs % self._errors.shape[1]])
        micro = (-1, self._micro_batch_pairs)
        return HostPictures(_each(arrays, lambda x: x.reshape(*micro, *x.shape[1:])), tuple(row.row_id for row in rows))


def evaluation_batches(rows: Sequence[PictureRow], *, pairs: int) -> Iterator[HostPictures]:
    """Batches with every row once, in order; the last is filled up to `pairs` with copies of weight 0 of its last row.

    `row_ids` holds real rows only.
    """
    weighted = any(row.weight is not None for row in rows)
    for start in range(0, len(rows), pairs):
        real = rows[start : start + pairs]
        filled = np.minimum(np.arange(pairs), len(real) - 1)
        arrays = _each(_arrays(real, weighted=weighted), lambda x, filled=filled: x[filled])
        arrays.weight_B[len(real) :] = 0.0  # type: ignore[index]
        yield HostPictures(arrays, tuple(row.row_id for row in real))


def _each(batch: PictureBatch, change: Callable[[np.ndarray], np.ndarray]) -> PictureBatch:
    """Every array that there is, changed."""
    return batch._replace(**{name: change(x) for name, x in batch._asdict().items() if x is not None})


def _arrays(rows: Sequence[PictureRow], *, weighted: bool) -> PictureBatch:
    """Arrays that rows bring by themselves, in their first epoch."""
    with ThreadPoolExecutor(WORKERS) as pool:
        samples = list(pool.map(lambda sample: sample(), [sample for row in rows for sample in row.samples]))
    stacked = np.stack(samples)
    arrays: dict[str, Any] = {
        "samples_BPX": stacked.reshape(len(rows), -1, *stacked.shape[1:]),
        "words_BW": row_words([row.row_id for row in rows]),
        "epoch_B": np.zeros(len(rows), np.int32),
        "weight_B": np.ones(len(rows), np.float32),
    }
    if rows[0].shown is not None:
        shown = np.stack([np.asarray(row.shown) for row in rows])
        arrays["shown_B"] = shown.astype(np.int32 if shown.ndim == 1 else np.float32)
    if rows[0].desirable is not None:
        arrays["desirable_B"] = np.array([row.desirable for row in rows], np.float32)
    if weighted:
        arrays["loss_weight_B"] = np.array([1.0 if row.weight is None else row.weight for row in rows], np.float32)
    return PictureBatch(**arrays)
