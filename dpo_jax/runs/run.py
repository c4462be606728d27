"""A working directory: the names of all that a run may write there, and the history of its trainings."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, overload

from dpo_jax import __version__
from dpo_jax.files import Json, check_place, digest_file, read_json, read_step, sealed_steps, write_json


class Sealed(NamedTuple):
    """A checkpoint by its seal: the record beside its arrays, and a digest of all that it holds."""

    step: int
    record: Json
    digest: str


class Place:
    """A file or folder of a run: `Run(folder).metrics` is its path, `Run.metrics.name` its name."""

    def __init__(self, name: str):
        self.name = name

    @overload
    def __get__(self, run: None, kind: type) -> Place: ...
    @overload
    def __get__(self, run: Run, kind: type) -> Path: ...
    def __get__(self, run: Run | None, kind: type) -> Place | Path:
        return self if run is None else run.folder / self.name


@dataclass(frozen=True)
class Run:
    """A working directory. The trainings inside it, fine-tuning and reward model, are runs of their own."""

    folder: Path

    # Of each training.
    config = Place("config.yaml")  # the merged configuration
    checkpoints = Place("checkpoints")  # STEP/ and its seal STEP.json
    metrics = Place("metrics.jsonl")  # a row for each logged step
    history = Place("history.json")  # the commands that trained
    tensorboard = Place("tensorboard")
    wandb = Place("wandb")
    profile = Place("profile")  # the trace of a few steps
    export = Place("export")  # a Hugging Face or Diffusers folder
    base = Place("base")  # the weights before any training, as a folder
    evaluation = Place("evaluation.json")
    begun = Place("begun.json")  # the day that its chat template reads off the clock

    # What training reads.
    stores = Place("stores")  # of the reference, where no other folder is named
    tokens = Place("tokens")  # of the rows, as tables that are mapped into memory
    data = Place("data.json")  # the check of the data
    data_page = Place("data.html")
    pairs = Place("pairs.jsonl")  # made from the model's own responses
    pictures = Place("pairs.parquet")  # made from the model's own samples
    heldout_pictures = Place("heldout.parquet")
    best_of = Place("best_of.json")  # the baseline that the points of a sweep share

    # What is measured and shown.
    samples = Place("samples.jsonl")  # of `dpo-jax sample`
    samples_folder = Place("samples")  # drawn while it trains; pictures of `dpo-jax sample`
    samples_arrays = Place("samples.npz")  # pictures for the report
    outputs = Place("outputs")  # in the formats of other benchmarks
    kept = Place("kept")  # samples and verdicts of a command, as they come
    verdicts = Place("verdicts.jsonl")  # of a judge that costs money
    fitted = Place("fitted.json")  # perplexity where training starts
    analysis = Place("analysis.json")
    report = Place("report.html")
    comparison = Place("comparison.html")

    # A sweep, and a point of it.
    sweep = Place("sweep")  # a run for each point
    sweep_results = Place("sweep.json")
    sweep_table = Place("sweep.md")
    sweep_page = Place("sweep.html")
    point = Place("point.json")

    @property
    def sft(self) -> Run:
        """The fine-tuning."""
        return Run(self.folder / "sft")

    @property
    def reward(self) -> Run:
        """The reward model, or the scorer of pictures."""
        return Run(self.folder / "reward")

    def check_places(self) -> None:
        """Refuse what stands in the way of a file or folder of the run, as a UserError."""
        for run in (self, self.sft, self.reward):
            check_place(run.folder, folder=True)
            for place in vars(Run).values():
                if isinstance(place, Place):
                    check_place(run.folder / place.name, folder="." not in place.name)

    @property
    def name(self) -> str:
        """The last part of the folder, for titles."""
        return self.folder.name or str(self.folder)

    @property
    def exists(self) -> bool:
        """True where a policy or a reward model was trained, and where a folder of weights is not what lies here."""
        return self.config.exists() or self.reward.folder.exists()

    def newest_checkpoint(self) -> Sealed | None:
        """The newest checkpoint of the training; None where there is none yet."""
        steps = sealed_steps(self.checkpoints)
        if not steps:
            return None
        seal = self.checkpoints / f"{steps[-1]}.json"
        return Sealed(steps[-1], read_step(self.checkpoints, steps[-1])["record"], digest_file(seal))

    def measured(self) -> Json:
        """The fields of a record that say whose weights were measured: those of the newest checkpoint."""
        newest = self.newest_checkpoint()
        return {} if newest is None else {"step": newest.step, "checkpoint": newest.digest}

    @property
    def is_trained(self) -> bool:
        """True where a training has begun and logged, so that there is something to report or to compare."""
        return self.config.exists() and self.metrics.exists()


def note_session(folder: Path, command: str, *, from_step: int | None) -> None:
    """Add this command to `folder`/history.json; a training that begins anew begins it anew."""
    earlier = read_history(folder) if from_step is not None else []
    write_json(Run(folder).history, [*earlier, session(command) | {"from_step": from_step or 0}])


def read_history(folder: Path) -> list[Json]:
    """The sessions of a training, the oldest first; none where nobody noted them."""
    path = Run(folder).history
    return read_json(path) if path.exists() else []


def session(command: str) -> Json:
    """This one: `command`, `date` (ISO), `environment`."""
    import jax  # `verify` reads runs without it

    devices = jax.devices()
    environment = {
        "dpo_jax": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "transformers")},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": str(jax.process_count()),
        "platform": platform.platform(),
    }
    return {"command": command, "date": datetime.date.today().isoformat(), "environment": environment}
