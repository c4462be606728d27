"""Why a run moved its log-probs as it did: trajectory, field, displacement and one step taken apart.

Dimension key: n rows, P slot in the pair, D width, B pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax.analysis.displacement import by_similarity, ches, edit_similarity, hidden_means, rank_correlation
from dpo_jax.analysis.trajectory import field_of, halves
from dpo_jax.config import AnalysisConfig
from dpo_jax.errors import UserError
from dpo_jax.evaluation.intervals import share_interval
from dpo_jax.experiments.one_step import one_step
from dpo_jax.experiments.stores import complete_store, heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.trajectory import loss_of_run, read_trajectory
from dpo_jax.files import read_json_lines
from dpo_jax.losses import PairLogps
from dpo_jax.mesh import constrain
from dpo_jax.reference.store import Scores, Store
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.runtime.translate import sized_by
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import PairBatch, Params, TokenRow


def analyse(experiment: TextExperiment) -> dict[str, Any]:
    """The analysis of the newest checkpoint, as it is written."""
    options, workdir = experiment.config.analysis or AnalysisConfig(), experiment.workdir
    step, log = Checkpoints(Run(workdir).checkpoints).latest(), Run(workdir).metrics
    if step is None or not log.exists():
        raise UserError(f"{workdir}: there is no trained run yet; run `dpo-jax train` first.")
    trajectory = read_trajectory(read_json_lines(log), where=str(log))
    store = _store(experiment)
    now, frozen, likeness = _compared(experiment, store, options.rows)
    pair = _typical(frozen)
    loss, reason = loss_of_run(experiment.terms, experiment.restored_memory(), step)
    log_ratios_nP = now.logps_nP - frozen.logps_nP
    spread_N2 = np.concatenate([trajectory.places_S2, np.quantile(log_ratios_nP, [0.1, 0.9], axis=0)])
    analysis = {
        "settings": dataclasses.asdict(options),
        "step": step,
        "trajectory": {
            "kind": trajectory.kind,
            "steps": trajectory.steps.tolist(),
            "places": trajectory.places_S2.tolist(),
        },
        "field": field_of(loss, pair, spread_N2[np.isfinite(spread_N2).all(axis=1)]) if loss else {"refused": reason},
        "halves": halves(trajectory.moved_2, loss, pair),
        "displacement": {
            "split": "held out" if experiment.has_heldout else "training",
            **_displacement(now, frozen, likeness),
        },
        "one_step": one_step(
            experiment,
            step,
            store if experiment.reads_store else None,
            experiment.start_params,
            most_pairs=options.pairs,
        ),
    }
    _tell(analysis)
    return analysis


def _store(experiment: TextExperiment) -> Store | None:
    """The store that has the compared rows; None where training reads none, and no rows are held out."""
    if experiment.reads_store:
        return complete_store(experiment, experiment.start_params)
    return heldout_store(experiment, experiment.start_params) if experiment.has_heldout else None


def _compared(
    experiment: TextExperiment, store: Store | None, count: int
) -> tuple[Scores, Scores, dict[str, np.ndarray]]:
    """Of `count` rows the policy's and the reference's scores, and how alike the responses of each are, [n] each."""
    data = experiment.eval_data if experiment.has_heldout else experiment.train_data
    rows = data.rows[:count]
    base = experiment.start_params()

    row_ids, now = experiment.scorer(experiment.trained_params(base), rows)
    frozen = store.lookup(row_ids) if store else experiment.scorer(base, rows)[1]
    known = {row.row_id: row for row in rows}
    alike_n = np.array([edit_similarity(*known[row_id].responses) for row_id in row_ids])
    return now, frozen, {"edit_similarity": alike_n, "ches": ches(_hidden_means(experiment, base, rows))}


@sized_by("reference.batch_pairs")
def _hidden_means(experiment: TextExperiment, params: Params, rows: Sequence[TokenRow]) -> np.ndarray:
    """[n, P, D], in the order in which rows are scored."""

    @jax.jit
    def means(params: Params, batch: PairBatch) -> jax.Array:
        tokens = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        hidden_RTD, _ = experiment.model.apply(params, *tokens, sequences=batch.sequences)
        return constrain(hidden_means(hidden_RTD, batch), None, None, None)

    batches = experiment.scoring_batches(rows)
    parts = [jax.device_get(means(params, experiment.place(batch.arrays)))[: len(batch.row_ids)] for batch in batches]
    return np.concatenate(parts)


def _typical(frozen: Scores) -> PairLogps:
    """A pair of mean log-probs and lengths under the reference."""
    return PairLogps(*frozen.logps_nP.mean(axis=0), *frozen.tokens_nP.mean(axis=0))


def _displacement(now: Scores, frozen: Scores, likeness: dict[str, np.ndarray]) -> dict[str, Any]:
    log_ratios_nP = now.logps_nP - frozen.logps_nP
    pairs, fell = len(log_ratios_nP), int((log_ratios_nP[:, 0] < 0).sum())
    chosen, rejected = log_ratios_nP.mean(axis=0).tolist()
    return {
        "pairs": pairs,
        "fell": fell,
        "interval": share_interval(fell, pairs),
        "chosen": chosen,
        "rejected": rejected,
        # Of a policy that is one table, rejected falls faster than chosen rises where chosen is the likelier one.
        "chosen_likelier": float((now.logps_nP[:, 0] > now.logps_nP[:, 1]).mean()),
        "by": {
            name: {
                "correlation": rank_correlation(values_n, log_ratios_nP[:, 0]),
                "bins": [
                    {**part._asdict(), "interval": share_interval(part.fell, part.pairs)}
                    for part in by_similarity(values_n, log_ratios_nP)
                ],
            }
            for name, values_n in likeness.items()
        },
    }


def _tell(analysis: dict[str, Any]) -> None:
    moved, lost, step = analysis["halves"]["measured"], analysis["displacement"], analysis["one_step"]
    low, high = lost["interval"]
    for line in (
        f"over training chosen moved by {moved['chosen']:+.2f} nats and rejected by {moved['rejected']:+.2f}: "
        f"{moved['faster']} moved more",
        f"{lost['fell']} of {lost['pairs']} chosen responses ({lost['split']}) are below the reference (95 % interval "
        f"of the share {low:.1%} to {high:.1%})",
        f"one step on {len(step['pairs'])} pairs: the first order misses {step['unexplained']:.1%} of what happened",
        *([f"no field: {analysis['field']['refused']}"] if "refused" in analysis["field"] else []),
    ):
        say("analyse", line)
