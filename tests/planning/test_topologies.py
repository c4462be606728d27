"""Machines by name, and what the TPU compiler says of programs that are too large."""

from __future__ import annotations

import importlib.util

import pytest

from dpo_jax.planning.outcomes import too_large
from dpo_jax.planning.topologies import CHIPS, GIB, open_machine

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles TPU programs, is not installed"
)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5p-512", "cores or chips"),
        ("v5e", "such as v5e:16x16"),
        ("v5x:2x2", "Did you mean"),
        ("v5e:2x2x2", "named by 2 numbers"),
        ("v5p:8x8", "named by 3 numbers, v5p:4x4x4"),
        ("v5e:0x4", "named by"),
        ("gpu:2x2", "gpu:8"),
    ],
)
def test_what_is_no_machine(name: str, says: str):
    with pytest.raises(ValueError, match=says):
        open_machine(name)


@pytest.mark.parametrize(("name", "chip"), [("gpu:8", "h100"), ("h200:8", "h200"), ("h100:16", "h100")])
def test_gpus_are_not_compiled_for(name: str, chip: str):
    machine = open_machine(name)
    assert (machine.chip, machine.count, machine.devices) == (CHIPS[chip], int(name.split(":")[1]), None)
    assert "GPU" in machine.why_not


def test_without_libtpu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    machine = open_machine("v5e:16x16")
    assert machine.devices is None and machine.count == 256
    assert 'pip install "libtpu==0.0.' in machine.why_not


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:2x2", 4), ("v5e:1x1", 1), ("v5e:16x16", 256), ("v5p:4x4x4", 64), ("v6e:4x4", 16), ("v4:2x2x1", 4)],
)
def test_tpu_slices_have_a_device_for_each_chip(name: str, count: int):
    machine = open_machine(name)
    assert machine.devices is not None and len(machine.devices) == machine.count == count
    assert machine.devices[0].platform == "tpu"


@needs_libtpu
def test_no_such_slice():
    with pytest.raises(ValueError, match="no such slice"):
        open_machine("v5e:3x3")


@pytest.mark.parametrize(
    ("message", "needs", "has"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.25G) "
            "exceeds available HBM (15.75G).\nmore",
            18.25 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 1.50T of "
            "95.74G hbm. Exceeded hbm capacity by 1.41T.",
            1.5 * 2**40,
            95.74 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: in words of tomorrow", None, None),
    ],
)
def test_too_large(message: str, needs: float | None, has: float | None):
    assert too_large(message) == (needs and int(needs), has and int(has))
