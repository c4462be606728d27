"""`import dpo_jax.losses` is cheap: JAX and chex, and next to nothing beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Processor time: other programs on the machine do not count.
CODE = """
import sys, time
import jax
before, start = set(sys.modules), time.process_time()
import dpo_jax.losses
seconds = time.process_time() - start
new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(seconds, *sorted(new))
"""


def test_importing_the_losses_takes_less_than_half_a_second_beyond_jax():
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert min(float(run[0]) for run in runs) < 0.5
    # chex brings absl, toolz and typing_extensions; nothing else comes.
    assert set(runs[0][1:]) <= {"dpo_jax", "chex", "absl", "toolz", "typing_extensions", "jax", "jaxlib", "numpy"}
