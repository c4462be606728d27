"""Verdicts on disk, so that none is paid for twice: JSON Lines, a line for each, added as it comes."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from dpo_jax.errors import UserError


def key_of(*parts: Any) -> str:
    """A digest of all that a verdict depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Known answers by their key; threads may share it. Without a path it is forgotten with the process.

    A last line that a crash cut short is left out. Processes that write at the same time add lines of their own.
    """

    def __init__(self, path: Path | None):
        self._path, self._known, self._lock = path, dict[str, Any](), threading.Lock()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines() if path.exists() else []
            with path.open("ab") as file:
                if lines and not path.read_bytes().endswith(b"\n"):
                    file.write(b"\n")
        except OSError as error:
            raise UserError(f"judge http: the cache {path} cannot be used: {error.strerror}.") from None
        for line in lines:
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["value"]
            except (ValueError, LookupError, TypeError):
                continue

    def get(self, key: str) -> Any:
        """The known answer, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value, on disk before this returns."""
        with self._lock:
            self._known[key] = value
            if self._path is not None:
                with self._path.open("a", encoding="utf8") as file:
                    file.write(json.dumps({"key": key, "value": value}) + "\n")
