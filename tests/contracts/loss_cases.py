"""Every loss of the library as one kind of function: `case.losses(batch, **knobs)`, [B] in, [B] out.

The tables give the cases: one for each entry and, where a keyword is a choice, one for each choice. Reward and
diffusion functions, which stand in no table, are added by hand.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import AlphaDPOState, Loss, PairLogps
from dpo_jax.losses.knobs import knobs
from tests.contracts.formulas import FORMULAS, next_state

PAIRS = 8  # one per device


class Batch(NamedTuple):
    """All that any loss reads of 8 pairs, [B] each. Single completions are the chosen ones.

    Rewards, scores and errors stand where log-probs stand: any number will do for them.
    """

    chosen: Any
    rejected: Any
    frozen_chosen: Any
    frozen_rejected: Any
    chosen_tokens: Any
    rejected_tokens: Any
    chosen_kl: Any
    rejected_kl: Any
    desirable: Any

    @property
    def policy(self) -> PairLogps:
        return PairLogps(self.chosen, self.rejected, self.chosen_tokens, self.rejected_tokens)

    @property
    def reference(self) -> PairLogps:
        return PairLogps(self.frozen_chosen, self.frozen_rejected)


@dataclass(frozen=True, eq=False)
class Case:
    """One loss with its choices made. `options` are the numbers it may be called with, at their defaults."""

    name: str
    function: Callable[..., Any]
    entry: Loss
    options: dict[str, float]
    choices: dict[str, Any]
    call: Callable[..., Any]  # call(function, batch, **keywords)

    def losses(self, batch: Batch, **keywords: Any) -> jax.Array:
        found = self.call(self.function, batch, **self.choices, **keywords)
        return found[0] if isinstance(found, tuple) else found

    def formula(self, batch: Batch, still: Batch, **keywords: Any) -> np.ndarray:
        """The losses by the formula of the paper; `still` is the batch that detached statistics are taken of."""
        name = self.function.__name__
        assert name in FORMULAS, f"{name} has no formula of its own: add one to tests/contracts/formulas.py"
        extra = {"state": AlphaDPOState(*map(float, WARM))} if name in losses.STATEFUL else {}
        extra |= {"level": LEVEL} if name in ("kto", "bco", "diffusion_kto") else {}
        return FORMULAS[name](batch, still, **extra, **self.choices, **keywords)

    def next_state(self, batch: Batch, decay: float) -> tuple[float, float, float]:
        return next_state(self.function.__name__, batch, AlphaDPOState(*map(float, WARM)), decay)

    @property
    def reads_others(self) -> bool:
        """True if other pairs of the batch matter, so that it takes `where` and `axis_name`."""
        keywords = self.function.__kwdefaults__ or {}
        return "where" in keywords and self.choices.get("nll_reduction", "token") == "token"


LEVEL = 0.3  # the KL of KTO, delta of BCO, the baseline of diffusion KTO
# Where its averages stand after a few batches; the margins in `random_batch` lie around them.
WARM = AlphaDPOState(*(np.float32(x) for x in (0.1, 0.7, 3.0)))


def _pairwise(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    return function(batch.policy, batch.reference, **keywords)


def _free(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    return function(batch.policy, **keywords)


def _token_level(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    return function(batch.policy, batch.reference, batch.chosen_kl, batch.rejected_kl, **keywords)


def _stateful(function: Callable[..., Any], batch: Batch, state: Any = WARM, **keywords: Any) -> Any:
    key = {"key": jax.random.key(0)} if function is losses.beta_dpo else {}
    return function(batch.policy, batch.reference, state, **(key | keywords))


def _unpaired(function: Callable[..., Any], batch: Batch, level: Any = LEVEL, **keywords: Any) -> Any:
    extra = () if function is losses.apo_zero_unpaired else (level,)
    return function(batch.chosen, batch.frozen_chosen, batch.desirable, *extra, **keywords)


def _two(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    return function(batch.chosen, batch.rejected, **keywords)


def _ranking(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    return function(jnp.stack([batch.chosen, batch.frozen_chosen, batch.rejected], axis=1), **keywords)


def _errors(function: Callable[..., Any], batch: Batch, **keywords: Any) -> Any:
    policy, reference = (jnp.stack([p.chosen, p.rejected], axis=1) for p in (batch.policy, batch.reference))
    return function(policy, reference, **keywords)


LOG_2 = float(np.log(2))
OTHERS = {
    "bradley_terry": (Loss(losses.bradley_terry), _two),
    "preference_score": (Loss(losses.preference_score), _two),
    "plackett_luce": (Loss(losses.plackett_luce), _ranking),
    "diffusion_dpo": (Loss(losses.diffusion_dpo, lambda data, **_: LOG_2), _errors),
    "diffusion_kto": (Loss(losses.diffusion_kto, lambda data, **_: 0.5, mismatched=True), _unpaired),
}
TABLES = [
    (losses.PAIRWISE, _pairwise),
    (losses.REFERENCE_FREE, _free),
    (losses.TOKEN_LEVEL, _token_level),
    (losses.STATEFUL, _stateful),
    (losses.UNPAIRED, _unpaired),
]


def _cases(name: str, entry: Loss, call: Callable[..., Any]) -> Iterator[Case]:
    specs = knobs(entry.function)
    numbers = {key: spec.default for key, spec in specs.items() if spec.interval and spec.default is not None}
    ways = {key: spec.choices for key, spec in specs.items() if spec.choices}
    for values in itertools.product(*ways.values()):
        choices = dict(zip(ways, values, strict=True))
        label = name + "".join(f"-{key}={value}" for key, value in choices.items())
        yield Case(label, entry.function, entry, numbers, choices, call)
    if None in itertools.chain(*ways.values()):  # a number that may be left out: `clip` of chi_po
        numbers = numbers | {key: 1.5 for key, spec in specs.items() if None in spec.choices}
        yield Case(name + "-" + ",".join(numbers), entry.function, entry, numbers, {}, call)


_ENTRIES = [(name, entry, call) for table, call in TABLES for name, entry in table.items()]
_ENTRIES += [(name, entry, call) for name, (entry, call) in OTHERS.items()]
CASES = [case for name, entry, call in _ENTRIES for case in _cases(name, entry, call)]


def named(case: Case) -> str:
    return case.name


def random_batch(seed: int, dtype: Any = np.float32, spread: float = 1.0) -> Batch:
    """Responses of 1 to 20 tokens at about 2 nats each, and a reference within a few nats of the policy."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 20, (2, PAIRS)).astype(dtype)
    frozen = -random.gamma(2.0, 1.0, (2, PAIRS)) * counts - 0.5
    moved = np.minimum(frozen + spread * random.normal(0, 1, (2, PAIRS)), -0.05 * counts)
    kl = random.gamma(1.0, 1.0, (2, PAIRS))
    desirable = random.permutation(PAIRS) % 2 == 0
    return Batch(*moved.astype(dtype), *frozen.astype(dtype), *counts, *kl.astype(dtype), desirable)


def on_device(batch: Batch) -> Batch:
    return jax.tree.map(jnp.asarray, batch)


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=named)


@functools.cache
def graded(case: Case) -> Any:
    """(batch, weights [B], options) -> losses, and the gradient of their weighted sum by chosen and rejected, [B]."""

    @jax.jit
    def run(batch: Batch, weights: Any, options: dict[str, Any]) -> Any:
        def value(chosen: Any, rejected: Any) -> Any:
            return case.losses(batch._replace(chosen=chosen, rejected=rejected), **options)

        found, back = jax.vjp(value, batch.chosen, batch.rejected)
        return found, back(weights.astype(found.dtype))

    return run


def as_arrays(options: dict[str, Any]) -> dict[str, Any]:
    return {name: np.float32(value) for name, value in options.items()}
