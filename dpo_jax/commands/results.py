"""The commands that measure what was trained, or write it out."""

from __future__ import annotations

from dpo_jax.commands.report import gather, read_splits
from dpo_jax.errors import UserError, nearest
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_json
from dpo_jax.reporting.card import model_card
from dpo_jax.reporting.data import shared_rows
from dpo_jax.runtime.progress import say

_MODELS = ("policy", "reference")


def evaluate(experiment: Steps) -> None:
    """Write WORKDIR/evaluation.json for the newest checkpoint, or for the outputs that the configuration names."""
    if not experiment.has_evaluation:
        raise UserError("evaluate: the configuration names no held-out pairs; set data.eval.")
    experiment.check_inputs("data.eval", "evaluation")
    path = experiment.run.evaluation
    write_json(path, experiment.evaluate().to_json())
    if shared := shared_rows(read_splits(experiment.run)):
        say("evaluate", f"{shared} of the held-out rows are also in data.train: of them the numbers tell nothing new")
    say("evaluate", f"wrote {path}")


def analyse(experiment: Steps) -> None:
    """Write WORKDIR/analysis.json for the newest checkpoint."""
    experiment.check_analysis()
    experiment.check_inputs("data")
    path = experiment.run.analysis
    write_json(path, experiment.analyse().to_json())
    say("analyse", f"wrote {path}")


def sample(
    experiment: Steps, *, prompts: str | None = None, output: str | None = None, model: str | None = None
) -> None:
    """Write samples of the newest checkpoint, or, as `model` asks, of where the training started."""
    if model is not None and model not in _MODELS:
        raise UserError(f"command line: --model {model!r} is unknown. {nearest(model, _MODELS)}")
    experiment.write_samples(prompts=prompts, output=output, reference=model == "reference")


def export(experiment: Steps, *, fine_tuned: bool = False, base: bool = False) -> None:
    """Write WORKDIR/export from the newest checkpoint; else the result of `sft`, or `model.weights` before training.

    An earlier export of something else is not replaced.
    """
    if fine_tuned and base:
        raise UserError("command line: export --fine-tuned --base: they are two exports; ask for one.")
    if fine_tuned and experiment.config.sft is None:
        raise UserError("command line: export --fine-tuned: the configuration has no `sft:` section.")
    what = "fine-tuned" if fine_tuned else "base" if base else "trained"
    experiment.export(what=what, card=lambda kinds: model_card(gather(experiment), source_kinds=kinds))
