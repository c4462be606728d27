"""What the arms of a benchmark train: a random Llama in a Hugging Face folder, and rows of given lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

WIDTH, LAYERS, HEADS, MLP = 256, 4, 4, 1024


def make_model(folder: Path, *, vocabulary: int) -> Path:
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
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    draw = np.random.default_rng(0).standard_normal
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (MLP, WIDTH), "mlp.up_proj": (MLP, WIDTH), "mlp.down_proj": (WIDTH, MLP)}
    tensors = {"model.embed_tokens.weight": 0.02 * draw((vocabulary, WIDTH)), "model.norm.weight": np.ones(WIDTH)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = 0.02 * draw(shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(WIDTH)
    arrays = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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


def drawn_lengths(count: int) -> list[tuple[int, int, int]]:
    """Token counts of prompt, chosen and rejected as in HH's harmless dialogues: means 111, 38 and 48, long tails."""
    random = np.random.default_rng(2)
    columns = [
        np.clip(random.lognormal(np.log(mean) - spread**2 / 2, spread, count), 4, 512).astype(int)
        for mean, spread in ((111, 0.9), (38, 0.9), (48, 0.9))
    ]
    return [(int(p), int(c), int(r)) for p, c, r in zip(*columns, strict=True)]
