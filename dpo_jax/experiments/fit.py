"""Running a `Training`: resume, step, loop, logs, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from dpo_jax.config import as_mapping
from dpo_jax.config.resume import refuse_changes
from dpo_jax.errors import UserError
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.experiments.sinks import open_sinks
from dpo_jax.runs.run import Run, note_session
from dpo_jax.runtime.preemption import Notice, Preempted
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.runtime.translate import sized_by
from dpo_jax.runtime.watchdog import Watchdog
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.loop import Callbacks, NotFinite, Placed, TooManySkips, traced, train_loop
from dpo_jax.training.metrics import Sink
from dpo_jax.training.state import TrainState, create_state
from dpo_jax.training.training import Program, Training
from dpo_jax.types import Params


def fit(experiment: Experiment, training: Training) -> None:
    """Trains to the last step, from the newest checkpoint of its folder or from its start."""
    stage, folder = training.stage, training.folder
    record = {"config": as_mapping(experiment.config), "steps": training.steps}
    checkpoints = Checkpoints(Run(folder).checkpoints, keep=training.pace.keep)
    done = checkpoints.latest()
    if done is not None:
        refuse_changes(stage, checkpoints.record(done), record)
    # WORKDIR/config.yaml is of the policy, for its report: a fine-tuning writes it where there is none yet.
    if stage == "train" or (stage == "sft" and not Checkpoints(experiment.run.checkpoints).steps()):
        experiment.keep_config(experiment.workdir)
    elif stage == "reward":
        experiment.keep_config(folder)
    if done is not None and done >= training.steps:
        say(stage, f"already done: step {done} in {folder / 'checkpoints'}")
        return
    note_session(folder, experiment.command, from_step=done)
    shardings = experiment.batch_shardings(training.batches.batch(done or 0).arrays, micro_batches=True)
    program = training.program(experiment.mesh, shardings)
    state = _opened(training, program, checkpoints, done)
    sinks = open_sinks(experiment, stage, folder, resume_step=done)
    try:
        reached = int(_run(experiment, training, program, state, checkpoints, sinks, record).step)
    except TooManySkips as error:
        section = _section(stage)
        advice = f"lower {section}optimizer.learning_rate, or allow more in a row with {section}train.skips_allowed"
        raise UserError(f"{error}\nLook at them, {advice}.") from None
    except NotFinite as error:
        raise UserError(str(error)) from None
    for sink in sinks:
        sink.close(done=reached == training.steps)
    if reached < training.steps:
        raise Preempted(
            f"{stage}: told to stop, and saved step {reached} of {training.steps}; the same command goes on from there"
        )
    say(stage, f"done: {training.steps} steps, checkpoint in {folder / 'checkpoints'}")


def _section(stage: str) -> str:
    """The prefix of a training's settings."""
    return "" if stage == "train" else f"{stage}."


def _opened(training: Training, program: Program, checkpoints: Checkpoints, done: int | None) -> TrainState:
    """The state before the first step, or that of the newest checkpoint."""
    # Frozen parameters that never move are read again where they came from; a checkpoint holds what has changed.
    moves = training.objective.refresh is not None
    frozen = training.frozen() if training.frozen and (done is None or not moves) else None
    if done is not None:
        state = restored(training, program, checkpoints, done, frozen=frozen)
        say(training.stage, f"resumes at step {done} of {training.steps}")
        return state
    state = create_state(
        training.start(),
        program.optimizer,
        program.shardings,
        seed=training.seed,
        loss_state=training.loss_state,
        frozen=frozen,
    )
    training.check(state)
    if not moves:
        _say_what_is_trained(training.stage, state)
    return state


def _run(
    experiment: Experiment,
    training: Training,
    program: Program,
    state: TrainState,
    checkpoints: Checkpoints,
    sinks: Sequence[Sink],
    record: dict[str, Any],
) -> TrainState:
    """The loop with what is around it: progress, trace, watchdog, signals, sinks, checkpoints."""
    stage, steps, done, pace = training.stage, training.steps, int(state.step), training.pace
    section = _section(stage)
    profile = experiment.config.profile
    if profile.num_steps and profile.start_step >= steps:
        say(stage, f"no trace: profile.start_step is {profile.start_step}, and there are {steps} steps")
    tracing = traced(program.step, Run(training.folder).profile, done=done, **dataclasses.asdict(profile))
    limit = f"{section}train.step_timeout_seconds"
    dog, notice = Watchdog(stage, limit_seconds=pace.step_timeout_seconds, limit_name=limit), Notice()
    keeps_frozen = training.objective.refresh is not None

    def read(number: int) -> Placed:
        batch = training.batches.batch(number)
        return Placed(experiment.place(batch.arrays, micro_batches=True), batch.work, batch.row_ids)

    def save(number: int, state: TrainState) -> None:
        checkpoints.save(number, state if keeps_frozen else state._replace(frozen=None), record)

    def stops() -> bool:
        checkpoints.check()
        return notice.reached()

    progress, whole = Progress(stage, steps, done=done), _whole_at_the_end(checkpoints, sinks)
    with progress, tracing as step, dog, notice, whole, sized_by(f"{section}train.micro_batch_pairs"):
        callbacks = Callbacks(
            log=lambda number, values: _log(stage, sinks, progress, number, values),
            save=save,
            after=training.callback,
            stops=stops,
            watched=dog.watched,
        )
        return train_loop(step, state, read, training.knobs, steps=steps, pace=pace, callbacks=callbacks)


def restored(
    training: Training, program: Program, checkpoints: Checkpoints, step: int, *, frozen: Params | None
) -> TrainState:
    """The state of a checkpoint. `frozen` are parameters beside it that never move; None where it holds those too."""
    saved = program if frozen is None else program._replace(shardings=program.shardings._replace(frozen=None))
    state = checkpoints.restore(step, training.state_shapes(saved))
    return state if frozen is None else state._replace(frozen=frozen)


@contextlib.contextmanager
def _whole_at_the_end(checkpoints: Checkpoints, sinks: Sequence[Sink]) -> Iterator[None]:
    """Finish what is being written; after an error close the sinks too, with nothing said of their own."""
    try:
        yield
        checkpoints.close()
    except BaseException:
        checkpoints.settle()
        for sink in sinks:
            with contextlib.suppress(OSError):  # their disk may be the same: what came first is said
                sink.close(done=False)
        raise


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
