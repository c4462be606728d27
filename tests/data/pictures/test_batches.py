"""Batches of pictures: pure functions of the step, over epochs without a gap, with the reference's errors."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from dpo_jax.data.pictures.batches import PictureBatches, evaluation_batches
from dpo_jax.errors import UserError
from dpo_jax.types import PictureRow


def rows(count: int, *, desirable: bool = False, **more: Any) -> list[PictureRow]:
    def pixels(number: int, slot: int) -> np.ndarray:
        return np.full((2, 2, 1), 10 * number + slot, np.uint8)

    found = []
    for number in range(count):
        slots = 1 if desirable else 2
        samples = tuple(lambda n=number, s=slot: pixels(n, s) for slot in range(slots))
        label = number % 2 == 0 if desirable else None
        found.append(PictureRow(f"{number:032x}", samples, f"row {number}", shown=number % 3, desirable=label, **more))
    return found


def numbers(batch: Any) -> list[int]:
    return [int(value) // 10 for value in np.asarray(batch.arrays.samples_BPX)[..., 0, 0, 0, 0].ravel()]


def batches(count: int, **options: Any) -> PictureBatches:
    return PictureBatches(rows(count), **{"batch_pairs": 4, "micro_batch_pairs": 2, "seed": 3, **options})


def test_a_batch_by_value():
    found = batches(10, order="sequential").batch(0)
    arrays = found.arrays
    assert arrays.samples_BPX.shape == (2, 2, 2, 2, 2, 1) and arrays.samples_BPX.dtype == np.uint8
    assert numbers(found) == [0, 1, 2, 3] and found.row_ids == tuple(f"{n:032x}" for n in range(4))
    assert np.asarray(arrays.samples_BPX)[1, 0, 1].ravel().tolist() == [21] * 4  # row 2, rejected
    assert np.asarray(arrays.words_BW)[1, 1].tolist() == [0, 0, 0, 3]
    assert np.asarray(arrays.shown_B).tolist() == [[0, 1], [2, 0]]
    assert arrays.loss_weight_B is None and arrays.desirable_B is None and arrays.reference_errors_BP is None
    assert found.work == {"pairs": 4, "pictures": 8}


def test_every_row_once_an_epoch_and_the_step_alone_decides():
    first, second = batches(10), batches(10)
    seen = [number for step in range(5) for number in numbers(first.batch(step))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    epochs = np.concatenate([np.asarray(first.batch(step).arrays.epoch_B).ravel() for step in range(5)])
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert numbers(second.batch(4)) == seen[16:] and first.steps(1.5) == 4


def test_stored_errors_go_by_row_and_epoch():
    errors = np.arange(10 * 2 * 2, dtype=np.float32).reshape(10, 2, 2)
    found = batches(10, reference_errors=errors)
    for step in (0, 3, 6):  # epochs 0, 1, 2: draws 0, 1, 0
        batch = found.batch(step)
        wanted = errors[numbers(batch), np.asarray(batch.arrays.epoch_B).ravel() % 2]
        np.testing.assert_array_equal(np.asarray(batch.arrays.reference_errors_BP).reshape(4, 2), wanted)


def test_labels_are_mixed_and_weights_come_along():
    made = PictureBatches(rows(9, desirable=True, weight=0.5), batch_pairs=4, micro_batch_pairs=4, seed=0)
    for step in range(5):
        arrays = made.batch(step).arrays
        assert 0 < np.asarray(arrays.desirable_B).sum() < 4
        assert np.asarray(arrays.loss_weight_B).tolist() == [[0.5] * 4]
    with pytest.raises(UserError, match="needs both"):
        PictureBatches(rows(9, desirable=True)[::2], batch_pairs=4, micro_batch_pairs=4, seed=0)


def test_an_evaluation_sees_every_row_once():
    found = list(evaluation_batches(rows(5), pairs=3))
    assert [len(batch.row_ids) for batch in found] == [3, 2]
    assert np.asarray(found[1].arrays.weight_B).tolist() == [1, 1, 0]
    assert found[1].arrays.samples_BPX.shape == found[0].arrays.samples_BPX.shape
    assert found[1].work["pairs"] == 2


def test_decoding_happens_in_threads():
    seen = set()

    def slow() -> np.ndarray:
        seen.add(threading.get_ident())
        return np.zeros((2, 2, 1), np.uint8)

    row = PictureRow("0" * 32, (slow, slow), "row")
    PictureBatches([row] * 8, batch_pairs=8, micro_batch_pairs=8, seed=0).batch(0)
    assert threading.get_ident() not in seen and seen


def test_portions_that_do_not_fit():
    with pytest.raises(UserError, match="must divide"):
        batches(10, micro_batch_pairs=3)
