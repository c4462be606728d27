"""Token rows on disk, mapped into memory: a row costs a few dozen bytes of it, however long it is.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, NamedTuple, overload

import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.types import TokenRow

_CHUNK_ROWS = 4096
_ID_BYTES = 16


class Sizes(NamedTuple):
    """Token counts of rows, int: of prompts, [n], of responses and of what is scored of those, [n, P]."""

    prompt: np.ndarray
    responses: np.ndarray
    scored: np.ndarray

    def of(self, picks: np.ndarray, slots: slice = slice(None)) -> Sizes:
        """Return those of some rows and slots."""
        return Sizes(self.prompt[picks], self.responses[picks, slots], self.scored[picks, slots])


class TokenTable(Sequence[TokenRow]):
    """Rows in the order in which they were written, or a selection of them; all have the same number of responses."""

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, row_ids: np.ndarray, sizes: Sizes):
        self._tokens, self._starts = tokens, starts
        self.row_ids, self.sizes = row_ids, sizes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> TokenTable: ...
    def __getitem__(self, index: int | slice) -> TokenRow | TokenTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        prompt_tokens, responses, scored = (sizes[index] for sizes in self.sizes)
        starts = self._starts[index] + np.cumsum([0, prompt_tokens, *responses])
        prompt, *parts = (self._tokens[start:end] for start, end in pairwise(starts))
        row_id = self.row_ids[index].tobytes().hex()
        if np.array_equal(scored, responses):
            return TokenRow(row_id, prompt, tuple(parts))
        masks = tuple(tokens >= 0 for tokens in parts)
        return TokenRow(row_id, prompt, tuple(np.where(tokens < 0, ~tokens, tokens) for tokens in parts), masks)

    def take(self, picks: np.ndarray) -> TokenTable:
        """Return some of the rows, in this order; no token is read."""
        return TokenTable(self._tokens, self._starts[picks], self.row_ids[picks], self.sizes.of(picks))


def write_table(rows: Iterable[TokenRow], folder: Path) -> TokenTable:
    """Write rows as they come to a file in `folder` that has no name: it vanishes with the table, or the process.

    Raises:
        UserError: the folder cannot be written.
    """
    ids, lengths, scored = bytearray(), [], []
    rows = iter(rows)
    try:
        with _new_file(folder) as file:
            while chunk := list(islice(rows, _CHUNK_ROWS)):
                ids += b"".join(bytes.fromhex(row.row_id) for row in chunk)
                file.write(b"".join(tokens.tobytes() for row in chunk for tokens in _marked(row)))
                lengths.append(np.array([[len(row.prompt), *map(len, row.responses)] for row in chunk], np.int32))
                scored.append(np.array([_scored(row) for row in chunk], np.int32))
            file.flush()
            if not lengths:
                nothing = np.zeros((0, 0), np.int32)
                return TokenTable(
                    nothing, nothing, np.zeros((0, _ID_BYTES), np.uint8), Sizes(nothing, nothing, nothing)
                )
            tokens = np.memmap(file, np.int32, mode="r")
        with contextlib.suppress(OSError):  # others may be writing there
            folder.rmdir()
    except OSError as error:
        raise UserError(f"{folder}: the rows cannot be written there: {error.strerror}.") from None
    lengths_nP = np.concatenate(lengths)
    ends = np.cumsum(lengths_nP.sum(axis=1, dtype=np.int64))
    sizes = Sizes(lengths_nP[:, 0], lengths_nP[:, 1:], np.concatenate(scored))
    row_ids = np.frombuffer(bytes(ids), np.uint8).reshape(-1, _ID_BYTES)
    return TokenTable(tokens, np.concatenate([[0], ends[:-1]]), row_ids, sizes)


def _new_file(folder: Path) -> IO[bytes]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process of the run was done, and took the folder away
            return tempfile.TemporaryFile(dir=folder)


def _marked(row: TokenRow) -> Iterator[np.ndarray]:
    """The tokens of a row; those that are not scored are negative, as ~token."""
    yield np.asarray(row.prompt, np.int32)
    for slot, response in enumerate(row.responses):
        tokens = np.asarray(response, np.int32)
        yield tokens if row.masks is None else np.where(row.masks[slot], tokens, ~tokens)


def _scored(row: TokenRow) -> list[int]:
    return [int(mask.sum()) for mask in row.masks] if row.masks else [len(response) for response in row.responses]


def sizes_of(rows: Sequence[TokenRow]) -> Sizes:
    """Return the token counts of rows."""
    if isinstance(rows, TokenTable):
        return rows.sizes
    responses = np.array([[len(response) for response in row.responses] for row in rows])
    return Sizes(np.array([len(row.prompt) for row in rows]), responses, np.array([_scored(row) for row in rows]))


def row_ids_of(rows: Sequence[TokenRow]) -> np.ndarray | list[str]:
    """Return the ids of rows: of a table uint8 [n, 16], else as texts."""
    return rows.row_ids if isinstance(rows, TokenTable) else [row.row_id for row in rows]


def take(rows: Sequence[TokenRow], picks: np.ndarray) -> Sequence[TokenRow]:
    """Return some of the rows, in this order."""
    return rows.take(picks) if isinstance(rows, TokenTable) else [rows[pick] for pick in picks]
