"""Responses sampled from a model, and the KL of the policy to the reference measured on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.data.batches import evaluation_batches
from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.files import digest
from dpo_jax.models.sampling import generate, make_sampler
from dpo_jax.reference.score import score_rows
from dpo_jax.stages.setup import Setup
from dpo_jax.types import Params, TokenRow


class Samples(NamedTuple):
    """Sampled responses, one per prompt: as text, and as rows to be scored."""

    texts: list[str]
    rows: list[TokenRow]


def make_sampling(
    setup: Setup, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, batch_rows: int
) -> Callable[[Params, jax.Array], Samples]:
    """`sample(params, key)` for these prompts, each formatted and cut as in training; compiled once."""
    data, tokenizer = setup.config.data, setup.tokenizer
    prompt_ids = tokenize_prompts(prompts, tokenizer, template=data.template, max_prompt_tokens=data.max_prompt_tokens)
    stops = {tokenizer.eos_token_id, *np.atleast_1d(setup.source.generation_config.get("eos_token_id") or [])}
    sampler = make_sampler(
        setup.model,
        max_new_tokens=max_new_tokens,
        stop_tokens=tuple(int(token) for token in stops if token is not None),
    )

    def sample(params: Params, key: jax.Array) -> Samples:
        responses = generate(sampler, params, prompt_ids, key=key, batch_rows=batch_rows, temperature=temperature)
        texts = [text.strip() for text in tokenizer.batch_decode(responses, skip_special_tokens=True)]
        rows = [
            TokenRow(digest(f"{i}".encode()), prompt, (response,))
            for i, (prompt, response) in enumerate(zip(prompt_ids, responses, strict=True))
        ]
        return Samples(texts, rows)

    return sample


def sampled_logps(setup: Setup, rows: list[TokenRow], params: Params) -> np.ndarray:
    """Log-probs of sampled responses under a model, nats, [samples], in an order that depends on the rows alone."""
    batches = evaluation_batches(rows, pairs=setup.config.reference.batch_pairs, row_multiple=setup.row_multiple)
    return score_rows(setup.score, params, batches, place=setup.place)[1].logps_nP[:, 0]
