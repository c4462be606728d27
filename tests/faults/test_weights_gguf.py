"""Malformed GGUF files: each is refused before parameters are allocated, soon, and in little memory."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from dpo_jax.weights.gguf import make_tokenizer
from tests.faults.damaged import FOUND, REFUSED, load, refused
from tests.weights.test_gguf import write_gguf

pytestmark = pytest.mark.fault("malformed weights")


@pytest.fixture(scope="module")
def gguf(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, load_file(whole / "model.safetensors"))
    load(path)
    return path.read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(*, tensors: int = 0, fields: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest + bytes(64)


def field(kind: int, value: bytes, name: str = "general.name") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def shaped(*sizes: int, dimensions: int | None = None, offset: int = 0) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return text("token_embd.weight") + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, 0, offset)


def after(name: str, value: bytes, kind: str) -> Callable[[bytes], bytes]:
    """A field of the metadata with another value."""

    def change(held: bytes) -> bytes:
        at = held.index(text(name)) + len(text(name)) + 4
        return held[:at] + value + held[at + struct.calcsize(kind) :]

    return change


GGUFS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda held: b"", "not a GGUF file"),
    "cut in the head": (lambda held: held[:3000], "not a GGUF file"),
    "cut in the data": (lambda held: held[:-1000], "not a GGUF file"),
    "another magic": (lambda held: b"GGML" + held[4:], "does not begin with GGUF"),
    "a pickle": (lambda held: pickle.dumps([1.0] * 99), "does not begin with GGUF"),
    "version 99": (lambda held: head(version=99), "version 99"),
    "2^60 tensors": (lambda held: head(tensors=2**60), "not a GGUF file"),
    "2^60 fields": (lambda held: head(fields=2**60), "not a GGUF file"),
    "a name of 2^60 bytes": (lambda held: head(fields=1, rest=struct.pack("<Q", 2**60)), f"{2**60} bytes"),
    "a text of 2^60 bytes": (lambda held: head(fields=1, rest=field(8, struct.pack("<Q", 2**60))), f"{2**60} bytes"),
    "a list of 2^60 numbers": (lambda held: head(fields=1, rest=field(9, struct.pack("<IQ", 0, 2**60))), "bytes at"),
    "a list of 2^60 texts": (lambda held: head(fields=1, rest=field(9, struct.pack("<IQ", 8, 2**60))), "bytes at"),
    "a list of 2^60 lists": (lambda held: head(fields=1, rest=field(9, struct.pack("<IQ", 9, 2**60))), "bytes at"),
    "6 million numbers": (
        lambda held: head(fields=1, rest=field(9, struct.pack("<IQ", 0, 6_000_000) + bytes(6_000_000))),
        "more than 5000000 values",
    ),
    "lists in lists": (
        lambda held: head(fields=1, rest=field(9, struct.pack("<IQ", 9, 1) * 100_000)),
        "lists of lists of lists",
    ),
    "a value of no type": (lambda held: head(fields=1, rest=field(77, b"")), "a value of type 77"),
    "2^30 dimensions": (lambda held: head(tensors=1, rest=shaped(32, dimensions=2**30)), f"{2**30} dimensions"),
    "sizes beyond all memory": (lambda held: head(tensors=1, rest=shaped(2**40, 2**40)), "beyond all memory"),
    "a tensor behind the end": (lambda held: head(tensors=1, rest=shaped(8, offset=2**63)), f"at byte {2**63}"),
    "a tensor longer than the file": (lambda held: head(tensors=1, rest=shaped(2**30)), "not a GGUF file"),
    "a tensor twice": (lambda held: head(tensors=2, rest=2 * shaped(1)), "not a GGUF file"),
    "tensors that overlap": (
        lambda held: head(tensors=2, rest=shaped(2) + shaped(2, offset=0).replace(b"token_embd", b"output_ab.")),
        "share bytes",
    ),
    "10^9 layers": (after("llama.block_count", struct.pack("<I", 10**9), "I"), "num_hidden_layers is 1000000000"),
    "no heads": (after("llama.attention.head_count", struct.pack("<I", 0), "I"), "num_attention_heads is 0"),
    "a norm of NaN": (
        after("llama.attention.layer_norm_rms_epsilon", struct.pack("<f", np.nan), "f"),
        "rms_norm_eps is nan",
    ),
}


@pytest.mark.parametrize("name", GGUFS)
def test_gguf(name: str, gguf: bytes, tmp_path: Path, nothing_placed: None, held):
    change, words = GGUFS[name]
    path = tmp_path / "tiny.gguf"
    path.write_bytes(change(gguf))
    assert str(path) in refused(lambda: load(path), words)
    held(1, REFUSED)


def test_gguf_with_nan(folder: Path, tmp_path: Path, held):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tensors)
    refused(lambda: load(path), f"{path}|'model.norm.weight' holds NaN or Inf")
    held(1, FOUND)


@pytest.mark.parametrize("change", [{"tokenizer.ggml.merges": ["x"]}, {"tokenizer.ggml.token_type": [1]}])
def test_the_tokenizer_of_a_gguf(change: dict[str, Any], gguf: bytes, tmp_path: Path, held):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf)
    metadata = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    refused(lambda: make_tokenizer({**metadata, **change}, where=str(path)), f"{path}: its tokenizer cannot be made")
    held(1, REFUSED)
