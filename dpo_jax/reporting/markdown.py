"""Foreign text in Markdown: it stays the text that it is, in its line or its cell."""

from __future__ import annotations

import re

from dpo_jax.errors import printable

_MEANS_SOMETHING = re.compile(r"[\\`*\[\]<>|&~$]|\b_|_\b|^#|^[+=-](?=[\s=-]|$)")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.|(?<=\w)@(?=\w)")


def text(value: str) -> str:
    """One line that stays text: no HTML, no link, no heading, no cell that ends early."""
    escaped = _MEANS_SOMETHING.sub(lambda found: f"\\{found[0]}", one_line(value))
    return _ADDRESS.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", escaped)


def code(value: str) -> str:
    """One line in the letters of code, in a cell too."""
    return f"`{one_line(value).replace('`', '').replace('|', '/')}`"


def one_line(value: str) -> str:
    """The text without ends of lines, and with nothing in it that is obeyed rather than shown."""
    return printable(re.sub(r"[^\S\u00a0\u2009\u202f]+", " ", value).strip())
