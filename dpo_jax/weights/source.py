"""Where weights come from: one view of a checkpoint, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ReadTensor(Protocol):
    """How a tensor is read."""

    def __call__(self, name: str, rows: slice = slice(None), /) -> np.ndarray:
        """One tensor, or some of its rows: mapped from the file where its format allows."""
        ...


class WeightsSource(NamedTuple):
    """A checkpoint under its Hugging Face names; opening it reads no tensor."""

    where: str  # the file or folder, for messages
    config: dict[str, Any]  # the content of config.json
    generation_config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # tensor name -> shape as stored
    read: ReadTensor
    tokenizer: Callable[[], PreTrainedTokenizerFast]


def token_ids(config: dict[str, Any]) -> dict[str, Any]:
    """The generation config of a model that brings none: its special token ids."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config.get(key) is not None}
