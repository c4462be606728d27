"""The reference stores below a folder, for `dpo-jax store ls`."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.errors import UserError
from dpo_jax.reference.store import listing


def describe(root: Path) -> str:
    """A few lines for each store: where it is, what it holds, which runs read it.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"command line: store ls: {root} is not a folder.")
    lines: list[str] = []
    for store in listing(root):
        made = store.fingerprint
        lines += [
            f"{store.folder}: {store.rows:,} rows",
            f"    model {made.get('weights', '?')[:12]} in {made.get('dtype', '?')}, "
            f"tokenizer {made.get('tokenizer', '?')[:12]}, template {made.get('template', '?').split()[0]}",
            f"    read by {', '.join(store.used_by) or 'no run yet'}",
        ]
    return "\n".join(lines) or f"no reference store in {root} or below"
