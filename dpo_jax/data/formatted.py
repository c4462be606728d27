"""A row as the texts that are encoded, with the special tokens that stand in it refused, as text, or allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_jax.data.chat import TEMPLATES, Span, Template
from dpo_jax.data.encoding import check_length
from dpo_jax.data.rules import Rules
from dpo_jax.data.sources.record import BadRow
from dpo_jax.data.specials import AsText, Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def find_specials(tokenizer: PreTrainedTokenizerFast, rules: Rules) -> Specials | AsText | None:
    """What is done with special tokens in the text of rows; None: nothing."""
    if rules.special_tokens == "allow":
        return None
    return AsText(tokenizer) if rules.special_tokens == "text" else Specials(tokenizer)


def prompt_text(
    prompt: Any, tokenizer: PreTrainedTokenizerFast, form: Template, specials: Specials | AsText | None
) -> tuple[str, bool]:
    """A prompt alone, and whether special tokens in it are text; raises BadRow."""
    if isinstance(specials, Specials):
        specials.check(prompt, closing=None)
    marks = specials if isinstance(specials, AsText) and specials.in_row(prompt) else None
    text = form.prompt(tokenizer, marks.marked(prompt) if marks else prompt)
    check_length(text, prompt.where)
    return (marks.finished(text, prompt.where) if marks else text), marks is not None


class Formatted(NamedTuple):
    """A row as text: its prompt alone, and with each response."""

    prompt: str
    wholes: list[str]
    spans: list[list[Span] | None]  # the characters to score, of each response
    as_text: bool = False  # some special token of the row is read as text


def formatted(
    row: Any, tokenizer: PreTrainedTokenizerFast, rules: Rules, form: Template, specials: Specials | AsText | None
) -> Formatted | BadRow:
    """A row as text, or the error that it would raise."""
    try:
        is_plain = form is TEMPLATES["plain"]
        if isinstance(specials, Specials):
            specials.check(row, closing=tokenizer.eos_token if is_plain else None)
        as_text = isinstance(specials, AsText) and not is_plain and specials.in_row(row)
        seen = specials.marked(row) if isinstance(specials, AsText) and as_text else row
        found = Formatted(
            form.prompt(tokenizer, seen),
            [form.conversation(tokenizer, seen, response) for response in seen.responses],
            [form.spans(tokenizer, seen, r) if rules.score == "assistant" else None for r in seen.responses],
        )
        for text in (found.prompt, *found.wholes):
            check_length(text, row.where)
        if is_plain and isinstance(specials, Specials):
            for whole in found.wholes:
                specials.check_joined(found.prompt, whole, row.where)
        if isinstance(specials, AsText) and is_plain:
            return _plain_as_text(found, specials, row.where, str(tokenizer.eos_token))
        if isinstance(specials, AsText) and as_text:
            prompt, *wholes = (specials.finished(text, row.where) for text in (found.prompt, *found.wholes))
            return found._replace(prompt=prompt, wholes=wholes, as_text=True)
        return found
    except BadRow as bad:
        return bad


def _plain_as_text(found: Formatted, specials: AsText, where: str, eos: str) -> Formatted:
    """The same with special tokens as text, but the EOS at the end; prompt and response may each hold half of one."""
    bare = [whole.removesuffix(eos) for whole in found.wholes]
    if not any(map(specials.in_text, (found.prompt, *bare))):
        return found
    prompt, *wholes = (specials.finished(specials.mark(text, where), where) for text in (found.prompt, *bare))
    return found._replace(
        prompt=prompt, wholes=[whole + specials.finished(eos, where) for whole in wholes], as_text=True
    )
