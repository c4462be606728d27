"""Convert the rules of gitleaks into dpo_jax/masking/tokens.tsv.

    python tests/contracts/token_rules.py RULES.toml COMMIT

RULES.toml is config/gitleaks.toml of a checkout of github.com/gitleaks/gitleaks. Of its rules those stay that know a
secret by its own shape; the others, which look for a product's name nearby, would hide digests. What differs between
regular expressions of Go and of Python is rewritten.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TARGET = Path(__file__).parents[2] / "dpo_jax/masking/tokens.tsv"
NAMES_A_PRODUCT = r"[\w.-]{0,50}?"
LEFT_OUT = (
    "curl-auth-header",  # these look at what stands around, in quadratic time: dpo_jax/masking/forms.py does it
    "curl-auth-user",
    "kubernetes-secret-yaml",
    "nuget-config-password",
    "freemius-secret-key",
    "facebook-access-token",
    "sourcegraph-access-token",  # any 40 hexadecimal digits
)
REWRITTEN = (
    (r"""(?:[\x60'"\s;]|\\[nr]|$)""", r"(?!\w)"),
    (r"""(?:[\x60'"\s;]|\\[nr]|$|\b)""", r"(?!\w)"),
    (r"""(?:$|[\\'"\x60\s<),])""", r"(?!\w)"),
    (r"""(?:^|[\\'"\x60\s>=:(,)])""", r"(?<![\w~.-])"),
    (r"(?:[^a-zA-Z0-9+/]|\z)", r"(?![a-zA-Z0-9+/])"),
    (r"(?:[^\w-]|\z)", r"(?![\w-])"),
    ("[[:alnum:]]", "[a-zA-Z0-9]"),
)


def to_python(pattern: str) -> str:
    """The same regular expression in Python's syntax; what may follow a secret is not part of it."""
    for go, python in REWRITTEN:
        pattern = pattern.replace(go, python)
    while (at := pattern.find("(?i)", 1)) > 0:  # Python has flags for a group alone, not for the rest of one
        end = _end_of_group(pattern, at + 4)
        pattern = f"{pattern[:at]}(?i:{pattern[at + 4 : end]}){pattern[end:]}"
    re.compile(pattern)
    return pattern


def _end_of_group(pattern: str, start: int) -> int:
    depth = 0
    for piece in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]", pattern[start:]):
        depth += {"(": 1, ")": -1}.get(piece[0], 0)
        if depth < 0:
            return start + piece.start()
    return len(pattern)


def convert(rules: str, commit: str) -> str:
    """The file of rules, with its licence."""
    lines = [
        f"# Shapes of secrets: rules of https://github.com/gitleaks/gitleaks, config/gitleaks.toml at {commit},",
        "# converted by tests/contracts/token_rules.py. A line: rule, words (a text holds one in any case), pattern.",
        *(f"# {line}".rstrip() for line in LICENCE.splitlines()),
    ]
    for rule in tomllib.loads(rules)["rules"]:
        pattern = rule.get("regex", "")
        if pattern and NAMES_A_PRODUCT not in pattern and rule["id"] not in LEFT_OUT:
            lines.append("\t".join((rule["id"], " ".join(rule["keywords"]), to_python(pattern))))
    return "\n".join(lines) + "\n"


LICENCE = """\
MIT License. Copyright (c) 2019 Zachary Rice

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""

if __name__ == "__main__":
    TARGET.write_text(convert(Path(sys.argv[1]).read_text(encoding="utf8"), sys.argv[2]), encoding="utf8")
