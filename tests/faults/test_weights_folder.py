"""Malformed folders of weights: their index, config.json and tokenizer, and those of a diffusion transformer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.diffusion.diffuser import make_diffuser
from dpo_jax.files import write_json
from dpo_jax.mesh import make_mesh
from dpo_jax.weights.dit import dit_spec, load_dit, open_dit
from dpo_jax.weights.opening import open_weights
from tests.faults.damaged import REFUSED, Change, config, content, load, refused

pytestmark = pytest.mark.fault("malformed weights")
EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def sharded(folder: Path) -> dict[str, Any]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    return {name: file for file, held in files.items() for name in held}


def index(change: Callable[[Path, dict[str, Any]], Any]) -> Change:
    def apply(folder: Path) -> None:
        weight_map = sharded(folder)
        found = change(folder, weight_map)
        write_json(folder / INDEX, {"weight_map": weight_map if found is None else found})

    return apply


def outside(name: str) -> Change:
    def change(folder: Path, weight_map: dict[str, Any]) -> None:
        shutil.move(folder / "a.safetensors", folder.parent / "a.safetensors")
        for tensor, file in weight_map.items():
            weight_map[tensor] = name.format(folder.parent) if file == "a.safetensors" else file

    return index(change)


INDICES: dict[str, tuple[Change, str]] = {
    "a file one folder up": (outside("../a.safetensors"), f"{INDEX}|'../a.safetensors'|names of files"),
    "a file by its whole path": (outside("{}/a.safetensors"), f"{INDEX}|names of files"),
    "a file up and down": (outside("x/../../a.safetensors"), f"{INDEX}|names of files"),
    "a file with a null byte": (outside("a.safetensors\0"), f"{INDEX}|names of files"),
    "a file that is this folder": (index(lambda folder, held: held.update({EMBEDDING: "."})), f"{INDEX}|names of file"),
    "a file that is a number": (index(lambda folder, held: held.update({EMBEDDING: 7})), f"{INDEX}|names of files"),
    "a list of files": (index(lambda folder, held: held.update({EMBEDDING: ["a"]})), f"{INDEX}|names of files"),
    "a map that is a list": (index(lambda folder, held: ["a.safetensors"]), f"{INDEX}|weight_map"),
    "no map": (lambda folder: (sharded(folder), write_json(folder / INDEX, {})), f"{INDEX}|weight_map"),
    "a shard is missing": (index(lambda folder, held: (folder / "b.safetensors").unlink()), "b.safetensors: missing"),
    "a tensor that the shard has not": (
        index(lambda folder, held: held.update({"model.extra": "a.safetensors"})),
        f"a.safetensors|does not hold the tensors that {INDEX} says|model.extra",
    ),
    "a shard that is a pickle": (index(lambda folder, held: held.update({EMBEDDING: "x.bin"})), "x.bin"),
    "a shard of a pipe": (index(lambda folder, held: mkfifo(folder / "a.safetensors")), "a.safetensors"),
}


def mkfifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", INDICES)
def test_an_index(name: str, folder: Path, nothing_placed: None, held):
    change, words = INDICES[name]
    change(folder)
    refused(lambda: load(folder), words)
    held(1, REFUSED)


def test_the_hubs_cache_has_links_to_files_elsewhere(folder: Path):
    """A snapshot is a folder of links: the file that a name leads to may lie anywhere, the name may not."""
    weight_map = sharded(folder)
    for file in ("a.safetensors", "b.safetensors"):
        blob = folder.parent / "blobs" / file[0]
        blob.parent.mkdir(exist_ok=True)
        shutil.move(folder / file, blob)
        (folder / file).symlink_to(blob)
    write_json(folder / INDEX, {"weight_map": weight_map})
    assert load(folder)["embedding"].shape == (340, 32)


def of_kind(kind: str, **fields: Any) -> Change:
    return config(model_type=kind, mlp_bias=..., **fields)


CONFIGS: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
    "cut": (content("config.json", b'{"hidden_size": 3'), "not JSON"),
    "not UTF-8": (content("config.json", b'{"hidden_size": "\xff"}'), "not JSON"),
    "nested deeply": (content("config.json", b"[" * 500_000), "not JSON"),
    "a list": (content("config.json", b"[]"), "want a JSON object"),
    "of 10 GB": (lambda folder: sparse(folder / "config.json", 10 * 2**30), "10,737 MB"),
    "a folder": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        "cannot be read",
    ),
    "no width": (config(hidden_size=...), "hidden_size"),
    "no layers": (config(num_hidden_layers=...), "num_hidden_layers"),
    "10^12 layers": (config(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000|whole number from 1"),
    "10^12 layers of two kinds": (of_kind("gemma2", num_hidden_layers=10**12), "num_hidden_layers|whole number"),
    "10^12 layers of a GPT-2": (of_kind("gpt2", n_layer=10**12, n_embd=32, n_head=4), "n_layer|whole number"),
    "a negative width": (config(hidden_size=-32), "hidden_size is -32|whole number from 1"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0|whole number from 1"),
    "a fraction of layers": (config(num_hidden_layers=2.5), "num_hidden_layers is 2.5|whole number"),
    "a width in words": (config(hidden_size="wide"), "hidden_size is 'wide'|whole number"),
    "a width of NaN": (config(hidden_size=float("nan")), "hidden_size is nan|whole number"),
    "true layers": (config(num_hidden_layers=True), "num_hidden_layers is True|whole number"),
    "an odd head": (config(head_dim=7), "head_dim|even"),
    "a head of 10^15": (config(head_dim=10**15), "head_dim|whole number"),
    "a vocabulary of 10^18": (config(vocab_size=10**18), "vocab_size|whole number"),
    "a norm of nothing": (config(rms_norm_eps="x"), "rms_norm_eps"),
    "a norm of NaN": (config(rms_norm_eps=float("nan")), "rms_norm_eps"),
    "rotary positions of text": (config(rope_scaling="linear"), "config.json"),
    "a rotary base of 0": (config(rope_theta=0), "rope_theta"),
    "a rotary base of NaN": (config(rope_theta=float("nan")), "rope_theta"),
    "a kind that is a list": (config(model_type=["llama"]), "model_type ['llama'] is not supported"),
    "code of its own": (config(model_type="mine", auto_map={"AutoModel": "code.Mine"}), "model_type 'mine'"),
    "ids that are objects": (config(eos_token_id={"a": 1}), "config.json"),
}


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config(name: str, folder: Path, nothing_placed: None, held):
    change, words = CONFIGS[name]
    change(folder)
    assert "config.json" in refused(lambda: load(folder), words)
    held(1, REFUSED)


TOKENIZERS: dict[str, tuple[Change, str]] = {
    "empty": (content("tokenizer.json", b""), "tokenizer.json"),
    "cut": (content("tokenizer.json", b'{"version": "1.0", "model": {'), "tokenizer.json"),
    "of nothing": (content("tokenizer.json", b"{}"), "tokenizer.json"),
    "its config is cut": (content("tokenizer_config.json", b"{"), "tokenizer"),
    "its config is a list": (content("tokenizer_config.json", b"[1]"), "tokenizer"),
    "a class that nobody knows": (content("tokenizer_config.json", b'{"tokenizer_class": 7}'), "tokenizer"),
    "code of its own": (
        content("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}'),
        "tokenizer",
    ),
    "a file one folder up": (
        content("tokenizer_config.json", b'{"fast_tokenizer_files": ["tokenizer.4.0.0/../../../x.json"]}'),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer(name: str, folder: Path, held):
    change, words = TOKENIZERS[name]
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    change(folder)
    refused(lambda: open_weights(str(folder)).tokenizer(), words)
    assert not (folder / "ran").exists()
    held(1, REFUSED)


DITS: dict[str, tuple[dict[str, Any], str]] = {
    "10^12 layers": ({"num_layers": 10**12}, "num_layers|whole number"),
    "no patch": ({"patch_size": 0}, "patch_size is 0|whole number"),
    "a negative width": ({"attention_head_dim": -8}, "attention_head_dim is -8|whole number"),
    "heads in words": ({"num_attention_heads": "four"}, "num_attention_heads is 'four'|whole number"),
    "10^18 classes": ({"num_embeds_ada_norm": 10**18}, "num_embeds_ada_norm|whole number"),
    "a norm of text": ({"norm_eps": "x"}, "norm_eps"),
    "outputs of text": ({"out_channels": "x"}, "out_channels"),
}


@pytest.mark.parametrize("name", DITS)
def test_a_diffusion_transformer(name: str, tmp_path: Path, nothing_placed: None, held):
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 1, "num_layers": 2}
    changes, words = DITS[name]
    write_json(tmp_path / "config.json", {**sizes, "sample_size": 8, "patch_size": 2, **changes})
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "diffusion_pytorch_model.safetensors")

    def read() -> Any:
        source = open_dit(tmp_path)
        return load_dit(source, make_diffuser(dit_spec(source)), make_mesh())

    assert "config.json" in refused(read, words)
    held(1, REFUSED)
