"""Responses sampled from a model, and the KL of the policy to the reference measured on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax.config import SamplingConfig
from dpo_jax.data.encoding import Rules
from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.errors import sized_by
from dpo_jax.files import digest
from dpo_jax.models.model import Model
from dpo_jax.models.sampling import compile_ahead, generate_batches, make_sampler
from dpo_jax.reference.fingerprint import weights_digest
from dpo_jax.runs.kept import Keeper
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params, Prompt, TokenRow


class Samples(NamedTuple):
    """Sampled responses, those to one prompt side by side: as text, and as rows to be scored."""

    written: list[str]  # with the white space around it, as training rows have theirs
    rows: list[TokenRow]
    seconds: float  # what sampling took, compilation left out
    cut: list[bool]  # at the most new tokens, before a stop token ended it

    @property
    def texts(self) -> list[str]:
        """Without it."""
        return [text.strip() for text in self.written]


Sampler = Callable[..., Samples]
"""`sample(params, key, progress, keep)`: `progress` is called with the number of responses done, `keep` opens the file
in which they are kept as they come. Both may be left out.
"""


def make_sampling(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    drawing: SamplingConfig,
    *,
    rules: Rules,
    stop_tokens: tuple[int, ...],
    row_multiple: int,
) -> Sampler:
    """The sampler of responses to these prompts, each formatted and cut as `rules` say; compiled once."""
    at_once = min(drawing.batch_rows, len(prompts) * drawing.samples)
    at_once += -at_once % row_multiple  # else every device would sample all rows
    prompt_ids, truncated = tokenize_prompts(prompts, tokenizer, rules)
    if truncated:
        say("samples", f"{truncated} of {len(prompts)} prompts keep only their last {rules.max_prompt_tokens} tokens")
    _tell_long(max(map(len, prompt_ids), default=0), drawing.max_new_tokens, rules)
    sampler = make_sampler(model, max_new_tokens=drawing.max_new_tokens, stop_tokens=stop_tokens)
    total = len(prompts) * drawing.samples
    facts = {
        "model": f"{model.spec} {model.dtype} {model.attention} {model.lora}",
        "prompts": digest(b"".join(ids.tobytes() + b"\0" for ids in prompt_ids)),
        "sampling": f"{drawing} {at_once} rows at once, ends with {stop_tokens}",
    }

    @sized_by("evaluation.batch_rows (of `dpo-jax sample` and `pairs`: sampling.batch_rows)")
    def sample(
        params: Params,
        key: jax.Array,
        progress: Callable[[int], None] = lambda responses: None,
        keep: Keeper | None = None,
    ) -> Samples:
        drawn = {"weights": weights_digest(params), "key": str(jax.random.key_data(key))} if keep else {}
        kept, responses, seconds = keep and keep({**facts, **drawn}), list[np.ndarray](), 0.0
        while kept and (batch := f"{len(responses)}") in kept:
            seconds += kept[batch]["seconds"]
            responses += [np.array(ids, np.int32) for ids in kept[batch]["responses"]]
        if responses:
            say("samples", f"{len(responses)} of {total} responses are there already")
        if len(responses) < total:
            compile_ahead(sampler, params, prompt_ids, batch_rows=at_once)
        start = time.perf_counter()
        for new in generate_batches(
            sampler,
            params,
            prompt_ids,
            key=key,
            batch_rows=at_once,
            samples=drawing.samples,
            temperature=drawing.temperature,
            first=len(responses),
            top_p=drawing.top_p,
            top_k=drawing.top_k,
        ):
            took, start = time.perf_counter() - start, time.perf_counter()
            if kept:
                batch = {"seconds": took, "responses": [ids.tolist() for ids in new]}
                kept.put({f"{len(responses)}": batch})
            seconds += took
            responses += new
            progress(len(responses))
        written = tokenizer.batch_decode(responses, skip_special_tokens=True)
        rows = [
            TokenRow(digest(f"{i}".encode()), prompt_ids[i // drawing.samples], (response,))
            for i, response in enumerate(responses)
        ]
        cut = [not len(response) or int(response[-1]) not in stop_tokens for response in responses]
        if any(cut):
            new = drawing.max_new_tokens
            say("samples", f"{sum(cut)} of {len(cut)} responses were cut at {new} new tokens, before they ended")
        return Samples(written, rows, seconds, cut)

    return sample


def _tell_long(prompt: int, new: int, rules: Rules) -> None:
    """Say that the longest prompt and its response may be longer than what the model was trained on."""
    if rules.positions is not None and prompt + new - 1 > rules.positions:  # the last token is drawn and never read
        say(
            "samples",
            f"a prompt of {prompt} tokens and {new} new ones go beyond the {rules.positions} positions on which the "
            "model was trained (max_position_embeddings, and its rope scaling): allow fewer new ones by "
            "evaluation.max_new_tokens (`dpo-jax sample` and `pairs`: sampling.max_new_tokens; a KL budget: "
            "kl_max_new_tokens), or lower data.max_prompt_tokens",
        )
