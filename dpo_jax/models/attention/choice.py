"""Which form of attention a machine and a model can do, and which of them is used."""

from __future__ import annotations

from typing import Any, NamedTuple

from dpo_jax.models.attention import BACKENDS
from dpo_jax.models.spec import DecoderSpec, Spec

FASTEST = {"gpu": "cudnn", "tpu": "splash"}
"""Platform -> what is used there if the model allows; elsewhere, and where it does not, `blocks`."""

_HOPPER = (9, 0)


class Choice(NamedTuple):
    """A name of `BACKENDS`, and why it is not the fastest of the platform, if it is not."""

    name: str
    why: str = ""


def choose_attention(wanted: str, spec: Spec, dtype: Any, device: Any) -> Choice:
    """What is wanted; for `auto` the fastest form of the platform of a `jax.Device`, which may be described, not here.

    Raises:
        ValueError: the device or the model cannot do what is wanted.
    """
    name = FASTEST.get(device.platform, "blocks") if wanted == "auto" else wanted
    why = _cannot(name, spec, dtype, device)
    if not why:
        return Choice(name)
    if wanted == "auto":
        return Choice("blocks", why)
    able = [other for other in BACKENDS if not _cannot(other, spec, dtype, device)]
    raise ValueError(f"{why}. Possible here: auto, {', '.join(able)}.")


def _cannot(name: str, spec: Spec, dtype: Any, device: Any) -> str:
    """Why not, in a few words; nothing if it can."""
    if name == "splash" and device.platform != "tpu":
        return f"splash attention needs a TPU, and this is a {device.platform}"
    if name != "cudnn":
        return ""
    if device.platform != "gpu":
        return f"cudnn attention needs an NVIDIA GPU, and this is a {device.platform}"
    if dtype != "bfloat16":
        return f"cudnn attention needs model.dtype bfloat16, not {dtype}"
    if isinstance(spec, DecoderSpec) and spec.attention_soft_cap is not None:
        return "cudnn attention has no soft cap, and this model caps its scores"
    generation = tuple(int(number) for number in str(device.compute_capability).split("."))
    most = 256 if generation >= _HOPPER else 128
    if spec.head_size > most or spec.head_size % 8:
        return f"cudnn attention needs heads of at most {most} numbers, a multiple of 8, not {spec.head_size}"
    return ""
