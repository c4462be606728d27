"""Costs of a model by arithmetic alone: floating-point operations, and the bytes that its backward pass keeps.

Dimension key: D width, F MLP width, H query heads, G key/value heads, K head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.models.spec import Spec
from dpo_jax.types import Tree

FORWARD = 2
"""Operations of a matmul for each parameter and token: a product and a sum."""


def matmul_parameters(tree: Tree) -> int:
    """The parameters of the layers that are multiplied with every token: no norms, no biases, no embeddings."""
    leaves = jax.tree.leaves(jax.tree.map(_matmul_size, tree.shapes["layers"], tree.axes["layers"]))
    return int(sum(leaves))


def _matmul_size(shape: jax.ShapeDtypeStruct, names: tuple[str, ...]) -> int:
    # A bias has axes of outputs alone, and heads have two of those.
    is_matrix = len(set(names) - {"layers", "head_size", "qkv"}) > 1
    return int(np.prod(shape.shape)) if is_matrix else 0


def pair_flops(
    spec: Spec, trunk: int, prompt: int, responses: Sequence[int], *, shared: bool, adapter: int | None = None
) -> int:
    """Operations of one training step for one pair (or ranking, or completion): forward and backward, no recompute.

    6 for each matmul parameter of the layers and each real token, 6 for each parameter of the head and each token of
    a response, and causal attention; a `shared` prompt counts once. The reference is not in it.

    Args:
        spec: the model.
        trunk: its `matmul_parameters`.
        prompt: tokens of the prompt.
        responses: tokens of each response.
        shared: True if the prompt runs once for all responses, not once for each.
        adapter: parameters of the adapter that alone is trained, if there is one: then the others need no gradient of
            their own, and count 4.
    """
    prompts = 1 if shared else len(responses)
    tokens, answered = prompts * prompt + sum(responses), sum(responses)
    weights = tokens * trunk + answered * spec.width * spec.vocabulary
    seen = prompts * _keys_seen(spec, 0, prompt) + sum(_keys_seen(spec, prompt, response) for response in responses)
    attention = 2 * spec.heads * spec.head_size * seen  # scores, and the mix of values
    forward, trained = FORWARD * (weights + attention), 2 * FORWARD * (weights + attention)
    if adapter is None:
        return forward + trained
    return forward + FORWARD * weights + 2 * FORWARD * attention + 3 * FORWARD * adapter * tokens


def forward_flops(spec: Spec, trunk: int, prompt: int, responses: Sequence[int], *, shared: bool) -> int:
    """Operations of a forward pass alone, the reference's; arguments as in `pair_flops`."""
    return pair_flops(spec, trunk, prompt, responses, shared=shared) // 3


@cache
def _keys_seen(spec: Spec, before: int, tokens: int) -> int:
    """Keys that all queries of some tokens see, over all layers; `before` tokens stand before them."""
    seen = 0
    kinds = getattr(spec, "kind_of_layer", ()) or (0,) * spec.layers
    for kind, window in enumerate(spec.windows):
        keys = np.arange(before + 1, before + tokens + 1)
        seen += kinds.count(kind) * int(keys.sum() if window is None else np.minimum(keys, window).sum())
    return seen


class Activations(NamedTuple):
    """Bytes that the backward pass of one micro-batch needs on one chip, by formula."""

    kept: int  # of all layers, from the forward pass on
    layer: int  # of the layer in which the backward pass is
    head: int  # hidden states and tiles of logits at the scored tokens

    @property
    def total(self) -> int:
        """Both peaks together: an upper bound, as they do not come at the same time."""
        return sum(self)


class MicroBatch(NamedTuple):
    """The rows of a micro-batch on one chip."""

    rows: int
    length: int  # tokens of a row, on one chip
    scored: int  # scored tokens of a row


def activation_bytes(
    spec: Spec,
    batch: MicroBatch,
    *,
    width_bytes: int,
    remat: str,
    tensor: int = 1,
    dense_attention: bool = True,
    tile: tuple[int, int] = (2048, 16384),
) -> Activations:
    """Activations of a micro-batch on one chip.

    An estimate to a few tenths, for machines without a compiler; it is tested against one.

    Args:
        spec: the model.
        batch: its rows.
        width_bytes: bytes of a number in the compute dtype.
        remat: a name of `stack.REMAT_POLICIES`.
        tensor: into how many parts heads and MLP are split.
        dense_attention: True if the scores of a layer exist as an array.
        tile: tokens and columns of the vocabulary of a tile of logits.
    """
    rows, length, scored = batch
    tokens = rows * length
    heads, keys = spec.heads * spec.head_size // tensor, spec.kv_heads * spec.head_size // tensor
    dots = (heads + 2 * keys + spec.width + 2 * spec.mlp_width // tensor) * width_bytes
    # Norms and rotations in float32, what they give, the product of the MLP and its activation.
    rest = (4 + width_bytes) * 2 * spec.width + 3 * width_bytes * (spec.mlp_width // tensor) + 6 * (heads + keys)
    scores = rows * spec.heads // tensor * length**2 * (4 + 4 + width_bytes) if dense_attention else 0
    all_of_layer = tokens * (dots + rest) + scores
    carried = tokens * spec.width * width_bytes
    kept = {"full": carried, "dots": carried + tokens * dots, "none": carried + all_of_layer}[remat]
    hidden = rows * scored * spec.width * (width_bytes + 4)
    columns = min(tile[1], spec.vocabulary) // tensor
    logits = 3 * 4 * min(tile[0], rows * scored) * columns + 4 * spec.width * columns
    return Activations(spec.layers * kept, all_of_layer, hidden + logits)
