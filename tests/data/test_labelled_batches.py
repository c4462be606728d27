"""Batches of labelled completions: both labels in each, every array of the right row, mismatched ones beside them."""

import numpy as np
import pytest

from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.data.order import UnevenLabels
from dpo_jax.data.shapes import Packing
from dpo_jax.types import PairBatch, TokenRow

COUNT = 11
DESIRABLE = np.arange(COUNT) % 3 == 0  # 4 of 11
REFERENCE = np.array([[-1.0 * n, -100.0 - n] for n in range(COUNT)], np.float32)


def make_rows(slots: int) -> list[TokenRow]:
    dice = np.random.default_rng(0)
    sizes = dice.integers(1, 30, (COUNT, slots + 1))
    ids = [[dice.integers(1, 99, size).astype(np.int32) for size in of_row] for of_row in sizes]
    return [TokenRow(str(n), prompt, tuple(responses)) for n, (prompt, *responses) in enumerate(ids)]


def make(rows, **changes) -> Batches:
    options = {
        "batch_pairs": 6,
        "micro_batch_pairs": 2,
        "seed": 0,
        "columns": {"reference_logps_BP": REFERENCE},
        **changes,
    }
    return Batches(rows, desirable=DESIRABLE, **options)


def check_slot(batch: PairBatch, rows, row_ids, slot: int) -> None:
    """Every array of the batch is of this slot of these rows, in their order, with one response for each pair."""
    assert batch.tokens_RT.shape[:2] == (3, 8) and batch.response_tokens_BP.shape == (3, 2, 1)  # 2 rows, rounded up
    assert batch.reference_logps_BP is not None and batch.reference_logps_BP.shape == (3, 2, 1)
    for place, row_id in enumerate(row_ids):
        a, b = divmod(place, 2)
        prompt, response = rows[int(row_id)].prompt, rows[int(row_id)].responses[slot]
        assert batch.tokens_RT[a, b, : len(prompt) + len(response)].tolist() == [*prompt, *response]
        assert batch.segments_RT[a, b].sum() == len(prompt) + len(response)
        assert batch.target_RN[a][batch.response_RN[a] == b].tolist() == response.tolist()
        assert batch.response_tokens_BP[a, b, 0] == len(response)
        assert batch.reference_logps_BP[a, b, 0] == REFERENCE[int(row_id), slot]
    assert np.asarray(batch.weight_B).tolist() == [[1, 1]] * 3
    assert np.asarray(batch.response_RN).max() == 1


def test_the_completion_is_in_the_batch_and_the_mismatched_one_beside_it():
    rows = make_rows(2)
    stream = make(rows, packing=Packing(row_multiple=8))
    for step in range(5):
        batch, row_ids, _ = stream.batch(step)
        check_slot(batch, rows, row_ids, 0)
        assert batch.mismatched is not None
        check_slot(batch.mismatched, rows, row_ids, 1)
        labels = np.asarray(batch.desirable_B)
        assert labels.dtype == np.float32 and labels.shape == (3, 2)
        assert labels.ravel().tolist() == [float(int(row_id) % 3 == 0) for row_id in row_ids]
        assert batch.mismatched.desirable_B is None and batch.mismatched.mismatched is None
        # one shape for both: a step compiles for a few shapes, not for all pairs of them
        assert batch.mismatched.tokens_RT.shape == batch.tokens_RT.shape
        assert batch.mismatched.target_RN.shape == batch.target_RN.shape


def test_without_mismatched_completions_there_is_no_second_batch():
    rows = make_rows(1)
    batch, row_ids, _ = make(
        rows, columns={"reference_logps_BP": REFERENCE[:, :1]}, packing=Packing(row_multiple=8)
    ).batch(1)
    check_slot(batch, rows, row_ids, 0)
    assert batch.mismatched is None
    assert np.asarray(batch.desirable_B).sum() in (2, 3)  # of 6, where 4 of 11 are


@pytest.mark.parametrize("order", ["shuffle", "sequential"])
def test_every_batch_of_every_epoch_holds_both_labels_and_each_row_comes_once(order):
    stream = make(make_rows(1), order=order, batch_pairs=3, micro_batch_pairs=1, columns=None)
    batches = [stream.batch(step) for step in range(COUNT)]  # 3 epochs
    assert all(0 < np.asarray(batch.arrays.desirable_B).sum() < 3 for batch in batches)
    ids = [int(row_id) for batch in batches for row_id in batch.row_ids]
    assert [sorted(ids[epoch * COUNT : (epoch + 1) * COUNT]) for epoch in range(3)] == [list(range(COUNT))] * 3


def test_resuming_gives_the_same_batch():
    rows = make_rows(2)
    stream = make(rows)
    unbroken = [stream.batch(step) for step in range(6)][5]
    resumed = make(rows).batch(5)
    assert resumed.row_ids == unbroken.row_ids
    assert np.array_equal(np.asarray(resumed.arrays.desirable_B), np.asarray(unbroken.arrays.desirable_B))


def test_labels_as_numbers_are_labels():
    as_numbers = Batches(make_rows(1), desirable=DESIRABLE.astype(int), batch_pairs=6, micro_batch_pairs=6, seed=0)
    as_booleans = Batches(make_rows(1), desirable=DESIRABLE, batch_pairs=6, micro_batch_pairs=6, seed=0)
    assert as_numbers.batch(0).row_ids == as_booleans.batch(0).row_ids


def test_batches_that_cannot_hold_both_labels_are_refused():
    with pytest.raises(
        UnevenLabels, match=r"batch_pairs is 2, and .* 4 desirable and 7 undesirable .*batch_pairs to 3 or more"
    ):
        make(make_rows(1), batch_pairs=2)
    with pytest.raises(UnevenLabels, match=r"0 desirable and 3 undesirable .* needs both"):
        Batches(make_rows(1)[:3], desirable=np.zeros(3, bool), batch_pairs=2, micro_batch_pairs=2, seed=0)


def test_the_reference_pass_scores_both_slots():
    [batch] = evaluation_batches(make_rows(2), pairs=COUNT)
    assert batch.arrays.response_tokens_BP.shape == (COUNT, 2)
    assert batch.arrays.desirable_B is None and batch.arrays.mismatched is None
