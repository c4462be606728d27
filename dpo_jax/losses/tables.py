"""The losses by name. To add one: write its function, and its line in `LOSSES`.

An entry knows what its function reads and calls it: `LOSSES["kto"].call(inputs, beta=0.1)`.

Dimension key: B pairs, or single completions or samples; P slot in the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses.absolute import apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from dpo_jax.losses.diffusion import diffusion_baseline, diffusion_dpo, diffusion_kto
from dpo_jax.losses.divergences import chi_po, f_dpo
from dpo_jax.losses.knobs import Interval, knobs
from dpo_jax.losses.lengths import length_normalized_dpo, r_dpo
from dpo_jax.losses.likelihood import sft
from dpo_jax.losses.metrics import implicit_rewards
from dpo_jax.losses.pairs import token_counts
from dpo_jax.losses.pairwise import discopop, dpo, dpop, exo_pair, hinge, ipo, robust_dpo
from dpo_jax.losses.reference_free import alpha_po, cpo, orpo, simpo, slic_hf
from dpo_jax.losses.stateful import AlphaDPOState, RunningMean, alpha_dpo, beta_dpo, running_mean
from dpo_jax.losses.token_level import tdpo1, tdpo2
from dpo_jax.losses.transport import aot, aot_unpaired
from dpo_jax.losses.unpaired import apo_zero_unpaired, bco, kto
from dpo_jax.types import PairLogps

_LOG_2 = math.log(2.0)

SMOOTHING = Interval(0.0, 0.5)
"""The share of wrong labels, where each pair may have its own."""


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
        return bool(smoothing and smoothing.interval == SMOOTHING and not self.batch_global)

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


def _log_2(pairs: PairLogps, **knobs: Any) -> float:
    return _LOG_2


def _length_margin(pairs: PairLogps, *, penalty: float, **knobs: Any) -> jax.Array:
    n_w_B, n_l_B = token_counts(pairs)
    return jax.nn.softplus(-penalty * (n_w_B - n_l_B))


def _by_label(desirable: jax.Array, value: float, *, desirable_weight: float, undesirable_weight: float) -> jax.Array:
    return value * jnp.where(desirable, desirable_weight, undesirable_weight)


LOSSES: dict[str, Loss] = {
    "dpo": Loss(dpo, _log_2),
    "robust_dpo": Loss(robust_dpo, _log_2),
    "ipo": Loss(ipo, lambda pairs, *, beta, **_: 1 / (4 * beta**2), averages=True),
    "hinge": Loss(hinge, lambda pairs, **_: 1.0),
    "exo_pair": Loss(
        exo_pair,
        lambda pairs, *, label_smoothing, **_: -_LOG_2 - 0.5 * math.log(label_smoothing * (1 - label_smoothing)),
    ),
    "nca_pair": Loss(nca_pair, lambda pairs, **_: 2 * _LOG_2),
    "bco_pair": Loss(bco_pair, lambda pairs, **_: 2 * _LOG_2, state=RunningMean),
    "sppo_hard": Loss(sppo_hard, lambda pairs, *, beta: 1 / (2 * beta**2)),
    "aot": Loss(aot, _log_2, batch_global=True),
    "aot_unpaired": Loss(aot_unpaired, _log_2, batch_global=True),
    "apo_zero": Loss(apo_zero, lambda pairs, **_: 1.0),
    "apo_down": Loss(apo_down, lambda pairs, **_: 1.0),
    "discopop": Loss(discopop, lambda pairs, **_: 0.5 * _LOG_2 + 0.5),
    "f_dpo": Loss(f_dpo, _log_2),
    "chi_po": Loss(chi_po, _log_2),
    "dpop": Loss(dpop, _log_2),
    "length_normalized_dpo": Loss(length_normalized_dpo, _log_2, averages=True),
    "r_dpo": Loss(r_dpo, _length_margin, averages=True),
    "cal_dpo": Loss(cal_dpo, lambda pairs, *, beta: _LOG_2 + 1 / (4 * beta**2)),
    "simpo": Loss(simpo, averages=True, needs_reference=False),
    "cpo": Loss(cpo, beside_sft=True, needs_reference=False),
    "orpo": Loss(orpo, averages=True, beside_sft=True, needs_reference=False),
    "slic_hf": Loss(slic_hf, beside_sft=True, needs_reference=False),
    "alpha_po": Loss(alpha_po, averages=True, needs_reference=False),
    "sft": Loss(sft, averages=True, needs_reference=False, likelihood=True),
    "tdpo1": Loss(tdpo1, _log_2, needs_distribution=True),
    "tdpo2": Loss(tdpo2, _log_2, needs_distribution=True),
    "alpha_dpo": Loss(
        alpha_dpo,
        lambda pairs, *, beta, gamma, **_: simpo(pairs, beta=beta, gamma=gamma),
        averages=True,
        batch_global=True,
        state=AlphaDPOState,
    ),
    "beta_dpo": Loss(beta_dpo, _log_2, batch_global=True, state=AlphaDPOState, key=True),
    "kto": Loss(
        kto,
        lambda desirable, *, beta, **weights: _by_label(desirable, 0.5, **weights),
        mismatched=True,
        reads_labels=True,
    ),
    "apo_zero_unpaired": Loss(
        apo_zero_unpaired, lambda desirable, *, beta, **weights: _by_label(desirable, 0.5, **weights), reads_labels=True
    ),
    "bco": Loss(bco, lambda desirable, **_: _LOG_2, state=RunningMean, reads_labels=True),
    "diffusion_dpo": Loss(diffusion_dpo, _log_2, reads_errors=True),
    "diffusion_kto": Loss(diffusion_kto, lambda desirable, **_: 0.5, reads_labels=True, reads_errors=True),
}

# Views by form, for code written against earlier versions.
_TEXTS = {name: loss for name, loss in LOSSES.items() if not loss.reads_errors}
REFERENCE_FREE = {name: loss for name, loss in _TEXTS.items() if not loss.needs_reference}
TOKEN_LEVEL = {name: loss for name, loss in _TEXTS.items() if loss.needs_distribution}
UNPAIRED = {name: loss for name, loss in _TEXTS.items() if loss.reads_labels}
STATEFUL = {name: loss for name, loss in _TEXTS.items() if loss.state is AlphaDPOState}
PAIRWISE = {
    name: loss
    for name, loss in _TEXTS.items()
    if not any(name in view for view in (REFERENCE_FREE, TOKEN_LEVEL, UNPAIRED, STATEFUL))
}
