"""Supervised fine-tuning: the start of the policy, and the reference."""

from __future__ import annotations

from collections import Counter

from dpo_jax.commands import scratch
from dpo_jax.data.sources import COMPLETIONS, stream
from dpo_jax.errors import UserError
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.rows import as_tokens
from dpo_jax.experiments.texts import Setup
from dpo_jax.experiments.training import batches_of, make_training, present
from dpo_jax.objectives.preference import completion_objective


def run(setup: Setup) -> None:
    """Trains into the folder of the fine-tuning, WORKDIR/sft; does nothing where that is done."""
    config = setup.config
    if config.sft is None:
        raise UserError("sft: the configuration has no `sft:` section, which would say what to fine-tune on.")
    scratch.prepare(setup)
    seed = config.seed if config.sft.seed is None else config.sft.seed
    skipped: Counter[str] = Counter()
    reading = {"on_error": config.data.on_error, "seed": seed, "skipped": skipped}
    completions = stream(COMPLETIONS, config.sft.data.train, **reading)
    found = as_tokens(config, setup.tokenizer, "sft.data.train", config.sft.data.train, completions, skipped)
    model, weights = setup.sft_model, present(loss_weight_B=found.weight_B)
    training = make_training(
        config.sft,
        stage="sft",
        folder=setup.sft_folder,
        model=model,
        objective=completion_objective(model.apply, adapter=model.lora is not None, **setup.tiles),
        batches=batches_of(setup, config.sft.train, found.rows, seed=seed, columns=weights),
        start=(lambda: setup.fresh_adapter(model, seed=seed)) if model.lora else setup.pretrained,
        frozen=(lambda: setup.pretrained(held=True)) if model.lora else None,
        seed=seed,
    )
    fit(setup, training)
