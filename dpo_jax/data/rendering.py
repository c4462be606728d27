"""Chat templates rendered: programs that came with the weights, bounded, and functions of the row and a date alone."""

from __future__ import annotations

import datetime
import functools
import json
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from dpo_jax.errors import LONGEST_ROW, BadRow, UserError
from dpo_jax.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]

SECONDS = 20.0
"""Time that a template may take for a row."""

CLOCK = "strftime_now"
"""The function by which templates read the clock."""

_MORE_BYTES = 2 * 2**30
_STATM = Path("/proc/self/statm")
_RESERVED = ("messages", "add_generation_prompt", "chat_template", "tokenize", CLOCK)
_MARKER = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # only transformers knows these
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
_OTHER = "Mend it, or name another chat_template."


class Jinja(NamedTuple):
    """A chat template and the day, YYYY-MM-DD, that it reads off the clock, if it reads it."""

    text: str
    date: str | None = None

    @property
    def has_markers(self) -> bool:
        """True if `{% generation %}` says what of a conversation the assistant writes."""
        return _MARKER.search(self.text) is not None


def without_markers(template: str) -> str:
    """Return the template without `{% generation %}`, for programs that do not know it."""
    return _MARKER.sub("", template)


def render(
    tokenizer: PreTrainedTokenizerFast,
    jinja: Jinja,
    turns: Sequence[Message],
    arguments: Mapping[str, Any],
    where: str,
    *,
    asks: bool,
) -> str:
    """Return a conversation as text; `asks`: with the header of an answer behind it.

    Raises:
        BadRow: the template refuses the row, or does not read one of its arguments.
        UserError: the template is broken, takes too much, or would give the same row another text at another time.
    """
    try:
        with _bounded(where):
            _prepare(jinja)
            _check_arguments(jinja, arguments, where)
            rendered = tokenizer.apply_chat_template(
                with_calls(jinja.text, turns),  # type: ignore[arg-type]
                chat_template=jinja.text,
                tokenize=False,
                add_generation_prompt=asks,
                **arguments,
            )
    except UserError:
        raise
    except Exception as error:  # a template is a program, and may fail as one
        said = f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error)
        detail = f"the tokenizer's chat template refuses a message or is broken: {said}"
        raise BadRow(where, "refused by the chat template", detail.rstrip(".") + ".") from error
    text = str(rendered)
    if len(text) > LONGEST_ROW:  # more than the row itself can hold
        raise _endless(where, f"{len(text):,} characters")
    if _ADDRESS.search(text) and not _ADDRESS.search(str((turns, arguments))):
        raise UserError(f"the chat template writes where in memory an object lies, which no run repeats. {_OTHER}")
    return text


def marked_spans(
    tokenizer: PreTrainedTokenizerFast,
    jinja: Jinja,
    turns: Sequence[Message],
    arguments: Mapping[str, Any],
    where: str,
) -> list[Span]:
    """Return the spans that the template's markers enclose; those of the prompt do no harm."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _bounded(where):
        _prepare(jinja)
        _, spans = render_jinja_template(
            [[dict(turn) for turn in with_calls(jinja.text, turns)]],
            chat_template=jinja.text,
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **arguments},
        )
    return [(start, end) for start, end in cast(list[list[Span]], spans)[0]]  # annotated as text there


def _prepare(jinja: Jinja) -> None:
    """Take from the compiled template, which transformers keeps, all that is no function of the row."""
    names = variables(jinja.text)  # a template that cannot be read is no fault of the row
    if CLOCK in names and jinja.date is None:
        raise UserError(f"the chat template reads the clock ({CLOCK}); set date to the day that it shall read.")
    program = _program(jinja.text)
    day = datetime.datetime.fromisoformat(jinja.date) if jinja.date else None
    program.globals |= {CLOCK: day.strftime if day else _refuse("the clock"), "lipsum": _refuse("lipsum")}
    program.environment.filters["random"] = _refuse("random")


def _refuse(name: str) -> Callable[..., NoReturn]:
    """Return a function for templates that raises UserError when it is called."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UserError(f"the chat template uses {name}, so that a row has another text each time. {_OTHER}")

    return refuse


def _program(template: str) -> Any:
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(template)


def _check_arguments(jinja: Jinja, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that a row brings and the template does not read."""
    for name in arguments:
        if name in _RESERVED or name not in variables(jinja.text):
            what = "tools" if name == "tools" else f"chat_template_kwargs.{name}"
            detail = f"the row has {what}, which the chat template does not read."
            raise BadRow(where, "unread by the chat template", detail)


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


@functools.lru_cache(maxsize=8)
def variables(template: str) -> frozenset[str]:
    """The names that a template reads without setting them; raises UserError where it is not jinja."""
    import jinja2
    from jinja2 import meta, nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(without_markers(template))
        if power := parsed.find(nodes.Pow):  # which nothing can interrupt
            raise UserError(f"the chat template, line {power.lineno}: `**` is not allowed. {_OTHER}")
        return frozenset(meta.find_undeclared_variables(parsed))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template, line {error.lineno}: {error.message}. {_OTHER}") from None
    except RecursionError:
        raise UserError(f"the chat template is nested too deeply. {_OTHER}") from None


def with_calls(template: str, turns: Sequence[Message]) -> list[Message]:
    """Return the turns with the arguments of calls as the template reads them: as an object, or as the text of one.

    Most write an object as JSON; some, like DeepSeek's, join a text to the rest.
    """
    return [
        {**turn, "tool_calls": [_with_arguments(template, call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in turns
    ]


def _with_arguments(template: str, call: Mapping[str, Any]) -> Mapping[str, Any]:
    if "function" in call:
        return {**call, "function": _with_arguments(template, call["function"])}
    if "arguments" not in call or not _reads_text(template):
        return call
    return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}


@functools.lru_cache(maxsize=8)
def _reads_text(template: str) -> bool:
    """True where a template writes arguments as they come, so that an object would be written as Python shows it."""

    def written(arguments: object) -> str:
        call = {"name": "f", "arguments": arguments}
        calls = [{"id": "c12345678", "type": "function", **call, "function": call}]
        turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": calls}]
        try:
            return _program(template).render(messages=turns, bos_token="", eos_token="", add_generation_prompt=False)
        except Exception:  # it refuses such a call, or such arguments
            return ""

    return '{"key": "value"}' in written('{"key": "value"}') and '"key"' not in written({"key": "value"})
