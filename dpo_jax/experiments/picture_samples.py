"""Pictures that a model writes: samples as files, and preference pairs of groups that show the same, judged.

Dimension key: G groups, S samples in a group; X stands for all axes of a sample.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpo_jax.config import as_mapping
from dpo_jax.config.pictures import PicturePairsConfig
from dpo_jax.config.resume import deciding
from dpo_jax.errors import UserError
from dpo_jax.evaluation.selection import select_pairs
from dpo_jax.experiments.picture_evaluation import PictureJudge, open_judge
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import read_json, write_atomic, write_json
from dpo_jax.meeting import meet
from dpo_jax.runs.facts import Facts, differing
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.types import Params

_RECORD = "pairs.json"
"""What decided the pairs that lie beside it."""


def write(experiment: PictureExperiment, *, output: str | None, reference: bool) -> None:
    """Writes evaluation.samples pictures (PNG) or clips (.npy) into WORKDIR/samples, or the folder `output`."""
    count = experiment.config.evaluation.samples
    if not count:
        raise UserError(f"{experiment.at('evaluation.samples')}: evaluation.samples is 0; it says how many to draw.")
    params = experiment.start_params() if reference else experiment.trained_params()
    shown, sample = experiment.what_to_show(count), experiment.sampler(seed=experiment.config.seed)
    with Progress("sample", count, unit="samples") as progress:
        samples = sample(params, shown, count, "samples", progress.update)
    folder = Path(output) if output else experiment.run.samples_folder
    classes = shown if shown is not None and shown.ndim == 1 else None
    for number, each in enumerate(samples):
        at = folder if classes is None else folder / str(classes[number])
        at.mkdir(parents=True, exist_ok=True)
        write_atomic(at / f"{number:05d}.{'npy' if samples.ndim == 5 else 'png'}", encoded(np.asarray(each)))
    say("sample", f"wrote {count} files to {folder}" + ("" if classes is None else ", by class"))


def make_missing(experiment: PictureExperiment) -> None:
    """Makes the pairs where they are asked for and are not there."""
    options = experiment.config.pairs
    if options is None:
        return
    wanted, record = (
        [experiment.pairs_file, *([experiment.heldout_file] if options.heldout else [])],
        experiment.pairs_folder / _RECORD,
    )
    params, facts = experiment.load_start()
    if not record.exists() or not all(file.exists() for file in wanted):
        make(experiment, params, facts)
        return
    old, new = read_json(record), _settings(as_mapping(experiment.config))
    kept = old.pop("facts", {})
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed := changed + differing(kept, facts):
        raise UserError(
            f"{experiment.pairs_file} was made with other settings, or of other weights: {', '.join(changed)}. Undo "
            "the change, make the pairs anew with `dpo-jax pairs`, or start afresh with `--workdir FOLDER`."
        )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide which pairs are made."""
    judge = config["pairs"]["judge"] or config["evaluation"]["judge"]
    return json.loads(json.dumps(deciding("pairs", config) | {"judge": judge}))


def make(experiment: PictureExperiment, params: Params, facts: Facts) -> None:
    """Writes pairs.parquet and heldout.parquet anew, from samples under `params`, whose digests are `facts`."""
    options = experiment.config.pairs
    assert options is not None
    asked = options.judge or experiment.config.evaluation.judge
    assert asked is not None
    judge = open_judge(asked, experiment, "pairs.judge" if options.judge else "evaluation.judge")
    seed = experiment.config.seed if options.seed is None else options.seed
    sample = experiment.sampler(seed=seed)
    if jax.process_index() == 0:
        (experiment.pairs_folder / _RECORD).unlink(missing_ok=True)  # the pairs count when all of them are there
    for file, groups, purpose in (
        (experiment.pairs_file, options.groups, "pairs"),
        (experiment.heldout_file, options.heldout, "held-out pairs"),
    ):
        if groups:
            shown = experiment.what_to_show(groups * options.samples, group=options.samples)
            with Progress("pairs", groups * options.samples, unit="samples") as progress:
                samples = sample(params, shown, groups * options.samples, purpose, progress.update)
            _write(file, options, judge, samples, shown)
    write_json(experiment.pairs_folder / _RECORD, _settings(as_mapping(experiment.config)) | {"facts": facts})
    meet("pairs written", sees=experiment.pairs_folder)


def _write(
    file: Path, options: PicturePairsConfig, judge: PictureJudge, samples: np.ndarray, shown: np.ndarray | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    total = len(samples)
    scores_GS = np.asarray(judge.scores(samples), np.float64).reshape(-1, options.samples)
    # Equal samples are no pair, as equal texts are none.
    names = [hashlib.blake2b(each.tobytes(), digest_size=16).hexdigest() for each in samples]
    names_GS = [names[start : start + options.samples] for start in range(0, total, options.samples)]
    picked = select_pairs(scores_GS, names_GS, select=options.select, min_gap=options.min_gap)
    if not len(picked.prompts):
        raise UserError(f"pairs: {judge.name} finds no sample better than another of its group; nothing written.")
    rows: list[dict[str, Any]] = []
    for group, chosen, rejected in zip(picked.prompts, picked.chosen, picked.rejected, strict=True):
        first = group * options.samples
        row: dict[str, Any] = {
            "chosen": encoded(samples[first + chosen]),
            "rejected": encoded(samples[first + rejected]),
            "chosen_score": float(scores_GS[group, chosen]),
            "rejected_score": float(scores_GS[group, rejected]),
        }
        if shown is not None:
            row |= {"class": int(shown[first])} if shown.ndim == 1 else {"embedding": shown[first].tolist()}
        rows.append(row)
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    write_atomic(file, sink.getvalue())
    without = f"; {picked.without} groups gave none" if picked.without else ""
    say("pairs", f"wrote {len(rows)} pairs to {file}{without}; mean score of all samples {scores_GS.mean():.4g}")


def encoded(sample_X: np.ndarray) -> bytes:
    """A picture as PNG, a clip as an array of numpy; both without loss."""
    sink = io.BytesIO()
    if sample_X.ndim == 4:
        np.save(sink, sample_X, allow_pickle=False)
    else:
        from PIL import Image

        Image.fromarray(sample_X[..., 0] if sample_X.shape[-1] == 1 else sample_X).save(sink, "PNG")
    return sink.getvalue()
