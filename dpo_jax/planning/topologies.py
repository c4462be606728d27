"""TPU slices and GPU nodes by name, and the published figures of their chips; alone uses ahead-of-time topologies.

A slice is named by its shape, `v5e:16x16`: names such as v5p-512 count cores on some generations and chips on others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dpo_jax.errors import nearest

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator, as JAX sees one device."""

    name: str
    memory_bytes: int  # what a program may use: of a TPU as its compiler says, of a GPU as its driver says
    peak_flops: float  # bfloat16, dense, a second
    dimensions: int = 0  # of a TPU slice
    options: Mapping[str, str] = MappingProxyType({})  # for the topology
    compute_capability: str = ""  # of a GPU

    @property
    def platform(self) -> str:
        """The platform, as JAX calls it."""
        return "gpu" if self.compute_capability else "tpu"


CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", int(30.75 * GIB), 275e12, 3, {"chip_config_name": "megacore"}),
    "v5e": Chip("TPU v5e", int(15.75 * GIB), 197e12, 2),
    "v5p": Chip("TPU v5p", int(95.74 * GIB), 459e12, 3),
    "v6e": Chip("TPU v6e (Trillium)", int(31.25 * GIB), 918e12, 2),
    "h100": Chip("NVIDIA H100 SXM, 80 GB", 81559 * 2**20, 989e12, compute_capability="9.0"),
    "h200": Chip("NVIDIA H200 SXM, 141 GB", 143771 * 2**20, 989e12, compute_capability="9.0"),
}
"""Name -> chip."""

_ALSO = {"gpu": "h100"}
_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d+(x\d+)*)")
_EXAMPLES = "such as v5e:16x16, v5p:4x4x4, v6e:4x4 or gpu:8"
# Without these libtpu asks a metadata server which TPU this is, complains that there is none, and writes logs.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another plan may run beside this one
}


class Machine(NamedTuple):
    """Chips to plan for; where nothing here compiles for them, `devices` is None and `why_not` says why."""

    name: str
    chip: Chip
    count: int
    devices: tuple[Any, ...] | None
    why_not: str = ""


def open_machine(name: str) -> Machine:
    """The machine of this name.

    Raises:
        ValueError: there is no such machine; the message says how one is named.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        cores = " That is a name by cores or chips; say the shape of the slice." if "-" in name else ""
        raise ValueError(f"{name!r} is not a machine, {_EXAMPLES}.{cores}")
    chip_name = _ALSO.get(parts["chip"], parts["chip"])
    if chip_name not in CHIPS:
        raise ValueError(f"{name!r}: unknown chip. {nearest(parts['chip'], [*CHIPS, *_ALSO])}")
    chip, shape = CHIPS[chip_name], [int(size) for size in parts["shape"].split("x")]
    if len(shape) != max(1, chip.dimensions) or 0 in shape:
        wanted = "x".join(["4"] * chip.dimensions) or "8"
        numbers = len(wanted.split("x"))
        raise ValueError(f"{name!r}: {chip.name} is named by {numbers} numbers, {parts['chip']}:{wanted} say.")
    count = math.prod(shape)
    if not chip.dimensions:
        return Machine(name, chip, count, None, "a program for GPUs is compiled on GPUs only")
    if importlib.util.find_spec("libtpu") is None:
        return Machine(
            name, chip, count, None, f'TPU programs are compiled by libtpu; `pip install "{_wanted()}"` brings it'
        )
    return Machine(name, chip, count, _devices(name, chip, shape))


def _wanted() -> str:
    """The libtpu that this jax is made for."""
    wanted = [line.split(";")[0].strip() for line in importlib.metadata.requires("jax") or [] if "libtpu" in line]
    return wanted[0] if wanted else "libtpu"


def _devices(name: str, chip: Chip, shape: list[int]) -> tuple[Any, ...]:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    import jax
    from jax.experimental import topologies

    # Hosts have four chips each, and a slice may be smaller than a host.
    bounds = (*(min(2, size) for size in shape[:2]), 1)
    options = {"chips_per_host_bounds": bounds, **chip.options}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        says = str(error).splitlines()[0]
        raise ValueError(f"{name!r}: there is no such slice ({says}).") from None
    return tuple(topology.devices)


def this_machine(host_bytes: int) -> Machine:
    """The devices that JAX has here; of processors the memory is that of the host, which they share.

    Raises:
        RuntimeError: JAX finds no device.
    """
    import jax

    devices = tuple(jax.devices())
    first = devices[0]
    stated = None if first.platform == "cpu" else (first.memory_stats() or {}).get("bytes_limit")
    chip = Chip(first.device_kind, stated or host_bytes // len(devices), math.nan)
    return Machine("this machine", chip, len(devices), devices)
