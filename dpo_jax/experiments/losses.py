"""The lines of `loss:` in a configuration: each one a loss of the table, its options read and checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpo_jax.config import LossConfig
from dpo_jax.errors import UserError, fits_float32, nearest
from dpo_jax.losses import LOSSES, Loss
from dpo_jax.losses.knobs import KnobSpec, knobs
from dpo_jax.losses.stateful import RunningMean
from dpo_jax.objectives.terms import KlBudget, Ramp, Term
from dpo_jax.reading import Origins, locate

TRAINED: dict[str, Loss] = {name: loss for name, loss in LOSSES.items() if not loss.reads_errors}
"""Every loss that an experiment on texts may name."""

_TRAINER_DEFAULTS: dict[str, dict[str, Any]] = {"alpha_dpo": {"bias_correction": True}}
"""Where the trainer's default is another than the function's: the averages of alpha-DPO start cold."""


def soft_labelled() -> list[str]:
    """The losses that read soft labels."""
    return [name for name, loss in TRAINED.items() if loss.reads_soft_labels]


def is_unpaired(losses: Sequence[LossConfig]) -> bool:
    """True if the losses read labelled completions instead of pairs."""
    return any(TRAINED[loss.name].reads_labels for loss in losses if loss.name in TRAINED)


def needs_mismatched(losses: Sequence[LossConfig]) -> bool:
    """True if a loss reads the KL on mismatched completions."""
    return any(TRAINED[loss.name].mismatched for loss in losses if loss.name in TRAINED)


def describe() -> Iterator[tuple[str, str, str, list[str]]]:
    """Every loss of the table: its name, what it reads, its first line, and its options with defaults and ranges."""
    for name, loss in LOSSES.items():
        reads = "labelled " * loss.reads_labels + ("pictures" if loss.reads_errors else "texts")
        reads = reads if loss.reads_labels else f"pairs of {reads}"
        specs = _specs(loss)
        options = [f"{option} {_yaml(spec.default)}: {_allowed(spec)}" for option, spec in specs.items()]
        if name == "alpha_dpo":
            options += [f"alpha auto: with {', '.join(KlBudget._fields)}"]
        summary = (inspect.getdoc(loss.function) or "").partition("\n")[0]
        yield name, f"{reads}{', and a reference' * loss.needs_reference}", summary, options


def _specs(entry: Loss) -> dict[str, KnobSpec]:
    """The options of a loss, which the running mean of the rewards is not."""
    specs = dict(knobs(entry.function))
    if entry.state is RunningMean:
        specs.pop("delta", None)
    return specs


def _allowed(spec: KnobSpec) -> str:
    numbers = [f"a number {spec.interval}"] if spec.interval else []
    return " or ".join([*numbers, *map(_yaml, spec.choices)])


def read_terms(losses: Sequence[LossConfig], origins: Origins) -> list[Term]:
    """The terms of the objective, defaults filled in.

    Raises:
        UserError: a loss or an option is unknown, an option is out of its range, or the losses do not go together.
    """
    terms = [_term(index, config, origins) for index, config in enumerate(losses)]
    apart = [term.name for term in terms if term.entry.reads_labels != is_unpaired(losses)]
    if apart:
        on_labels = [name for name, loss in TRAINED.items() if loss.reads_labels]
        labelled = next(term.name for term in terms if term.entry.reads_labels)
        raise UserError(
            f"{locate('loss', origins)}: loss: {labelled} reads labelled completions and {apart[0]} reads pairs; they "
            f"cannot stand in one objective. Losses on labelled completions: {', '.join(on_labels)}."
        )
    return terms


def _term(index: int, config: LossConfig, origins: Origins) -> Term:
    if config.name not in TRAINED:
        at = locate(f"loss.{index}.name", origins)
        raise UserError(f"{at}: loss.name: {config.name!r} is unknown. {nearest(config.name, TRAINED)}")
    entry = TRAINED[config.name]
    specs = _specs(entry)
    options = _TRAINER_DEFAULTS.get(config.name, {}) | dict(config.options)
    budget = _budget(index, config.name, options, origins)
    static, numbers = read_options(
        config.name, specs, options, lambda name: f"{locate(f'loss.{index}.options.{name}', origins)}: loss"
    )
    if budget:
        numbers.pop("alpha")
    term = Term(config.name, entry, config.weight, static, numbers, budget, config.ld_alpha, config.wpo)
    for name, asked in (("ld_alpha", config.ld_alpha is not None), ("wpo", config.wpo)):
        if asked and not term.on_pairs:
            at = locate(f"loss.{index}.{name}", origins)
            raise UserError(f"{at}: loss.{name}: belongs to losses on pairs; {config.name} is none.")
    return term


def read_term(name: str, entry: Loss, options: Mapping[str, object], where: Callable[[str], str]) -> Term:
    """A loss with its options; `where` as for `read_options`."""
    static, numbers = read_options(name, knobs(entry.function), options, where)
    return Term(name, entry, 1.0, static, numbers)


def read_options(
    loss: str, specs: Mapping[str, KnobSpec], options: Mapping[str, object], where: Callable[[str], str]
) -> tuple[dict[str, Any], dict[str, float | Ramp]]:
    """All options of a loss, those that are no numbers and those that are; defaults filled in.

    `where(name)` says for a message where an option stands, up to the name of its section.
    """
    static: dict[str, Any] = {}
    numbers: dict[str, float | Ramp] = {}
    for name, value in ({name: spec.default for name, spec in specs.items()} | dict(options)).items():
        at = f"{where(name)}.options.{name}"
        if name not in specs:
            raise UserError(f"{at}: {loss} has no such option. {nearest(name, specs)}")
        checked = _option(specs[name], value, at)
        (numbers if isinstance(checked, float | Ramp) else static)[name] = checked
    return static, numbers


def _option(spec: KnobSpec, value: object, at: str) -> Any:
    """One option, checked: a number or a ramp becomes one, a choice stays itself."""
    if (isinstance(value, str | bool) or value is None) and value in spec.choices:
        return value
    if spec.interval is None:
        allowed = ", ".join(map(_yaml, spec.choices))
        raise UserError(f"{at}: {value!r} is unknown. Allowed: {allowed}.")
    if isinstance(value, Mapping):
        return _ramp(spec, value, at)
    number = _number(value)
    if number is None or not spec.interval.holds(number):
        also = "".join(f" or {_yaml(choice)}" for choice in spec.choices)
        raise UserError(f"{at}: a number {spec.interval}{also} is wanted, not {value!r}.")
    return number


def _ramp(spec: KnobSpec, value: Mapping[str, object], at: str) -> Ramp:
    for name in value:
        if name not in Ramp._fields:
            raise UserError(f"{at}.{name}: the key is unknown. {nearest(str(name), Ramp._fields)}")
    start, end, steps = (_number(value.get(name)) for name in Ramp._fields)
    if start is None or end is None or steps is None or steps < 1 or steps != int(steps):
        raise UserError(f"{at}: a value that moves is written {{start: 0.0, end: 0.2, steps: 100}}, not {dict(value)}.")
    for number in (start, end):
        if spec.interval is None or not spec.interval.holds(number):
            raise UserError(f"{at}: a number {spec.interval} is wanted, not {number:g}.")
    return Ramp(start, end, int(steps))


def _budget(index: int, loss: str, options: dict[str, Any], origins: Origins) -> KlBudget | None:
    """Takes the options of `alpha: auto` out of the others; None where alpha is a number or a ramp."""
    asked = {name: options.pop(name) for name in KlBudget._fields if name in options}
    at = f"{locate(f'loss.{index}.options', origins)}: loss.options"
    automatic = loss == "alpha_dpo" and options.get("alpha") == "auto"
    if not automatic:
        if asked:
            raise UserError(f"{at}.{next(iter(asked))}: belongs to alpha_dpo with `alpha: auto`, which is not set.")
        return None
    if "kl_budget" not in asked:
        raise UserError(f"{at}.alpha: auto steers towards a budget; give it as kl_budget, nats per response.")
    for name, value in asked.items():
        number = _number(value)
        whole = name in ("kl_every", "kl_samples", "kl_max_new_tokens")
        low = -math.inf if name.startswith("alpha") else 1 if whole else 1e-9
        if number is None or number < low or (whole and number != int(number)):
            kind = "a whole number from 1 on" if whole else "a number above 0" if low > 0 else "a number"
            raise UserError(f"{at}.{name}: {kind} is wanted, not {value!r}.")
        asked[name] = int(number) if whole else number
    budget = KlBudget(**asked)
    if not budget.alpha_low <= budget.alpha_start <= budget.alpha_high:
        raise UserError(f"{at}: alpha_start must lie between alpha_low and alpha_high; they are {budget[-3:]}.")
    options.pop("alpha")
    return budget


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)  # of a text too, as earlier versions wrote it
    except ValueError:
        return None
    return number if fits_float32(number) else None


def _yaml(choice: object) -> str:
    return "null" if choice is None else str(choice).lower() if isinstance(choice, bool) else str(choice)
