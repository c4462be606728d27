"""Networks as pure functions of their parameters: tensors declared once, blocks stacked and scanned, adapters.

A tensor is declared once: shape, logical axes and initial value. Parameters are float32, and computing is in the dtype
of what comes in. Blocks are stacked, so that compile time does not grow with depth.

LoRA puts two thin trained weights beside a frozen one, x W + (alpha / rank) drop(x) A B (arXiv:2106.09685): parameters
with an adapter are those of the base with a branch `adapter` next to each adapted weight.

Dimension key: R rows, T tokens, D width, F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.mesh import axis_splits, constrain
from dpo_jax.types import ADAPTER, Lora, Params, Tree, adapter_of

_Carry = TypeVar("_Carry")
_Block = TypeVar("_Block", bound=nnx.Module)
Build = Callable[[nnx.Rngs], nnx.Module]
Sizes = Mapping[str | None, int]
"""Dimensions by their logical axis name; None: never split."""

SAVED = "attention"
"""The name of what the backward pass of attention needs of its forward pass, for policies of recomputing."""

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        # With it nothing in front is needed: else the scores of attention would be kept.
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}
"""What the backward pass keeps of each block: everything, its input alone, or the results of matmuls and attention."""


class Here(NamedTuple):
    """Block of the scan in which the network is, and the key of its dropout; None: nothing is dropped."""

    layer: jax.Array
    key: jax.Array | None = None


def zeros(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 parameter of zeros; `axes` names each dimension."""
    return nnx.Param(jnp.zeros(tuple(shape), jnp.float32), axes=tuple(axes))


def matrix(rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], *, deviation: float = 0.02) -> nnx.Param:
    """A float32 parameter, normal around 0; `axes` names each dimension."""
    return nnx.Param(deviation * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes))


class Linear(nnx.Module):
    """A linear map, [inputs, outputs], which may have several axes each; one for each block, or one alone.

    It begins with this deviation: None is Glorot's, and 0 draws nothing. `adapter` is a second map whose result is
    added, see `attach`.
    """

    adapter: nnx.Module | None = None

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: Sizes,
        outputs: Sizes,
        *,
        layers: int | None = None,
        deviation: float | None = 0.02,
        with_bias: bool = True,
    ):
        self.inputs, self.with_bias = len(inputs), with_bias
        stack: Sizes = {} if layers is None else {"layers": layers}
        shape = [*stack.values(), *inputs.values(), *outputs.values()]
        names = (*stack, *inputs, *outputs)
        if deviation is None:
            deviation = math.sqrt(2 / (math.prod(inputs.values()) + math.prod(outputs.values())))
        self.weight = matrix(rngs, shape, names, deviation=deviation) if deviation else zeros(shape, names)
        if with_bias:
            self.bias = zeros([*stack.values(), *outputs.values()], (*stack, *outputs))

    def __call__(self, x: jax.Array, here: Here | None = None) -> jax.Array:
        """[.., inputs] to [.., outputs]; with blocks, in one of them."""
        out = contract(x, self.weight[...].astype(x.dtype), self.inputs)
        if self.with_bias:
            bias = self.bias[...].astype(x.dtype)
            out += bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return out if self.adapter is None else out + self.adapter(x, here)


def contract(x: jax.Array, weight: jax.Array, inputs: int) -> jax.Array:
    """The product over the last `inputs` axes of x and the first ones of the weight."""
    if weight.ndim > 2 or x.ndim != 3 or axis_splits("length") > 1:
        return jnp.tensordot(x, weight, inputs)
    # Rows and tokens as one axis: the backward pass of XLA's CPU backend takes 0.6 of the time.
    return (x.reshape(-1, x.shape[2]) @ weight).reshape(*x.shape[:2], -1)


def normed(x: jax.Array, *, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis without parameters; computed and returned at least in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide - wide.mean(axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)


class MLP(nnx.Module):
    """Two linear maps of each block, with a GELU between them."""

    def __init__(self, rngs: nnx.Rngs, width: int, mlp_width: int, *, layers: int, deviation: float | None = 0.02):
        self.up = Linear(rngs, {"embed": width}, {"mlp": mlp_width}, layers=layers, deviation=deviation)
        self.down = Linear(rngs, {"mlp": mlp_width}, {"embed": width}, layers=layers, deviation=deviation)

    @jax.named_scope("mlp")
    def __call__(self, x_RTD: jax.Array, here: Here) -> jax.Array:
        """Tokens to tokens, [R, T, D]."""
        hidden_RTF = jax.nn.gelu(self.up(x_RTD, here), approximate=True)
        return self.down(constrain(hidden_RTF, "rows", "length", "mlp"), here)


@jax.named_scope("layers")
def scan_layers(
    stacked: _Block, step: Callable[[_Block, _Carry, jax.Array], _Carry], carry: _Carry, *, layers: int, remat: str
) -> _Carry:
    """The carry after `step(block, carry, layer)` for each block of `stacked`."""
    graphdef, state = nnx.split(stacked)

    def body(carry: _Carry, layer: tuple[Params, jax.Array]) -> tuple[_Carry, None]:
        weights, index = layer
        return step(nnx.merge(graphdef, weights), carry, index), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, carry, (nnx.to_pure_dict(state), jnp.arange(layers)))[0]


class Adapter(nnx.Module):
    """The two thin weights of one linear map: A uniform as in PEFT, B zero, so that at first it adds nothing.

    It computes in float32 whatever the model computes in, so its gradients are summed over devices in float32.
    """

    def __init__(self, rngs: nnx.Rngs, linear: Linear, lora: Lora, number: int):
        layers, *sizes = linear.weight.shape
        _, *names = linear.weight.axes
        inputs = linear.inputs
        bound = 1 / math.sqrt(math.prod(sizes[:inputs]))
        shape = (layers, *sizes[:inputs], lora.rank)
        thin = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        self.a = nnx.Param(thin, axes=("layers", *names[:inputs], "rank"))
        self.b = zeros((layers, lora.rank, *sizes[inputs:]), ("layers", "rank", *names[inputs:]))
        self.lora, self.inputs, self.number = lora, inputs, number

    def __call__(self, x: jax.Array, here: Here) -> jax.Array:
        """The addition to the result of the map, in the dtype of x."""
        # Computed again in the backward pass, which then keeps x alone, and not its float32 copy.
        return jax.checkpoint(self._product)(x, self.a[...], self.b[...], here)

    def _product(self, x: jax.Array, a: jax.Array, b: jax.Array, here: Here) -> jax.Array:
        wide = x.astype(jnp.float32)
        if self.lora.dropout and here.key is not None:
            key = jax.random.fold_in(jax.random.fold_in(here.key, here.layer), self.number)
            kept = 1.0 - self.lora.dropout
            wide = jnp.where(jax.random.bernoulli(key, kept, x.shape), wide / kept, 0.0)
        return (self.lora.scale * contract(contract(wide, a, self.inputs), b, 1)).astype(x.dtype)


def attach(module: nnx.Module, rngs: nnx.Rngs, lora: Lora) -> nnx.Module:
    """The module with an adapter on each of its maps that `lora` names."""
    for number, path in enumerate(lora.paths):
        linear: Linear = functools.reduce(getattr, path, module)  # type: ignore[arg-type]
        linear.adapter = Adapter(rngs, linear, lora, number)
    return module


def merge(base: Params, adapter: Params, lora: Lora) -> Params:
    """The parameters of a plain model that computes the same: W + (alpha / rank) A B, in float32."""
    merged = jax.tree.map(lambda leaf: leaf, base)
    for path in lora.paths:
        linear = functools.reduce(operator.getitem, path, merged)
        thin = functools.reduce(operator.getitem, path, adapter)[ADAPTER]
        linear["weight"] = _merged(linear["weight"], thin["a"], thin["b"], lora.scale)
    return merged


@functools.partial(jax.jit, static_argnames="scale")
def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    product = jax.vmap(functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST))
    return weight.astype(jnp.float32) + scale * product(a, b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network as pure functions of its parameters, a plain nested dict; where that has an adapter, it is used."""

    spec: Any
    dtype: jnp.dtype
    build: Build  # without an adapter
    graphdef: nnx.GraphDef
    tree: Tree
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

    def module(self, params: Params) -> Any:
        """The module that computes with these parameters."""
        graphdef = self.adapted if adapter_of(params) else self.graphdef
        assert graphdef is not None
        return nnx.merge(graphdef, params)

    def init(self, key: jax.Array) -> Params:
        """Random parameters (a model made here, not loaded), the adapter's left out. Jitted, they are born sharded."""
        return nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(params=key)))[1])

    def init_adapter(self, key: jax.Array) -> Params:
        """The adapter before the first step: with it the model computes what it computes without.

        It is meant to be jitted: then what is not the adapter's is never made.
        """
        assert self.lora is not None
        rngs = nnx.Rngs(params=key)
        return adapter_of(nnx.to_pure_dict(nnx.split(attach(self.build(rngs), rngs, self.lora))[1]))

    def held_dtypes(self) -> Params:
        """Dtype of each frozen parameter: that in which it is used, float32 in norms."""
        return jax.tree.map_with_path(
            lambda path, leaf: leaf.dtype if "norm" in jax.tree_util.keystr(path) else self.dtype, self.shapes
        )


def describe(build: Build, lora: Lora | None = None) -> dict[str, Any]:
    """The fields of a `Network` that is built so, with an adapter or without; nothing is allocated."""
    graphdef, tree = _structure(build)
    fields = {"build": build, "graphdef": graphdef, "tree": tree}
    if lora is None:
        return fields
    adapted, whole = _structure(lambda rngs: attach(build(rngs), rngs, lora))
    return fields | {"lora": lora, "adapted": adapted, "adapter": Tree(*map(adapter_of, whole))}


def _structure(build: Build) -> tuple[nnx.GraphDef, Tree]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))))
    axes = nnx.to_pure_dict(jax.tree.map(lambda v: v.axes, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
    return graphdef, Tree(nnx.to_pure_dict(state), axes)
