"""The gradient field of a loss over the two numbers that it reads of a pair: how likely chosen and rejected are.

Both move freely here. That all probabilities sum to one is no part of the field, nor that one network gives both
(`displacement`).

Steepest descent, dz/dt = -dL/dz, is another curve in other coordinates z. With y = log pi, in nats, it is

    logp         z = y            dy/dt = -dL/dy
    ratio        z = pi / pi_ref  dy/dt = -(dL/dy) / z^2
    probability  z = pi           dy/dt = -(dL/dy) / z^2

so in the last two the response that is less likely (ratio: has lost more) moves faster. If the loss reads the margin
of the log-ratios alone, as DPO, IPO and the hinge do, then

    logp         both halves move equally fast; y_w + y_l is conserved
    ratio        |dL/dx_l| / |dL/dx_w| = x_w / x_l; x_w^2 + x_l^2 is conserved
    probability  the same of pi_w and pi_l

and each line holds in its own coordinates only. Of DPO, with x = pi / pi_ref: dL/dx_w = -beta x_l^beta / (x_w D) and
dL/dx_l = beta x_l^(beta - 1) / D, D = x_w^beta + x_l^beta; Feng et al. 2024, arXiv:2404.04626.

Dimension key: N points, 2 chosen and rejected, S points of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dpo_jax.errors import nearest
from dpo_jax.losses import LOSSES, PairLogps

Coordinates = Literal["probability", "ratio", "logp"]
PairLoss = Callable[[PairLogps, PairLogps], jax.Array]
"""(policy, reference) -> losses, all of pairs that do not know of each other."""


def unsuited(name: str) -> str | None:
    """Why a loss of the table has no field over two numbers; None where it has one."""
    known = [each for each, loss in LOSSES.items() if not loss.reads_errors]
    if name not in known:
        return f"{name!r} is unknown. {nearest(name, known)}"
    if LOSSES[name].needs_distribution:
        return f"{name} reads the distribution at every token, not only the log-probs of the two responses"
    if LOSSES[name].reads_labels:
        return f"{name} reads labelled completions, not pairs"
    if LOSSES[name].batch_global:
        return f"{name} depends on the other pairs of the batch, not on one alone"
    return None


def pair_loss(name: str, **options: Any) -> PairLoss:
    """A loss of the table with its options. `bco_pair` takes its level as `delta`.

    Raises:
        ValueError: the loss has no field; the message says why.
    """
    if reason := unsuited(name):
        raise ValueError(reason)
    loss = LOSSES[name]
    if loss.needs_reference:
        return lambda policy, reference: loss.function(policy, reference, **options)
    return lambda policy, reference: loss.function(policy, **options)


def weighted_sum(losses: Sequence[tuple[float, PairLoss]]) -> PairLoss:
    """Several losses as one."""

    def total(policy: PairLogps, reference: PairLogps) -> jax.Array:
        return jnp.stack([weight * loss(policy, reference) for weight, loss in losses]).sum(axis=0)

    return total


def gradient(loss: PairLoss, points_N2: ArrayLike, *, coordinates: Coordinates, reference: PairLogps) -> jax.Array:
    """dL/dz at points z, in the same coordinates, by differentiating the loss itself; [N, 2].

    Args:
        loss: see `pair_loss`.
        points_N2: how likely chosen and rejected are. Probabilities are of whole responses: they must be short.
        coordinates: what the points are.
        reference: of one pair, numbers: log-probs, nats, and token counts where the loss reads those.
    """

    def total(points_N2: jax.Array) -> jax.Array:
        return _losses(loss, _logps(points_N2, coordinates, reference), reference).sum()

    return jax.grad(total)(jnp.asarray(points_N2, float))


def descent(loss: PairLoss, points_N2: ArrayLike, *, coordinates: Coordinates, reference: PairLogps) -> jax.Array:
    """The direction of steepest descent, -dL/dz, [N, 2]; see `gradient`."""
    return -gradient(loss, points_N2, coordinates=coordinates, reference=reference)


def flow(
    loss: PairLoss,
    start_N2: ArrayLike,
    *,
    coordinates: Coordinates,
    reference: PairLogps,
    duration: float,
    steps: int = 200,
) -> jax.Array:
    """Gradient descent in continuous time, dz/dt = -dL/dz, from `start_N2` on; [S, N, 2], S = steps + 1.

    By the classical Runge-Kutta method. A point stays where a further step would not lower its loss: at a minimum, or
    at the edge where a probability ends.
    """

    def velocity(points_N2: jax.Array) -> jax.Array:
        return descent(loss, points_N2, coordinates=coordinates, reference=reference)

    def value(points_N2: jax.Array) -> jax.Array:
        return _losses(loss, _logps(points_N2, coordinates, reference), reference)

    return _integrate(velocity, value, start_N2, size=duration / steps, steps=steps)


def directions(loss: PairLoss, logps_N2: ArrayLike, *, coordinates: Coordinates, reference: PairLogps) -> jax.Array:
    """Directions of steepest descent in these coordinates, as unit vectors [N, 2]; NaN where nothing pulls.

    Other than the speed itself, they are known also where probabilities are too small for a float.
    """
    logps_N2 = jnp.asarray(logps_N2, float)
    slope_N2 = gradient(loss, logps_N2, coordinates="logp", reference=reference)
    log_z_N2 = {
        "logp": jnp.zeros_like(logps_N2),
        "ratio": logps_N2 - _numbers(reference),
        "probability": logps_N2,
    }[coordinates]
    # -(dL/dy) / z^2 by its logarithm, and without its size.
    size_N2 = jnp.log(jnp.abs(slope_N2)) - 2 * log_z_N2
    seen_N2 = -jnp.sign(slope_N2) * jnp.exp(size_N2 - size_N2.max(axis=1, keepdims=True))
    return seen_N2 / jnp.linalg.norm(seen_N2, axis=1, keepdims=True)


def flow_lines(
    loss: PairLoss,
    logps_N2: ArrayLike,
    *,
    coordinates: Coordinates,
    reference: PairLogps,
    length: float,
    steps: int = 200,
) -> jax.Array:
    """The curves of `flow` in these coordinates, drawn in log-probs: from `logps_N2` on, `length` nats; [S, N, 2].

    They follow `directions`, in equal steps along the curve instead of in time.
    """

    def direction(logps_N2: jax.Array) -> jax.Array:
        return directions(loss, logps_N2, coordinates=coordinates, reference=reference)

    def value(logps_N2: jax.Array) -> jax.Array:
        return _losses(loss, logps_N2, reference)

    return _integrate(direction, value, logps_N2, size=length / steps, steps=steps)


def _integrate(
    velocity: Callable[[jax.Array], jax.Array],
    value: Callable[[jax.Array], jax.Array],
    start_N2: ArrayLike,
    *,
    size: float,
    steps: int,
) -> jax.Array:
    def step(point_N2: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        one = velocity(point_N2)
        two = velocity(point_N2 + 0.5 * size * one)
        three = velocity(point_N2 + 0.5 * size * two)
        four = velocity(point_N2 + size * three)
        moved_N2 = point_N2 + size / 6 * (one + 2 * two + 2 * three + four)
        lower_N = value(moved_N2) < value(point_N2)  # beyond an edge it is NaN, which is not lower
        point_N2 = jnp.where(lower_N[:, None], moved_N2, point_N2)
        return point_N2, point_N2

    start_N2 = jnp.asarray(start_N2, float)
    _, path_SN2 = jax.lax.scan(step, start_N2, None, length=steps)
    return jnp.concatenate([start_N2[None], path_SN2])


def _numbers(reference: PairLogps) -> jax.Array:
    """The reference's log-probs, [1, 2]."""
    return jnp.stack([jnp.asarray(reference.chosen, float), jnp.asarray(reference.rejected, float)])[None]


def _logps(points_N2: jax.Array, coordinates: Coordinates, reference: PairLogps) -> jax.Array:
    if coordinates == "logp":
        return points_N2
    return jnp.log(points_N2) + (_numbers(reference) if coordinates == "ratio" else 0.0)


def _losses(loss: PairLoss, logps_N2: jax.Array, reference: PairLogps) -> jax.Array:
    """The loss at each point, [N]."""
    frozen: PairLogps = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, float), len(logps_N2)), reference)
    policy = frozen._replace(chosen=logps_N2[:, 0], rejected=logps_N2[:, 1])
    return loss(policy, frozen)
