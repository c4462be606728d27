"""Cost of a training step as rows, vocabulary, depth and devices grow: python tests/benchmarks/cost.py [--over T,V]

The very step of `dpo-jax train`, one quantity changed at a time from: 4 layers of width 256, T = 512 (prompt and one
response, prompts shared), V = 32,000, 8 pairs, float32, one device. Memory is what XLA sets aside on each device: the
state and the batch, and beside them what the step needs for a while. CPU-seconds are of a step, the median; with
several pretend devices (fsdp) they are left out, as these share the cores. Times hold to a tenth.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from work import SHAPES, keep, make_model, make_rows, parse, write_config

from dpo_jax.config import load
from dpo_jax.experiments.planned import Planned
from dpo_jax.models.costs import matmul_parameters, pair_flops
from dpo_jax.planning.outcomes import Call
from dpo_jax.planning.topologies import Chip, Machine

PAIRS = 8


class Point(NamedTuple):
    """One configuration of the step."""

    tokens: int = 512
    vocabulary: int = 32_000
    layers: int = 4
    devices: int = 1


POINTS = {
    "T": [Point(tokens=size) for size in (256, 512, 1024, 2048)],
    "V": [Point(vocabulary=size) for size in (32_000, 64_000, 128_000)],
    "layers": [Point(layers=count) for count in (4, 8, 16)],
    "devices": [Point(devices=count) for count in (1, 2, 4, 8)],
}


def cost_of(point: Point, folder: Path, repeats: int) -> dict[str, float]:
    """Bytes of a device, operations and CPU-seconds of a step."""
    shape = SHAPES["small"]._replace(layers=point.layers)
    model = make_model(folder / "model", shape, vocabulary=point.vocabulary)
    half = point.tokens // 2
    rows = make_rows(folder / "rows.jsonl", [(half, half, half)] * PAIRS, vocabulary=point.vocabulary)
    limits = {"max_tokens": point.tokens, "max_prompt_tokens": half}
    path = write_config(folder / "e.yaml", model, rows, data=limits, train={"batch_pairs": PAIRS, "steps": 100})
    machine = Machine("cpu", Chip("CPU", 2**40, 1e12), point.devices, tuple(jax.devices()[: point.devices]))
    planned = Planned(*load(str(path)), command="", machine=machine)
    with jax.set_mesh(planned.mesh):
        call = planned.train_call(planned.find_lengths().data)
        sizes = planned.measure(call, full=True)["bytes"]
        seconds = cpu_seconds(call, repeats) if point.devices == 1 else float("nan")
    spec = planned.resolved.spec
    flops = pair_flops(spec, matmul_parameters(planned.model.tree), half, [half, half], shared=True)
    return {
        "state_bytes": sizes["arguments"],
        "temporary_bytes": sizes["temporary"],
        "flops": flops * PAIRS,
        "seconds": seconds,
    }


def cpu_seconds(call: Call, repeats: int) -> float:
    """The median of some steps on arrays of zeros."""
    took = []
    for _ in range(repeats + 1):
        arguments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x, call.arguments)
        jax.block_until_ready(arguments)
        start = time.process_time()
        jax.block_until_ready(call.function(*arguments))
        took.append(time.process_time() - start)
    return statistics.median(took[1:])  # the first one compiles


def main() -> None:
    """Prints a table of Markdown."""
    options = parse(__doc__, over=",".join(POINTS), repeats=5)
    results: dict[str, list[dict[str, Any]]] = {}
    print("| | state, MiB | beside it, MiB | GFLOP | CPU-seconds | CPU-s to the first | GFLOP to the first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.over.split(","):
        for point in POINTS[name]:
            with tempfile.TemporaryDirectory() as folder:
                found = cost_of(point, Path(folder), options.repeats)
            results.setdefault(name, []).append({**point._asdict(), **found})
            first = results[name][0]
            value = point[list(POINTS).index(name)]
            times = ["-", "-"]
            if point.devices == 1:
                times = [f"{found['seconds']:.2f}", f"{found['seconds'] / first['seconds']:.2f}"]
            print(
                f"| {name} = {value:,} | {found['state_bytes'] / 2**20:.0f} | {found['temporary_bytes'] / 2**20:.0f} "
                f"| {found['flops'] / 1e9:.0f} | {' | '.join(times)} | {found['flops'] / first['flops']:.2f} |",
                flush=True,
            )
    keep(options, results)


if __name__ == "__main__":
    main()
