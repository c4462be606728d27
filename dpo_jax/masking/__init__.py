"""Secrets are hidden before text leaves the process: to the screen, to files, to W&B.

What counts as one: the value of an environment variable or of a setting whose name says so, what `remember` was told,
and what stands in one of the usual forms.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_jax.masking import forms
from dpo_jax.masking.forms import MARK
from dpo_jax.masking.names import is_secret, is_secret_variable

__all__ = ["mask", "masked", "remember", "remember_all"]

_SHORTEST = 8  # a shorter value would hide half the words of a log
_SHORTEST_WORD = 4  # of what `remember` was told; that hides whole words alone
_remembered: set[str] = set()


def remember(secret: str) -> None:
    """Hide this value in all text from now on, as it is and as addresses, JSON and headers write it."""
    encoded = secret.encode("utf8", "replace")
    forms_of = (
        secret,
        secret.strip(),
        urllib.parse.quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        base64.b64encode(encoded).decode(),
        base64.urlsafe_b64encode(encoded).decode(),
    )
    _remembered.update(form for form in forms_of if len(form) >= _SHORTEST_WORD)


def remember_all(value: Any, name: str = "") -> None:
    """Hide from now on what stands in this data under a name such as `api_key`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            remember_all(item, _name_of(value, str(key), name))
    elif isinstance(value, list | tuple):
        for item in value:
            remember_all(item, name)
    elif isinstance(value, str) and is_secret(name):
        remember(value)


def mask(text: str) -> str:
    """The text with `***` in the place of secrets."""
    known = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_variable(name)}
    for value in sorted(known | _remembered, key=len, reverse=True):  # the longest first: one may be part of another
        if len(value) >= _SHORTEST:
            text = text.replace(value, MARK)
        elif value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", MARK, text)
    return forms.hide(text)


def masked(value: Any, name: str = "") -> Any:
    """Plain data with secrets replaced; under a name such as `api_key` all that is text or a number is one."""
    if isinstance(value, Mapping):
        return {key: masked(item, _name_of(value, str(key), name)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(_masked_items(value, name))
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret(name) and (isinstance(value, str) or not name.lower().endswith("token")):
        return value if isinstance(value, str) and forms.says_nothing(value) else MARK
    return mask(value) if isinstance(value, str) else value


def _name_of(mapping: Mapping[Any, Any], key: str, above: str) -> str:
    """The name that decides on a value: its key, that of a mapping that is secret as a whole, or `name` beside it."""
    if key == "value" and isinstance(beside := mapping.get("name", mapping.get("key")), str):
        return beside
    return above if is_secret(above) else key


def _masked_items(items: list[Any] | tuple[Any, ...], name: str) -> Iterator[Any]:
    """Entries of a list; one that follows a flag such as --api-key is its value."""
    before: Any = None
    for item in items:
        flag = isinstance(before, str) and before.startswith("-") and isinstance(item, str) and is_secret(before)
        yield masked(item, before if flag else name)
        before = item
