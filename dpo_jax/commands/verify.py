"""The check of all that a run has written; it loads no JAX."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.errors import UserError, printable
from dpo_jax.runs.verify import examine


def verify(root: Path) -> None:
    """Print a line for each thing at `root` or below.

    Raises:
        UserError: one of them is damaged, or there is nothing to be checked.
    """
    if not root.is_dir():
        raise UserError(f"command line: verify: {root} is not a folder.")
    findings = []
    for each in examine(root):
        print(printable(f"{each.state:>4}  {each.what}: {each.says}", lines=True), flush=True)
        findings.append(each)
    bad = [each for each in findings if each.state == "bad"]
    if bad:
        raise UserError(
            f"verify: {root}: {len(bad)} of {len(findings)} are not as they were written: {bad[0].what} ..."
        )
    if all(each.state in ("left", "warn") for each in findings):
        raise UserError(f"verify: {root} holds no checkpoint, store or export, and nothing else of a run.")
