"""Supervised fine-tuning: the start of the policy, and the reference."""

from __future__ import annotations

from collections import Counter

from dpo_jax.commands import scratch
from dpo_jax.data.sources import COMPLETIONS, stream
from dpo_jax.errors import UserError
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.rows import as_tokens
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import batches_of, make_training, present
from dpo_jax.objectives.preference import completion_objective


def run(experiment: TextExperiment) -> None:
    """Trains into the folder of the fine-tuning, WORKDIR/sft; does nothing where that is done."""
    config = experiment.config
    if config.sft is None:
        raise UserError("sft: the configuration has no `sft:` section, which would say what to fine-tune on.")
    scratch.prepare(experiment)
    seed = config.seed if config.sft.seed is None else config.sft.seed
    skipped: Counter[str] = Counter()
    reading = {"on_error": config.data.on_error, "seed": seed, "skipped": skipped}
    completions = stream(COMPLETIONS, config.sft.data.train, **reading)
    found = as_tokens(config, experiment.tokenizer, "sft.data.train", config.sft.data.train, completions, skipped)
    model, weights = experiment.sft_model, present(loss_weight_B=found.weight_B)
    training = make_training(
        config.sft,
        stage="sft",
        folder=experiment.sft_folder,
        model=model,
        objective=completion_objective(model.apply, adapter=model.lora is not None, **experiment.tiles),
        batches=batches_of(experiment, config.sft.train, found.rows, seed=seed, columns=weights),
        start=(lambda: experiment.fresh_adapter(model, seed=seed)) if model.lora else experiment.pretrained,
        frozen=(lambda: experiment.pretrained(held=True)) if model.lora else None,
        seed=seed,
    )
    fit(experiment, training)
