"""Python in a process of its own, whose compiler is that of a user: for tests of what a compiled program takes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import Any


def evaluate(module: str, expression: str) -> Any:
    """The value of a literal that an expression on a module, `m`, gives."""
    child = [sys.executable, "-c", f"import {module} as m; print(repr({expression}))"]
    printed = subprocess.run(child, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=True)
    return ast.literal_eval(printed.stdout.splitlines()[-1])
