"""The trained model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.commands import report
from dpo_jax.config import file_bytes
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.reporting.card import model_card
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params
from dpo_jax.weights.adapter import export_adapter
from dpo_jax.weights.export import export_folder


def run(experiment: TextExperiment, *, fine_tuned: bool = False) -> None:
    """Writes WORKDIR/export from the newest checkpoint: weights, or an adapter.

    The base of an adapter that was trained after fine-tuning is the result of that: it goes to WORKDIR/sft/export. With
    `fine_tuned` that is all that is written.
    """
    if fine_tuned:
        if experiment.config.sft is None:
            raise UserError("command line: export --fine-tuned: the configuration has no `sft:` section.")
        write_weights(experiment, experiment.sft_folder / "export", experiment.start_params(held=False), card=None)
        return
    folder, lora = experiment.workdir / "export", experiment.model.lora
    if experiment.config.export.lora == "merged" or lora is None:
        write_weights(experiment, folder, experiment.merged_params(), card=model_card(report.gather(experiment)))
        return
    base = experiment.config.model.weights
    if experiment.config.sft:
        base = str((experiment.sft_folder / "export").resolve())
        write_weights(experiment, Path(base), experiment.start_params(held=False), card=None)
    rules = experiment.resolved.rules
    card = model_card(report.gather(experiment))
    export_adapter(
        folder, experiment.trained_adapter(), lora, rules, base=base, tokenizer=experiment.tokenizer, card=card
    )
    say("export", f"wrote {folder} (an adapter of {base})")


def write_weights(experiment: TextExperiment, folder: Path, params: Params, *, card: str | None) -> None:
    """Writes a Hugging Face folder."""
    options = experiment.config.export
    export_folder(
        folder,
        params,
        experiment.model,
        experiment.resolved.rules,
        experiment.source,
        tokenizer=experiment.tokenizer,
        skipped=experiment.resolved.skipped,
        dtype=options.dtype,
        max_shard_bytes=file_bytes(options.max_shard_size),
        card=card,
    )
    say("export", f"wrote {folder} ({options.dtype})")
