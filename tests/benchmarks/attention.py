"""Attention on a CPU against the length of rows: `python tests/benchmarks/attention.py [--repeats 5] [--json FILE]`.

Forward and backward, float32: attention alone, and a whole decoder of 4 layers and width 256 up to its hidden states.
The dense form, the blocks that are used on CPUs, and PyTorch's scaled_dot_product_attention where it is installed; 2048
tokens at each length; the arms take turns.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from work import keep, machine, parse

from dpo_jax.models.attention import AttentionMask, attend
from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec

LENGTHS = (256, 512, 1024, 2048)
TOKENS = 2048
LAYERS, WIDTH, HEADS, GROUPS, HEAD_SIZE, MLP_WIDTH, VOCABULARY = 4, 256, 8, 4, 32, 768, 512
SPEC = DecoderSpec(
    vocabulary=VOCABULARY,
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=GROUPS,
    head_size=HEAD_SIZE,
    mlp_width=MLP_WIDTH,
    norm_epsilon=1e-5,
    tied=True,
)
Arm = Callable[[], Any]


def attention_arm(backend: str, length: int) -> Arm:
    """Gradients of a sum of squares by queries, keys and values."""
    rows = TOKENS // length
    random = np.random.default_rng(0)
    shapes = [(rows, length, heads, HEAD_SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    qkv = [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]
    positions_RT = jnp.broadcast_to(jnp.arange(length), (rows, length))
    segments_RT = jnp.ones((rows, length), jnp.int32)

    def loss(positions_RT: jax.Array, segments_RT: jax.Array, *qkv: jax.Array) -> jax.Array:
        return (attend(*qkv, AttentionMask(positions_RT, segments_RT, backend)) ** 2).sum()

    step = jax.jit(jax.grad(loss, argnums=(2, 3, 4)))
    return lambda: jax.block_until_ready(step(positions_RT, segments_RT, *qkv))


def decoder_arm(backend: str, length: int) -> Arm:
    """Gradients of a sum of squared hidden states by every parameter."""
    model = make_model(SPEC, attention=backend)
    params = model.init(jax.random.key(0))
    shape = (TOKENS // length, length)
    tokens_RT = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, shape))
    rows = (tokens_RT, jnp.broadcast_to(jnp.arange(length), shape), jnp.ones(shape, jnp.int32))
    step = jax.jit(jax.grad(lambda params, *rows: (model.apply(params, *rows)[0] ** 2).sum()))
    return lambda: jax.block_until_ready(step(params, *rows))


def torch_attention_arm(length: int) -> Arm:
    """The same by PyTorch."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    rows = TOKENS // length
    qkv = [torch.randn(rows, heads, length, HEAD_SIZE, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS)]

    def step() -> None:
        (scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True) ** 2).sum().backward()
        for x in qkv:
            x.grad = None

    return step


def torch_decoder_arm(length: int) -> Arm:
    """A bare decoder of the same shape in PyTorch."""
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention, silu

    half = HEAD_SIZE // 2
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    sine, cosine = angles.sin(), angles.cos()

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            maps = {"query": HEADS, "key": GROUPS, "value": GROUPS}
            self.qkv = nn.ModuleList(nn.Linear(WIDTH, heads * HEAD_SIZE, bias=False) for heads in maps.values())
            self.output = nn.Linear(HEADS * HEAD_SIZE, WIDTH, bias=False)
            self.gate, self.up = (nn.Linear(WIDTH, MLP_WIDTH, bias=False) for _ in range(2))
            self.down = nn.Linear(MLP_WIDTH, WIDTH, bias=False)
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-5) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norms[0](x)
            query, key, value = (of(normed).unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2) for of in self.qkv)
            mixed = scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True, enable_gqa=True)
            x = x + self.output(mixed.transpose(1, 2).flatten(2))
            normed = self.norms[1](x)
            return x + self.down(silu(self.gate(normed)) * self.up(normed))

    layers = [Block() for _ in range(LAYERS)]
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers, nn.RMSNorm(WIDTH, eps=1e-5))
    tokens = torch.randint(0, VOCABULARY, (TOKENS // length, length))

    def step() -> None:
        (model(tokens) ** 2).sum().backward()
        model.zero_grad()

    return step


def arms_of(length: int) -> dict[str, dict[str, Arm]]:
    """The arms by name, of attention and of a decoder."""
    arms = {
        "attention": {name: attention_arm(name, length) for name in ("dense", "blocks")},
        "decoder": {name: decoder_arm(name, length) for name in ("dense", "blocks")},
    }
    if importlib.util.find_spec("torch"):
        arms["attention"]["torch"] = torch_attention_arm(length)
        arms["decoder"]["torch"] = torch_decoder_arm(length)
    return arms


def measure(arms: dict[str, Arm], *, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each arm, by the clock and of all cores together."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # compiles
    for _ in range(repeats):
        for name, arm in arms.items():
            start, worked = time.perf_counter(), time.process_time()
            arm()
            times[name].append((time.perf_counter() - start, time.process_time() - worked))
    medians = {name: [1000 * median(each) for each in zip(*found, strict=True)] for name, found in times.items()}
    return {name: {"wall_ms": wall, "cpu_ms": cpu} for name, (wall, cpu) in medians.items()}


def main() -> None:
    """Prints a table, and writes JSON where asked."""
    options = parse(__doc__, repeats=5)
    print(f"{machine()}; median CPU-milliseconds (by the clock) of {options.repeats}, {TOKENS} tokens")
    result: dict[str, Any] = {"machine": machine(), "tokens": TOKENS, "lengths": {}}
    for length in LENGTHS:
        result["lengths"][length] = {}
        for what, arms in arms_of(length).items():
            found = result["lengths"][length][what] = measure(arms, repeats=options.repeats)
            times = "  ".join(f"{arm} {each['cpu_ms']:7.0f} ({each['wall_ms']:.0f})" for arm, each in found.items())
            print(f"  T {length:5} {what:10} {times}", flush=True)
    keep(options, result)


if __name__ == "__main__":
    main()
