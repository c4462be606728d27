"""The one place where text is formatted: the table of templates, from prompt and response to what is encoded."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dpo_jax.data import rendering
from dpo_jax.data.rendering import Jinja, Span
from dpo_jax.data.unread import Reader, Seen
from dpo_jax.errors import Advised, BadRow, UserError, nearest
from dpo_jax.types import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Asked(Protocol):
    """A row, or a prompt alone, as a template reads it."""

    @property
    def prompt(self) -> Text: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102
    @property
    def tools(self) -> tuple[Message, ...] | None: ...  # noqa: D102
    @property
    def chat_template_kwargs(self) -> Mapping[str, Any] | None: ...  # noqa: D102


class Template(NamedTuple):
    """One format. `special_tokens` says whether encoding adds the tokens that the tokenizer adds to every text.

    `spans` gives the characters of a conversation that the assistant says in the response.
    """

    prompt: Callable[[PreTrainedTokenizerFast, Asked], str]
    conversation: Callable[[PreTrainedTokenizerFast, Asked, Text], str]
    spans: Callable[[PreTrainedTokenizerFast, Asked, Text], list[Span] | None]  # None: all of the response
    source: Callable[[PreTrainedTokenizerFast], str]  # all that decides the format, for fingerprints
    # What `unread.Reader` finds missing in a text: a conversation, or the prompt alone.
    unread: Callable[[PreTrainedTokenizerFast, Asked, Text | None, str], set[str]]
    special_tokens: bool


def find_template(name: str, chat_template: str | None = None, date: str | None = None) -> Template:
    """Return the template of this name.

    Args:
        name: one of `TEMPLATES`.
        chat_template: jinja in place of the tokenizer's own, or the name of one of those that the tokenizer has.
        date: the day, YYYY-MM-DD, that the template reads off the clock.

    Raises:
        ValueError: there is none, or the date is none.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}. {nearest(str(name), TEMPLATES)}")
    if date is not None:
        datetime.date.fromisoformat(date)
    if name != "tokenizer" or chat_template == date is None:
        return TEMPLATES[name]
    return _of_messages(functools.partial(_tokenizer_template, chat_template=chat_template), date=date)


def _plain_conversation(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text) -> str:
    text, eos = _plain_text(response, row.where), _eos(tokenizer, "plain")
    return _plain_text(row.prompt, row.where) + text + ("" if text.endswith(eos) else eos)


def _plain_text(text: Text, where: str) -> str:
    if isinstance(text, str):
        return text
    raise BadRow(
        where,
        "messages without a chat template",
        "the row is of messages, and template: plain is for texts.",
        "Set {template}: tokenizer, whose chat template formats messages, or hh, or name one in {chat_template}.",
    )


def _eos(tokenizer: PreTrainedTokenizerFast, template: str) -> str:
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise UserError(f"the tokenizer has no eos_token, which template: {template} puts after each response.")
    return eos


Source = Callable[["PreTrainedTokenizerFast", bool], str]
"""The jinja of a tokenizer, for rows with tools or for those without."""


def _of_messages(source: Source, *, date: str | None = None, special_tokens: bool = False) -> Template:
    """The format of a chat template; texts become one turn of the user and one of the assistant."""
    reader = Reader()

    def render(tokenizer: PreTrainedTokenizerFast, row: Asked, turns: Sequence[Message], *, asks: bool) -> str:
        jinja = Jinja(source(tokenizer, bool(row.tools)), date)
        return rendering.render(tokenizer, jinja, turns, _arguments(row), row.where, asks=asks)

    def prompt(tokenizer: PreTrainedTokenizerFast, row: Asked) -> str:
        return render(tokenizer, row, _turns(row.prompt, "user"), asks=True)

    def conversation(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text) -> str:
        turns = [*_turns(row.prompt, "user"), *_turns(response, "assistant")]
        return _ended_once(render(tokenizer, row, turns, asks=False), tokenizer.eos_token)

    def unread(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text | None, text: str) -> set[str]:
        answer = [] if response is None else _turns(response, "assistant")
        write = functools.partial(render, tokenizer, row, asks=response is None)
        key = source(tokenizer, bool(row.tools)), date, json.dumps(_arguments(row), sort_keys=True)
        seen = Seen(_turns(row.prompt, "user"), answer, text, row.where)
        return reader.unread(write, seen, key=key)

    def spans(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text) -> list[Span] | None:
        prompt, answer = _turns(row.prompt, "user"), _turns(response, "assistant")
        jinja = Jinja(source(tokenizer, bool(row.tools)), date)
        if jinja.has_markers:
            return rendering.marked_spans(tokenizer, jinja, [*prompt, *answer], _arguments(row), row.where)
        return (
            None if len(answer) == 1 else _differences(functools.partial(render, tokenizer, row), prompt, answer, row)
        )

    def facts(tokenizer: PreTrainedTokenizerFast) -> str:
        texts = _possible(source, tokenizer)
        read = frozenset[str]().union(*map(rendering.variables, texts))
        tokens = {k: v for k, v in tokenizer.special_tokens_map.items() if k in read - {"bos_token", "eos_token"}}
        clock = [f"date: {date}"] if rendering.CLOCK in read else []
        return "\n".join([*texts, *clock, *([json.dumps(tokens, default=str)] if tokens else [])])

    return Template(prompt, conversation, spans, facts, unread, special_tokens)


def _arguments(row: Asked) -> dict[str, Any]:
    """Arguments that the row brings for the template, which has to read all of them."""
    return {**(row.chat_template_kwargs or {}), **({"tools": list(row.tools)} if row.tools else {})}


def reads_clock(tokenizer: Callable[[], PreTrainedTokenizerFast], name: str, chat_template: str | None = None) -> bool:
    """Return True if a template of this name writes the day on which it is rendered; opens the tokenizer if it must."""
    if name != "tokenizer":
        return False
    texts = [chat_template]
    if chat_template is None or "{" not in chat_template:
        texts = _possible(functools.partial(_tokenizer_template, chat_template=chat_template), tokenizer())
    return any(text is not None and rendering.CLOCK in rendering.variables(text) for text in texts)


def _possible(source: Source, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The templates of rows without tools and of rows with them; of one kind there may be none."""
    texts: list[str] = []
    for has_tools in (False, True):
        try:
            texts.append(source(tokenizer, has_tools))
        except UserError:
            if has_tools and not texts:
                raise
    return list(dict.fromkeys(texts))


def _ended_once(text: str, eos: object) -> str:
    """Leave out the EOS that a message had already, where the template writes one too."""
    body = text.rstrip()
    if not isinstance(eos, str) or not body.endswith(2 * eos):
        return text
    return body.removesuffix(eos) + text[len(body) :]


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _differences(render: Callable[..., str], prompt: list[Message], answer: list[Message], row: Asked) -> list[Span]:
    """The spans of the answer's assistant turns: what the template writes with each, beyond what it writes before."""
    whole = render([*prompt, *answer], asks=False)
    spans = []
    for place, turn in enumerate(answer):
        if turn["role"] != "assistant":
            continue
        before = render([*prompt, *answer[:place]], asks=True)
        after = render([*prompt, *answer[: place + 1]], asks=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise BadRow(
                row.where,
                "turns of the assistant not found",
                "score: assistant needs to know what the assistant says, but the chat template has no "
                "{% generation %} markers, and writes a turn otherwise once others follow it.",
                "Put markers into a template of your own ({chat_template}), or set {score}: completion.",
            )
        spans.append((len(before), len(after)))
    return spans


def _tokenizer_template(
    tokenizer: PreTrainedTokenizerFast, has_tools: bool, *, chat_template: str | None = None
) -> str:
    """The jinja given, or that of the tokenizer; of several named ones `tool_use` for tools, else `default`."""
    if chat_template is not None and "{" in chat_template:
        return chat_template
    named = tokenizer.chat_template
    if not isinstance(named, dict):
        named = {} if named is None else {"default": named}
    if chat_template is not None:
        name = chat_template
    elif not named:
        raise Advised("the tokenizer has no chat template.", "Set {template}: plain, or name one in {chat_template}.")
    else:
        name = "tool_use" if has_tools and "tool_use" in named else "default"
    if name not in named:
        says = f"has no chat template named {name!r}" if named else "has no chat template at all"
        names = f"Name one of its own in {{chat_template}}: {', '.join(sorted(named))}." if named else ""
        other = names or "Name a file in {chat_template}, or set {template}: plain."
        raise Advised(f"the tokenizer {says}, and there is no such file.", other)
    return named[name]


_HH = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '\\n\\nHuman: ' + message.content }}
{%- elif message.role == 'assistant' -%}{{ '\\n\\nAssistant:' -}}
{%- generation -%}{{ ' ' + message.content }}{{ eos_token if loop.last else '' }}{%- endgeneration -%}
{%- else -%}{{ raise_exception('template: hh has turns of user and assistant only, not of ' + message.role) }}
{%- endif -%}
{%- endfor -%}
{{- '\\n\\nAssistant:' if add_generation_prompt else '' -}}
"""


def _hh_source(tokenizer: PreTrainedTokenizerFast, has_tools: bool) -> str:
    _eos(tokenizer, "hh")
    return _HH


_PLAIN = """\
{%- for message in messages -%}
{{- message.content -}}
{{- eos_token if message.role == 'assistant' and not message.content.endswith(eos_token) else '' -}}
{%- endfor -%}
"""


def exported(tokenizer: PreTrainedTokenizerFast, name: str, chat_template: str | None = None) -> str | dict[str, str]:
    """Return the chat template, in jinja, that asks a model as it was asked in a training with this template."""
    if name != "tokenizer":  # whose texts get the special tokens that the tokenizer adds; programs add none to a chat
        begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        bos = "{{- bos_token -}}\n" if begins_with_bos else ""
        return bos + {"plain": _PLAIN, "hh": rendering.without_markers(_HH)}[name]
    if chat_template is None:
        return tokenizer.chat_template  # type: ignore[return-value]
    return _tokenizer_template(tokenizer, False, chat_template=chat_template)


TEMPLATES: dict[str, Template] = {
    "plain": Template(
        prompt=lambda tokenizer, row: _plain_text(row.prompt, row.where),
        conversation=_plain_conversation,
        spans=lambda tokenizer, row, response: None,
        source=lambda tokenizer: "prompt, response, eos",
        unread=lambda tokenizer, row, response, text: set(),
        special_tokens=True,
    ),
    "tokenizer": _of_messages(_tokenizer_template),
    "hh": _of_messages(_hh_source, special_tokens=True),
}
