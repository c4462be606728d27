"""Memory of many rows: their tokens on disk, batches of them, the reference store, the checks of the data.

    JAX_PLATFORMS=cpu python tests/benchmarks/rows.py [--rows 10000000] [--folder DIR] [--json FILE]

Rows are made up as they are written (a prompt of 16 to 47 tokens, responses of 8 to 23), so that nothing but the
product's own tables is held. Prints the memory of the process that is not a mapped file (RssAnon), after each part and
at its height, in bytes a row; the disk of DIR must hold about 300 bytes a row.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from work import keep, parse

from dpo_jax.data.batches import Batches
from dpo_jax.data.check import check_rows
from dpo_jax.data.shapes import Packing
from dpo_jax.data.tokens import row_ids_of, take, write_table
from dpo_jax.reference.store import Scores, Store
from dpo_jax.types import TokenRow

SHARD = 65536
STEPS = 2000


def made_up(count: int) -> Iterator[TokenRow]:
    """Rows of random tokens with different ids."""
    tokens = np.random.default_rng(0).integers(3, 32000, 1 << 20).astype(np.int32)
    for number in range(count):
        start, size = number * 97 % (len(tokens) - 128), 16 + number % 32
        ends = start + size + 8 + number % 16, start + size + 24 + number % 23
        parts = tokens[start : start + size], tokens[start + size : ends[0]], tokens[start + size + 8 : ends[1]]
        mixed = (number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128
        yield TokenRow(f"{mixed:032x}", parts[0], parts[1:])


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Height:
    """The most that `anonymous_bytes` says while a block runs, looked at fifty times a second."""

    def __enter__(self) -> Height:
        self.most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    """Runs every part once."""
    options = parse(__doc__, rows=10_000_000, folder=None)
    found: list[dict[str, Any]] = []
    rows: Any = None
    store: Any = None

    def write(folder: Path) -> None:
        nonlocal rows
        rows = write_table(made_up(options.rows), folder / "tokens")

    def score(folder: Path) -> None:
        nonlocal store
        store = Store(folder / "store", {"weights": "made up"})
        for start in range(0, len(rows), SHARD):
            part = take(rows, np.arange(start, min(start + SHARD, len(rows))))
            ones = np.ones((len(part), 2), np.float32)
            store.append(row_ids_of(part), Scores(-ones, ones.astype(np.int32), -ones))

    def batch(folder: Path) -> None:
        scores = store.lookup(row_ids_of(rows))
        reference = {"reference_logps_BP": scores.logps_nP, "reference_heads_BP": scores.heads_nP}
        batches = Batches(
            rows, batch_pairs=64, micro_batch_pairs=64, seed=0, packing=Packing("shared"), columns=reference
        )
        start = time.perf_counter()
        for step in range(STEPS):
            batches.batch(step * 7919 % batches.steps(1))
        print(
            f"  {STEPS} batches of 64 pairs anywhere in the epoch: {STEPS / (time.perf_counter() - start):.0f} a second"
        )

    parts: dict[str, Callable[[Path], Any]] = {
        "write tokens": write,
        "write the store": score,
        "look all rows up, make batches": batch,
        "check the data": lambda folder: check_rows(rows, ends={2}, bos=1),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        Store(Path(folder) / "one", {}).append(["0" * 32], Scores(*np.zeros((3, 1, 2))))  # Orbax is imported
        before = anonymous_bytes()
        print(f"{options.rows:,} rows; {before / 1e6:.0f} MB before the first")
        for name, part in parts.items():
            start = time.perf_counter()
            with Height() as height:
                part(Path(folder))
            held, most = (each - before for each in (anonymous_bytes(), height.most))
            seconds = time.perf_counter() - start
            found.append({"part": name, "seconds": seconds, "held_bytes": held, "most_bytes": most})
            print(
                f"{name:32} {seconds:7.0f} s   holds {held / 1e6:6.0f} MB, {held / options.rows:5.0f} a row   "
                f"at its height {most / 1e6:6.0f} MB, {most / options.rows:5.0f} a row"
            )
    keep(options, {"rows": options.rows, "parts": found})


if __name__ == "__main__":
    main()
