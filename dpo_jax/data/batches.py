"""Token rows to batches of fixed shapes: which pairs a step holds, how long its rows are, and how they are filled.

Dimension key: A micro-batches, B pairs, P slot in the pair, R rows, T tokens, N scored tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax.data.layouts import LAYOUTS, Shape, cut_slots, fill, place_runs
from dpo_jax.data.order import epoch_order, require_both_labels
from dpo_jax.data.shapes import EXAMPLES, Part, Shapes, round_up
from dpo_jax.data.tokens import sizes_of
from dpo_jax.errors import UserError
from dpo_jax.types import HostBatch, PairBatch, TokenRow


class Batches:
    """The training batches: epoch after epoch without a gap, step s holding pairs [s * B, (s+1) * B).

    B is `batch_pairs`. Every batch depends on its step alone, so resuming is asking for the next step.
    `reference` holds more arrays of a batch by their names there, float32 [rows, P] in the order of the rows: the
    reference's log-probs, `reference_logps_BP`; `columns` likewise what pairs bring, [rows] each: `soft_label_B`.

    With the labels of unpaired completions, `desirable`, bool [rows], every batch holds both labels; its arrays are of
    the first response of each row, and `mismatched` is the same batch of the second, where rows have one.

    `unpack` names the layouts whose `sequences` are wanted; None: nobody asks for them.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        row_multiple: int = 1,
        layout: str = "padded",
        unpack: Collection[str] | None = None,
        reference: Mapping[str, np.ndarray] | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        desirable: np.ndarray | None = None,
    ):
        if batch_pairs % micro_batch_pairs:
            raise UserError(
                f"train.micro_batch_pairs is {micro_batch_pairs}; it must divide train.batch_pairs, {batch_pairs}."
            )
        if desirable is not None:
            desirable = np.asarray(desirable, bool)  # `~` of numbers is no negation
            require_both_labels(desirable, batch_pairs=batch_pairs)
        self._rows, self._reference, self._columns, self._desirable = rows, reference or {}, columns or {}, desirable
        self._batch_pairs, self._micro_batch_pairs = batch_pairs, micro_batch_pairs
        of_epoch = functools.partial(epoch_order, len(rows), seed=seed, order=order, desirable=desirable)
        self._order = functools.lru_cache(maxsize=2)(of_epoch)
        self._order(epoch=0)  # an unknown order is told here
        slots = len(rows[0].responses)
        self._slots = [slice(None)] if desirable is None else [slice(slot, slot + 1) for slot in range(slots)]
        examples = (self._parts(self._picks(step)) for step in range(self.steps(1)))
        self._shapes = Shapes(
            rows, layout, pairs=micro_batch_pairs, row_multiple=row_multiple, unpack=unpack, examples=examples
        )

    def steps(self, epochs: float) -> int:
        """How many steps pass over the data `epochs` times; the last may reach into the next epoch."""
        return math.ceil(epochs * len(self._rows) / self._batch_pairs)

    def batch(self, step: int) -> HostBatch:
        """The batch of one step; every array has a leading axis A, and `row_ids` run micro-batch after micro-batch."""
        picks = self._picks(step)
        row_ids = tuple(self._rows[pick].row_id for pick in picks)
        arrays, *mismatched = self._arrays(picks)
        columns: dict[str, Any] = {
            name: values[picks].astype(np.float32).reshape(-1, self._micro_batch_pairs)
            for name, values in self._columns.items()
        }
        if self._desirable is not None:
            columns["desirable_B"] = self._desirable[picks].astype(np.float32).reshape(-1, self._micro_batch_pairs)
        return HostBatch(arrays._replace(**columns, mismatched=mismatched[0] if mismatched else None), row_ids)

    def _parts(self, picks: np.ndarray) -> list[Part]:
        """Micro-batch after micro-batch; of labelled completions first all with the own one."""
        return [(part, own) for own in self._slots for part in picks.reshape(-1, self._micro_batch_pairs)]

    def _arrays(self, picks: np.ndarray) -> list[PairBatch]:
        """The batch, and of labelled completions the one of the mismatched; all of one shape."""
        parts = self._parts(picks)
        places, shape = self._shapes.of(parts)
        filled = []
        for (part, own), place in zip(parts, places, strict=True):
            extra = {name: array[part, own] for name, array in self._reference.items()}
            rows = cut_slots([self._rows[pick] for pick in part], own)
            filled.append(fill(self._shapes.layout, rows, place, shape=shape, pairs=len(part), extra=extra))
        each = len(filled) // len(self._slots)
        return [_stacked(filled[start : start + each]) for start in range(0, len(filled), each)]

    def _picks(self, step: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(self._batch_pairs) + step * self._batch_pairs, len(self._rows))
        return np.concatenate([self._order(epoch=int(e))[places[epochs == e]] for e in np.unique(epochs)])


def evaluation_batches(
    rows: Sequence[TokenRow],
    *,
    pairs: int,
    row_multiple: int = 1,
    layout: str = "padded",
    unpack: Collection[str] | None = None,
) -> Iterator[HostBatch]:
    """Every row once, longest first, `pairs` at a time; the last batch is filled up with pairs of weight 0.

    `row_ids` holds real rows only. Longest first pads little, and what does not fit in memory fails at once. `unpack`
    is that of `Batches`.
    """
    if not rows:
        return
    sizes = sizes_of(rows)
    by_length = np.argsort(-(sizes.prompt + sizes.responses.max(axis=1)), kind="stable")
    batches = [[(by_length[start : start + pairs], slice(None))] for start in range(0, len(rows), pairs)]
    examples = batches[:: -(-len(batches) // EXAMPLES)]
    shapes = Shapes(rows, layout, pairs=pairs, row_multiple=row_multiple, unpack=unpack, examples=examples)
    for parts in batches:
        (places,), shape = shapes.of(parts)
        chosen = [rows[pick] for pick in parts[0][0]]
        arrays = fill(shapes.layout, chosen, places, shape=shape, pairs=pairs)
        yield HostBatch(arrays, tuple(row.row_id for row in chosen))


def _stacked(batches: Sequence[PairBatch]) -> PairBatch:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def padded(
    rows: Sequence[TokenRow],
    *,
    length: int,
    scored: int,
    pairs: int | None = None,
    row_multiple: int = 1,
    extra: Mapping[str, np.ndarray] | None = None,
) -> PairBatch:
    """A batch in the padded layout: each response in a row of its own behind its prompt, padding on the right.

    T is `length`, N `scored`, B `pairs` (those beyond the rows get weight 0), and R is B * P rounded up to
    `row_multiple` by empty rows. `extra` holds more arrays of the batch by their names, float32 [len(rows), P].
    """
    layout, pairs = LAYOUTS["padded"], len(rows) if pairs is None else pairs
    places = place_runs(layout, *layout.lengths(sizes_of(rows)), length=length)
    shape = Shape(round_up(pairs * len(rows[0].responses), row_multiple), length, scored)
    return fill(layout, rows, places, shape=shape, pairs=pairs, extra=extra)
