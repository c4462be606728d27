"""A tiny Llama in a Hugging Face folder: random weights, and a byte-level BPE tokenizer trained on a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dpo_jax.models.spec import DecoderSpec

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0 unk, 1 bos, 2 eos and pad
LINES = (
    "the lamp was warm and the room was quiet",
    "a quiet film with a warm heart and a clever ending",
    "the plot is thin, the jokes are old and the ending is cold",
    "Write a short line about the weather. It rained all day.",
    "What is 12 + 30?\n42, of course!",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_hf_folder(folder: Path, *, seed: int = 0, tied: bool = False, **spec_overrides: Any) -> Path:
    """Writes config, generation config, one safetensors file and the tokenizer; returns `folder`.

    `spec_overrides` are fields of `DecoderSpec`: width 32, 2 layers, 4 heads over 2 key/value heads of size 8, MLP
    width 64 unless told otherwise. The vocabulary is that of the tokenizer, or larger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    sizes: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 64}
    sizes |= {"vocabulary": tokenizer.get_vocab_size(), "norm_epsilon": 1e-5}
    spec = DecoderSpec(**(sizes | spec_overrides), tied=tied)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": hf_config(spec),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer_config.json": _TOKENIZER_CONFIG,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    save_file(random_tensors(spec, seed=seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": SPECIAL[0],
    "bos_token": SPECIAL[1],
    "eos_token": SPECIAL[2],
    "pad_token": SPECIAL[2],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 512,
    "chat_template": CHAT_TEMPLATE,
}


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of about 340 tokens: it encodes any text and adds no special token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def hf_config(spec: DecoderSpec) -> dict:
    """The `config.json` of this decoder."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": spec.kinds[0].rope_base,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    }


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of this decoder under their Hugging Face names, [out, in]."""
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    of_layer = {
        "self_attn.q_proj": (queries, spec.width),
        "self_attn.k_proj": (keys, spec.width),
        "self_attn.v_proj": (keys, spec.width),
        "self_attn.o_proj": (spec.width, queries),
        "mlp.gate_proj": (spec.mlp_width, spec.width),
        "mlp.up_proj": (spec.mlp_width, spec.width),
        "mlp.down_proj": (spec.width, spec.mlp_width),
        "input_layernorm": (spec.width,),
        "post_attention_layernorm": (spec.width,),
    }
    whole = (spec.vocabulary, spec.width)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": whole}
    for layer in range(spec.layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return shapes | {"model.norm.weight": (spec.width,)} | ({} if spec.tied else {"lm_head.weight": whole})


def random_tensors(spec: DecoderSpec, *, seed: int) -> dict[str, np.ndarray]:
    """Random float32 tensors; large enough that every one matters."""
    draw = np.random.default_rng(seed).standard_normal
    tensors = {}
    for name, shape in tensor_shapes(spec).items():
        values = draw(shape)
        tensors[name] = 1 + 0.1 * values if len(shape) == 1 else values / shape[1] ** 0.5
        if shape == (spec.vocabulary, spec.width):
            tensors[name] = 0.3 * values
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}
