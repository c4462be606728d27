"""Which changes of a configuration a resumed run may have, and which make it another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_jax.errors import UserError

_MAY_CHANGE = (
    "workdir",
    "mesh",
    "pairs",
    "sampling",
    "sweep",
    "reference.store",
    "reference.batch_pairs",
    "reference.rows_per_shard",
    "evaluation",
    "analysis",
    "logging",
    "export",
    "data.layout",
    "model.attention",
    "model.remat",
    "profile",
    "tiles",
    "train.epochs",
    "train.keep",
    "train.log_every",
    "train.micro_batch_pairs",
    "train.save_every",
    "train.skips_allowed",
    "train.step_timeout_seconds",
    "train.steps",
    "sft.train.keep",
    "sft.train.log_every",
    "sft.train.micro_batch_pairs",
    "sft.train.save_every",
    "sft.train.skips_allowed",
    "sft.train.step_timeout_seconds",
    "reward.train.epochs",
    "reward.train.keep",
    "reward.train.log_every",
    "reward.train.micro_batch_pairs",
    "reward.train.save_every",
    "reward.train.skips_allowed",
    "reward.train.step_timeout_seconds",
    "reward.train.steps",
)
"""What a resumed run may change: where and how it computes, and how long; never what is computed."""

_DECIDES = {
    "sft": ("sft", "seed", "model", "data", "pictures"),
    "pairs": ("pairs", "sampling", "sft", "seed", "model", "data", "pictures"),
    "reward": ("reward", "lora", "sft", "seed", "model", "data", "pictures", "pairs", "sampling"),
}
"""The sections of a configuration that decide what a stage computes; of the policy all do but `reward`."""

_OF_PICTURES = ("pairs", "sampling")
"""What decides where it is pictures whose pairs the training makes itself."""

_NOT_READ = ("data.train", "data.eval")
"""Settings in these sections that fine-tuning does not read."""


def refuse_changes(stage: str, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to go on with another experiment under the same name."""
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


def deciding(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a stage computes, by their dotted names."""
    unread: tuple[str, ...] = ()
    if stage == "sft":
        unread = _NOT_READ
    # A part that has a seed of its own does not read that of the run, if what it begins with does not either.
    parts = {"sft": ("sft",), "pairs": ("sft", "pairs")}.get(stage, ())
    if parts and all(config[part] is None or config[part].get("seed") is not None for part in parts):
        unread = (*unread, "seed")
    free = [key for key in (*_MAY_CHANGE, *unread) if "pictures" not in config or key not in _OF_PICTURES]
    return {
        key: value
        for key, value in _flat(config).items()
        if (key.startswith(_DECIDES[stage]) if stage in _DECIDES else not key.startswith("reward"))
        and not any(key == each or key.startswith(f"{each}.") for each in free)
    }


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {key: value}
    flat: dict[str, Any] = {}
    for name, item in items:
        flat |= _flat(item, f"{key}.{name}" if key else str(name))
    return flat
