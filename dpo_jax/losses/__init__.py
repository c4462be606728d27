"""Preference losses as pure functions: arrays in, one loss per pair out. Needs jax and chex only.

To add one: its function, its line in `LOSSES` (and its name in the imports and in `__all__`), and its row in README.md.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.losses.absolute import apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from dpo_jax.losses.diffusion import diffusion_baseline, diffusion_dpo, diffusion_kto
from dpo_jax.losses.divergences import chi_po, f_dpo, f_scores
from dpo_jax.losses.entry import Loss, LossInputs
from dpo_jax.losses.metrics import KLEstimates, implicit_rewards, kl_estimates, preference_metrics
from dpo_jax.losses.pairs import token_counts
from dpo_jax.losses.pairwise import discopop, dpo, dpop, exo_pair, hinge, ipo, length_normalized_dpo, r_dpo, robust_dpo
from dpo_jax.losses.reference_free import alpha_po, cpo, orpo, sft, simpo, slic_hf
from dpo_jax.losses.reward import bradley_terry, plackett_luce, preference_score
from dpo_jax.losses.stateful import AlphaDPOState, RunningMean, alpha_dpo, beta_dpo, running_mean
from dpo_jax.losses.token_level import ld_reduce, tdpo1, tdpo2, wpo_weights
from dpo_jax.losses.transport import aot, aot_unpaired
from dpo_jax.losses.unpaired import apo_zero_unpaired, bco, kto, mismatched_kl
from dpo_jax.types import PairLogps

__all__ = [
    "LOSSES",
    "PAIRWISE",
    "REFERENCE_FREE",
    "STATEFUL",
    "TOKEN_LEVEL",
    "UNPAIRED",
    "AlphaDPOState",
    "KLEstimates",
    "Loss",
    "LossInputs",
    "PairLogps",
    "RunningMean",
    "alpha_dpo",
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "beta_dpo",
    "bradley_terry",
    "cal_dpo",
    "chi_po",
    "cpo",
    "diffusion_baseline",
    "diffusion_dpo",
    "diffusion_kto",
    "discopop",
    "dpo",
    "dpop",
    "exo_pair",
    "f_dpo",
    "f_scores",
    "hinge",
    "implicit_rewards",
    "ipo",
    "kl_estimates",
    "kto",
    "ld_reduce",
    "length_normalized_dpo",
    "mismatched_kl",
    "nca_pair",
    "orpo",
    "plackett_luce",
    "preference_metrics",
    "preference_score",
    "r_dpo",
    "robust_dpo",
    "running_mean",
    "sft",
    "simpo",
    "slic_hf",
    "sppo_hard",
    "tdpo1",
    "tdpo2",
    "wpo_weights",
]

_LOG_2 = math.log(2.0)


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
