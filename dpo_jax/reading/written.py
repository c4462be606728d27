"""YAML and the command line as they are written: what a value means waits until the type of its setting is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dpo_jax.errors import UserError

Plain = dict[str, Any]
"""Settings by their keys, as plain data."""

Origins = dict[str, str]
"""Dotted key -> "file.yaml:12" or "command line"; a key that is not there has its default."""

_MOST_VALUES = 20_000  # of a file
_DEEPEST = 50
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Written(str):
    """A value as it stands there without quotes: what it means, text or a number, is said by the type of its setting.

    From a file it is one scalar, from the command line any YAML.
    """

    __slots__ = ()


NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+|0o[0-7_]+|0b[01_]+)")
_FRACTION = re.compile(r"[-+]?(?=[\d_]*[.eE]|\.)(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
_ENDLESS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


class _Loader(yaml.SafeLoader):
    """YAML whose scalars without quotes and tag stay as they are written."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose a scalar, with a tag of its own if it is one of these."""
        written = self.peek_event().implicit[0]  # pyright: ignore[reportOptionalMemberAccess]
        node = super().compose_scalar_node(anchor)
        node.tag = _WRITTEN if written else node.tag
        return node


_WRITTEN = "written"


def read_yaml(path: Path) -> Plain:
    """The mapping of one YAML file as plain values."""
    return untyped(read_settings(path)[0])


def read_settings(path: Path) -> tuple[Plain, Origins]:
    """The mapping of one YAML file with its scalars as they are written, and the line of each of its keys."""
    try:
        text = path.read_text(encoding="utf8")
        _check_depth(path, text)  # the parser takes time by the square of it
        root = yaml.compose(text, Loader=_Loader)
    except (FileNotFoundError, IsADirectoryError):
        what = "this is a folder, no configuration file" if path.is_dir() else "there is no such configuration file"
        behind = "The file is named right behind the command: `dpo-jax COMMAND FILE --key value`."
        raise UserError(f"{path}: {what}. {behind}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        other = "" if path.suffix in (".yaml", ".yml") else " Is it another file? A configuration is YAML."
        raise UserError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}.{other}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: a configuration is a mapping of keys, such as `workdir: runs/demo`.")
    origins: Origins = {}
    try:
        return _plain(root, str(path), "", origins), origins
    except RecursionError:
        raise UserError(f"{path}: an alias (*name) that stands in itself.") from None


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        opens, closes = isinstance(event, yaml.CollectionStartEvent), isinstance(event, yaml.CollectionEndEvent)
        depth += opens - closes
        if depth > _DEEPEST:
            raise UserError(f"{path}:{event.start_mark.line + 1}: nested too deeply, more than {_DEEPEST} levels.")


def _plain(node: yaml.Node, path: str, key: str, origins: Origins) -> Any:
    """A YAML node as plain data; a tag or a key given twice is refused."""
    where = f"{path}:{node.start_mark.line + 1}"
    if node.tag == _WRITTEN:
        origins[key] = where
        return Written(node.value)
    if key:
        origins[key] = where
    if len(origins) > _MOST_VALUES:
        raise UserError(f"{where}: more than {_MOST_VALUES:,} values; aliases (*name) of aliases make as many.")
    prefix = f"{key}." if key else ""
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        raise UserError(f"{where}: {key}: the tag {node.tag} is not allowed; write plain values.")
    if isinstance(node, yaml.MappingNode):
        result: Plain = {}
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


def override(mapping: Plain, origins: Origins, arguments: Sequence[str]) -> None:
    """Apply `--key.sub value` arguments to the mapping before it is typed; `--loss.0.weight` reaches into a list."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, text = word[2:].partition("=")
        if not word.startswith("--") or not all(key.split(".")):
            raise UserError(f"command line: {word!r} is not an override; write `--key.sub value`.")
        if not equals:
            if not words or re.match("--[A-Za-z]", words[0]):
                raise UserError(f"command line: --{key} has no value; write `--{key} value`.")
            text = words.pop(0)
        put(mapping, origins, key, Written(text))


def put(mapping: Plain, origins: Origins, key: str, value: object) -> None:
    """Set the value with this dotted key, as the command line does."""
    _set(mapping, key, value)
    for old in [old for old in origins if old.startswith(f"{key}.")]:
        del origins[old]
    origins[key] = "command line"


def _set(mapping: Plain, key: str, value: object) -> None:
    at: Any = mapping
    names = key.split(".")
    for depth, name in enumerate(names):
        above = ".".join(names[:depth])
        if isinstance(at, list) and (not name.isdigit() or int(name) >= len(at)):
            says = "" if name.isdigit() or not at else f"; write --{above}.0.{'.'.join(names[depth:])}"
            raise UserError(f"command line: --{key}: {above} is a list of {len(at)}, from 0{says}.")
        if not isinstance(at, list | dict):
            raise UserError(f"command line: --{key}: {above} is a value, it has no keys below it.")
        place: Any = int(name) if isinstance(at, list) else name
        if depth == len(names) - 1:
            at[place] = value
        else:
            below = structure(at.get(place) if isinstance(at, dict) else at[place])
            at[place] = {} if below is None or below in NULLS else below
        at = at[place]


def structure(value: Any) -> Any:
    """The mapping or list that a value from the command line is written as; any other value as it is."""
    if not isinstance(value, Written):
        return value
    try:
        node = yaml.compose(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return value
    return value if node is None or isinstance(node, yaml.ScalarNode) else _plain(node, "command line", "", {})


def untyped(value: Any) -> Any:
    """A value of which no type says what it is: numbers, also 1e-5 without a dot, true, false and null; else text."""
    if isinstance(value, dict):
        return {name: untyped(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [untyped(item) for item in value]
    if not isinstance(value, Written):
        return value
    if value[:1] in ("[", "{"):
        inside = structure(value)
        return str(value) if inside is value else untyped(inside)
    if value in NULLS:
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":  # of the command line
        return value[1:-1]
    if _WHOLE.fullmatch(value):
        return int(value, 0)
    if _FRACTION.fullmatch(value) or value.lower() in _ENDLESS:
        return read_as(float, value)
    return _BOOLS.get(value.lower(), str(value))


class _Dumper(yaml.SafeDumper):
    """YAML that this module reads as what it was made of."""

    def ignore_aliases(self, data: object) -> bool:
        """Write what stands there twice twice."""
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes, in which all letters can be said, where it may otherwise be read as something else."""
    is_plain = text.isprintable() and untyped(Written(text)) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(Written, _write_text)


def as_yaml(value: object, *, default_flow_style: bool = False, width: int = 10**9) -> str:
    """Plain data as YAML."""
    options: Plain = {"sort_keys": False, "allow_unicode": True, "width": width}
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=default_flow_style, **options)


def read_as(kind: type, text: str) -> object:
    """The value of this kind that is written so; None if it is none."""
    try:
        if kind is bool:
            return _BOOLS.get(text.lower())
        if kind is int and _FRACTION.fullmatch(text):  # 1e3
            return int(number) if (number := float(text)).is_integer() else None
        return int(text, 0) if kind is int else float(_ENDLESS.get(text.lower(), text)) if kind is float else str(text)
    except ValueError:
        return None
