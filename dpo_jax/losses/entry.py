"""Entries of the table of losses: what a function reads, and how it is called, `LOSSES["kto"].call(inputs, beta=0.1)`.

Dimension key: B pairs, or single completions or samples; P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses.diffusion import diffusion_baseline
from dpo_jax.losses.knobs import knobs
from dpo_jax.losses.metrics import implicit_rewards
from dpo_jax.losses.stateful import RunningMean, running_mean
from dpo_jax.types import PairLogps


class LossInputs(NamedTuple):
    """All that any loss reads of a batch; of a single completion both members are that completion.

    For losses that read errors, denoising errors stand where log-probs stand.
    """

    policy: PairLogps
    reference: PairLogps | None = None
    where: jax.Array | None = None  # bool [B], which pairs are real
    token_kl_BP: jax.Array | None = None  # KL(reference || policy) summed over the tokens of a response, nats
    desirable_B: jax.Array | None = None  # the labels of single completions
    mismatched_kl: jax.Array | None = None  # [], nats
    mean_tokens: jax.Array | None = None  # [], of the chosen responses of the whole batch


class Loss(NamedTuple):
    """One loss: its function, what that reads, and how it is called.

    `at_reference(data, **knobs)` is the loss where the policy is the reference, a number or [B]; `data` are the
    log-probs of the pairs, for losses on labels those labels. A loss without a reference has none.
    """

    function: Callable[..., Any]
    at_reference: Callable[..., float | jax.Array] | None = None
    needs_reference: bool = True
    reads_labels: bool = False  # of single completions or samples, good or bad, instead of pairs
    reads_errors: bool = False  # denoising errors in place of log-probs
    needs_distribution: bool = False  # reads the KL of the whole distributions, token by token
    averages: bool = False  # needs token counts
    batch_global: bool = False  # a loss depends on the other pairs of the batch; takes `where` and `axis_name`
    state: Callable[[], Any] | None = None  # what is remembered; a RunningMean gives `bco_pair` and `bco` their delta
    key: bool = False  # draws lots: takes a random key
    mismatched: bool = False  # takes the KL on mismatched completions
    beside_sft: bool = False  # published as one term beside the likelihood of the chosen response
    likelihood: bool = False  # of the chosen response alone: takes the mean token count of the whole batch

    @property
    def reads_soft_labels(self) -> bool:
        """True if each pair may have its own probability that chosen is better, as label smoothing of 1 - p."""
        smoothing = knobs(self.function).get("label_smoothing")
        return bool(smoothing and smoothing.interval and smoothing.interval.high_of_each)

    def call(
        self, inputs: LossInputs, *, state: Any = None, key: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, Any]:
        """Losses [B], and what is remembered after this batch (`state` itself where nothing is)."""
        policy, reference = inputs.policy, inputs.reference
        assert reference is not None or not self.needs_reference
        arguments: list[Any] = [policy, reference] if self.needs_reference else [policy]
        if self.reads_labels:
            assert reference is not None
            arguments = [policy.chosen, reference.chosen, inputs.desirable_B]
        if self.reads_errors and self.reads_labels:
            arguments.append(diffusion_baseline(*arguments[:2], where=inputs.where))
        elif self.reads_errors:
            arguments = [jnp.stack([errors.chosen, errors.rejected], axis=1) for errors in arguments]
        if self.needs_distribution:
            assert inputs.token_kl_BP is not None
            arguments += [inputs.token_kl_BP[:, 0], inputs.token_kl_BP[:, 1]]
        if self.mismatched:
            arguments.append(inputs.mismatched_kl)
        if self.batch_global:
            options["where"] = inputs.where
        if self.likelihood:
            options["mean_tokens"] = inputs.mean_tokens
        if self.key:
            options["key"] = key
        if self.state is RunningMean:
            options["delta"], state = self._running_mean(inputs, options["beta"], state)
        elif self.state:
            return self.function(*arguments, state, **options)
        return self.function(*arguments, **options), state

    def _running_mean(self, inputs: LossInputs, beta: Any, state: RunningMean) -> tuple[jax.Array, RunningMean]:
        assert inputs.reference is not None
        rewards = implicit_rewards(inputs.policy, inputs.reference, beta=beta)[: 1 if self.reads_labels else 2]
        where = None if inputs.where is None else jnp.tile(inputs.where, len(rewards))
        return running_mean(jnp.concatenate(rewards), state, where=where)
