"""Several runs on one page: what each came to, one table, their curves over one another, and samples side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax.reporting.page import page
from dpo_jax.reporting.plots import COMPARED_PLOTS, overlay
from dpo_jax.reporting.report import SHOWN_SAMPLES, RunReport, verdict_of
from dpo_jax.reporting.samples import side_by_side
from dpo_jax.reporting.sweep import Line, draw, make_table
from dpo_jax.reporting.tables import Table

# Of these settings a measure does not depend: how fast it is taken, at what price, and what else is.
_NO_MATTER = {
    *("evaluation.every", "evaluation.watched", "evaluation.samples", "evaluation.batch_rows", "evaluation.best_of"),
    *("evaluation.rewardbench", "evaluation.judge.timeout_seconds", "evaluation.judge.retries"),
    *("evaluation.judge.parallel", "evaluation.judge.cache", "evaluation.judge.api_key_env"),
    *("evaluation.judge.input_price", "evaluation.judge.output_price"),
    *(f"sft.train.{name}" for name in ("keep", "log_every", "micro_batch_pairs", "save_every")),
}
_TEXT = ("template", "chat_template", "score", "max_prompt_tokens", "max_tokens", "truncation")


class Comparison(NamedTuple):
    """Runs by their names, with a line of measures each, in their order.

    `means` are the lines of runs that differ by their seed alone, as one; empty where there are none. `settings` are
    those in which the runs differ: name, and the value in each.
    """

    command: str
    runs: Mapping[str, RunReport]
    lines: Sequence[Line]
    means: Sequence[Line]
    settings: Sequence[Sequence[str]]


def render_comparison(compared: Comparison) -> str:
    """The page as HTML text. The same runs give the same bytes."""
    runs = compared.runs
    unlike = differences(runs)
    return page(
        "comparison.html.jinja",
        title=", ".join(runs),
        command=compared.command,
        created=max(run.created for run in runs.values()),
        runs=runs,
        verdicts={name: verdict_of(run) for name, run in runs.items()},
        unlike=unlike,
        measures_of_runs=make_table(compared.lines, []),
        means=make_table(compared.means, []) if compared.means else None,
        settings=Table("What differs between the runs", ("", *runs), compared.settings),
        frontier=None if unlike and unlike.samples else draw(compared.lines),
        drawn=overlay(COMPARED_PLOTS, {name: run.metrics for name, run in runs.items()}, prefix="compared"),
        samples=side_by_side({name: run.evaluation.samples for name, run in runs.items()}),
        shown_samples=SHOWN_SAMPLES,
    )


class Differences(NamedTuple):
    """Settings in which runs differ, each with its value in every run; what of the measures they spoil."""

    table: Table
    samples: bool  # judge and KL
    heldout: bool


def differences(runs: Mapping[str, RunReport]) -> Differences | None:
    """None where the runs were evaluated alike. A seed is no difference, nor is how many samples were drawn."""
    shared = [
        _flat({"model.weights": _setting(run, "model", "weights"), "sft": _setting(run, "sft")})
        for run in runs.values()
    ]
    text = [_flat({f"data.{name}": _setting(run, "data", name) for name in _TEXT}) for run in runs.values()]
    judged = [_flat({"evaluation": run.evaluation.settings or _setting(run, "evaluation")}) for run in runs.values()]
    prompts = _letters([_prompts(run) for run in runs.values()], "prompts")
    rows = _letters([_rows(run) for run in runs.values()], "rows")
    both = _differing(shared) + _differing(text)
    of_samples, of_rows = _differing(judged) + _differing(prompts), _differing(rows)
    if not (both or of_samples or of_rows):
        return None
    table = Table("", ("", *runs), [*of_rows, *of_samples, *both])
    return Differences(table, bool(of_samples or both), bool(of_rows or both))


def _setting(run: RunReport, *keys: str) -> object:
    """The value of a setting of any version's configuration; None where it is not there."""
    value: object = run.config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _prompts(run: RunReport) -> str:
    """The different prompts, however often each was answered."""
    return json.dumps(list(dict.fromkeys(sample.prompt for sample in run.evaluation.samples)))


def _rows(run: RunReport) -> str:
    """The held-out rows by what they hold, or else, in an evaluation that did not note it, by their files."""
    return run.evaluation.rows or json.dumps(_setting(run, "data", "eval"))


def _letters(values: Sequence[str], what: str) -> list[dict[str, object]]:
    """Long values by a letter each, the same for the same."""
    known = list(dict.fromkeys(values))
    return [{f"held-out {what}": f"{what} {chr(ord('A') + known.index(value))}"} for value in values]


def _differing(of_runs: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for settings in of_runs for name in settings if name not in _NO_MATTER)
    rows = [(name, [settings.get(name) for settings in of_runs]) for name in names]
    return [
        (name, *("none" if value is None else str(value) for value in values))
        for name, values in rows
        if any(value != values[0] for value in values)
    ]


def _flat(value: object, key: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{key}.{name}" if key else str(name))
    return flat
