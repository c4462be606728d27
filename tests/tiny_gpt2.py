"""A tiny GPT-2 checkpoint in either spelling, without transformers' models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.tiny import make_hf_folder, train_tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": train_tokenizer().get_vocab_size(),
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_ctx": 64,
    "activation_function": "gelu_new",
    "summary_first_dropout": 0.3,
    "task_specific_params": {"text-generation": {"do_sample": True}},
}


def make_gpt2_folder(folder: Path, *, old: bool = False) -> Path:
    """Writes config, tokenizer and weights; `old` leaves the prefix away and stores the causal masks."""
    make_hf_folder(folder)  # for its tokenizer
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_tensors(old=old), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_tensors(*, old: bool) -> dict[str, np.ndarray]:
    """Random float32 tensors under their Hugging Face names, linear maps as [in, out]."""
    draw = np.random.default_rng(0).standard_normal
    width, positions = CONFIG["n_embd"], CONFIG["n_positions"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (CONFIG["vocab_size"], width),
        "wpe.weight": (positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for layer in range(CONFIG["n_layer"]):
        linear = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        linear |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
        for name, shape in linear.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (width,), f"h.{layer}.{name}.bias": (width,)}
    prefix = "" if old else "transformer."
    tensors = {prefix + name: (0.3 * draw(shape)).astype(np.float32) for name, shape in shapes.items()}
    if old:
        mask = np.tril(np.ones((1, 1, positions, positions), np.float32))
        for layer in range(CONFIG["n_layer"]):
            tensors |= {f"h.{layer}.attn.bias": mask, f"h.{layer}.attn.masked_bias": np.float32([-1e4])}
    return tensors
