"""The losses of an objective: each with its weight and its hyperparameters, evaluated on what the models give.

Dimension key: B pairs, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.losses import Loss, LossInputs, PairLogps
from dpo_jax.losses.token_level import weigh_tails
from dpo_jax.types import Knobs, LossState


class Ramp(NamedTuple):
    """An option that moves in a straight line: `{start: 0.0, end: 0.2, steps: 100}`, and stays at its end."""

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The value in a step, counted from 0."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


class KlBudget(NamedTuple):
    """`alpha: auto`: alpha follows the policy's KL, measured on its own samples, to bring it to a budget."""

    kl_budget: float  # nats per response
    kl_every: int = 50  # steps between measurements
    kl_samples: int = 64  # responses sampled at each
    kl_max_new_tokens: int = 64
    kl_gain: float = 4.0  # alpha for a KL that is off by the whole budget
    alpha_start: float = 0.0
    alpha_low: float = -2.0
    alpha_high: float = 0.5


class Term(NamedTuple):
    """One loss of the objective."""

    name: str
    entry: Loss
    weight: float
    static: Mapping[str, object]  # options that are not numbers: the step is compiled for them
    numbers: Mapping[str, float | Ramp]  # options that are: traced
    budget: KlBudget | None = None
    ld_alpha: float | None = None  # LD-DPO: weight of the tokens beyond the length of the shorter response
    wpo: bool = False  # pairs are weighed by how much they look like the policy's own

    def knobs(self, step: int) -> dict[str, float]:
        """The traced numbers of one step, counted from 0."""
        return {name: value.at(step) if isinstance(value, Ramp) else value for name, value in self.numbers.items()}

    @property
    def options(self) -> Knobs:
        """All options as they are before the first step."""
        started = {"alpha": self.budget.alpha_start} if self.budget else {}
        return {**self.static, **self.knobs(0), **started}

    @property
    def on_pairs(self) -> bool:
        """True for a loss that compares the responses of a pair."""
        return not (self.entry.reads_labels or self.entry.likelihood)

    @property
    def reads_soft_labels(self) -> bool:
        """True where pairs may have soft labels: the loss reads them, or asks of no pair which response is better."""
        return self.entry.likelihood or self.entry.reads_soft_labels

    def memory(self) -> dict[str, LossState]:
        """Loss state before the first batch."""
        remembered = {"state": self.entry.state()} if self.entry.state else {}
        if self.budget:
            remembered |= {"alpha": np.float32(self.budget.alpha_start), "kl": np.float32(0.0)}
        return remembered

    def evaluate(
        self, inputs: TermInputs, knobs: Knobs, memory: dict[str, LossState], key: jax.Array
    ) -> tuple[jax.Array, dict[str, LossState]]:
        """Losses [B] with the token and pair weights that the term asks for, and the state of the loss after them.

        `knobs` are its traced numbers.
        """
        read = inputs.read
        if self.ld_alpha is not None:
            read = read._replace(
                policy=_shortened(read.policy, inputs.policy_heads, self.ld_alpha),
                reference=read.reference and _shortened(read.reference, inputs.reference_heads, self.ld_alpha),
            )
        options = {**self.static, **knobs}
        if inputs.soft_label_B is not None and self.entry.reads_soft_labels:
            options["label_smoothing"] = 1.0 - inputs.soft_label_B
        if self.budget:
            options["alpha"] = memory["alpha"]
        losses_B, state = self.entry.call(read, state=memory.get("state"), key=key, **options)
        for weight_B in (inputs.wpo_weight_B if self.wpo else None, inputs.loss_weight_B):
            losses_B = losses_B if weight_B is None else losses_B * weight_B
        return losses_B, memory if state is None else {**memory, "state": state}


class TermInputs(NamedTuple):
    """The inputs of the losses of an objective, and the weights that its terms put on them."""

    read: LossInputs
    policy_heads: PairLogps | None = None  # over as many tokens as the shorter response has
    reference_heads: PairLogps | None = None
    wpo_weight_B: jax.Array | None = None
    loss_weight_B: jax.Array | None = None
    soft_label_B: jax.Array | None = None


def needs_reference(terms: Sequence[Term]) -> bool:
    """True if any term compares the policy with a reference."""
    return any(term.entry.needs_reference for term in terms)


def as_pair(logps_BP: jax.Array, tokens_BP: jax.Array) -> PairLogps:
    """The first column as chosen and the last as rejected, with their token counts."""
    return PairLogps(logps_BP[:, 0], logps_BP[:, -1], tokens_BP[:, 0], tokens_BP[:, -1])


def _shortened(pairs: PairLogps, heads: PairLogps | None, alpha: float) -> PairLogps:
    """LD-DPO's log-probs, from those of whole responses and of their heads."""
    if heads is None:
        return pairs
    chosen, rejected = (weigh_tails(*of, alpha) for of in zip(pairs[:2], heads[:2], strict=True))
    return pairs._replace(chosen=chosen, rejected=rejected)
