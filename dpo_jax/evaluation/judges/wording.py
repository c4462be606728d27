"""What a language model is asked as a judge, and how its answer is understood."""

from __future__ import annotations

import re

from dpo_jax.errors import UserError

FIELDS = ("prompt", "a", "b")
DEFAULT_TEMPLATE = """\
You compare two responses to the same prompt. Decide which one answers the prompt better: more helpful, more accurate, \
and in keeping with what was asked. Neither their order nor their length is a reason by itself.

[Prompt]
{prompt}

[Response A]
{a}

[Response B]
{b}

Answer with one letter and nothing else: A if response A is better, B if response B is better, C if they are equally \
good.
"""

_FIELD = re.compile(r"\{(\w+)\}")
_BRACKETED = re.compile(r"\[\[\s*(A|B|C|TIE|A>>B|A>B|A=B|B=A|B>A|B>>A)\s*\]\]")
_AROUND = " \t\r\n\f\v\"'`*.:()[]"
_BARE = re.compile(rf"(?:(?:VERDICT|ANSWER|RESPONSE|WINNER)[{re.escape(_AROUND)}]*)?(A|B|C|TIE)")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_WINS = {"A": 1.0, "B": 0.0, "C": 0.5, "TIE": 0.5}


def check_template(template: str) -> str:
    """Returns a template; refuses one that does not show all of a comparison, as a UserError."""
    found = {field for field in _FIELD.findall(template) if field in FIELDS}
    missing = [f"{{{field}}}" for field in FIELDS if field not in found]
    if missing:
        raise UserError(
            f"judge http: its template lacks {' and '.join(missing)}; it needs {{prompt}}, {{a}} and {{b}}."
        )
    return template


def fill(template: str, **texts: str) -> str:
    """The template with its fields filled in; other braces, and those in the texts, stay as they are."""
    return _FIELD.sub(lambda match: texts.get(match[1], match[0]), template)


def understand(answer: str) -> float | None:
    """1 where A wins, 0 where B does, 0.5 a tie; None for an answer that does not say.

    Either the last of `[[A]]`, `[[B]]`, `[[C]]`, `[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]`, `[[B>>A]]` (as MT-Bench
    and Arena-Hard ask for), or an answer of one letter, `tie` included. What stands in <think> is not the answer.
    """
    answer = _THOUGHT.sub("", answer)
    bracketed = _BRACKETED.findall(answer.upper())
    if bracketed:
        label = bracketed[-1]
        return _WINS.get(label, 0.5 if "=" in label else float(label.startswith("A")))
    bare = _BARE.fullmatch(answer.upper().strip(_AROUND))  # two stars in a row would take quadratic time
    return _WINS[bare[1]] if bare else None
