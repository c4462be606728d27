"""Strict reading: YAML and dotted overrides into frozen dataclasses, every value with its origin.

Knows no setting by name, but the section `data` of rows: the dataclasses of `config` say what there is. A mistake is
told with file, line and key.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from dpo_jax.errors import LARGEST, Advised, BadRow, UserError, check_local, fits_float32, nearest
from dpo_jax.reading.written import (
    NULLS,
    Origins,
    Plain,
    Written,
    as_yaml,
    override,
    put,
    read_as,
    read_settings,
    read_yaml,
    structure,
    untyped,
)

__all__ = [  # what is not of this file
    "Origins",
    "Plain",
    "Written",
    "as_setting",
    "as_yaml",
    "override",
    "put",
    "read_settings",
    "read_yaml",
    "structure",
    "untyped",
]

T = TypeVar("T")

_LARGEST_WHOLE = 2**32 - 1

Hint = Any
"""A type as annotations name it: a class, a union, an alias with arguments, for which Python has no one type."""


class Range(NamedTuple):
    """The numbers that a setting may be, ends included."""

    low: float = float("-inf")
    high: float = float("inf")

    def read(self, value: Any) -> Any:
        """The number itself; what is wrong with it is a ValueError."""
        if self.low <= value <= self.high:
            return value
        bounds = [f"at least {self.low:.10g}"] if self.low > float("-inf") else []
        bounds += [f"at most {self.high:.10g}"] if self.high < float("inf") else []
        raise ValueError(f"must be {' and '.join(bounds)}, got {value}.")


class Local(NamedTuple):
    """The mark of a text that names a file or folder of this machine."""

    def read(self, value: str) -> str:
        """The text itself; an address in its place is a ValueError."""
        return check_local(value)


@dataclasses.dataclass(frozen=True, eq=False)
class Keys:
    """The mark of a mapping of any keys, of which these hold text, or, where the kind is Mapping, a mapping to text."""

    kinds: Mapping[str, Hint]


File = Annotated[str, Local()]

Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0.0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0.0, 1.0)]


class UnknownKey(UserError):
    """A key that its section does not have; `hinted` says better what was meant than the names that are near."""

    def __init__(self, key: str, where: str, allowed: Sequence[str], meant: Sequence[str] = ()):
        near = nearest(key.rpartition(".")[2], allowed)
        if meant:
            near = f"Did you mean {' or '.join(meant)}? {near[near.index('Allowed: ') :]}"
        super().__init__(f"{where}: {key}: the key is unknown. {near}")
        self.key, self._where, self._allowed = key, where, allowed

    def hinted(self, meant: Sequence[str]) -> UnknownKey:
        """Return the same error with the dotted keys that may have been meant."""
        return UnknownKey(self.key, self._where, self._allowed, meant)


def typed(kind: type[T], value: object, origins: Origins, key: str = "") -> T:
    """`value` as the dataclass or type `kind`; unknown keys, missing keys and wrong types are refused by name."""
    return _typed(kind, value, origins, key)


def _typed(kind: Hint, value: object, origins: Origins, key: str) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, mark = get_args(kind)
        if isinstance(mark, Keys):
            return _of_keys(mark, value, origins, key)
        try:
            return mark.read(_typed(inner, value, origins, key))
        except ValueError as error:
            raise mistake(key, origins, str(error)) from None
    if origin in (Union, types.UnionType):
        inner = [option for option in get_args(kind) if option is not type(None)]
        if value is None or (isinstance(value, Written) and value in NULLS):
            return None
        return _typed(inner[0], value, origins, key) if len(inner) == 1 else _named(inner, value, origins, key)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, origins, key)
    if origin is Literal:
        known = {str(option) if isinstance(value, Written) else option: option for option in get_args(kind)}
        if not isinstance(value, str | int) or value not in known:
            raise mistake(key, origins, f"{_shown(value)} is unknown. {nearest(str(value), map(str, get_args(kind)))}")
        return known[value]
    if origin is tuple:
        (inner, *_), listed = get_args(kind), structure(value)
        if not isinstance(listed, list | tuple):
            raise mistake(key, origins, f"a list is wanted, not {_shown(value)}.{_example(kind, listed, origins, key)}")
        return tuple(_typed(inner, item, origins, f"{key}.{i}") for i, item in enumerate(listed))
    if origin in (dict, Mapping):
        named = _mapping(kind, value, origins, key)
        inner = get_args(kind)[1]
        if inner in (Any, object):
            return _checked_numbers(untyped(named), origins, key)
        return {name: _typed(inner, item, origins, f"{key}.{name}") for name, item in named.items()}
    return _scalar(kind, value, origins, key)


def as_setting(root: type, key: str, value: object) -> Any:
    """A value as plain data of which only the dotted key below `root` says whether it is text."""
    kind: Hint = root
    for name in key.split("."):
        kind = _below(kind, name)
    is_null = type(None) in get_args(kind) and value in NULLS
    return str(value) if isinstance(value, Written) and _is_text(kind) and not is_null else untyped(value)


def _below(kind: Hint, name: str) -> Hint:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return inner[1].kinds.get(name, Any) if isinstance(inner[1], Keys) else _below(inner[0], name)
    if origin in (Union, types.UnionType):
        return next((below for option in inner if (below := _below(option, name)) is not Any), Any)
    if origin is tuple:  # a single loss is written without a list
        return inner[0] if name.isdigit() else _below(inner[0], name)
    if dataclasses.is_dataclass(kind):
        return get_type_hints(kind, include_extras=True).get(name, Any)
    return inner[1] if origin in (dict, Mapping) else Any


def _is_text(kind: Hint) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(option, str) for option in get_args(kind))
    around = get_origin(kind) in (Annotated, Union, types.UnionType, tuple)
    return kind is str or (around and any(map(_is_text, get_args(kind))))


def _of_keys(keys: Keys, value: object, origins: Origins, key: str) -> Plain:
    named = _mapping(Annotated[Mapping[str, Any], keys], value, origins, key)
    plain = _checked_numbers(untyped(named), origins, key)
    for name, kind in keys.kinds.items():
        item = named.get(name)
        if kind is Mapping and isinstance(below := structure(item), dict):
            plain[name] = {each: str(text) if isinstance(text, Written) else text for each, text in below.items()}
        elif isinstance(item, str) and item and kind is not Mapping:
            plain[name] = _typed(kind, item, origins, f"{key}.{name}")
    return plain


def _mapping(kind: Hint, value: object, origins: Origins, key: str) -> Plain:
    named = structure(value)
    if not isinstance(named, dict):
        raise mistake(
            key, origins, f"a mapping of keys is wanted, not {_shown(value)}.{_example(kind, value, origins, key)}"
        )
    return named


def _scalar(kind: type, value: object, origins: Origins, key: str) -> object:
    if isinstance(value, Written) and (value or kind is not str):
        read = read_as(kind, value)
    elif kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        read = read_as(float, str(value))  # also of text, as earlier versions wrote it
    elif kind is int and isinstance(value, float) and value.is_integer():
        read = int(value)
    else:
        read = value if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) else None
    if isinstance(read, int | float) and read == read:
        _check_number(read, origins, key)
        if abs(read) > _LARGEST_WHOLE and kind is int:
            raise mistake(key, origins, f"must be at most {_LARGEST_WHOLE}, not {reprlib.repr(read)}.")
    if read is not None and read == read and not (isinstance(value, Written) and not value):
        return read
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise mistake(key, origins, f"{names.get(kind, kind)} is wanted, not {_shown(value)}.")


def _check_number(number: float, origins: Origins, key: str) -> None:
    if not fits_float32(number):
        says = f"must be finite, and at most {LARGEST:.1e}, which float32 holds, not {reprlib.repr(number)}."
        raise mistake(key, origins, says)


def _checked_numbers(value: T, origins: Origins, key: str) -> T:
    """The same plain data, once each number in it was looked at."""
    if isinstance(value, dict):
        for name, item in value.items():
            _checked_numbers(item, origins, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _checked_numbers(item, origins, f"{key}.{place}")
    elif isinstance(value, int | float):
        _check_number(value, origins, key)
    return value


def _shown(value: object) -> str:
    """A value for a message."""
    return "nothing" if value == "" else "null" if value is None or value in NULLS else repr(untyped(value))


def _example(kind: Hint, value: object, origins: Origins, key: str) -> str:
    """The way to write a value whose setting wants more around it; nothing where that is not known."""
    if isinstance(value, dict):
        return " Put brackets around it: [{...}]."
    if not isinstance(value, str) or not re.fullmatch(r"[^\s\[\]{},#'\"~]+", value) or value in NULLS:
        return ""

    def around(kind: Hint) -> str:
        options = [option for option in get_args(kind) if option is not type(None)]
        if get_origin(kind) in (Union, types.UnionType):
            return around(options[0])
        if get_origin(kind) is tuple:
            return f"[{around(options[0])}]"
        if dataclasses.is_dataclass(kind):
            fields = dataclasses.fields(kind)
            name = next((each for each in fields if _default(each) is dataclasses.MISSING), fields[0]).name
            return f"{{{name}: {around(get_type_hints(kind, include_extras=True)[name])}}}"
        return f"{{path: {value}}}" if get_origin(kind) is Annotated and isinstance(get_args(kind)[-1], Keys) else value

    written = around(kind)
    if written == value:
        return ""
    typed_in = locate(key, origins) == "command line"
    return f" Write --{key} '{written}'." if typed_in else f" Write {key.rpartition('.')[2]}: {written}."


def _dataclass(kind: Hint, value: object, origins: Origins, key: str) -> Any:
    value = _mapping(kind, value, origins, key)
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise UnknownKey(prefix + str(name), locate(prefix + str(name), origins), list(fields))
    for name, field in fields.items():
        if _default(field) is dataclasses.MISSING and name not in value:
            raise mistake(key, origins, f"the key {prefix}{name} is missing; it has no default.")
    return kind(**{name: _typed(hints[name], item, origins, prefix + name) for name, item in value.items()})


def _named(kinds: Sequence[Hint], value: Any, origins: Origins, key: str) -> Any:
    """The one of several dataclasses whose field `name` allows the name that is given; without a name the first one.

    What belongs to another one is refused, unless it is empty or the default there: an earlier version wrote all.
    """
    value = _mapping(kinds[0], value, origins, key)
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


def options_of_all(kinds: Sequence[Hint]) -> Plain:
    """The options of all these dataclasses with their defaults, None where there is none."""
    defaults = {field.name: _default(field) for kind in kinds for field in dataclasses.fields(kind)}
    return {name: None if value is dataclasses.MISSING else value for name, value in defaults.items()}


def _blank(field: dataclasses.Field[Any] | None, value: Any) -> bool:
    """True if that is as good as not given."""
    value = untyped(value)
    return field is not None and (value in (None, [], {}) or value == _default(field))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def mistake(key: str, origins: Origins, says: str) -> UserError:
    """The error of a setting: where it was given, its key, and what is wrong with it."""
    where = locate(key, origins)
    return UserError(f"{where}: {key}: {says}" if key else f"{where}: {says}")


@contextmanager
def located(name: str, origins: Origins) -> Iterator[None]:
    """The context in which errors of rows are told the file, the line and the key of their source.

    `name` is the key of the list of sources, or says where on the command line they are named.
    """
    try:
        yield
    except UserError as error:
        says = str(error.in_section("data") if isinstance(error, BadRow | Advised) else error)
        key = name if error.source is None else f"{name}.{error.source}"
        says = says.removeprefix(f"{name}: ")
        raise (
            UserError(f"{name}: {says}") if name.startswith("command line") else mistake(key, origins, says)
        ) from error


def locate(key: str, origins: Origins) -> str:
    """The place where a key, or the nearest key above it, or one below it, was given."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in origins:
            return origins[".".join(parts[:length])]
    below = [at for name, at in origins.items() if name.startswith(f"{key}.")]
    return below[0] if below else "configuration"
