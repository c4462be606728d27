"""GGUF files of Llama-family models: tensors under their Hugging Face names, as float32, and the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpo_jax.errors import UserError, nearest
from dpo_jax.weights.gguf_header import check_header
from dpo_jax.weights.source import JsonObject, WeightsSource, check_sizes, token_ids

if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor
    from transformers import PreTrainedTokenizerFast

_ARCHITECTURE = "llama"

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{layer}.attn_norm": "model.layers.{layer}.input_layernorm",
    "blk.{layer}.attn_q": "model.layers.{layer}.self_attn.q_proj",
    "blk.{layer}.attn_k": "model.layers.{layer}.self_attn.k_proj",
    "blk.{layer}.attn_v": "model.layers.{layer}.self_attn.v_proj",
    "blk.{layer}.attn_output": "model.layers.{layer}.self_attn.o_proj",
    "blk.{layer}.ffn_norm": "model.layers.{layer}.post_attention_layernorm",
    "blk.{layer}.ffn_gate": "model.layers.{layer}.mlp.gate_proj",
    "blk.{layer}.ffn_up": "model.layers.{layer}.mlp.up_proj",
    "blk.{layer}.ffn_down": "model.layers.{layer}.mlp.down_proj",
}

_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""Key of config.json -> key of the metadata, after the architecture's name."""

_OPTIONAL = {
    "vocab_size",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
}

_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_CONTROL, _USER_DEFINED = 3, 4  # token types, as llama.cpp numbers them
_TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
_TOKEN_ROLES = {"unk_token": "unknown", "bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def open_gguf(path: Path) -> WeightsSource:
    """Open a `.gguf` file; tensors are dequantised when they are read.

    Raises:
        UserError: the file is damaged, or holds an architecture, metadata or a tensor that is not understood.
    """
    from gguf import GGUFReader, dequantize

    try:
        check_header(path)
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        _check_apart(reader.tensors)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: not a GGUF file, or a damaged one ({error}). Fetch it again.") from None
    tensors = {_hugging_face_name(path, tensor.name): tensor for tensor in reader.tensors}
    config = _config(path, metadata, tied="lm_head.weight" not in tensors)

    def read(name: str, rows: slice = slice(None), /) -> np.ndarray:
        tensor = tensors[name]
        try:
            array = dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"{path}: {tensor.name} has type {tensor.tensor_type.name}, which gguf cannot read"
            ) from None
        turned = name.split(".")[-2] in ("q_proj", "k_proj")
        return _undo_permutation(array, config["head_dim"]) if turned else array

    return WeightsSource(
        where=str(path),
        config=config,
        generation_config=token_ids(config),
        shapes={name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()},
        read=read,
        tokenizer=lambda: make_tokenizer(metadata, where=str(path)),
    )


def _check_apart(tensors: Sequence[ReaderTensor]) -> None:
    """Raise ValueError where two tensors share bytes."""
    places = sorted((tensor.data_offset, tensor.data_offset + tensor.n_bytes, tensor.name) for tensor in tensors)
    for (_, end, name), (start, _, other) in pairwise(places):
        if start < end:
            raise ValueError(f"{name!r} and {other!r} share bytes")


def _hugging_face_name(path: Path, name: str) -> str:
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name.replace(layer[0], ".{layer}.", 1) if layer else name
    stem, _, kind = pattern.rpartition(".")
    if kind != "weight" or stem not in _NAMES:
        known = [f"{stem}.weight" for stem in _NAMES]
        raise UserError(f"{path}: tensor {name!r} is not understood. {nearest(pattern, known)}")
    return f"{_NAMES[stem]}.weight".format(layer=layer and layer[1])


def _undo_permutation(array: np.ndarray, head_size: int) -> np.ndarray:
    """Rows with the two numbers that rotate together in the two halves of a head; GGUF keeps them side by side.

    The rows are those of whole heads.
    """
    rows, columns = array.shape
    return array.reshape(-1, head_size // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(path: Path, metadata: JsonObject, *, tied: bool) -> JsonObject:
    """The `config.json` that this metadata stands for."""
    architecture = metadata.get("general.architecture")
    if architecture != _ARCHITECTURE:
        raise UserError(f"{path}: GGUF architecture {architecture!r}. {nearest(str(architecture), [_ARCHITECTURE])}")
    prefix = f"{_ARCHITECTURE}."
    ours = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    known = {*_REQUIRED.values(), *_OPTIONAL}
    for key in ours:
        if key not in known:
            value = f"{prefix}{key} = {ours[key]!r}"
            raise UserError(f"{path}: metadata {value} would change the computation. {nearest(key, known)}")
    if missing := sorted(set(_REQUIRED.values()) - ours.keys()):
        raise UserError(f"{path}: metadata {prefix}{missing[0]} is missing")
    config = {name: _plain(ours[key]) for name, key in _REQUIRED.items()}
    try:
        check_sizes(config)
    except ValueError as error:
        raise UserError(f"{path}: metadata: {error}") from None
    head_size = ours.get("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if ours.get(key, head_size) != head_size:
            raise UserError(f"{path}: metadata {prefix}{key} is {ours[key]}, want the head size {head_size}")
    special = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in _SPECIAL.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        "vocab_size": ours.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
        "num_key_value_heads": ours.get("attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": head_size,
        "rope_theta": _plain(ours.get("rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        **{key: value for key, value in special.items() if value is not None},
    }


def _plain(value: float) -> float:
    """The shortest decimal of a float32 (1e-05, not 9.999999747e-06); an int as it is."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def make_tokenizer(metadata: JsonObject, *, where: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits digits one by one and adds no special token by itself.

    Raises:
        UserError: the metadata asks for another kind of tokenizer, or holds none.
    """
    for key, only in _TOKENIZER.items():
        if metadata.get(key, only) != only:
            raise UserError(f"{where}: metadata {key} is {metadata[key]!r}. Allowed: {only!r}.")
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
    if missing := [key for key in keys if key not in metadata]:
        raise UserError(f"{where}: no tokenizer: metadata {missing[0]} is missing")
    tokens, types, merges = (metadata[key] for key in keys)
    try:
        return _byte_level(metadata, tokens, types, merges)
    except Exception as error:  # lists of other lengths, ids beyond them, merges of tokens that there are not
        raise UserError(f"{where}: its tokenizer cannot be made ({error}). Fetch it again.") from error


def _byte_level(
    metadata: JsonObject, tokens: list[str], types: list[int], merges: list[str]
) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(first, second) for first, second in (merge.split(" ", 1) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _USER_DEFINED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_settings(metadata, tokens))


def _settings(metadata: JsonObject, tokens: list[str]) -> JsonObject:
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _TOKEN_ROLES.items()}
    settings = {role: tokens[index] for role, index in ids.items() if index is not None}
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings | {
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }
