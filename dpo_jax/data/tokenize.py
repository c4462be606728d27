"""Rows of text to token ids: where the response begins, what truncation keeps, and which tokens are scored."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple

import numpy as np

from dpo_jax.data import encoding
from dpo_jax.data.chat import TEMPLATES, Span, Template
from dpo_jax.data.encoding import Encoded, Rules
from dpo_jax.data.specials import AsText, Row, Specials, find_specials, formatted, prompt_text
from dpo_jax.errors import BadRow
from dpo_jax.types import Completion, PreferencePair, Prompt, TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK_ROWS = 1024  # an encoding holds far more than its ids, so not all of them are alive at once


class Counts(NamedTuple):
    """Changes by tokenization, in rows (in responses for `responses_truncated`)."""

    prompts_truncated: int = 0
    responses_truncated: int = 0
    boundaries_moved: int = 0  # the end of the prompt merged with a response, and counts as response
    long_rows_dropped: int = 0
    special_tokens_as_text: int = 0


class Tokenized(NamedTuple):
    """Token rows in the order of the rows they came from, and what was changed on the way."""

    rows: list[TokenRow]
    counts: Counts


class Chunk(NamedTuple, Generic[Row]):
    """Some rows and the tokens of each; what was changed, and how many rows were left out for which reason."""

    rows: list[Row]
    tokens: list[TokenRow]
    counts: Counts
    skipped: dict[str, int]
    unread: dict[str, int]  # rows by the name of what the chat template does not write of them


def tokenize_chunks(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    *,
    on_error: str = "stop",
    learned: bool = True,
) -> Iterator[Chunk[Row]]:
    """Encode each prompt alone and before each of its responses; a response begins where any of these diverge.

    A prompt keeps its last `max_prompt_tokens` (and the BOS it began with), a response its start, up to `max_tokens`
    with its prompt; or rows that are longer are dropped. Only one chunk of rows is in memory. Of rows to be `learned`
    from the responses must still differ.

    Raises:
        UserError: a row cannot be used (with on_error "stop"), or the tokenizer cannot do what the template asks.
    """
    form, specials = rules.form, find_specials(tokenizer, rules)
    rest = iter(rows)
    while chunk := list(itertools.islice(rest, _CHUNK_ROWS)):
        skipped, unread = Counter[str](), Counter[str]()
        kept: list[Row] = []
        tokens: list[TokenRow] = []
        totals = np.zeros(len(Counts()), int)
        for row, whole in _encoded(chunk, tokenizer, rules, form, specials):
            try:
                if isinstance(whole, BadRow):
                    raise whole
                cut, counts = _cut(row, whole, tokenizer, rules)
                if learned and not counts.long_rows_dropped:
                    _check_pair(row, cut, rules)
                counts = counts._replace(special_tokens_as_text=whole.as_text and not counts.long_rows_dropped)
            except BadRow as bad:
                if on_error == "stop":
                    raise
                skipped[bad.reason] += 1
                continue
            totals += counts
            if not counts.long_rows_dropped:
                unread.update(whole.unread)
                kept.append(row)
                tokens.append(cut)
        encoding.check_ids(
            [(row.prompt, *row.responses) for row in tokens], [row.where for row in kept], tokenizer, rules
        )
        yield Chunk(kept, tokens, Counts(*totals.tolist()), dict(skipped), dict(unread))


def tokenize(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, rules: Rules) -> Tokenized:
    """Tokenize rows that are to be scored, all at once, as `tokenize_chunks` does it. Stops at a bad row."""
    tokens: list[TokenRow] = []
    totals = np.zeros(len(Counts()), int)
    for chunk in tokenize_chunks(rows, tokenizer, rules, learned=False):
        tokens += chunk.tokens
        totals += chunk.counts
    return Tokenized(tokens, Counts(*totals.tolist()))


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast, rules: Rules
) -> tuple[list[np.ndarray], int]:
    """Tokenize prompts alone, formatted and truncated as by `tokenize`, int32 [tokens]: what sampling begins with.

    The number is that of the prompts that were truncated, which they are under `truncation: drop` too.
    """
    form, specials, limit = rules.form, find_specials(tokenizer, rules), rules.max_prompt_tokens
    texts = [prompt_text(prompt, tokenizer, form, specials) for prompt in prompts]
    encoded = list(_ids(texts, tokenizer, form, specials))
    kept = [encoding.keep_end(whole.ids, tokenizer.bos_token_id, limit) for whole in encoded]
    encoding.check_ids([(ids,) for ids in kept], [prompt.where for prompt in prompts], tokenizer, rules)
    return kept, sum(len(whole.ids) > limit for whole in encoded)


def _ids(
    texts: Sequence[tuple[str, bool]],
    tokenizer: PreTrainedTokenizerFast,
    form: Template,
    specials: Specials | AsText | None,
    *,
    offsets: bool = False,
) -> Iterator[Encoded]:
    """Encode texts; each comes with True if special tokens in it are text, which another encoder knows."""
    encoded, bos = {}, tokenizer.bos_token_id
    for as_text in dict.fromkeys(flag for _, flag in texts):
        encoder = specials.encoder if as_text and isinstance(specials, AsText) else tokenizer
        chosen = [text for text, flag in texts if flag is as_text]
        encoded[as_text] = iter(encoding.encode(chosen, encoder, form.special_tokens, bos=bos, offsets=offsets))
    return (next(encoded[flag]) for _, flag in texts)


class _Whole(NamedTuple):
    """A row encoded: its prompt alone, and with each response."""

    prompt: Encoded
    wholes: list[Encoded]
    spans: list[list[Span] | None]  # the characters to score, of each response
    as_text: bool  # some special token of the row is read as text
    unread: frozenset[str]  # what the template does not write of it


def _encoded(
    chunk: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    form: Template,
    specials: Specials | AsText | None,
) -> Iterator[tuple[Row, _Whole | BadRow]]:
    """Each row of the chunk, encoded, or the error that it would raise; neighbours of one form go together."""
    for is_text, group in itertools.groupby(chunk, key=_is_text):
        rows, used = list(group), TEMPLATES["plain"] if is_text else form
        texts = [formatted(row, tokenizer, rules, used, specials) for row in rows]
        good = [one for one in texts if not isinstance(one, BadRow)]
        flat = [(text, one.as_text) for one in good for text in (one.prompt, *one.wholes)]
        encoded = _ids(flat, tokenizer, used, specials, offsets=rules.score == "assistant")
        for row, one in zip(rows, texts, strict=True):
            if isinstance(one, BadRow):
                yield row, one
                continue
            prompt, *wholes = itertools.islice(encoded, 1 + len(one.wholes))
            if used.special_tokens:
                encoding.check_end(wholes, tokenizer, row.where)
            yield row, _Whole(prompt, wholes, one.spans, one.as_text, one.unread)


def _is_text(row: Row) -> bool:
    """Return True for text without a prompt, which no template formats."""
    return isinstance(row, Completion) and row.prompt == ""


def _cut(row: Row, whole: _Whole, tokenizer: PreTrainedTokenizerFast, rules: Rules) -> tuple[TokenRow, Counts]:
    """The row as tokens within its limits, and what that changed; raises BadRow."""
    boundary = min(encoding.common_prefix(whole.prompt.ids, one.ids) for one in whole.wholes)
    moved = boundary < len(whole.prompt.ids)
    if _is_text(row):
        boundary = max(boundary, 1)
    if boundary == 0:
        raise BadRow(
            row.where,
            "no token of the prompt",
            "no token of the prompt stands before the responses, and the first token of a sequence is never scored. "
            "Give the row a prompt that ends on a token boundary, a space or a line end for example.",
        )
    prompt = whole.prompt.ids[:boundary] if not _is_text(row) else whole.wholes[0].ids[:boundary]
    responses = tuple(one.ids[boundary:] for one in whole.wholes)
    longest = len(prompt) + max(map(len, responses))
    if rules.truncation == "drop" and (len(prompt) > rules.max_prompt_tokens or longest > rules.max_tokens):
        return TokenRow(row.row_id, prompt, responses), Counts(long_rows_dropped=1)
    kept = encoding.keep_end(prompt, tokenizer.bos_token_id, rules.max_prompt_tokens)
    room = max(0, rules.max_tokens - len(kept))
    cut = TokenRow(row.row_id, kept, tuple(ids[:room] for ids in responses), _masks(whole, boundary, room))
    _check_room(row, cut, rules)
    truncated = sum(len(a) < len(b) for a, b in zip(cut.responses, responses, strict=True))
    return cut, Counts(len(kept) < len(prompt), truncated, moved)


def _masks(whole: _Whole, boundary: int, room: int) -> tuple[np.ndarray, ...] | None:
    """Mark the tokens of each response that touch its spans; None where all do."""
    if not any(spans is not None for spans in whole.spans):
        return None
    masks = tuple(
        np.ones(len(one.ids) - boundary, bool)[:room] if spans is None else one.touches(spans)[boundary:][:room]
        for one, spans in zip(whole.wholes, whole.spans, strict=True)
    )
    return None if all(mask.all() for mask in masks) else masks


def _check_pair(row: Row, cut: TokenRow, rules: Rules) -> None:
    if isinstance(row, PreferencePair) and len({ids.tobytes() for ids in cut.responses}) < len(cut.responses):
        detail = "chosen and rejected differ, but not in the tokens that are left of them within max_tokens, "
        raise BadRow(row.where, "identical responses", f"{detail}{rules.max_tokens}.")


def _check_room(row: Row, cut: TokenRow, rules: Rules) -> None:
    if not all(map(len, cut.responses)):
        raise BadRow(
            row.where,
            "no room for a response",
            f"no token of a response is left: its prompt takes {len(cut.prompt)} tokens, and max_tokens is "
            f"{rules.max_tokens}.",
            f"Raise {{max_tokens}} or lower {{max_prompt_tokens}} (now {rules.max_prompt_tokens}).",
        )
    if cut.masks and not all(mask.any() for mask in cut.masks):
        raise BadRow(row.where, "nothing to score", "no token of the assistant is left in a response.")
