"""Mismatched completions, on which KTO measures its KL: each row gets the completion of a row with another prompt.

The content of the rows decides, so neither their order in the files nor shuffling, batches or hosts change a pick.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from dpo_jax.data.sources.labels import with_partner
from dpo_jax.data.sources.messages import key_of
from dpo_jax.errors import UserError
from dpo_jax.types import Text, UnpairedCompletion


def with_mismatched(rows: Sequence[UnpairedCompletion]) -> list[UnpairedCompletion]:
    """The rows, each with another completion than its own, taken from a row with another prompt; ids change with it.

    Raises:
        UserError: there is none for some row, as where all prompts are the same.
    """
    pool = _Pool(rows)
    return [with_partner(row, pool.pick(row)) for row in rows]


class _Pool:
    """The distinct rows around a circle, by prompt and then by id: those of one prompt are neighbours."""

    def __init__(self, rows: Sequence[UnpairedCompletion]):
        circle = sorted({row.row_id: row for row in rows}.values(), key=lambda row: (key_of(row.prompt), row.row_id))
        self._prompts = [key_of(row.prompt) for row in circle]
        self._completions = [row.completion for row in circle]
        self._next_other = _next_other(self._completions)

    def pick(self, row: UnpairedCompletion) -> Text:
        """Starts at a place that the row's id draws from those of other prompts, and jumps over what does not suit."""
        size = len(self._prompts)
        prompt = key_of(row.prompt)
        first, end = bisect_left(self._prompts, prompt), bisect_right(self._prompts, prompt)
        others = size - (end - first)
        place = (end + int(row.row_id, 16) % others) % size if others else first
        # At most three jumps, to another text, out of the own prompt's rows, to another text: were that among the own
        # rows again, all others would have been passed.
        for _ in range(4):
            if first <= place < end:
                place = end % size
            elif self._completions[place] == row.completion:
                place = self._next_other[place]
            else:
                return self._completions[place]
        raise UserError(_nothing_found(row, size, len(set(self._prompts))))


def _next_other(values: Sequence[Text]) -> list[int]:
    """For each place around the circle the next one that holds another value; 0 where all are the same."""
    places = [0] * len(values)
    for step in reversed(range(2 * len(values))):  # the second time around knows what the first began without
        place, after = step % len(values), (step + 1) % len(values)
        places[place] = after if values[place] != values[after] else places[after]
    return places


def _nothing_found(row: UnpairedCompletion, rows: int, prompts: int) -> str:
    found = f"the {rows} different rows have {prompts} different prompt{'s' if prompts > 1 else ''}"
    if prompts > 1:
        found += f", and those with another prompt than {row.where} all have its completion"
    return (
        f"{row.where}: no mismatched completion. KTO measures its KL on completions of other prompts, so it needs at "
        f"least two different prompts with different completions; {found}. "
        f"Add rows with other prompts, or use a loss that needs none: bco or apo_zero_unpaired."
    )
