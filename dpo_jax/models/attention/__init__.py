"""Attention: one function, the forms that compute it, and the choice among them for a machine and a model.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpo_jax.mesh import axis_splits, by_shards
from dpo_jax.models.attention.blocks import attend_blocks
from dpo_jax.models.attention.dense import attend_dense
from dpo_jax.models.attention.kernels import attend_cudnn, attend_splash
from dpo_jax.models.attention.mask import AttentionMask, Cache
from dpo_jax.models.spec import DecoderSpec, Spec

__all__ = ["BACKENDS", "FASTEST", "AttentionMask", "Backend", "Cache", "Choice", "attend", "choose_attention"]


class Backend(NamedTuple):
    """A form of attention: `attend(query_RTHK, key_RSGK, value_RSGK, mask, scale=, soft_cap=)` gives [R, T, H, K].

    `unpacks` names the layouts of rows whose sequences it must be told, see `PairBatch.sequences`; None: of none.
    """

    attend: Callable[..., jax.Array]
    unpacks: tuple[str, ...] | None = None


BACKENDS: dict[str, Backend] = {
    "dense": Backend(attend_dense),
    "blocks": Backend(attend_blocks),
    "cudnn": Backend(attend_cudnn, unpacks=("packed", "shared")),
    "splash": Backend(attend_splash, unpacks=("shared",)),
}


def attend(
    query_RTHK: jax.Array,
    key_RSGK: jax.Array,
    value_RSGK: jax.Array,
    mask: AttentionMask,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Grouped-query softmax attention, [R, T, H, K] in the dtype of the values.

    Scores are multiplied by `scale`, 1 / sqrt(K) unless told otherwise, and bent to stay below `soft_cap`.

    On a mesh each device attends in its own rows and heads; where the length is split, heads are split by that axis
    instead, so that every device has whole rows.
    """
    chex.assert_equal_shape([key_RSGK, value_RSGK])
    rows, _, heads, head_size = query_RTHK.shape
    knobs = {"scale": head_size**-0.5 if scale is None else scale, "soft_cap": soft_cap}
    if mask.segments_RT is None or mask.backend == "dense":
        return attend_dense(query_RTHK, key_RSGK, value_RSGK, mask, **knobs)
    backend = BACKENDS[mask.backend]
    if backend.unpacks is not None:
        _check_sequences(mask, rows)

    def attend_part(query: jax.Array, key: jax.Array, value: jax.Array, *known: jax.Array) -> jax.Array:
        part = mask._replace(**dict(zip(_KNOWN, known, strict=True)))
        return backend.attend(query, key, value, part, **knobs)

    name = "heads" if heads % axis_splits("whole_rows_heads") else "whole_rows_heads"
    if key_RSGK.shape[2] % axis_splits(name):  # a head of queries finds its keys on its own device
        key_RSGK, value_RSGK = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (key_RSGK, value_RSGK))
    of_heads = ("rows", None, name, None)
    known = (mask.positions_RT, mask.segments_RT, jnp.asarray(mask.kind), mask.unpacking)
    names = (of_heads, of_heads, of_heads, ("rows",), ("rows",), (), ("rows",))
    arrays = (query_RTHK, key_RSGK, value_RSGK, *known)
    return by_shards(attend_part, *arrays, names=names, out=of_heads, out_shape=query_RTHK.shape)


def _check_sequences(mask: AttentionMask, rows: int) -> None:
    if mask.unpacking is None:
        raise ValueError(f"{mask.backend} attention must be told the sequences of the rows: PairBatch.sequences")
    splits = axis_splits("rows")
    for each in mask.unpacking.sequences[:1] if splits > 1 else ():
        if rows % splits or len(each) % splits:
            raise ValueError(f"{rows} rows and {len(each)} parts of their sequences on a mesh that splits by {splits}")


_KNOWN = ("positions_RT", "segments_RT", "kind", "unpacking")

FASTEST = {"gpu": "cudnn", "tpu": "splash"}
"""Platform -> what is used there if the model allows; elsewhere, and where it does not, `blocks`."""

_HOPPER = (9, 0)


class Device(Protocol):
    """A device as JAX has it, or one that is only described."""

    @property
    def platform(self) -> str: ...
    @property
    def compute_capability(self) -> str: ...  # of GPUs


class Choice(NamedTuple):
    """A name of `BACKENDS`, and why it is not the fastest of the platform, if it is not."""

    name: str
    why: str = ""


def choose_attention(wanted: str, spec: Spec, dtype: DTypeLike, device: Device) -> Choice:
    """Return the form of attention that is asked for; for `auto` the fastest of the platform.

    Raises:
        ValueError: the device or the model cannot do what is asked for.
    """
    name = FASTEST.get(device.platform, "blocks") if wanted == "auto" else wanted
    why = _cannot(name, spec, dtype, device)
    if not why:
        return Choice(name)
    if wanted == "auto":
        return Choice("blocks", why)
    able = [other for other in BACKENDS if not _cannot(other, spec, dtype, device)]
    raise ValueError(f"{why}. Possible here: auto, {', '.join(able)}.")


def _cannot(name: str, spec: Spec, dtype: DTypeLike, device: Device) -> str:
    """Reason in a few words why a form cannot be used; empty if it can."""
    if name == "splash" and device.platform != "tpu":
        return f"splash attention needs a TPU, and this is a {device.platform}"
    if name != "cudnn":
        return ""
    if device.platform != "gpu":
        return f"cudnn attention needs an NVIDIA GPU, and this is a {device.platform}"
    if dtype != "bfloat16":
        return f"cudnn attention needs dtype bfloat16, not {dtype}"
    if isinstance(spec, DecoderSpec) and spec.attention_soft_cap is not None:
        return "cudnn attention has no soft cap, and this model caps its scores"
    generation = tuple(int(number) for number in str(device.compute_capability).split("."))
    most = 256 if generation >= _HOPPER else 128
    if spec.head_size > most or spec.head_size % 8:
        return f"cudnn attention needs heads of at most {most} numbers, a multiple of 8, not {spec.head_size}"
    return ""
