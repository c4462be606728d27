"""GPT-2: its norm by hand, its positions and their limit, its cache; `test_decoder` has what all decoders share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dpo_jax.errors import UserError
from dpo_jax.models.gpt2 import LayerNorm
from dpo_jax.models.model import make_model
from dpo_jax.models.sampling import generate, make_sampler
from tests.models.test_decoder import POSITIONS, SPECS, TOKENS, hidden, made

SPEC = SPECS["gpt2"]


@pytest.fixture(scope="module")
def model():
    return made("gpt2")[0]


@pytest.fixture(scope="module")
def params():
    return made("gpt2")[1]


def test_layer_norm_by_hand():
    # 1, 3, 5, 7 around their mean 4: -3, -1, 1, 3 with variance 5, and 4 more are epsilon: divided by 3.
    norm = LayerNorm((4,), "embed", epsilon=4.0)
    nnx.update(norm, {"scale": jnp.array([3.0, 3.0, 3.0, 6.0]), "bias": jnp.array([0.0, 10.0, 0.0, 0.0])})
    np.testing.assert_allclose(norm(jnp.array([[[1.0, 3.0, 5.0, 7.0]]]))[0, 0], [-3.0, 9.0, 1.0, 6.0], rtol=1e-6)


def test_positions_are_learned(model, params):
    shifted = hidden(model, params, positions=POSITIONS + 2)
    assert jnp.abs(shifted - hidden(model, params)).max() > 1e-2
    rolled = params | {"positions": jnp.roll(params["positions"], 2, axis=0)}
    np.testing.assert_allclose(hidden(model, rolled, positions=POSITIONS + 2), hidden(model, params), atol=1e-5)


def test_a_position_beyond_the_table_is_never_its_last_row(model, params):
    beyond = hidden(model, params, positions=POSITIONS.at[:, 5].set(8))
    assert (
        jnp.isnan(beyond[:, 5]).all() and jnp.isfinite(hidden(model, params, positions=POSITIONS.at[:, 5].set(7))).all()
    )


def test_a_cache_longer_than_the_table_is_refused(model, params):
    sampler = make_sampler(model, max_new_tokens=5, stop_tokens=())
    prompts = [np.arange(4, dtype=np.int32)]
    generate(sampler, params, prompts, key=jax.random.key(0), batch_rows=1)  # the last token is not fed back: 8
    with pytest.raises(UserError, match="may have 9 tokens together, but the model has learned only 8 positions"):
        generate(sampler, params, [np.arange(5, dtype=np.int32)], key=jax.random.key(0), batch_rows=1)


def test_in_parts_over_a_cache_it_computes_the_same(model, params):
    cache = model.empty_cache(8, 6)
    extend = jax.jit(model.extend)
    first, _, cache = extend(params, TOKENS[:, :3], POSITIONS[:, :3], cache)
    rest, _, _ = extend(params, TOKENS[:, 3:], POSITIONS[:, 3:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), hidden(model, params), atol=1e-5)


def test_the_head_may_be_its_own(model):
    untied = make_model(dataclasses.replace(SPEC, tied=False))
    assert set(untied.shapes) - set(model.shapes) == {"unembedding"}
