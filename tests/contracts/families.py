"""A tiny sample of every model family: a config, weights drawn by their names, and what transformers computes of it.

`families.json` holds of each sample the shapes of its tensors and some of its logits; PyTorch computed them:

    python -m tests.parity.golden    # in the environment of launch/parity.sh, after a change of SAMPLES
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dpo_jax.models.families import FAMILIES
from tests.tiny import make_hf_folder

GOLDEN = Path(__file__).with_suffix(".json")
ADD = (
    "add a sample of the family {!r} to SAMPLES in tests/contracts/families.py, which gives every key of config.json "
    "that the family reads a value of its own, and run `python -m tests.parity.golden`"
)
SIZES = {
    "vocab_size": 350,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOW = {"sliding_window": 6, "max_position_embeddings": 128}
GEMMA = {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-3, **WINDOW}
GEMMA3 = {
    **GEMMA,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
    },
}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIGLIP |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
GPT2 = {"vocab_size": 350, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


SAMPLES: dict[str, dict[str, Any]] = {
    "llama, tied, grouped": {
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-2,
        **_rope(1e3, **LLAMA3, original_max_position_embeddings=64),
    },
    "llama, one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
    "llama, all key heads": {"num_key_value_heads": 4, **_rope(1e3, rope_type="linear", factor=4.0)},
    "mistral": {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-2, **_rope(3e2), **WINDOW},
    "mistral, no window": {"num_key_value_heads": 2, "sliding_window": None, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2, "rms_norm_eps": 1e-2, "tie_word_embeddings": True, **_rope(3e2)},
    "qwen2, window above layer 1": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
        **WINDOW,
    },
    "qwen3": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-2,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        **_rope(3e2),
        **WINDOW,
    },
    "gemma2": {
        **GEMMA,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "tie_word_embeddings": False,
        **_rope(3e2),
    },
    "gemma3_text": {**GEMMA3, "final_logit_softcapping": 3.0, "tie_word_embeddings": False},
    "gemma3, with images": {
        "text_config": {**SIZES, **GEMMA3, "tie_word_embeddings": False},
        "tie_word_embeddings": False,
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": 349,
        "boi_token_index": 347,
        "eoi_token_index": 348,
    },
    "phi3": {"num_key_value_heads": 2, "rms_norm_eps": 1e-2, "tie_word_embeddings": True, **WINDOW},
    "phi3, half of each head turned": {"num_key_value_heads": 4, **_rope(1e3, partial_rotary_factor=0.5)},
    "gpt2": {**GPT2, "n_positions": 80, "layer_norm_epsilon": 1e-2},
    "gpt2, untied, inner width": {
        **GPT2,
        "n_inner": 40,
        "activation_function": "gelu_pytorch_tanh",
        "tie_word_embeddings": False,
        "reorder_and_upcast_attn": True,
    },
}
"""Family and what is special about it -> what its config.json says beside `SIZES`."""
CASES = (*SAMPLES, *(name for name in FAMILIES if name not in {sample.split(",")[0] for sample in SAMPLES}))
"""The samples, and the families without one, on which each test fails."""
FIRST = tuple({name.split(",")[0]: name for name in reversed(CASES)}.values())[::-1]
"""One sample of each family."""


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a sample."""
    assert name in SAMPLES, ADD.format(name)
    kind = name.split(",")[0]
    sizes = {} if kind in ("gpt2", "gemma3") else SIZES
    return {"model_type": kind, **sizes, **SAMPLES[name]}


def golden(name: str) -> dict[str, Any]:
    """The entry of a sample in `families.json`."""
    held = json.loads(GOLDEN.read_text())
    assert name in SAMPLES and name in held, ADD.format(name.split(",")[0])
    return held[name]


def write_folder(name: str, folder: Path) -> Path:
    """The Hugging Face folder of a sample, with the tokenizer of all tests."""
    make_hf_folder(folder)
    (folder / "config.json").write_text(json.dumps(config_of(name)))
    save_file(draw(golden(name)["shapes"]), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def draw(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random float32 tensors, `*` in a name for the numbers of the layers; each depends on its name alone."""
    tensors = {}
    for pattern, (layers, *shape) in shapes.items():
        for name in [pattern.replace("*", str(layer)) for layer in range(layers)] if layers else [pattern]:
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
            embedding = re.search(r"embed_tokens|wte|lm_head", name)
            norm = len(shape) == 1 and re.search(r"(norm\w*|ln_\w+)\.weight$", name)
            values = 1 + 0.3 * values if norm else (0.05 if embedding else 0.2) * values
            tensors[name] = values.astype(np.float32)
    return tensors


def ids(rows: int, length: int) -> np.ndarray:
    """Random tokens, none of which stands for an image."""
    return np.random.RandomState(1).randint(3, 347, (rows, length))


def some(logits_RTV: np.ndarray) -> np.ndarray:
    """The logits of `ids(2, 70)` that are compared: the whole context of the last position counts."""
    return logits_RTV[[0, 0, 1], [5, 69, 69]][:, ::50]
