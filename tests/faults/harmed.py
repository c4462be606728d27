"""The command line with one process that comes to harm while it trains: `python -m tests.faults.harmed ARGUMENTS`.

HARM says how, HARM_PROCESS to which process, HARM_STEP when it reads the batch of which step.
"""

from __future__ import annotations

import os
import signal
import time

import jax
import numpy as np

from dpo_jax import cli
from dpo_jax.data.batches import Batches

read = Batches.batch


def harmed(self: Batches, step: int):
    if step == int(os.environ["HARM_STEP"]) and jax.process_index() == int(os.environ["HARM_PROCESS"]):
        match os.environ["HARM"]:
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                raise RuntimeError("harmed on purpose")
            case "hangs":
                time.sleep(1e6)
            case "nan":
                batch = read(self, step)
                return batch._replace(
                    arrays=batch.arrays._replace(reference_logps_BP=batch.arrays.reference_logps_BP * np.nan)
                )
    return read(self, step)


Batches.batch = harmed

if __name__ == "__main__":
    cli.main()
