"""Changes of a configuration that a resumed run may have, and those that make it another run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from dpo_jax.config import Config, PictureConfig
from dpo_jax.config.model import FREE
from dpo_jax.config.training import CommonConfig
from dpo_jax.errors import UserError
from dpo_jax.masking import masked
from dpo_jax.reading import Written, untyped

_DECIDES = {
    "sft": ("sft", "seed", "model", "data", "pictures"),
    "pairs": ("pairs", "sampling", "sft", "seed", "model", "data", "pictures"),
    "reward": ("reward", "lora", "sft", "seed", "model", "data", "pictures", "pairs", "sampling"),
}
"""The sections of a configuration that decide what a stage computes; of the policy all do but `reward`."""

_LENGTH_OF_SFT = ("sft.train.steps", "sft.train.epochs")
"""May change of other trainings, which then go on; fine-tuning is where they start."""

_NOT_READ = ("data.train", "data.eval")
"""Settings in these sections that fine-tuning does not read."""


def refuse_changes(stage: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on with another experiment under the same name."""
    old, new = deciding(stage, saved["config"]), deciding(stage, current["config"])
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    # A schedule that ends at the last step is another schedule when that step moves.
    section = current["config"] if stage == "train" else current["config"][stage]
    schedule = section["optimizer"]["schedule"]
    if saved["steps"] != current["steps"]:
        if schedule != "constant":
            changed.append(f"train.steps (the {schedule} schedule ends there)")
        if stage == "train" and any(term["options"].get("alpha") == "auto" for term in current["config"]["loss"]):
            changed.append("train.steps (alpha: auto reaches its budget there)")
    if changed:
        lines = [
            f"  {key}: was {old.get(key)!r}, is {new.get(key)!r}" if key in old or key in new else f"  {key}"
            for key in changed
        ]
        raise UserError(
            f"{stage}: {saved['config']['workdir']} holds the beginning of another run:\n"
            + "\n".join(lines)
            + "\nUndo the change, or start afresh with `--workdir FOLDER`."
        )


def deciding(stage: str, config: Mapping[str, Any]) -> dict[str, object]:
    """The settings that decide what a stage computes, by their dotted names."""
    unread: tuple[str, ...] = ()
    if stage == "sft":
        unread = _NOT_READ
    # A part that has a seed of its own does not read that of the run, if what it begins with does not either.
    parts = {"sft": ("sft",), "pairs": ("sft", "pairs")}.get(stage, ())
    if parts and all(config[part] is None or config[part].get("seed") is not None for part in parts):
        unread = (*unread, "seed")
    free = (*free_settings(PictureConfig if "pictures" in config else Config), *unread)
    return {
        key: _option(value) if ".options." in key else value
        for key, value in _flat(masked(config)).items()  # a run that an earlier version began may hide less
        if (key.startswith(_DECIDES[stage]) if stage in _DECIDES else not key.startswith("reward"))
        and not any(key == each or key.startswith(f"{each}.") for each in free)
    }


@functools.cache
def free_settings(kind: type[CommonConfig]) -> tuple[str, ...]:
    """The settings that a resumed run may change, by their dotted names; a section stands for all that is in it."""
    return tuple(key for key in _free(kind, "") if key not in _LENGTH_OF_SFT)


def _free(kind: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.metadata == FREE:
            yield prefix + field.name
            continue
        for part in (hints[field.name], *get_args(hints[field.name])):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from _free(part, f"{prefix}{field.name}.")


def _option(value: object) -> object:
    """An option of a loss; earlier versions kept numbers such as 1e-1, without a dot, as text."""
    return untyped(Written(value)) if isinstance(value, str) else value


def _flat(value: object, key: str = "") -> dict[str, object]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {key: value}
    flat: dict[str, object] = {}
    for name, item in items:
        flat |= _flat(item, f"{key}.{name}" if key else str(name))
    return flat
