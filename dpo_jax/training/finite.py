"""A look at every number of a state, before it is saved and after it was read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.mesh import constrain


class NotFinite(Exception):
    """Numbers that are NaN or infinite, which are not saved."""


def first_not_finite(tree: Any) -> str | None:
    """The name of the first array of a tree with a number that is NaN or infinite; None where all are finite.

    One program reads each array once, where it lies; a truth value of each comes to the host, the same on every host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if not named:
        return None
    finite = np.asarray(jax.device_get(_all_finite([leaf for _, leaf in named])))
    if finite.all():
        return None
    return jax.tree_util.keystr(named[int(finite.argmin())][0], simple=True, separator=".")


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    return constrain(jnp.stack([jnp.isfinite(array).all() for array in arrays]), None)  # every host reads it
