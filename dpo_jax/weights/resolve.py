"""Specs from a `config.json`; what would be computed otherwise than its authors meant is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

from dpo_jax.errors import UserError, nearest
from dpo_jax.models.families import FAMILIES, HARMLESS, Family, TensorRule
from dpo_jax.models.spec import DecoderSpec, Spec
from dpo_jax.weights.source import JsonObject, WeightsSource, check_sizes


class Resolved(NamedTuple):
    """Spec and tensor rules of a checkpoint."""

    spec: Spec
    rules: tuple[TensorRule, ...]
    skipped: tuple[str, ...]  # prefixes of the tensors that are none of the decoder's
    unknown: tuple[str, ...]  # keys of the config that neither we nor transformers know, left unread
    positions: int | None = None  # of rotary models, on which they were trained


def resolve_family(config: Mapping[str, object]) -> Family:
    """The family of a `config.json`, by its `model_type`."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"config.json: model_type {kind!r} is not supported. {nearest(str(kind), FAMILIES)}")
    return FAMILIES[kind]


def resolve_spec(source: WeightsSource) -> Resolved:
    """The spec and the tensor rules of a checkpoint.

    Raises:
        UserError: its config names another family, or asks for what the family does not compute.
    """
    try:
        family = resolve_family(source.config)
        check_sizes(source.config if family.inner is None else source.config[family.inner])
        given, complete, defaults = _completed(source.config, family.inner)
        unknown = _guard(family, given, complete, defaults)
        spec = family.spec(complete)
        if isinstance(spec, DecoderSpec) and (spec.head_size < 2 or spec.head_size % 2):
            raise ValueError(f"heads of {spec.head_size} numbers (head_dim); rotary positions turn an even number")
    except KeyError as error:
        raise UserError(f"{source.where}: config.json: key {error} is missing") from None
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{source.where}: config.json: {str(error).removeprefix('config.json: ')}") from None
    rules = family.rules(spec)  # some checkpoints write the names of tensors with a prefix, others without
    bare = tuple(rule._replace(name=rule.name.removeprefix(family.optional_prefix)) for rule in rules)
    return Resolved(
        spec, bare if bare[0].name in source.shapes else rules, family.skipped, unknown, _positions(spec, given)
    )


def _positions(spec: Spec, given: JsonObject) -> int | None:
    """The `max_position_embeddings` of a config, by as much more as its rope scaling stretches them.

    Llama 3 counts that in already, as do models whose layers differ.
    """
    positions = given.get("max_position_embeddings")
    scaling = spec.kinds[0].rope_scaling if isinstance(spec, DecoderSpec) and len(spec.kinds) == 1 else None
    if positions is None or scaling is None or (scaling.original_tokens or positions) < positions:
        return positions
    return int(positions * scaling.factor)


def _completed(config: JsonObject, inner: str | None) -> tuple[JsonObject, JsonObject, JsonObject]:
    """The decoder's config as it is written, as transformers completes it, and the defaults of its class."""
    from transformers import AutoConfig

    rest = {key: value for key, value in config.items() if key != "model_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            whole = AutoConfig.for_model(config["model_type"], **rest)
        except Exception as error:  # it raises what it likes
            raise ValueError(f"transformers cannot read it: {str(error)[:300]}") from error
        default = AutoConfig.for_model(config["model_type"])
    if inner is None:
        return dict(config), whole.to_dict(), default.to_dict()
    return dict(config[inner]), getattr(whole, inner).to_dict(), getattr(default, inner).to_dict()


def _guard(family: Family, given: JsonObject, complete: JsonObject, defaults: JsonObject) -> tuple[str, ...]:
    """The keys that neither we nor transformers know.

    Raises:
        UserError: a key that transformers reads has a value that this decoder does not compute.
    """
    for key in family.needs:
        _ = given[key]
    unknown = []
    for key in given:
        if key in family.reads or key in HARMLESS or key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            continue
        value = complete.get(key)
        if key in family.only:
            if value not in family.only[key]:
                allowed = " or ".join(map(repr, family.only[key]))
                raise UserError(f"{key} is {value!r}; this decoder computes with {allowed} only")
        elif key not in defaults:
            unknown.append(key)
        elif value != defaults[key]:
            raise UserError(
                f"{key} is {value!r}; this decoder does not know it, and computes as with {defaults[key]!r}"
            )
    return tuple(unknown)
