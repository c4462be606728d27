"""Optimizers and learning-rate schedules from optax. The learning rate itself is a traced knob of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpo_jax.types import Params

Schedule = Callable[[jax.Array], jax.Array]
"""Step (counted from 0) -> share of the peak learning rate."""


def adamw(
    axes: Params,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """AdamW for a learning rate of 1: the step multiplies by the real one.

    Args:
        axes: the logical axis names of each parameter; weight decay acts on matrices, not on norms and biases.
        clip_norm: the global gradient norm is clipped to this; 0 turns clipping off.
        moment_dtype: of the first moment; the second, whose square root divides, stays as wide as the parameters.
    """

    def is_matrix(names: tuple[str, ...]) -> bool:
        return len([name for name in names if name != "layers"]) > 1

    mask = jax.tree.map(is_matrix, axes, is_leaf=lambda names: isinstance(names, tuple))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        _adam(moment_dtype, b1=beta1, b2=beta2, eps=epsilon),
        optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity(),
        optax.scale(-1.0),
    )


def _adam(moment_dtype: str, **numbers: Any) -> optax.GradientTransformation:
    """Adam whose first moment is kept in this dtype and moved in float32: optax alone would round the decay too."""
    wide, narrow = optax.scale_by_adam(**numbers), optax.scale_by_adam(**numbers, mu_dtype=jnp.dtype(moment_dtype))
    if moment_dtype == "float32":
        return wide

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        direction, moved = wide.update(updates, state._replace(mu=optax.tree.cast(state.mu, jnp.float32)), params)
        assert isinstance(moved, optax.ScaleByAdamState)
        return direction, moved._replace(mu=optax.tree.cast(moved.mu, jnp.dtype(moment_dtype)))

    return optax.GradientTransformation(narrow.init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw}


def make_schedule(name: str, *, warmup_steps: int, steps: int) -> Schedule:
    """A linear warm-up from 0, then `constant`, or `linear` or `cosine` down to 0 at `steps`."""
    decay_steps = max(1, steps - warmup_steps)
    after = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(1.0, decay_steps),
    }[name]
    if not warmup_steps:
        return lambda step: jnp.asarray(after(step), jnp.float32)
    joined = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup_steps), after], [warmup_steps])
    return lambda step: jnp.asarray(joined(step), jnp.float32)
