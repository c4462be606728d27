"""What is found in rows of tokens, by hand."""

import numpy as np
import pytest

from dpo_jax.data.check import check_rows, overlap
from dpo_jax.types import TokenRow

EOS, BOS = 2, 1


def row(prompt: list[int], *responses: list[int]) -> TokenRow:
    return TokenRow("0", np.array(prompt, np.int32), tuple(np.array(ids, np.int32) for ids in responses))


def found(*rows: TokenRow, **options):
    return check_rows(rows, ends={EOS}, bos=BOS, **options).findings


GOOD = row([BOS, 7, 8], [5, 6, EOS], [9, EOS])


def test_a_plain_row_is_only_measured():
    one = found(GOOD)
    assert one.lengths == {"prompt": [3] * 4, "chosen": [3] * 4, "rejected": [2] * 4} and one.longer_chosen == 1.0
    assert one[0] == 1 and one[2:7] == (0, 0, 0, 0, 0)


def test_percentiles_are_lengths_that_occur():
    rows = [row([7] * n, [5, EOS], [6, EOS]) for n in range(1, 101)]
    assert found(*rows).lengths["prompt"] == [51, 91, 100, 100]


def test_ends_and_beginnings():
    one = found(GOOD, row([BOS, BOS, 8], [5, 6], [9]), row([8, BOS], [5, EOS, 5, 5], [9, EOS, 5]))
    assert one.responses_without_end == 3 and one.prompts_with_two_bos == 1
    assert check_rows([row([5, 5], [6, EOS], [7, EOS])], ends={EOS}, bos=None).findings.prompts_with_two_bos == 0


def test_nearly_identical_pairs_share_nine_tenths_of_the_longer_one():
    long = list(range(10, 29))
    changed = [*long[:9], 99, *long[10:]]  # 19 of 20 with the end
    assert found(row([7], [*long, EOS], [*changed, EOS])).nearly_identical == 1
    assert found(row([7], [*long, EOS], [*long[:9], 98, 99, *long[11:], EOS])).nearly_identical == 0  # 18 of 20
    assert found(row([7], [5, 5, 5, EOS], [5, 5, EOS])).nearly_identical == 0  # 3 of 4, none counted twice
    assert found(row([7], [*long, EOS], [*long, 40, EOS])).nearly_identical == 1


def test_repeated_rows_and_both_orders():
    turned = GOOD._replace(responses=GOOD.responses[::-1])
    one = found(GOOD, turned, GOOD, turned, GOOD._replace(prompt=np.array([BOS, 8, 7], np.int32)))
    assert (one.repeated, one.both_orders) == (2, 1)


def test_labels_both_ways():
    single = [row([7], [5, EOS]), row([7], [5, EOS]), row([7], [5, EOS]), row([7], [6, EOS])]
    one = found(*single, desirable=np.array([True, False, True, True]))
    assert (one.repeated, one.both_orders, one.longer_chosen) == (1, 1, None)
    assert set(one.lengths) == {"prompt", "completion"}
    with_mismatched = [row([7], [5, EOS], [5, EOS])] * 2
    assert found(*with_mismatched, desirable=np.array([True, True])).nearly_identical == 0


def test_length_bias_is_of_pairs_of_unequal_length():
    even = row([7], [5, EOS], [6, EOS])
    assert found(GOOD, GOOD._replace(responses=GOOD.responses[::-1]), GOOD, even).longer_chosen == pytest.approx(2 / 3)
    assert found(even).longer_chosen is None


def test_what_two_splits_share():
    turned = GOOD._replace(responses=GOOD.responses[::-1])
    other_prompt = GOOD._replace(prompt=np.array([9], np.int32))
    train = check_rows([GOOD, other_prompt, GOOD], ends={EOS}, bos=BOS)
    held_out = check_rows([turned, row([9], [4, EOS], [3, EOS]), row([5], [4, EOS], [3, EOS])], ends={EOS}, bos=BOS)
    assert overlap(train, held_out) == (1, 2)
