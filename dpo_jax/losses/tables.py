"""The losses by name, and what each needs. To add one: write its function, and its line here.

The tables differ in how their functions are called:

    PAIRWISE        f(policy, reference, **knobs) -> losses
    REFERENCE_FREE  f(policy, **knobs) -> losses
    TOKEN_LEVEL     f(policy, reference, chosen_kl, rejected_kl, **knobs) -> losses
    STATEFUL        f(policy, reference, state, **knobs) -> (losses, state)
    UNPAIRED        f(policy_logps, reference_logps, desirable, **knobs) -> losses; `kto` has its KL and `bco` its level
                    as the fourth argument
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses.absolute import apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from dpo_jax.losses.divergences import chi_po, f_dpo
from dpo_jax.losses.lengths import length_normalized_dpo, r_dpo
from dpo_jax.losses.likelihood import sft
from dpo_jax.losses.pairs import token_counts
from dpo_jax.losses.pairwise import discopop, dpo, dpop, exo_pair, hinge, ipo, robust_dpo
from dpo_jax.losses.reference_free import alpha_po, cpo, orpo, simpo, slic_hf
from dpo_jax.losses.stateful import AlphaDPOState, RunningMean, alpha_dpo, beta_dpo
from dpo_jax.losses.token_level import tdpo1, tdpo2
from dpo_jax.losses.transport import aot, aot_unpaired
from dpo_jax.losses.unpaired import apo_zero_unpaired, bco, kto
from dpo_jax.types import PairLogps

_LOG_2 = math.log(2.0)


class Loss(NamedTuple):
    """One loss and what it needs beyond log-probs.

    `at_reference(data, **knobs)` is the loss where the policy is the reference, a number or [B]; `data` are the
    log-probs of the pairs, for unpaired losses their labels. A loss without a reference has none.
    """

    function: Callable[..., Any]
    at_reference: Callable[..., float | jax.Array] | None = None
    averages: bool = False  # needs token counts
    batch_global: bool = False  # a loss depends on the other pairs of the batch; takes `where` and `axis_name`
    state: Callable[[], Any] | None = None  # what is remembered; a RunningMean gives `bco_pair` and `bco` their delta
    key: bool = False  # draws lots: takes a random key
    mismatched: bool = False  # takes the KL on mismatched completions
    beside_sft: bool = False  # published as one term beside the likelihood of the chosen response


def _log_2(pairs: PairLogps, **knobs: Any) -> float:
    return _LOG_2


def _length_margin(pairs: PairLogps, *, penalty: float, **knobs: Any) -> jax.Array:
    n_w_B, n_l_B = token_counts(pairs)
    return jax.nn.softplus(-penalty * (n_w_B - n_l_B))


def _by_label(desirable: jax.Array, value: float, *, desirable_weight: float, undesirable_weight: float) -> jax.Array:
    return value * jnp.where(desirable, desirable_weight, undesirable_weight)


PAIRWISE: dict[str, Loss] = {
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
}

REFERENCE_FREE: dict[str, Loss] = {
    "simpo": Loss(simpo, averages=True),
    "cpo": Loss(cpo, beside_sft=True),
    "orpo": Loss(orpo, averages=True, beside_sft=True),
    "slic_hf": Loss(slic_hf, beside_sft=True),
    "alpha_po": Loss(alpha_po, averages=True),
    "sft": Loss(sft, averages=True),
}

TOKEN_LEVEL: dict[str, Loss] = {
    "tdpo1": Loss(tdpo1, _log_2),
    "tdpo2": Loss(tdpo2, _log_2),
}

STATEFUL: dict[str, Loss] = {
    "alpha_dpo": Loss(
        alpha_dpo,
        lambda pairs, *, beta, gamma, **_: simpo(pairs, beta=beta, gamma=gamma),
        averages=True,
        batch_global=True,
        state=AlphaDPOState,
    ),
    "beta_dpo": Loss(beta_dpo, _log_2, batch_global=True, state=AlphaDPOState, key=True),
}

UNPAIRED: dict[str, Loss] = {
    "kto": Loss(kto, lambda desirable, *, beta, **weights: _by_label(desirable, 0.5, **weights), mismatched=True),
    "apo_zero_unpaired": Loss(
        apo_zero_unpaired, lambda desirable, *, beta, **weights: _by_label(desirable, 0.5, **weights)
    ),
    "bco": Loss(bco, lambda desirable, **_: _LOG_2, state=RunningMean),
}
