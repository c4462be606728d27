"""Rows and their labels: ids, which depend on them too, pairs taken apart, labels flipped, mismatched completions.

On mismatched completions KTO measures its KL: each row gets the completion of a row with another prompt. The content of
the rows decides, so neither their order in the files nor shuffling, batches or hosts change a pick.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_jax import files
from dpo_jax.data.sources.messages import key_of
from dpo_jax.errors import UserError
from dpo_jax.types import PreferencePair, Text, UnpairedCompletion

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


def row_id_of(content: Mapping[str, object], brings: Mapping[str, object]) -> str:
    """Return a digest of all that decides log-probs; margin, weight and soft label do not."""
    formats = {name: brings[name] for name in TEMPLATE_COLUMNS if brings.get(name) is not None}
    decides = {**content, **formats}
    orders = [order for value in decides.values() for order in _key_orders(value, depth=0)]
    if orders:  # templates write tools and arguments as JSON, key by key
        decides["orders of keys"] = orders
    return files.digest(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode())


def _key_orders(value: object, *, depth: int) -> Iterator[list[str]]:
    """Return the keys of each object within a message, a tool or an argument that are not in alphabetical order."""
    if isinstance(value, Mapping):
        if depth > 1 and list(value) != sorted(value):
            yield list(value)
        for _, item in sorted(value.items()):
            yield from _key_orders(item, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _key_orders(item, depth=depth + 1)


def labelled(
    prompt: Text, completion: Text, *, desirable: bool, where: str, mismatched: Text | None = None, **brings: Any
) -> UnpairedCompletion:
    """Make a labelled completion with its id."""
    row = UnpairedCompletion("", prompt, completion, desirable, None, where, **brings)
    return with_partner(row, mismatched)


def with_partner(row: UnpairedCompletion, mismatched: Text | None) -> UnpairedCompletion:
    """Add a mismatched completion to a row; its id is of both, as its log-probs in a store are."""
    content = {"prompt": row.prompt, "completion": row.completion, "label": row.desirable}
    if mismatched is not None:
        content["mismatched"] = mismatched
    return row._replace(row_id=row_id_of(content, row._asdict()), mismatched=mismatched)


def halves(pair: PreferencePair) -> tuple[UnpairedCompletion, UnpairedCompletion]:
    """Take a pair apart: chosen desirable, rejected undesirable. Margin and soft label are left behind."""
    brings = {name: pair._asdict()[name] for name in (*TEMPLATE_COLUMNS, "weight", "source")}
    return (
        labelled(pair.prompt, pair.chosen, desirable=True, where=pair.where, **brings),
        labelled(pair.prompt, pair.rejected, desirable=False, where=pair.where, **brings),
    )


def flipped_pair(pair: PreferencePair) -> PreferencePair:
    """Exchange chosen and rejected; what is said of them, as a margin, stays."""
    row_id = row_id_of({"prompt": pair.prompt, "chosen": pair.rejected, "rejected": pair.chosen}, pair._asdict())
    return pair._replace(row_id=row_id, chosen=pair.rejected, rejected=pair.chosen)


def flipped_label(row: UnpairedCompletion) -> UnpairedCompletion:
    """Give a labelled completion the other label."""
    return with_partner(row._replace(desirable=not row.desirable), row.mismatched)


def with_mismatched(rows: Sequence[UnpairedCompletion]) -> list[UnpairedCompletion]:
    """Add to each row another completion than its own, taken from a row with another prompt; ids change with it.

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
        """Start at a place that the row's id draws from those of other prompts, and jump over what does not suit."""
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
        prompts = len(set(self._prompts))
        held = f"the {size} different rows have {prompts} different prompt{'s' if prompts > 1 else ''}"
        if prompts > 1:
            held += f", and those with another prompt than {row.where} all have its completion"
        raise UserError(
            f"{row.where}: no mismatched completion. KTO measures its KL on completions of other prompts, so it needs "
            f"at least two different prompts with different completions; {held}. "
            f"Add rows with other prompts, or use a loss that needs none: bco or apo_zero_unpaired."
        )


def _next_other(values: Sequence[Text]) -> list[int]:
    """For each place around the circle the next one that holds another value; 0 where all are the same."""
    places = [0] * len(values)
    for step in reversed(range(2 * len(values))):  # the second time around knows what the first began without
        place, after = step % len(values), (step + 1) % len(values)
        places[place] = after if values[place] != values[after] else places[after]
    return places
