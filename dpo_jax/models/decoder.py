"""The decoder, tokens to hidden states, and models of every kind as pure functions.

Dimension key: R rows, T tokens, S cached tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.errors import UserError
from dpo_jax.mesh import constrain
from dpo_jax.models.attention import AttentionMask, Cache
from dpo_jax.models.attention.unpack import unpacking_of
from dpo_jax.models.gpt2 import Gpt2
from dpo_jax.models.layers import Block, Norm, View, rotary_angles
from dpo_jax.models.lora import attach
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, Spec
from dpo_jax.models.stack import Here, matrix, scan_layers
from dpo_jax.types import Lora, Params, Tree, Unembedding, adapter_of


class Decoder(nnx.Module):
    """A Llama-family decoder with float32 parameters, computing in `dtype`."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs, *, dtype: DTypeLike = jnp.float32, remat: str = "none"):
        self.spec, self.dtype, self.remat = spec, dtype, remat
        self.embedding = matrix(rngs, (spec.vocabulary, spec.width), "vocab embed")
        self.layers = Block(rngs, spec)
        self.final_norm = Norm((spec.width,), "embed", epsilon=spec.norm_epsilon, offset=spec.norm_offset)
        if not spec.tied:
            self.unembedding = matrix(rngs, (spec.vocabulary, spec.width), "vocab embed")

    def __call__(
        self,
        tokens_RT: jax.Array,
        mask: AttentionMask,
        cache: Cache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [R, T, D] after the final norm, and the cache with these tokens written into it.

        `key` draws dropout.
        """
        spec = self.spec
        # The table is gathered over fsdp once; looking tokens up in a split table makes XLA recompute everything.
        with jax.named_scope("embed"):
            table_VD = constrain(self.embedding[...].astype(self.dtype), "vocab", None)
            hidden_RTD = constrain(jnp.take(table_VD, tokens_RT, axis=0), "rows", "length", None)
        if spec.embedding_scale != 1.0:
            hidden_RTD *= jnp.asarray(
                spec.embedding_scale, self.dtype
            )  # rounded to the dtype, as Gemma's own code does
        angles = [rotary_angles(mask.positions_RT, kind.frequencies(spec.head_size)) for kind in spec.kinds]
        several = len(spec.kinds) > 1
        sine, cosine = (jnp.stack(of_kinds) if several else of_kinds[0] for of_kinds in zip(*angles, strict=True))
        view = View(sine, cosine, mask)
        kind_of_layer = jnp.asarray(spec.kind_of_layer or (0,) * spec.layers)

        def step(block: Block, carry: tuple[jax.Array, Cache | None], layer: jax.Array) -> tuple:
            hidden_RTD, cache = carry
            own = view.of_kind(kind_of_layer[layer]) if several else view
            return block(hidden_RTD, own, cache, Here(layer, key))

        carry = (hidden_RTD, cache)
        hidden_RTD, cache = scan_layers(self.layers, step, carry, layers=spec.layers, remat=self.remat)
        return self.final_norm(hidden_RTD), cache

    def unembed(self) -> Unembedding:
        """The matrix that turns hidden states into logits, in the compute dtype."""
        weight = self.embedding if self.spec.tied else self.unembedding
        return Unembedding(weight[...].astype(self.dtype), self.spec.vocabulary, soft_cap=self.spec.logit_soft_cap)


Build = Callable[[nnx.Rngs], nnx.Module]

MODULES: dict[type[Spec], Callable[..., nnx.Module]] = {DecoderSpec: Decoder, Gpt2Spec: Gpt2}
"""Spec -> the module that computes it. They are made and called alike, and offer `unembed`."""


class Described(Protocol):
    """Description of a model for training, checkpoints and files; see `Model`."""

    @property
    def spec(self) -> Spec: ...
    @property
    def lora(self) -> Lora | None: ...
    @property
    def tree(self) -> Tree: ...
    @property
    def trained(self) -> Tree: ...
    @property
    def shapes(self) -> Params: ...
    @property
    def axes(self) -> Params: ...


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as pure functions of its parameters, a plain nested dict; where that has an adapter, it is used."""

    spec: Spec
    graphdef: nnx.GraphDef
    tree: Tree
    dtype: jnp.dtype
    build: Build  # its adapter included
    attention: str = "blocks"  # a name of `attention.BACKENDS`
    lora: Lora | None = None
    adapted: nnx.GraphDef | None = None  # with the adapter
    adapter: Tree | None = None

    @property
    def shapes(self) -> Params:
        """The shape and dtype of each parameter, the adapter's left out."""
        return self.tree.shapes

    @property
    def axes(self) -> Params:
        """The logical axis names of each parameter, the adapter's left out."""
        return self.tree.axes

    @property
    def trained(self) -> Tree:
        """The parameters that training changes: the adapter if there is one, else all."""
        return self.adapter or self.tree

    def _module(self, params: Params) -> Decoder | Gpt2:
        graphdef = self.adapted if adapter_of(params) else self.graphdef
        assert graphdef is not None
        return nnx.merge(graphdef, params)

    def apply(
        self,
        params: Params,
        tokens_RT: jax.Array,
        positions_RT: jax.Array,
        segments_RT: jax.Array,
        key: jax.Array | None = None,
        *,
        sequences: Sequence[jax.Array] | None = None,
    ) -> tuple[jax.Array, Unembedding]:
        """Hidden states [R, T, D] of whole rows, and the unembedding. `key` draws dropout; None drops nothing.

        `sequences` are those of the batch, which some forms of attention need.
        """
        chex.assert_equal_shape([tokens_RT, positions_RT, segments_RT])
        module = self._module(params)
        rows, length = tokens_RT.shape
        unpacking = None if sequences is None else unpacking_of(sequences, rows=rows, length=length)
        mask = self._mask(positions_RT, segments_RT)._replace(unpacking=unpacking)
        hidden_RTD, _ = module(tokens_RT, mask, key=key)
        return hidden_RTD, module.unembed()

    def extend(
        self, params: Params, tokens_RT: jax.Array, positions_RT: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Unembedding, Cache]:
        """Hidden states of the next tokens of rows whose past is in the cache; each sees positions up to its own."""
        module = self._module(params)
        hidden_RTD, extended = module(tokens_RT, self._mask(positions_RT, None), cache)
        assert extended is not None
        return hidden_RTD, module.unembed(), extended

    def _mask(self, positions_RT: jax.Array, segments_RT: jax.Array | None) -> AttentionMask:
        return AttentionMask(positions_RT, segments_RT, self.attention, self.spec.windows)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for `rows` rows of at most `length` tokens.

        Raises:
            UserError: the model has no positions for so many.
        """
        spec = self.spec
        if spec.max_positions is not None and length > spec.max_positions:
            raise UserError(
                f"prompt and response may have {length} tokens together, but the model has learned only "
                f"{spec.max_positions} positions. Ask for fewer new tokens, or cut the prompts."
            )
        zeros = jnp.zeros((spec.layers, rows, length, spec.kv_heads, spec.head_size), self.dtype)
        return Cache(zeros, zeros)

    def init(self, key: jax.Array) -> Params:
        """Random parameters (a model made here, not loaded), the adapter's left out."""
        rngs = nnx.Rngs(params=key)
        return nnx.to_pure_dict(nnx.split(MODULES[type(self.spec)](self.spec, rngs))[1])

    def init_adapter(self, key: jax.Array) -> Params:
        """The adapter before the first step: with it the model computes what it computes without.

        It is meant to be jitted: then what is not the adapter's is never made.
        """
        return adapter_of(nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(params=key)))[1]))

    def held_dtypes(self) -> Params:
        """Dtype of each frozen parameter: that in which it is used, float32 in norms."""
        return jax.tree.map_with_path(
            lambda path, leaf: leaf.dtype if "norm" in jax.tree_util.keystr(path) else self.dtype, self.shapes
        )


def make_model(
    spec: Spec,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attention: str = "blocks",
    lora: Lora | None = None,
) -> Model:
    """Describe a model without allocating anything."""

    def plain(rngs: nnx.Rngs) -> nnx.Module:
        return MODULES[type(spec)](spec, rngs, dtype=dtype, remat=remat)

    graphdef, tree = _describe(plain)
    if lora is None:
        return Model(spec, graphdef, tree, jnp.dtype(dtype), plain, attention)

    def with_adapter(rngs: nnx.Rngs) -> nnx.Module:
        return attach(plain(rngs), rngs, lora)

    adapted, whole = _describe(with_adapter)
    adapter = Tree(*map(adapter_of, whole))
    return Model(spec, graphdef, tree, jnp.dtype(dtype), with_adapter, attention, lora, adapted, adapter)


def _describe(build: Build) -> tuple[nnx.GraphDef, Tree]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))))
    axes = nnx.to_pure_dict(jax.tree.map(lambda v: v.axes, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
    return graphdef, Tree(nnx.to_pure_dict(state), axes)
