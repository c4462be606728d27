"""Runs on several hosts: one process on each, all of which call the same stage with the same configuration.

Every process reads all rows and computes the same numbers on its host; the mesh alone is split over them. The first
process writes the files, but for checkpoints and stores, which Orbax writes from all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from dpo_jax import files, locks
from dpo_jax.errors import UserError
from dpo_jax.meeting import meet
from dpo_jax.runtime.progress import console
from dpo_jax.runtime.xla_flags import find_platform

_HEARTBEAT_SECONDS = 10  # by default a dead process is noticed after 100 s
_SHUTDOWN_SECONDS = 30
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Of the step that `srun` starts; SLURM_NTASKS is there in the batch script as well, which runs alone.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def join_run(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of a run, where the environment names some; called before JAX looks for devices.

    It is named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; by SLURM or Open MPI, which started
    several tasks; or by a TPU pod, where JAX finds out by itself.

    Raises:
        UserError: the variables contradict each other, or the others cannot be reached.
    """
    arguments, may_be_alone = _arguments(environment), False
    if arguments is None and find_platform(environment) == "tpu":
        arguments, may_be_alone = {}, True  # only the pod itself knows
    if arguments is None:
        return
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        if may_be_alone and isinstance(error, ValueError):  # JAX found no pod around this TPU
            return
        said, run = str(error).splitlines()[0], arguments or "found by JAX"
        raise UserError(f"this process cannot join the others of its run ({run}): {said}") from error
    if jax.process_index():
        files.leave_to_the_first()
        console.quiet = True


def _arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None where this process is alone."""
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if given:
        address, *numbers = (given.get(name, "") for name in _VARIABLES)
        if not address or not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
            raise UserError(
                f"the environment has {given}. A run on several hosts needs all of JAX_COORDINATOR_ADDRESS (HOST:PORT "
                "of the first process), JAX_NUM_PROCESSES, and JAX_PROCESS_ID, from 0 to one less than that."
            )
        return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}
    if any(int(environment.get(name) or 1) > 1 for name in _TASKS):
        return {}
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or environment.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return {}
    return None


def check_shared(folder: Path) -> None:
    """Refuse a folder that not all processes of the run see as one, as a UserError."""
    if jax.process_count() == 1:
        return
    token = multihost_utils.broadcast_one_to_all(np.array(int.from_bytes(os.urandom(4), "big") >> 1, np.int32))
    mark = folder / f".shared-{int(token)}"
    files.write_atomic(mark, "")
    try:
        meet("mark written", sees=mark)
    finally:
        if jax.process_index() == 0:
            mark.unlink()


def from_first(compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return on every process what the first computes, float [n]: it alone asks others, who may want to be paid."""
    if jax.process_count() == 1:
        return compute()
    values = compute() if jax.process_index() == 0 else np.zeros(0)
    count = int(multihost_utils.broadcast_one_to_all(np.array(len(values), np.int32)))
    values = values if jax.process_index() == 0 else np.zeros(count)
    return np.asarray(multihost_utils.broadcast_one_to_all(values.astype(np.float32)), np.float64)


def text_from_first(compute: Callable[[], str]) -> str:
    """Return on every process the text that the first computes."""
    codes = from_first(lambda: np.frombuffer(compute().encode(), np.uint8).astype(np.float32))
    return codes.astype(np.uint8).tobytes().decode()


@contextlib.contextmanager
def held(lock: locks.Lock) -> Iterator[None]:
    """The context in which the processes of the run have a lock: the first one holds it for all.

    Raises:
        UserError: another run has it, and this one does not wait.
    """
    if jax.process_count() == 1:
        with locks.held(lock):
            yield
        return
    while not _taken_by_the_first(lock):  # all ask again and again: waiting in a collective ends with its patience
        time.sleep(1)
    with lock if jax.process_index() == 0 else contextlib.nullcontext():
        meet("a lock is held", sees=Path(lock.what))
        yield


def _taken_by_the_first(lock: locks.Lock) -> bool:
    refused, answer = None, 0
    if jax.process_index() == 0:
        try:
            answer = int(lock.taken())
        except UserError as error:
            refused, answer = error, -1
    answer = int(multihost_utils.broadcast_one_to_all(np.array(answer, np.int32)))
    if answer < 0:
        raise refused or UserError(f"{lock.what} cannot be had; process 0 says why.")
    return answer == 1


def alike(number: int) -> bool:
    """True if all processes of the run come here with the same number."""
    return jax.process_count() == 1 or len(set(multihost_utils.process_allgather(np.array(number)).tolist())) == 1


def leave(code: int, message: str) -> NoReturn:
    """End this process; of several, at once, so that the others hear of it instead of waiting for it."""
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    print(f"dpo-jax: {message}" + (f" (process {jax.process_index()})" if several else ""), file=sys.stderr, flush=True)
    if several:
        os._exit(code)
    raise SystemExit(code)


def leave_together(code: int, message: str) -> NoReturn:
    """End this process; of several, once all of them are here: none is to take the others for dead."""
    print(f"dpo-jax: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    raise SystemExit(code)


def crash() -> None:
    """Show the error at hand and end this process, if it is one of several; do nothing if it is alone."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        traceback.print_exc()
        leave(1, "crashed")
