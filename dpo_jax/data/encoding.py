"""Texts to ids, and what is cut, compared and refused there; knows nothing of rows but their texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_jax.data.sources.record import BadRow
from dpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONGEST_TEXT = 1 << 24  # characters
_BATCH_CHARACTERS = 1 << 22


class Encoded(NamedTuple):
    """One text: ids int32 [tokens], and, if asked for, the characters that each token is made of, [tokens, 2]."""

    ids: np.ndarray
    offsets: np.ndarray | None

    def touches(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Which tokens hold a character of these spans, bool [tokens]."""
        assert self.offsets is not None
        starts, ends = self.offsets[:, 0], self.offsets[:, 1]
        found = np.zeros(len(self.ids), bool)
        for start, end in spans:
            found |= (starts < end) & (ends > start)
        return found


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    special_tokens: bool,
    *,
    bos: Any,
    offsets: bool = False,
) -> list[Encoded]:
    """Each text, without what the tokenizer adds behind it: the template says how a response ends.

    A BOS that a text begins with is not added a second time.
    """
    return [
        found
        for batch in _batches(texts)
        for found in _encode(batch, tokenizer, special_tokens=special_tokens, bos=bos, offsets=offsets)
    ]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Neighbours that are encoded together: each takes some 200 bytes a character until it is an array."""
    ends = np.cumsum([len(text) for text in texts])
    for _, batch in itertools.groupby(range(len(texts)), key=lambda number: ends[number] // _BATCH_CHARACTERS):
        yield [texts[number] for number in batch]


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, *, special_tokens: bool, bos: Any, offsets: bool
) -> list[Encoded]:
    encoded = tokenizer(
        texts,
        add_special_tokens=special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_special_tokens_mask=True,
        return_offsets_mapping=offsets,
        verbose=False,
    )
    every = encoded["offset_mapping"] if offsets else itertools.repeat(None)
    found = []
    for ids, added, places in zip(encoded["input_ids"], encoded["special_tokens_mask"], every, strict=False):
        start, end = 0, len(ids)
        while end and added[end - 1]:
            end -= 1
        if end > 1 and added[0] and ids[0] == ids[1] == bos:
            start = 1
        of_tokens = None if places is None else np.asarray(places[start:end], np.int32).reshape(-1, 2)
        found.append(Encoded(np.asarray(ids[start:end], np.int32), of_tokens))
    return found


def check_length(text: str, where: str) -> None:
    """Raises BadRow for a text that would take gigabytes to encode, more than any model reads."""
    if len(text) > _LONGEST_TEXT:
        raise BadRow(
            where, "too long to encode", f"it has {len(text):,} characters; at most {_LONGEST_TEXT:,} are read."
        )


def check_end(wholes: Sequence[Encoded], tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Raises UserError unless all end with EOS."""
    if any(whole.ids[-1] != tokenizer.eos_token_id for whole in wholes):
        raise UserError(f"{where}: the tokenizer does not encode its eos_token {tokenizer.eos_token!r} as one token.")


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids both begin with."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if differ.size else shorter


def keep_end(prompt: np.ndarray, bos: Any, max_prompt_tokens: int) -> np.ndarray:
    """The end of a prompt. A leading BOS stays: models that were trained with one are lost without it."""
    if len(prompt) <= max_prompt_tokens:
        return prompt
    if prompt[0] == bos and max_prompt_tokens > 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - max_prompt_tokens + 1 :]])
    return prompt[len(prompt) - max_prompt_tokens :]
