"""KL divergence and sum of squares of whole distributions: by hand, and against the plain forms as `test_tokens`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.logprobs import token_kl, token_log_sum_sq
from dpo_jax.mesh import make_mesh
from dpo_jax.types import Unembedding
from tests.logprobs import naive
from tests.logprobs.naive import LOGITS_BYTES, VOCABULARY, assert_trees_close, example, temporary_bytes
from tests.processes import evaluate

BENDS = {"plain": (1.0, None), "capped": (0.7, 5.0), "mild": (1.3, 9.0)}


def with_probabilities(*probabilities: float) -> tuple[jax.Array, Unembedding]:
    """A hidden state of one token and an unembedding that give it this distribution."""
    return jnp.ones((1, 1, 1)), Unembedding(jnp.log(jnp.array(probabilities))[:, None], len(probabilities))


def two_sides(vocabulary: int, bends: tuple[str, str], dtype=jnp.float64):
    """Policy and reference, of different widths: their arrays, how arrays become arguments, and token weights."""
    hidden, _, weight, weights_RN = example(dtype=dtype)
    reference_hidden, _, reference_weight, _ = example(width=6, dtype=dtype, seed=1)
    ours, theirs = (BENDS[name] for name in bends)

    def arguments(hidden, weight, reference_hidden, reference_weight):
        reference = Unembedding(reference_weight, vocabulary, *theirs)
        return hidden, Unembedding(weight, vocabulary, *ours), reference_hidden, reference

    return (hidden, weight, reference_hidden, reference_weight), arguments, weights_RN


def test_kl_by_hand():
    # KL(ref || pol) = 1/2 log(2) + 1/2 log(2/3); the other way round it would be 1/4 log(1/2) + 3/4 log(3/2)
    policy, reference = with_probabilities(0.25, 0.75), with_probabilities(0.5, 0.5)
    np.testing.assert_allclose(token_kl(*policy, *reference), [[0.5 * np.log(4 / 3)]], rtol=1e-6)


# Uneven tiles as in test_tokens; of 5 counted columns most tiles hold none
@pytest.mark.parametrize(
    ("tile_tokens", "tile_vocabulary", "vocabulary", "bends"),
    [
        (6, 7, 37, ("capped", "mild")),
        (6, 7, 5, ("mild", "plain")),
        (1, 1, 40, ("plain", "capped")),
        (2048, 16384, 37, ("mild", "capped")),
    ],
)
def test_kl_and_gradient_equal_the_plain_form(tile_tokens, tile_vocabulary, vocabulary, bends):
    with jax.enable_x64(True):
        arrays, arguments, weights_RN = two_sides(vocabulary, bends)

        def total(form, **tiles):
            inner = lambda *arrays: (form(*arguments(*arrays), **tiles) * weights_RN).sum()  # noqa: E731
            return jax.jit(jax.value_and_grad(inner, (0, 1)))(*arrays)

        ours = total(token_kl, tile_tokens=tile_tokens, tile_vocabulary=tile_vocabulary)
        assert_trees_close(ours, total(naive.token_kl), atol=1e-12)


def test_the_reference_gets_no_gradient():
    arrays, arguments, _ = two_sides(37, ("plain", "plain"), dtype=jnp.float32)
    total = jax.jit(jax.grad(lambda *arrays: token_kl(*arguments(*arrays)).sum(), (2, 3)))
    for gradient in total(*arrays):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_weight_that_both_sides_share_learns_from_the_policy_alone():
    with jax.enable_x64(True):
        (hidden, weight, *_), _, _ = two_sides(37, ("plain", "plain"))

        def gradient(form, frozen):
            def total(weight):
                return form(hidden, Unembedding(weight, 37), hidden[::-1], Unembedding(frozen(weight), 37)).sum()

            return jax.jit(jax.grad(total))(weight)

        wanted = gradient(naive.token_kl, jax.lax.stop_gradient)
        np.testing.assert_allclose(gradient(token_kl, lambda weight: weight), wanted, atol=1e-12)


def test_kl_of_equal_sides_is_zero_and_so_is_its_gradient():
    hidden, _, weight, _ = example(dtype=jnp.float32)
    same = Unembedding(weight, 37, *BENDS["capped"])

    def total(hidden, weight):
        return token_kl(hidden, same._replace(weight_VD=weight), hidden, same, tile_vocabulary=7).sum()

    for zero in jax.tree.leaves(jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)):
        np.testing.assert_allclose(zero, np.zeros_like(zero), atol=1e-6)


def test_a_tiny_kl_keeps_its_digits():
    # The KL of sides this close is some 1e-6 nats, as small as the rounding of the log-sum-exps, which are about 10.
    hidden, _, weight, _ = example(columns=5000, dtype=jnp.float32)
    nudged = hidden + 1e-3 * example(dtype=jnp.float32, seed=1)[0]

    def kl(form, *arrays, **tiles):
        nudged, hidden, weight = arrays
        return form(nudged, Unembedding(weight, 5000), hidden, Unembedding(weight, 5000), **tiles)

    ours = jax.jit(functools.partial(kl, token_kl, tile_vocabulary=256))(nudged, hidden, weight)
    with jax.enable_x64(True):
        exact = jax.jit(functools.partial(kl, naive.token_kl))(
            *(array.astype(jnp.float64) for array in (nudged, hidden, weight))
        )
    np.testing.assert_allclose(ours, exact, atol=5e-7)


def test_other_shapes_are_refused():
    arrays, arguments, _ = two_sides(40, ("plain", "plain"), dtype=jnp.float32)
    for which in range(4):
        other = [array[:1, :1] if i == which else array for i, array in enumerate(arrays)]
        with pytest.raises(AssertionError):
            token_kl(*arguments(*other))


def test_far_out_logits_stay_finite():
    (hidden, *others), arguments, _ = two_sides(40, ("plain", "plain"), dtype=jnp.float32)
    total = lambda hidden: token_kl(*arguments(hidden * 1e4, *others), tile_vocabulary=7).sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(hidden)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    squares = token_log_sum_sq(hidden * 1e4, Unembedding(others[0], 40), tile_vocabulary=7)
    np.testing.assert_allclose(squares, np.zeros_like(squares), atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    (hidden, *_), (reference_hidden, _, weight, _) = (
        example(rows=1, scored=4, width=64, columns=5000, dtype=jnp.bfloat16, seed=seed) for seed in (0, 1)
    )
    wide = jax.tree.map(lambda array: array.astype(jnp.float32), (hidden, reference_hidden, weight))

    def both(kl, squares, hidden, reference_hidden, weight, **tiles):
        unembedding = Unembedding(weight, 5000)
        return kl(hidden, unembedding, reference_hidden, unembedding, **tiles), squares(hidden, unembedding, **tiles)

    ours = both(token_kl, token_log_sum_sq, hidden, reference_hidden, weight, tile_vocabulary=256)
    assert {value.dtype for value in ours} == {jnp.dtype("float32")}
    assert_trees_close(ours, both(naive.token_kl, naive.token_log_sum_sq, *wide), atol=1e-4)


def test_sharded_equals_whole():
    hidden, _, weight, weights_RN = example(rows=8, columns=48, dtype=jnp.float32)
    reference_hidden, _, reference_weight, _ = example(rows=8, columns=48, dtype=jnp.float32, seed=1)
    tiles = {"tile_tokens": 16, "tile_vocabulary": 12}

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def total(hidden, weight):
        unembedding, reference = Unembedding(weight, 45), Unembedding(reference_weight, 45)
        squares = token_log_sum_sq(hidden, unembedding, **tiles)
        return (token_kl(hidden, unembedding, reference_hidden, reference, **tiles) * weights_RN).sum(), squares

    whole = total(hidden, weight)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        split = total(hidden, weight)
    assert_trees_close(split, whole, rtol=1e-5, atol=1e-5)


def test_log_sum_sq_by_hand():
    # a fair coin, a certain one, and 1/16 + 9/16
    for probabilities, wanted in [((0.5, 0.5), 0.5), ((1.0, 0.0), 1.0), ((0.25, 0.75), 0.625)]:
        hidden, unembedding = with_probabilities(*np.maximum(probabilities, 1e-30))
        np.testing.assert_allclose(token_log_sum_sq(hidden, unembedding), [[np.log(wanted)]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("tile_tokens", "tile_vocabulary", "vocabulary", "bend"),
    [(6, 7, 37, "capped"), (1, 1, 5, "plain"), (2048, 16384, 40, "mild")],
)
def test_log_sum_sq_equals_the_plain_form_and_has_no_gradient(tile_tokens, tile_vocabulary, vocabulary, bend):
    with jax.enable_x64(True):
        hidden, _, weight, _ = example()

        def ours(hidden, weight):
            unembedding = Unembedding(weight, vocabulary, *BENDS[bend])
            value = token_log_sum_sq(hidden, unembedding, tile_tokens=tile_tokens, tile_vocabulary=tile_vocabulary)
            return value.sum(), value

        (_, value), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, weight)
        plain = lambda hidden, weight: naive.token_log_sum_sq(hidden, Unembedding(weight, vocabulary, *BENDS[bend]))  # noqa: E731
        wanted = jax.jit(plain)(hidden, weight)
        np.testing.assert_allclose(value, wanted, atol=1e-12)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def peaks() -> tuple[int, int, int]:
    """Temporary bytes of the gradient of the KL, tiled and plain, and of the sum of squares."""

    def gradient(form):
        def total(hidden, weight):
            unembedding = Unembedding(weight, VOCABULARY)
            return form(hidden, unembedding, jnp.flip(hidden, 1), unembedding).sum()

        return jax.grad(total, (0, 1))

    squares = temporary_bytes(lambda hidden, weight: token_log_sum_sq(hidden, Unembedding(weight, VOCABULARY)))
    return temporary_bytes(gradient(token_kl)), temporary_bytes(gradient(naive.token_kl)), squares


def test_no_array_of_tokens_by_vocabulary_exists():
    ours, plain, squares = evaluate("tests.logprobs.test_distribution", "m.peaks()")
    assert plain > LOGITS_BYTES
    assert squares < LOGITS_BYTES / 3  # two tiles of 128 MiB
    assert ours < LOGITS_BYTES * 0.52  # of both sides and their exponentials, which XLA keeps apart without YNNPACK
