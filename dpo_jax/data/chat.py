"""The one place where text is formatted: the table of templates, from prompt and response to what is encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Template(NamedTuple):
    """One format. `special_tokens` says whether encoding adds the tokens that the tokenizer adds to every text."""

    prompt: Callable[[PreTrainedTokenizerFast, str], str]
    conversation: Callable[[PreTrainedTokenizerFast, str, str], str]
    source: Callable[[PreTrainedTokenizerFast], str]  # all that decides the format, for fingerprints
    special_tokens: bool


def find_template(name: str) -> Template:
    """The template of this name.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"data.template is {name!r}. {nearest(str(name), TEMPLATES)}")
    return TEMPLATES[name]


def _plain_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    return prompt


def _plain_conversation(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> str:
    eos = tokenizer.eos_token
    if not isinstance(eos, str):
        raise UserError("the tokenizer has no eos_token, which template: plain puts after each response.")
    return prompt + response + ("" if response.endswith(eos) else eos)


def _plain_source(tokenizer: PreTrainedTokenizerFast) -> str:
    return "prompt, response, eos"


def _chat_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    return _render(tokenizer, [{"role": "user", "content": prompt}], asks=True)


def _chat_conversation(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> str:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return _render(tokenizer, messages, asks=False)


def _chat_source(tokenizer: PreTrainedTokenizerFast) -> str:
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template. Use template: plain, or a tokenizer that has one.")
    return tokenizer.get_chat_template()


def _render(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], *, asks: bool) -> str:
    from jinja2 import TemplateError

    source = _chat_source(tokenizer)
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=asks)
    except TemplateError as error:
        raise UserError(f"the tokenizer's chat template refuses a message or is broken: {error}") from error
    return str(text)


TEMPLATES: dict[str, Template] = {
    "plain": Template(_plain_prompt, _plain_conversation, _plain_source, special_tokens=True),
    "tokenizer": Template(_chat_prompt, _chat_conversation, _chat_source, special_tokens=False),
}
