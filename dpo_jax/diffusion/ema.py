"""The moving average of parameters, which samples better than the parameters of any one step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dpo_jax.types import Params


def moved_average(
    average: Params, params: Params, steps: int | jax.Array, *, decay: float | jax.Array = 0.9999
) -> Params:
    """The average after one more step, in the dtype in which it is held.

    average + (1 - d) (params - average), d = min(decay, (1 + steps) / (10 + steps)).

    The first steps count more, so that the average soon forgets where it began.

    Args:
        average: before this step; at first the parameters themselves.
        params: after this step.
        steps: how many steps there were, this one among them; may be traced.
        decay: 0 is the parameters themselves, towards 1 ever more steps are averaged, about 1 / (1 - decay).

    Example:
        >>> import jax.numpy as jnp
        >>> float(moved_average({"w": jnp.array(0.0)}, {"w": jnp.array(8.0)}, 2, decay=0.9)["w"])  # d = 3 / 12
        6.0
    """
    steps = jnp.asarray(steps, jnp.float32)
    share = 1.0 - jnp.minimum(decay, (1.0 + steps) / (10.0 + steps))

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        return (old + share * (new - old)).astype(old.dtype)

    return jax.tree.map(moved, average, params)
