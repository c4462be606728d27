"""The trained model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.commands import report
from dpo_jax.config import file_bytes
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import Setup
from dpo_jax.reporting.card import model_card
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params
from dpo_jax.weights.adapter import export_adapter
from dpo_jax.weights.export import export_folder


def run(setup: Setup, *, fine_tuned: bool = False) -> None:
    """Writes WORKDIR/export from the newest checkpoint: weights, or an adapter.

    The base of an adapter that was trained after fine-tuning is the result of that: it goes to WORKDIR/sft/export. With
    `fine_tuned` that is all that is written.
    """
    if fine_tuned:
        if setup.config.sft is None:
            raise UserError("command line: export --fine-tuned: the configuration has no `sft:` section.")
        write_weights(setup, setup.sft_folder / "export", setup.start_params(held=False), card=None)
        return
    folder, lora = setup.workdir / "export", setup.model.lora
    if setup.config.export.lora == "merged" or lora is None:
        write_weights(setup, folder, setup.merged_params(), card=model_card(report.gather(setup)))
        return
    base = setup.config.model.weights
    if setup.config.sft:
        base = str((setup.sft_folder / "export").resolve())
        write_weights(setup, Path(base), setup.start_params(held=False), card=None)
    rules = setup.resolved.rules
    card = model_card(report.gather(setup))
    export_adapter(folder, setup.trained_adapter(), lora, rules, base=base, tokenizer=setup.tokenizer, card=card)
    say("export", f"wrote {folder} (an adapter of {base})")


def write_weights(setup: Setup, folder: Path, params: Params, *, card: str | None) -> None:
    """Writes a Hugging Face folder."""
    options = setup.config.export
    export_folder(
        folder,
        params,
        setup.model,
        setup.resolved.rules,
        setup.source,
        tokenizer=setup.tokenizer,
        skipped=setup.resolved.skipped,
        dtype=options.dtype,
        max_shard_bytes=file_bytes(options.max_shard_size),
        card=card,
    )
    say("export", f"wrote {folder} ({options.dtype})")
