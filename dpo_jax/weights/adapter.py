"""Adapters: the linear maps that have one, by their names in the checkpoint, and a folder that PEFT loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from dpo_jax.errors import nearest
from dpo_jax.files import write_atomic, write_json
from dpo_jax.models.families import TensorRule
from dpo_jax.types import Lora, Params
from dpo_jax.weights.export import Made, all_finite, on_host, whole_or_absent
from dpo_jax.weights.load import leaf, tensor_names
from dpo_jax.weights.opening import Base
from dpo_jax.weights.source import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ALL_LINEAR = "all-linear"
_NOT_YET = ("embed_tokens", "lm_head", "wte", "wpe")


def adapted_paths(rules: Sequence[TensorRule], targets: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The paths of the linear maps that `targets` name, in the order of the rules.

    A target is a module's name in the checkpoint or its last parts (`q_proj`), a pattern of the whole name with `*`
    (`*.self_attn.*`), or `all-linear`: every linear map of every layer, as in PEFT.

    Raises:
        ValueError: a target names no linear map of the layers, or a tensor that holds several.
    """
    maps = _linear_maps(rules)
    fused = {rule.name.removesuffix(".weight"): None for rule in rules if rule.part}
    last = {name.rpartition(".")[2]: None for name in maps}
    chosen: set[str] = set()
    for target in targets:
        if target.rpartition(".")[2] in _NOT_YET:
            says = "is the embedding or the head, which have no adapters here."
            raise ValueError(f"{target!r} {says} {nearest('', last)}")
        if several := [name for name in fused if _is_named(name, target)]:
            raise ValueError(
                f"{target!r} names {', '.join(name.rpartition('.')[2] for name in several)}: one tensor of several "
                "linear maps, which would share one adapter in PEFT and have one each here, so they have none. "
                f"{nearest('', last)}"
            )
        named = {name for name in maps if _is_named(name, target)}
        if not named:
            known = nearest(target, [*last, ALL_LINEAR])
            raise ValueError(f"{target!r} names no linear map; an adapter is on that of every layer. {known}")
        chosen |= named
    if not chosen:
        raise ValueError(f"names no linear map. {nearest('', [*last, ALL_LINEAR])}")
    return tuple(path for name, path in maps.items() if name in chosen)


def _linear_maps(rules: Sequence[TensorRule]) -> dict[str, tuple[str, ...]]:
    """Module name in the checkpoint, with `{layer}` -> path of the map that is alone in its tensor."""
    return {
        rule.name.removesuffix(".weight"): rule.path[:-1]
        for rule in rules
        if rule.inputs and not rule.part and rule.path[0] == "layers"
    }


def _is_named(name: str, target: str) -> bool:
    return target == ALL_LINEAR or fnmatchcase(name, target) or name.endswith(f".{target}")


def export_adapter(
    folder: Path,
    adapter: Params,
    lora: Lora,
    rules: Sequence[TensorRule],
    *,
    base: Base,
    tokenizer: PreTrainedTokenizerFast,
    card: str | None = None,
    made: Made | None = None,
) -> None:
    """Write an adapter as PEFT has it; an earlier export at `folder` is replaced.

    Args:
        base: the model that the adapter belongs to, as PEFT looks it up.

    Raises:
        UserError: `folder` holds something that is not an export.
    """
    with whole_or_absent(folder, made) as partial:
        tensors = _tensors(adapter, lora, rules)  # takes every process
        if partial is None:
            return
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(partial / "adapter_config.json", _peft_config(lora, rules, base))
        tokenizer.save_pretrained(str(partial))
        if card is not None:
            write_atomic(partial / "README.md", card)


def _tensors(adapter: Params, lora: Lora, rules: Sequence[TensorRule]) -> dict[str, np.ndarray]:
    """PEFT's names; A as [rank, in] and B as [out, rank], whatever the axes of the map."""
    tensors = {}
    for rule in rules:
        if rule.path[:-1] not in lora.paths or not rule.inputs:
            continue
        thin = leaf(adapter, (*rule.path[:-1], "adapter"))
        a_layers, b_layers = on_host(thin["a"]), on_host(thin["b"])
        for layer, name in enumerate(tensor_names(rule, a_layers.shape)):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = a_layers[layer], b_layers[layer]
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(lora.rank, math.prod(b.shape[1:])).T)
    return {name: all_finite(name, tensor) for name, tensor in tensors.items()}


def _peft_config(lora: Lora, rules: Sequence[TensorRule], base: Base) -> JsonObject:
    maps = _linear_maps(rules)
    adapted = [name for name, path in maps.items() if path in lora.paths]
    last = sorted({name.rpartition(".")[2] for name in adapted})
    exact = {name for name in maps if name.rpartition(".")[2] in last} == set(adapted)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        # Where a last part names other maps too (c_proj), a pattern of whole names, which PEFT takes as a text.
        "target_modules": last
        if exact
        else f"({'|'.join(name.replace('.', '[.]') for name in adapted)})".replace("{layer}", "[0-9]+"),
        "bias": "none",
        "fan_in_fan_out": not all(rule.transposed for rule in rules if rule.path[:-1] in lora.paths),
        "inference_mode": True,
    }
