"""dpo_jax: preference optimisation of language models in JAX."""

import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_jax.api import Model, Policy, Result, load, train
    from dpo_jax.errors import UserError

__all__ = ["Model", "Policy", "Result", "UserError", "load", "train"]

__version__ = "0.2.0"

XLA_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
"""With no value after it, XLA leaves YNNPACK out of its programs for CPUs: see `miscompiles`."""


def miscompiles(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether XLA's programs for CPUs may compute wrong values, or crash, where it starts with this environment.

    jaxlib 0.10.2 does (jax-ml/jax#39103: a matrix times rows, squared and summed, ends 0.8 % off), and 0.11.0
    crashes (jax-ml/jax#40412), by what they fuse for YNNPACK. 0.10.1, 0.11.1 and 0.12 are right.
    """
    try:
        wrong = metadata.version("jaxlib") in ("0.10.2", "0.11.0")
    except metadata.PackageNotFoundError:
        return False
    values = [flag for flag in environment.get("XLA_FLAGS", "").split() if flag.startswith(XLA_CPU_FLAG)]
    return wrong and values[-1:] != [XLA_CPU_FLAG]


def _fix_xla(environment: MutableMapping[str, str]) -> None:
    """Add the flag that cures it, unless the user has set it; XLA reads it when JAX first looks for devices."""
    flags = environment.get("XLA_FLAGS", "")
    if not miscompiles(environment) or XLA_CPU_FLAG in flags:
        return
    environment["XLA_FLAGS"] = f"{flags} {XLA_CPU_FLAG}".strip()
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            "JAX has started already, and on a CPU this jaxlib computes some programs wrong (jax-ml/jax#39103). Import "
            f"dpo_jax before JAX is first used, or set XLA_FLAGS={XLA_CPU_FLAG} for this process.",
            RuntimeWarning,
            stacklevel=3,
        )


_fix_xla(os.environ)


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported when they are first used: the losses need none of what these import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module("dpo_jax.errors" if name == "UserError" else "dpo_jax.api")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
