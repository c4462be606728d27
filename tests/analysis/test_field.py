"""The field of every loss: its slope against differences, DPO by its formula, and what is conserved where."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.analysis.field import descent, flow, flow_lines, gradient, pair_loss, unsuited, weighted_sum
from dpo_jax.losses import PAIRWISE, REFERENCE_FREE, STATEFUL, TOKEN_LEVEL, UNPAIRED, PairLogps, cpo, dpo, simpo

pytestmark = pytest.mark.usefixtures("x64")

TABLES: dict[str, Any] = {**PAIRWISE, **REFERENCE_FREE, **STATEFUL, **TOKEN_LEVEL, **UNPAIRED}
REFUSED = {"aot", "aot_unpaired", "alpha_dpo", "beta_dpo", "tdpo1", "tdpo2", "kto", "apo_zero_unpaired", "bco"}
COORDINATES: tuple[Any, ...] = ("probability", "ratio", "logp")
# Chosen is four times as likely as rejected, so that ratio and probability are not one up to a scale.
REFERENCE = PairLogps(*map(np.asarray, (np.log(0.2), np.log(0.05), 3.0, 2.0)))
PROBABILITIES = np.array([[0.25, 0.04], [0.12, 0.3], [0.4, 0.01]])


def points(coordinates: str) -> np.ndarray:
    reference = np.exp([REFERENCE.chosen, REFERENCE.rejected])
    found = {"probability": PROBABILITIES, "ratio": PROBABILITIES / reference, "logp": np.log(PROBABILITIES)}
    return found[coordinates]


def as_logps(points_n2: Any, coordinates: str) -> np.ndarray:
    frozen = np.array([REFERENCE.chosen, REFERENCE.rejected])
    return {"probability": np.log, "ratio": lambda x: np.log(x) + frozen, "logp": np.asarray}[coordinates](points_n2)


# Coordinates and losses know nothing of each other: each loss in one of them, one loss in all.
CASES = [("dpo", each) for each in COORDINATES] + [
    (name, "ratio") for name in sorted(TABLES.keys() - REFUSED - {"dpo"})
]


@pytest.mark.parametrize(("name", "coordinates"), CASES)
def test_the_gradient_of_every_loss_is_its_slope_in_the_coordinates(name: str, coordinates: Any):
    loss, at = pair_loss(name), points(coordinates)
    found = gradient(loss, at, coordinates=coordinates, reference=REFERENCE)

    def value(points_n2: np.ndarray) -> Any:
        logps = as_logps(points_n2, coordinates)
        whole = PairLogps(*(jnp.full(len(logps), x) for x in REFERENCE))
        return loss(whole._replace(chosen=jnp.asarray(logps[:, 0]), rejected=jnp.asarray(logps[:, 1])), whole)

    for side in (0, 1):
        step = 1e-6 * np.abs(at) * np.eye(2)[side]
        slope = (value(at + step) - value(at - step)) / (2 * step[:, side])
        np.testing.assert_allclose(found[:, side], slope, rtol=2e-5, atol=1e-5 * np.abs(found).max())
    np.testing.assert_array_equal(descent(loss, at, coordinates=coordinates, reference=REFERENCE), -found)


def test_losses_without_a_field_are_refused_by_name():
    assert {name for name in TABLES if unsuited(name)} == REFUSED
    reasons = {"aot": "other pairs of the batch", "tdpo2": "at every token", "bco": "labelled completions"}
    for name, reason in {**reasons, "alpha_dpo": "other pairs", "dop": "unknown.*dpo"}.items():
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            pair_loss(name)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_dpo_in_ratios_is_the_published_formula(beta: float):
    x1, x2 = np.array([[1.0, 1.0], [0.3, 2.0], [4.0, 0.01]]).T
    found = gradient(pair_loss("dpo", beta=beta), np.stack([x1, x2], 1), coordinates="ratio", reference=REFERENCE)
    below = x1**beta + x2**beta
    np.testing.assert_allclose(found[:, 0], -beta * x2**beta / (x1 * below), rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], beta * x2 ** (beta - 1) / below, rtol=1e-12)


MARGIN_LOSSES = [("dpo", {}), ("ipo", {"average": False, "beta": 0.02}), ("hinge", {"beta": 0.01}), ("exo_pair", {})]


@pytest.mark.parametrize(("name", "options"), MARGIN_LOSSES)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_rejected_half_is_steeper_by_the_quotient_of_the_coordinates(name: str, options: Any, coordinates: Any):
    at = points(coordinates)
    chosen, rejected = np.abs(gradient(pair_loss(name, **options), at, coordinates=coordinates, reference=REFERENCE)).T
    quotients = {other: np.divide(*points(other).T) for other in ("probability", "ratio")} | {"logp": np.ones(3)}
    for other, quotient in quotients.items():
        assert np.allclose(rejected / chosen, quotient, rtol=1e-9) == (other == coordinates)


def descended(loss: Any, coordinates: Any) -> Any:
    """A path of the flow from the first point on, a good part of the way to the edge; in log-probs 3 nats."""
    start = points(coordinates)[:1]
    slope = np.linalg.norm(gradient(loss, start, coordinates=coordinates, reference=REFERENCE))
    length = 3.0 if coordinates == "logp" else 0.7 * start.min()
    return flow(loss, start, coordinates=coordinates, reference=REFERENCE, duration=length / slope, steps=1000)


def conserved(path_SN2: Any, coordinates: str) -> dict[str, float]:
    """By what share each of the three sums changes along a path, at most."""
    logps = as_logps(path_SN2, coordinates)
    ratios = np.exp(logps - np.array([REFERENCE.chosen, REFERENCE.rejected]))
    sums = {"logp": logps.sum(-1), "ratio": (ratios**2).sum(-1), "probability": (np.exp(logps) ** 2).sum(-1)}
    return {name: float(np.abs(value / value[0] - 1).max()) for name, value in sums.items()}


@pytest.mark.parametrize(
    ("name", "options", "coordinates"),
    [("ipo", {"average": False, "beta": 0.02}, each) for each in COORDINATES]
    + [(name, options, "ratio") for name, options in MARGIN_LOSSES if name != "ipo"],
)
def test_the_flow_conserves_the_sum_of_its_own_coordinates_alone(name: str, options: Any, coordinates: Any):
    changed = conserved(descended(pair_loss(name, **options), coordinates), coordinates)
    assert changed.pop(coordinates) < 1e-5 and min(changed.values()) > 1e-3


def test_a_loss_that_reads_more_than_the_margin_conserves_nothing():
    for name in ("nca_pair", "sft"):
        assert min(conserved(descended(pair_loss(name), "ratio"), "ratio").values()) > 1e-3


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_flow_lines_are_the_curves_of_the_flow(coordinates: Any):
    """Every point of the flow lies on the line, and the line has the length that was asked for."""
    loss, start = pair_loss("nca_pair", beta=0.7), points(coordinates)[:1]
    logps = as_logps(descended(loss, coordinates), coordinates)[:, 0]
    line = np.asarray(
        flow_lines(
            loss, as_logps(start, coordinates), coordinates=coordinates, reference=REFERENCE, length=4.0, steps=2000
        )
    )[:, 0]
    assert np.linalg.norm(np.diff(line, axis=0), axis=1).sum() == pytest.approx(4.0, rel=1e-4)
    assert np.linalg.norm(logps[-1] - logps[0]) > 0.5
    along = np.interp(logps[:, 1], line[::-1, 1], line[::-1, 0])  # rejected falls all the way
    np.testing.assert_allclose(along, logps[:, 0], atol=1e-4)


def test_long_responses_have_lines_too():
    long = PairLogps(*map(np.asarray, (-300.0, -900.0)))
    line = flow_lines(pair_loss("dpo"), [[-300.0, -900.0]], coordinates="probability", reference=long, length=9.0)
    np.testing.assert_allclose(
        line[-1], [[-300.0, -909.0]], rtol=1e-9
    )  # the rejected one is far smaller: it alone moves


def test_a_line_ends_where_the_loss_does_not_fall_any_more():
    ipo = pair_loss("ipo", beta=0.25, average=False)  # its margin is 2
    line = flow_lines(ipo, [[0.0, 0.0]], coordinates="logp", reference=PairLogps(*np.zeros(2)), length=50, steps=1000)
    assert np.subtract(*line[-1, 0]) == pytest.approx(2.0, abs=0.1)
    assert (line[-1] == line[-100]).all()
    ratios = flow(pair_loss("dpo"), [[1.0, 0.05]], coordinates="ratio", reference=REFERENCE, duration=1e3, steps=500)
    assert np.isfinite(ratios).all() and (ratios > 0).all()  # rejected reaches 0 in finite time: it stays before it


def test_several_losses_with_weights_are_one():
    parts = [(0.5, pair_loss("dpo", beta=0.3)), (2.0, pair_loss("sft", nll_reduction="sequence"))]
    found = gradient(weighted_sum(parts), points("logp"), coordinates="logp", reference=REFERENCE)
    alone = [gradient(loss, points("logp"), coordinates="logp", reference=REFERENCE) for _, loss in parts]
    np.testing.assert_allclose(found, 0.5 * alone[0] + 2.0 * alone[1], rtol=1e-12)


def test_options_are_those_of_the_loss():
    policy, frozen = (PairLogps(*(jnp.array([float(x)]) for x in pair)) for pair in ((-3, -1, 3, 2), REFERENCE))
    for name, options, function in (("simpo", {"gamma": 0.3}, simpo), ("cpo", {"beta": 0.4}, cpo)):
        np.testing.assert_allclose(pair_loss(name, **options)(policy, frozen), function(policy, **options))
    np.testing.assert_allclose(pair_loss("dpo", beta=0.7)(policy, frozen), dpo(policy, frozen, beta=0.7))


def test_the_level_of_bco_is_a_number():
    found = jax.vmap(
        lambda delta: gradient(
            pair_loss("bco_pair", delta=delta), points("logp"), coordinates="logp", reference=REFERENCE
        )
    )(jnp.array([0.0, 1.0]))
    assert (np.abs(found[1, :, 0]) > np.abs(found[0, :, 0])).all()
