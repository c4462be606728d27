"""Special tokens that stand in the text of a row, where they would speak as the template does: as text, or refused.

As text they go through the tokenizer like any other letters, while those that the template writes stay what they are:
before a template sees them the row's own become marks of the same length, and what it then writes an alias, which is
the name of the special token in a copy of the tokenizer. Lengths stay, so that places in the text do.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dpo_jax.data.sources.record import BadRow
from dpo_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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

    def check(self, row: Any, *, closing: Any) -> None:
        """Raises BadRow if a text of the row holds one; a text may end with `closing`."""
        texts = row._asdict()
        for name in _TEXTS:
            for text in _strings(texts.get(name)):
                found = self.pattern.search(text.removesuffix(closing) if closing else text)
                if found:
                    raise BadRow(
                        row.where,
                        "special token in the text",
                        f"{name} holds {found.group()!r}, a special token of the tokenizer, which the model would take "
                        "for the template's own. If that is meant, set data.special_tokens: allow; text reads it as "
                        "the letters that it is.",
                    )

    def check_joined(self, prompt: str, whole: str, where: str) -> None:
        """The same for a prompt with its response behind it: each may hold half of one."""
        for found in self.pattern.finditer(whole):
            if found.start() < len(prompt) < found.end():
                detail = f"prompt and response together hold {found.group()!r}, a special token of the tokenizer."
                raise BadRow(where, "special token in the text", detail)


class AsText:
    """The same, to be read as text; `encoder` is a copy of the tokenizer, for the rows that hold some."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        specials = Specials(tokenizer)
        self._tokenizer, self._pattern = tokenizer, specials.pattern
        self._marks = {name: chr(_MARKS + n) * len(name) for n, name in enumerate(specials.names)}
        self._aliases = {name: chr(_ALIASES + n) * len(name) for n, name in enumerate(specials.names)}
        self._names = {mark: name for name, mark in self._marks.items()}
        self._mark = re.compile("|".join(self._names) or "(?!)")

    @functools.cached_property
    def encoder(self) -> PreTrainedTokenizerFast:
        """Made for the first row that needs it: not every tokenizer can be copied so."""
        return _renamed(self._tokenizer, self._aliases)

    def in_row(self, row: Any) -> bool:
        """Whether a text of the row holds a special token."""
        texts = row._asdict()
        return any(self.in_text(text) for name in _TEXTS for text in _strings(texts.get(name)))

    def in_text(self, text: str) -> bool:
        """Whether a text holds a special token."""
        return self._pattern.search(text) is not None

    def mark(self, value: Any, where: str) -> Any:
        """A text, or all texts of messages, tools or arguments, with marks in place of special tokens."""
        if isinstance(value, str):
            if _PRIVATE.search(value):
                raise BadRow(where, "private letters", "the text holds letters of Unicode's planes 15 and 16.")
            return self._pattern.sub(lambda found: self._marks[found.group()], value)
        if isinstance(value, Mapping):
            return {self.mark(key, where): self.mark(item, where) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.mark(item, where) for item in value)
        return value

    def marked(self, row: Any) -> Any:
        """The row for a chat template."""
        texts = row._asdict()
        return row._replace(**{name: self.mark(texts[name], row.where) for name in _TEXTS if name in texts})

    def finished(self, text: str, where: str) -> str:
        """What is encoded: the template's special tokens by their aliases, those of the row as they were written."""
        aliased = self._pattern.sub(lambda found: self._aliases[found.group()], text)
        restored = self._mark.sub(lambda found: self._names[found.group()], aliased)
        if any(ord(letter) >= _MARKS for letter in restored) or _ESCAPED.search(restored):
            raise BadRow(
                where,
                "special token changed by the template",
                "the chat template cuts a special token of the text, or writes it otherwise. Set data.special_tokens: "
                "refuse, or mend the template.",
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
        raise UserError(
            "data.special_tokens: text: the special tokens of this tokenizer cannot be told from text. Allowed with "
            "it: refuse, allow."
        )
    found = copy.copy(tokenizer)
    found._tokenizer = renamed
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in (*value, *value.values()):
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
