"""A diffusion transformer as training, checkpoints and files see a model, with an adapter or without."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from dpo_jax.diffusion.conditions import Condition
from dpo_jax.diffusion.diffuser import Diffuser, make_diffuser
from dpo_jax.diffusion.embeddings import TransformerSpec
from dpo_jax.models.lora import Lora, adapter_of, attach
from dpo_jax.scorers.networks import Scorer, ScorerSpec
from dpo_jax.types import Params, Tree


@dataclasses.dataclass(frozen=True)
class PictureModel:
    """As pure functions of its parameters, a plain nested dict; where that has an adapter, it is used."""

    base: Diffuser
    adapted: Diffuser | None = None
    lora: Lora | None = None

    @property
    def spec(self) -> TransformerSpec:
        """The sizes."""
        return self.base.spec

    @property
    def shapes(self) -> Params:
        """The shape and dtype of each parameter, the adapter's left out."""
        return self.base.shapes

    @property
    def axes(self) -> Params:
        """The logical axis names of each parameter, the adapter's left out."""
        return self.base.axes

    @property
    def tree(self) -> Tree:
        """Both."""
        return Tree(self.shapes, self.axes)

    @property
    def trained(self) -> Tree:
        """What training changes: the adapter if there is one, else everything."""
        if self.adapted is None:
            return self.tree
        return Tree(adapter_of(self.adapted.shapes), adapter_of(self.adapted.axes))

    def apply(
        self,
        params: Params,
        noisy: jax.Array,
        time_B: jax.Array,
        condition: Condition | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What is predicted of noisy samples, in their shape; as `Diffuser.apply`."""
        if not adapter_of(params):
            return self.base.apply(params, noisy, time_B, condition, key)
        assert self.adapted is not None
        return self.adapted.apply(params, noisy, time_B, condition, key)

    def init(self, key: jax.Array) -> Params:
        """Random parameters, the adapter's left out."""
        return self.base.init(key)

    def init_adapter(self, key: jax.Array) -> Params:
        """The adapter before the first step: with it the model computes what it computes without. To be jitted."""
        assert self.adapted is not None
        return adapter_of(self.adapted.init(key))

    def held_dtypes(self) -> Params:
        """The dtype in which a parameter that is not trained is held: that of its use."""
        return jax.tree.map(lambda _: self.base.dtype, self.shapes)


def make_picture_model(spec: TransformerSpec, *, dtype: Any, remat: str, lora: Lora | None = None) -> PictureModel:
    """Describes a model without allocating anything."""
    base = make_diffuser(spec, dtype=dtype, remat=remat)
    if lora is None:
        return PictureModel(base)
    return PictureModel(base, make_diffuser(spec, dtype=dtype, remat=remat, adapt=functools.partial(_with, lora)), lora)


def _with(lora: Lora, module: Any, rngs: Any) -> Any:
    return attach(module, rngs, lora)


class ScorerModel(NamedTuple):
    """A scorer as training and checkpoints see a model."""

    scorer: Scorer

    @property
    def spec(self) -> ScorerSpec:
        """Its sizes."""
        return self.scorer.spec

    @property
    def lora(self) -> None:
        """It has no adapter."""
        return None

    @property
    def shapes(self) -> Params:
        """Of its parameters."""
        return self.scorer.shapes

    @property
    def axes(self) -> Params:
        """Their logical names."""
        return self.scorer.axes

    @property
    def tree(self) -> Tree:
        """Both."""
        return Tree(self.scorer.shapes, self.scorer.axes)

    @property
    def trained(self) -> Tree:
        """All of it."""
        return self.tree
