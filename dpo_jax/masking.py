"""Secrets are hidden before text leaves the process: to the screen, to files, to W&B.

What counts as one: the value of an environment variable or of a setting whose name says so, credentials and signatures
in an address, and what has the shape of a well-known token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = "***"
_SHORTEST = 8  # a shorter value would hide half the words of a log

# As whole words: HF_TOKEN and api_key, but neither max_tokens, TOKENIZERS_PARALLELISM, HF_TOKEN_PATH nor eos_token.
_NAME = (
    r"(?:[a-z0-9]+[_-])*(?:(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!stop_)token|secret|password|passwd|passphrase"
    r"|authorization|api_?key|(?:access|secret|private|auth)_?key)(?:_id)?"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_SECRET_VARIABLE = re.compile(rf"{_NAME}|\w+_KEY", re.IGNORECASE)
_QUERY = r"[\w.-]*(?:token|key|secret|password|signature|credential|sig)"
_VALUE = rf"[\w.~+/=-]{{{_SHORTEST},}}"
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), shown)
    for pattern, shown in (
        (r"(\b[a-z][a-z0-9+.-]*:/{1,3})[^/\s@'\"]+@", rf"\1{_HIDDEN}@"),  # `Path` robs an address of a slash
        (rf"([?&;]{_QUERY}=)[^&\s'\"#]+", rf"\1{_HIDDEN}"),
        (rf"\b(bearer\s+){_VALUE}", rf"\1{_HIDDEN}"),
        (rf"(--[\w.]*?{_NAME}\s+['\"]?){_VALUE}", rf"\1{_HIDDEN}"),
        (rf"((?<!\w){_NAME}['\"]?\s*[:=]\s*['\"]?){_VALUE}", rf"\1{_HIDDEN}"),
        (r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[bp]-|AKIA|AIza)[\w-]{16,}", _HIDDEN),
    )
]


def mask(text: str) -> str:
    """The text with `***` in the place of secrets."""
    secrets = {value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name)}
    for value in sorted(secrets, key=len, reverse=True):  # the longest first: one may be part of another
        text = text.replace(value, _HIDDEN) if len(value) >= _SHORTEST else text
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def masked(value: Any, name: str = "") -> Any:
    """Plain data with secrets replaced; under a name such as `api_key` all text is one."""
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if not isinstance(value, str):
        return value
    return _HIDDEN if value and _SECRET_NAME.fullmatch(name) else mask(value)
