"""Batches of pictures: which rows, what they bring, epochs, resuming, stored errors, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.data.order import UnevenLabels, epoch_order
from dpo_jax.data.pictures import batches, read_pictures
from dpo_jax.data.pictures.batches import PictureBatches, evaluation_batches
from dpo_jax.errors import UserError
from dpo_jax.types import PictureRow, row_words
from tests.data.pictures.conftest import GREY, plain, read, write


def row(number: int, **brings) -> PictureRow:
    """A pair whose pixels are its number, and 100 more."""
    samples = tuple(lambda value=value: np.full((2, 2, 1), value, np.uint8) for value in (number, 100 + number))
    return PictureRow(f"{number:032x}", samples, f"row {number}", **{"shown": number % 3, **brings})


ROWS = [row(number) for number in range(7)]


def made(rows=ROWS, **options) -> PictureBatches:
    return PictureBatches(rows, **{"batch_pairs": 4, "micro_batch_pairs": 2, "seed": 3, **options})


def test_what_a_batch_holds():
    found = made().batch(0)
    order = epoch_order(7, epoch=0, seed=3)[:4]
    assert found.row_ids == tuple(ROWS[pick].row_id for pick in order)
    arrays = found.arrays
    assert arrays.samples_BPX.shape == (2, 2, 2, 2, 2, 1) and arrays.samples_BPX.dtype == np.uint8
    chosen, rejected = np.moveaxis(arrays.samples_BPX[..., 0, 0, 0].reshape(4, 2), 1, 0)
    assert chosen.tolist() == order.tolist() and rejected.tolist() == (order + 100).tolist()
    assert arrays.words_BW.reshape(4, 4).tolist() == [[0, 0, 0, pick] for pick in order]
    assert arrays.words_BW.dtype == np.uint32 and arrays.epoch_B.dtype == np.int32
    assert arrays.shown_B.ravel().tolist() == (order % 3).tolist() and arrays.shown_B.dtype == np.int32
    assert arrays.weight_B.tolist() == [[1, 1], [1, 1]]
    assert arrays.desirable_B is arrays.loss_weight_B is arrays.reference_errors_BP is None
    assert found.work == {"pairs": 4, "pictures": 8}


def test_epochs_follow_each_other_without_a_gap_and_are_counted():
    all_of_two = made(batch_pairs=2)
    assert all_of_two.steps(2) == 7 and all_of_two.steps(0.5) == 2
    ids, epochs = [], []
    for step in range(7):
        found = all_of_two.batch(step)
        ids += found.row_ids
        epochs += found.arrays.epoch_B.ravel().tolist()
    assert epochs == [0] * 7 + [1] * 7
    assert sorted(ids[:7]) == sorted(ids[7:]) == [row.row_id for row in ROWS] and ids[:7] != ids[7:]
    assert made(order="sequential").batch(1).row_ids == tuple(ROWS[pick].row_id for pick in (4, 5, 6, 0))


def test_a_batch_depends_on_its_step_alone():
    one, two = made(), made()
    [one.batch(step) for step in range(5)]
    for step in (5, 2, 11):
        first, second = one.batch(step), two.batch(step)
        assert first.row_ids == second.row_ids
        for left, right in zip(first.arrays, second.arrays, strict=True):
            assert (left is right is None) or left.tobytes() == right.tobytes()
    assert made(seed=4).batch(0).row_ids != made().batch(0).row_ids


def test_stored_errors_are_those_of_the_row_and_of_its_epoch():
    errors = np.arange(7 * 3 * 2, dtype=np.float32).reshape(7, 3, 2)
    stored = made(reference_errors=errors)
    for step in range(9):
        found = stored.batch(step)
        numbers = [int(row_id, 16) for row_id in found.row_ids]
        expected = [
            errors[number, epoch % 3] for number, epoch in zip(numbers, found.arrays.epoch_B.ravel(), strict=True)
        ]
        np.testing.assert_array_equal(found.arrays.reference_errors_BP.reshape(4, 2), expected)
    assert stored.batch(8).arrays.epoch_B.max() >= 4  # beyond the third draw


def test_what_rows_bring():
    embedded = [row(n, shown=np.array([n, 0.5], np.float32), weight=None if n else 0.25) for n in range(4)]
    found = made(embedded, order="sequential").batch(0).arrays
    assert found.shown_B.shape == (2, 2, 2) and found.shown_B.dtype == np.float32
    assert found.loss_weight_B.tolist() == [[0.25, 1], [1, 1]]
    late = made([*ROWS, row(7, weight=2.0)], order="sequential").batch(0).arrays
    assert late.loss_weight_B.tolist() == [[1, 1], [1, 1]]  # of one shape with the batch that holds the weight


def test_every_batch_holds_both_labels():
    labelled = [row(n, desirable=n < 2)._replace(samples=row(n).samples[:1]) for n in range(8)]
    mixed = made(labelled, batch_pairs=4)
    for step in range(6):
        found = mixed.batch(step).arrays
        assert found.desirable_B.sum() == 1 and found.samples_BPX.shape == (2, 2, 1, 2, 2, 1)
        of_label = found.samples_BPX[..., 0, 0, 0, 0] < 2
        assert (of_label == found.desirable_B).all()
    with pytest.raises(UnevenLabels, match="needs both"):
        made([row._replace(desirable=True) for row in labelled])


def test_bad_requests():
    with pytest.raises(ValueError, match="must divide"):
        made(micro_batch_pairs=3)
    with pytest.raises(ValueError, match=r"order is 'sorted'"):
        made(order="sorted")


def test_evaluation_visits_each_row_once():
    weighted = [*ROWS[:6], row(6, weight=3.0)]
    one, two, last = evaluation_batches(weighted, pairs=3)
    assert [len(found.row_ids) for found in (one, two, last)] == [3, 3, 1]
    assert one.row_ids + two.row_ids + last.row_ids == tuple(row.row_id for row in ROWS)
    assert last.arrays.weight_B.tolist() == [1, 0, 0] and one.arrays.weight_B.tolist() == [1, 1, 1]
    assert last.arrays.samples_BPX.shape == one.arrays.samples_BPX.shape == (3, 2, 2, 2, 1)
    assert last.arrays.loss_weight_B[0] == 3 and one.arrays.loss_weight_B.tolist() == [1, 1, 1]
    assert last.work == {"pairs": 1, "pictures": 2}
    assert list(evaluation_batches([], pairs=3)) == []


def test_the_words_of_an_id_are_the_same_as_its_digits():
    assert row_words(["00000001000000020000000300000004"]).tolist() == [[1, 2, 3, 4]]
    assert row_words(["ffffffff" + "0" * 24]).tolist() == [[2**32 - 1, 0, 0, 0]]


def test_samples_of_a_batch_are_decoded_by_several_threads(monkeypatch):
    monkeypatch.setattr(batches, "WORKERS", 2)
    together = threading.Barrier(2, timeout=20)

    def sample() -> np.ndarray:
        together.wait()  # passes when two are here
        return np.zeros((2, 2, 1), np.uint8)

    waiting = [row(n)._replace(samples=(sample, sample)) for n in range(4)]
    assert made(waiting).batch(0).arrays.samples_BPX.shape == (2, 2, 2, 2, 2, 1)


def test_a_file_that_changed_is_named_in_training(tmp_path: Path):
    folder = write(tmp_path, {f"{n}.png": plain(n) for n in range(4)})
    training = made(read_pictures([{"images": str(folder)}], layout="samples", shape=GREY, classes=0).rows)
    before = training.batch(0)
    write(folder, {"2.png": b"overwritten"})
    with pytest.raises(UserError, match=r"2\.png"):
        training.batch(0)
    write(folder, {"2.png": plain(2)})
    assert training.batch(0).arrays.samples_BPX.tobytes() == before.arrays.samples_BPX.tobytes()
    assert len(read(folder).rows) == 4
