"""The rows of every step: epochs and their order, labelled completions mixed so that no batch lacks a label."""

from __future__ import annotations

import functools
import math

import numpy as np

from dpo_jax.errors import nearest

ORDERS = ("shuffle", "sequential")


class UnevenLabels(ValueError):
    """Labels of rows that cannot be spread so that every batch holds both."""


class StepRows:
    """The rows of each step: epoch after epoch without a gap, step s holding rows [s * B, (s+1) * B).

    B is `batch_pairs`. Rows depend on the step alone, so resuming is asking for the next step. With labels,
    `desirable`, bool [rows], every step has both.

    Raises:
        ValueError: `micro_batch_pairs` does not divide `batch_pairs`, or the order is unknown.
        UnevenLabels: a label is missing, or some step would hold one label only.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_pairs: int,
        micro_batch_pairs: int,
        seed: int,
        order: str = "shuffle",
        desirable: np.ndarray | None = None,
    ):
        if batch_pairs % micro_batch_pairs:
            raise ValueError(f"micro_batch_pairs is {micro_batch_pairs}; it must divide batch_pairs, {batch_pairs}.")
        if desirable is not None:
            require_both_labels(desirable, batch_pairs=batch_pairs)
        self.count, self.batch_pairs = count, batch_pairs
        of_epoch = functools.partial(epoch_order, count, seed=seed, order=order, desirable=desirable)
        self._order = functools.lru_cache(maxsize=2)(of_epoch)
        self._order(epoch=0)  # an unknown order is told here

    def steps(self, epochs: float) -> int:
        """Return the number of steps that pass over the data `epochs` times; the last may reach into the next epoch."""
        return math.ceil(epochs * self.count / self.batch_pairs)

    def of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a step, and the epoch of each, int64 [B]."""
        epochs, places = np.divmod(np.arange(self.batch_pairs) + step * self.batch_pairs, self.count)
        rows = np.concatenate([self._order(epoch=int(e))[places[epochs == e]] for e in np.unique(epochs)])
        return rows, epochs


def epoch_order(
    count: int, *, epoch: int, seed: int, order: str = "shuffle", desirable: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows of one epoch, int64 [count]; with labels `desirable`, bool [count], both are spread evenly."""
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}. {nearest(str(order), ORDERS)}")
    if order == "sequential":
        rows = np.arange(count)
    else:
        # Raw Philox words are the same in every numpy version, which `Generator.permutation` does not promise.
        words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
        rows = np.argsort(words, kind="stable")
    return rows if desirable is None else _mixed(rows, desirable)


def _mixed(rows: np.ndarray, desirable: np.ndarray) -> np.ndarray:
    """Each label in the order it had, and any window, also over the end of the epoch, with its share of both."""
    is_turn = np.diff(np.arange(len(rows) + 1) * desirable.sum() // len(rows)) > 0
    mixed = np.empty_like(rows)
    mixed[is_turn] = rows[desirable[rows]]
    mixed[~is_turn] = rows[~desirable[rows]]
    return mixed


def require_both_labels(desirable: np.ndarray, *, batch_pairs: int) -> None:
    """Raise UnevenLabels if some batch of the mixed order would hold one label only."""
    good = int(desirable.sum())
    bad = len(desirable) - good
    counts = f"the training data has {good} desirable and {bad} undesirable completions"
    fewer = min(good, bad)
    if not fewer:
        raise UnevenLabels(f"{counts}; a loss on labelled completions needs both. Add rows of the missing label.")
    if batch_pairs * fewer < len(desirable):
        raise UnevenLabels(
            f"batch_pairs is {batch_pairs}, and {counts}: not every batch would hold both. "
            f"Set batch_pairs to {-(-len(desirable) // fewer)} or more, or balance the data."
        )
