"""The command line, and beside it what the process holds as it trains: `python -m tests.faults.measured ARGUMENTS`.

Every hundredth batch a line of measured.jsonl: step, resident KiB, open files, threads, programs compiled so far.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import jax

from dpo_jax import cli
from dpo_jax.data.batches import Batches

EVERY = 100
read = Batches.batch
compiled = [0]


def count(event: str, seconds: float, **_: object) -> None:
    compiled[0] += event == "/jax/core/compile/backend_compile_duration"


def measured(self: Batches, step: int):
    if step and step % EVERY == 0:
        kib = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        found = {"step": step, "kib": kib, "files": len(os.listdir("/proc/self/fd"))}
        found |= {"threads": threading.active_count(), "compiled": compiled[0]}
        with Path("measured.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
    return read(self, step)


Batches.batch = measured

if __name__ == "__main__":
    jax.monitoring.register_event_duration_secs_listener(count)
    cli.main()
