"""Rows as the texts that are encoded, with the special tokens that stand in them as text, refused, or allowed.

In the text of a row they would speak as the template does. As text they go through the tokenizer like any other
letters, while those that the template writes stay what they are: before a template sees them the row's own become marks
of the same length, and what it then writes an alias, which is the name of the special token in a copy of the tokenizer.
Lengths stay, so that places in the text do.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dpo_jax.data.chat import TEMPLATES, Span, Template
from dpo_jax.data.encoding import Rules, check_length
from dpo_jax.errors import BadRow, UserError
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = TypeVar("Row", PreferencePair, Completion, UnpairedCompletion)
AnyRow = TypeVar("AnyRow", PreferencePair, Completion, UnpairedCompletion, Prompt)
Value = TypeVar("Value")

_TEXTS = ("prompt", "chosen", "rejected", "completion", "mismatched", "tools", "chat_template_kwargs")
_ALIASES, _MARKS = 0xF0000, 0x100000  # of each special token one letter of the planes that belong to nobody
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
_ESCAPED = re.compile(r"\\ud[b][c-f][0-9a-f]", re.IGNORECASE)  # a mark, as a template that writes ASCII does


class Specials:
    """The special tokens of a tokenizer, which the text of a row must not hold."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self.names)) or "(?!)")

    def check(self, row: AnyRow, *, closing: object) -> None:
        """Raise BadRow if a text of the row holds one; a text may end with `closing`."""
        texts = row._asdict()
        for name in _TEXTS:
            for text in _strings(texts.get(name)):
                match = self.pattern.search(text.removesuffix(closing) if isinstance(closing, str) else text)
                if match:
                    raise BadRow(
                        row.where,
                        "special token in the text",
                        f"{name} holds {match.group()!r}, a special token of the tokenizer, which the model would take "
                        "for the template's own.",
                        "If that is meant, set {special_tokens}: allow; text reads it as the letters that it is.",
                    )

    def check_joined(self, prompt: str, whole: str, where: str) -> None:
        """Raise BadRow if a prompt with its response behind it holds one: each may hold half of it."""
        for match in self.pattern.finditer(whole):
            if match.start() < len(prompt) < match.end():
                detail = f"prompt and response together hold {match.group()!r}, a special token of the tokenizer."
                raise BadRow(where, "special token in the text", detail)


class AsText:
    """The special tokens of a tokenizer, read as text where a row holds some; `encoder` is for such rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        specials = Specials(tokenizer)
        self._tokenizer, self._pattern = tokenizer, specials.pattern
        self._marks = {name: chr(_MARKS + n) * len(name) for n, name in enumerate(specials.names)}
        self._aliases = {name: chr(_ALIASES + n) * len(name) for n, name in enumerate(specials.names)}
        self._names = {mark: name for name, mark in self._marks.items()}
        self._mark = re.compile("|".join(self._names) or "(?!)")

    @functools.cached_property
    def encoder(self) -> PreTrainedTokenizerFast:
        """A copy of the tokenizer, made for the first row that needs it: not every one can be copied so."""
        return _renamed(self._tokenizer, self._aliases)

    def in_row(self, row: AnyRow) -> bool:
        """Return True if a text of the row holds a special token."""
        texts = row._asdict()
        return any(self.in_text(text) for name in _TEXTS for text in _strings(texts.get(name)))

    def in_text(self, text: str) -> bool:
        """Return True if a text holds a special token."""
        return self._pattern.search(text) is not None

    def mark(self, value: Value, where: str) -> Value:
        """Put marks in place of the special tokens of a text, or of all texts of messages, tools or arguments."""
        if isinstance(value, str):
            if _PRIVATE.search(value):
                raise BadRow(where, "private letters", "the text holds letters of Unicode's planes 15 and 16.")
            return self._pattern.sub(lambda match: self._marks[match.group()], value)
        if isinstance(value, Mapping):
            return {self.mark(key, where): self.mark(item, where) for key, item in value.items()}  # type: ignore[return-value]
        if isinstance(value, list | tuple):
            return type(value)(self.mark(item, where) for item in value)
        return value

    def marked(self, row: AnyRow) -> AnyRow:
        """Return the row with marks, for a chat template."""
        texts = row._asdict()
        return row._replace(**{name: self.mark(texts[name], row.where) for name in _TEXTS if name in texts})

    def finished(self, text: str, where: str) -> str:
        """Return the text to encode: the template's special tokens by their aliases, those of the row as written."""
        aliased = self._pattern.sub(lambda match: self._aliases[match.group()], text)
        restored = self._mark.sub(lambda match: self._names[match.group()], aliased)
        if any(ord(letter) >= _MARKS for letter in restored) or _ESCAPED.search(restored):
            raise BadRow(
                where,
                "special token changed by the template",
                "the chat template cuts a special token of the text, or writes it otherwise.",
                "Set {special_tokens}: refuse, or mend the template.",
            )
        return restored


def _renamed(tokenizer: PreTrainedTokenizerFast, aliases: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A copy that knows the special tokens by other names, with the same ids, and is the same to all other text."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    model = state["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(piece, piece): index for piece, index in vocabulary.items()}
    elif vocabulary is not None:
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    renamed = Tokenizer.from_str(json.dumps(state))
    if any(renamed.token_to_id(alias) != backend.token_to_id(name) for name, alias in aliases.items()):
        says = "the special tokens of this tokenizer cannot be told from text. Allowed with it: refuse, allow."
        raise UserError(f"special_tokens: text: {says}")
    copied = copy.copy(tokenizer)
    copied._tokenizer = renamed
    return copied


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in (*value, *value.values()):
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def find_specials(tokenizer: PreTrainedTokenizerFast, rules: Rules) -> Specials | AsText | None:
    """Return what handles special tokens in the text of rows; None where they are allowed."""
    if rules.special_tokens == "allow":
        return None
    return AsText(tokenizer) if rules.special_tokens == "text" else Specials(tokenizer)


def prompt_text(
    prompt: Prompt, tokenizer: PreTrainedTokenizerFast, form: Template, specials: Specials | AsText | None
) -> tuple[str, bool]:
    """Format a prompt alone; the second is True if special tokens in it are text. Raises BadRow."""
    if isinstance(specials, Specials):
        specials.check(prompt, closing=None)
    marks = specials if isinstance(specials, AsText) and specials.in_row(prompt) else None
    seen = marks.marked(prompt) if marks else prompt
    text = form.prompt(tokenizer, seen)
    form.unread(tokenizer, seen, None, text)
    check_length(text, prompt.where)
    return (marks.finished(text, prompt.where) if marks else text), marks is not None


class Formatted(NamedTuple):
    """A row as text: its prompt alone, and with each response."""

    prompt: str
    wholes: list[str]
    spans: list[list[Span] | None]  # the characters to score, of each response
    as_text: bool = False  # some special token of the row is read as text
    unread: frozenset[str] = frozenset()  # what the template does not write of it


def formatted(
    row: Row, tokenizer: PreTrainedTokenizerFast, rules: Rules, form: Template, specials: Specials | AsText | None
) -> Formatted | BadRow:
    """Format a row, or return the error that it would raise."""
    try:
        is_plain = form is TEMPLATES["plain"]
        if isinstance(specials, Specials):
            specials.check(row, closing=tokenizer.eos_token if is_plain else None)
        as_text = isinstance(specials, AsText) and not is_plain and specials.in_row(row)
        seen = specials.marked(row) if isinstance(specials, AsText) and as_text else row
        texts = Formatted(
            form.prompt(tokenizer, seen),
            [form.conversation(tokenizer, seen, response) for response in seen.responses],
            [form.spans(tokenizer, seen, r) if rules.score == "assistant" else None for r in seen.responses],
        )
        for text in (texts.prompt, *texts.wholes):
            check_length(text, row.where)
        if is_plain and isinstance(specials, Specials):
            for whole in texts.wholes:
                specials.check_joined(texts.prompt, whole, row.where)
        if isinstance(specials, AsText) and is_plain:
            return _plain_as_text(texts, specials, row.where, str(tokenizer.eos_token))
        written = texts.wholes
        if isinstance(specials, AsText) and as_text:
            prompt, *wholes = (specials.finished(text, row.where) for text in (texts.prompt, *texts.wholes))
            texts = texts._replace(prompt=prompt, wholes=wholes, as_text=True)
        pairs = zip(seen.responses, written, strict=True)
        return texts._replace(unread=frozenset().union(*(form.unread(tokenizer, seen, *pair) for pair in pairs)))
    except BadRow as bad:
        return bad


def _plain_as_text(texts: Formatted, specials: AsText, where: str, eos: str) -> Formatted:
    """Read special tokens as text, but the EOS at the end; prompt and response may each hold half of one."""
    bare = [whole.removesuffix(eos) for whole in texts.wholes]
    if not any(map(specials.in_text, (texts.prompt, *bare))):
        return texts
    prompt, *wholes = (specials.finished(specials.mark(text, where), where) for text in (texts.prompt, *bare))
    return texts._replace(
        prompt=prompt, wholes=[whole + specials.finished(eos, where) for whole in wholes], as_text=True
    )
