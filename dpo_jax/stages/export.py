"""The trained model as a Hugging Face folder."""

from __future__ import annotations

from dpo_jax.reporting.card import model_card
from dpo_jax.stages import report
from dpo_jax.stages.progress import say
from dpo_jax.stages.setup import Setup
from dpo_jax.weights.export import export_folder


def run(setup: Setup) -> None:
    """Writes WORKDIR/export from the newest checkpoint."""
    folder = setup.workdir / "export"
    params = setup.restored_params(setup.workdir, "train")
    dtype = setup.config.export.dtype
    export_folder(
        folder,
        params,
        setup.model,
        setup.resolved.rules,
        setup.source,
        tokenizer=setup.tokenizer,
        skipped=setup.resolved.skipped,
        dtype=dtype,
        card=model_card(report.gather(setup)),
    )
    say("export", f"wrote {folder} ({dtype})")
