"""The ground every test stands on: eight pretend CPU devices, no silent broadcasting, no network, no chance.

The environment is set before anything imports JAX, and child processes that tests start inherit it.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ |= {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Shared by the workers and child processes of one run, and by no other run: nothing is stale.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dpo-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
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
