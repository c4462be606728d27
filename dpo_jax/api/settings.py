"""Keywords of Python as the settings of an experiment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpo_jax.config import Config, DataConfig, OptimizerConfig, TrainConfig
from dpo_jax.errors import UserError, nearest
from dpo_jax.losses import LOSSES
from dpo_jax.losses.knobs import knobs

Losses = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The name of a loss, or what stands in the section `loss` of a configuration: a mapping, or a list of them."""

_SECTIONS = {"train": TrainConfig, "optimizer": OptimizerConfig, "data": DataConfig}
"""The sections whose settings may be given by their own names."""
_GIVEN = ("model", "loss", "workdir")  # by arguments of their own


def settings_of(loss: Losses, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as a configuration file holds it.

    A keyword is an option of the loss that is named (`beta`), a setting of the sections train, optimizer and data
    (`steps`, `learning_rate`, `max_tokens`), or a section or setting of the top (`lora={"rank": 8}`, `seed`), in this
    order.

    Raises:
        UserError: it is none of these.
    """
    options = _options(loss)
    owner = {field.name: section for section, kind in _SECTIONS.items() for field in dataclasses.fields(kind)}
    for name in ("name", "train", "eval"):
        owner.pop(name)
    top = {field.name for field in dataclasses.fields(Config)} - {*_GIVEN}
    written: dict[str, Any] = {"loss": {"name": loss, "options": {}} if isinstance(loss, str) else plain(loss)}
    for name, value in keywords.items():
        value = plain(value)
        if name in options:
            written["loss"]["options"][name] = value
        elif name in top:
            both = isinstance(value, dict) and isinstance(written.get(name), dict)
            written[name] = {**written[name], **value} if both else value
        elif name in owner:
            section = written.setdefault(owner[name], {})
            section[name] = value
        else:
            allowed = [*options, *owner, *sorted(top)]
            raise UserError(f"{name}={value!r}: no option of the loss, and no setting. {nearest(name, allowed)}")
    return written


def _options(loss: Losses) -> list[str]:
    """The options of a loss that is named."""
    if not isinstance(loss, str):
        return []
    if loss not in LOSSES:
        raise UserError(f"loss={loss!r}: there is no such loss. {nearest(loss, LOSSES)}")
    return list(knobs(LOSSES[loss].function))


def plain(value: Any) -> Any:
    """A value as YAML would give it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
