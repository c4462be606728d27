"""Preference losses as pure functions: arrays in, one loss per pair out. Needs jax and chex only."""

from dpo_jax.losses.absolute import apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from dpo_jax.losses.diffusion import diffusion_baseline, diffusion_dpo, diffusion_kto
from dpo_jax.losses.divergences import chi_po, f_dpo, f_scores
from dpo_jax.losses.lengths import length_normalized_dpo, r_dpo
from dpo_jax.losses.likelihood import sft
from dpo_jax.losses.metrics import KLEstimates, implicit_rewards, kl_estimates, preference_metrics
from dpo_jax.losses.pairwise import discopop, dpo, dpop, exo_pair, hinge, ipo, robust_dpo
from dpo_jax.losses.reference_free import alpha_po, cpo, orpo, simpo, slic_hf
from dpo_jax.losses.reward import bradley_terry, plackett_luce, preference_score
from dpo_jax.losses.stateful import AlphaDPOState, RunningMean, alpha_dpo, beta_dpo, running_mean
from dpo_jax.losses.tables import LOSSES, PAIRWISE, REFERENCE_FREE, STATEFUL, TOKEN_LEVEL, UNPAIRED, Loss, LossInputs
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
