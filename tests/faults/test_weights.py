"""Malformed safetensors: each is refused before parameters are allocated, soon, and in little memory."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.faults.damaged import FOUND, REFUSED, Change, config, content, load, refused

pytestmark = pytest.mark.fault("malformed weights")
EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"


def header(folder: Path, change: Callable[[dict[str, Any]], Any], *, data: bytes | None = None) -> None:
    """Writes model.safetensors once more with a changed header, and other data if given."""
    path = folder / "model.safetensors"
    held = path.read_bytes()
    size = struct.unpack("<Q", held[:8])[0]
    found = json.loads(held[8 : 8 + size])
    text = change(found)
    text = json.dumps(found).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text)) + text + (held[8 + size :] if data is None else data))


def claims(size: int) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])

    return change


def longer(folder: Path) -> None:
    """A header that claims all of a large file, which is sparse on disk."""
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 10 * 2**30) + path.read_bytes()[8:])
    with path.open("r+b") as file:
        file.truncate(10 * 2**30 + 8)


def longer_by(folder: Path, size: int) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(size))


def entry(name: str = EMBEDDING, **fields: Any) -> Change:
    return lambda folder: header(folder, lambda held: held[name].update(fields))


def twice(folder: Path) -> None:
    def change(held: dict[str, Any]) -> bytes:
        again = json.dumps({EMBEDDING: held[EMBEDDING]}).encode()
        return json.dumps(held).encode()[:-1] + b", " + again[1:]

    header(folder, change)


def overlapping(folder: Path) -> None:
    def change(held: dict[str, Any]) -> None:
        held["lm_head.weight"]["data_offsets"] = held[EMBEDDING]["data_offsets"]

    header(folder, change)


def written(folder: Path, **tensors: np.ndarray | None) -> None:
    held: dict[str, Any] = {**load_file(folder / "model.safetensors")}
    for name, value in tensors.items():
        held[name.replace("/", ".")] = value
    save_file({name: value for name, value in held.items() if value is not None}, folder / "model.safetensors")


def tensor(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    return lambda folder: written(folder, **{name: change(load_file(folder / "model.safetensors")[name])})


def cut(size: int) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:size])


def pickled(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps({"weight": [1.0] * 99}))

    return change


DAMAGED = "model.safetensors|Fetch it again"
SAFETENSORS: dict[str, tuple[Change, str]] = {
    "empty": (content("model.safetensors", b""), DAMAGED),
    "cut in the length": (cut(5), DAMAGED),
    "cut in the header": (cut(200), DAMAGED),
    "cut in the data": (cut(-400), DAMAGED),
    "bytes behind the end": (lambda folder: longer_by(folder, 4), "truncated or damaged"),
    "a header of 10 GB": (claims(10 * 2**30), DAMAGED),
    "a header of 10 GB in a file as long": (longer, DAMAGED),
    "a header of 2^63 bytes": (claims(2**63), DAMAGED),
    "a header of 2^64 - 1 bytes": (claims(2**64 - 1), DAMAGED),
    "a header of no bytes": (claims(0), DAMAGED),
    "a header nested deeply": (lambda folder: header(folder, lambda held: b"[" * 500_000), DAMAGED),
    "a header that is a list": (lambda folder: header(folder, lambda held: b"[1, 2]"), DAMAGED),
    "a tensor twice": (twice, DAMAGED),
    "tensors that overlap": (overlapping, DAMAGED),
    "offsets below 0": (entry(data_offsets=[-43520, None]), DAMAGED),
    "offsets behind the end": (entry(data_offsets=[2**40, 2**40 + 43520]), DAMAGED),
    "offsets backwards": (entry(data_offsets=[43520, 0]), DAMAGED),
    "offsets that are texts": (entry(data_offsets=["0", "43520"]), DAMAGED),
    "three offsets": (entry(data_offsets=[0, 43520, 4]), DAMAGED),
    "a size below 0": (entry(shape=[-340, -32]), DAMAGED),
    "sizes beyond all memory": (entry(shape=[2**62, 2**62]), DAMAGED),
    "sizes that are no numbers": (entry(shape=["340", 32]), DAMAGED),
    "a million sizes": (entry(shape=[0] * 1_000_000, data_offsets=[0, 0]), DAMAGED),
    "a dtype that nobody knows": (entry(dtype="F31"), f"dtype F31|{EMBEDDING}|Allowed"),
    "a dtype that is a list": (entry(dtype=["F32"]), f"dtype ['F32']|{EMBEDDING}|Allowed"),
    "another dtype of another width": (entry(dtype="F16"), DAMAGED),
    "whole numbers": (tensor(EMBEDDING, lambda x: x.astype(np.int32)), f"{EMBEDDING}|dtype I32"),
    "turned": (tensor(QUERY, lambda x: x[:8].T), f"{QUERY}|shape (32, 8)|asks for (32, 32)"),
    "flat": (tensor(EMBEDDING, np.ravel), f"{EMBEDDING}|config.json asks for (340, 32)"),
    "a tensor is missing": (lambda folder: written(folder, **{QUERY: None}), f"1 tensors are missing: {QUERY}"),
    "a tensor too many": (lambda folder: written(folder, **{"model.extra": np.zeros(3)}), "'model.extra' is unknown"),
    "a name of a megabyte": (lambda folder: written(folder, **{"x" * 1_000_000: np.zeros(3)}), DAMAGED),
    "fewer than config.json says": (config(num_hidden_layers=5000), "44982 tensors are missing"),
    "a pickle": (pickled("pytorch_model.bin"), "never pickled weights"),
    "a pickle of that name": (pickled("model.safetensors"), DAMAGED),
    "a folder of that name": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "model.safetensors",
    ),
    "an adapter": (
        lambda folder: (
            (folder / "config.json").rename(folder / "adapter_config.json"),
            (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
        ),
        "an adapter|base",
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(name: str, folder: Path, nothing_placed: None, held):
    change, words = SAFETENSORS[name]
    change(folder)
    assert str(folder) in refused(lambda: load(folder), words)
    held(1, REFUSED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [EMBEDDING, QUERY, "model.norm.weight"])
def test_values_that_are_not_finite(name: str, value: float, folder: Path, held):
    def change(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[-1] = value
        return array

    tensor(name, change)(folder)
    refused(lambda: load(folder), f"{name!r} holds NaN or Inf|{folder}")
    held(1, FOUND)
