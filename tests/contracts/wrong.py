"""Wrong implementations: what goes wrong with losses, done to every entry of the tables.

`wrong_losses(case)` gives each as a case of its own, with the test of the battery that has to reject it. Where the
mistake cannot be made, `HARMLESS` says so and why, and the same test has to accept it: a new loss gets its mistakes
without a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses
from dpo_jax.losses import AlphaDPOState
from dpo_jax.losses.knobs import knobs
from tests.contracts import test_losses as battery
from tests.contracts import test_losses_calls as calls
from tests.contracts import test_losses_sharded as sharded
from tests.contracts.loss_cases import Batch, Case

Call = Callable[..., Any]


class Wrong(NamedTuple):
    name: str
    case: Case
    check: Callable[[Case], None]
    harmless: str  # why this loss cannot be wrong in this way; empty where it can


def reading(change: Callable[[Batch], Batch]) -> Callable[[Call], Call]:
    """The loss of another batch."""
    return lambda call: lambda function, batch, **keywords: call(function, change(batch), **keywords)


def giving(change: Callable[[Any], Any], state: Callable[[Any], Any] = lambda state: state) -> Callable[[Call], Call]:
    """Other losses, another state."""

    def wrapped(call: Call) -> Call:
        def wrong(function: Call, batch: Batch, **keywords: Any) -> Any:
            given = call(function, batch, **keywords)
            return (change(given[0]), state(given[1])) if isinstance(given, tuple) else change(given)

        return wrong

    return wrapped


def called(change: Callable[[Call, dict[str, Any]], dict[str, Any]]) -> Callable[[Call], Call]:
    """The loss with other keywords: `change(function, keywords)`."""
    return lambda call: lambda function, batch, **keywords: call(function, batch, **change(function, keywords))


def without(name: str) -> Callable[[Call], Call]:
    return called(lambda function, keywords: {key: value for key, value in keywords.items() if key != name})


def forgets_reference(b: Batch) -> Batch:
    return b._replace(frozen_chosen=0 * b.frozen_chosen, frozen_rejected=0 * b.frozen_rejected)


def swaps_policy_and_reference(b: Batch) -> Batch:
    return b._replace(
        chosen=b.frozen_chosen, rejected=b.frozen_rejected, frozen_chosen=b.chosen, frozen_rejected=b.rejected
    )


def swaps_chosen_and_rejected(b: Batch) -> Batch:
    return Batch(*(b[i] for i in (1, 0, 3, 2, 5, 4, 7, 6, 8)))


def divides_by_the_other_tokens(b: Batch) -> Batch:
    return b._replace(chosen_tokens=b.rejected_tokens, rejected_tokens=b.chosen_tokens)


def counts_the_first_token(b: Batch) -> Batch:
    return b._replace(chosen_tokens=b.chosen_tokens + 1, rejected_tokens=b.rejected_tokens + 1)


def takes_missing_counts_as_one(b: Batch) -> Batch:
    ones = jnp.ones_like(b.chosen)
    return b._replace(chosen_tokens=ones, rejected_tokens=ones) if b.chosen_tokens is None else b


def beta_twice(function: Call, keywords: dict[str, Any]) -> dict[str, Any]:
    return keywords | {"beta": keywords.get("beta", knobs(function)["beta"].default) ** 2}


def first_of(function: Call, keywords: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] if getattr(value, "ndim", 0) else value for name, value in keywords.items()}


def concretises_knobs(function: Call, keywords: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if name == "beta" else value for name, value in keywords.items()}


def checks_no_knob(call: Call) -> Call:
    def wrong(function: Call, batch: Batch, **keywords: Any) -> Any:
        numbers = {name: value for name, value in keywords.items() if isinstance(value, float | np.ndarray | np.number)}
        rest = {name: value for name, value in keywords.items() if name not in numbers}
        return jax.eval_shape(lambda numbers: call(function, batch, **numbers, **rest), numbers)

    return wrong


def stays_narrow(call: Call) -> Call:
    def wrong(function: Call, batch: Batch, **keywords: Any) -> Any:
        given = call(function, batch, **keywords)
        narrow = lambda losses: losses.astype(batch.chosen.dtype)  # noqa: E731
        return (narrow(given[0]), given[1]) if isinstance(given, tuple) else narrow(given)

    return wrong


def doubled(value: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *data, **options: 2.0 * value(*data, **options)


SINGLE = {"sft", "kto", "apo_zero_unpaired", "bco", "diffusion_kto"}
FREE = {*losses.REFERENCE_FREE, "bradley_terry", "preference_score"}
BOUNDED = {"apo_zero", "apo_down", "exo_pair", "kto", "apo_zero_unpaired", "diffusion_kto"}


def in_float64(test: Callable[..., None], **keywords: Any) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        with jax.enable_x64(True):
            test(case, x64=None, **keywords)

    return check


def wrong_losses(case: Case) -> Iterator[Wrong]:
    name, entry = case.function.__name__, case.entry
    formula = battery.test_value_and_gradient_of_the_formula
    averages = (entry.averages and case.name not in calls.WITHOUT_COUNTS) or name == "r_dpo"

    def wrong(what: str, wrap: Callable[[Call], Call], check: Any = formula, harmless: str = "") -> Wrong:
        return Wrong(what, replace(case, call=wrap(case.call)), check, harmless)

    free = "has no reference" if name in FREE else ""
    yield wrong("forgets_reference", reading(forgets_reference), harmless=free)
    yield wrong("swaps_policy_and_reference", reading(swaps_policy_and_reference))
    yield wrong("swaps_chosen_and_rejected", reading(swaps_chosen_and_rejected))
    yield wrong("swaps_sign", giving(lambda losses: -losses))
    yield wrong("means_too_early", giving(lambda losses: jnp.full_like(losses, losses.mean())))
    yield wrong("gives_the_mean", giving(lambda losses: losses.mean()))
    yield wrong("gives_the_losses_of_other_pairs", giving(lambda losses: jnp.roll(losses, 1)))
    yield wrong(
        "leaks_a_gradient", giving(lambda losses: losses + losses.mean() - jax.lax.stop_gradient(losses.mean()))
    )
    for field in ("chosen", "rejected"):
        single = "reads one response" if field == "rejected" and name in SINGLE else ""
        detached = lambda b, field=field: b._replace(**{field: jax.lax.stop_gradient(getattr(b, field))})  # noqa: E731
        yield wrong(f"detaches_{field}", reading(detached), harmless=single)
    for what in (divides_by_the_other_tokens, counts_the_first_token):
        sums = "" if averages and not (name == "r_dpo" and what is counts_the_first_token) else "sums over tokens"
        yield wrong(what.__name__, reading(what), harmless=sums)
    for knob in case.options:
        none = "has no alpha" if knob == "alpha" and case.choices.get("divergence", "alpha") != "alpha" else ""
        yield wrong(f"ignores_{knob}", without(knob), harmless=none)
    if "beta" in case.options:
        yield wrong("beta_twice", called(beta_twice))
        yield wrong("concretises_knobs", called(concretises_knobs),
                    battery.test_knobs_are_traced_and_may_be_one_per_pair)  # fmt: skip
    if case.options:
        one = "each knob is one for the batch" if name == "beta_dpo" else ""
        yield wrong("reads_the_first_of_a_knob_per_pair", called(first_of),
                    battery.test_knobs_are_traced_and_may_be_one_per_pair, one)  # fmt: skip
        yield wrong("checks_no_knob", checks_no_knob, calls.test_knobs_out_of_range_are_refused_in_and_out_of_jit)
    bounded = "is bounded" if name in BOUNDED or "clip" in case.options else ""
    naive = giving(lambda losses: -jnp.log(jnp.exp(-losses)))
    yield wrong("naive_log_sigmoid", naive, battery.test_finite_value_and_gradient_far_out, bounded)
    apart = battery.test_pairs_are_independent_unless_the_table_says_otherwise
    others = "looks at the other pairs" if entry.batch_global else ""
    yield wrong("leaks_between_pairs", giving(lambda losses: losses + 0 * losses.sum()), apart, others)
    counts = "" if entry.averages and case.name not in calls.WITHOUT_COUNTS else "needs no counts"
    yield wrong("takes_missing_counts_as_one", reading(takes_missing_counts_as_one),
                calls.test_token_counts_are_asked_for_only_where_they_are_needed, counts)  # fmt: skip
    yield wrong(
        "stays_narrow", stays_narrow, partial(calls.test_narrow_types_are_widened_to_float32, narrow=jnp.bfloat16)
    )
    if name in losses.STATEFUL:
        keep, after = lambda losses: losses, battery.test_the_state_after_a_batch
        yield wrong("loses_state", giving(keep, lambda state: AlphaDPOState()), after)
        yield wrong("counts_twice", giving(keep, lambda state: state._replace(count=state.count + 1)), after)
    if case.reads_others:
        yield wrong(
            "ignores_where", without("where"), in_float64(sharded.test_what_is_not_real_does_not_leak, junk=jnp.nan)
        )
        yield wrong("ignores_axis_name", without("axis_name"),
                    in_float64(sharded.test_shard_map_with_an_axis_name_equals_one_device, masked=False))  # fmt: skip
    if entry.at_reference:
        entry = entry._replace(at_reference=doubled(entry.at_reference))
        yield Wrong("another_value_in_the_table", replace(case, entry=entry),
                    battery.test_value_where_policy_and_reference_agree, "")  # fmt: skip
