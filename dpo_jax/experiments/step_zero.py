"""The invariants of step 0, where policy and reference are one model.

Dimension key: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.experiments.heldout import known_loss, loss_of_rows
from dpo_jax.experiments.stores import SCORED, TOLERANCE, agree
from dpo_jax.objectives.terms import Term
from dpo_jax.reference.store import Errors, Scores

Kind = TypeVar("Kind", Scores, Errors)


def check_scores(row_ids: Sequence[str], now: Kind, stored: Kind, *, where: str, dtype: str) -> None:
    """Checks that the policy says of rows what the reference says; `where` says where that comes from.

    Raises:
        UserError: it does not; the message says what to check.
    """
    same = agree(now, stored, dtype)
    if not same.all():
        row = int(np.argmin(same))
        raise UserError(
            f"step 0: row {row_ids[row]} has {SCORED[type(now)]} {now[0][row].tolist()} under the policy, but "
            f"{stored[0][row].tolist()} in {where}. Before the first step they are the same model: check that the "
            "weights did not change since `dpo-jax reference`, or delete the store and score again."
        )


def check_losses(
    terms: Sequence[Term], now: Scores, stored: Scores, desirable: np.ndarray | None, *, where: str, dtype: str
) -> None:
    """Checks that each loss of these rows has its known value; arguments as in `check_scores`.

    Raises:
        UserError: one has not.
    """
    absolute, relative = TOLERANCE[Scores][dtype]
    for term in terms:
        if term.entry.at_reference is None or term.entry.needs_distribution:  # those read what is not scored here
            continue
        plain = term._replace(weight=1.0, ld_alpha=None, wpo=False)
        value = float(jnp.mean(loss_of_rows([plain], now, stored, desirable, None)))
        known = float(jnp.mean(known_loss(term, now, desirable)))
        if not abs(value - known) <= absolute + relative * abs(known):
            raise UserError(
                f"step 0: the {term.name} loss is {value:.6f}; with policy and reference equal it is {known:.6f}. "
                f"Check loss.options and {where}."
            )
