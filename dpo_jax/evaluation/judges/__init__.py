"""Judges of responses behind one interface: whoever uses one asks for `verdicts` and need not know what it is."""

from dpo_jax.evaluation.judges.interface import Comparing, Judge, Orders, Scoring

__all__ = ["Comparing", "Judge", "Orders", "Scoring"]
