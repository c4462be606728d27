"""The battery rejects wrong implementations: what it cannot reject, it does not test."""

from __future__ import annotations

import inspect
from pathlib import Path

import jax
import pytest

from tests.contracts.loss_cases import CASES, Case, over
from tests.contracts.wrong import wrong_losses
from tests.contracts.wrong_parts import MISTAKES, Mistake

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


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "_"))
def test_a_mistake_around_the_losses_is_rejected(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = {"tmp_path": tmp_path} if "tmp_path" in inspect.signature(mistake.check).parameters else {}
    monkeypatch.setattr(mistake.place, mistake.attribute, mistake.wrong(getattr(mistake.place, mistake.attribute)))
    with pytest.raises(REJECTED):
        mistake.check(**folder)
