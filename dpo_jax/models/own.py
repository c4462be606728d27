"""A language model of one's own, as the rest of the library sees a model: a function of tokens, and its parameters.

Dimension key: R rows, T tokens, S tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr

from dpo_jax.errors import UserError
from dpo_jax.types import Params, Tree, Unembedding

Apply = Callable[..., Any]
"""`apply(model, tokens_RT, positions_RT, segments_RT)`: hidden states [R, T, D] and their unembedding [V, D] (or an
`Unembedding`), or logits [R, T, V]."""

_TRIED = (2, 8)
"""Rows and tokens with which a model is tried."""


class OwnSpec(NamedTuple):
    """What is known of the model: a digest of its program, and its sizes."""

    program: str
    vocabulary: int
    max_positions: int | None = None


class Taken(NamedTuple):
    """A model taken apart: what is trained, by path, and how it is put together again."""

    params: Params  # path -> array
    together: Callable[[Params], Any]


def take_apart(model: Any) -> Taken:
    """The floating arrays of a pytree or of a Flax NNX module, which are trained, apart from all else that it holds.

    Raises:
        UserError: there are none.
    """
    if isinstance(model, nnx.Module):
        graphdef, state = nnx.split(model)
        inner = take_apart(nnx.to_pure_dict(state))

        def rebuilt(params: Params) -> Any:
            nnx.replace_by_pure_dict(fresh := jax.tree.map(lambda leaf: leaf, state), inner.together(params))
            return nnx.merge(graphdef, fresh)

        return Taken(inner.params, rebuilt)
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in leaves]
    trained = {
        name: leaf
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    if not trained:
        kind = type(model).__name__
        raise UserError(
            f"the model, a {kind}, holds no floating arrays that could be trained. Give a pytree of parameters, a Flax "
            "NNX module, or an Equinox module, and apply(model, tokens, positions, segments)."
        )

    def together(params: Params) -> Any:
        held = [params.get(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
        return jax.tree_util.tree_unflatten(structure, held)

    return Taken(trained, together)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A model of one's own as pure functions of its parameters: the surface of `models.model.Model`."""

    call: Apply  # (params, tokens_RT, positions_RT, segments_RT)
    spec: OwnSpec
    tree: Tree
    dtype: jnp.dtype
    attention: str = "own"
    lora: None = None

    @property
    def shapes(self) -> Params:
        """The shape and dtype of each parameter."""
        return self.tree.shapes

    @property
    def trained(self) -> Tree:
        """All parameters."""
        return self.tree

    def held_dtypes(self) -> Params:
        """Dtype of each parameter where it is not trained."""
        return jax.tree.map(lambda leaf: leaf.dtype, self.shapes)

    def apply(
        self,
        params: Params,
        tokens_RT: jax.Array,
        positions_RT: jax.Array,
        segments_RT: jax.Array,
        key: jax.Array | None = None,
        *,
        sequences: object = None,
    ) -> tuple[jax.Array, Unembedding]:
        """Hidden states [R, T, D] of whole rows and the unembedding; logits are their own, without a weight."""
        return _as_hidden(self.call(params, tokens_RT, positions_RT, segments_RT), tokens_RT.shape)

    def empty_cache(self, rows: int, length: int) -> jax.Array:
        """Room for the tokens so far, [R, S]: such a model is asked anew for each token."""
        most = self.spec.max_positions
        if most is not None and length > most:
            raise UserError(f"prompt and response may have {length} tokens together, but the model takes {most}.")
        return jnp.zeros((rows, length), jnp.int32)

    def extend(
        self, params: Params, tokens_RT: jax.Array, positions_RT: jax.Array, cache: jax.Array
    ) -> tuple[jax.Array, Unembedding, jax.Array]:
        """Hidden states of the next tokens of rows, after those in the cache; what is behind them is not seen."""
        rows, length = cache.shape
        here = jnp.arange(rows)[:, None], positions_RT
        cache = cache.at[here].set(tokens_RT)
        positions_RS = jnp.broadcast_to(jnp.arange(length), cache.shape)
        hidden_RSD, unembedding = self.apply(params, cache, positions_RS, jnp.ones_like(cache))
        return hidden_RSD[here], unembedding, cache


def describe_own(taken: Taken, apply: Apply, *, max_positions: int | None = None) -> OwnModel:
    """The model that `apply` computes; nothing is computed yet.

    Parameters are trained in float32, and come to `apply` in the dtype that they have now.

    Raises:
        UserError: `apply` gives something else than `Apply` says.
    """
    dtypes = {name: leaf.dtype for name, leaf in taken.params.items()}
    sizes: list[int] = []

    def call(params: Params, *batch: jax.Array) -> Any:
        return apply(taken.together({name: leaf.astype(dtypes[name]) for name, leaf in params.items()}), *batch)

    def traced(params: Params, *batch: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        hidden_RTD, unembedding = _as_hidden(call(params, *batch), batch[0].shape)
        sizes.append(unembedding.vocabulary)
        return hidden_RTD, unembedding.weight_VD

    shapes: Params = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in taken.params.items()}
    program = jax.make_jaxpr(traced)(shapes, *[jax.ShapeDtypeStruct(_TRIED, jnp.int32)] * 3)
    return OwnModel(
        call=call,
        dtype=jnp.dtype(jnp.float32),
        spec=OwnSpec(digest_of_program(program), sizes[0], max_positions),
        tree=Tree(shapes, {name: _axes(leaf.shape) for name, leaf in taken.params.items()}),
    )


def digest_of_program(program: ClosedJaxpr) -> str:
    """A digest of a jaxpr: its text, without the addresses of functions in it, and the arrays that it closes over."""
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(program)).encode())
    for each in program.consts:
        array = np.asarray(each)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:32]


def check_sight(model: OwnModel, params: Params, layout: str) -> None:
    """Try whether a token sees only what it may in batches of this layout.

    Raises:
        UserError: it sees more.
    """
    tokens = np.ones((1, 8), np.int32)
    positions, segments = map(jnp.asarray, _TRIALS[layout])
    outputs = jax.jit(lambda params, tokens_RT: model.apply(params, tokens_RT, positions, segments)[0])
    before = np.asarray(outputs(params, tokens), np.float64)
    for changed, others, what in _UNSEEN[layout]:
        other = tokens.copy()
        other[0, changed] = 0
        off = np.abs(np.asarray(outputs(params, other), np.float64) - before)[0, others]
        if off.max() > 1e-3 * max(1.0, np.abs(before).max()):
            raise UserError(
                f"the model's apply: {what} (its outputs move by {off.max():.2g}). Mask attention by `positions` and "
                "`segments`, or leave data.layout at padded, where each row is one sequence."
            )


def _as_hidden(output: Any, rows: tuple[int, ...]) -> tuple[jax.Array, Unembedding]:
    """What `apply` gave as hidden states and unembedding; UserError where it is neither."""
    hidden: Any = output
    weight: Any = None
    if isinstance(output, tuple) and len(output) == 2:
        hidden, weight = output
    shape = getattr(hidden, "shape", None)
    if shape is None or len(shape) != 3 or shape[:2] != rows:
        says = f"an array of shape {shape}" if shape is not None else f"a {type(output).__name__}"
        raise UserError(
            f"the model's apply gave {says} for tokens of shape {rows}. It must give logits [rows, tokens, vocabulary],"
            " or hidden states [rows, tokens, width] and their unembedding [vocabulary, width]."
        )
    if weight is None:
        return hidden, Unembedding(None, shape[2])
    if isinstance(weight, Unembedding):
        return hidden, weight
    if getattr(weight, "ndim", None) != 2 or weight.shape[1] != shape[2]:
        turned = " Transpose it." if getattr(weight, "shape", ())[:1] == shape[2:] else ""
        raise UserError(
            f"the model's apply gave hidden states of width {shape[2]} and an unembedding of shape "
            f"{getattr(weight, 'shape', None)}, which must be [vocabulary, width].{turned}"
        )
    return hidden, Unembedding(weight, weight.shape[0])


def _axes(shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Logical axes of a parameter: the largest dimension of a matrix is split over fsdp."""
    if len(shape) < 2:
        return (None,) * len(shape)
    largest = int(np.argmax(shape))
    return tuple("embed" if place == largest else None for place in range(len(shape)))


def _row(*values: int) -> np.ndarray:
    return np.array([values], np.int32)


_TRIALS = {
    "padded": (_row(*range(8)), _row(1, 1, 1, 1, 2, 2, 2, 2)),
    "packed": (_row(0, 1, 2, 3, 0, 1, 2, 3), _row(1, 1, 2, 2, 4, 4, 5, 5)),
    "shared": (_row(0, 1, 2, 3, 2, 3, 0, 1), _row(1, 1, 2, 2, 3, 3, 4, 4)),
}
"""Layout -> positions and segments of a row; `PairBatch` says what they mean."""
_AHEAD = (7, slice(0, 7), "a token sees the ones after it")
_UNSEEN = {
    "padded": (_AHEAD,),
    "packed": (_AHEAD, (1, slice(4, 8), "a token sees those of another sequence in its row")),
    "shared": (
        _AHEAD,
        (3, slice(4, 6), "a response sees the other one of its prompt"),
        (1, slice(6, 8), "a token sees those of another sequence in its row"),
    ),
}
"""Layout -> a token that is changed, the tokens whose outputs must stay, and what is wrong where they do not."""
