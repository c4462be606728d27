"""Our model from a location of weights, ready to be compared with transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.logprobs import token_logps
from dpo_jax.mesh import make_mesh
from dpo_jax.models.families import TensorRule
from dpo_jax.models.model import Model, make_model
from dpo_jax.types import Params
from dpo_jax.weights.export import Files, export_folder
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.source import WeightsSource


class Ours(NamedTuple):
    """A model in float32 on a mesh."""

    mesh: jax.sharding.Mesh
    source: WeightsSource
    rules: tuple[TensorRule, ...]
    model: Model
    params: Params
    skipped: tuple[str, ...] = ()  # prefixes of the tensors that are none of the decoder's

    def logits(self, ids_RT: np.ndarray) -> np.ndarray:
        """Logits [R, T, V] of rows without padding."""

        def whole(params: Params, ids_RT: jax.Array) -> jax.Array:
            hidden_RTD, unembedding = self._apply(params, ids_RT)
            logits_RTV = jnp.einsum("rtd,vd->rtv", hidden_RTD, unembedding.weight_VD)
            cap = unembedding.soft_cap
            return logits_RTV if cap is None else cap * jnp.tanh(logits_RTV / cap)

        with jax.set_mesh(self.mesh):
            return np.asarray(jax.jit(whole)(self.params, ids_RT))

    def token_logps(self, ids_RT: np.ndarray) -> np.ndarray:
        """Log-probability of each token but the first, [R, T - 1], nats."""

        def score(params: Params, ids_RT: jax.Array) -> jax.Array:
            hidden_RTD, unembedding = self._apply(params, ids_RT)
            return token_logps(hidden_RTD[:, :-1], ids_RT[:, 1:], unembedding)

        with jax.set_mesh(self.mesh):
            return np.asarray(jax.jit(score)(self.params, ids_RT))

    def export(self, folder: Path, **options: Any) -> Path:
        """Writes the Hugging Face folder."""
        files = Files(**{name: options.pop(name) for name in Files._fields if name in options})
        options = {"skipped": self.skipped, **options}
        export_folder(folder, self.params, self.model, self.rules, self.source, files=files, **options)
        return folder

    def _apply(self, params: Params, ids_RT: jax.Array) -> tuple:
        positions_RT = jnp.broadcast_to(jnp.arange(ids_RT.shape[1]), ids_RT.shape)
        return self.model.apply(params, ids_RT, positions_RT, jnp.ones_like(ids_RT))


def load(location: str | Path, mesh: jax.sharding.Mesh | None = None) -> Ours:
    """Opens the weights and places them on a mesh, by default one of all devices."""
    mesh, source = mesh or make_mesh(), open_weights(str(location))
    spec, rules, skipped, *_ = resolve_spec(source)
    model = make_model(spec)
    return Ours(mesh, source, rules, model, load_params(source, model, rules, mesh, skipped=skipped), skipped)


def their_logits(model: Any, ids_RT: np.ndarray) -> np.ndarray:
    """Logits [R, T, V] that a transformers model computes for rows without padding."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids_RT)).logits.numpy()


def encode(tokenizer: Any, texts: Sequence[str], length: int) -> np.ndarray:
    """The first `length` tokens of each text, int [R, T]."""
    return np.array([tokenizer(text).input_ids[:length] for text in texts])
