"""The shape of a model: its sizes, and for a decoder a dozen switches, all static."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np


class RopeScaling(NamedTuple):
    """Rotary frequencies slowed down by `factor`: all of them, or (Llama 3) the slow ones, with a smooth passage.

    Without bounds all wavelengths are stretched. With them those above `original_tokens / low_factor` positions are,
    and those below `original_tokens / high_factor` are not.
    """

    factor: float
    low_factor: float | None = None
    high_factor: float | None = None
    original_tokens: int | None = None


class LayerKind(NamedTuple):
    """Differences from layer to layer: rotary positions, and how many tokens back a token sees."""

    rope_base: float
    window: int | None = None  # itself among them; None: all
    rope_scaling: RopeScaling | None = None
    rotary_share: float = 1.0  # of each head; the rest has no position. The same for all layers of a model

    def frequencies(self, head_size: int) -> np.ndarray:
        """Rotary angle per position, float32 [turned numbers / 2]."""
        turned = int(head_size * self.rotary_share)
        frequency_K = self.rope_base ** (-np.arange(0, turned, 2, dtype=np.float64) / turned)
        scaling = self.rope_scaling
        if scaling is None:
            return frequency_K.astype(np.float32)
        slow_K = frequency_K / scaling.factor
        if scaling.low_factor is None or scaling.high_factor is None or scaling.original_tokens is None:
            return slow_K.astype(np.float32)
        turns_K = scaling.original_tokens * frequency_K / (2 * math.pi)  # within the context of the first training
        share_K = np.clip((turns_K - scaling.low_factor) / (scaling.high_factor - scaling.low_factor), 0, 1)
        return (share_K * frequency_K + (1 - share_K) * slow_K).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Sizes that every model has; a subclass for each module that computes one."""

    vocabulary: int  # rows of the embedding that are tokens
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    norm_epsilon: float
    tied: bool  # the embedding is also the unembedding

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that a token sees, itself and those before it, for each kind of layer; None: all."""
        return (None,)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence; None where positions are not learned one by one."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSpec(Spec):
    """A decoder of the Llama kind; the defaults are Llama's own."""

    kinds: tuple[LayerKind, ...] = (LayerKind(10000.0),)
    kind_of_layer: tuple[int, ...] = ()  # index into `kinds` for each layer; empty: all are of the first
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's query and key
    sandwich_norms: bool = False  # norms behind attention and MLP as well
    norm_offset: float = 0.0  # added to every norm's scale
    activation: str = "silu"
    embedding_scale: float = 1.0
    query_scale: float | None = None  # of attention scores; None: 1 / sqrt(head_size)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None

    @property
    def windows(self) -> tuple[int | None, ...]:
        return tuple(kind.window for kind in self.kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpt2Spec(Spec):
    """Sizes of a GPT-2, which has no switches."""

    positions: int  # rows of the table of positions

    @property
    def max_positions(self) -> int:
        return self.positions
