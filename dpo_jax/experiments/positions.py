"""What a configuration asks for, against the positions that a model has learned: refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_jax.config import Config
from dpo_jax.errors import UserError
from dpo_jax.models.spec import Spec
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import Origins, locate


def check_rows(config: Config, origins: Origins, spec: Spec) -> None:
    """Refuses rows that may be longer than the model's table of positions, as a UserError."""
    longest, limit = config.data.max_tokens, spec.max_positions
    if limit is not None and longest > limit:
        raise UserError(
            f"{locate('data.max_tokens', origins)}: data.max_tokens is {longest}, but {config.model.weights} has "
            f"learned only {limit} positions. Set it to {limit} or less."
        )


def check_samples(config: Config, origins: Origins, spec: Spec, terms: Sequence[Term]) -> None:
    """The same for the responses that training and evaluation will sample."""
    if config.evaluation.samples:
        check_new_tokens("evaluation.max_new_tokens", config.evaluation.max_new_tokens, config, origins, spec)
    for index, term in enumerate(terms):
        if term.budget:
            key = f"loss.{index}.options.kl_max_new_tokens"
            check_new_tokens(key, term.budget.kl_max_new_tokens, config, origins, spec)


def check_new_tokens(key: str, new: int, config: Config, origins: Origins, spec: Spec) -> None:
    """The same for responses of `new` tokens, the value of `key`, to the longest prompts."""
    prompt, limit = config.data.max_prompt_tokens, spec.max_positions
    if limit is None or prompt + new - 1 <= limit:  # the last token is drawn and never read
        return
    fewer = f"{key} to {limit + 1 - prompt} or less, or " if prompt <= limit else ""
    raise UserError(
        f"{locate(key, origins)}: {key} is {new} and data.max_prompt_tokens {prompt}, but {config.model.weights} has "
        f"learned only {limit} positions. Set {fewer}data.max_prompt_tokens lower."
    )
