"""Reward models as Hugging Face folders, which `AutoModelForSequenceClassification` loads with one label."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from jax.sharding import Mesh
from jax.typing import DTypeLike

from dpo_jax.errors import UserError, nearest
from dpo_jax.models.families import TensorRule
from dpo_jax.models.heads import RewardModel, make_reward_model
from dpo_jax.types import Params
from dpo_jax.weights.export import Files, export_folder
from dpo_jax.weights.load import load_params
from dpo_jax.weights.resolve import Resolved, resolve_family
from dpo_jax.weights.source import WeightsSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SCORE = TensorRule("score.weight", ("head", "weight"), 1)
_CLASSES = {
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
}
"""`model_type` -> the class of transformers that scores the rightmost token that is no padding by `score`."""


def export_reward(
    folder: Path,
    params: Params,
    model: RewardModel,
    source: WeightsSource,
    *,
    ends: Collection[int],
    files: Files = Files(),
) -> bool:
    """Write a folder as `export_folder` does; the tokenizer is that of the source, with padding on the right.

    transformers finds the last token by leaving out those that are the padding token, so that must be none of `ends`,
    the tokens that a response ends with (in many models padding is the EOS). Another special token takes its place.
    Without one the folder names none, transformers scores one sequence at a time, and this gives False.

    Raises:
        UserError: transformers has no such class for this family, or as `export_folder` does.
    """
    kind = source.config["model_type"]
    if kind not in _CLASSES:
        raise UserError(f"reward export: model_type {kind!r} has no such form. {nearest(kind, _CLASSES)}")
    tokenizer = source.tokenizer()
    pad = _padding(tokenizer, [*ends, tokenizer.eos_token_id], model.spec.vocabulary)
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    label = "LABEL_0"
    head = {"architectures": [_CLASSES[kind]], "id2label": {"0": label}, "label2id": {label: 0}, "pad_token_id": pad}
    rules = (*resolve_family(source.config).rules(model.spec), _SCORE)  # each name with its prefix, as `score` has none
    export_folder(
        folder,
        params,
        model,
        rules,
        source._replace(config={**source.config, **head}, tokenizer=lambda: tokenizer),
        files=files,
    )
    return pad is not None


def _padding(tokenizer: PreTrainedTokenizerFast, ends: Collection[object], vocabulary: int) -> int | None:
    """The tokenizer's own padding if it ends no response, else a special token that does not."""
    named = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    others = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    fit = (token for token in [*named, *others] if token is not None and token not in ends and token < vocabulary)
    return next(fit, None)


def describe_reward(source: WeightsSource, resolved: Resolved, *, dtype: DTypeLike) -> RewardModel:
    """Describe the reward model of a folder.

    Raises:
        UserError: it has no score.
    """
    if _SCORE.name not in source.shapes:
        raise UserError(
            f"{source.where}: no reward model: there is no tensor {_SCORE.name}. Allowed: what "
            "AutoModelForSequenceClassification saves with one label."
        )
    return make_reward_model(resolved.spec, dtype=dtype)


def load_reward(source: WeightsSource, resolved: Resolved, model: RewardModel, mesh: Mesh) -> Params:
    """Load the parameters of a folder's reward model onto the mesh; raises as `load_params` does."""
    rules = [rule for rule in resolved.rules if rule.path != ("unembedding",)]
    return load_params(source, model, [*rules, _SCORE], mesh, skipped=resolved.skipped)
