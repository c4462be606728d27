"""What made a run: each command that trained, when, from which step, and on what machine; its report says so."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from dpo_jax import __version__
from dpo_jax.files import read_json, write_json
from dpo_jax.runs.run import Run


def note_session(folder: Path, command: str, *, from_step: int | None) -> None:
    """Adds this command to `folder`/history.json; a training that begins anew begins it anew."""
    earlier = read_history(folder) if from_step is not None else []
    write_json(Run(folder).history, [*earlier, session(command) | {"from_step": from_step or 0}])


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The sessions of a training, the oldest first; none where nobody noted them."""
    path = Run(folder).history
    return read_json(path) if path.exists() else []


def session(command: str) -> dict[str, Any]:
    """This one: `command`, `date` (ISO), `environment`."""
    devices = jax.devices()
    environment = {
        "dpo_jax": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "transformers")},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": str(jax.process_count()),
        "platform": platform.platform(),
    }
    return {"command": command, "date": datetime.date.today().isoformat(), "environment": environment}
