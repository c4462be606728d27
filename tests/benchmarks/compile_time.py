"""Compile time of a step at 4 and at 48 layers: `python tests/benchmarks/compile_time.py [--repeats 5]`.

Loss and gradients through the whole model, traced, lowered and compiled anew each time; the depths take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, LayerKind, Spec
from dpo_jax.types import Params

DEPTHS = (4, 48)
MOST = 1.5

_SIZES: dict[str, Any] = {"vocabulary": 512, "width": 64, "heads": 4, "kv_heads": 2, "head_size": 16, "mlp_width": 128}
_SIZES |= {"norm_epsilon": 1e-6, "layers": 0, "tied": True}
_LOCAL_AND_FULL = (LayerKind(1e4, window=32), LayerKind(1e6))
SPECS: dict[str, Spec] = {
    "llama": DecoderSpec(**_SIZES),
    "gemma3": DecoderSpec(**_SIZES, kinds=_LOCAL_AND_FULL, qk_norm=True, sandwich_norms=True, activation="gelu_tanh"),
    "gpt2": Gpt2Spec(**_SIZES | {"kv_heads": 4}, positions=128),
}


def deep(spec: Spec, layers: int) -> Spec:
    """The same model with so many layers; where they are of two kinds, every sixth is of the second, as in Gemma 3."""
    if isinstance(spec, DecoderSpec) and len(spec.kinds) > 1:
        return dataclasses.replace(spec, layers=layers, kind_of_layer=tuple(int(n % 6 == 5) for n in range(layers)))
    return dataclasses.replace(spec, layers=layers)


def step(spec: Spec, *, remat: str) -> jax.stages.Lowered:
    """Loss and gradients of every parameter, lowered."""
    model = make_model(spec, remat=remat)

    def loss(params: Params, tokens_RT: jax.Array) -> jax.Array:
        positions_RT = jnp.broadcast_to(jnp.arange(tokens_RT.shape[1]), tokens_RT.shape)
        hidden_RTD, unembedding = model.apply(params, tokens_RT, positions_RT, jnp.ones_like(tokens_RT))
        logits_RTV = jnp.einsum("rtd,vd->rtv", hidden_RTD, unembedding.weight_VD)
        taken_RT = jnp.take_along_axis(jax.nn.log_softmax(logits_RTV), tokens_RT[..., None], axis=-1)
        return -taken_RT.mean()

    return jax.jit(jax.value_and_grad(loss)).lower(model.shapes, jax.ShapeDtypeStruct((2, 64), jnp.int32))


def seconds(spec: Spec, *, remat: str) -> tuple[float, float]:
    """The seconds of one compilation, tracing included: by the clock, and of all cores together."""
    start, worked = time.perf_counter(), time.process_time()
    step(spec, remat=remat).compile()
    return time.perf_counter() - start, time.process_time() - worked


def main() -> None:
    """Prints a table, and fails where a depth takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    jax.config.update("jax_enable_compilation_cache", False)
    seconds(deep(SPECS["llama"], 2), remat="none")  # what is done once in a process
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, Python {platform.python_version()}")
    print(f"median seconds, and CPU-seconds, of {repeats} at {DEPTHS[0]} and {DEPTHS[1]} layers")
    worst = 0.0
    for name, spec in SPECS.items():
        for remat in ("none", "full"):
            specs = [deep(spec, layers) for layers in DEPTHS]
            times = [[seconds(each, remat=remat) for each in specs] for _ in range(repeats)]
            (few, few_cpu), (many, many_cpu) = (
                map(median, zip(*found, strict=True)) for found in zip(*times, strict=True)
            )
            worst = max(worst, many_cpu / few_cpu)
            print(f"  {name:7} remat {remat:5} {few:6.2f} {many:6.2f}  ratio {many / few:.2f}", end="")
            print(f"   CPU {few_cpu:6.2f} {many_cpu:6.2f}  ratio {many_cpu / few_cpu:.2f}", flush=True)
    if worst > MOST:  # in CPU-seconds, which other work on the machine changes least
        raise SystemExit(f"{worst:.2f} times as long: more than {MOST}")


if __name__ == "__main__":
    main()
