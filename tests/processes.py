"""Python in processes of their own: one whose compiler is that of a user, or several that are one run."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def evaluate(module: str, expression: str) -> Any:
    """The value of a literal that an expression on a module, `m`, gives: of what a compiled program takes."""
    child = [sys.executable, "-c", f"import {module} as m; print(repr({expression}))"]
    printed = subprocess.run(child, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=True)
    return ast.literal_eval(printed.stdout.splitlines()[-1])


def environments(count: int, devices: int, **more: str) -> list[dict[str, str]]:
    """The environments with which so many processes are one run, with so many pretend devices together."""
    flag = "--xla_force_host_platform_device_count="
    others = [each for each in os.environ["XLA_FLAGS"].split() if not each.startswith(flag)]
    own = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join([*others, f"{flag}{devices // count}"]), **more}
    if count == 1:
        return [own]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": str(count)}
    return [own | {"JAX_PROCESS_ID": str(number)} for number in range(count)]
