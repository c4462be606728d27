"""Sampling against plain forward passes, and its streams of random numbers."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh, named_sharding, place
from dpo_jax.models import sampling
from dpo_jax.models.model import Model, make_model
from dpo_jax.models.sampling import compile_ahead, draw, generate, least_drawn, make_sampler, next_logits
from dpo_jax.models.spec import DecoderSpec, LayerKind
from dpo_jax.types import Unembedding

SPEC = DecoderSpec(
    vocabulary=300,  # more than one block of the two-stage draw, and no multiple of it
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=4,
    mlp_width=32,
    kinds=(LayerKind(100.0),),
    norm_epsilon=1e-5,
    tied=False,
)
MODEL = make_model(SPEC)
NEW = 8
FREE = make_sampler(MODEL, max_new_tokens=NEW, stop_tokens=())
KEY = jax.random.key(7)
PROMPTS = [np.array(ids) for ids in ([5], [9, 250, 17, 3], [1, 2], [299, 0, 44])]


@pytest.fixture(scope="module")
def params():
    # Wider than usual, so that logits spread by some nats.
    return jax.tree.map(lambda array: array * 5, jax.jit(MODEL.init)(jax.random.key(0)))


def logits_TV(params, ids) -> np.ndarray:
    """Logits after each token by one plain pass, padded to one shape."""
    tokens_RT = np.pad(np.array(ids), (0, 16 - len(ids)))[None]
    hidden_RTD, weight_VD = _plain_pass(params, tokens_RT)
    return np.asarray(hidden_RTD)[0, : len(ids)] @ np.asarray(weight_VD).T


@jax.jit
def _plain_pass(params, tokens_RT):
    positions_RT = jnp.arange(tokens_RT.shape[1])[None]
    hidden_RTD, unembedding = MODEL.apply(params, tokens_RT, positions_RT, jnp.ones_like(tokens_RT))
    return hidden_RTD, unembedding.weight_VD


@pytest.mark.parametrize("pad", [0, 123])
def test_greedy_equals_argmax_of_plain_passes_whatever_the_padding_holds(params, pad):
    prompt_RT = np.stack([np.pad(p, (0, 4 - len(p)), constant_values=pad) for p in PROMPTS]).astype(np.int32)
    lengths_R = np.array([len(prompt) for prompt in PROMPTS], np.int32)
    tokens_RM, new_R = FREE(params, prompt_RT, lengths_R, KEY, 0.0)
    assert new_R.tolist() == [NEW] * 4
    for prompt, response in zip(PROMPTS, np.asarray(tokens_RM), strict=True):
        # If each token is the argmax after those before it, the response is what repeated passes would give.
        predicted = logits_TV(params, [*prompt, *response[:-1]])[len(prompt) - 1 :].argmax(axis=-1)
        assert response.tolist() == predicted.tolist()


def test_lengths_count_the_stop_token_and_nothing_follows_it(params):
    free = generate(FREE, params, PROMPTS, key=KEY, batch_rows=4)
    stops = (int(free[0][2]), int(free[2][0]))
    sampler = make_sampler(MODEL, max_new_tokens=NEW, stop_tokens=stops)
    stopped = generate(sampler, params, PROMPTS, key=KEY, batch_rows=4)
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), NEW) for row in free]
    assert ends[0] <= 3 and ends[2] == 1 and NEW in ends
    assert [row.tolist() for row in stopped] == [row[:end].tolist() for row, end in zip(free, ends, strict=True)]

    prompt_RT = np.stack([np.pad(prompt, (0, 4 - len(prompt))) for prompt in PROMPTS]).astype(np.int32)
    tokens_RM, _ = sampler(params, prompt_RT, np.array([1, 4, 2, 3], np.int32), KEY, 1.0, 0)
    assert tokens_RM[2].tolist() == [stops[1]] + [0] * (NEW - 1)


class CountingModel(Model):
    """Counts the passes that run."""

    passes = 0

    def extend(self, *args):
        jax.debug.callback(lambda: setattr(CountingModel, "passes", CountingModel.passes + 1))
        return super().extend(*args)


def test_the_loop_ends_when_every_row_is_done(params):
    model = CountingModel(**vars(MODEL))
    sampler = make_sampler(model, max_new_tokens=50, stop_tokens=tuple(range(300)))
    assert [len(row) for row in generate(sampler, params, PROMPTS, key=KEY, batch_rows=4)] == [1] * 4
    jax.effects_barrier()
    assert CountingModel.passes == 1  # the prompt's own


def test_a_row_depends_on_neither_batch_size_nor_other_rows(params):
    prompts = PROMPTS * 2
    together = generate(FREE, params, prompts, key=KEY, batch_rows=4)
    apart = generate(FREE, params, prompts, key=KEY, batch_rows=3)
    others = generate(FREE, params, [*PROMPTS[::-1], *PROMPTS], key=KEY, batch_rows=4)
    assert [row.tolist() for row in together] == [row.tolist() for row in apart]
    assert [row.tolist() for row in together[4:]] == [row.tolist() for row in others[4:]]


def test_equal_prompts_differ_by_row_and_by_key(params):
    def responses(seed: int) -> set[tuple[int, ...]]:
        rows = generate(FREE, params, [PROMPTS[1]] * 6, key=jax.random.key(seed), batch_rows=4)
        return {tuple(row.tolist()) for row in rows}

    assert len(responses(0)) == 6
    assert responses(0) == responses(0)
    assert not responses(0) & responses(1)


def test_steps_of_one_row_draw_independently(params):
    flat = jax.tree.map(jnp.zeros_like, params)
    rows = generate(FREE, flat, PROMPTS, key=KEY, batch_rows=4)
    assert all(len(set(row.tolist())) >= NEW - 1 for row in rows)  # uniform over 300 tokens: repeats are rare


def test_several_samples_are_rows_of_their_own_in_prompt_order(params):
    told: list[int] = []
    several = generate(FREE, params, PROMPTS, key=KEY, batch_rows=4, samples=3, progress=told.append)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    rows = generate(FREE, params, repeated, key=KEY, batch_rows=4)
    assert [row.tolist() for row in several] == [row.tolist() for row in rows]
    assert len({tuple(row.tolist()) for row in several}) == 12
    assert told == [4, 8, 12]


def test_compiled_ahead_nothing_compiles(params):
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(event) if "backend_compile" in event else None
    )
    sampler = make_sampler(MODEL, max_new_tokens=3, stop_tokens=())
    generate(FREE, params, PROMPTS, key=KEY, batch_rows=4)
    before = len(compiled)
    compile_ahead(sampler, params, PROMPTS, batch_rows=4)
    assert len(compiled) == before + 1
    for knobs in ({}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.5}, {"top_k": 4, "samples": 2}):
        generate(sampler, params, PROMPTS, key=KEY, batch_rows=4, **knobs)
    assert len(compiled) == before + 1
    jax.monitoring.clear_event_listeners()


def test_sampled_tokens_follow_the_softmax(params):
    rows, prompt = 3000, [9, 250, 17]
    sample = make_sampler(MODEL, max_new_tokens=2, stop_tokens=())
    for temperature, top_p, top_k in ((0.5, 1.0, 0), (1.0, 1.0, 0), (1.5, 0.8, 40)):
        prompt_RT, lengths_R = np.tile(np.array([prompt], np.int32), (rows, 1)), np.full(rows, 3, np.int32)
        tokens_RM = np.asarray(sample(params, prompt_RT, lengths_R, KEY, temperature, 0, top_p=top_p, top_k=top_k)[0])
        first = int(np.bincount(tokens_RM[:, 0]).argmax())
        logits = logits_TV(params, [*prompt, first]).astype(np.float64) / temperature
        expected_TV = np.where([may_be_drawn(row, top_p, top_k) for row in logits], logits, -np.inf)
        assert_follows(tokens_RM[:, 0], expected_TV[2])
        assert_follows(tokens_RM[tokens_RM[:, 0] == first, 1], expected_TV[3])


def assert_follows(tokens: np.ndarray, logits_V: np.ndarray) -> None:
    """Chi-square of the tokens that are expected at least five times, the others counted as one."""
    observed, expected = np.bincount(tokens, minlength=len(logits_V)), np.exp(logits_V)
    assert observed[expected == 0].sum() == 0
    observed, expected = observed[expected > 0], len(tokens) * expected[expected > 0] / expected.sum()
    likely = expected >= 5
    assert likely.sum() > 5
    if not likely.all():
        expected, observed = (np.append(count[likely], count[~likely].sum()) for count in (expected, observed))
    statistic, freedom = np.sum((observed - expected) ** 2 / expected), len(expected) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations of chi-square


def test_draw_reaches_every_block_and_never_a_masked_token():
    tokens, rows = np.array([0, 255, 256, 599]), 4000
    logits_RV = np.full((rows, 600), -np.inf, np.float32)
    logits_RV[:, tokens] = np.log([1, 2, 3, 4])
    drawn = np.asarray(jax.jit(draw)(logits_RV, jax.random.split(KEY, rows), 1.0))
    shares = [(drawn == token).mean() for token in tokens]
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.03)  # the standard errors are below 0.008
    assert sum(shares) == 1.0


def test_logits_are_scaled_capped_masked_and_float32():
    hidden_RD = jnp.array([[1.0, 2.0]], jnp.bfloat16)
    weight_VD = jnp.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], jnp.bfloat16)
    logits_RV = next_logits(hidden_RD, Unembedding(weight_VD, 2, scale=0.5, soft_cap=2.0))
    assert logits_RV.dtype == jnp.float32
    # 2 * tanh(0.5 * 1 / 2) and 2 * tanh(0.5 * 2 / 2)
    np.testing.assert_allclose(logits_RV[0], [2 * np.tanh(0.25), 2 * np.tanh(0.5), -np.inf], rtol=1e-6)


@pytest.mark.slow("on eight devices")
def test_a_mesh_changes_nothing(params):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = jax.tree.map(
        lambda axes, leaf: place(named_sharding(mesh, axes, leaf.shape), np.asarray(leaf)),
        MODEL.axes,
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    for knobs in ({"temperature": 0.0}, {"temperature": 1.5}, {"temperature": 1.5, "top_p": 0.7, "top_k": 50}):
        with jax.set_mesh(mesh):
            meshed = generate(FREE, sharded, PROMPTS, key=KEY, batch_rows=8, samples=2, **knobs)
        plain = generate(FREE, params, PROMPTS, key=KEY, batch_rows=8, samples=2, **knobs)
        assert [row.tolist() for row in meshed] == [row.tolist() for row in plain]


def test_a_mesh_splits_the_cache_and_returns_everything_everywhere():
    new_tokens, rows = 1000, 8
    sampler = make_sampler(MODEL, max_new_tokens=new_tokens, stop_tokens=())
    with jax.set_mesh(make_mesh(data=4, fsdp=1, tensor=2)):
        compiled = sampler.lower(
            MODEL.shapes, np.ones((rows, 1), np.int32), np.ones(rows, np.int32), KEY, 1.0
        ).compile()
    cache_bytes = 4 * sum(array.size for array in jax.eval_shape(lambda: MODEL.empty_cache(rows, new_tokens)))
    assert cache_bytes / 8 < compiled.memory_analysis().temp_size_in_bytes < cache_bytes / 3
    assert all(sharding.is_fully_replicated for sharding in compiled.output_shardings)


def test_the_cache_is_held_once():
    """Temporary memory is one cache and a few arrays of a layer's size: no step copies the cache."""
    rows, new_tokens = 8, 1000
    model = make_model(dataclasses.replace(SPEC, layers=16))
    sampler = make_sampler(model, max_new_tokens=new_tokens, stop_tokens=())
    prompt_RT, lengths_R = jnp.ones((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32)
    memory = sampler.lower(model.shapes, prompt_RT, lengths_R, KEY, 1.0).compile().memory_analysis()
    cache_bytes = 4 * sum(array.size for array in jax.eval_shape(lambda: model.empty_cache(rows, new_tokens)))
    assert cache_bytes < memory.temp_size_in_bytes < 1.4 * cache_bytes


def test_bad_requests_are_refused(params):
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        make_sampler(MODEL, max_new_tokens=0, stop_tokens=())
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(FREE, params, [PROMPTS[0], np.array([], np.int32)], key=KEY, batch_rows=2)
    assert generate(FREE, params, [], key=KEY, batch_rows=2) == []


LEAST = jax.jit(least_drawn)
DRAW = jax.jit(sampling.draw)
INF = np.inf
ROWS = 50
LOGITS_RV, KEYS_R = 3 * jax.random.normal(jax.random.key(0), (ROWS, 600)), jax.random.split(jax.random.key(1), ROWS)


def may_be_drawn(scores_V: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """By definition, one row in float64: fewer than k tokens, and less than p of what k leaves, are likelier."""
    better_VV = scores_V[None, :] > scores_V[:, None]
    mass_V = np.exp(scores_V - scores_V.max())
    if top_k:
        mass_V = np.where(better_VV.sum(axis=1) < top_k, mass_V, 0.0)
    ahead_V = np.where(better_VV, mass_V[None, :], 0.0).sum(axis=1) / mass_V.sum()
    return (mass_V > 0) & ((top_p == 1) | (ahead_V < top_p) | (ahead_V == 0))


@pytest.mark.parametrize("spread", [1e-3, 3.0, 30.0])
def test_what_is_left_is_what_sorting_leaves(spread):
    logits_RV = np.random.default_rng(0).normal(-1.0, spread, (9, 70)).astype(np.float32)
    logits_RV[:, 60:] = -INF  # beyond the vocabulary
    logits_RV[0] = np.abs(logits_RV[0])
    logits_RV[0, 60:] = -INF
    seen = set()
    for temperature, top_p, top_k in itertools.product((0.5, 2.0), (0.05, 0.31, 0.9, 0.999, 1.0), (0, 1, 7, 60, 1000)):
        least_R = np.asarray(LEAST(logits_RV, temperature, top_p=top_p, top_k=top_k))
        for logits_V, least in zip(logits_RV, least_R, strict=True):
            expected_V = may_be_drawn(logits_V.astype(np.float64) / temperature, top_p, top_k)
            assert ((logits_V >= least) & (logits_V > -INF)).tolist() == expected_V.tolist()
            seen.add(int(expected_V.sum()))
    assert {1, 7, 60} < seen


@pytest.mark.parametrize(
    ("logits", "top_p", "top_k", "kept"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1.0, 0, [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 1.0, 2, [2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 1.0, 9, [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 0.0, 0, [3]),
        ([-1.0, -1.0, -3.0, -1.0], 1.0, 1, [0, 1, 3]),  # three tie for the first place
        ([-1.0, -1.0, -3.0, -1.0], 0.1, 0, [0, 1, 3]),
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.39, 0, [0]),  # 0.4, 0.3, 0.2, 0.1
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.41, 0, [0, 1]),
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.56, 2, [0]),  # 4 / 7 = 0.571 of the two that are left
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.58, 2, [0, 1]),
        ([0.0, -0.0, -INF, -INF], 0.4, 0, [0, 1]),
        ([3e38, -3e38, 0.0, 1e-30], 1.0, 3, [0, 2, 3]),
        ([3e38, -3e38, 0.0, 1e-30], 1.0, 2, [0, 3]),
        ([-INF, -INF, -2.5, -INF], 0.5, 3, [2]),
    ],
)
def test_by_hand(logits, top_p, top_k, kept):
    logits_RV = jnp.array([logits], jnp.float32)
    stays_RV = logits_RV >= LEAST(logits_RV, 1.0, top_p=top_p, top_k=top_k)[:, None]
    assert np.flatnonzero(stays_RV).tolist() == kept


def test_a_hot_distribution_is_cut_as_it_is_drawn_from():
    logits_RV = jnp.log(jnp.array([[16.0, 4.0, 1.0]]))
    # At temperature 2 the shares are 4/7, 2/7, 1/7; at 1 they are 16/21, 4/21, 1/21.
    assert LEAST(logits_RV, 2.0, top_p=0.7, top_k=0) == logits_RV[0, 1]
    assert LEAST(logits_RV, 1.0, top_p=0.7, top_k=0) == logits_RV[0, 0]


def test_turned_off_the_draws_are_those_without_it_to_the_bit(monkeypatch):
    off_R = DRAW(LOGITS_RV, KEYS_R, 0.7, top_p=1.0, top_k=0)
    monkeypatch.setattr(sampling, "least_drawn", lambda *_, **__: jnp.full(ROWS, -jnp.inf))
    assert off_R.tolist() == jax.jit(lambda: sampling.draw(LOGITS_RV, KEYS_R, 0.7))().tolist()


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.0, 0.5, 7), (2.0, 0.0, 0), (2.0, 1.0, 1)])
def test_temperature_zero_and_the_narrowest_knobs_take_the_likeliest(temperature, top_p, top_k):
    drawn_R = DRAW(LOGITS_RV, KEYS_R, temperature, top_p=top_p, top_k=top_k)
    assert drawn_R.tolist() == jnp.argmax(LOGITS_RV, axis=-1).tolist()


def test_a_stream_gives_the_tokens_of_generate_as_they_are_drawn_and_compiles_once_for_a_width(params):
    free = generate(FREE, params, PROMPTS[1:2], key=KEY, batch_rows=1)[0]
    stops = (int(free[3]),)
    sampler = make_sampler(MODEL, max_new_tokens=NEW, stop_tokens=stops)
    streamer = sampling.Streamer(MODEL, max_new_tokens=NEW, stop_tokens=stops)
    for prompt, drawn in itertools.product(PROMPTS, ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9})):
        (wanted,) = generate(sampler, params, [prompt], key=KEY, batch_rows=1, **drawn)
        assert list(streamer.stream(params, prompt, width=4, key=KEY, **drawn)) == wanted.tolist()
    assert streamer._begin._cache_size() == streamer._advance._cache_size() == 1
    drawn = []
    advance = streamer._advance
    streamer._advance = lambda *given, **more: drawn.append(1) or advance(*given, **more)
    stream = streamer.stream(params, PROMPTS[2], width=4, key=KEY)
    for number in range(3):
        next(stream)
        assert len(drawn) == number  # nothing is drawn before it is asked for
