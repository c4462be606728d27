"""Where sequences stand in a batch: by hand, and against the tokens they are to hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data import shapes
from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.data.layouts import LAYOUTS, find_sequences
from dpo_jax.data.shapes import Packing, Sequences, SequenceShapes, spread
from dpo_jax.types import PairBatch, TokenRow
from tests.data.test_batches import make_rows

BOTH = ("packed", "shared")


def test_places_by_hand():
    """Two rows in two parts; a prompt of two tokens with responses of one and two, then a sequence of one."""
    segments = np.array([[1, 1, 2, 3, 3, 4], [1, 1, 1, 0, 0, 0]])
    short, long = find_sequences(segments, [(2, 1, 2), (2, 2, 4)])
    assert short.tolist() == [[[5, -1]], [[-1, -1]]]
    assert long.tolist() == [[[0, 1, 2, -1], [0, 1, 3, 4]], [[0, 1, 2, -1], [-1] * 4]]
    (together,) = find_sequences(segments, [(1, 4, 4)])
    assert together[0].tolist() == [[0, 1, 2, -1], [0, 1, 3, 4], [5, -1, -1, -1], [6, 7, 8, -1]]


def test_shapes_by_hand():
    """The longest of 30 tokens, none of 9 to 16; of up to 8 the fuller part of the fullest example has three."""
    examples = [
        Sequences(np.array([5, 6, 8, 30]), np.array([0, 1, 1, 0])),
        Sequences(np.array([8] * 4), np.array([0, 0, 0, 1])),
    ]
    found = SequenceShapes(np.array([5, 6, 8, 30]), (8, 16, 32), parts=2, examples=examples)
    assert found.of(examples) == ((2, 3, 8), (2, 1, 32))
    assert found.of([Sequences(np.array([5] * 4 + [30, 31]), np.array([0] * 6))]) == ((2, 6, 8), (2, 2, 32))


def test_rows_are_dealt_out():
    assert spread(np.arange(6), rows=6, parts=2).tolist() == [0, 3, 1, 4, 2, 5]


def sequences_of(batch: PairBatch) -> list[list[int]]:
    """The tokens of every sequence, micro-batch after micro-batch, sorted in each."""
    assert batch.sequences is not None
    found = []
    for tokens_RT, *arrays in zip(batch.tokens_RT, *batch.sequences, strict=True):
        here = []
        for places_UML in arrays:
            of_part = np.asarray(tokens_RT).reshape(len(places_UML), -1)
            for part, places in ((u, m) for u, of in enumerate(places_UML) for m in of if (m >= 0).any()):
                length = np.count_nonzero(places >= 0)
                assert (np.asarray(places)[:length] >= 0).all() and (np.diff(places[:length]) > 0).all()
                here.append(of_part[part][places[:length]].tolist())
        found.append(sorted(here))
    return found


def wanted_of(rows: list[TokenRow], row_ids: tuple[str, ...], *, micro: int) -> list[list[list[int]]]:
    by_id = {row.row_id: row for row in rows}
    parts = [row_ids[start : start + micro] for start in range(0, len(row_ids), micro)]
    return [
        sorted([*by_id[i].prompt.tolist(), *response.tolist()] for i in part for response in by_id[i].responses)
        for part in parts
    ]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(BOTH), st.integers(1, 2), st.sampled_from([1, 2, 4]), st.integers(0, 2**32))
def test_a_batch_tells_every_sequence_once(layout: str, slots: int, parts: int, seed: int):
    rows = make_rows(24, slots=slots, seed=seed, longest=15)
    stream = Batches(rows, batch_pairs=8, micro_batch_pairs=4, seed=0, packing=Packing(layout, parts, BOTH))
    for step in range(3):
        batch, row_ids, _ = stream.batch(step)
        assert batch.sequences is not None and {each.shape[1] for each in batch.sequences} == {parts}
        assert sequences_of(batch) == wanted_of(rows, row_ids, micro=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_layouts_that_are_asked_for(layout: str):
    rows = make_rows(8, longest=9)
    batches = [
        next(evaluation_batches(rows, pairs=8, packing=Packing(layout, unpack=unpack))).arrays
        for unpack in (None, ("shared",), BOTH)
    ]
    told = [batch.sequences and bool(batch.sequences) for batch in batches]
    assert told[0] is None and told[1:] == [
        {"padded": (), "packed": (), "shared": True}[layout],
        {"padded": (), "packed": True, "shared": True}[layout],
    ]
    for batch in batches[1:]:  # the rest is the same: one part, so rows are where they were
        np.testing.assert_array_equal(batch.tokens_RT, batches[0].tokens_RT)


def test_mismatched_completions_are_told_too():
    rows = make_rows(12, longest=12)
    labels = np.arange(12) % 2 > 0
    stream = Batches(
        rows,
        batch_pairs=4,
        micro_batch_pairs=2,
        seed=0,
        packing=Packing("shared", unpack=("shared",)),
        desirable=labels,
    )
    batch = stream.batch(0).arrays
    assert batch.mismatched is not None and batch.sequences and batch.mismatched.sequences
    found = [[each.shape for each in own.sequences or ()] for own in (batch, batch.mismatched)]
    assert found[0] == found[1]


def test_dealing_out_saves_room(monkeypatch: pytest.MonkeyPatch):
    """Where rows are filled the longest first, one part would hold all that is long."""
    rows = make_rows(256, longest=200)

    def room() -> int:
        packing = Packing("shared", 4, BOTH)
        arrays = Batches(rows, batch_pairs=64, micro_batch_pairs=64, seed=0, packing=packing).batch(0).arrays.sequences
        return sum(each.size for each in arrays or ())

    dealt = room()
    monkeypatch.setattr(shapes, "spread", lambda row, *, rows, parts: row)
    assert dealt < 0.9 * room()
