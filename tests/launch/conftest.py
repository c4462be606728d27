"""Programs of the clouds that do nothing but write down how they are called."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SETTINGS = ("PYTHON", "DPO_JAX_VENV", "DPO_JAX_ACCELERATOR", "DRY_RUN", "HF_TOKEN", "WANDB_API_KEY")
_HEAD = """\
#!/bin/bash
(IFS=$'\\x1f'; printf '%s\\n' "${0##*/}$IFS$*") >>"$FAKES/calls"
"""


class Fakes:
    """A folder of programs at the head of PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, body: str = "") -> None:
        """A program of this name: it writes down its arguments and goes on with `body`, lines of bash."""
        program = self.folder / name
        program.write_text(_HEAD + body)
        program.chmod(0o755)

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """That of a launcher: nothing of the settings under which these tests were themselves launched."""
        mine = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return {**mine, "PATH": path, "FAKES": str(self.folder), "POLL_SECONDS": "0", **extra}

    def run(self, script: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """`bash launch/SCRIPT ARGUMENTS` in the repository's folder."""
        command = ["bash", f"launch/{script}", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(extra), capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[list[str]]:
        """Program and arguments of each call, in order."""
        log = self.folder / "calls"
        return [line.split("\x1f") for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """No programs yet."""
    return Fakes(tmp_path / "fakes")


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a launcher that stopped with exit code 2 before it did anything."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (sentence,) = done.stderr.splitlines()
    return sentence
