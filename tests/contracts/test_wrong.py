"""The battery rejects wrong implementations: what it cannot reject, it does not test."""

from __future__ import annotations

import inspect
from pathlib import Path

import jax
import pytest

from tests.contracts import test_losses as battery
from tests.contracts.loss_cases import CASES, Case, over
from tests.contracts.wrong import wrong_losses
from tests.contracts.wrong_parts import COMPILED, MISTAKES, Mistake

REJECTED = (AssertionError, pytest.fail.Exception, jax.errors.ConcretizationTypeError)


def accepted(case: Case, by_value: bool) -> list[str]:
    """The mistakes that the battery does not notice; those seen by value cost no compilation."""
    found = []
    for wrong in wrong_losses(case):
        if (wrong.check is battery.test_value_and_gradient_of_the_formula) == by_value:
            try:
                wrong.check(wrong.case)
                found += [wrong.name] if not wrong.harmless else []
            except REJECTED:
                assert not wrong.harmless, f"{wrong.name}: it is not true that {case.name} {wrong.harmless}"
    return found


@over(CASES)
def test_the_formula_rejects_wrong_values_and_gradients(case: Case):
    assert not accepted(case, by_value=True)


@pytest.mark.slow("three compilations for each of all losses")
@over(CASES)
def test_the_battery_rejects_what_shows_far_out_or_in_how_a_loss_is_called(case: Case):
    assert not accepted(case, by_value=False)


SLOW = pytest.mark.slow("a program for each mistake; what stands on disk or in batches is mistaken in the default run")


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(mistake, marks=SLOW if mistake in COMPILED else ()) for mistake in MISTAKES],
    ids=lambda mistake: mistake.name.replace(" ", "_"),
)
def test_a_mistake_around_the_losses_is_rejected(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And what is right is accepted."""

    def check(folder: Path) -> None:
        folder.mkdir()
        mistake.check(**{"tmp_path": folder} if "tmp_path" in inspect.signature(mistake.check).parameters else {})

    check(tmp_path / "right")
    jax.clear_caches()  # what is compiled would stay right
    monkeypatch.setattr(mistake.place, mistake.attribute, mistake.wrong(getattr(mistake.place, mistake.attribute)))
    with pytest.raises(REJECTED):
        check(tmp_path / "wrong")
    jax.clear_caches()  # and here wrong, for other tests
