"""The sizes that a config states: what no model has is refused before anything is made of that many things."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

MOST = {
    # decoders
    "num_hidden_layers": 10_000,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**32,
    # GPT-2
    "n_layer": 10_000,
    "n_embd": 2**20,
    "n_inner": 2**24,
    "n_head": 2**16,
    "n_positions": 2**26,
    # diffusion transformers
    "num_layers": 10_000,
    "attention_head_dim": 2**16,
    "in_channels": 2**16,
    "out_channels": 2**16,
    "sample_size": 2**16,
    "patch_size": 2**16,
    "num_embeds_ada_norm": 2**26,
}
"""Key of a config -> the largest number that is believed, far above that of any model."""

_POSITIVE = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises ValueError at a size that is none; a key that is not there, or null, is left to others."""
    given = {key: value for key, value in config.items() if value is not None}
    for key, most in MOST.items():
        if key in given and (type(given[key]) is not int or not 1 <= given[key] <= most):
            raise ValueError(f"{key} is {reprlib.repr(given[key])}; a whole number from 1 to {most:,} is wanted")
    for key in _POSITIVE:
        value = given.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{key} is {reprlib.repr(value)}; a number above 0 is wanted")
