"""Frozen dataclasses with a JSON form, written and read in one way.

A field that has its default is not in the file. Files of other versions may lack fields, or have others.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, Union, dataclass_transform, get_args, get_origin, get_type_hints

from dpo_jax.errors import UserError


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Record:
    """Fields with a JSON form; the order of the fields is that of the file. Every subclass is such a dataclass."""

    always: ClassVar[tuple[str, ...]] = ()
    """The fields that a record which has any is written with, be they empty."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __bool__(self) -> bool:
        return bool(self.to_json())

    def to_json(self) -> dict[str, object]:
        """The fields that are not their defaults, as plain data; `from_` is called `from`."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        given = {each.name for each in dataclasses.fields(self) if values[each.name] != _default(each)}
        written = given.union(self.always) if given else given
        return {name.removesuffix("_"): _plain(value) for name, value in values.items() if name in written}

    @classmethod
    def from_json(cls, value: object, *, where: str = "evaluation") -> Self:
        """The record of plain data; null is the default, and a key that is none of the record's is left out.

        Raises:
            UserError: a value is of another type; the message begins with `where`.
        """
        return _read(cls, value, where)


def _default(each: dataclasses.Field[Any]) -> object:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


_SCALARS: dict[object, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _read(inner, value, where)
    if dataclasses.is_dataclass(origin):
        hints = _hints(origin)
        given = {f"{name}_" if f"{name}_" in hints else name: item for name, item in _mapping(value, where).items()}
        known = {name: (hints[name], item) for name, item in given.items() if name in hints and item is not None}
        for each in dataclasses.fields(origin):
            if _default(each) is dataclasses.MISSING and each.name not in known:
                raise UserError(f"{where}: damaged: {each.name} is missing.")
        make: Any = origin
        return make(**{name: _read(*both, f"{where}: {name}") for name, both in known.items()})
    if origin is Mapping:
        return {name: _read(arguments[1], item, f"{where}: {name}") for name, item in _mapping(value, where).items()}
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(arguments)):
            raise UserError(f"{where}: damaged: {str(value)[:80]!r} is no list of what belongs there.")
        return tuple(_read(arguments[0], item, where) for item in value)
    if not isinstance(value, _SCALARS.get(kind, (object,))):
        raise UserError(f"{where}: damaged: {kind.__name__} is wanted, not {str(value)[:80]!r}.")
    return value


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: damaged: a mapping is wanted, not {str(value)[:80]!r}.")
    return value


_hints = functools.cache(get_type_hints)
