"""The ground every test stands on: eight pretend CPU devices, no silent broadcasting, no network, no chance, a clock.

The environment is set before anything imports JAX, and child processes that tests start inherit it.
"""

from __future__ import annotations

import atexit
import gc
import ipaddress
import os
import random
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
# Most of the suite's time goes to XLA, which compiles programs that run once: without optimisations that takes 40 % of
# the time. DPO_JAX_TEST_COMPILER=full compiles as a user's process does.
if os.environ.get("DPO_JAX_TEST_COMPILER") == "full":
    os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_ynn_fusion_type="  # as `import dpo_jax` does
else:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_experimental_ynn_fusion_type="
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # the workers fill the cores already
    if metadata.version("jaxlib").startswith("0.10."):  # later ones end the process at this flag
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Shared by the workers and child processes of one run, and by no other run: nothing is stale.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dpo-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis.internal.conjecture import providers

# A first call compiles, so no deadline; the same examples on every machine, and in every worker: numbers and texts of
# the modules that happen to be imported there would join them.
providers.is_local_module_file = lambda path: False
hypothesis.settings.register_profile("dpo_jax", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("dpo_jax")

LIMIT_SECONDS = 10.0 if "fusion_emitters" in os.environ["XLA_FLAGS"] else 60.0  # the other compilers cost more
"""CPU-seconds, with those of child processes, that a test's body or its fixtures may take unless it is `slow`."""

SHARED = 2
"""Times the limit for what is set up before a test: that is mostly shared by all tests of a file, and paid once."""

_USUAL_SECONDS = 0.035  # of `_slowness` on the machine where the limit was set
_ROUNDS = 600_000

LIMIT_BYTES = 1.0 * 2**30
"""Memory from which on a worker forgets its compiled programs, between two files of tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--everything", action="store_true", help="the tests marked `slow` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker and not (marker.args and isinstance(marker.args[0], str)):
            raise pytest.UsageError(f'{item.nodeid}: a slow test gives its reason, slow("...")')
    if config.getoption("--everything"):
        return
    asked = tuple(argument for argument in config.args if "::" in argument)  # by name
    slow = [item for item in items if item.get_closest_marker("slow") and not item.nodeid.startswith(asked)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


class _SessionClock:
    """The time of session fixtures: each is held to the limit itself, not the test that happens to need it first.

    A plugin of its own, because a conftest hears nothing of such fixtures.
    """

    seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        before, others = _cpu_seconds(), self.seconds
        outcome = yield
        if fixturedef.scope == "session":
            spent = _cpu_seconds() - before - (self.seconds - others)
            self.seconds += spent
            if spent > SHARED * LIMIT_SECONDS and spent > SHARED * LIMIT_SECONDS * _slowness():
                pytest.fail(f"the fixture {fixturedef.argname} took {spent:.1f} CPU-seconds", pytrace=False)
        return outcome


_apart = _SessionClock()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_apart, "session-clock")


def _clocked(item: pytest.Item, part: str) -> Generator[None, Any, Any]:
    before = _cpu_seconds() - _apart.seconds
    outcome = yield
    spent = _cpu_seconds() - _apart.seconds - before
    limit = LIMIT_SECONDS * (SHARED if part == "setup" else 1)
    if spent > limit and spent > limit * _slowness() and not item.get_closest_marker("slow"):
        pytest.fail(f"the {part} took {spent:.1f} CPU-seconds of {limit:.0f}; see tests/README.md", pytrace=False)
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _clocked(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _clocked(item, "test"))


def _slowness() -> float:
    """How much longer than usual a fixed piece of work takes here and now: a slow or a shared core is no slow test."""
    before, total = time.process_time(), 0
    for number in range(_ROUNDS):
        total += number * number % 7
    return max(1.0, (time.process_time() - before) / _USUAL_SECONDS)


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    """Compiled programs are forgotten where they have become many."""
    yield
    statm = Path("/proc/self/statm")  # of Linux; elsewhere a worker keeps them
    if statm.exists() and int(statm.read_text().split()[1]) * resource.getpagesize() > LIMIT_BYTES:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX keeps float64 and int64 inside this test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up or reaching another machine fails the test, even where a library catches every Exception."""

    def guard(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_unless_local(address[0])
            return call(self, address)

        return guarded

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_local(host)
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", guard(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex))


def _refuse_unless_local(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    if name in ("localhost", socket.gethostname()):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        pytest.fail(f"a test tried to reach {name!r}; tests use no network")
