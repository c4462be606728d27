"""The reference pass and its store: rows a second scored, written and read, and what a second run computes.

    python tests/benchmarks/reference_store.py [--rows 512] [--json FILE]

`dpo-jax reference` on a random Llama (4 layers, width 256) and rows as long as HH's; then a training with another loss,
beta and seed from the same store. Forwards are counted where the scorer calls the model, on arrays.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from work import SHAPES, drawn_lengths, keep, make_model, make_rows, parse, write_config

from dpo_jax import cli
from dpo_jax.experiments import texts as setup
from dpo_jax.files import read_json
from dpo_jax.reference import score
from dpo_jax.reference.store import Scores, Store

STORED = 1_000_000


def counted() -> list[int]:
    """A list whose one number grows with each forward pass of a scorer."""
    made, calls = score.make_scorer, [0]

    def make(apply: Any, **tiles: int) -> Any:
        inner = made(apply, **tiles)

        def call(params: Any, batch: Any) -> Any:
            calls[0] += 1
            return inner(params, batch)

        return call

    setup.make_scorer = make  # where it is called by its name
    return calls


def store_rates(folder: Path) -> dict[str, float]:
    """Rows a second written in shards of 65,536, and read by a store that is opened anew."""
    ids = np.random.default_rng(0).integers(0, 256, (STORED, 16), dtype=np.uint8)
    ones, fingerprint = np.ones((STORED, 2), np.float32), {"weights": "made up"}
    store, start = Store(folder, fingerprint), time.perf_counter()
    for first in range(0, STORED, 65536):
        part = slice(first, first + 65536)
        store.append(ids[part], Scores(-ones[part], ones[part].astype(np.int32), -ones[part]))
    written, start = STORED / (time.perf_counter() - start), time.perf_counter()
    Store(folder, fingerprint).lookup(ids)
    return {"rows_written_per_second": written, "rows_read_per_second": STORED / (time.perf_counter() - start)}


def main() -> None:
    """Prints each figure."""
    options = parse(__doc__, rows=512)
    calls, found = counted(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", SHAPES["small"], vocabulary=32_000)
        rows = make_rows(folder / "rows.jsonl", drawn_lengths(options.rows), vocabulary=32_000)
        config = str(write_config(folder / "e.yaml", model, rows))
        for run in ("first, compiling", "first, compiled"):
            command = ["reference", config, "--reference.store", str(folder / run)]
            start = time.perf_counter()
            cli.main(command)
            found[f"seconds of the whole command, {run}"] = time.perf_counter() - start
        found["forwards of a pass"], calls[0] = calls[0] / 2, 0
        store = next((folder / "first, compiled").iterdir())
        found["bytes a row in the store"] = (
            sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / options.rows
        )
        assert len(read_json(store / "manifest.json")["shards"]) == 1
        changes = ["--loss.name", "ipo", "--loss.options.beta", "0.5", "--seed", "7", "--workdir", str(folder / "two")]
        cli.main(["reference", config, "--reference.store", str(folder / "first, compiled"), *changes])
        found["forwards for another loss, beta and seed"] = calls[0]
        found |= store_rates(folder / "many")
    for title, value in found.items():
        print(f"{title}: {value:,.3g}" if value < 100 else f"{title}: {value:,.0f}")
    keep(options, found | {"jax": jax.__version__})


if __name__ == "__main__":
    main()
