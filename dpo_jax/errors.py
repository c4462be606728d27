"""The user's mistakes: what happened, where, what is allowed. The command line prints them and exits with 2."""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from dpo_jax.masking import mask

Value = TypeVar("Value")


class UserError(Exception):
    """A mistake in a configuration, in data or on disk that the user can mend; shown without a traceback."""

    source: int | None = None
    """Place of the data source whose mistake it is, in the list of sources that was given."""


_LONGEST = 600  # characters
_LOOKED_THROUGH = 1 << 16
"""Characters of a text in which secrets are looked for; of the others none is shown."""
_SPACES = "\u00a0\u2009\u202f"  # that part a number from its unit

LONGEST_ROW = 1 << 26
"""Bytes; no row is longer, and a small file may be packed from any number of them."""


def shown(text: str, longest: int = _LONGEST) -> str:
    """Text of others as it may be shown: no secrets, no longer than can be read, nothing that a terminal obeys."""
    return printable(_ends(_without_secrets(text), longest))


def told(what: object, longest: int = _LONGEST) -> str:
    """The beginning of what another program or an exception says, on one line, as it may be shown."""
    try:
        text = str(what)
    except Exception as error:  # it is somebody else's exception
        text = f"{type(what).__name__}, whose text fails with {type(error).__name__}"
    return printable(" ".join(_without_secrets(text).split())[:longest])


def _without_secrets(text: str) -> str:
    return mask(_ends(text, _LOOKED_THROUGH))  # before it is cut: half a secret is not known as one


def _ends(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


class Advised(UserError):
    """A mistake with advice that names settings in braces, {template}; `in_section` says where they stand."""

    def __init__(self, says: str, advice: str, *, section: str = ""):
        super().__init__(f"{says} {_named(advice, section)}")
        self._advised = says, advice

    def in_section(self, section: str) -> Advised:
        """Return the same error with each setting named as `section.setting`."""
        return Advised(*self._advised, section=f"{section}.")


def _named(advice: str, section: str) -> str:
    return re.sub(r"\{(\w+)\}", rf"{section}\1", advice)


def printable(text: str, *, lines: bool = False) -> str:
    """Return the text with nothing in it that a terminal or a page obeys: such letters are shown by their number.

    With `lines` it may have several, of which those behind the first are indented: none can pretend to be another's.
    """
    if lines:
        return "\n  ".join(map(printable, text.split("\n")))
    return "".join(letter if letter.isprintable() or letter in _SPACES else ascii(letter)[1:-1] for letter in text)


class BadRow(UserError):
    """A row that cannot be used. `reason` is short and the same for all rows of its kind: skipped rows count by it.

    `advice` names settings in braces, {score}; `in_section` says which section of a configuration they stand in.
    """

    def __init__(self, where: str, reason: str, detail: str, advice: str = "", *, section: str = ""):
        named = _named(advice and f" {advice}", section)
        self.says = f"{where}: {shown(detail)}{named}"  # it may quote the row
        super().__init__(f"{self.says} Mend the row, or set {section}on_error: skip to leave such rows out, counted.")
        self.reason, self._parts = reason, (where, reason, detail, advice)

    def in_section(self, section: str) -> BadRow:
        """Return the same error with each setting named as `section.setting`."""
        return BadRow(*self._parts, section=f"{section}.")


class Skipped(Counter[str]):
    """How many rows were left out for which reason."""

    _first = ""  # its words; the error itself would keep the generator that raised it, with its threads, alive

    def count_row(self, row: BadRow) -> None:
        """Count a row that is left out."""
        self[row.reason] += 1
        self._first = self._first or row.says

    def in_words(self) -> str:
        """The first of them, as the end of a message."""
        return f" The first: {self._first}" if self._first else ""


class Finding(NamedTuple):
    """One thing that was looked at: `good`, `warn`, `bad`, or `left`, which a killed process has left behind."""

    state: str
    what: str
    says: str


_SIZED = "sized by "


@contextlib.contextmanager
def sized_by(setting: str) -> Iterator[None]:
    """Note on an error from inside which setting decides the size of a batch; the innermost one counts."""
    try:
        yield
    except Exception as error:
        if size_setting(error) is None:
            error.add_note(_SIZED + setting)
        raise


def size_setting(error: BaseException) -> str | None:
    """The setting that `sized_by` noted; None where none did."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(_SIZED) for note in notes if note.startswith(_SIZED)), None)


def each_once(pairs: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """Make a JSON object of its keys and values, as a hook of `json.loads`, which would let the last of a key win.

    Raises:
        ValueError: a key is given twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {reprlib.repr(twice)} is given twice")
    return made


LARGEST = 3.4e38
"""No number may be larger: a device holds it as float32."""


def fits_float32(number: object) -> bool:
    """True for a number that is finite, and stays so as float32; NaN is none."""
    try:
        return abs(float(number)) <= LARGEST  # type: ignore[arg-type]
    except (OverflowError, ValueError):  # a whole number of 400 digits, or a NaN of `decimal` that says so
        return False


_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: `Path` robs an address of the other


def check_local(name: str) -> str:
    """Return the name of a file or folder of this machine.

    Raises:
        ValueError: it is an address, gs://bucket or http://host.
    """
    if address := _ADDRESS.match(name):
        raise ValueError(
            f"{name!r} is an address, and {address[1]}:// is not understood here. Allowed: a file or folder of this "
            "machine; copy or mount what lies elsewhere, and name its folder."
        )
    return name


def ending(code: int) -> str:
    """Say how a child process ended: by its exit code or, below 0, by a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    killed = ", as the system does where memory is short" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{killed}"


def no_embedding(token: int, name: object, tokens: int, known: int) -> str:
    """Say that a token, one of `tokens` of a tokenizer, is beyond the `known` ones of the model."""
    return (
        f"token {token} ({name!r}) has no embedding: the tokenizer has {tokens} tokens, the model embeddings for "
        f"{known} (vocab_size of its config.json). Use the tokenizer of these weights, or enlarge the model first, by "
        "resize_token_embeddings of transformers for example."
    )


def nearest(name: str, allowed: Iterable[str]) -> str:
    """End a message about an unknown name: the nearest known one, if any is near, and all that are allowed."""
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(known)}."
