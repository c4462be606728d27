"""The loop: what is logged and saved when, resuming, and a loss that is not finite."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest

from dpo_jax.training.loop import Callbacks, NotFinite, Pace, Placed, TooManySkips, prefetch, train_loop
from dpo_jax.training.state import TrainState


def state(step: int = 0) -> TrainState:
    return TrainState(jnp.asarray(step, jnp.int32), {"seen": jnp.zeros(())}, (), jnp.zeros(2))


def step(now: TrainState, batch, knobs):
    bad = (batch >= knobs["bad"][0]) & (batch < knobs["bad"][1])
    loss = jnp.where(bad, jnp.nan, batch * 1.0)
    params = {"seen": now.params["seen"] + jnp.where(bad, knobs["harm"], batch)}
    return now._replace(step=now.step + 1, params=params), {"loss": loss, "grad_norm": loss, "knob": knobs["number"]}


def run(
    first: int = 0,
    *,
    steps: int = 7,
    bad: tuple[int, int] = (-1, -1),
    harm: float = 0.0,
    skips_allowed: int = 0,
    stop_after: int = 0,
    log_every: int = 1,
    save_every: int | None = 3,
    saved: dict[int, float] | None = None,
):
    logged: dict[int, dict[str, float]] = {}
    saved = {} if saved is None else saved
    read: list[int] = []

    def after(number: int, now: TrainState) -> tuple[TrainState, dict[str, float]]:
        if number == 4:
            return now, {"eval/seen": float(now.params["seen"])}
        # what a measurement changes is saved with the step and goes on to the next
        return now._replace(loss_state=jnp.asarray(number)), {}

    def read_batch(number: int) -> Placed:
        read.append(number)
        return Placed(jnp.asarray(float(number)), {"pairs": 2, "tokens": 10}, [f"row-{number}"])

    last = train_loop(
        step,
        state(first),
        read_batch,
        lambda number: {"bad": bad, "harm": harm, "number": number},
        steps=steps,
        pace=Pace(log_every=log_every, save_every=save_every, skips_allowed=skips_allowed),
        callbacks=Callbacks(
            log=lambda number, values: logged.update({number: values}),
            save=lambda number, now: saved.update({number: float(now.params["seen"])}),
            after=after,
            stops=lambda: max(read) > stop_after > 0,
        ),
    )
    return last, logged, saved, read


def test_logs_each_step_and_saves_every_third_and_the_last():
    last, logged, saved, read = run()
    assert list(logged) == [1, 2, 3, 4, 5, 6, 7] and read == list(range(7))
    assert [values["loss"] for values in logged.values()] == [*range(7)]  # step k, counted from 1, is batch k-1
    assert saved == {3: 0 + 1 + 2, 6: 15, 7: 21} and int(last.step) == 7
    assert [values["knob"] for values in logged.values()] == list(range(7))  # those of step k, counted from 0
    assert int(last.loss_state) == 7
    assert logged[4]["eval/seen"] == 6 and "eval/seen" not in logged[5]
    assert logged[2]["tokens_per_second"] == pytest.approx(5 * logged[2]["pairs_per_second"])


def test_resumes_at_the_batch_of_its_step():
    _, logged, _, read = run(first=4)
    assert read == [4, 5, 6] and list(logged) == [5, 6, 7]


def test_logs_less_often_but_always_the_last_and_what_was_measured():
    assert list(run(log_every=3)[1]) == [3, 4, 6, 7]


@pytest.mark.parametrize("bad", [1, 2, 6])
def test_too_many_skipped_steps_stop_with_their_rows(bad: int):
    saved: dict[int, float] = {}
    with pytest.raises(TooManySkips, match=f"(?s)step {bad + 1} was skipped: the loss of.* is nan.*row-{bad}[.]"):
        run(bad=(bad, bad + 1), save_every=1, saved=saved)
    assert max(saved, default=0) == bad
    with pytest.raises(TooManySkips, match=f"(?s)steps {bad + 1} to {bad + 3} were skipped.*row-{bad + 2}[.]"):
        run(bad=(bad, bad + 3), skips_allowed=2, steps=10, save_every=None)


def test_a_few_skipped_steps_are_logged_as_they_are():
    _, logged, saved, _ = run(bad=(1, 3), skips_allowed=2, log_every=7)
    assert list(logged) == [2, 3, 4, 7]  # step 4 for what was measured after it
    assert all(math.isnan(logged[number]["loss"]) for number in (2, 3)) and logged[7]["loss"] == 6
    assert saved == {3: 0, 6: 3 + 4 + 5, 7: 18}


def test_skipped_steps_count_only_in_a_row():
    with pytest.raises(TooManySkips):
        run(bad=(2, 4), skips_allowed=1)
    logged: list[int] = []
    train_loop(
        lambda now, batch, knobs: (now, {"loss": jnp.where(batch % 2 == 0, jnp.inf, 0.0), "grad_norm": jnp.zeros(())}),
        state(), lambda n: Placed(jnp.asarray(n), {}), lambda n: {}, steps=9, pace=Pace(log_every=100, skips_allowed=1),
        callbacks=Callbacks(log=lambda n, _: logged.append(n), save=lambda *_: None),
    )  # fmt: skip
    assert logged == [1, 3, 5, 7, 9]


def test_parameters_that_are_not_finite_are_named_where_no_step_counts_any_more():
    with pytest.raises(NotFinite, match="step 4: seen is not finite, and so nothing that is computed with it"):
        run(bad=(2, 4), harm=float("nan"), skips_allowed=1)


def test_stops_when_told_to_with_its_state_saved():
    last, logged, saved, _ = run(stop_after=4, save_every=None)
    assert int(last.step) < 7 and list(saved) == [int(last.step)] and max(logged) == int(last.step)
    assert run(first=int(last.step))[1].keys() == set(range(int(last.step) + 1, 8))


def test_an_error_while_reading_reaches_the_caller():
    def read(number: int) -> Placed:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prefetch(read, 0, 3))
