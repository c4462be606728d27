"""Layouts by hand, and by law: whatever the layout, every response is there once, behind its own prompt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.data.layouts import LAYOUTS, Shape, fill, place_runs
from dpo_jax.data.shapes import Packing
from dpo_jax.data.tokens import sizes_of
from dpo_jax.types import SEGMENT_PARTS, PairBatch, TokenRow
from tests.data.test_batches import TWO, make_rows


def filled(name: str, rows: list[TokenRow], *, length: int, scored: int, count: int, pairs: int = 2) -> PairBatch:
    layout = LAYOUTS[name]
    places = place_runs(layout, *layout.lengths(sizes_of(rows)), length=length)
    assert places.rows <= count and places.scored <= scored
    return fill(layout, rows, places, shape=Shape(count, length, scored), pairs=pairs)


def test_packed_by_hand():
    """Runs of 4, 5, 2 and 3 tokens in rows of 8: the longest first, each in the first row with room."""
    batch = filled("packed", TWO, length=8, scored=5, count=3)
    assert batch.tokens_RT.tolist() == [[5, 6, 8, 9, 2, 4, 3, 2], [5, 6, 7, 2, 4, 2, 0, 0], [0] * 8]
    assert batch.positions_RT.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 0], [0] * 8]
    assert batch.segments_RT.tolist() == [[4, 4, 4, 4, 4, 1, 1, 1], [1, 1, 1, 1, 4, 4, 0, 0], [0] * 8] or (
        batch.segments_RT.tolist() == [[1, 1, 1, 1, 1, 4, 4, 4], [1, 1, 1, 1, 4, 4, 0, 0], [0] * 8]
    )
    responses = batch.response_RN.tolist()
    assert sorted(responses[0]) == [1, 1, 1, 3, 3] and responses[1] == [0, 0, 2, -1, -1]
    assert batch.source_RN[1].tolist() == [1, 2, 4, 0, 0] and batch.target_RN[1].tolist() == [7, 2, 2, 0, 0]
    assert batch.response_tokens_BP.tolist() == [[2, 3], [1, 2]]


def test_shared_by_hand():
    """Prompt, chosen, rejected: 2 + 2 + 3 and 1 + 1 + 2 tokens; both responses begin where the prompt ends."""
    batch = filled("shared", TWO, length=11, scored=8, count=1)
    assert batch.tokens_RT.tolist() == [[5, 6, 7, 2, 8, 9, 2, 4, 2, 3, 2]]
    assert batch.positions_RT.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 1, 2]]
    assert batch.segments_RT.tolist() == [[1, 1, 2, 2, 3, 3, 3, 4, 5, 6, 6]]
    # the first token of each response is predicted by the last of the prompt
    assert batch.source_RN.tolist() == [[1, 2, 1, 4, 5, 7, 7, 9]]
    assert batch.target_RN.tolist() == [[7, 2, 8, 9, 2, 2, 3, 2]]
    assert batch.response_RN.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3]]
    assert batch.response_tokens_BP.tolist() == [[2, 3], [1, 2]] and batch.weight_B.tolist() == [1, 1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_what_a_mask_keeps_is_scored(name: str):
    masks = (np.array([False, True]), np.array([True, False, True]))
    rows = [TWO[0]._replace(masks=masks), TWO[1]]
    batch = filled(name, rows, length=12, scored=8, count=4)
    scored = [batch.target_RN[batch.response_RN == i].tolist() for i in range(4)]
    assert scored == [[2], [8, 2], [2], [3, 2]]
    assert batch.response_tokens_BP.tolist() == [[1, 2], [1, 2]]
    r, n = np.nonzero(batch.response_RN == 0)
    assert batch.tokens_RT[r, batch.source_RN[r, n]].tolist() == [7]  # what stands before the token, scored or not


def seen_by(batch: PairBatch, row: int, place: int) -> list[int]:
    """What the token at a place sees, by the rule of `PairBatch`, in order."""
    segments, tokens = np.asarray(batch.segments_RT[row]), np.asarray(batch.tokens_RT[row])
    segment, part = np.divmod(segments - 1, SEGMENT_PARTS)
    seen = (segment == segment[place]) & ((part == 0) | (part == part[place])) & (np.arange(len(tokens)) <= place)
    return tokens[seen].tolist()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(LAYOUTS)), st.integers(1, 6), st.integers(1, 2), st.integers(0, 2**32), st.integers(0, 60))
def test_every_response_is_behind_its_own_prompt(name: str, count: int, slots: int, seed: int, room: int):
    rows = make_rows(count, slots=slots, seed=seed, longest=9)
    length = int(LAYOUTS[name].lengths(sizes_of(rows))[0].max()) + room
    batch = filled(name, rows, length=length, scored=length, count=count * slots, pairs=count)
    for i in range(count * slots):
        prompt, response = rows[i // slots].prompt.tolist(), rows[i // slots].responses[i % slots].tolist()
        r, n = np.nonzero(np.asarray(batch.response_RN) == i)
        assert batch.target_RN[r, n].tolist() == response
        for k, (row, source) in enumerate(zip(r, np.asarray(batch.source_RN)[r, n], strict=True)):
            assert seen_by(batch, row, source) == prompt + response[:k]
            assert batch.positions_RT[row, source] == len(prompt) + k - 1
    used = int(sum(LAYOUTS[name].lengths(sizes_of(rows))[0]))
    assert np.count_nonzero(batch.segments_RT) == used  # nothing is there twice


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_and_evaluation_batches_hold_what_the_padded_ones_hold(name: str):
    rows = make_rows(23, longest=12)
    reference = {"reference_logps_BP": np.arange(46, dtype=np.float32).reshape(23, 2)}
    streams = [
        Batches(rows, batch_pairs=8, micro_batch_pairs=4, seed=0, packing=Packing(layout, 2), columns=reference)
        for layout in ("padded", name)
    ]
    for step in range(4):
        plain, other = (stream.batch(step) for stream in streams)
        assert plain.row_ids == other.row_ids
        for field in ("response_tokens_BP", "weight_B", "reference_logps_BP"):
            np.testing.assert_array_equal(getattr(plain.arrays, field), getattr(other.arrays, field))
        for a in range(2):
            for i in range(8):
                targets = [
                    np.asarray(b.arrays.target_RN[a])[np.asarray(b.arrays.response_RN[a]) == i].tolist()
                    for b in (plain, other)
                ]
                assert targets[0] == targets[1] != []
        assert other.arrays.tokens_RT.shape[1] % 2 == 0
        assert other.arrays.tokens_RT.size <= plain.arrays.tokens_RT.size
    plain, other = (list(evaluation_batches(rows, pairs=5, packing=Packing(layout))) for layout in ("padded", name))
    assert [batch.row_ids for batch in plain] == [batch.row_ids for batch in other]
    assert other[-1].arrays.weight_B.tolist() == [1, 1, 1, 0, 0] and other[-1].arrays.response_tokens_BP[3:].sum() == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_labelled_completions_and_their_mismatched_ones_have_one_shape(name: str):
    rows = make_rows(12, longest=12)
    stream = Batches(
        rows, batch_pairs=4, micro_batch_pairs=2, seed=0, packing=Packing(name), desirable=np.arange(12) % 2 > 0
    )
    for step in range(3):
        batch, row_ids, _ = stream.batch(step)
        assert batch.mismatched is not None
        for own, slot in ((batch, 0), (batch.mismatched, 1)):
            for place, row_id in enumerate(row_ids):
                a, b = divmod(place, 2)
                target = np.asarray(own.target_RN[a])[np.asarray(own.response_RN[a]) == b]
                assert target.tolist() == rows[int(row_id)].responses[slot].tolist()
        assert batch.tokens_RT.shape == batch.mismatched.tokens_RT.shape
        assert batch.target_RN.shape == batch.mismatched.target_RN.shape


def test_packing_leaves_little_empty():
    rows = make_rows(64, longest=40)
    sizes = {}
    for name in LAYOUTS:
        stream = Batches(rows, batch_pairs=64, micro_batch_pairs=64, seed=0, packing=Packing(name))
        arrays = stream.batch(0).arrays
        sizes[name] = arrays.tokens_RT.size
        if LAYOUTS[name].packs:
            assert np.count_nonzero(arrays.segments_RT) > 0.75 * arrays.segments_RT.size
    assert sizes["shared"] < 0.85 * sizes["packed"] < 0.85 * 0.7 * sizes["padded"]


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"layout is 'packd'. Did you mean 'packed'"):
        Packing("packd")
