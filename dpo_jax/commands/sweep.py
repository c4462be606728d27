"""A grid of experiments over one fine-tuning and one store, each point trained and evaluated in its own folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dpo_jax.commands import report
from dpo_jax.commands.run import train_and_measure
from dpo_jax.commands.training import prepare_start
from dpo_jax.config import as_mapping, changed
from dpo_jax.config.resume import deciding
from dpo_jax.errors import UserError
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.evaluation.records import BestOf, Evaluation, Trial
from dpo_jax.evaluation.seeds import best_of_lines, lines_of
from dpo_jax.experiments.grid import Settings, label_of, read_points
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import digest, read_json, read_sealed, write_atomic, write_json, write_sealed
from dpo_jax.reporting.sweep import as_html, as_markdown, make_table
from dpo_jax.runs.facts import Facts, facts_of, refuse_other
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import each_once, say


def run(experiment: Steps, *, grid: Sequence[str] | None, lean: bool) -> None:
    """Write WORKDIR/sweep.json, sweep.md and sweep.html, anew after each point; points that are done are kept.

    `grid` and the configuration's section `sweep` are those of `read_points`. A point whose settings make no experiment
    is left out with the reason. `lean` deletes the checkpoints of a point once it is evaluated.

    Raises:
        UserError: there are no points; or, when the others are done and written, some could not be run.
    """
    if not experiment.compares_points:
        raise UserError("sweep: there is nothing to compare the points by: name held-out rows in data.eval.")
    points = read_points(grid or (), experiment.config.sweep, experiment.origins, kind=type(experiment.config))
    refused = _refused(functools.partial(point_of, experiment), points)
    compiled = _count_compilations()
    trials: list[Trial] = []
    known: dict[str, Facts] = {}
    with each_once():
        for number, settings in enumerate(points, 1):
            label = label_of(settings, points)
            say("sweep", f"{number} of {len(points)}: {label}")
            opened = functools.partial(point_of, experiment, label, settings)
            if says := refused.get(label):
                trials.append(Trial(label=label, settings=settings, failed=says))
            else:
                trials.append(_trial(opened, label, settings, compiled, known, lean=lean))
            write_json(experiment.run.sweep_results, [trial.to_json() for trial in trials])
            _write_tables(experiment, trials, [])
    left_out = [trial for trial in trials if trial.failed is not None]
    if len(left_out) == len(points):
        raise UserError(f"sweep: no point could be run. The first: {left_out[0].failed}")
    if experiment.has_best_of:
        _write_tables(experiment, trials, _best_of(experiment, points))
    say("sweep", f"wrote {experiment.workdir / 'sweep.md'} and sweep.html")
    if left_out:
        raise UserError(
            f"sweep: {len(left_out)} of {len(points)} points could not be run, the others are done. The first of them: "
            f"{left_out[0].label}: {left_out[0].failed}"
        )


def _refused(opened: Callable[[str, Settings], Steps], points: Sequence[Settings]) -> dict[str, str]:
    """Why points cannot be run, by their labels, as far as their files and judges show it before the first one runs."""
    known, refused = dict[str, str](), dict[str, str]()

    def look_at(config: Mapping[str, Any], check_inputs: Callable[[], None]) -> None:
        reads = [config.get(name) for name in ("pictures", "scratch", "data", "sft", "evaluation", "pairs", "reward")]
        key = json.dumps([reads, [loss["name"] for loss in config["loss"]]])
        if key not in known:  # most points read what others read
            known[key] = ""
            try:
                check_inputs()
            except UserError as error:
                known[key] = str(error)
        if known[key]:
            raise UserError(known[key])

    for settings in points:
        label = label_of(settings, points)
        try:
            point = opened(label, settings)
            if not point.run.point.exists():
                look_at(as_mapping(point.config), point.check_inputs)
        except UserError as error:
            say("sweep", f"{label} is left out: {error}")
            refused[label] = str(error)
    return refused


def _write_tables(experiment: Steps, trials: Sequence[Trial], best: Sequence[BestOf]) -> None:
    lines, left_out = lines_of(trials), [(trial.label, trial.failed) for trial in trials if trial.failed is not None]
    lines += best_of_lines(best, lines[0]) if lines else []
    table = make_table(lines, left_out)
    write_atomic(experiment.run.sweep_table, as_markdown(table))
    write_atomic(experiment.run.sweep_page, as_html(experiment.workdir.name, experiment.command, table, lines))


def _best_of(experiment: Steps, points: Sequence[Settings]) -> Sequence[BestOf]:
    """The best of n samples of the model from which all points start; none if they start apart."""
    if any(_moves_the_start(key) for point in points for key in point):
        say("sweep", "no best of n: the grid varies what decides where the points start")
        return []
    prepare_start(experiment)  # the points of other seeds have their own
    return experiment.shared_best_of()


def _trial(
    opened: Callable[[], Steps],
    label: str,
    settings: Settings,
    compiled: Callable[[], int],
    known: dict[str, Facts],
    *,
    lean: bool,
) -> Trial:
    """A point of the sweep, run; or, with the reason, one that could not be run.

    `known` are the facts of points whose data and start are configured alike.
    """
    try:
        point = opened()
        kept = point.run.point
        if kept.exists():
            try:
                record = read_sealed(kept)
            except UserError as error:
                raise UserError(f"{error} Delete it, and the point is run again.") from None
            done = Trial.from_json({"label": label, "settings": settings, **record}, where=str(kept))
            if _decides(done.config) == _decides(json.loads(json.dumps(as_mapping(point.config)))):
                point.begin()  # whose chat template may read the day
                refuse_other("sweep", point.workdir, done.facts, point.facts_of_result(known))
                say("sweep", "is done already")
                return done
        start, before = time.perf_counter(), compiled()
        point.begin()
        with point.locked(), _everything_cached():
            train_and_measure(point)
            report.run(point)
            newest = point.run.newest_checkpoint()
            facts = {**(facts_of(newest.record) if newest else {}), **point.facts_of_rows("data.eval", point.eval_data)}
    except UserError as error:
        say("sweep", f"left out: {error}")
        return Trial(label=label, settings=settings, failed=str(error))
    trial = Trial(
        label=label,
        settings=settings,
        config=as_mapping(point.config),
        facts=facts,
        evaluation=_measured(point.workdir),
        seconds=time.perf_counter() - start,
        compiled=compiled() - before,
    )
    write_sealed(kept, {key: value for key, value in trial.to_json().items() if key not in ("label", "settings")})
    if lean and jax.process_index() == 0:
        shutil.rmtree(point.run.checkpoints)
    return trial


def _measured(workdir: Path) -> Evaluation:
    """The evaluation of a point, with the halves of its analysis, if there is one."""
    path, analysis = Run(workdir).evaluation, Run(workdir).analysis
    evaluation = Evaluation.from_json(read_json(path), where=str(path))
    if not analysis.exists():
        return evaluation
    return dataclasses.replace(evaluation, halves=Analysis.from_json(read_json(analysis), where=str(analysis)).halves)


def _moves_the_start(key: str) -> bool:
    """True if this setting may change the model that is sampled for the best of n, or what it is asked."""
    prompts = key.startswith("data") and not key.startswith("data.train") and not key.endswith(".unpair")
    return prompts or key.startswith(("sft", "model", "scratch"))


def _decides(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes of a point; those that are null are as if they were not there."""
    settings = deciding("train", config) | {key: config[key] for key in ("train", "evaluation")}
    settings["analysis"] = config.get("analysis")
    return {key: value for key, value in settings.items() if value is not None}


def point_of(base: Steps, label: str, settings: Settings) -> Steps:
    """The experiment of a point. What it has in common with the others, fine-tuning, pairs, store, it shares with them.

    Raises:
        UserError: the settings make none.
    """
    store = base.config.reference.store or str(base.run.stores)
    own: Settings = {"workdir": str(base.workdir / "sweep" / label), "reference.store": store}
    own |= {"evaluation.best_of": 0} if base.has_best_of else {}
    config, origins = changed(base.config, base.origins, {**own, **settings})
    point = type(base)(config, origins, command=base.command)
    ours, theirs = as_mapping(base.config), as_mapping(config)
    wanted = deciding("sft", theirs)
    point.sft_folder = base.sft_folder
    if wanted != deciding("sft", ours):  # points that differ in what decides it have their own
        point.sft_folder = base.workdir / f"sft-{digest(json.dumps(wanted, sort_keys=True).encode())[:8]}"
    if deciding("pairs", ours) == deciding("pairs", theirs):
        point.pairs_folder = base.pairs_folder
    return point


@contextlib.contextmanager
def _everything_cached() -> Iterator[None]:
    """Keep small programs in the compile cache too: every point asks for them again."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _count_compilations() -> Callable[[], int]:
    """Count programs compiled so far, those left out that came from the cache."""
    count_of = {"compiled": 0, "cached": 0}

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        count_of["compiled"] += event.endswith("backend_compile_duration")
        count_of["cached"] += event.endswith("cache_retrieval_time_sec")

    jax.monitoring.register_event_duration_secs_listener(count)
    return lambda: count_of["compiled"] - count_of["cached"]
