"""The configurations that come with the package: listed, printed, copied."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.config.shipped import describe, find, names
from dpo_jax.errors import UserError
from dpo_jax.files import named_output, write_atomic


def run(name: str | None, *, copy: str | None, force: bool) -> None:
    """List all, or print one, or, where `copy` is given, write it there; an empty `copy` is NAME.yaml.

    Raises:
        UserError: there is none of this name, or the file is there already.
    """
    if name is None:
        if copy is not None:
            raise UserError(f"command line: configs: --copy: name the configuration. Allowed: {', '.join(names())}.")
        print("\n".join(map(_listed, names().values())))
        print("\n`dpo-jax configs NAME` prints one, with --copy into a file; `dpo-jax run NAME` runs it.")
        return
    text = find(name).read_text(encoding="utf8")
    if copy is None:
        print(text, end="")
        return
    path = named_output("--copy", copy or f"{find(name).stem}.yaml")
    if path.exists() and not force:
        raise UserError(f"{path} is there already. Name another file, --copy FILE, or let --force replace it.")
    write_atomic(path, text)
    print(f"wrote {path}")


def _listed(path: Path) -> str:
    about = describe(path)
    return f"{path.stem}: {about.shows}\n  model: {about.model}\n  cost:  {about.cost}"
