"""The parity tests need PyTorch, TRL, PEFT and Diffusers: `pip install torch==2.13.0`, then the extra `parity`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_MISSING = [name for name in ("torch", "trl", "peft", "diffusers") if importlib.util.find_spec(name) is None]
if _MISSING and os.environ.get("DPO_JAX_PARITY"):
    raise pytest.UsageError(f"launch/parity.sh did not install {', '.join(_MISSING)}: nothing would be compared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests where the libraries to compare with are missing."""
    if not _MISSING:
        return
    skip = pytest.mark.skip(reason=f"not installed: {', '.join(_MISSING)} (the extra 'parity')")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(skip)
