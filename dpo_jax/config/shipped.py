"""The configurations that come with the package, and what the lab record at the top of each says."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from dpo_jax.errors import UserError, nearest
from dpo_jax.reading import read_yaml

_COST = re.compile(r"^# cost {2,}(.*(?:\n# {4,}.*)*)", re.MULTILINE)


class Shipped(NamedTuple):
    """One of them: its file, what it shows, what it costs, and the model that it needs."""

    path: Path
    shows: str
    cost: str
    model: str


def folder() -> Path:
    """The folder inside the installed package, or that of the source beside it."""
    package = Path(str(resources.files("dpo_jax")))
    return inside if (inside := package / "configs").is_dir() else package.parent / "configs"


def names() -> dict[str, Path]:
    """Name -> file."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of this name, with its ending or without.

    Raises:
        UserError: there is none.
    """
    known = names()
    stem = Path(name).name.removesuffix(".yaml")
    if stem not in known:
        raise UserError(f"command line: configs: {name!r} is unknown. {nearest(stem, known)}")
    return known[stem]


def describe(path: Path) -> Shipped:
    """What a file says of itself."""
    text = path.read_text(encoding="utf8")
    first, cost, settings = text.partition("\n")[0], _COST.search(text), read_yaml(path)
    made = "made from nothing, by the first command" if "scratch" in settings else "trained from nothing"
    model = settings.get("model", {}).get("weights", "") if "scratch" not in settings else ""
    said = " ".join(cost[1].replace("\n#", " ").split()) if cost else "not said"
    return Shipped(path, first.removeprefix("# "), said, f"{model}" or made)
