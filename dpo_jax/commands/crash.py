"""Crashes in plain words: what happened to the user's thing and what to do, before any traceback.

Loads nothing: errors of other packages are known by their names and by what they say.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from dpo_jax import __version__
from dpo_jax.errors import size_setting, told
from dpo_jax.masking import mask

_PACKAGE = Path(__file__).parents[1]
_LONGEST = 300  # characters of somebody else's message

_EXTRAS = {
    "wandb": "wandb",
    "av": "video",
    "gcsfs": "gcs",
    "libtpu": "tpu",
    "torch": "parity",
    "trl": "parity",
    "peft": "parity",
    "diffusers": "parity",
}
_DISK = {
    errno.ENOSPC: "make room there, and the same command goes on from the last checkpoint",
    errno.EDQUOT: "make room in your quota, and the same command goes on from the last checkpoint",
    errno.EROFS: "name a folder on a disk that can be written, with `--workdir FOLDER`",
    errno.EACCES: "allow this user to read and write it, or name another with `--workdir FOLDER`",
    errno.EPERM: "allow this user to read and write it, or name another with `--workdir FOLDER`",
    errno.EMFILE: "raise the limit with `ulimit -n 65536`",
    errno.ENFILE: "the whole machine has too many files open; close what holds them",
    errno.EIO: "the disk fails: look into the kernel's log, and run `dpo-jax verify WORKDIR`",
    errno.ESTALE: "the shared disk has lost the file: mount it again, and run `dpo-jax verify WORKDIR`",
}
_NETWORK = re.compile(
    r"HfHub|LocalEntryNotFound|OfflineMode|ConnectionError|ConnectError|ConnectTimeout|ReadTimeout|MaxRetry|NameResolution"
    r"|gaierror|URLError|SSLError|ProxyError"
)


def explain(error: BaseException, command: str) -> str:
    """The first lines of what is said of an error that nobody foresaw; secrets are hidden."""
    for each in _chain(error):
        for rule in _RULES:
            if words := rule(each):
                return mask(words)
    said = _first_line(error)
    name = type(error).__name__ + (f": {said}" if said else "")
    return mask(f"crashed in {command.upper()}: {name}\n{_place(error)}This is a mistake of dpo_jax; please report it.")


def keep(error: BaseException, workdir: Path | None, command: str) -> str:
    """Write the traceback to WORKDIR/crash.txt, if there is such a folder; say where, or how to see it."""
    see = "`--verbose` shows the details."
    if workdir is None or not workdir.is_dir():
        return see
    rank = _rank()
    path = workdir / (f"crash.{rank}.txt" if rank else "crash.txt")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = f"{command}\n{now}, dpo_jax {__version__}, Python {platform.python_version()}, {platform.platform()}\n\n"
    with contextlib.suppress(OSError):  # such as a full disk, which may be what is told
        path.write_text(mask(head + details(error)), encoding="utf8")
        return f"Details: {path}, or `--verbose`."
    return see


def details(error: BaseException) -> str:
    """The whole traceback, and those of what caused it; secrets are hidden."""
    return mask("".join(traceback.format_exception(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, those it gathers, and what caused it; not what merely happened before."""
    yield error
    for each in (*getattr(error, "exceptions", ()), error.__cause__):
        if isinstance(each, BaseException):
            yield from _chain(each)


def _first_line(error: BaseException) -> str:
    """The first line with a word in it: TensorStore and XLA go on for pages."""
    return told(next((line for line in str(error).splitlines() if re.search(r"\w", line)), ""), _LONGEST)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames in our own code, the innermost last."""
    return [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]


def _place(error: BaseException) -> str:
    frames = _frames(error)
    if not frames:
        return ""
    last = frames[-1]
    return f"at {Path(last.filename).relative_to(_PACKAGE.parent)}:{last.lineno}, in {last.name}. "


def _rank() -> int:
    jax = sys.modules.get("jax")
    return jax.process_index() if jax and jax.distributed.is_initialized() else 0


def _stopped_by_others(error: BaseException) -> str | None:
    said = str(error)
    about = r"coordination|heartbeat|unhealthy|barrier|preempt|Gloo|Connection closed by peer|DEADLINE_EXCEEDED"
    if not _is_xla(error) or not re.search(about, said, re.IGNORECASE):
        return None
    tasks = sorted({int(number) for number in re.findall(r"task[:_ /]*(\d+)", said)})
    who = f"process {', '.join(map(str, tasks))}" if tasks else "another process"
    return (
        f"{who} of this run is gone or hangs: {_first_line(error)}\nIts own output says why; the same command goes on."
    )


def _device_memory(error: BaseException) -> str | None:
    said = str(error)
    if not _is_xla(error) or not re.search("RESOURCE_EXHAUSTED|out of memory", said, re.IGNORECASE):
        return None
    asked = re.search(r"(?:allocat\w*|Attempting to reserve)\s+([\d.]+)\s*([KMGT]?)(?:i?B|bytes?)?\b", said)
    lower = size_setting(error) or "the size of the batches"
    gib = float(asked[1]) * 1024.0 ** ("KMGT".find(asked[2].upper()) + 1 if asked[2] else 0) / 2**30 if asked else 0.0
    more = f": {gib:.3g} GiB more were wanted" if asked else ""
    return (
        f"out of memory on the device{more}. Lower {lower}, set model.remat: full, or use more devices and mesh.fsdp.\n"
        "`dpo-jax plan CONFIG --search` says what fits."
    )


def _is_xla(error: BaseException) -> bool:
    return type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") or type(error).__module__.startswith("jax")


def _host_memory(error: BaseException) -> str | None:
    if not isinstance(error, MemoryError):
        return None
    said = f": {_first_line(error)}" if _first_line(error) else ""
    return (
        f"out of memory on this host{said}. Free some, use a machine with more, or split data.train and export files."
    )


def _disk(error: BaseException) -> str | None:
    code = error.errno if isinstance(error, OSError) else None
    if code not in _DISK:  # Orbax and TensorStore have the words of it somewhere in pages
        code = next((each for each in _DISK if os.strerror(each) in str(error)), None)
    if code is None:
        return None
    named = getattr(error, "filename", None) or next(iter(re.findall(r"[\"'](/[^\"']+)[\"']", str(error))), None)
    return f"{named or 'a file'}: {os.strerror(code)}: {_DISK[code]}."


def _network(error: BaseException) -> str | None:
    names = " ".join(f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__[:-2])
    if not _NETWORK.search(names):
        return None
    return (
        f"the network or the hub cannot be reached: {_first_line(error)}\nTry again, or fetch the files first and name "
        "their folder; `hf auth login` where they are not public."
    )


def _missing(error: BaseException) -> str | None:
    if not isinstance(error, ImportError) or not error.name or error.name.startswith("dpo_jax"):
        return None
    name = error.name.partition(".")[0]
    if extra := _EXTRAS.get(name):
        return f"the package {name} is not installed; run `pip install 'dpo-jax[{extra}]'`."
    return f"the package {name} is missing or broken ({_first_line(error)}); run `pip install --upgrade dpo-jax`."


def _not_finite(error: BaseException) -> str | None:
    return _first_line(error) if isinstance(error, FloatingPointError) and str(error) else None


def _storage(error: BaseException) -> str | None:
    """A dump of TensorStore: its first line says what, and the path that it names says where."""
    said = str(error)
    if not re.search(r"tensorstore|ocdbt|zarr|orbax", said + type(error).__module__, re.IGNORECASE):
        return None
    where = re.search(r"(/[\w./-]*(?:checkpoints|stores?)/[\w.-]+)", said)
    return (
        f"{where[1] if where else 'a checkpoint or a store'} cannot be read or written: {_first_line(error)}\n"
        "Run `dpo-jax verify WORKDIR` to see whether it is whole."
    )


_RULES: tuple[Callable[[BaseException], str | None], ...] = (
    _disk,
    _stopped_by_others,
    _device_memory,
    _host_memory,
    _network,
    _missing,
    _not_finite,
    _storage,
)
