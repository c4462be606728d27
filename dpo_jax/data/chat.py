"""The one place where text is formatted: the table of templates, from prompt and response to what is encoded."""

from __future__ import annotations

import functools
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from dpo_jax.data.sources.record import LONGEST_ROW, BadRow
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]

SECONDS = 20.0  # a chat template is a program that came with the weights: so much time and memory it may take
_MORE_BYTES = 2 * 2**30
_STATM = Path("/proc/self/statm")


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
    special_tokens: bool


def find_template(name: str, chat_template: str | None = None) -> Template:
    """Return the template of this name; `chat_template` takes the place of the tokenizer's own.

    Raises:
        ValueError: there is none.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}. {nearest(str(name), TEMPLATES)}")
    return TEMPLATES[name] if chat_template is None else _of_messages(lambda tokenizer: chat_template)


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


Source = Callable[["PreTrainedTokenizerFast"], str]


def _of_messages(source: Source, *, special_tokens: bool = False) -> Template:
    """The format of a chat template, a text in jinja; texts become one turn of the user and one of the assistant."""

    def prompt(tokenizer: PreTrainedTokenizerFast, row: Asked) -> str:
        return _render(tokenizer, source, row, _turns(row.prompt, "user"), asks=True)

    def conversation(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text) -> str:
        turns = [*_turns(row.prompt, "user"), *_turns(response, "assistant")]
        return _ended_once(_render(tokenizer, source, row, turns, asks=False), tokenizer.eos_token)

    def spans(tokenizer: PreTrainedTokenizerFast, row: Asked, response: Text) -> list[Span] | None:
        prompt, answer = _turns(row.prompt, "user"), _turns(response, "assistant")
        if _MARKER.search(source(tokenizer)):
            return _marked(tokenizer, source(tokenizer), row, [*prompt, *answer])
        return None if len(answer) == 1 else _differences(tokenizer, source, row, prompt, answer)

    return Template(prompt, conversation, spans, source, special_tokens)


def _ended_once(text: str, eos: object) -> str:
    """Leave out the EOS that a message had already, where the template writes one too."""
    body = text.rstrip()
    if not isinstance(eos, str) or not body.endswith(2 * eos):
        return text
    return body.removesuffix(eos) + text[len(body) :]


def _turns(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _render(
    tokenizer: PreTrainedTokenizerFast, source: Source, row: Asked, turns: Sequence[Message], *, asks: bool
) -> str:
    template = source(tokenizer)
    try:
        with _bounded(row.where):
            _variables(template)  # a template that cannot be read is no fault of the row
            text = tokenizer.apply_chat_template(
                turns,  # type: ignore[arg-type]
                chat_template=template,
                tokenize=False,
                add_generation_prompt=asks,
                **_arguments(template, row),
            )
    except UserError:
        raise
    except Exception as error:  # a template is a program, and may fail as one
        said = f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error)
        detail = f"the tokenizer's chat template refuses a message or is broken: {said}"
        raise BadRow(row.where, "refused by the chat template", detail.rstrip(".") + ".") from error
    if len(text) > LONGEST_ROW:  # more than the row itself can hold
        raise _endless(row.where, f"{len(text):,} characters")
    return str(text)


def _arguments(template: str, row: Asked) -> dict[str, Any]:
    """Arguments that the row brings for the template, which has to read all of them."""
    given = {**(row.chat_template_kwargs or {}), **({"tools": list(row.tools)} if row.tools else {})}
    for name in given:
        if name in _RESERVED or name not in _variables(template):
            what = "tools" if name == "tools" else f"chat_template_kwargs.{name}"
            raise BadRow(
                row.where, "unread by the chat template", f"the row has {what}, which the chat template does not read."
            )
    return given


def _endless(where: str, took: str) -> UserError:
    """The error of a template that takes too much for a row."""
    return UserError(f"{where}: the chat template takes {took} for this row. Name another chat_template.")


@contextmanager
def _bounded(where: str) -> Iterator[None]:
    """Raise UserError where rendering a row takes more than 20 s, or 2 GiB more memory than there is now.

    Only in the main thread, which alone hears of signals; the memory only where the system tells its size (Linux).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise _endless(where, f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.5)  # again: where jinja computes constants, it catches all
    try:
        if _STATM.exists():
            wanted = int(_STATM.read_text().split()[0]) * resource.getpagesize() + _MORE_BYTES
            limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
        yield
    except MemoryError:
        raise _endless(where, f"more than {_MORE_BYTES >> 30} GiB of memory") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


_RESERVED = ("messages", "add_generation_prompt", "chat_template", "tokenize")
_MARKER = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # only transformers knows these


@functools.lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    """The names that a template reads without setting them; raises UserError where it is not jinja."""
    import jinja2
    from jinja2 import meta, nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    other = "Mend it, or name another chat_template."
    try:
        parsed = environment.parse(_MARKER.sub("", template))
        if power := parsed.find(nodes.Pow):  # which nothing can interrupt
            raise UserError(f"the chat template, line {power.lineno}: `**` is not allowed. {other}")
        return frozenset(meta.find_undeclared_variables(parsed))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template, line {error.lineno}: {error.message}. {other}") from None
    except RecursionError:
        raise UserError(f"the chat template is nested too deeply. {other}") from None


def _marked(tokenizer: PreTrainedTokenizerFast, template: str, row: Asked, turns: Sequence[Message]) -> list[Span]:
    """The spans that the template's `{% generation %}` markers enclose; those of the prompt do no harm."""
    from transformers.utils.chat_template_utils import render_jinja_template

    arguments: dict[str, Any] = {**tokenizer.special_tokens_map, **_arguments(template, row)}
    with _bounded(row.where):
        _, spans = render_jinja_template(
            [[dict(turn) for turn in turns]], chat_template=template, return_assistant_tokens_mask=True, **arguments
        )
    return [(start, end) for start, end in cast(list[list[Span]], spans)[0]]  # annotated as text there


def _differences(
    tokenizer: PreTrainedTokenizerFast, source: Source, row: Asked, prompt: list[Message], answer: list[Message]
) -> list[Span]:
    """The spans of the answer's assistant turns: what the template writes with each, beyond what it writes before."""
    whole = _render(tokenizer, source, row, [*prompt, *answer], asks=False)
    spans = []
    for place, turn in enumerate(answer):
        if turn["role"] != "assistant":
            continue
        before = _render(tokenizer, source, row, [*prompt, *answer[:place]], asks=True)
        after = _render(tokenizer, source, row, [*prompt, *answer[: place + 1]], asks=False)
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


def _tokenizer_source(tokenizer: PreTrainedTokenizerFast) -> str:
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template. Use template: plain, or a tokenizer that has one.")
    return tokenizer.get_chat_template()


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


def _hh_source(tokenizer: PreTrainedTokenizerFast) -> str:
    _eos(tokenizer, "hh")
    return _HH


TEMPLATES: dict[str, Template] = {
    "plain": Template(
        prompt=lambda tokenizer, row: _plain_text(row.prompt, row.where),
        conversation=_plain_conversation,
        spans=lambda tokenizer, row, response: None,
        source=lambda tokenizer: "prompt, response, eos",
        special_tokens=True,
    ),
    "tokenizer": _of_messages(_tokenizer_source),
    "hh": _of_messages(_hh_source, special_tokens=True),
}
