"""The `dpo` loss by value: what TRL computed in float64, recorded in trl_golden_dpo.json (no torch needed here).

The file holds log-probs of six pairs and, for each case, the batch mean of the loss, its gradient with respect to each
response log-prob, and TRL's metrics.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, dpo, preference_metrics

GOLDEN = json.loads((Path(__file__).parent / "trl_golden_dpo.json").read_text(encoding="utf8"))


@pytest.fixture
def pairs(x64) -> tuple[PairLogps, PairLogps]:
    """Policy and reference in float64."""
    return (
        PairLogps(jnp.asarray(GOLDEN["chosen"]), jnp.asarray(GOLDEN["rejected"])),
        PairLogps(jnp.asarray(GOLDEN["reference_chosen"]), jnp.asarray(GOLDEN["reference_rejected"])),
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_loss_and_gradient_equal_trl(case, pairs):
    policy, reference = pairs
    loss, gradient = jax.value_and_grad(lambda p: dpo(p, reference, beta=case["beta"]).mean())(policy)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-9)
    np.testing.assert_allclose(gradient.chosen, case["grad_chosen"], rtol=1e-9)
    np.testing.assert_allclose(gradient.rejected, case["grad_rejected"], rtol=1e-9)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_metrics_equal_trl(case, pairs):
    ours = preference_metrics(*pairs, beta=case["beta"])
    assert set(case["metrics"]) <= set(ours)
    for name, value in case["metrics"].items():
        np.testing.assert_allclose(ours[name].mean(), value, rtol=1e-9, err_msg=name)
