"""Preference losses as pure functions: arrays in, one loss per pair out. Needs jax and chex only."""

from dpo_jax.losses.metrics import implicit_rewards, preference_metrics
from dpo_jax.losses.pairwise import PAIRWISE, PairwiseLoss, dpo
from dpo_jax.types import PairLogps

__all__ = ["PAIRWISE", "PairLogps", "PairwiseLoss", "dpo", "implicit_rewards", "preference_metrics"]
