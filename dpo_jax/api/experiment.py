"""Experiments that Python opens: with an optimizer of its own, and with a model that no checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpo_jax.config import changed, file_bytes
from dpo_jax.errors import UserError
from dpo_jax.experiments.steps import Exported, Start
from dpo_jax.experiments.text_steps import TextSteps
from dpo_jax.models.own import Apply, OwnModel, Taken, check_sight, describe_own, digest_of_program, take_apart
from dpo_jax.reading import mistake
from dpo_jax.reference.fingerprint import Fingerprint
from dpo_jax.reference.store import Store
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Training
from dpo_jax.types import Params, TokenRow
from dpo_jax.weights.export import Files, export_arrays
from dpo_jax.weights.resolve import Resolved
from dpo_jax.weights.source import WeightsSource, no_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PROBE: Params = {
    "matrix": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "vector": jax.ShapeDtypeStruct((3,), jnp.float32),
}


class PythonSteps(TextSteps):
    """An experiment on texts with what only Python can give: an optimizer."""

    optimizer: optax.GradientTransformation | None = None
    """In place of the section `optimizer`, with its own learning rate."""
    stores_heldout_alone = False
    """True where held-out rows are others than those of the training, whose store lacks them."""

    def stored_rows(self, *, heldout_only: bool = False) -> list[Sequence[TokenRow]]:
        """The rows of both splits, or of the held-out one."""
        return super().stored_rows(heldout_only=heldout_only or self.stores_heldout_alone)

    def store_folder(self, fingerprint: Fingerprint, *, heldout_only: bool = False) -> Path:
        """The store of these rows."""
        return super().store_folder(fingerprint, heldout_only=heldout_only or self.stores_heldout_alone)

    def again(self, settings: Mapping[str, object]) -> PythonSteps:
        """The same experiment with other values of these dotted keys, and what only Python gave."""
        config, origins = changed(self.config, self.origins, settings)
        other = type(self)(config, origins, command=self.command)
        given = ("own", "optimizer", "watchers", "mesh")
        vars(other).update({name: vars(self)[name] for name in given if name in vars(self)})
        return other

    @property
    def optimizer_facts(self) -> Mapping[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What tells the optimizer from another one: the program that it is, and its numbers."""
        return {"optimizer": _digest_of(self.optimizer)} if self.optimizer else super().optimizer_facts

    def training(self, store: Store | None, start: Start) -> Training:
        """The training of `train`, with this optimizer."""
        training, own = super().training(store, start), self.optimizer
        if own is None:
            return training
        return dataclasses.replace(
            training, optimizer=own, learning_rate=1.0, schedule=lambda step: jnp.ones((), jnp.float32)
        )


class Own(NamedTuple):
    """A model of one's own: a pytree or a Flax NNX module, how it is called, and the tokenizer of its tokens."""

    model: Any
    apply: Apply
    tokenizer: PreTrainedTokenizerFast
    max_positions: int | None = None


class OwnSteps(PythonSteps):
    """The same with a model of one's own."""

    own: Own

    @cached_property
    def taken(self) -> Taken:
        """The model's trained arrays, and how it is put together again."""
        return take_apart(self.own.model)

    @cached_property
    def source(self) -> WeightsSource:
        """Its tokenizer; there is no checkpoint."""
        tokenizer = self.own.tokenizer
        return WeightsSource("the model", {}, {}, {}, no_tensor, lambda: tokenizer)

    @cached_property
    def resolved(self) -> Resolved:
        """Its sizes."""
        return Resolved(self._described.spec, (), (), ())  # pyright: ignore[reportArgumentType]

    @cached_property
    def _described(self) -> OwnModel:
        return describe_own(self.taken, self.own.apply, max_positions=self.own.max_positions)

    @cached_property
    def model(self) -> OwnModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model as pure functions."""
        for key in ("lora", "sft", "reward", "scratch"):
            if getattr(self.config, key):
                raise mistake(key, self.origins, "is not for a model of one's own, of which the layers are not known.")
        return self._described

    @cached_property
    def attention(self) -> str:
        """A form that reads positions and segments, as `apply` must."""
        return "dense"

    def pretrained(self, *, held: bool = False) -> Params:
        """A copy of the model's arrays on the mesh, in float32: the originals stay as they are."""
        shardings = param_shardings(self.mesh, self.model.tree)
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), self.taken.params)
        params = jax.device_put(params, shardings)
        check_sight(self.model, params, self.config.data.layout)
        return params

    def trained_model(self) -> Any:
        """The model as it was given, with the trained arrays of the newest checkpoint."""
        now = {name: leaf.astype(self.taken.params[name].dtype) for name, leaf in self.trained_adapter().items()}
        return self.taken.together(now)

    def export(self, *, what: Exported, card: Callable[[Collection[str]], str]) -> None:
        """Writes the trained arrays by their paths, model.safetensors, and the tokenizer."""
        if what != "trained":
            raise UserError(f"export: of a model of one's own there is no {what} one to be written.")
        options, (place, made) = self.config.export, self.place_of("merged", self.workdir, "train")
        files = Files(options.dtype, file_bytes(options.max_shard_size), made)
        export_arrays(place, self.trained_adapter(), tokenizer=self.tokenizer, files=files)
        say("export", f"wrote {place} ({options.dtype}; its tensors have the paths of the model's arrays)")


def _digest_of(optimizer: optax.GradientTransformation) -> str:
    """A digest of what an optimizer computes: its program and the numbers in it, on two small parameters."""

    def update(gradients: Params, params: Params) -> Any:
        return optimizer.update(gradients, optimizer.init(params), params)

    return digest_of_program(jax.make_jaxpr(update)(_PROBE, _PROBE))
