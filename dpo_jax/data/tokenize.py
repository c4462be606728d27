"""Rows of text to token ids: where the response begins, what truncation keeps, and a fingerprint of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_jax import files
from dpo_jax.data.chat import Template, find_template
from dpo_jax.errors import UserError
from dpo_jax.types import Completion, PreferencePair, TokenRow, UnpairedCompletion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = PreferencePair | Completion | UnpairedCompletion

_CHUNK_ROWS = 1024  # an encoding holds far more than its ids, so not all of them are alive at once


class Counts(NamedTuple):
    """What tokenization changed, in rows (in responses for `responses_truncated`)."""

    prompts_truncated: int = 0
    responses_truncated: int = 0
    boundaries_moved: int = 0  # the end of the prompt merged with a response, and counts as response
    identical_responses: int = 0  # chosen and rejected differ in text, but not in the tokens that are left of them


class Tokenized(NamedTuple):
    """Token rows in the order of the rows they came from, and what was changed on the way."""

    rows: list[TokenRow]
    counts: Counts


def tokenize(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str,
    max_prompt_tokens: int,
    max_tokens: int,
) -> Tokenized:
    """Encodes each prompt alone and before each of its responses; a response begins where any of these diverge.

    A prompt keeps its last `max_prompt_tokens` (and the BOS it began with), a response its start, up to `max_tokens`
    with its prompt.

    Raises:
        UserError: naming the row, when no token of its prompt or of a response is left.
    """
    form = find_template(template)
    tokenized: list[TokenRow] = []
    totals = np.zeros(len(Counts()), int)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS]
        prompts = _encode([form.prompt(tokenizer, row.prompt) for row in chunk], tokenizer, form)
        texts = [form.conversation(tokenizer, row.prompt, response) for row in chunk for response in row.responses]
        wholes = iter(_encode(texts, tokenizer, form))
        for row, prompt in zip(chunk, prompts, strict=True):
            of_row = [next(wholes) for _ in row.responses]
            _check_end(of_row, tokenizer, form, row.where)
            ids, boundary = _split(prompt, of_row, row)
            cut = _truncate(ids, tokenizer.bos_token_id, row.where, max_prompt_tokens, max_tokens)
            tokenized.append(cut)
            totals += _changes(ids, cut, moved=boundary < len(prompt), compared=isinstance(row, PreferencePair))
    return Tokenized(tokenized, Counts(*totals.tolist()))


def tokenize_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, template: str, max_prompt_tokens: int
) -> tuple[list[np.ndarray], int]:
    """Prompts alone, formatted and truncated as `tokenize` does it, int32 [tokens]: what sampling begins with.

    The number is that of the prompts that were truncated.
    """
    form = find_template(template)
    encoded = _encode([form.prompt(tokenizer, prompt) for prompt in prompts], tokenizer, form)
    kept = [_keep_end(ids, tokenizer.bos_token_id, max_prompt_tokens) for ids in encoded]
    return kept, sum(len(ids) > max_prompt_tokens for ids in encoded)


def tokenization_fingerprint(
    tokenizer: PreTrainedTokenizerFast, *, template: str, max_prompt_tokens: int, max_tokens: int
) -> dict[str, str]:
    """All that decides the ids of a row, as text by field."""
    source = find_template(template).source(tokenizer)
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} has no tokenizer.json; only tokenizers that have one are supported."
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    return {
        "tokenizer": files.digest(json.dumps(backend, sort_keys=True).encode()),
        "vocabulary": str(len(tokenizer)),
        "eos": f"{tokenizer.eos_token} ({tokenizer.eos_token_id})",
        "bos": f"{tokenizer.bos_token} ({tokenizer.bos_token_id})",
        "template": f"{template} {files.digest(source.encode())}",
        "truncation": f"prompt keeps BOS and its end at {max_prompt_tokens}, pair keeps its start at {max_tokens}",
    }


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerFast, form: Template) -> list[np.ndarray]:
    """Ids of each text, without what the tokenizer adds behind it: the template says how a response ends."""
    encoded = tokenizer(
        texts,
        add_special_tokens=form.special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_special_tokens_mask=True,
        verbose=False,
    )
    arrays = []
    for ids, added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while end and added[end - 1]:
            end -= 1
        arrays.append(np.asarray(ids[:end], np.int32))
    return arrays


def _check_end(wholes: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerFast, form: Template, where: str) -> None:
    if form.special_tokens and any(whole[-1] != tokenizer.eos_token_id for whole in wholes):
        raise UserError(f"{where}: the tokenizer does not encode its eos_token {tokenizer.eos_token!r} as one token.")


def _split(prompt: np.ndarray, wholes: Sequence[np.ndarray], row: Row) -> tuple[TokenRow, int]:
    boundary = min(_common_prefix(prompt, whole) for whole in wholes)
    if boundary == 0:
        raise UserError(
            f"{row.where}: no token of the prompt stands before the responses, and the first token of a sequence is "
            f"never scored. Give the row a prompt that ends on a token boundary, a space or a line end for example."
        )
    return TokenRow(row.row_id, prompt[:boundary], tuple(whole[boundary:] for whole in wholes)), boundary


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if differ.size else shorter


def _truncate(row: TokenRow, bos: Any, where: str, max_prompt_tokens: int, max_tokens: int) -> TokenRow:
    prompt = _keep_end(row.prompt, bos, max_prompt_tokens)
    room = max(0, max_tokens - len(prompt))
    responses = tuple(response[:room] for response in row.responses)
    if not all(map(len, responses)):
        raise UserError(
            f"{where}: no token of a response is left: its prompt takes {len(prompt)} tokens, and max_tokens is "
            f"{max_tokens}. Raise data.max_tokens or lower data.max_prompt_tokens (now {max_prompt_tokens})."
        )
    return TokenRow(row.row_id, prompt, responses)


def _keep_end(prompt: np.ndarray, bos: Any, max_prompt_tokens: int) -> np.ndarray:
    """The end of a prompt. A leading BOS stays: models that were trained with one are lost without it."""
    if len(prompt) <= max_prompt_tokens:
        return prompt
    if prompt[0] == bos and max_prompt_tokens > 1:
        return np.concatenate([prompt[:1], prompt[len(prompt) - max_prompt_tokens + 1 :]])
    return prompt[len(prompt) - max_prompt_tokens :]


def _changes(row: TokenRow, cut: TokenRow, *, moved: bool, compared: bool) -> Counts:
    """The counts of one row, before and after truncation; `compared` says that one response is preferred to another."""
    return Counts(
        prompts_truncated=len(cut.prompt) < len(row.prompt),
        responses_truncated=sum(len(a) < len(b) for a, b in zip(cut.responses, row.responses, strict=True)),
        boundaries_moved=moved,
        identical_responses=compared and len({response.tobytes() for response in cut.responses}) < len(cut.responses),
    )
