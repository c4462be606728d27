"""Every setting with its type, default and meaning, as the dataclasses and the comments beside their fields say them.

For `dpo-jax COMMAND --help`, for hints at unknown keys, and as a JSON schema for editors.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from dpo_jax.config.model import Source
from dpo_jax.reading import Hint, Keys, Local, Plain, Range

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Source: "source of rows"}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


class Setting(NamedTuple):
    """One setting: its dotted key, its type in words, its default as YAML writes it, and what it means."""

    key: str
    kind: str
    default: str
    meaning: str


def settings_of(kind: type, sections: Collection[str] | None = None) -> list[Setting]:
    """The settings of an experiment, those of some sections or all, in the order of the dataclasses."""
    return [each for each in _settings(kind, "", None) if sections is None or each.key.partition(".")[0] in sections]


def keys_of(kind: type) -> list[str]:
    """The dotted keys of all settings and sections."""
    leaves = [each.key for each in _settings(kind, "", None)]
    above = [key[: dot.start()] for key in leaves for dot in re.finditer(r"\.", key)]
    return list(dict.fromkeys([*leaves, *above]))


_ELSEWHERE = {
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.epsilon",
    "batch_size": "train.batch_pairs",
    "beta": "loss.options.beta",
    "bf16": "model.dtype",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "eval_steps": "evaluation.every",
    "gradient_accumulation_steps": "train.micro_batch_pairs",
    "gradient_checkpointing": "model.remat",
    "label_smoothing": "loss.options.label_smoothing",
    "logging_steps": "train.log_every",
    "lora_r": "lora.rank",
    "lora_target_modules": "lora.targets",
    "loss_type": "loss.name",
    "lr": "optimizer.learning_rate",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_norm",
    "max_length": "data.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_steps": "train.steps",
    "model_name": "model.weights",
    "model_name_or_path": "model.weights",
    "num_train_epochs": "train.epochs",
    "output_dir": "workdir",
    "per_device_train_batch_size": "train.batch_pairs",
    "report_to": "logging.wandb",
    "save_steps": "train.save_every",
    "torch_dtype": "model.dtype",
    "warmup_ratio": "optimizer.warmup_steps",
}
"""Names in other trainers -> the setting here."""


def meant_by(kind: type, key: str) -> list[str]:
    """The settings that an unknown key may mean: by the name that it has elsewhere, or by its last part."""
    section, _, name = key.replace("-", "_").lower().rpartition(".")
    if name in _ELSEWHERE:
        return [_ELSEWHERE[name]]
    known = keys_of(kind)
    whole = [each for each in known if each == name.replace("_", ".", 1) and "." in each]  # lora_rank
    if whole:
        return whole
    beside = [each.removeprefix(f"{section}.") for each in known if each.rpartition(".")[0] == section]
    if name in beside or difflib.get_close_matches(name, beside):
        return []
    return [each for each in known if each.rpartition(".")[2] == name][:3]


def _settings(kind: type, prefix: str, section: Hint) -> Iterator[Setting]:
    """The settings of a dataclass; `section` is the one that is the default, if there is one."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        default = getattr(section, field.name) if isinstance(section, kind) else _default(field)
        kinds = list(_sections(hint))
        if not kinds:
            yield Setting(key, _in_words(hint), _shown(default), meanings(kind).get(field.name, ""))
        if len(kinds) > 1:  # each has a name, and options of its own
            names = [get_args(get_type_hints(each)["name"])[0] for each in kinds]
            yield Setting(f"{key}.name", " | ".join(names), names[0], "")
            for name, each in zip(names, kinds, strict=True):
                for option in _settings(each, f"{key}.", None):
                    if option.key != f"{key}.name":
                        yield option._replace(meaning=f"{name}: {option.meaning}".removesuffix(": "))
        elif kinds:
            yield from _settings(kinds[0], f"{key}.", default)


def _sections(hint: Hint) -> Iterator[type]:
    """The dataclasses that a setting may hold; a list of losses counts as one loss."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    elif get_origin(hint) in (Union, types.UnionType, tuple):
        for inner in get_args(hint):
            yield from _sections(inner)


def _shown(default: object) -> str:
    if default is dataclasses.MISSING:
        return "needed"
    if default in (None, (), {}):
        return "none"
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    if isinstance(default, Mapping):
        return f"{{{', '.join(f'{name}: {value}' for name, value in default.items())}}}"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _in_words(hint: Hint) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (Union, types.UnionType):
        return _in_words(next(option for option in inner if option is not type(None)))
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"list of {_in_words(inner[0]).replace('source', 'sources')}"
    mark = inner[-1] if inner else None
    if isinstance(mark, Local):
        return "file or folder"
    if isinstance(mark, Range):
        low, high = (f"{bound:.10g}" for bound in (mark.low, mark.high))
        return _WORDS[inner[0]] + (f" from {low}" if low != "-inf" else "") + (f" to {high}" if high != "inf" else "")
    return "mapping"


@functools.cache
def meanings(kind: type) -> Mapping[str, str]:
    """The comment beside each field of a dataclass, of those that it inherits too."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        lines, classes = _source(inspect.getmodule(each))
        for node in classes[each.__name__].body if each.__name__ in classes else ():
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                beside = re.search(r"  # (.*)", lines[(node.end_lineno or 0) - 1])
                above = re.match(r" *# (.*)", lines[node.lineno - 2])
                comment = beside or above
                found[node.target.id] = comment[1] if comment else ""
    return found


@functools.cache
def _source(module: types.ModuleType | None) -> tuple[list[str], dict[str, ast.ClassDef]]:
    try:
        text = Path(getattr(module, "__file__", None) or "").read_text(encoding="utf8")
    except OSError:  # an installation without its source
        return [], {}
    return text.splitlines(), {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def json_schema(texts: type, pictures: type) -> Plain:
    """A JSON schema of the experiment files; those with a section `pictures` are of that kind."""
    definitions: Plain = {}
    kinds = [_schema(kind, definitions) for kind in (texts, pictures)]
    for kind in (texts, pictures):  # in the file one mapping, or a list
        loss = definitions[kind.__name__]["properties"]["loss"]
        loss["anyOf"] = [loss["items"], {"type": "array", "items": loss.pop("items")}]
        del loss["type"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An experiment of dpo-jax",
        "if": {"required": ["pictures"]},
        "then": kinds[1],
        "else": kinds[0],
        "$defs": definitions,
    }


def _schema(hint: Hint, definitions: Plain) -> Plain:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] |= _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if hint is Mapping:
        return {"type": "object"}
    if origin in (Union, types.UnionType):
        return {
            "anyOf": [{"type": "null"} if option is type(None) else _schema(option, definitions) for option in inner]
        }
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _schema(inner[0], definitions)}
    mark = inner[-1] if inner else None
    if isinstance(mark, Keys):
        return {"type": "object", "properties": {key: _schema(of, definitions) for key, of in mark.kinds.items()}}
    if isinstance(mark, Local):
        return {"type": "string", "pattern": r"^(?!\s*[A-Za-z][A-Za-z0-9+.-]+:/)"}
    if isinstance(mark, Range):
        bounds = {"minimum": (mark.low, float("-inf")), "maximum": (mark.high, float("inf"))}
        return {**_schema(inner[0], definitions), **{name: at for name, (at, none) in bounds.items() if at != none}}
    of = inner[1] if origin in (dict, Mapping) else Any
    return {"type": "object"} | ({"additionalProperties": _schema(of, definitions)} if of in _TYPES else {})


def _object(kind: type, definitions: Plain) -> Plain:
    hints, fields = get_type_hints(kind, include_extras=True), dataclasses.fields(kind)
    properties = {field.name: _schema(hints[field.name], definitions) for field in fields}
    for field in fields:
        if meaning := meanings(kind).get(field.name):
            properties[field.name]["description"] = meaning
        if isinstance(default := _default(field), str | bool | int | float):
            properties[field.name]["default"] = default
    return {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": properties,
        "required": [field.name for field in fields if _default(field) is dataclasses.MISSING],
        "additionalProperties": False,
    }
