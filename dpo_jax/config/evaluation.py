"""The part of an experiment that says what is measured, and who judges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dpo_jax.config.kinds import Count, NotNegative, Positive, Source
from dpo_jax.errors import UserError, nearest
from dpo_jax.reading import Origins, locate


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who says which of two responses is better; each judge has options of its own, see `JUDGE_OPTIONS`."""

    name: Literal["classifier", "reward", "lexicon", "command", "python", "http"] = "classifier"
    data: tuple[Source, ...] = ()  # what a classifier learns from
    model: str | None = (
        None  # a reward model: a run's WORKDIR or a folder, default of this run; the name at an endpoint
    )
    words: str | None = None  # a file of words and weights; default: VADER
    command: str | None = None  # the program and its arguments
    function: str | None = None  # file.py:name or package.module:name
    compares: bool = False  # whether command or function is shown two responses, instead of scoring one
    url: str | None = None  # of the API, such as http://localhost:8000/v1
    api_key_env: str | None = None  # the environment variable that holds the key; never the key itself
    template: str | None = None  # a file with the question, with {prompt}, {a} and {b}
    request: Mapping[str, Any] = field(default_factory=lambda: {"max_tokens": 16, "temperature": 0.0})  # beside it
    timeout_seconds: NotNegative | None = None  # default: 600 for all of a command, 60 for a request
    retries: Count = 6  # of a request that failed in a way that may pass
    parallel: Positive = 8  # requests at a time
    cache: str | None = None  # file of the verdicts that are known; default: WORKDIR/verdicts.jsonl
    input_price: NotNegative | None = None  # of a million tokens, to count the cost
    output_price: NotNegative | None = None


JUDGE_OPTIONS: dict[str, tuple[str, ...]] = {
    "classifier": ("data",),
    "reward": ("model",),
    "lexicon": ("words",),
    "command": ("command", "compares", "timeout_seconds"),
    "python": ("function", "compares"),
    "http": (
        *("url", "model", "api_key_env", "template", "request", "timeout_seconds", "retries", "parallel", "cache"),
        *("input_price", "output_price"),
    ),
}
"""Judge -> its options."""
_NEEDED = {"classifier": ("data",), "command": ("command",), "python": ("function",), "http": ("url", "model")}


@dataclass(frozen=True, kw_only=True)
class OutputsConfig:
    """Two files of responses to be compared: AlpacaEval's, Arena-Hard's, or those of `dpo-jax sample`."""

    policy: str
    reference: str
    questions: str | None = None  # Arena-Hard's questions, where the answers do not repeat them or have no ids
    difficulty: str | None = None  # rows with instruction_difficulty, one for each row of `policy`, for equal lengths


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured: on held-out pairs, on samples of the policy, on a benchmark, or on outputs that are there."""

    every: Count = 0  # steps between held-out evaluations during training; 0: only at the end
    watched: Count = 0  # held-out prompts that the policy answers at each of these, into WORKDIR/samples; 0: none
    samples: Count = 0  # responses sampled from the policy and from the reference; 0: none
    max_new_tokens: Positive = 64
    temperature: NotNegative = 1.0
    batch_rows: Positive = 64  # responses sampled at once
    judge: JudgeConfig | None = None
    best_of: Count = 0  # responses of the reference to each prompt, of which the judge takes the best; 0: none
    outputs: OutputsConfig | None = None  # these are judged, and nothing is sampled or measured beside
    rewardbench: str | None = None  # a file of rows prompt, chosen, rejected, subset


def check_evaluation(evaluation: EvaluationConfig, origins: Origins, *, has_rows: bool) -> None:
    """Refuses settings that contradict each other; `has_rows` says whether data.eval names any."""
    if evaluation.watched and not evaluation.every:
        at = locate("evaluation.watched", origins)
        raise UserError(f"{at}: evaluation.watched: says what is sampled every evaluation.every steps; set that too.")
    for key, asked in (("every", evaluation.every), ("samples", evaluation.samples)):
        if asked and not has_rows:
            at = locate(f"evaluation.{key}", origins)
            raise UserError(f"{at}: evaluation.{key}: needs held-out rows and their prompts; name them in data.eval.")
    if evaluation.best_of and not (evaluation.samples and evaluation.judge):
        at = locate("evaluation.best_of", origins)
        raise UserError(f"{at}: evaluation.best_of: needs evaluation.samples, as many prompts, and evaluation.judge.")
    at, judge = locate("evaluation.outputs", origins), evaluation.judge
    if evaluation.outputs and (evaluation.samples or evaluation.rewardbench):
        other = "samples" if evaluation.samples else "rewardbench"
        raise UserError(f"{at}: evaluation.outputs: is judged alone; leave out evaluation.{other}.")
    if evaluation.outputs and not judge:
        raise UserError(f"{at}: evaluation.outputs: needs somebody who judges; name evaluation.judge.")
    if judge:
        if not (evaluation.samples or evaluation.outputs or evaluation.rewardbench):
            at = locate("evaluation.judge", origins)
            raise UserError(
                f"{at}: evaluation.judge: needs evaluation.samples to judge, or evaluation.outputs or "
                "evaluation.rewardbench."
            )
        check_judge(judge, origins, key="evaluation.judge")


def check_judge(judge: JudgeConfig, origins: Origins, *, key: str) -> None:
    """Refuses options that are another judge's, and misses those without which it cannot work."""

    def refuse(option: str, says: str) -> UserError:
        where = f"{key}.{option}"
        return UserError(f"{locate(where, origins)}: {where}: {says}")

    blank, allowed = JudgeConfig(), JUDGE_OPTIONS[judge.name]
    for option in (each.name for each in fields(JudgeConfig)):
        given = vars(judge)[option] != vars(blank)[option]
        if given and option not in ("name", *allowed):
            raise refuse(option, f"is no option of the judge {judge.name}. {nearest(option, allowed)}")
        if not given and option in _NEEDED.get(judge.name, ()):
            raise refuse(option, f"the judge {judge.name} needs it; it has no default.")
    if judge.timeout_seconds == 0:
        raise refuse("timeout_seconds", "nothing ends in 0 s; give more, or leave it out.")
    if judge.api_key_env is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", judge.api_key_env):
        raise refuse("api_key_env", "is no name of an environment variable. Put the key in one, and its name here.")
    if (judge.input_price is None) != (judge.output_price is None):
        raise refuse("input_price", "the cost needs both prices, input_price and output_price.")
