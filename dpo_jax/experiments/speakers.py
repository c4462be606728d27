"""A model that answers in a conversation, in text as it is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import jax

from dpo_jax.config import SamplingConfig
from dpo_jax.data.encoding import Rules
from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.models.model import Model
from dpo_jax.models.sampling import Streamer
from dpo_jax.types import Message, Params, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NARROWEST = 64
_MOST = 8192  # tokens of a conversation, where the model says nothing of its positions
_PARTIAL = "\ufffd"  # stands at the end of a text whose last letter is not whole yet


class Voice:
    """The sampler of conversations, compiled for a few widths; speakers with other parameters share it.

    A conversation that grows too long for the model's positions loses its beginning. The widths are powers of two, so
    that few turns compile anything.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerFast,
        drawing: SamplingConfig,
        *,
        rules: Rules,
        stop_tokens: tuple[int, ...],
    ):
        self.tokenizer, self.drawing = tokenizer, drawing
        self._most = max(1, (model.spec.max_positions or rules.positions or _MOST) - drawing.max_new_tokens)
        self.rules = dataclasses.replace(rules, max_prompt_tokens=self._most, max_tokens=self._most + 1)
        self.streamer = Streamer(model, max_new_tokens=drawing.max_new_tokens, stop_tokens=stop_tokens)

    @property
    def talks(self) -> bool:
        """True if there is a template for conversations; else each text is continued by itself."""
        return self.rules.template != "plain"

    def speak(self, params: Params, asked: str | tuple[Message, ...], key: jax.Array) -> Iterator[str]:
        """Yield the pieces of an answer, or of a continuation, each as soon as it is drawn."""
        ((prompt,), _) = tokenize_prompts([Prompt(asked, None, "the conversation")], self.tokenizer, self.rules)
        width = _NARROWEST
        while width < len(prompt):
            width *= 2
        drawing, ids, told = self.drawing, list[int](), ""
        for token in self.streamer.stream(
            params,
            prompt,
            width=min(width, self._most),
            key=key,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
        ):
            ids.append(token)
            (text,) = self.tokenizer.batch_decode([ids], skip_special_tokens=True)
            if text.startswith(told) and not text.endswith(_PARTIAL):
                yield text[len(told) :]
                told = text
        (text,) = self.tokenizer.batch_decode([ids], skip_special_tokens=True)
        if len(text) > len(told):
            yield text[len(told) :]


class Speaker:
    """One side of a conversation: its name, its parameters, and what has been said."""

    def __init__(self, name: str, voice: Voice, params: Params):
        self.name, self._voice, self._params = name, voice, params
        self._turns: tuple[Message, ...] = ()

    def reset(self) -> None:
        """Forget what has been said."""
        self._turns = ()

    def answer(self, text: str, key: jax.Array) -> Generator[str, None, None]:
        """Yield the pieces of the answer; what of it was drawn, were it stopped, is remembered."""
        if not self._voice.talks:
            yield from self._voice.speak(self._params, text, key)
            return
        turns, said = (*self._turns, {"role": "user", "content": text}), list[str]()
        try:
            for piece in self._voice.speak(self._params, turns, key):
                said.append(piece)
                yield piece
        finally:
            answer = "".join(said).strip() or "..."  # a template may refuse an empty one
            self._turns = (*turns, {"role": "assistant", "content": answer})
