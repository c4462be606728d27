"""Shared parts of benchmarks: a random Llama in a Hugging Face folder, rows of given lengths, options and results."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers


def parse(doc: str | None, *positional: str, **defaults: Any) -> argparse.Namespace:
    """The command line: a flag for each default, of its type (None: a path), and --json FILE; the rest is `rest`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in positional:
        parser.add_argument(name)
    for name, value in {**defaults, "json": None}.items():
        parser.add_argument(f"--{name}", type=Path if value is None else type(value), default=value)
    options, options.rest = parser.parse_known_args()
    if options.rest and not positional:
        parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
    return options


def keep(options: argparse.Namespace, found: Any) -> None:
    """Writes what was found where --json says."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def machine() -> str:
    """The device and the versions of a measurement."""
    import jax

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}, Python {platform.python_version()}"


def write_config(path: Path, model: Path | str, rows: Path | str, **sections: Any) -> Path:
    """An experiment on these rows, which runs beside the file; `sections` join it."""
    config = {
        "workdir": str(path.with_suffix("")),
        "model": {"weights": str(model)},
        "data": {"train": [{"path": str(rows)}]},
        "loss": {"name": "dpo"},
        "train": {"batch_pairs": 8, "steps": 1},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(config))
    return path


class Shape(NamedTuple):
    """A Llama with tied embeddings; `dtype` is that of the checkpoint."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    dtype: str = "float32"


SHAPES = {
    "small": Shape(256, 4, 4, 4, 1024),
    "1b": Shape(2048, 16, 32, 8, 8192, "bfloat16"),  # Llama 3.2
    "3b": Shape(3072, 28, 24, 8, 8192, "bfloat16"),
}


def make_model(folder: Path, shape: Shape, *, vocabulary: int) -> Path:
    """Config, random weights, and a tokenizer whose words are `w3`, `w4`, ... and one token each."""
    folder.mkdir()
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    files = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": shape.width,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": shape.dtype,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file(_weights(shape, vocabulary), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(shape: Shape, vocabulary: int) -> dict[str, np.ndarray]:
    random, width = np.random.default_rng(0), shape.width
    keys = width // shape.heads * shape.kv_heads
    shapes = {"self_attn.q_proj": (width, width), "self_attn.o_proj": (width, width)}
    shapes |= {"self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width)}
    shapes |= {"mlp.gate_proj": (shape.mlp, width), "mlp.up_proj": (shape.mlp, width)}
    shapes |= {"mlp.down_proj": (width, shape.mlp)}
    dtype = np.dtype(getattr(ml_dtypes, shape.dtype, shape.dtype))

    def draw(size: tuple[int, ...]) -> np.ndarray:
        return (0.02 * random.standard_normal(size, np.float32)).astype(dtype)

    tensors = {"model.embed_tokens.weight": draw((vocabulary, width)), "model.norm.weight": np.ones(width, dtype)}
    for layer in range(shape.layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": draw(size) for name, size in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(width, dtype)
    return tensors


def make_rows(path: Path, lengths: list[tuple[int, int, int]], *, vocabulary: int) -> Path:
    """Rows whose prompt, chosen and rejected have these token counts, the EOS of the responses among them."""
    random = np.random.default_rng(1)

    def text(count: int) -> str:
        return " ".join(f"w{n}" for n in random.integers(3, vocabulary, count))

    rows = [
        {"prompt": text(prompt) + " ", "chosen": text(chosen - 1) + " ", "rejected": text(rejected - 1) + " "}
        for prompt, chosen, rejected in lengths
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn_lengths(
    count: int, means: tuple[int, int, int] = (111, 38, 48), longest: int = 512
) -> list[tuple[int, int, int]]:
    """Token counts of prompt, chosen and rejected with these means and long tails; as a rule HH's."""
    random, spread = np.random.default_rng(2), 0.9
    columns = [
        np.clip(random.lognormal(np.log(mean) - spread**2 / 2, spread, count), 4, longest).astype(int) for mean in means
    ]
    return [(int(p), int(c), int(r)) for p, c, r in zip(*columns, strict=True)]
