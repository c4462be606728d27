"""The host of a run: what is installed, its memory and disk, its clock, its environment. Loads no JAX."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dpo_jax.errors import Finding

_BESIDE = ("jaxlib",)  # what comes with those that we name
_SHOWN = (
    *("XLA_FLAGS", "LIBTPU_INIT_ARGS", "DPO_JAX_XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "JAX_OPTIMIZATION_LEVEL", "JAX_COORDINATOR_ADDRESS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_JOB_ID", "HF_HOME", "HF_HUB_OFFLINE"),
)
_NEVER_SHOWN = ("HF_TOKEN", "WANDB_API_KEY")
_HARMFUL = {
    "JAX_ENABLE_X64": "turns 32-bit numbers into 64-bit ones: other results, and slow ones",
    "JAX_DISABLE_JIT": "computes one operation at a time: very slow",
    "JAX_DEBUG_NANS": "waits for every result: slow",
}
_OFF = ("", "0", "false", "no", "off")
_CGROUP_FILES = {  # by version: the limit, the use, and the parts of it that are files
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}
_LEAST_FREE_BYTES = 10 * 2**30
_LEAST_MEMORY_BYTES = 4 * 2**30
_LEAST_FILES = 4096
_MOST_OFF_SECONDS = 2.0


def examine(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that can be known of this host without a device."""
    yield from _installed()
    yield from _host()
    yield from written("folder", folder)
    yield from written("compiled", compile_cache(environment))
    yield from _variables(environment)


def compile_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder in which compiled programs are kept for the next run."""
    if named := environment.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpo_jax" / "compiled"


def requirements() -> dict[str, SpecifierSet]:
    """Package -> the versions that dpo_jax is tested with: those of the installed package, or of the source folder."""
    try:
        lines = metadata.requires("dpo-jax") or []
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        lines = tomllib.loads(project.read_text("utf8"))["project"]["dependencies"] if project.exists() else []
    needed = [Requirement(line) for line in lines]
    return {each.name: each.specifier for each in needed if not (each.marker and "extra" in str(each.marker))}


def versions() -> dict[str, str]:
    """Package -> its version; of one that is not installed `none`."""

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "none"

    return {"python": platform.python_version(), **{name: version(name) for name in (*requirements(), *_BESIDE)}}


def _installed() -> Iterator[Finding]:
    bounds, installed = requirements(), versions()
    shown = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
    yield Finding("good", "versions", ", ".join(f"{name} {installed[name]}" for name in shown if name in installed))
    for name, version in installed.items():
        if version == "none":
            yield Finding("bad", "versions", f"{name} is not installed; run `pip install --upgrade dpo-jax`.")
        elif name in bounds and not bounds[name].contains(version, prereleases=True):
            says = f"{name} {version} is not what dpo_jax is tested with; run `pip install '{name}{bounds[name]}'`."
            yield Finding("warn", "versions", says)
    if not bounds:
        yield Finding("warn", "versions", "dpo-jax is not installed as a package; what it is tested with is unknown.")


def _host() -> Iterator[Finding]:
    total, available = memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    state = "good" if total >= _LEAST_MEMORY_BYTES else "warn"
    yield Finding(state, "host", f"{cores} cores, {_gib(total)} of memory, {_gib(available)} available")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < _LEAST_FILES:
        yield Finding("warn", "host", f"at most {files} files may be open; raise that with `ulimit -n 65536`.")


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the bytes of memory that this process may have, and those of them that it could still get.

    Both within the limits of the control groups around it, such as a container's. Files that the system keeps in memory
    count as available: it drops them when memory is wanted.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    if (meminfo := root / "proc/meminfo").exists():  # Linux
        kilobytes = dict(line.split()[:2] for line in meminfo.read_text().splitlines())
        total, available = (1024 * int(kilobytes[name]) for name in ("MemTotal:", "MemAvailable:"))
    for limit, used in _limits(root):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, without cached files, of each control group around this process."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        limit, use, cached = _CGROUP_FILES[1 if kinds else 2]
        inside = mounted / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if (folder / limit).exists() and (value := (folder / limit).read_text().strip()).isdecimal():
                kept = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield int(value), int((folder / use).read_text()) - sum(int(kept.get(name, 0)) for name in cached)
            if folder == mounted:
                break


def written(what: str, folder: Path, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Try to write a file there, force it to disk, rename and read it, and compare the clock of that disk."""
    asked, data = folder, os.urandom(1 << 16)
    while not folder.exists() and folder != folder.parent:  # it is made when it is wanted, and not by looking
        folder = folder.parent
    first, second = (folder / f".doctor-{uuid.uuid4().hex}{end}" for end in (".partial", ""))
    try:
        start = time.perf_counter()
        with first.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        first.replace(second)
        whole, seconds = second.read_bytes() == data, time.perf_counter() - start
        off = second.stat().st_mtime - now()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding("bad", what, f"{asked} cannot be written: {error.strerror}. Name another folder.")
        return
    finally:
        with contextlib.suppress(OSError):
            for path in (first, second):
                path.unlink(missing_ok=True)
    if not whole:
        yield Finding("bad", what, f"{folder}: what was written there is not what is read again. Do not use this disk.")
        return
    state, advice = ("warn", "; runs and checkpoints want more") if free < _LEAST_FREE_BYTES else ("good", "")
    says = f"{asked.absolute()} can be written ({1000 * seconds:.0f} ms), {_gib(free)} free{advice}"
    yield Finding(state, what, says)
    if abs(off) > _MOST_OFF_SECONDS:
        yield Finding("warn", "clock", f"the disk of {folder} is {off:+.0f} s off this host; set both clocks with NTP.")


def _variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, harm in _HARMFUL.items():
        if environment.get(name, "").lower() not in _OFF:
            yield Finding("warn", "environment", f"{name}={environment[name]} {harm}; unset it.")
    given = [f"{name}={environment[name]}" for name in _SHOWN if environment.get(name)]
    given += [f"{name} is {'set' if environment.get(name) else 'not set'}" for name in _NEVER_SHOWN]
    yield Finding("good", "environment", ", ".join(given))


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
