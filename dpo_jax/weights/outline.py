"""The architecture of a model without its tensors: enough to plan with, and at hand without a network."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from dpo_jax.errors import UserError
from dpo_jax.weights.folder import no_tensor, open_without_tensors
from dpo_jax.weights.opening import HUB_ID, fetch, open_weights
from dpo_jax.weights.source import WeightsSource


class Outline(NamedTuple):
    """A checkpoint whose tensors cannot be read, and where its config comes from."""

    source: WeightsSource
    origin: str


class Published(NamedTuple):
    """A model as its authors published it."""

    hub: tuple[str, ...]  # its ids
    parameters: int  # of the language model; a tied head counts once
    config: dict[str, Any]


def open_outline(location: str) -> Outline:
    """What a location of weights, as in `open_weights`, says of the architecture.

    Of a hub id its config in the local cache, else the table of published ones, else the hub itself.

    Raises:
        UserError: none of them knows it.
    """
    path, hub = Path(location).expanduser(), HUB_ID.fullmatch(location)
    if path.is_dir():
        return Outline(open_without_tensors(path), f"{path / 'config.json'}")
    if path.exists() or not hub:
        return Outline(open_weights(location), "the file itself")
    if cached := _cached(hub["repo"], hub["revision"]):
        return Outline(open_without_tensors(cached), "config.json in the hub's local cache")
    for known in published():
        if hub["repo"] in known.hub:
            return Outline(_without_tokenizer(location, known.config), "the table of published architectures")
    return Outline(open_without_tensors(fetch(hub["repo"], hub["revision"], ["config.json"])), "config.json on the hub")


def published() -> list[Published]:
    """The table: one file a model, its values copied from the config.json that its authors published."""
    files = sorted(resources.files("dpo_jax.weights").joinpath("published").iterdir(), key=lambda file: file.name)
    found = [json.loads(file.read_text(encoding="utf8")) for file in files if file.name.endswith(".json")]
    return [Published(tuple(each["hub"]), each["parameters"], each["config"]) for each in found]


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _without_tokenizer(location: str, config: dict[str, Any]) -> WeightsSource:
    def refuse() -> NoReturn:
        raise UserError(f"weights {location!r}: its tokenizer is not in the hub's local cache.")

    return WeightsSource(
        where=location, config=config, generation_config={}, shapes={}, read=no_tensor, tokenizer=refuse
    )
