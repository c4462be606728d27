"""One view of a checkpoint, whatever its format, and the sizes that a config may state."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dpo_jax.errors import UserError, no_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


JsonObject = dict[str, Any]
"""A parsed JSON object, such as the content of config.json."""


class ReadTensor(Protocol):
    """Reader of the tensors of a checkpoint."""

    def __call__(self, name: str, rows: slice = slice(None), /) -> np.ndarray:
        """One tensor, or some of its rows: mapped from the file where its format allows."""
        ...


class WeightsSource(NamedTuple):
    """A checkpoint under its Hugging Face names; opening it reads no tensor."""

    where: str  # the file or folder, for messages
    config: JsonObject
    generation_config: JsonObject
    shapes: dict[str, tuple[int, ...]]  # tensor name -> shape as stored
    read: ReadTensor
    tokenizer: Callable[[], PreTrainedTokenizerFast]

    def stop_tokens(self, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
        """The tokens that end a response: the tokenizer's EOS, and all that the generation config names.

        Raises:
            UserError: the generation config names something else.
        """
        named: Any = self.generation_config.get("eos_token_id")
        every: list[Any] = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        if any(each is not None and (type(each) is not int or each < 0) for each in every):
            raise UserError(
                f"{self.where}: generation_config.json: eos_token_id is {named!r}; a token id, or a list of them, is "
                "wanted."
            )
        return tuple(sorted({each for each in every if each is not None}))

    def check_stop_tokens(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> PreTrainedTokenizerFast:
        """Return the tokenizer; raise UserError if a stop token is beyond the embeddings: nothing could end with it."""
        for token in self.stop_tokens(tokenizer):
            if token >= vocabulary:
                name = tokenizer.convert_ids_to_tokens(token)
                says = no_embedding(token, name, len(tokenizer), vocabulary)
                raise UserError(f"{self.where}: eos_token_id: {says}")
        return tokenizer


def token_ids(config: JsonObject) -> JsonObject:
    """The generation config of a model that brings none: its special token ids."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config.get(key) is not None}


def no_tensor(name: str, rows: slice = slice(None), /) -> np.ndarray:
    """Reader of tensors where only the config is known: refuses."""
    raise UserError(f"tensor {name!r}: only the config of the model was opened, not its tensors.")


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


def check_sizes(config: JsonObject) -> None:
    """Raise ValueError at a size that no model has; a key that is missing, or null, is left to others."""
    given = {key: value for key, value in config.items() if value is not None}
    for key, most in MOST.items():
        if key in given and (type(given[key]) is not int or not 1 <= given[key] <= most):
            raise ValueError(f"{key} is {reprlib.repr(given[key])}; a whole number from 1 to {most:,} is wanted")
    for key in _POSITIVE:
        value = given.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{key} is {reprlib.repr(value)}; a number above 0 is wanted")
