"""The loop: what is logged and saved when, resuming, and a loss that is not finite."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from dpo_jax.training import loop
from dpo_jax.training.loop import Placed, prefetch
from dpo_jax.training.state import TrainState


def state(step: int = 0) -> TrainState:
    return TrainState(jnp.asarray(step, jnp.int32), {"seen": jnp.zeros(())}, (), jnp.zeros(2))


def step(now: TrainState, batch, knobs):
    loss = jnp.where(batch == knobs["bad"], jnp.nan, batch * 1.0)
    params = {"seen": now.params["seen"] + batch}
    return now._replace(step=now.step + 1, params=params), {"loss": loss, "grad_norm": loss, "knob": knobs["number"]}


def run(first: int = 0, *, steps: int = 7, bad: int = -1, log_every: int = 1, save_every: int | None = 3):
    logged: dict[int, dict[str, float]] = {}
    saved: dict[int, float] = {}
    read: list[int] = []

    def after(number: int, now: TrainState) -> tuple[TrainState, dict[str, float]]:
        if number == 4:
            return now, {"eval/seen": float(now.params["seen"])}
        # what a measurement changes is saved with the step and goes on to the next
        return now._replace(memory=jnp.asarray(number)), {}

    def read_batch(number: int) -> Placed:
        read.append(number)
        return Placed(jnp.asarray(float(number)), {"pairs": 2, "tokens": 10})

    last = loop.run(
        step,
        state(first),
        read_batch,
        lambda number: {"bad": float(bad), "number": number},
        steps=steps,
        log=lambda number, values: logged.update({number: values}),
        log_every=log_every,
        save=lambda number, now: saved.update({number: float(now.params["seen"])}),
        save_every=save_every,
        after=after,
    )
    return last, logged, saved, read


def test_logs_each_step_and_saves_every_third_and_the_last():
    last, logged, saved, read = run()
    assert list(logged) == [1, 2, 3, 4, 5, 6, 7] and read == list(range(7))
    assert [values["loss"] for values in logged.values()] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    ]  # step k, counted from 1, is batch k-1
    assert saved == {3: 0 + 1 + 2, 6: 15, 7: 21} and int(last.step) == 7
    assert [values["knob"] for values in logged.values()] == list(range(7))  # those of step k, counted from 0
    assert int(last.memory) == 7
    assert logged[4]["eval/seen"] == 6 and "eval/seen" not in logged[5]
    assert logged[2]["tokens_per_second"] == pytest.approx(5 * logged[2]["pairs_per_second"])


def test_resumes_at_the_batch_of_its_step():
    _, logged, _, read = run(first=4)
    assert read == [4, 5, 6] and list(logged) == [5, 6, 7]


def test_logs_less_often_but_always_the_last():
    assert list(run(log_every=3)[1]) == [3, 6, 7]


@pytest.mark.parametrize("bad", [1, 2, 6])
def test_a_loss_that_is_not_finite_stops_before_anything_of_it_is_saved(bad: int):
    with pytest.raises(FloatingPointError, match=f"step {bad + 1}: the loss is nan"):
        run(bad=bad)
    saved: dict[int, float] = {}
    with pytest.raises(FloatingPointError):
        loop.run(
            step, state(), lambda n: Placed(jnp.asarray(float(n)), {}),
            lambda n: {"bad": float(bad), "number": n}, steps=7,
            log=lambda *_: None, log_every=1, save=lambda n, _: saved.update({n: 0.0}), save_every=1,
        )  # fmt: skip
    assert max(saved, default=0) == bad


def test_an_error_while_reading_reaches_the_caller():
    def read(number: int) -> Placed:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prefetch(read, 0, 3))
