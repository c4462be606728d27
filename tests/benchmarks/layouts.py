"""The work of each layout on the rows of an experiment: tokens through the trunk, scored tokens, padding, shapes.

    python tests/benchmarks/layouts.py CONFIG [--key.sub value ...] [--json FILE]

Goes through one epoch of batches as the training would have them (data.train, train.batch_pairs and
train.micro_batch_pairs), and computes nothing.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from work import keep, parse

from dpo_jax.config import load
from dpo_jax.data.batches import Batches
from dpo_jax.data.layouts import LAYOUTS
from dpo_jax.data.shapes import Packing
from dpo_jax.experiments.texts import TextExperiment


def measure(setup: TextExperiment, layout: str) -> dict[str, Any]:
    """Numbers of one epoch in this layout; tokens are counted for each pair."""
    train = setup.config.train
    batches = Batches(
        setup.train_data.rows,
        batch_pairs=train.batch_pairs,
        micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
        seed=setup.config.seed,
        packing=Packing(layout),
        desirable=setup.train_data.desirable,
    )
    steps, shapes = batches.steps(1), set()
    tokens, real, scored = np.zeros(3)
    start = time.perf_counter()
    for step in range(steps):
        arrays = batches.batch(step).arrays
        for each in [arrays] + ([arrays.mismatched] if arrays.mismatched else []):
            tokens += each.tokens_RT.size
            real += np.count_nonzero(each.segments_RT)
            scored += each.target_RN.size
            shapes.add(each.tokens_RT.shape + each.target_RN.shape)
    pairs = steps * train.batch_pairs
    return {
        "layout": layout,
        "tokens_per_pair": tokens / pairs,
        "padding": 1 - real / tokens,
        "scored_per_pair": scored / pairs,
        "shapes": len(shapes),
        "milliseconds_per_batch": (time.perf_counter() - start) / steps * 1e3,
    }


def main() -> None:
    """Prints a line for each layout."""
    options = parse(__doc__, "config")
    setup = TextExperiment(*load(options.config, options.rest), command="layouts")
    found = [measure(setup, layout) for layout in LAYOUTS]
    print("layout    tokens/pair  of padded  padding  scored/pair  shapes  ms/batch")
    for each in found:
        share = each["tokens_per_pair"] / found[0]["tokens_per_pair"]
        print(
            f"{each['layout']:9} {each['tokens_per_pair']:11.0f} {share:10.2f}"
            f" {each['padding']:8.1%} {each['scored_per_pair']:12.0f} {each['shapes']:7}"
            f" {each['milliseconds_per_batch']:9.1f}"
        )
    keep(options, found)


if __name__ == "__main__":
    main()
