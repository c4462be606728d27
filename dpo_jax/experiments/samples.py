"""Responses sampled from a model, and the KL of the policy to the reference measured on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.experiments.rows import rules_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import digest
from dpo_jax.models.sampling import compile_ahead, generate, make_sampler
from dpo_jax.runtime.progress import say
from dpo_jax.runtime.translate import sized_by
from dpo_jax.types import Params, Prompt, TokenRow


class Samples(NamedTuple):
    """Sampled responses, those to one prompt side by side: as text, and as rows to be scored."""

    written: list[str]  # with the white space around it, as training rows have theirs
    rows: list[TokenRow]
    seconds: float  # what sampling took, compilation left out

    @property
    def texts(self) -> list[str]:
        """Without it."""
        return [text.strip() for text in self.written]


def make_sampling(
    experiment: TextExperiment,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_rows: int,
    samples: int = 1,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Callable[..., Samples]:
    """`sample(params, key, progress)` for these prompts, each formatted and cut as in training; compiled once.

    `progress`, which may be left out, is told how many responses there are. The others are those of `generate`.
    """
    at_once = min(batch_rows, len(prompts) * samples)
    at_once += -at_once % experiment.row_multiple  # else every device would sample all rows
    tokenizer, limit = experiment.tokenizer, experiment.config.data.max_prompt_tokens
    prompt_ids, truncated = tokenize_prompts(prompts, tokenizer, **rules_of(experiment.config))
    if truncated:
        say("samples", f"{truncated} of {len(prompts)} prompts keep only their last {limit} tokens")
    stops = {tokenizer.eos_token_id, *np.atleast_1d(experiment.source.generation_config.get("eos_token_id") or [])}
    sampler = make_sampler(
        experiment.model,
        max_new_tokens=max_new_tokens,
        stop_tokens=tuple(int(token) for token in stops if token is not None),
    )

    @sized_by("evaluation.batch_rows (of `dpo-jax sample` and `pairs`: sampling.batch_rows)")
    def sample(params: Params, key: jax.Array, progress: Callable[[int], None] = lambda responses: None) -> Samples:
        compile_ahead(sampler, params, prompt_ids, batch_rows=at_once)
        start = time.perf_counter()
        responses = generate(
            sampler,
            params,
            prompt_ids,
            key=key,
            batch_rows=at_once,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        written = tokenizer.batch_decode(responses, skip_special_tokens=True)
        rows = [
            TokenRow(digest(f"{i}".encode()), prompt_ids[i // samples], (response,))
            for i, response in enumerate(responses)
        ]
        return Samples(written, rows, seconds)

    return sample


def sampled_logps(experiment: TextExperiment, rows: list[TokenRow], params: Params) -> np.ndarray:
    """Log-probs of sampled responses under a model, nats, [samples], in an order that depends on the rows alone."""
    return experiment.scorer(params, rows)[1].logps_nP[:, 0]
