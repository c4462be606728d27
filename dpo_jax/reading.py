"""Strict reading: YAML and dotted overrides into frozen dataclasses, every value with its origin.

Knows no setting by name: the dataclasses of `config` say what there is. A mistake is told with file, line and key.
"""

from __future__ import annotations

import dataclasses
import datetime
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dpo_jax.errors import UserError, nearest

T = TypeVar("T")
Origins = dict[str, str]
"""Dotted key -> "file.yaml:12" or "command line"; a key that is not there has its default."""


_MOST_VALUES = 20_000  # of a file
_DEEPEST = 50
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Range(NamedTuple):
    """The numbers that a setting may be, ends included."""

    low: float = float("-inf")
    high: float = float("inf")


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0.0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0.0, 1.0)]


def read_yaml(path: Path) -> tuple[dict[str, Any], Origins]:
    """The mapping of one YAML file, and the line of each of its keys."""
    try:
        text = path.read_text(encoding="utf8")
        _check_depth(path, text)  # the parser takes time by the square of it
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: there is no such configuration file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: a configuration is a mapping of keys, such as `workdir: runs/demo`.")
    origins: Origins = {}
    try:
        return _plain(root, path, "", origins), origins
    except RecursionError:
        raise UserError(f"{path}: an alias (*name) that stands in itself.") from None


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        opens, closes = isinstance(event, yaml.CollectionStartEvent), isinstance(event, yaml.CollectionEndEvent)
        depth += opens - closes
        if depth > _DEEPEST:
            raise UserError(f"{path}:{event.start_mark.line + 1}: nested too deeply, more than {_DEEPEST} levels.")


def _plain(node: yaml.Node, path: Path, key: str, origins: Origins) -> Any:
    """A YAML node as plain data; a tag or a key given twice is refused."""
    where = f"{path}:{node.start_mark.line + 1}"
    if key:
        origins[key] = where
    if len(origins) > _MOST_VALUES:
        raise UserError(f"{where}: more than {_MOST_VALUES:,} values; aliases (*name) of aliases make as many.")
    prefix = f"{key}." if key else ""
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        raise UserError(f"{where}: {key}: the tag {node.tag} is not allowed; write plain values.")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            if name in result:
                raise UserError(f"{path}:{name_node.start_mark.line + 1}: {prefix}{name}: the key is given twice.")
            result[name] = _plain(value_node, path, prefix + name, origins)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path, f"{prefix}{i}", origins) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except yaml.YAMLError:
        raise UserError(f"{where}: {key}: the tag {node.tag} is not allowed; write plain values.") from None


def override(mapping: dict[str, Any], origins: Origins, arguments: Sequence[str]) -> None:
    """Apply `--key.sub value` arguments to the mapping before it is typed; `--loss.0.weight` reaches into a list."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"command line: {word!r} is not an override; write `--key.sub value`.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"command line: --{key} has no value; write `--{key} value`.")
            text = words.pop(0)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        _set(mapping, key, value)
        for old in [old for old in origins if old.startswith(f"{key}.")]:
            del origins[old]
        origins[key] = "command line"


def _set(mapping: dict[str, Any], key: str, value: object) -> None:
    at: Any = mapping
    names = key.split(".")
    for depth, name in enumerate(names):
        above = ".".join(names[:depth])
        if isinstance(at, list) and (not name.isdigit() or int(name) >= len(at)):
            raise UserError(f"command line: --{key}: {above} is a list of {len(at)}, from 0.")
        if not isinstance(at, list | dict):
            raise UserError(f"command line: --{key}: {above} is a value, it has no keys below it.")
        place: Any = int(name) if isinstance(at, list) else name
        if depth == len(names) - 1:
            at[place] = value
        elif isinstance(at, dict) and at.get(place) is None:
            at[place] = {}
        at = at[place]


def typed(kind: type[T], value: object, origins: Origins, key: str = "") -> T:
    """`value` as the dataclass or type `kind`; unknown keys, missing keys and wrong types are refused by name."""
    return _typed(kind, value, origins, key)


def _typed(kind: Any, value: object, origins: Origins, key: str) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, allowed = get_args(kind)
        number = _typed(inner, value, origins, key)
        if not allowed.low <= number <= allowed.high:
            bounds = [f"at least {allowed.low:g}"] if allowed.low > float("-inf") else []
            bounds += [f"at most {allowed.high:g}"] if allowed.high < float("inf") else []
            raise mistake(key, origins, f"must be {' and '.join(bounds)}, got {number}.")
        return number
    if origin in (Union, types.UnionType):
        inner = [option for option in get_args(kind) if option is not type(None)]
        if value is None:
            return None
        return _typed(inner[0], value, origins, key) if len(inner) == 1 else _named(inner, value, origins, key)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, origins, key)
    if origin is Literal:
        if value not in get_args(kind):
            raise mistake(key, origins, f"{value!r} is unknown. {nearest(str(value), map(str, get_args(kind)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise mistake(key, origins, f"a list is wanted, not {value!r}.")
        return tuple(_typed(get_args(kind)[0], item, origins, f"{key}.{i}") for i, item in enumerate(value))
    if kind in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise mistake(key, origins, f"a mapping of keys is wanted, not {value!r}.")
        return dict(value)
    return _scalar(kind, value, origins, key)


def _scalar(kind: type, value: object, origins: Origins, key: str) -> object:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 2e-5, without a dot, as text
        except ValueError:
            pass
    elif kind is str and isinstance(value, datetime.date):
        return value.isoformat()  # which YAML makes of 2026-11-30
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise mistake(key, origins, f"{names.get(kind, kind)} is wanted, not {value!r}.")


def _dataclass(kind: Any, value: object, origins: Origins, key: str) -> Any:
    if not isinstance(value, dict):
        raise mistake(key, origins, f"a mapping of keys is wanted, not {value!r}.")
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise mistake(prefix + str(name), origins, f"the key is unknown. {nearest(str(name), fields)}")
    for name, field in fields.items():
        if _default(field) is dataclasses.MISSING and name not in value:
            raise mistake(key, origins, f"the key {prefix}{name} is missing; it has no default.")
    return kind(**{name: _typed(hints[name], item, origins, prefix + name) for name, item in value.items()})


def _named(kinds: Sequence[Any], value: Any, origins: Origins, key: str) -> Any:
    """The one of several dataclasses whose field `name` allows the name that is given; without a name the first one.

    What belongs to another one is refused, unless it is empty or the default there: an earlier version wrote all.
    """
    if not isinstance(value, dict):
        raise mistake(key, origins, f"a mapping of keys is wanted, not {value!r}.")
    of_names = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["name"])}
    noun, name = key.rpartition(".")[2], value.get("name", next(iter(of_names)))
    if name not in of_names:
        raise mistake(f"{key}.name", origins, f"{name!r} is unknown. {nearest(str(name), of_names)}")
    own = {field.name: field for field in dataclasses.fields(of_names[name])}
    others = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    kept = {option: item for option, item in value.items() if option in own or not _blank(others.get(option), item)}
    for option in (option for option in kept if option not in own):
        allowed = own.keys() - {"name"}
        raise mistake(f"{key}.{option}", origins, f"is no option of the {noun} {name}. {nearest(str(option), allowed)}")
    for option, field in own.items():
        if _default(field) is dataclasses.MISSING and _blank(field, kept.get(option)):
            raise mistake(f"{key}.{option}", origins, f"the {noun} {name} needs it; it has no default.")
    return _dataclass(of_names[name], kept, origins, key)


def options_of_all(kinds: Sequence[Any]) -> dict[str, Any]:
    """The options of all these dataclasses with their defaults, None where there is none."""
    defaults = {field.name: _default(field) for kind in kinds for field in dataclasses.fields(kind)}
    return {name: None if value is dataclasses.MISSING else value for name, value in defaults.items()}


def _blank(field: dataclasses.Field[Any] | None, value: Any) -> bool:
    """True if that is as good as not given."""
    return field is not None and (value in (None, [], {}) or value == _default(field))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def mistake(key: str, origins: Origins, says: str) -> UserError:
    """The error of a setting: where it was given, its key, and what is wrong with it."""
    where = locate(key, origins)
    return UserError(f"{where}: {key}: {says}" if key else f"{where}: {says}")


def locate(key: str, origins: Origins) -> str:
    """The place where a key, or the nearest key above it, or one below it, was given."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in origins:
            return origins[".".join(parts[:length])]
    below = [at for name, at in origins.items() if name.startswith(f"{key}.")]
    return below[0] if below else "configuration"
