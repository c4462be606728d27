"""Time of the losses on stored log-probs: `python tests/benchmarks/losses.py [--pairs 100000] [--json FILE]`.

One compilation must do for ten betas of a loss, and all losses together are to take less than a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from work import keep, machine, parse

from dpo_jax.losses import LOSSES, LossInputs, PairLogps
from dpo_jax.losses.knobs import knobs

BETAS = [0.02 * 1.5**i for i in range(10)]
Loss = Callable[..., Any]


def made_up(pairs: int) -> tuple[PairLogps, PairLogps, jax.Array, jax.Array]:
    """Policy, reference, token-level KLs [B, 2] and labels, for answers of 20 to 200 tokens."""
    random = np.random.default_rng(0)
    tokens = random.integers(20, 200, (2, pairs)).astype(np.float32)
    reference = -tokens * random.gamma(4.0, 0.3, (2, pairs)).astype(np.float32)
    policy = reference + random.normal(0.0, 4.0, (2, pairs)).astype(np.float32)
    kl = jnp.asarray(random.gamma(2.0, 1.0, (pairs, 2)).astype(np.float32))
    as_pair = lambda logps: PairLogps(*map(jnp.asarray, (*logps, *tokens)))  # noqa: E731
    return as_pair(policy), as_pair(reference), kl, jnp.asarray(random.random(pairs) < 0.5)


def calls() -> dict[str, Loss]:
    """Name -> `loss(policy, reference, kl, desirable, **knobs)`, whatever it reads of them."""

    def loss(entry: Any, policy: Any, reference: Any, kl: Any, desirable: Any, **options: Any) -> Any:
        inputs = LossInputs(policy, reference, token_kl_BP=kl, desirable_B=desirable, mismatched_kl=jnp.float32(0.3))
        state = entry.state() if entry.state else None
        beta = {name: knob.default for name, knob in knobs(entry.function).items() if name == "beta"}
        return entry.call(inputs, state=state, key=jax.random.key(0), **beta | options)[0]

    return {name: partial(loss, entry) for name, entry in LOSSES.items() if not entry.reads_errors}


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median of some calls, each waited for."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return median(times)


def measure(pairs: int, *, repeats: int = 5) -> dict[str, Any]:
    """Seconds for each loss alone (value, and value with gradient), for all in one program, and the compilations."""
    data = made_up(pairs)
    losses = calls()
    result: dict[str, Any] = {"pairs": pairs, "losses": {}}
    for name, loss in losses.items():
        value = jax.jit(lambda policy, *rest, loss=loss: loss(policy, *rest).mean())
        both = jax.jit(jax.value_and_grad(lambda policy, *rest, loss=loss: loss(policy, *rest).mean()))
        jax.block_until_ready((value(*data), both(*data)))
        result["losses"][name] = [seconds(lambda f=f: f(*data), repeats) for f in (value, both)]
    everything = jax.jit(lambda *data: {name: loss(*data).mean() for name, loss in losses.items()})
    jax.block_until_ready(everything(*data))
    result["all, one program"] = seconds(lambda: everything(*data), repeats)
    result["all, one after the other"] = sum(value for value, _ in result["losses"].values())
    result["compilations for ten betas"] = {
        name: compilations(loss, data) for name, loss in losses.items() if "beta" in knobs(LOSSES[name].function)
    }
    return result


def compilations(loss: Loss, data: tuple) -> int:
    """The number of compilations for ten betas."""
    traced = jax.jit(lambda beta, *data: loss(*data, beta=beta).mean())
    found = [float(traced(beta, *data)) for beta in BETAS]
    assert len(set(found)) > 1, "beta does nothing"
    return traced._cache_size()


def main() -> None:
    """Prints a small table, and writes JSON where asked."""
    options = parse(__doc__, pairs=100_000)
    result = measure(options.pairs) | {"machine": machine()}
    print(f"{result['pairs']} pairs on {result['machine']}; milliseconds after compilation")
    for name, (value, both) in sorted(result["losses"].items(), key=lambda item: -item[1][0]):
        print(f"  {name:24}{1000 * value:8.2f}  with gradient {1000 * both:8.2f}")
    for name in ("all, one program", "all, one after the other"):
        print(f"{name}: {result[name]:.3f} s")
    most = max(result["compilations for ten betas"].values())
    print(f"compilations for ten betas: {most} at most, over {len(result['compilations for ten betas'])} losses")
    keep(options, result)


if __name__ == "__main__":
    main()
