"""The trainer calls every loss of the tables with what it needs: its terms equal the formulas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.experiments.losses import TRAINED, read_terms, soft_labelled
from dpo_jax.losses import STATEFUL, UNPAIRED, AlphaDPOState, LossInputs, PairLogps, RunningMean
from dpo_jax.objectives.terms import TermInputs
from tests.contracts.formulas import FORMULAS
from tests.contracts.loss_cases import LEVEL, WARM, Batch, on_device, random_batch

WARM_64 = AlphaDPOState(*map(np.float64, WARM))
EARLIER = RunningMean(np.float64(0.4), np.float64(48.0))


def inputs(batch: Batch, *, where: Any = None, **more: Any) -> TermInputs:
    b = on_device(batch)
    read = LossInputs(
        policy=b.policy,
        reference=b.reference,
        token_kl_BP=jnp.stack([b.chosen_kl, b.rejected_kl], axis=1),
        desirable_B=b.desirable,
        mismatched_kl=jnp.asarray(LEVEL),
        where=where,
    )
    return TermInputs(read, **more)


def evaluated(name: str, given: TermInputs, **config: Any) -> tuple[Any, dict[str, Any], Any]:
    (term,) = read_terms([LossConfig(name=name, **config)], {})
    memory = term.memory()
    if memory:
        memory["state"] = WARM_64 if name in STATEFUL else EARLIER
    return (*term.evaluate(given, term.knobs(0), memory, jax.random.key(0)), memory)


def told(name: str, b: Batch, **options: Any) -> np.ndarray:
    """The formula with the trainer's defaults: alpha-DPO corrected, BCO's level the mean of all rewards so far."""
    if name in STATEFUL:
        options["state"] = AlphaDPOState(*map(float, WARM))
    if name == "alpha_dpo":
        options["bias_correction"] = True
    if name == "kto":
        options["level"] = LEVEL
    if name in ("bco", "bco_pair"):
        options["level" if name == "bco" else "delta"] = level(name, b).mean
    return FORMULAS[name](b, b, **options)


def level(name: str, b: Batch) -> RunningMean:
    ratios = [b.chosen - b.frozen_chosen] + [b.rejected - b.frozen_rejected] * (name == "bco_pair")
    rewards = 0.1 * np.concatenate(ratios)
    return RunningMean((0.4 * 48 + rewards.sum()) / (48 + rewards.size), 48 + rewards.size)


@pytest.mark.parametrize("name", TRAINED)
def test_a_term_is_its_formula_and_remembers_what_the_loss_does(name: str, x64):
    batch = random_batch(40, np.float64)
    losses_B, memory, before = evaluated(name, inputs(batch))
    np.testing.assert_allclose(losses_B, told(name, batch), rtol=1e-8)
    assert memory.keys() == before.keys()
    if name in ("bco", "bco_pair"):
        np.testing.assert_allclose(memory["state"], level(name, batch), rtol=1e-12)
    if name in STATEFUL:
        assert memory["state"].count == WARM.count + 1


@pytest.mark.parametrize("name", sorted(set(TRAINED) - set(UNPAIRED)))
def test_weights_multiply_and_soft_labels_are_smoothing(name: str, x64):
    batch, weights = random_batch(41, np.float64), np.linspace(0.5, 2.0, 8)
    smoothing = np.linspace(0.1, 0.4, 8)
    more = {"wpo_weight_B": jnp.asarray(weights), "loss_weight_B": jnp.asarray(weights[::-1])}
    more |= {"soft_label_B": jnp.asarray(1 - smoothing)} if name in soft_labelled() else {}
    expected = told(name, batch, **({"label_smoothing": smoothing} if name in soft_labelled() else {}))
    losses_B, _, _ = evaluated(name, inputs(batch, **more))
    np.testing.assert_allclose(losses_B, weights[::-1] * expected, rtol=1e-8)
    if name != "sft":
        losses_B, _, _ = evaluated(name, inputs(batch, **more), wpo=True)
        np.testing.assert_allclose(losses_B, weights[::-1] * weights * expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_what_stands_behind_the_heads_counts_by_alpha(name: str, x64):
    batch, share = random_batch(42, np.float64), np.linspace(0.2, 0.9, 8)
    sums = {field: np.asarray(getattr(batch, field)) for field in Batch._fields[:4]}
    heads = {field: share * value for field, value in sums.items()}
    as_pair = lambda a, b: PairLogps(jnp.asarray(heads[a]), jnp.asarray(heads[b]))  # noqa: E731
    more = {"policy_heads": as_pair("chosen", "rejected"), "reference_heads": as_pair(*Batch._fields[2:4])}
    losses_B, _, _ = evaluated(name, inputs(batch, **more), ld_alpha=0.3)
    reduced = batch._replace(**{field: heads[field] + 0.3 * (sums[field] - heads[field]) for field in sums})
    np.testing.assert_allclose(losses_B, told(name, reduced), rtol=1e-8)


@pytest.mark.parametrize("name", [name for name, entry in TRAINED.items() if entry.batch_global or entry.state])
def test_pairs_that_are_not_real_are_left_out(name: str, x64):
    batch, real = random_batch(43, np.float64), np.arange(8) < 6
    alone = Batch(*(array[real] for array in batch))
    junk = Batch(*(np.where(real, array, 1e3) for array in batch[:-1]), batch.desirable)
    if name == "beta_dpo":  # lots fall otherwise in another batch
        _, memory, _ = evaluated(name, inputs(junk, where=jnp.asarray(real)))
        _, expected, _ = evaluated(name, inputs(alone))
        return np.testing.assert_allclose(memory["state"], expected["state"], rtol=1e-8)
    losses_B, _, _ = evaluated(name, inputs(junk, where=jnp.asarray(real)))
    np.testing.assert_allclose(losses_B[real], told(name, alone), rtol=1e-8)
