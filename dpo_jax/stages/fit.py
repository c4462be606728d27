"""Training as `sft` and `train` share it: resume, step, loop, logs, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from dpo_jax.config import OptimizerConfig, TrainConfig, as_mapping
from dpo_jax.stages.experiment import Experiment
from dpo_jax.stages.history import note_session
from dpo_jax.stages.preemption import Notice, Preempted
from dpo_jax.stages.program import Program, Trainable, make_program
from dpo_jax.stages.progress import Progress, say
from dpo_jax.stages.resume import refuse_changes
from dpo_jax.stages.sinks import open_sinks
from dpo_jax.stages.watchdog import Watchdog
from dpo_jax.training import loop
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.metrics import Sink
from dpo_jax.training.profile import traced
from dpo_jax.training.state import TrainState, create_state
from dpo_jax.training.step import Knobs, Objective
from dpo_jax.types import Params


class Batches(Protocol):
    """Batches by their step: those of texts and those of pictures."""

    def steps(self, epochs: float) -> int:
        """How many steps pass over the data `epochs` times."""
        ...

    def batch(self, step: int) -> Any:
        """The batch of one step; it has `arrays` and `work`."""
        ...


def planned_steps(train: TrainConfig, batches: Batches) -> int:
    """How many steps a run takes."""
    return train.steps or batches.steps(train.epochs or 1.0)


def fit(
    setup: Experiment,
    *,
    stage: str,
    folder: Path,
    model: Trainable,
    start: Callable[[], Params],
    objective: Objective,
    batches: Batches,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    knobs: Callable[[int], Knobs] = lambda step: {},
    memory: Any = (),
    frozen: Callable[[], Params] | None = None,
    check: Callable[[TrainState], None] = lambda state: None,
    after: Callable[[int, TrainState], tuple[TrainState, dict[str, float]]] | None = None,
    seed: int | None = None,
) -> None:
    """Trains to the last planned step, from the newest checkpoint in `folder` or from `start()`.

    What is trained of `model` is its adapter, if it has one. `knobs` gives the objective's numbers for each step,
    `memory` is what it remembers before the first, `frozen()` gives the parameters beside those that are trained.
    `check` sees the state before the first step; `after` as in `loop.run`; `seed` is by default that of the run.
    """
    steps = planned_steps(train, batches)
    record = {"config": as_mapping(setup.config), "steps": steps}
    checkpoints = Checkpoints(folder / "checkpoints", keep=train.keep)
    done = checkpoints.latest()
    if done is not None:
        refuse_changes(stage, checkpoints.record(done), record)
    # WORKDIR/config.yaml is of the policy, for its report.
    setup.keep_config(folder if stage == "reward" else setup.workdir)
    if done is not None and done >= steps:
        say(stage, f"already done: step {done} in {folder / 'checkpoints'}")
        return
    note_session(setup, folder, from_step=done)
    program = make_program(
        setup,
        model=model,
        objective=objective,
        optimizer=optimizer,
        batch=batches.batch(done or 0).arrays,
        steps=steps,
        memory=memory,
        has_frozen=frozen is not None,
    )
    # Frozen parameters that never move are read again where they came from; a checkpoint holds what has changed.
    keeps_frozen = objective.refresh is not None
    still = frozen() if frozen and (done is None or not keeps_frozen) else None
    if done is None:
        first: int = setup.config.seed if seed is None else seed
        state = create_state(start(), program.optimizer, program.shardings, seed=first, memory=memory, frozen=still)
        check(state)
        if objective.refresh is None:
            _say_what_is_trained(stage, state)
    else:
        state = restored(checkpoints, done, program, model, memory=memory, frozen=still)
        say(stage, f"resumes at step {done} of {steps}")
    del still
    sinks = open_sinks(setup, stage, folder, resume_step=done)
    profile = setup.config.profile
    if profile.num_steps and profile.start_step >= steps:
        say(stage, f"no trace: profile.start_step is {profile.start_step}, and there are {steps} steps")
    tracing = traced(program.step, folder / "profile", done=done or 0, **dataclasses.asdict(profile))
    dog, notice = Watchdog(stage, limit_seconds=train.step_timeout_seconds), Notice()

    def stops() -> bool:
        checkpoints.check()
        return notice.reached()

    with Progress(stage, steps, done=done or 0) as progress, tracing as step, dog, notice:
        with _whole_at_the_end(checkpoints, sinks):
            last = loop.run(
                step,
                state,
                lambda number: _placed(setup, batches, number),
                lambda number: {"learning_rate": optimizer.learning_rate, **knobs(number)},
                steps=steps,
                log=lambda number, values: _log(stage, sinks, progress, number, values),
                log_every=train.log_every,
                save=lambda number, state: checkpoints.save(
                    number, state if keeps_frozen else state._replace(frozen=None), record
                ),
                save_every=train.save_every,
                after=after,
                skips_allowed=train.skips_allowed,
                stops=stops,
                watched=dog.watched,
            )
        reached = int(last.step)
        for sink in sinks:
            sink.close(done=reached == steps)
    if reached < steps:
        raise Preempted(
            f"{stage}: told to stop, and saved step {reached} of {steps}; the same command goes on from there"
        )
    say(stage, f"done: {steps} steps, checkpoint in {folder / 'checkpoints'}")


def restored(
    checkpoints: Checkpoints, step: int, program: Program, model: Trainable, *, memory: Any, frozen: Params | None
) -> TrainState:
    """The state of a checkpoint. `frozen` are parameters beside it that never move; None where it holds those too."""
    saved = program if frozen is None else program._replace(shardings=program.shardings._replace(frozen=None))
    state = checkpoints.restore(step, saved.state_shapes(model, memory))
    return state if frozen is None else state._replace(frozen=frozen)


@contextlib.contextmanager
def _whole_at_the_end(checkpoints: Checkpoints, sinks: Sequence[Sink]) -> Iterator[None]:
    """What is being written becomes whole; after an error the sinks are closed too, with nothing said of their own."""
    try:
        yield
        checkpoints.close()
    except BaseException:
        checkpoints.settle()
        for sink in sinks:
            with contextlib.suppress(OSError):  # their disk may be the same: what came first is said
                sink.close(done=False)
        raise


def _placed(setup: Experiment, batches: Batches, number: int) -> loop.Placed:
    batch = batches.batch(number)
    return loop.Placed(setup.place(batch.arrays, micro_batches=True), batch.work, batch.row_ids)


def _log(stage: str, sinks: Sequence[Sink], progress: Progress, number: int, values: dict[str, float]) -> None:
    if not math.isfinite(values["loss"] + values["grad_norm"]):
        say(stage, f"step {number} is skipped: loss {values['loss']}, gradient norm {values['grad_norm']}")
    for sink in sinks:
        sink.write(number, {"loss": values["loss"], **values})  # the loss first, for who reads the file
    rates = [f"{value:.4g} {name.removesuffix('_per_second')}/s" for name, value in values.items() if "_per_s" in name]
    progress.update(number, "  ".join([f"loss {values['loss']:.4f}", *rates]))


def _say_what_is_trained(stage: str, state: TrainState) -> None:
    """Of an adapter: how few numbers are trained, and the memory on all devices together."""
    if state.frozen is None:
        return
    (own, own_bytes), (base, base_bytes), (_, moments_bytes) = (
        (sum(x.size for x in leaves), sum(x.nbytes for x in leaves) / 1e6)
        for leaves in map(jax.tree.leaves, (state.params, state.frozen, state.optimizer))
    )
    say(
        stage,
        f"trains {own:,} numbers beside {base:,} frozen ones ({own / base:.2%}): {base_bytes:,.1f} MB frozen, "
        f"{own_bytes:,.1f} MB trained, as much again of gradients, {moments_bytes:,.1f} MB in the optimizer",
    )
