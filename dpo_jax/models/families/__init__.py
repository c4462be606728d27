"""The table of model families: `model_type` of a config.json -> family. To add one: a `Family`, and its line here."""

from dpo_jax.models.families.family import HARMLESS, Family, TensorRule
from dpo_jax.models.families.gemma import GEMMA2, GEMMA3, GEMMA3_TEXT
from dpo_jax.models.families.gpt2 import GPT2
from dpo_jax.models.families.llama import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3_TEXT,
    "gemma3": GEMMA3,
    "gpt2": GPT2,
    "phi3": PHI3,
}

__all__ = ["FAMILIES", "HARMLESS", "Family", "TensorRule"]
