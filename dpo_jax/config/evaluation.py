"""The part of an experiment that says what is measured, and by whom it is judged."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dpo_jax.config.model import Source
from dpo_jax.reading import Count, File, NotNegative, Origins, Positive, mistake


class Judge:
    """The options of a judge, who says which of two responses is better; `name` tells judges apart."""

    compares = False  # it is shown two responses, and gives none a score by itself

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Options that cannot be, each with what is wrong."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class ClassifierJudge(Judge):
    """A classifier of single responses."""

    name: Literal["classifier"] = "classifier"
    data: tuple[Source, ...] = ()  # what it learns from; needed

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Nothing to learn from."""
        if not self.data:
            yield "data", "the judge classifier needs it; it has no default."


@dataclass(frozen=True, kw_only=True)
class RewardJudge(Judge):
    """A reward model."""

    name: Literal["reward"] = "reward"
    model: File | None = None  # a run's WORKDIR or a folder; default: of this run


@dataclass(frozen=True, kw_only=True)
class LexiconJudge(Judge):
    """The mean weight of the words of a response."""

    name: Literal["lexicon"] = "lexicon"
    words: File | None = None  # a file of words and weights; default: VADER


@dataclass(frozen=True, kw_only=True)
class CommandJudge(Judge):
    """A program."""

    name: Literal["command"] = "command"
    command: str  # the program and its arguments
    compares: bool = False  # true: it is shown two responses, instead of scoring one
    timeout_seconds: NotNegative | None = None  # for the texts that it is given at once; default: 600

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """A time in which nothing ends."""
        yield from _no_time(self.timeout_seconds)


@dataclass(frozen=True, kw_only=True)
class PythonJudge(Judge):
    """A Python function."""

    name: Literal["python"] = "python"
    function: File  # file.py:name or package.module:name
    compares: bool = False  # true: it is shown two responses, instead of scoring one
    timeout_seconds: NotNegative | None = None  # for a call; default: 600

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """A time in which nothing ends."""
        yield from _no_time(self.timeout_seconds)


@dataclass(frozen=True, kw_only=True)
class HttpJudge(Judge):
    """A language model behind an OpenAI-compatible endpoint."""

    compares = True
    name: Literal["http"] = "http"
    url: str  # of the API, such as http://localhost:8000/v1
    model: str  # its name at the endpoint
    api_key_env: str | None = None  # the environment variable that holds the key; never the key itself
    template: File | None = None  # a file with the question, with {prompt}, {a} and {b}
    request: Mapping[str, object] = field(default_factory=lambda: {"max_tokens": 16, "temperature": 0.0})  # beside it
    timeout_seconds: NotNegative | None = None  # for a request and its whole answer; default: 60
    retries: Count = 6  # of a request that failed in a way that may pass
    parallel: Positive = 8  # requests at a time
    cache: File | None = None  # file of the verdicts that are known; default: WORKDIR/verdicts.jsonl
    input_price: NotNegative | None = None  # of a million tokens, to count the cost
    output_price: NotNegative | None = None

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """A time in which nothing ends, no address, a key in place of its variable, one price of two."""
        yield from _no_time(self.timeout_seconds)
        if not _is_address(self.url):
            yield "url", "is no address of an API, such as http://localhost:8000/v1."
        if self.api_key_env is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            yield "api_key_env", "is no name of an environment variable. Put the key in one, and its name here."
        if (self.input_price is None) != (self.output_price is None):
            yield "input_price", "the cost needs both prices, input_price and output_price."


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises, where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bool(re.fullmatch("[!-~]+", url))


def _no_time(timeout_seconds: float | None) -> Iterator[tuple[str, str]]:
    if timeout_seconds == 0:
        yield "timeout_seconds", "nothing ends in 0 s; give more, or leave it out."


JudgeConfig = ClassifierJudge | RewardJudge | LexiconJudge | CommandJudge | PythonJudge | HttpJudge
"""One of the judges. To add one: its dataclass, its name here, and its line in `experiments/judging.py`."""


@dataclass(frozen=True, kw_only=True)
class OutputsConfig:
    """Two files of responses to be compared: AlpacaEval's, Arena-Hard's, or those of `dpo-jax sample`."""

    policy: File
    reference: File
    questions: File | None = None  # Arena-Hard's questions, where the answers do not repeat them or have no ids
    difficulty: File | None = None  # rows with instruction_difficulty, one for each row of `policy`, for equal lengths


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Measurements: on held-out pairs, on samples of the policy, on a benchmark, or on outputs that are there."""

    every: Count = 0  # steps between held-out evaluations during training; 0: only at the end
    watched: Count = 0  # held-out prompts that the policy answers at each of these, into WORKDIR/samples; 0: none
    samples: Count = 0  # responses sampled from the policy and from the reference; 0: none
    max_new_tokens: Positive = 64
    temperature: NotNegative = 1.0
    batch_rows: Positive = 64  # responses sampled at once
    judge: JudgeConfig | None = None
    best_of: Count = 0  # responses of the reference to each prompt, of which the judge takes the best; 0: none
    outputs: OutputsConfig | None = None  # these are judged, and nothing is sampled or measured beside
    rewardbench: File | None = None  # a file of rows prompt, chosen, rejected, subset


def check_evaluation(evaluation: EvaluationConfig, origins: Origins, *, has_rows: bool) -> None:
    """Refuse settings that contradict each other; `has_rows` says whether data.eval names any."""
    outputs, judge = evaluation.outputs, evaluation.judge
    sampled, ranked = evaluation.samples, evaluation.rewardbench
    rows = "needs held-out rows and their prompts; name them in data.eval."
    best = "needs evaluation.samples, as many prompts, and evaluation.judge."
    highest = "is the response with the highest score: name a judge that scores."
    every = "says what is sampled every evaluation.every steps; set that too."
    judged = "needs evaluation.samples to judge, or evaluation.outputs or evaluation.rewardbench."
    other = "samples" if sampled else "rewardbench"
    wrong = (
        ("watched", evaluation.watched and not evaluation.every, every),
        ("every", evaluation.every and not has_rows, rows),
        ("samples", sampled and not has_rows, rows),
        ("best_of", evaluation.best_of and not (sampled and judge), best),
        ("best_of", evaluation.best_of and judge and judge.compares, highest),
        ("outputs", outputs and (sampled or ranked), f"is judged alone; leave out evaluation.{other}."),
        ("outputs", outputs and not judge, "needs somebody who judges; name evaluation.judge."),
        ("judge", judge and not (sampled or outputs or ranked), judged),
    )
    for key, is_wrong, says in wrong:
        if is_wrong:
            raise mistake(f"evaluation.{key}", origins, says)
    if judge:
        check_judge(judge, origins, key="evaluation.judge")


def check_judge(judge: JudgeConfig, origins: Origins, *, key: str) -> None:
    """Refuse options that cannot be."""
    for option, says in judge.mistakes():
        raise mistake(f"{key}.{option}", origins, says)
