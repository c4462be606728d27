"""RewardBench's accuracy: of the policy's implicit rewards, and of the judge."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_jax.data.sources import PAIRS, paths, rows
from dpo_jax.data.sources.record import BadRow
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import UserError
from dpo_jax.evaluation.rewardbench import rewardbench
from dpo_jax.experiments.judging import AnyJudge
from dpo_jax.experiments.rows import rules_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params, PreferencePair, Prompt


def run_rewardbench(
    experiment: TextExperiment, path: str, judge: AnyJudge | None, policy: Params, frozen: Params
) -> dict[str, Any]:
    """`policy`: whether its log-ratio to the reference is larger for chosen; `judge`, if there is one: its verdicts."""
    pairs, subsets = _read(path)
    found = {"policy": rewardbench(_implicit(experiment, pairs, policy, frozen), subsets)}
    if judge:
        prompts = [Prompt(pair.prompt, None, pair.where) for pair in pairs]
        verdicts = judge.verdicts(prompts, *([_text(pair, slot) for pair in pairs] for slot in (0, 1)))
        found["judge"] = {"name": judge.name, **rewardbench(verdicts > 0.5, subsets)}
    for name, each in found.items():
        sections = ", ".join(f"{section} {value['accuracy']:.1%}" for section, value in each["sections"].items())
        say("evaluate", f"RewardBench, {name}: accuracy {each['accuracy']:.1%} of {each['rows']} rows; {sections}")
    return found


def _read(path: str) -> tuple[list[PreferencePair], list[str]]:
    pairs, subsets = list[PreferencePair](), list[str]()
    columns = rows.column_names({}, PAIRS.columns)
    for record in paths.read({"path": path}):
        if isinstance(record, BadRow):
            raise record
        subset = record.values.get("subset")
        if not isinstance(subset, str) or not subset:
            raise UserError(f"{record.where}: subset is {subset!r}; evaluation.rewardbench wants its name, as text.")
        (pair,) = PAIRS.make(record, columns)
        pairs.append(pair)
        subsets.append(subset)
    if not pairs:
        raise UserError(f"evaluation.rewardbench: {path} holds no rows.")
    return pairs, subsets


def _implicit(experiment: TextExperiment, pairs: list[PreferencePair], policy: Params, frozen: Params) -> np.ndarray:
    tokens = tokenize(pairs, experiment.tokenizer, **{**rules_of(experiment.config), "truncation": "keep"}).rows
    margins: list[dict[str, float]] = []
    for params in (policy, frozen):
        row_ids, scores = experiment.scorer(params, tokens)
        margins.append(dict(zip(row_ids, scores.logps_nP[:, 0] - scores.logps_nP[:, 1], strict=True)))
    return np.array([margins[0][row.row_id] > margins[1][row.row_id] for row in tokens])


def _text(pair: PreferencePair, slot: int) -> str:
    response = pair.responses[slot]
    if not isinstance(response, str):
        raise UserError(f"{pair.where}: a judge of RewardBench reads texts, and this response is a list of messages.")
    return response
