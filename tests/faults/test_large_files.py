"""Files beyond 4 GiB, with holes that no disk holds: numbers are found behind them, and rows are not looked for."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.data.sources import paths
from dpo_jax.errors import UserError
from dpo_jax.weights.folder import map_file
from dpo_jax.weights.gguf import open_gguf
from tests.faults.within import within

GIB = 1 << 30


@pytest.mark.fault("weights beyond 4 GiB")
def test_a_shard_of_safetensors(tmp_path: Path, held: Callable):
    path, first, second = tmp_path / "model.safetensors", 3 * GIB, 2 * GIB
    tensors = {
        "a": {"dtype": "BF16", "shape": [first // 2048, 1024], "data_offsets": [0, first]},
        "b": {"dtype": "F32", "shape": [second // 4096, 1024], "data_offsets": [first, first + second]},
    }
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    whole = path.stat().st_size + first + second
    os.truncate(path, whole)
    with path.open("r+b") as file:
        file.seek(whole - 8)
        file.write(struct.pack("<2f", 3.5, 7.5))
    with within(10, 30):
        assert map_file(path)["b"].data.view(np.float32)[-3:].tolist() == [0.0, 3.5, 7.5]
    held(1, "read where they are, within 30 MB")


@pytest.mark.fault("weights beyond 4 GiB")
def test_a_gguf_file(tmp_path: Path, held: Callable):
    from gguf import GGUFWriter

    path, vocabulary, width = tmp_path / "model.gguf", 600_000, 1024
    writer = GGUFWriter(path, "llama")
    for name in ("embedding_length", "feed_forward_length", "context_length"):
        writer.add_uint32(f"llama.{name}", width)
    for name, value in {"block_count": 1, "attention.head_count": 8, "vocab_size": vocabulary}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor_info(name, (vocabulary, width), np.dtype(np.float32), 4 * vocabulary * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    whole = -(-path.stat().st_size // 32) * 32 + 8 * vocabulary * width
    os.truncate(path, whole)
    with path.open("r+b") as file:
        file.seek(whole - 8)
        file.write(struct.pack("<2f", 3.5, 7.5))
    with within(10, 30):
        last = open_gguf(path).read("lm_head.weight", slice(vocabulary - 1, vocabulary))
        assert last[0, -3:].tolist() == [0.0, 3.5, 7.5]
    held(1, "read where they are, within 30 MB")


@pytest.mark.fault("rows in a file beyond 4 GiB that has no lines")
@pytest.mark.parametrize("suffix", sorted(paths.READERS))
def test_rows(suffix: str, tmp_path: Path, held: Callable):
    path = tmp_path / f"rows{suffix}"
    path.touch()
    os.truncate(path, 5 * GIB)
    with within(30, 200), pytest.raises(UserError, match=r"longer than 64 MiB|more than 4 GiB|not Parquet"):
        list(paths.read({"path": str(path)}))
    held(1, "refused within 200 MB")
