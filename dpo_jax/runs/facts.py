"""Facts that decide a training beside its configuration: digests of its rows, tokenizer and first weights, by name.

They are kept in its checkpoints. A file that is replaced under its old name changes no configuration, but a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dpo_jax.errors import UserError
from dpo_jax.files import Json

Facts = Mapping[str, str]


def facts_of(record: Json) -> Facts:
    """The facts in the record of a checkpoint; none in one that an earlier version wrote."""
    return record.get("facts", {})


def differing(saved: Facts, now: Facts) -> list[str]:
    """One line for each fact that both name and that is not the same; what only one of them knows proves nothing."""
    return [f"{name}: was {saved[name]}, is {now[name]}" for name in saved if name in now and saved[name] != now[name]]


def refuse_other(stage: str, folder: Path, saved: Facts, now: Facts) -> None:
    """Refuse to go on from, or to measure, what `stage` made in a folder of other rows, text or weights.

    Raises:
        UserError: it names each that differs.
    """
    if lines := differing(saved, now):
        listed = "\n  ".join(lines)
        raise UserError(
            f"{stage}: {folder} was trained on something else, which has the same name in the configuration:\n  "
            f"{listed}\nPut back what it was trained on, or train afresh with `--workdir FOLDER`."
        )
