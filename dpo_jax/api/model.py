"""The models that Python trains: a checkpoint, or a model of one's own."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal

from dpo_jax.models.own import Apply
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Policy:
    """A checkpoint, opened by `load`; its weights are read when it is trained."""

    weights: str
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The checkpoint's own tokenizer."""
        return open_weights(self.weights).tokenizer()


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of one's own.

    Args:
        model: a pytree of parameters (a dict, Flax Linen's variables, an Equinox module) or a Flax NNX module; its
            floating arrays are trained.
        apply: `apply(model, tokens, positions, segments)`, all int32 [rows, tokens], gives the logits [rows, tokens,
            vocabulary], or the hidden states [rows, tokens, width] and their unembedding [vocabulary, width]: then no
            array of tokens by vocabulary exists. With data.layout padded, the default here, each row is one sequence
            with its padding at the end, and causal attention is enough; others must be masked by `segments`.
        tokenizer: of transformers.
        max_positions: tokens of a sequence at most; None: any number.
    """

    model: Any
    apply: Apply
    tokenizer: PreTrainedTokenizerFast
    max_positions: int | None = None


def load(
    weights: str | os.PathLike[str],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: Literal["none", "dots", "full"] = "none",
    attention: Literal["auto", "dense", "blocks", "cudnn", "splash"] = "auto",
) -> Policy:
    """Open a Hugging Face folder, a hub id (`ORG/NAME`, `ORG/NAME@REVISION`), a `.gguf` file or `package:NAME`.

    Args:
        weights: which.
        dtype: of computing; parameters are trained in float32.
        remat: what the backward pass computes again, to save memory.
        attention: its form; auto is the fastest that the device can do.

    Raises:
        UserError: there is no such checkpoint, or its architecture is not known.
    """
    location = os.fspath(weights)
    resolve_spec(open_weights(location))
    return Policy(location, dtype, remat, attention)
