"""Children that decode: what a library does there ends one row, and no run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.data import decoders
from dpo_jax.data.pictures import read_pictures
from dpo_jax.errors import UserError
from tests.data.pictures.conftest import CLIP, array, write

MP4 = b"\0\0\0\x18ftypmp42" + bytes(20)


@pytest.fixture
def library(tmp_path: Path, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Puts code in the place of PyAV, for the children that come."""

    def put(code: str) -> None:
        decoders.leave()
        (tmp_path / "av.py").write_text(f"import os, signal, sys, time\n{code}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("av", None)

    yield put
    decoders.leave()
    sys.modules.pop("av", None)


def read(folder: Path, on_error: str):
    return read_pictures([{"videos": str(folder)}], layout="samples", shape=CLIP, classes=0, on_error=on_error)


def clips(tmp_path: Path) -> Path:
    files = {f"{n}.npy": array(np.full((3, 4, 4), n, np.uint8)) for n in range(3)}
    return write(tmp_path / "clips", {**files, "bad.mp4": MP4})


@pytest.mark.parametrize(
    ("code", "says", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV", "decoder crashed"),
        ("os._exit(3)", "ended with exit code 3", "decoder crashed"),
        ("time.sleep(100)", "not decoded within 2 seconds", "too slow"),
        ("held = bytearray(8 << 30)", "more memory than a decoder may have", "too much memory"),
        ("print('{}')\ndef open(*_, **__): raise ValueError('odd')", "it cannot be decoded: odd", "damaged video"),
    ],
)
def test_a_crash_of_a_library_is_a_bad_row(tmp_path: Path, library, monkeypatch, code: str, says: str, reason: str):
    monkeypatch.setattr(decoders, "MOST_SECONDS", 2)
    library(code)
    folder = clips(tmp_path)
    with pytest.raises(UserError, match=rf"bad\.mp4.*{says}"):
        read(folder, "stop")
    found = read(folder, "skip")
    assert (len(found.rows), found.skipped) == (3, {reason: 1})
    assert [int(row.samples[0]()[0, 0, 0, 0]) for row in found.rows] == [0, 1, 2]  # no answer is another's


def test_a_child_that_somebody_kills_ends_the_run_and_leaves_no_row_out(tmp_path: Path, library):
    library("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(UserError, match=r"was ended by SIGKILL, as the system does where memory is short: no row"):
        read(clips(tmp_path), "skip")


def test_a_library_that_is_missing_says_what_to_install(tmp_path: Path, library):
    library("raise ImportError('none')")
    with pytest.raises(UserError, match=r"pip install 'dpo-jax\[video\]'"):
        read(clips(tmp_path), "skip")


def test_a_child_has_no_jax_and_is_used_again(tmp_path: Path, library):
    library("def open(*_, **__): raise ValueError(f'{\"jax\" in sys.modules} {os.getpid()}')")
    seen = set()
    for _ in range(3):
        with pytest.raises(decoders.Undecodable, match="False") as refused:
            decoders.decoded(MP4, CLIP)
        seen.add(str(refused.value))
    assert len(seen) == 1
