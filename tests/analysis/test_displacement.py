"""What a step does to each pair, against the step itself; similarity of responses; who falls by it."""

from __future__ import annotations

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.analysis.displacement import (
    by_similarity,
    ches,
    edit_similarity,
    hidden_means,
    pair_pulls,
    rank_correlation,
)
from dpo_jax.data.batches import padded
from dpo_jax.losses import PairLogps, dpo, nca_pair
from dpo_jax.types import TokenRow

PAIRS = 3
RANDOM = np.random.default_rng(0)
INPUTS_BPD = RANDOM.normal(size=(PAIRS, 2, 4))
PARAMS = {"w": RANDOM.normal(size=4), "v": {"u": RANDOM.normal(size=(2, 4))}}
REFERENCE = PairLogps(*RANDOM.normal(-3, 1, (2, PAIRS)))


def logps_BP(params: Any) -> jax.Array:
    x = jnp.asarray(INPUTS_BPD)
    return -jax.nn.softplus(x @ params["w"]) + jnp.tanh(jnp.einsum("bpd,kd->bpk", x, params["v"]["u"])).sum(-1)


def total(logps: jax.Array) -> jax.Array:
    policy = PairLogps(logps[:, 0], logps[:, 1])
    return (dpo(policy, REFERENCE, beta=0.5) + nca_pair(policy, REFERENCE)).mean()


def pulls_of(pair: int, change: Any) -> Any:
    params = jax.tree.map(jnp.asarray, PARAMS)
    slopes = jax.grad(total)(logps_BP(params))

    def forward(params: Any) -> tuple[jax.Array, Any]:
        own = logps_BP(params)[pair]
        return own, {"logps": own[None], "heads": 0.5 * own[None]}

    both = {"logps": slopes[pair][None], "heads": jnp.zeros((1, 2))}
    return pair_pulls(forward, params, both, jax.grad(lambda p: total(logps_BP(p)))(params), change)


@pytest.mark.usefixtures("x64")
def test_the_first_order_is_what_a_small_change_does():
    change = jax.tree.map(lambda x: 1e-7 * RANDOM.normal(size=x.shape), PARAMS)
    after = jax.tree.map(jnp.add, PARAMS, change)
    happened = logps_BP(after) - logps_BP(PARAMS)
    for pair in range(PAIRS):
        np.testing.assert_allclose(pulls_of(pair, change).first_order, happened[pair], rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_the_pulls_are_those_of_each_response_alone():
    """Descent along the gradient that comes through one response only, and along all of it."""
    rate, slopes = 1e-7, jax.grad(total)(logps_BP(PARAMS))
    _, pull = jax.vjp(logps_BP, jax.tree.map(jnp.asarray, PARAMS))

    def moved(kept: np.ndarray) -> np.ndarray:
        step = pull(slopes * kept)[0]
        after = jax.tree.map(lambda p, g: p - rate * g, PARAMS, step)
        return np.asarray(logps_BP(after) - logps_BP(PARAMS)) / rate

    for pair in range(PAIRS):
        found = pulls_of(pair, jax.tree.map(jnp.zeros_like, PARAMS))
        chosen, rejected, own = np.zeros((3, PAIRS, 2))
        chosen[pair, 0] = rejected[pair, 1] = own[pair] = 1
        np.testing.assert_allclose(found.own_chosen, moved(chosen)[pair], rtol=1e-4)
        np.testing.assert_allclose(found.own_rejected, moved(rejected)[pair], rtol=1e-4)
        np.testing.assert_allclose(found.others, moved(1 - own)[pair], rtol=1e-4)
        assert found.own_chosen[0] > 0 > found.own_rejected[1]


def test_edit_similarity_by_hand():
    for one, other, edits in (
        ("kitten", "sitting", 3),
        ("abc", "abc", 0),
        ("abc", "xyz", 3),
        ("abcd", "bcd", 1),
        ("bcd", "abcdx", 2),
        ("", "ab", 2),
    ):
        a, b = (np.frombuffer(text.encode(), np.uint8) for text in (one, other))
        assert edit_similarity(a, b) == edit_similarity(b, a) == pytest.approx(1 - edits / max(len(a), len(b)))
    assert edit_similarity(np.array([], int), np.array([], int)) == 1.0


def test_means_are_of_the_states_that_predict_the_response():
    rows = [
        TokenRow("0", np.array([5, 6]), (np.array([7, 8, 9]), np.array([3]))),
        TokenRow("1", np.array([1]), (np.array([2]), np.array([4, 5]))),
    ]
    batch = jax.tree.map(jnp.asarray, padded(rows, length=6, scored=3, row_multiple=8))
    hidden_RTD = jnp.stack([batch.tokens_RT, 10 * batch.tokens_RT], axis=-1).astype(jnp.float32)
    means = np.asarray(hidden_means(hidden_RTD, batch))
    # A token is predicted where the one before it was read: 6 7 8 and 6; 1 and 1 4.
    np.testing.assert_allclose(means[..., 0], [[7, 6], [1, 2.5]])
    np.testing.assert_allclose(means[..., 1], 10 * means[..., 0])
    np.testing.assert_allclose(ches(means), 101 * np.array([7 * 6 - 49, 2.5 - 1]))  # <m_w, m_l> - |m_w|^2


def test_the_share_that_fell_by_similarity():
    similarity = np.array([0.9, 0.1, 0.5, 0.2, 0.8])
    ratios = np.array([[-1.0, -5.0], [2.0, 0.0], [0.0, -1.0], [-2.0, 2.0], [-3.0, -3.0]])
    low, middle, high = by_similarity(similarity, ratios, bins=3)
    assert low[:4] == (0.1, 0.2, 2, 1) and middle[:4] == (0.5, 0.8, 2, 1) and high[:6] == (0.9, 0.9, 1, 1, -1.0, -5.0)
    assert low[4:6] == (0.0, 1.0) and middle[4:6] == (-1.5, -2.0)  # at the reference itself is not below it
    assert [part.places.tolist() for part in (low, middle, high)] == [[1, 3], [2, 4], [0]]
    assert len(by_similarity(similarity[:2], ratios[:2], bins=4)) == 2


def test_rank_correlation_against_the_sum_of_squares():
    a = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.6])
    for b in (np.exp(a), -a, np.array([1.0, 2.0, 6.0, 4.0, 3.0, 5.0])):
        ranks = [np.array([sum(x >= y for y in values) for x in values]) for values in (a, b)]
        expected = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (6 * 35)
        assert rank_correlation(a, b) == pytest.approx(expected)
    # With ties, from the definition on pairs: ranks 1.5 1.5 3 and 1 2 3.
    assert rank_correlation(np.array([1, 1, 2]), np.array([5, 6, 7])) == pytest.approx(0.75**0.5)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3)))


@pytest.mark.parametrize("seed", range(3))
def test_edit_similarity_against_the_table_of_all_prefixes(seed: int):
    random = np.random.default_rng(seed)
    a, b = (random.integers(0, 3, random.integers(1, 9)) for _ in range(2))
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, j in product(range(1, len(a) + 1), range(1, len(b) + 1)):
        table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + int(a[i - 1] != b[j - 1]))
    assert edit_similarity(a, b) == pytest.approx(1 - table[len(a), len(b)] / max(len(a), len(b)))
