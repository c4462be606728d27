"""Settings of XLA on each kind of device: one table, each with its reason, applied before jax is imported.

python -m dpo_jax.runtime.xla_flags gpu      # lines for a shell, which `eval` takes
python -m dpo_jax.runtime.xla_flags table    # the table of launch/README.md
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dpo_jax import XLA_CPU_FLAG, miscompiles
from dpo_jax.errors import UserError, nearest


class Setting(NamedTuple):
    """A variable of the environment and its value, or one flag of the many that the variable may hold."""

    variable: str
    value: str
    reason: str


# XLA ends the process at a flag that it does not know. These are known to jaxlib 0.10.2 and 0.12 (a test asks the one
# installed), those of libtpu to 0.0.42 and 0.0.50. What each does: openxla.org/xla/flags_guidance and effort_levels.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "cpu": (
        Setting(
            "XLA_FLAGS",
            XLA_CPU_FLAG,
            "jaxlib 0.10.2 computes some programs wrong and 0.11.0 crashes with YNNPACK (jax-ml/jax#39103, #40412): "
            "without it. `import dpo_jax` sets this for those two, whatever `DPO_JAX_XLA_FLAGS` says",
        ),
    ),
    "gpu": (
        Setting(
            "JAX_OPTIMIZATION_LEVEL",
            "O1",
            "gathers and reductions of a layer run while its neighbours compute: pipelined and combined collectives, "
            "loops unrolled by two; compiles longer. One name for flags that XLA renames from time to time",
        ),
        Setting(
            "XLA_FLAGS",
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "communication is scheduled behind computation; part of O1, and on where the level is set back",
        ),
        Setting(
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "0.9",
            "JAX takes 75 % of a GPU's memory by itself; NVIDIA's guide for language models gives it 80 to 90 %",
        ),
    ),
    "tpu": (
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_tpu_enable_ici_ag_pipelining=true",
            "a layer's weights are gathered while the one before computes (fsdp, scanned layers); needs the next two",
        ),
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_should_allow_loop_variant_parameter_in_chain=enabled",
            "lets the gather of a weight that the scan slices out be moved to the iteration before",
        ),
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_should_add_loop_invariant_op_in_chain=enabled",
            "lets what does not change from layer to layer move with it",
        ),
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
            "gradient sums over `data` run beside matmuls; XLA does so for gathers by itself",
        ),
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "of several slices: gradient sums over the data centre's network overlap with the backward pass",
        ),
        Setting(
            "LIBTPU_INIT_ARGS",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
            "the same for sums of unequal sizes, over iterations; takes some memory",
        ),
    ),
}

SWITCH = "DPO_JAX_XLA_FLAGS"

# Of an accelerator that is not here, while its package is: libtpu complains of a TPU that it does not find, and JAX's
# plug-in shows a traceback of CUDA's libraries. JAX would go on with the CPU in any case.
_QUIET = {
    "tpu": {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"},
    "gpu": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}
_PACKAGES = {"tpu": "libtpu", "gpu": "jax_plugins"}
_DEVICES = {"tpu": ("accel[0-9]*", "vfio/[0-9]*"), "gpu": ("nvidia[0-9]*", "nvidiactl", "dxg")}


def additions(platform: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variable -> its new value. What is set already stays: a variable, or a flag among the variable's flags."""
    added: dict[str, str] = {}
    for variable, value, _ in SETTINGS[platform]:
        before = added.get(variable, environment.get(variable, ""))
        names = {flag.partition("=")[0] for flag in before.split()}
        if value.startswith("--") and value.partition("=")[0] not in names:
            added[variable] = f"{before} {value}".strip()
        elif not before:
            added[variable] = value
    return added


def apply(environment: MutableMapping[str, str], *, devices: Path = Path("/dev")) -> None:
    """Add the settings of this machine's accelerator to `environment`, unless DPO_JAX_XLA_FLAGS is `off`.

    Packages for an accelerator that this machine lacks are told not to complain of that.

    Raises:
        UserError: that variable says something else than on or off, or XLA would compute wrong values on this CPU.
    """
    switch = environment.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UserError(f"{SWITCH}={switch} is not understood. {nearest(switch, ('on', 'off'))}")
    platform = find_platform(environment, devices=devices)
    if platform is None and miscompiles(environment):
        raise UserError(
            f"XLA_FLAGS={environment.get('XLA_FLAGS', '')}: with that, this jaxlib computes some programs wrong on "
            f"CPUs (jax-ml/jax#39103). Take {XLA_CPU_FLAG} with its value out of it."
        )
    if platform and switch == "on":
        environment.update(additions(platform, environment))
    for kind, quiet in _QUIET.items():
        if importlib.util.find_spec(_PACKAGES[kind]) and not _may_be_here(kind, environment, devices):
            for variable, value in quiet.items():
                environment.setdefault(variable, value)


def _may_be_here(kind: str, environment: Mapping[str, str], devices: Path) -> bool:
    """Return whether such an accelerator is asked for, or leaves a trace here, so that its complaints matter."""
    asked = environment.get("JAX_PLATFORMS", "").split(",")
    if {"tpu": {"tpu"}, "gpu": {"gpu", "cuda"}}[kind] & {*asked}:
        return True
    if any(next(devices.glob(pattern), None) for pattern in _DEVICES[kind]):
        return True
    return kind == "tpu" and "JAX_FORCE_TPU_INIT" in environment


def find_platform(environment: Mapping[str, str], *, devices: Path = Path("/dev")) -> str | None:
    """`gpu` or `tpu` by JAX_PLATFORMS or by the device files, None for neither. Costs no import."""
    asked = environment.get("JAX_PLATFORMS", "")
    if asked:
        return {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}.get(asked.partition(",")[0])
    if (devices / "nvidiactl").exists():
        return "gpu"
    return "tpu" if [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")] else None


def table() -> str:
    """All settings as a table in Markdown."""
    rows = [
        f"| {platform.upper()} | `{variable}` | `{value}` | {reason} |"
        for platform, settings in SETTINGS.items()
        for variable, value, reason in settings
    ]
    return "\n".join(["| on | variable | value | why |", "| --- | --- | --- | --- |", *rows])


def main(arguments: Sequence[str]) -> str:
    """Return the text that `python -m dpo_jax.runtime.xla_flags` prints."""
    if list(arguments) == ["table"]:
        return table()
    if len(arguments) != 1 or arguments[0] not in SETTINGS:
        raise UserError(f"xla_flags: give one word. {nearest(' '.join(arguments), [*SETTINGS, 'table'])}")
    new = additions(arguments[0], os.environ)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in new.items())


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
