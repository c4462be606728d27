"""Supervised fine-tuning: the start of the policy, and the reference."""

from __future__ import annotations

from collections import Counter

from dpo_jax.data.batches import Batches
from dpo_jax.data.sources import COMPLETIONS, stream
from dpo_jax.errors import UserError
from dpo_jax.stages import scratch
from dpo_jax.stages.fit import fit
from dpo_jax.stages.objectives import completion_objective
from dpo_jax.stages.rows import as_tokens
from dpo_jax.stages.setup import Setup


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
    train, model = config.sft.train, setup.sft_model
    batches = Batches(
        found.rows,
        batch_pairs=train.batch_pairs,
        micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
        seed=seed,
        order=config.data.order,
        row_multiple=setup.row_multiple,
        layout=config.data.layout,
        unpack=setup.unpack,
        columns={} if found.weight_B is None else {"loss_weight_B": found.weight_B},
    )
    fit(
        setup,
        stage="sft",
        folder=setup.sft_folder,
        model=model,
        start=(lambda: setup.fresh_adapter(model, seed=seed)) if model.lora else setup.pretrained,
        frozen=(lambda: setup.pretrained(held=True)) if model.lora else None,
        objective=completion_objective(model, **setup.tiles),
        batches=batches,
        optimizer=config.sft.optimizer,
        train=train,
        seed=seed,
    )
