"""Orders of an epoch: fixed by seed and epoch, and both labels in every window that a batch may be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.data.order import UnevenLabels, epoch_order, require_both_labels


def labels(good: int, bad: int) -> np.ndarray:
    return np.random.default_rng(0).permutation([True] * good + [False] * bad)


def test_the_mixed_order_by_hand():
    desirable = np.array([True, True, False, False, False])
    # floor(2 (k + 1) / 5) for k = 0 .. 4 is 0 0 1 1 2: it grows at k = 2 and 4
    assert epoch_order(5, epoch=0, seed=0, order="sequential", desirable=desirable).tolist() == [2, 3, 0, 4, 1]
    # a shuffled epoch is 7 3 5 6 4 0 2 1: of it 3 0 2 1 are desirable
    desirable = np.arange(8) < 4
    assert epoch_order(8, epoch=1, seed=3, desirable=desirable).tolist() == [7, 3, 5, 0, 6, 2, 4, 1]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.sampled_from(["shuffle", "sequential"]))
def test_an_epoch_has_each_row_once_and_each_label_in_its_order(good, bad, epoch, order):
    desirable = labels(good, bad)
    options = {"epoch": epoch, "seed": 5, "order": order}
    plain, mixed = (epoch_order(good + bad, **options, desirable=given) for given in (None, desirable))
    assert sorted(mixed) == list(range(good + bad))
    for label in (True, False):
        assert np.array_equal(mixed[desirable[mixed] == label], plain[desirable[plain] == label])


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 70))
def test_every_window_over_the_epochs_holds_its_share(good, bad, size):
    desirable = labels(good, bad)
    count = good + bad
    epochs = [epoch_order(count, epoch=n, seed=1, desirable=desirable) for n in range(size // count + 2)]
    held = np.lib.stride_tricks.sliding_window_view(desirable[np.concatenate(epochs)], size).sum(-1)
    assert np.abs(held - size * good / count).max() < 1
    mixed = bool(held.min() >= 1 and held.max() < size)
    try:
        require_both_labels(desirable, batch_pairs=size)
    except UnevenLabels:
        assert not mixed  # what is refused would have had a batch of one label
    else:
        assert mixed


def test_a_batch_too_small_to_hold_both_labels_is_refused_with_the_size_that_works():
    desirable = labels(3, 7)
    with pytest.raises(UnevenLabels) as error:
        require_both_labels(desirable, batch_pairs=3)
    for words in ("batch_pairs is 3", "3 desirable and 7 undesirable", "Set batch_pairs to 4 or more"):
        assert words in str(error.value)
    require_both_labels(desirable, batch_pairs=4)
    require_both_labels(labels(5, 5), batch_pairs=2)


@pytest.mark.parametrize(("good", "bad"), [(4, 0), (0, 4)])
def test_a_missing_label_is_refused_whatever_the_batch(good, bad):
    with pytest.raises(UnevenLabels, match=f"{good} desirable and {bad} undesirable .* needs both"):
        require_both_labels(labels(good, bad), batch_pairs=100)
