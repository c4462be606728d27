"""A report on a machine: what it has, what will not work, and what to do; of every process of a run, told by the first.

What does not touch devices is in `machine.py`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dpo_jax import XLA_CPU_FLAG
from dpo_jax.errors import Finding, UserError, printable
from dpo_jax.files import Json
from dpo_jax.masking import mask
from dpo_jax.runtime import hosts, machine

_EXACT_WIDTH = 256
_MOST_APART_SECONDS = 2.0
_EPOCH = 1_700_000_000  # seconds since then fit into an int32 for decades


def run(folder: Path, environment: Mapping[str, str]) -> None:
    """Print a line for each thing that was looked at; `environment` as it was before we set anything in it.

    Raises:
        UserError: something will not work.
    """
    hosts.join_run()  # before JAX looks for devices
    mine = [*machine.examine(folder, environment), *_devices(environment)]
    everyone = _gather({"host": socket.gethostname(), "versions": machine.versions(), "found": mine})
    findings = [Finding(*each) for each in everyone[0]["found"]]
    for number, other in enumerate(everyone[1:], start=1):
        of = f"process {number} on {other['host']}"
        findings += [Finding(state, f"{what}, {of}", says) for state, what, says in other["found"] if state != "good"]
    if len(everyone) > 1:
        findings += [*_together(everyone, folder)]
    if len(everyone) == 1 or jax.process_index() == 0:
        for each in findings:
            print(printable(mask(f"{each.state:>4}  {each.what:<12} {each.says}"), lines=True), flush=True)
    bad = [each for each in findings if each.state == "bad"]
    if bad:
        raise UserError(f"doctor: {len(bad)} of {len(findings)} will not work: {', '.join(each.what for each in bad)}.")


def _devices(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The devices of this process, whether there are others that JAX does not see, and whether they can multiply."""
    try:
        local = jax.local_devices()
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        yield Finding("bad", "devices", f"JAX finds none: {said} Look at JAX_PLATFORMS and at what `jax` is installed.")
        return
    first = local[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    size = f", {memory / 2**30:.1f} GiB each" if memory else ""
    yield Finding("good", "devices", f"{len(local)} x {first.device_kind} ({first.platform}){size}")
    if first.platform == "cpu" and (unseen := _unseen()):
        kind, extra = unseen
        asked = environment.get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS={asked} says so" if asked else f"run `pip install 'dpo-jax[{extra}]'`"
        yield Finding("warn", "devices", f"there is a {kind} here that JAX does not use: {why}.")
    wrong = [str(device.id) for device in local if not _multiplies(device)]
    if wrong:
        yield Finding("bad", "matmul", f"device {', '.join(wrong)} multiplies wrongly. Take it out of use.")
    elif _miscompiled():
        how = f"Set XLA_FLAGS={XLA_CPU_FLAG}" if first.platform == "cpu" else "Use another version of jaxlib"
        yield Finding("bad", "compiler", f"XLA computes the program of jax-ml/jax#39103 wrong. {how}.")
    else:
        yield Finding("good", "matmul", f"right to the bit on all; {_speed(first):,.2f} TFLOP/s on the first")


def _miscompiled() -> bool:
    """Compile the program of jax-ml/jax#39103 for the first device, and compare its last row with the right value."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    norms = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return float(norms[-1]) != float(len(rows) - 1) ** 2


def _unseen() -> tuple[str, str] | None:
    """An accelerator of this machine, and the extra that JAX needs for it."""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
        if listed.returncode == 0 and (names := [line for line in listed.stdout.splitlines() if line.strip()]):
            return f"GPU ({names[0].partition(' (UUID')[0]})", "cuda13"
    if list(Path("/dev").glob("accel[0-9]*")):
        return "TPU", "tpu"
    return None


def _multiplies(device: Any) -> bool:
    """Small whole numbers, whose products and sums bfloat16 passes and float32 sums hold exactly."""
    random = np.random.default_rng(device.id)
    left, right = random.integers(-8, 9, (2, _EXACT_WIDTH, _EXACT_WIDTH))
    on_device = [jax.device_put(each.astype(np.float32), device) for each in (left, right)]
    return np.array_equal(np.asarray(jnp.matmul(*on_device, precision="highest")), left @ right)


def _speed(device: Any) -> float:
    """TFLOP/s of one matmul, bfloat16 and large on an accelerator, float32 and small on a CPU."""
    width, dtype = (512, jnp.float32) if device.platform == "cpu" else (8192, jnp.bfloat16)
    square = jax.device_put(jnp.ones((width, width), dtype), device)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * width**3 / min(seconds) / 1e12


def _gather(value: Json) -> list[Json]:
    """The JSON value of each process."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:  # without a device nothing can be counted
        return [json.loads(json.dumps(value))]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def _together(everyone: list[Json], folder: Path) -> Iterator[Finding]:
    """Compare the processes: versions, clocks, the folder."""
    names = ", ".join(dict.fromkeys(each["host"] for each in everyone))
    yield Finding("good", "processes", f"all {len(everyone)} answer ({names}), with {jax.device_count()} devices")
    first = everyone[0]["versions"]
    for number, other in enumerate(everyone[1:], start=1):
        differs = [
            f"{name} {version}, not {first.get(name)}"
            for name, version in other["versions"].items()
            if version != first.get(name)
        ]
        if differs:
            says = f"process {number} on {other['host']} has {'; '.join(differs)}. Install the same on all."
            yield Finding("bad", "versions", says)
    multihost_utils.sync_global_devices("what is the time")
    now = time.time() - _EPOCH
    parts = multihost_utils.process_allgather(np.array([int(now), int(now % 1 * 1e6)], np.int32))
    clocks = np.asarray(parts).reshape(-1, 2) @ np.array([1, 1e-6])
    apart = float(clocks.max() - clocks.min())
    late = int(np.argmax(np.abs(clocks - np.median(clocks))))
    state = "warn" if apart > _MOST_APART_SECONDS else "good"
    advice = f"; set that of process {late} ({everyone[late]['host']}) with NTP" if state == "warn" else ""
    yield Finding(state, "clocks", f"at most {apart:.2f} s apart{advice}")
    try:
        hosts.check_shared(folder)
    except UserError as error:
        yield Finding("bad", "folder", str(error))
    else:
        yield Finding("good", "folder", "the same on all of them")
