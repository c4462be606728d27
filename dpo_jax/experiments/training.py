"""Trainings of an experiment: a `Training` from a section of its configuration, and its run.

Running is to resume, step, loop, log and save. Metrics go to a file and TensorBoard always, and to W&B where the
configuration names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from dpo_jax.config import LoggingConfig, OptimizerConfig, TrainConfig, as_mapping
from dpo_jax.config.resume import refuse_changes
from dpo_jax.errors import UserError, sized_by
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.reading import Origins, mistake
from dpo_jax.reference.store import Errors, Scores
from dpo_jax.runs.facts import facts_of, refuse_other
from dpo_jax.runs.run import Run, note_session
from dpo_jax.runtime.preemption import Notice, Preempted
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.runtime.watchdog import Watchdog
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.finite import NotFinite
from dpo_jax.training.loop import Callbacks, Pace, Placed, Step, TooManySkips, traced, train_loop
from dpo_jax.training.metrics import FunctionSink, JsonlSink, Sink, TensorBoardSink, WandbSink
from dpo_jax.training.optimizer import OPTIMIZERS, make_schedule
from dpo_jax.training.state import TrainState, create_state
from dpo_jax.training.training import Batches, Program, Trainable, Training
from dpo_jax.types import Objective, Params


class Section(Protocol):
    """A section of the configuration that describes a training: the whole of it, `sft` or `reward`."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length and batches."""
        ...


def make_training(
    section: Section,
    *,
    stage: str,
    folder: Path,
    model: Trainable,
    objective: Objective,
    batches: Batches,
    **more: Any,
) -> Training:
    """The training that a section describes; `more` are further fields of `Training`."""
    train, optimizer = section.train, section.optimizer
    steps = train.steps or batches.steps(train.epochs or 1.0)
    transform = OPTIMIZERS[optimizer.name](
        model.trained.axes,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        moment_dtype=optimizer.moment_dtype,
    )
    return Training(
        stage=stage,
        folder=folder,
        model=model,
        objective=objective,
        batches=batches,
        steps=steps,
        optimizer=transform,
        schedule=make_schedule(optimizer.schedule, warmup_steps=optimizer.warmup_steps, steps=steps),
        learning_rate=optimizer.learning_rate,
        pace=Pace(**{field.name: getattr(train, field.name) for field in dataclasses.fields(Pace)}),
        **more,
    )


def preference_training(
    experiment: Experiment, data: Any, scores: Scores | Errors | None, *, train: TrainConfig | None = None, **more: Any
) -> Training:
    """The training of the policy on preference rows; `scores` are those of the rows in the store, if there is one.

    `train` says how large its batches are, by default as the configuration does. `more` are further fields of
    `Training`: without them it starts as a run does, and the reference is loaded anew.
    """
    config, model = experiment.config, experiment.model
    start = (lambda: experiment.fresh_adapter(model, seed=config.seed)) if model.lora else experiment.start_params
    # With an adapter the base stands beside it whether it is also the reference or not.
    frozen = experiment.start_params if model.lora or experiment.live_reference else None
    return make_training(
        config,
        stage="train",
        folder=experiment.workdir,
        model=model,
        objective=experiment.objective(data),
        batches=experiment.batches(train or config.train, data, seed=config.seed, scores=scores),
        hyperparams=experiment.hyperparams,
        loss_state=experiment.loss_state,
        **{"seed": config.seed, "start": start, "frozen": frozen, **more},
    )


def fit(experiment: Experiment, training: Training) -> None:
    """Trains to the last step, from the newest checkpoint of its folder or from its start."""
    stage, folder = training.stage, training.folder
    check_batches(training.batches.count, training.batches.batch_pairs, stage, experiment.origins)
    record: dict[str, Any] = {"config": as_mapping(experiment.config), "steps": training.steps}
    checkpoints = Checkpoints(Run(folder).checkpoints, keep=training.pace.keep)
    done = checkpoints.latest()
    if done is not None:
        refuse_changes(stage, checkpoints.record(done), record)
    record["facts"] = training.facts()
    if done is not None:
        refuse_other(stage, folder, facts_of(checkpoints.record(done)), record["facts"])
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
        section = _section(stage)
        advice = f"lower {section}optimizer.learning_rate, or warm up over more steps, {section}optimizer.warmup_steps"
        raise UserError(f"{stage}: {error}\nThe optimizer went too far: {advice}.") from None
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


def check_batches(rows: int, batch_pairs: int, stage: str, origins: Origins) -> None:
    """Refuse a step of more rows than there are: it would hold some twice, and count them twice."""
    if batch_pairs > rows:
        says = f"is {batch_pairs}, but there are only {rows} rows: a step would hold some of them more than once. "
        raise mistake(f"{_section(stage)}train.batch_pairs", origins, f"{says}Set it to {rows} or less, or add rows.")


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
        step = _telling(stage, step)
        callbacks = Callbacks(
            log=lambda number, values: _log(stage, sinks, progress, number, values),
            save=save,
            after=training.callback,
            stops=stops,
            watched=dog.watched,
        )
        return train_loop(step, state, read, training.knobs, steps=steps, pace=pace, callbacks=callbacks)


def _telling(stage: str, step: Step) -> Step:
    """The step, which says before its first call that it is compiled then, and after it for how long."""
    told = False

    @functools.wraps(step)
    def telling(*arguments: Any) -> Any:
        nonlocal told
        if told:
            return step(*arguments)
        told, start = True, time.perf_counter()
        say(stage, "compiles the first step")
        result = step(*arguments)
        say(stage, f"compiled the first step in {time.perf_counter() - start:.1f} s")
        return result

    return telling


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


def check_sinks(logging: LoggingConfig, origins: Origins) -> None:
    """Miss a package now, as a UserError, rather than after the reference pass."""
    if not logging.wandb or jax.process_index():
        return
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        says = "the package wandb is not installed; run `pip install wandb`, or leave this out."
        raise mistake("logging.wandb", origins, says) from None


def open_sinks(experiment: Experiment, stage: str, folder: Path, *, resume_step: int | None) -> list[Sink]:
    """One process writes the metrics; every process has the same ones."""
    if jax.process_index():
        return []
    config, remote = experiment.config, list[Sink]()
    if project := config.logging.wandb:  # before a file is opened: it may be refused
        check_sinks(config.logging, experiment.origins)
        named = {"project": project, "group": experiment.run.name, "stage": stage, "config": as_mapping(config)}
        try:
            remote = [WandbSink(folder, **named, metrics=Run(folder).metrics, resume_step=resume_step)]
        except ConnectionError as error:
            raise mistake("logging.wandb", experiment.origins, str(error)) from None
    return [
        JsonlSink(Run(folder).metrics, resume_step=resume_step),
        TensorBoardSink(Run(folder).tensorboard, resume_step=resume_step),
        *(map(FunctionSink, experiment.watchers) if stage == "train" else ()),
        *remote,
    ]
