"""Top-k and top-p leave the tokens that transformers' warpers leave."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models.sampling import least_drawn

torch = pytest.importorskip("torch")


def test_the_tokens_left_are_those_of_transformers():
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits_RV = np.random.default_rng(0).normal(0.0, 3.0, (32, 5000)).astype(np.float32)
    left = jax.jit(least_drawn)
    sizes = set()
    for temperature, top_p, top_k in itertools.product((0.7, 1.6), (0.1, 0.5, 0.9, 0.99), (1, 20, 300, 5000)):
        warpers = (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p))
        theirs_RV = LogitsProcessorList(warpers)(None, torch.from_numpy(logits_RV)).numpy() > -np.inf
        least_R = left(logits_RV, temperature, top_p=top_p, top_k=top_k)
        ours_RV = np.asarray(jnp.asarray(logits_RV) >= least_R[:, None])
        np.testing.assert_array_equal(ours_RV, theirs_RV)
        sizes |= set(ours_RV.sum(axis=1).tolist())
    assert min(sizes) == 1 and max(sizes) > 500 and len(sizes) > 50
