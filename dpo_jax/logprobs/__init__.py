"""Hidden states and unembedding to token and response quantities; no array of shape [.., T, V] ever exists."""

from dpo_jax.logprobs.responses import batch_logps, batch_scores, head_mask, response_logps, scored_hidden
from dpo_jax.logprobs.tokens import token_kl, token_log_sum_sq, token_logps

__all__ = [
    "batch_logps",
    "batch_scores",
    "head_mask",
    "response_logps",
    "scored_hidden",
    "token_kl",
    "token_log_sum_sq",
    "token_logps",
]
