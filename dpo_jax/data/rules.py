"""How text becomes tokens: the settings, and a fingerprint of all that decides the ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_jax import files
from dpo_jax.data.chat import Template, find_template
from dpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHOICES = {
    "score": ("completion", "assistant"),
    "special_tokens": ("text", "refuse", "allow"),
    "truncation": ("keep", "drop"),
}


class Rules(NamedTuple):
    """How text becomes tokens: the settings of `data`."""

    template: str = "plain"
    chat_template: str | None = None  # jinja, in place of the tokenizer's own
    score: str = "completion"  # of a response of several turns: all of it, or what the assistant says
    special_tokens: str = "text"  # in the text of a row: read as text, the row refused, or allowed as tokens
    truncation: str = "keep"  # of a row that is too long: keep a part, or drop it
    max_prompt_tokens: int = 512
    max_tokens: int = 1024


def checked(rules: Rules) -> Template:
    """The template of these rules.

    Raises:
        UserError: a rule is not one of those that there are.
    """
    for name, allowed in _CHOICES.items():
        value = rules._asdict()[name]
        if value not in allowed:
            raise UserError(f"data.{name} is {value!r}. {nearest(str(value), allowed)}")
    return find_template(rules.template, rules.chat_template)


def tokenization_fingerprint(tokenizer: PreTrainedTokenizerFast, **rules: Any) -> dict[str, str]:
    """All that decides the ids of a row, as text by field."""
    settings = Rules(**rules)
    source = checked(settings).source(tokenizer)
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} has no tokenizer.json; only tokenizers that have one are supported."
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    prompt, total = settings.max_prompt_tokens, settings.max_tokens
    kept = f"prompt keeps BOS and its end at {prompt}, pair keeps its start at {total}"
    return {
        "tokenizer": files.digest(json.dumps(backend, sort_keys=True).encode()),
        "vocabulary": str(len(tokenizer)),
        "eos": f"{tokenizer.eos_token} ({tokenizer.eos_token_id})",
        "bos": f"{tokenizer.bos_token} ({tokenizer.bos_token_id})",
        "template": f"{settings.template} {files.digest(source.encode())}",
        "truncation": kept
        if settings.truncation == "keep"
        else f"none: prompt to {prompt}, pair to {total}, or dropped",
        "scored": settings.score,
        **({"special tokens of rows": "allowed"} if settings.special_tokens == "allow" else {}),
    }
