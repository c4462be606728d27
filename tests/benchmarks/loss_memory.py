"""Memory of the log-probs of a batch and their gradients beside inputs and results, compiled not run.

    JAX_PLATFORMS=cpu python tests/benchmarks/loss_memory.py [--tokens 2048] [--width 1024] [--json FILE]

`tiled` is `logprobs.token_logps`; `whole` is the same from one array of logits, as it is usually written.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from work import keep, parse

from dpo_jax.logprobs import token_logps
from dpo_jax.types import Unembedding

VOCABULARIES = (32_000, 128_000)


def tiled(hidden_RND: jax.Array, target_RN: jax.Array, weight_VD: jax.Array) -> jax.Array:
    """Summed log-probs, as the product computes them."""
    return token_logps(hidden_RND, target_RN, Unembedding(weight_VD, weight_VD.shape[0])).sum()


def whole(hidden_RND: jax.Array, target_RN: jax.Array, weight_VD: jax.Array) -> jax.Array:
    """The same from all logits at once."""
    logits_RNV = jnp.einsum("rnd,vd->rnv", hidden_RND, weight_VD, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits_RNV), target_RN[..., None], axis=-1).sum()


def temporary_bytes(function: Callable[..., jax.Array], tokens: int, width: int, vocabulary: int) -> int:
    """The bytes that XLA sets aside for value and gradients."""
    shapes = (
        jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
    )
    compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 2))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints a table of Markdown."""
    options = parse(__doc__, tokens=2048, width=1024)
    found = {
        function.__name__: [temporary_bytes(function, options.tokens, options.width, size) for size in VOCABULARIES]
        for function in (tiled, whole)
    }
    print("| MiB | " + " | ".join(f"V = {size:,}" for size in VOCABULARIES) + " | growth |\n| --- | --- | --- | --- |")
    for name, sizes in found.items():
        print(f"| {name} | " + " | ".join(f"{size / 2**20:.0f}" for size in sizes) + f" | {sizes[1] / sizes[0]:.2f} |")
    keep(options, found)


if __name__ == "__main__":
    main()
