"""Rows, model and machine to an experiment: each setting with its reason."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.config import Config, load
from dpo_jax.data.sources.labels import with_mismatched
from dpo_jax.drafting.forms import Form, find_form
from dpo_jax.drafting.lengths import Lengths, Limits, choose_limits, endless, joined, measure
from dpo_jax.drafting.lines import Line, as_text
from dpo_jax.drafting.looked import Looked, choose_template
from dpo_jax.drafting.memory import Fit, weigh
from dpo_jax.errors import UserError
from dpo_jax.planning.tables import gib
from dpo_jax.planning.topologies import Machine

_BATCH, _FEW = 32, 1_000


class Parts(NamedTuple):
    """The rows by what is done with them."""

    train: list[Form]  # pairs, or labelled completions
    sft: list[Form]
    held_out: list[Form]

    @property
    def is_labelled(self) -> bool:
        """True if they are labelled completions."""
        return any(form.kind == "labelled" for form in self.train)


def sort_out(sources: Sequence[Mapping[str, Any]]) -> Parts:
    """Look at the rows of some sources, and say what each is for.

    Raises:
        UserError: a source cannot be read, or nothing can be trained on what they hold.
    """
    forms = [find_form(dict(source)) for source in sources]
    for form in forms:
        if form.kind == "prompts":
            raise UserError(
                f"{form.rows[0].where}: the rows of {form.name} are prompts alone (columns {', '.join(form.columns)}); "
                "what is missing are the answers. Add the columns chosen and rejected, or completion and label, or "
                "completion. With a file of pairs and a judge, `dpo-jax pairs` makes new pairs of these prompts "
                "(pairs.prompts)."
            )
    learned = [form for form in forms if form.kind != "completions"]
    if any(form.kind == "labelled" for form in learned):
        learned = [form if form.kind == "labelled" else find_form(form.source, unpair=True) for form in learned]
    held_out = [form for form in learned if form.is_held_out]
    if len(held_out) == len(learned):
        held_out = []
    train = [form for form in learned if form not in held_out]
    return Parts(train, [form for form in forms if form.kind == "completions"], held_out)


class Draft(NamedTuple):
    """An experiment file as text, and what its writer should hear beside it."""

    text: str
    notes: list[str]


def draft(parts: Parts, looked: Looked, machine: Machine | str, *, workdir: str, command: str, why_model: str) -> Draft:
    """Write the experiment; in place of a machine without devices stands the reason.

    Raises:
        UserError: the rows cannot be used with this model.
    """
    template, why_template = choose_template(looked, [*parts.train, *parts.sft])
    lengths = _measured(parts, looked, template)
    limits = choose_limits(lengths, looked.positions)
    batch, why_batch = _batch(parts)
    lines = {
        line.key: line
        for line in (
            Line("workdir", workdir, "all that is written"),
            Line("model.weights", looked.weights, why_model),
            *_dtype(machine),
            *_data(parts, template, why_template, limits, lengths),
            *_losses(parts),
            Line("train.batch_pairs", batch, why_batch),
        )
    }
    fit = _weighed(lines, looked, machine)
    lines |= {line.key: line for line in _fitted(fit, batch)}
    adapter = "lora.rank" in lines
    lines |= {line.key: line for line in (*_lengths_of_training(parts, batch), *_optimizer(parts, batch, adapter))}
    lines |= {line.key: line for line in _fine_tuning(parts, lines, adapter)}
    rows = "; ".join(f"{form.name}: {form.in_words()}" for form in (*parts.train, *parts.sft, *parts.held_out))
    head = [f"Drafted by `{command}`. {rows}.", _of_machine(machine, fit)]
    notes = [looked.tokenizer] if isinstance(looked.tokenizer, str) else []
    notes += [f"it does not fit this machine: {fit.in_words()}"] if isinstance(fit, Fit) and not fit.fits else []
    return Draft(as_text(head, sorted(lines.values(), key=_place)), notes)


_ORDER = ("workdir", "model", "data", "sft", "loss", "lora", "optimizer", "train", "evaluation")


def _place(line: Line) -> int:
    return _ORDER.index(line.key.partition(".")[0])


def _measured(parts: Parts, looked: Looked, template: str) -> Lengths:
    rules = endless(template)
    return joined([measure(form.rows, looked.tokenizer, rules) for form in (*parts.train, *parts.sft)])


def _dtype(machine: Machine | str) -> Iterator[Line]:
    if isinstance(machine, Machine) and machine.devices and machine.devices[0].platform != "cpu":
        yield Line("model.dtype", "bfloat16", f"{machine.chip.name} computes fastest in it; parameters stay float32")


def _data(parts: Parts, template: str, why: str, limits: Limits, lengths: Lengths) -> Iterator[Line]:
    if not parts.train:
        yield Line("data.train", [], "no rows of preferences: `dpo-jax run` fine-tunes, and exports the result")
    for place, form in enumerate(parts.train):
        yield Line(f"data.train.{place}", form.source, _of_rows(form))
    for place, form in enumerate(parts.held_out):
        yield Line(f"data.eval.{place}", form.source, f"held out, by its name; {_of_rows(form)}")
    for place, form in enumerate(parts.sft):
        yield Line(f"sft.data.train.{place}", form.source, f"fine-tuning comes first: {_of_rows(form)}")
    yield Line("data.template", template, why)
    yield Line("data.max_prompt_tokens", limits.max_prompt_tokens, limits.why_prompt)
    yield Line("data.max_tokens", limits.max_tokens, limits.why)
    bad = sum((form.skipped for form in (*parts.train, *parts.sft, *parts.held_out)), lengths.skipped.copy())
    if bad:
        first = "".join(form.skipped.in_words() for form in (*parts.train, *parts.sft, *parts.held_out))
        reasons = ", ".join(f"{count:,} ({reason})" for reason, count in bad.items())
        yield Line("data.on_error", "skip", f"rows that cannot be used: {reasons}; stop would name each.{first}")


def _of_rows(form: Form) -> str:
    known = f", as {form.source['format']} writes them" if "format" in form.source else ""
    return f"{form.in_words()}{known}; columns {', '.join(form.columns)}"


def _losses(parts: Parts) -> Iterator[Line]:
    if not parts.train:
        yield Line("loss.name", "dpo", "for pairs, once there are some")
        return
    rows = [row for form in parts.train for row in form.rows]
    if not parts.is_labelled:
        also = "; it reads the column soft_label too" if any(row.soft_label is not None for row in rows) else ""
        yield Line("loss.name", "dpo", f"the rows are pairs{also}")
        yield Line("loss.options.beta", 0.1, "how near the policy stays to the reference; 0.01 to 0.5 are usual")
        return
    good = sum(row.desirable for row in rows)
    bad = len(rows) - good
    try:
        with_mismatched(rows)
        yield Line("loss.name", "kto", "the rows have labels, and are no pairs")
    except UserError:
        yield Line(
            "loss.name", "apo_zero_unpaired", "the rows have labels; kto also wants other completions of other prompts"
        )
        return
    for name, fewer, more in (("desirable", good, bad), ("undesirable", bad, good)):
        if fewer and more > 4 / 3 * fewer:
            weight = round(more / fewer, 2)
            why = f"{good:,} good and {bad:,} bad rows: the weights make up for it"
            yield Line(f"loss.options.{name}_weight", weight, why)


def _rows(forms: Sequence[Form]) -> int:
    return sum(len(form.rows) for form in forms)


def _power(count: int) -> int:
    """A power of two that leaves eight steps at least."""
    return 2 ** int(math.log2(max(1, min(_BATCH, count // 8))))


def _batch(parts: Parts) -> tuple[int, str]:
    """Pairs in a step, each with both labels, and the reason."""
    count = _rows(parts.train or parts.sft)
    batch = _power(count)
    why = "a usual number" if batch == _BATCH else f"so few because there are {count:,} rows"
    if parts.is_labelled:
        labels = np.array([row.desirable for form in parts.train for row in form.rows])
        fewer = int(min(labels.sum(), (~labels).sum()))
        if not fewer:
            kind = "good" if labels[0] else "bad"
            raise UserError(
                f"{parts.train[0].name}: all {count:,} labels say {kind}; a loss on labels needs both. Add rows of the "
                "other kind, or, where all are good, leave the label out: completions are fine-tuned on."
            )
        if (least := -(-len(labels) // fewer)) > batch:
            batch, why = min(2 ** math.ceil(math.log2(least)), count), "so many that each step has both labels"
    return batch, why


def _weighed(lines: Mapping[str, Line], looked: Looked, machine: Machine | str) -> Fit | str:
    """What fits the machine, or why that is not known."""
    for reason in (looked.resolved, machine):
        if isinstance(reason, str):
            return reason
    assert isinstance(machine, Machine) and looked.outline
    config, origins = _loaded(lines.values())
    return weigh(config, origins, machine, looked.outline)


def _loaded(lines: Any) -> tuple[Config, dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "draft.yaml")
        path.write_text(as_text([], sorted(lines, key=_place)), encoding="utf8")
        config, origins = load(str(path))
    assert isinstance(config, Config)
    return config, origins


def _fitted(fit: Fit | str, batch: int) -> Iterator[Line]:
    if isinstance(fit, str):
        return
    changes, needs = fit.changes, fit.in_words()
    whole = f"all of a step at once would need {gib(fit.first['needs'])}"
    if "lora" in changes:
        yield Line("lora.rank", 16, f"an adapter: with all weights trained, {whole}; with this {needs}")
        yield Line("lora.alpha", 32)
    if "model.dtype" in changes:
        yield Line("model.dtype", changes["model.dtype"], "the frozen weights are held in it, in half the memory")
    if "model.remat" in changes:
        yield Line("model.remat", changes["model.remat"], f"computes activations twice, to save memory: {needs}")
    if (micro := changes.get("train.micro_batch_pairs")) is not None:
        yield Line("train.micro_batch_pairs", micro, f"of the {batch}: {whole}; so it is {needs}")


def _of_machine(machine: Machine | str, fit: Fit | str) -> str:
    if isinstance(machine, str):
        return f"Memory was not looked at: {machine}."
    here = f"{machine.count} x {machine.chip.name} with {gib(machine.chip.memory_bytes)} each"
    if isinstance(fit, str):
        return f"Made on {here}; whether it fits is not known: {fit}"
    verdict = "needs" if fit.fits else "DOES NOT FIT: it needs"
    return f"Made on {here}: by analysis, as of `dpo-jax plan`, a step {verdict} {fit.in_words()}."


def _epochs(count: int) -> tuple[float, str]:
    few = f"there are only {count:,} rows; watch the held-out ones"
    return (1, "more passes over preferences fit them too well") if count >= _FEW else (3, few)


def _lengths_of_training(parts: Parts, batch: int) -> Iterator[Line]:
    if not parts.train:
        return
    epochs, why = _epochs(_rows(parts.train))
    yield Line("train.epochs", epochs, why)
    if parts.held_out:
        steps = math.ceil(epochs * _rows(parts.train) / batch)
        yield Line("evaluation.every", max(1, steps // 10), f"steps between looks at held-out rows, of about {steps:,}")


def _optimizer(parts: Parts, batch: int, adapter: bool) -> Iterator[Line]:
    if not parts.train:
        return
    count = _rows(parts.train)
    rate, why = (1e-5, "usual for an adapter") if adapter else (1e-6, "usual where all weights are trained")
    yield Line("optimizer.learning_rate", rate, why)
    yield Line("optimizer.schedule", "linear", "down to 0")
    steps = math.ceil(_epochs(count)[0] * count / batch)
    yield Line("optimizer.warmup_steps", min(100, -(-steps // 10)), f"a tenth of the {steps:,} steps, at most 100")


def _fine_tuning(parts: Parts, lines: Mapping[str, Line], adapter: bool) -> Iterator[Line]:
    if not parts.sft:
        return
    if adapter:
        yield Line("sft.lora.rank", 16, "for the same reason as the adapter below")
    rate, why = (1e-4, "usual for an adapter") if adapter else (2e-5, "usual where all weights are trained")
    yield Line("sft.optimizer.learning_rate", rate, why)
    count = _rows(parts.sft)
    batch = _power(count)
    yield Line("sft.train.batch_pairs", batch, "rows in a step")
    if "train.micro_batch_pairs" in lines:
        micro = math.gcd(batch, int(str(lines["train.micro_batch_pairs"].value)))
        yield Line("sft.train.micro_batch_pairs", micro, "rows in memory at once; pairs of their length would fit")
    epochs, why_epochs = _epochs(count)
    yield Line("sft.train.epochs", epochs, why_epochs if epochs == 1 else f"there are only {count:,} rows")
