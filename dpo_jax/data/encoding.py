"""Texts to ids: the rules, a fingerprint of all that decides the ids, and the encoder; of rows it knows the texts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dpo_jax import files
from dpo_jax.data.chat import Template, find_template
from dpo_jax.errors import BadRow, UserError, nearest, no_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONGEST_TEXT = 1 << 24  # characters
_BATCH_CHARACTERS = 1 << 22

_CHOICES = {
    "score": ("completion", "assistant"),
    "special_tokens": ("text", "refuse", "allow"),
    "truncation": ("keep", "drop"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings that decide how text becomes tokens.

    Raises:
        ValueError: one is not among those that there are.
    """

    template: str = "plain"  # of `TEMPLATES`
    chat_template: str | None = None  # jinja, in place of the tokenizer's own
    date: str | None = None  # YYYY-MM-DD, that the chat template reads off the clock
    score: str = "completion"  # of a response of several turns: all of it, or what the assistant says
    special_tokens: str = "text"  # in the text of a row: read as text, the row refused, or allowed as tokens
    truncation: str = "keep"  # of a row that is too long: keep a part, or drop it
    max_prompt_tokens: int = 512
    max_tokens: int = 1024
    # Of the model, which decides no token: None is not known, and not checked.
    vocabulary: int | None = None  # its token ids; a row with others is refused
    positions: int | None = None  # on which it was trained

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}. {nearest(str(value), allowed)}")
        _ = self.form

    @property
    def form(self) -> Template:
        """The template, with the jinja that is given."""
        return find_template(self.template, self.chat_template, self.date)


def tokenization_fingerprint(tokenizer: PreTrainedTokenizerFast, rules: Rules) -> dict[str, str]:
    """Return all that decides the ids of a row, as text by field."""
    source = rules.form.source(tokenizer)
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} has no tokenizer.json; only tokenizers that have one are supported."
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    prompt, total = rules.max_prompt_tokens, rules.max_tokens
    kept = f"prompt keeps BOS and its end at {prompt}, pair keeps its start at {total}"
    return {
        "tokenizer": files.digest(json.dumps(backend, sort_keys=True).encode()),
        "vocabulary": str(len(tokenizer)),
        "eos": f"{tokenizer.eos_token} ({tokenizer.eos_token_id})",
        "bos": f"{tokenizer.bos_token} ({tokenizer.bos_token_id})",
        "template": f"{rules.template} {files.digest(source.encode())}",
        "truncation": kept if rules.truncation == "keep" else f"none: prompt to {prompt}, pair to {total}, or dropped",
        "scored": rules.score,
        **({"special tokens of rows": "allowed"} if rules.special_tokens == "allow" else {}),
    }


class Encoded(NamedTuple):
    """One text: ids int32 [tokens], and, if asked for, the characters that each token is made of, [tokens, 2]."""

    ids: np.ndarray
    offsets: np.ndarray | None

    def touches(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Mark the tokens that hold a character of these spans, bool [tokens]."""
        assert self.offsets is not None
        starts, ends = self.offsets[:, 0], self.offsets[:, 1]
        touched = np.zeros(len(self.ids), bool)
        for start, end in spans:
            touched |= (starts < end) & (ends > start)
        return touched


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    special_tokens: bool,
    *,
    bos: object,
    offsets: bool = False,
) -> list[Encoded]:
    """Encode each text, without what the tokenizer adds behind it: the template says how a response ends.

    A BOS that a text begins with is not added a second time.
    """
    # Not all together: each takes some 200 bytes a character until it is an array.
    ends = np.cumsum([len(text) for text in texts])
    batches = itertools.groupby(range(len(texts)), key=lambda number: ends[number] // _BATCH_CHARACTERS)
    every = ([texts[number] for number in batch] for _, batch in batches)
    return [one for batch in every for one in _encode(batch, tokenizer, special_tokens, bos=bos, offsets=offsets)]


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, special_tokens: bool, *, bos: object, offsets: bool
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
    texts_encoded = []
    for ids, added, places in zip(encoded["input_ids"], encoded["special_tokens_mask"], every, strict=False):
        start, end = 0, len(ids)
        while end and added[end - 1]:
            end -= 1
        if end > 1 and added[0] and ids[0] == ids[1] == bos:
            start = 1
        of_tokens = None if places is None else np.asarray(places[start:end], np.int32).reshape(-1, 2)
        texts_encoded.append(Encoded(np.asarray(ids[start:end], np.int32), of_tokens))
    return texts_encoded


def check_length(text: str, where: str) -> None:
    """Raise BadRow for a text that would take gigabytes to encode, more than any model reads."""
    if len(text) > _LONGEST_TEXT:
        says = f"it has {len(text):,} characters; at most {_LONGEST_TEXT:,} are read."
        raise BadRow(where, "too long to encode", says)


def check_end(wholes: Sequence[Encoded], tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Raise UserError unless all end with EOS."""
    if any(whole.ids[-1] != tokenizer.eos_token_id for whole in wholes):
        raise UserError(f"{where}: the tokenizer does not encode its eos_token {tokenizer.eos_token!r} as one token.")


def check_ids(
    rows: Sequence[Sequence[np.ndarray]], wheres: Sequence[str], tokenizer: PreTrainedTokenizerFast, rules: Rules
) -> None:
    """Raise UserError at the first row with a token that the model has no embedding for."""
    known = rules.vocabulary
    every = [ids for row in rows for ids in row]
    if known is None or not every or np.concatenate(every).max(initial=0) < known:
        return
    for where, row in zip(wheres, rows, strict=True):
        for token in (int(ids.max(initial=0)) for ids in row):
            if token >= known:
                name = tokenizer.convert_ids_to_tokens(token)
                raise UserError(f"{where}: {no_embedding(token, name, len(tokenizer), known)}")


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Number of ids that both begin with."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if differ.size else shorter


def keep_end(prompt: np.ndarray, bos: object, max_prompt_tokens: int) -> np.ndarray:
    """Return the end of a prompt. A leading BOS stays: models that were trained with one are lost without it."""
    if len(prompt) <= max_prompt_tokens:
        return prompt
    if prompt[0] == bos and max_prompt_tokens > 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - max_prompt_tokens + 1 :]])
    return prompt[len(prompt) - max_prompt_tokens :]
