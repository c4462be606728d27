"""GGUF files of Llama-family models: tensors under their Hugging Face names, as float32, and the tokenizer."""

from __future__ import annotations

import math
import mmap
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpo_jax.errors import UserError, nearest
from dpo_jax.weights.source import JsonObject, WeightsSource, check_sizes, token_ids

if TYPE_CHECKING:
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

_TOKEN_ROLES = {"unk_token": "unknown", "bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
_CONTROL, _USER_DEFINED = 3, 4  # token types, as llama.cpp numbers them
_TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}


def open_gguf(path: Path) -> WeightsSource:
    """Open a `.gguf` file; tensors are dequantised when they are read.

    Raises:
        UserError: the file is damaged, or holds an architecture, metadata or a tensor that is not understood.
    """
    from gguf import GGUFReader, dequantize

    try:
        _check_header(path)
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        places = sorted((tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors)
        if any(end > start for (_, end), (start, _) in pairwise(places)):
            raise ValueError("two tensors share bytes")
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
        **{f"{role}_id": value for role, value in _roles(metadata).items() if role != "unk_token"},
    }


def _roles(metadata: JsonObject) -> dict[str, int]:
    """The ids of the special tokens that the metadata names, by their roles in transformers."""
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _TOKEN_ROLES.items()}
    return {role: index for role, index in ids.items() if index is not None}


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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{role: tokens[index] for role, index in _roles(metadata).items()},
        chat_template=metadata.get("tokenizer.chat_template") or None,
        clean_up_tokenization_spaces=False,
        model_max_length=metadata["llama.context_length"],
    )


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_ITEMS = 5_000_000  # of the metadata: a vocabulary of a million tokens with types and merges has fewer
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 2**48


def _check_header(path: Path) -> None:
    """Raise ValueError unless all counts, lengths and offsets of the head are within the file.

    Nothing is believed before: the reader of `gguf` would count to 2^60 if told to.
    """
    if not path.stat().st_size:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        tensors, fields = walk.begin()
        for _ in range(fields):
            walk.string()
            walk.value(walk.number("I"))
        for _ in range(tensors):
            walk.tensor()


class _Walk:
    """A place in a file, moved on by what is read there."""

    def __init__(self, data: mmap.mmap):
        self._data, self._at, self._order, self._items = data, 0, "<", 0

    def begin(self) -> tuple[int, int]:
        """The numbers of tensors and of fields of the metadata."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._skip(4)
        version = self.number("I")
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        return self.number("Q"), self.number("Q")

    def number(self, kind: str) -> int:
        start = self._at
        self._skip(struct.calcsize(kind))
        return struct.unpack_from(self._order + kind, self._data, start)[0]

    def string(self) -> None:
        self._skip(self.number("Q"))

    def value(self, kind: int, *, depth: int = 0) -> None:
        self._count(1)
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if depth > 1:
                raise ValueError("lists of lists of lists in its metadata")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                self._count(count)
                return
            for _ in range(count):
                self.value(inner, depth=depth + 1)
        else:
            raise ValueError(f"a value of type {kind}")

    def tensor(self) -> None:
        self.string()
        dimensions = self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        if math.prod(self.number("Q") for _ in range(dimensions)) > _MOST_ELEMENTS:
            raise ValueError("a tensor beyond all memory")
        self.number("I")
        if (offset := self.number("Q")) > len(self._data):
            raise ValueError(f"a tensor at byte {offset}")

    def _count(self, values: int) -> None:
        self._items += values
        if self._items > _MOST_ITEMS:
            raise ValueError(f"more than {_MOST_ITEMS} values in its metadata")

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise ValueError(f"{size} bytes at byte {self._at}, of {len(self._data)} in all")
        self._at += size
