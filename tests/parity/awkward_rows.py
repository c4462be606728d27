"""Preference rows that are awkward to tokenise, and the tokenizer that adds a BOS by itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import SPECIAL

_BOS, _EOS = SPECIAL[1], SPECIAL[2]

ROWS: tuple[tuple[str, str, str], ...] = (
    ("the lamp", " was warm", " was cold"),
    ("the lamp", " was warm", " was cold"),  # the row before, again
    ("the lamp", " was cold", " was warm"),  # and the other way round
    ("the room was ", "quiet", "cold"),  # the prompt's last space joins the response
    ("the room was ", "quiet", "\tloud"),  # it joins the chosen response only
    ("the room was ", "\nloud", "quiet"),  # it joins the rejected response only
    ("the la", "mp was warm", "mb was cold"),  # a word is split
    ("a quiet fil", "m", "l"),
    ("What is 12 + 3", "0?\n42", "1?\n43"),  # a number is split
    # Special tokens written out as text. Not at the start: where the tokenizer adds BOS too, TRL begins with two.
    ("Now " + _BOS + "user\nWrite a line." + _EOS + "\n", "It rained.", "No."),
    ("Write a line.", " It rained all day." + _EOS, " No."),  # one response ends with EOS already
    ("Grüße, 世界! ", "🎬👩‍👩‍👧 é́", "naïve — “quoted”"),
    ("\r\n tabs\tand \u200bzero width ", "fine\u2028yes\r\n", " \u00a0no"),
    ("the plot is thin", ", the jokes are old and the ending is cold" * 6, " a warm heart"),  # chosen is cut
    ("the plot is thin", " a clever ending", ", the jokes are old and the ending is cold" * 6),  # rejected is cut
    ("xyz" * 15, " a clever ending, a warm heart" * 5, " a thin plot, cold jokes, qq zz" * 5),  # both are cut
    ("It", " rained all day.", " was 42, of course!"),
    ("a", "b", "bb"),
    ("the weather\n\n\n", "\n\nwarm", "   warm"),
    ("Write a short line about the weather.", " It rained", " It rained all day."),  # one is the other's start
)


def write_rows(path: Path) -> Path:
    """Writes the rows as JSONL."""
    pairs = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS]
    path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf8")
    return path


def add_bos(folder: Path) -> None:
    """Lets the tokenizer of a folder begin every text with BOS, as Llama's does."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, tokenizer.token_to_id(_BOS))]
    )
    tokenizer.save(path)
