"""The tokenizer that a GGUF file carries, built from its own tokens, token types and merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED = 3, 4  # token types, as llama.cpp numbers them
_EXPECTED = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
_ROLES = {"unk_token": "unknown", "bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def make_tokenizer(metadata: dict[str, Any], *, where: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits digits one by one and adds no special token by itself.

    Raises:
        UserError: the metadata asks for another kind of tokenizer, or holds none.
    """
    for key, only in _EXPECTED.items():
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
    metadata: dict[str, Any], tokens: list[str], types: list[int], merges: list[str]
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


def _settings(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    settings = {role: tokens[index] for role, index in ids.items() if index is not None}
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings | {
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }
