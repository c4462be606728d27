"""Verification of what a run has written: checkpoints, stores, exports, and the files between them.

Reads files and nothing else: it needs neither the model nor devices, and loads no JAX.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dpo_jax import locks
from dpo_jax.errors import Finding, UserError
from dpo_jax.files import changed, read_json, read_json_lines, read_sealed
from dpo_jax.reading import read_yaml
from dpo_jax.runs.run import Run

_LEFT = re.compile(r"\..*\.(\d+\.)?partial|\..*\.old|\.shared-\d+|.*\.orbax-checkpoint-tmp.*|crash(\.\d+)?\.txt")
_SHARD = re.compile(r"shard_\d{5}")
_NOT_OURS = (Run.tensorboard.name, Run.profile.name, Run.wandb.name)  # others write them, and nothing is read from
_MANIFEST, _USERS, _DIGESTS = "manifest.json", "used_by.json", "digests.json"  # of a store, and of an export
_MOST_NAMED = 3

Check = Callable[[Path], Iterator[Finding]]


def examine(root: Path) -> Iterator[Finding]:
    """All that there is at `root` or below, and in the stores elsewhere that the run reads."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = sorted(each for each in folders if each not in _NOT_OURS)
        yield from _in_use(folder, files)
        if looks_like := _kind(folder, folders, files):
            yield from _guarded(folder, looks_like)
            folders.clear()
            continue
        for left in [each for each in (*folders, *files) if _LEFT.fullmatch(each)]:
            yield Finding("left", str(folder / left), _says_of_left(left))
        folders[:] = [each for each in folders if not _LEFT.fullmatch(each)]
        for file in sorted(each for each in files if not _LEFT.fullmatch(each)):
            yield from _guarded(folder / file, _FILES.get(Path(file).suffix, lambda path: iter(())))
    yield from _elsewhere(root)


def _in_use(folder: Path, files: list[str]) -> Iterator[Finding]:
    """The locks in a folder: what is written there now may be seen half."""
    for name in sorted(each for each in files if locks.is_lock(each)):
        lives, holder = locks.describe(folder / name)
        if lives:
            yield Finding("warn", str(folder), f"in use by {holder}; what that is writing now may look unfinished")
        else:
            yield Finding("left", str(folder / name), f"the lock of {holder}, which is gone; the next command takes it")


def _kind(folder: Path, folders: list[str], files: list[str]) -> Check | None:
    """The check of a folder as a whole; None of one that is looked into."""
    if _DIGESTS in files or (folder.name == Run.export.name and files and Run.config.name not in files):
        return _export
    if _MANIFEST in files or any(_SHARD.fullmatch(each) for each in folders):
        return _store
    if folder.name == Run.checkpoints.name or any(f"{each}.json" in files for each in folders if each.isdigit()):
        return _checkpoints
    return None


def _guarded(path: Path, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; that it cannot go on is a finding too."""
    try:
        yield from check(path)
    except UserError as error:
        yield Finding("bad", str(path), str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, "))
    except OSError as error:
        yield Finding("bad", error.filename or str(path), f"cannot be read: {error.strerror}.")


def _checkpoints(folder: Path) -> Iterator[Finding]:
    """The steps, the oldest first; of a damaged one also which to go back to."""
    good: list[int] = []
    numbers = {int(path.stem) for path in folder.iterdir() if path.stem.isdigit() and path.suffix in ("", ".json")}
    for step in sorted(numbers):
        target, seal = folder / str(step), folder / f"{step}.json"
        back = f"Delete {step} and {step}.json to go on from step {good[-1]}." if good else "No older step is good."
        if not seal.exists():
            yield Finding("left", str(target), "a step that was not finished; it does not count, and harms nobody")
            continue
        try:
            digests = read_sealed(seal, "record", "digests")["digests"]
        except UserError as error:
            yield Finding("bad", str(seal), f"{_bare(error, seal)} {back}")
            continue
        if damaged := changed(target, digests):
            yield Finding("bad", str(target), f"{_named(target, damaged, digests)} {back}")
            continue
        good.append(step)
        yield Finding("good", str(target), _size(target, digests))
    for path in sorted(folder.iterdir()):
        if not path.stem.isdigit():
            yield Finding("left", str(path), _says_of_left(path.name))


def _store(folder: Path) -> Iterator[Finding]:
    again = f"Delete {folder} and score its rows again."
    path = folder / _MANIFEST
    if not path.exists():
        yield Finding(
            "left", str(folder), "a store without manifest.json: a pass was killed, or the file deleted; " + again
        )
        return
    try:
        manifest = read_sealed(path, "format", "fingerprint", "shards")
    except UserError as error:
        yield Finding("bad", str(path), f"{_bare(error, path)} {again}")
        return
    names = [shard["name"] for shard in manifest["shards"]]
    bad = False
    for shard in manifest["shards"]:
        target = folder / shard["name"]
        if damaged := changed(target, shard["digests"]):
            bad = True
            yield Finding("bad", str(target), f"{_named(target, damaged, shard['digests'])} {again}")
    if not bad:
        rows = sum(shard["rows"] for shard in manifest["shards"])
        yield Finding("good", str(folder), f"{len(names)} shards, {rows:,} rows")
    if (folder / _USERS).exists():
        read_json(folder / _USERS)
    for other in sorted(each.name for each in folder.iterdir()):
        if other not in (*names, _MANIFEST, _USERS) and not locks.is_lock(other):
            yield Finding(
                "left", str(folder / other), "not in the manifest: what a killed pass had begun; harms nobody"
            )


def _export(folder: Path) -> Iterator[Finding]:
    again = "Export it again."
    path = folder / _DIGESTS
    if not path.exists():
        yield Finding("bad", str(folder), f"has no digests.json, so nothing of it can be checked. {again}")
        return
    try:
        digests = read_sealed(path)
    except UserError as error:
        yield Finding("bad", str(path), f"{_bare(error, path)} {again}")
        return
    damaged = [name for name in changed(folder, digests) if name in digests]
    if damaged:
        edited = " Where you edited on purpose, delete digests.json." if "README.md" in damaged else ""
        yield Finding("bad", str(folder), f"{_named(folder, damaged, digests)} {again}{edited}")
    else:
        yield Finding("good", str(folder), _size(folder, digests))


def _elsewhere(root: Path) -> Iterator[Finding]:
    """The stores outside of the folder that say that this run reads them."""
    try:
        config = read_yaml(Run(root).config)
    except UserError:  # no run, or told already
        return
    store = (config.get("reference") or {}).get("store")
    for path in sorted(Path(store).glob(f"*/{_USERS}")) if store else []:
        if path.resolve().is_relative_to(root.resolve()) or str(config.get("workdir")) not in path.read_text("utf8"):
            continue
        yield from _guarded(path.parent, _store)


def _metrics(path: Path) -> Iterator[Finding]:
    rows = read_json_lines(path)
    if path.name != Run.metrics.name:
        yield Finding("good", str(path), f"{len(rows):,} lines")
        return
    steps = [row.get("step") for row in rows]
    for number, (before, step) in enumerate(zip([-1, *steps], steps, strict=False), start=1):
        if not isinstance(step, int) or step <= (before or 0):
            after = "" if number == 1 else f" after {before}"
            raise UserError(f"{path}, line {number}: damaged: step {step}{after}; steps only grow. Remove this line.")
    yield Finding("good", str(path), f"{len(steps):,} rows" + (f", to step {steps[-1]:,}" if steps else ""))


def _json(path: Path) -> Iterator[Finding]:
    read_json(path)
    yield Finding("good", str(path), "is whole JSON")


def _yaml(path: Path) -> Iterator[Finding]:
    read_yaml(path)
    yield Finding("good", str(path), "can be read")


def _zip(path: Path) -> Iterator[Finding]:
    """Arrays of pictures: a zip file has sums of its own."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: damaged: {error}. Delete it; the command that made it makes it again.") from None
    if damaged:
        raise UserError(f"{path}: damaged: {damaged} in it. Delete it; the command that made it makes it again.")
    yield Finding("good", str(path), "is whole")


_FILES = {".jsonl": _metrics, ".json": _json, ".yaml": _yaml, ".npz": _zip}


def _named(target: Path, damaged: list[str], digests: Mapping[str, str]) -> str:
    """Which files, and what is wrong with them."""

    def wrong(name: str) -> str:
        state = "is new" if name not in digests else "is damaged" if (target / name).exists() else "is missing"
        return f"{name} {state}"

    more = len(damaged) - _MOST_NAMED
    return "; ".join(map(wrong, damaged[:_MOST_NAMED])) + (f"; and {more} more." if more > 0 else ".")


def _size(target: Path, digests: Mapping[str, str]) -> str:
    size = sum((target / name).stat().st_size for name in digests)
    return f"{len(digests)} files, {size / 1e6:,.1f} MB"


def _bare(error: UserError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _says_of_left(name: str) -> str:
    if name.startswith("crash"):
        return "what was said when a command crashed"
    return "left by a process that was killed while it wrote; may be deleted, and harms nobody"
