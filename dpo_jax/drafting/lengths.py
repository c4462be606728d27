"""Lengths of rows in tokens, and the limits that suit them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_jax.data.encoding import Rules
from dpo_jax.data.tokenize import tokenize_chunks
from dpo_jax.data.tokens import sizes_of
from dpo_jax.drafting.forms import letters
from dpo_jax.errors import Skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MEASURED = 2_000  # rows of a source
_ENDLESS = 1 << 24  # tokens
_LETTERS = 3  # of a token, about, where there is no tokenizer
_WHOLE = 1024  # tokens; rows that are all shorter are all kept whole


class Lengths(NamedTuple):
    """Tokens of the prompts of some rows, and of prompt and longest response together; rows that make none."""

    prompts: np.ndarray
    totals: np.ndarray
    skipped: Skipped
    guessed: bool = False

    def in_words(self) -> str:
        """Percentiles of the rows."""
        half, most, longest = np.percentile(self.totals, (50, 98, 100), method="higher").tolist()
        about = "guessed of their characters: " * self.guessed
        return f"{about}median {half:,}, p98 = {most:,}, longest {longest:,}"


class Limits(NamedTuple):
    """The settings of `data` that cut rows, each with its reason."""

    max_tokens: int
    max_prompt_tokens: int
    why: str
    why_prompt: str


def measure(rows: Sequence[Any], tokenizer: PreTrainedTokenizerFast | str, rules: Rules) -> Lengths:
    """Count the tokens of the first rows as training makes them, or guess, where the tokenizer is the reason to.

    Raises:
        UserError: none of them makes tokens.
    """
    rows, skipped = rows[:_MEASURED], Skipped()
    if isinstance(tokenizer, str):
        prompts = [letters(row.prompt) for row in rows]
        answers = [max(map(letters, _answers(row))) for row in rows]
        counts = np.array([prompts, np.add(prompts, answers)], int) // _LETTERS + 1
        return Lengths(counts[0], counts[1], skipped, True)
    chunks = list(tokenize_chunks(rows, tokenizer, rules, on_error="skip"))
    for chunk in chunks:
        skipped.update(chunk.skipped)
    tokens = [each for chunk in chunks for each in chunk.tokens]
    if not tokens:
        list(tokenize_chunks(rows[:1], tokenizer, rules))  # which says what is wrong with it
    sizes = sizes_of(tokens)
    return Lengths(sizes.prompt, sizes.prompt + sizes.responses.max(axis=1), skipped)


def joined(every: Sequence[Lengths]) -> Lengths:
    """The lengths of the rows of several sources."""
    skipped = Skipped()
    for each in every:
        skipped.update(each.skipped)
    prompts, totals = [each.prompts for each in every], [each.totals for each in every]
    return Lengths(np.concatenate(prompts), np.concatenate(totals), skipped, every[0].guessed)


def endless(template: str) -> Rules:
    """Rules that cut no row."""
    return Rules(template=template, max_prompt_tokens=_ENDLESS, max_tokens=2 * _ENDLESS)


def choose_limits(lengths: Lengths, positions: int | None) -> Limits:
    """The limits that keep almost all rows whole, within the positions that the model knows."""
    longest, most = int(lengths.totals.max()), int(np.percentile(lengths.totals, 98, method="higher"))
    limit = _up(longest if longest <= _WHOLE else most, 64)
    within = ""
    if positions is not None and limit > positions:
        limit, within = positions, f"; the model knows {positions:,} positions"
    share = math.floor(1000 * float(np.mean(lengths.totals <= limit))) / 10
    why = f"{share:g} % of your rows are no longer ({lengths.in_words()} tokens){within}"
    prompt = int(np.percentile(lengths.prompts, 98, method="higher"))
    room = max(1, min(limit // 4, _up(int((lengths.totals - lengths.prompts).max()), 8)))
    prompt_limit = max(1, min(_up(prompt, 32), limit - room))
    share = math.floor(1000 * float(np.mean(lengths.prompts <= prompt_limit))) / 10
    return Limits(limit, prompt_limit, why, f"{share:g} % of the prompts are no longer (p98 = {prompt:,})")


def _answers(row: Any) -> Iterator[Any]:
    yield from (getattr(row, name) for name in ("chosen", "rejected", "completion") if getattr(row, name, None))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
