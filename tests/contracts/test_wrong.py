"""The battery rejects wrong implementations: what it cannot reject, it does not test."""

from __future__ import annotations

import jax
import pytest

from tests.contracts.loss_cases import CASES, Case, over
from tests.contracts.wrong import wrong_losses

REJECTED = (AssertionError, pytest.fail.Exception, jax.errors.ConcretizationTypeError)


@over(CASES)
def test_the_battery_rejects_what_is_wrong_with_a_loss(case: Case):
    accepted = []
    for wrong in wrong_losses(case):
        try:
            wrong.check(wrong.case)
            accepted += [wrong.name] if not wrong.harmless else []
        except REJECTED:
            assert not wrong.harmless, (
                f"{wrong.name} is rejected: it is not true of {case.name} that it {wrong.harmless}"
            )
    assert not accepted, f"the battery accepts a {case.name} that {accepted}"
