"""In which order an epoch visits its rows, and how labelled completions are mixed so that no batch lacks a label."""

from __future__ import annotations

import numpy as np

from dpo_jax.errors import UserError, nearest

ORDERS = ("shuffle", "sequential")


def epoch_order(
    count: int, *, epoch: int, seed: int, order: str = "shuffle", desirable: np.ndarray | None = None
) -> np.ndarray:
    """The rows of one epoch, int64 [count]; with labels `desirable`, bool [count], both are spread evenly."""
    if order not in ORDERS:
        raise UserError(f"data.order is {order!r}. {nearest(str(order), ORDERS)}")
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
    """Raises UserError if some batch of the mixed order would hold one label only."""
    good = int(desirable.sum())
    bad = len(desirable) - good
    counts = f"the training data has {good} desirable and {bad} undesirable completions"
    fewer = min(good, bad)
    if not fewer:
        raise UserError(f"{counts}; a loss on labelled completions needs both. Add rows of the missing label.")
    if batch_pairs * fewer < len(desirable):
        raise UserError(
            f"train.batch_pairs is {batch_pairs}, and {counts}: not every batch would hold both. "
            f"Set train.batch_pairs to {-(-len(desirable) // fewer)} or more, or balance the data."
        )
