"""Why a run moved its log-probs as it did: trajectory, field, displacement and one step taken apart.

Dimension key: n rows, P slot in the pair, D width, A pairs of a batch (each a micro-batch of its own), B pairs,
S points of a path, 2 chosen and rejected.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.analysis.displacement import (
    Pulls,
    by_similarity,
    ches,
    edit_similarity,
    hidden_means,
    pair_pulls,
    rank_correlation,
)
from dpo_jax.analysis.field import PairLoss, pair_loss, unsuited, weighted_sum
from dpo_jax.analysis.trajectory import field_of, halves
from dpo_jax.config import AnalysisConfig
from dpo_jax.data.tokens import row_ids_of, take
from dpo_jax.errors import UserError, sized_by
from dpo_jax.evaluation.analysis import (
    Analysis,
    Course,
    Displacement,
    Field,
    Likeness,
    LikenessBin,
    OneStep,
    Pulled,
    PulledPair,
)
from dpo_jax.evaluation.intervals import bounded_interval, groups_of
from dpo_jax.evaluation.records import Halves
from dpo_jax.experiments.stores import complete_store, heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import preference_training, restored
from dpo_jax.files import read_json_lines
from dpo_jax.losses import PairLogps, RunningMean
from dpo_jax.mesh import constrain, replicated
from dpo_jax.objectives.terms import Term
from dpo_jax.reference.fingerprint import RowIndex, as_ids
from dpo_jax.reference.store import Scores, Store
from dpo_jax.reporting.plots import Rows, ends, series
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.optimizer import make_schedule
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import gradients
from dpo_jax.types import Objective, PairBatch, Params, TokenRow


def analyse(experiment: TextExperiment) -> Analysis:
    """The analysis of the newest checkpoint."""
    options, workdir = experiment.config.analysis or AnalysisConfig(), experiment.workdir
    step, log = Checkpoints(Run(workdir).checkpoints).latest(), Run(workdir).metrics
    if step is None or not log.exists():
        raise UserError(f"{workdir}: there is no trained run yet; run `dpo-jax train` first.")
    trajectory = read_trajectory(read_json_lines(log), where=str(log))
    store = _store(experiment)
    now, frozen, likeness, groups_n = _compared(experiment, store, options.rows)
    pair = _typical(frozen)
    loss, reason = loss_of_run(experiment.terms, experiment.restored_memory(), step)
    log_ratios_nP = now.logps_nP - frozen.logps_nP
    spread_N2 = np.concatenate([trajectory.places_S2, np.quantile(log_ratios_nP, [0.1, 0.9], axis=0)])
    spread_N2 = spread_N2[np.isfinite(spread_N2).all(axis=1)]
    stored = store if experiment.reads_store else None
    analysis = Analysis(
        settings=dataclasses.asdict(options),
        **experiment.run.measured(),
        trajectory=Course(kind=trajectory.kind, steps=trajectory.steps.tolist(), places=trajectory.places_S2.tolist()),
        field=Field.from_json(field_of(loss, pair, spread_N2)) if loss else Field(refused=reason),
        halves=Halves.from_json(halves(trajectory.moved_2, loss, pair)),
        displacement=displacement_of(
            "held out" if experiment.has_heldout else "training", now, frozen, likeness, groups_n
        ),
        one_step=one_step(experiment, step, stored, experiment.start_params, most_pairs=options.pairs),
    )
    _tell(analysis)
    return analysis


def _store(experiment: TextExperiment) -> Store | None:
    """The store that has the compared rows; None where training reads none, and no rows are held out."""
    if experiment.reads_store:
        return complete_store(experiment, experiment.start_params)
    return heldout_store(experiment, experiment.start_params) if experiment.has_heldout else None


def _compared(
    experiment: TextExperiment, store: Store | None, count: int
) -> tuple[Scores, Scores, dict[str, np.ndarray], np.ndarray]:
    """Of `count` rows the policy's and the reference's scores, how alike the responses of each are, and its prompt."""
    data = experiment.eval_data if experiment.has_heldout else experiment.train_data
    rows = data.rows[:count]
    base = experiment.start_params()

    row_ids, now = experiment.scorer(experiment.trained_params(base), rows)
    frozen = store.lookup(row_ids) if store else experiment.scorer(base, rows)[1]
    alike_n = np.array([edit_similarity(*row.responses) for row in rows])
    likeness = {"edit_similarity": alike_n, "ches": ches(_hidden_means(experiment, base, rows))}
    return now, frozen, likeness, groups_of([row.prompt.tobytes() for row in rows])


@sized_by("reference.batch_pairs")
def _hidden_means(experiment: TextExperiment, params: Params, rows: Sequence[TokenRow]) -> np.ndarray:
    """[n, P, D], in the order of the rows."""

    @jax.jit
    def means(params: Params, batch: PairBatch) -> jax.Array:
        tokens = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        hidden_RTD, _ = experiment.model.apply(params, *tokens, sequences=batch.sequences)
        return constrain(hidden_means(hidden_RTD, batch), None, None, None)

    parts, places = list[np.ndarray](), list[int]()
    for batch in experiment.scoring_batches(rows):
        parts.append(jax.device_get(means(params, experiment.place(batch.arrays)))[: len(batch.places)])
        places += batch.places
    return np.concatenate(parts)[np.argsort(places)]


def _typical(frozen: Scores) -> PairLogps:
    """A pair of mean log-probs and lengths under the reference."""
    return PairLogps(*frozen.logps_nP.mean(axis=0), *frozen.tokens_nP.mean(axis=0))


def displacement_of(
    split: str, now: Scores, frozen: Scores, likeness: dict[str, np.ndarray], groups_n: np.ndarray
) -> Displacement:
    """Chosen responses that fell, all and by how alike the two are; rows of one group are no independent ones."""
    log_ratios_nP = now.logps_nP - frozen.logps_nP
    pairs, fell_n = len(log_ratios_nP), log_ratios_nP[:, 0] < 0
    chosen, rejected = log_ratios_nP.mean(axis=0).tolist()
    by = {}
    for name, values_n in likeness.items():
        parts = by_similarity(values_n, log_ratios_nP)
        bins = []
        for part in parts:
            figures = part._asdict()
            inside = figures.pop("places")
            bins.append(LikenessBin(**figures, interval=bounded_interval(fell_n[inside], groups_n[inside])))
        by[name] = Likeness(correlation=rank_correlation(values_n, log_ratios_nP[:, 0]), bins=bins)
    return Displacement(
        split=split,
        pairs=pairs,
        fell=int(fell_n.sum()),
        interval=bounded_interval(fell_n, groups_n),
        chosen=chosen,
        rejected=rejected,
        chosen_likelier=float((now.logps_nP[:, 0] > now.logps_nP[:, 1]).mean()),
        by=by,
    )


def _tell(analysis: Analysis) -> None:
    moved, lost, step = analysis.halves.measured, analysis.displacement, analysis.one_step
    low, high = lost.interval
    for line in (
        f"over training chosen moved by {moved.chosen:+.2f} nats and rejected by {moved.rejected:+.2f}: "
        f"{moved.faster} moved more",
        f"{lost.fell} of {lost.pairs} chosen responses ({lost.split}) are below the reference (95 % interval of the "
        f"share {low:.1%} to {high:.1%})",
        f"one step on {len(step.pairs)} pairs: the first order misses {step.unexplained:.1%} of what happened",
        *([f"no field: {analysis.field.refused}"] if analysis.field.refused else []),
    ):
        say("analyse", line)


class Trajectory(NamedTuple):
    """Means over the pairs of each logged step, nats; log-ratios, or log-probs less those of the first steps."""

    kind: str
    steps: np.ndarray
    places_S2: np.ndarray

    @property
    def moved_2(self) -> np.ndarray:
        """Distance that both halves came: the mean of the last window of steps, less the start."""
        return np.array([ends(self.places_S2[:, half])[1] for half in (0, 1)])


def read_trajectory(rows: Rows, *, where: str) -> Trajectory:
    """The course of chosen and rejected in metrics.jsonl.

    Raises:
        UserError: it says nothing; `where` names the file.
    """
    for kind in ("log_ratios", "logps"):
        (steps, chosen), (_, rejected) = (series(rows, f"{kind}/{half}") for half in ("chosen", "rejected"))
        if len(steps):
            places_S2 = np.stack([chosen, rejected], axis=1)
            if kind == "logps":  # no reference: what counts is the change
                places_S2 = places_S2 - [ends(chosen)[0], ends(rejected)[0]]
            return Trajectory(kind, steps, places_S2)
    raise UserError(f"{where}: no step has been logged yet; run `dpo-jax train` first.")


def loss_of_run(terms: Sequence[Term], memory: Sequence[Any], step: int) -> tuple[PairLoss | None, str]:
    """The objective as a loss of one pair, with its numbers at a step; or None, and why there is none."""
    parts = []
    for term, remembered in zip(terms, memory, strict=True):
        reason = unsuited(term.name)
        if term.ld_alpha is not None:
            reason = f"{term.name} with ld_alpha reads the heads of the responses apart"
        if term.wpo:
            reason = f"{term.name} with wpo weighs pairs by the distribution at every token"
        if reason:
            return None, reason
        level = {"delta": float(remembered["state"].mean)} if term.entry.state is RunningMean else {}
        parts.append((term.weight, pair_loss(term.name, **term.static, **term.knobs(step), **level)))
    return weighted_sum(parts), ""


_EXCERPT = 160  # characters


class Step(NamedTuple):
    """Log-probs [A, P] before and after a step, nats, and what moved them, [A, P] each."""

    before_AP: jax.Array
    after_AP: jax.Array
    pulls: Pulls


def one_step(
    experiment: TextExperiment, step: int, store: Store | None, base: Callable[[], Params], *, most_pairs: int
) -> OneStep:
    """Takes a step from a checkpoint, with the run's own optimizer at its peak learning rate, on a few pairs.

    The pairs come as the run's order has them. A schedule may have come to 0: its peak is what the run was given.
    `base()` gives the frozen parameters, where the step needs them.
    """
    config, data = experiment.config, experiment.train_data
    pairs = min(most_pairs, len(data.rows))
    scores = store.lookup(row_ids_of(data.rows)) if store else None
    train = dataclasses.replace(config.train, batch_pairs=pairs, micro_batch_pairs=1)
    training = preference_training(experiment, data, scores, train=train)
    peak = make_schedule("constant", warmup_steps=0, steps=step + 1)
    training = dataclasses.replace(training, schedule=peak)
    host = training.batches.batch(step)
    program = training.program(experiment.mesh, experiment.batch_shardings(host.arrays, micro_batches=True))
    frozen = base() if training.frozen and training.objective.refresh is None else None
    state = restored(training, program, Checkpoints(experiment.run.checkpoints), step, frozen=frozen)
    knobs = training.knobs(step)
    batch = experiment.place(host.arrays, micro_batches=True)
    before = jax.tree.map(jnp.copy, state._replace(optimizer=()))  # the step uses its own up
    after, metrics = program.step(state, batch, knobs)
    apart = jax.jit(functools.partial(take_apart, training.objective), out_shardings=replicated(experiment.mesh))
    step_taken = jax.device_get(apart(before, after.params, batch, knobs))
    return OneStep(
        step=step,
        learning_rate=config.optimizer.learning_rate,
        grad_norm=float(metrics["grad_norm"]),
        unexplained=_unexplained(step_taken),
        pairs=_pulled(experiment, host.row_ids, step_taken),
    )


def take_apart(objective: Objective, before: TrainState, after: Params, batch: PairBatch, knobs: Any) -> Step:
    """The effect of the step from `before` to the parameters `after`; each micro-batch of `batch` is one pair."""
    key = jax.random.fold_in(jax.random.wrap_key_data(before.key), before.step)
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.weigh)(batch))
    _, gradient = gradients(objective, before, batch, knobs, key)
    change = jax.tree.map(jnp.subtract, after, before.params)
    indices = jnp.arange(len(batch.weight_B))

    def forward(params: Params, index: jax.Array) -> Any:
        own = jax.tree.map(lambda x: x[index], batch)
        return objective.forward(params, before.frozen, own, jax.random.fold_in(key, index))

    def loss(read: Any) -> jax.Array:
        whole, joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (read, batch))
        return objective.loss(whole, joined, knobs, counts, before.loss_state, jax.random.fold_in(key, 0))[0]

    read = jax.lax.map(lambda index: forward(before.params, index), indices)
    slopes = jax.grad(loss)(read)

    def pulls(index: jax.Array) -> Pulls:
        def own(params: Params) -> tuple[jax.Array, Any]:
            read = forward(params, index)
            return read.policy_BP[0], read

        return pair_pulls(own, before.params, jax.tree.map(lambda x: x[index], slopes), gradient, change)

    moved_AP = jax.lax.map(lambda index: forward(after, index).policy_BP[0], indices)
    return Step(read.policy_BP[:, 0], moved_AP, jax.lax.map(pulls, indices))


def _unexplained(step: Step) -> float:
    """By how much the first order misses what happened, as a share of it."""
    happened_AP = step.after_AP - step.before_AP
    size = np.abs(happened_AP).sum()
    return float(np.abs(happened_AP - step.pulls.first_order).sum() / size) if size else float("nan")


def _pulled(experiment: TextExperiment, row_ids: Sequence[str], step: Step) -> list[PulledPair]:
    rows, pairs = experiment.train_data.rows, []
    places = RowIndex(as_ids(row_ids_of(rows))).find(as_ids(row_ids))
    for index, (row_id, row) in enumerate(zip(row_ids, take(rows, places), strict=True)):
        prompt, *texts = (
            experiment.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row.prompt, *row.responses)
        )
        halves = []
        for slot, text in enumerate(texts):
            numbers = {field: float(values[index, slot]) for field, values in step.pulls._asdict().items()}
            before, after = float(step.before_AP[index, slot]), float(step.after_AP[index, slot])
            halves.append(Pulled(text=text[:_EXCERPT], before=before, happened=after - before, **numbers))
        pairs.append(
            PulledPair(
                row_id=row_id,
                edit_similarity=edit_similarity(*row.responses),
                prompt=prompt[-_EXCERPT:],
                chosen=halves[0],
                rejected=halves[1],
            )
        )
    return pairs
