"""Token rows to batches of fixed shapes: which pairs a step holds, how long its rows are, and how they are filled.

Dimension key: A micro-batches, B pairs, P slot in the pair, R rows, T tokens, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from dpo_jax.data.layouts import LAYOUTS, Shape, cut_slots, fill, place_runs
from dpo_jax.data.order import StepRows
from dpo_jax.data.shapes import EXAMPLES, Packing, Part, Shapes, round_up
from dpo_jax.data.tokens import sizes_of
from dpo_jax.types import HostBatch, PairBatch, TokenRow


class Batches(StepRows):
    """Training batches by their step; which rows a step holds says `StepRows`, which also has the errors.

    `columns` holds more arrays of a batch by their names there, in the order of the rows: float32 [rows, P] what is of
    responses, `reference_logps_BP`; [rows] what is of pairs, `soft_label_B`.

    With the labels of unpaired completions, `desirable`, bool [rows], every batch holds both labels; its arrays are of
    the first response of each row, and `mismatched` is the same batch of the second, where rows have one.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        packing: Packing | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        desirable: np.ndarray | None = None,
    ):
        columns = dict(columns or {})
        if desirable is not None:
            desirable = np.asarray(desirable, bool)  # `~` of numbers is no negation
            columns["desirable_B"] = desirable
        self._rows, self._micro_batch_pairs = rows, micro_batch_pairs
        self._of_pairs = {name: values for name, values in columns.items() if values.ndim == 1}
        self._of_responses = {name: values for name, values in columns.items() if values.ndim == 2}
        super().__init__(
            len(rows),
            batch_pairs=batch_pairs,
            micro_batch_pairs=micro_batch_pairs,
            seed=seed,
            order=order,
            desirable=desirable,
        )
        slots = len(rows[0].responses)
        self._slots = [slice(None)] if desirable is None else [slice(slot, slot + 1) for slot in range(slots)]
        examples = (self._parts(self.of(step)[0]) for step in range(self.steps(1)))
        self._shapes = Shapes(rows, packing or Packing(), pairs=micro_batch_pairs, examples=examples)

    def batch(self, step: int) -> HostBatch:
        """Batch of one step; every array has a leading axis A, and `row_ids` run micro-batch after micro-batch."""
        picks, _ = self.of(step)
        arrays, *mismatched = self._arrays(picks)
        columns = {
            name: values[picks].astype(np.float32).reshape(-1, self._micro_batch_pairs)
            for name, values in self._of_pairs.items()
        }
        arrays = arrays._replace(**columns, mismatched=mismatched[0] if mismatched else None)  # type: ignore[arg-type]
        return HostBatch(arrays, tuple(self._rows[pick].row_id for pick in picks), tuple(picks.tolist()))

    def _parts(self, picks: np.ndarray) -> list[Part]:
        """Micro-batch after micro-batch; of labelled completions first all with the own one."""
        return [(part, own) for own in self._slots for part in picks.reshape(-1, self._micro_batch_pairs)]

    def _arrays(self, picks: np.ndarray) -> list[PairBatch]:
        """The batch, and of labelled completions the one of the mismatched; all of one shape."""
        parts = self._parts(picks)
        places, shape = self._shapes.of(parts)
        filled = []
        for (part, own), place in zip(parts, places, strict=True):
            extra = {name: array[part, own] for name, array in self._of_responses.items()}
            rows = cut_slots([self._rows[pick] for pick in part], own)
            filled.append(fill(self._shapes.layout, rows, place, shape=shape, pairs=len(part), extra=extra))
        each = len(filled) // len(self._slots)
        batches = (filled[start : start + each] for start in range(0, len(filled), each))
        return [jax.tree.map(lambda *arrays: np.stack(arrays), *batch) for batch in batches]


def evaluation_batches(rows: Sequence[TokenRow], *, pairs: int, packing: Packing | None = None) -> Iterator[HostBatch]:
    """Batches with every row once, longest first, `pairs` at a time; the last is filled up with pairs of weight 0.

    Ids and places are of real rows only. Longest first pads little, and what does not fit in memory fails at once.
    """
    if not rows:
        return
    sizes = sizes_of(rows)
    by_length = np.argsort(-(sizes.prompt + sizes.responses.max(axis=1)), kind="stable")
    batches = [[(by_length[start : start + pairs], slice(None))] for start in range(0, len(rows), pairs)]
    shapes = Shapes(rows, packing or Packing(), pairs=pairs, examples=batches[:: -(-len(batches) // EXAMPLES)])
    for parts in batches:
        (places,), shape = shapes.of(parts)
        picks = parts[0][0]
        chosen = [rows[pick] for pick in picks]
        arrays = fill(shapes.layout, chosen, places, shape=shape, pairs=pairs)
        yield HostBatch(arrays, tuple(row.row_id for row in chosen), tuple(picks.tolist()))


def padded(
    rows: Sequence[TokenRow],
    *,
    length: int,
    scored: int,
    pairs: int | None = None,
    row_multiple: int = 1,
    extra: Mapping[str, np.ndarray] | None = None,
) -> PairBatch:
    """Batch in the padded layout: each response in a row of its own behind its prompt, padding on the right.

    T is `length`, N `scored`, B `pairs` (those beyond the rows get weight 0), and R is B * P rounded up to
    `row_multiple` by empty rows. `extra` holds more arrays of the batch by their names, float32 [len(rows), P].
    """
    layout, pairs = LAYOUTS["padded"], len(rows) if pairs is None else pairs
    places = place_runs(layout, *layout.lengths(sizes_of(rows)), length=length)
    shape = Shape(round_up(pairs * len(rows[0].responses), row_multiple), length, scored)
    return fill(layout, rows, places, shape=shape, pairs=pairs, extra=extra)
