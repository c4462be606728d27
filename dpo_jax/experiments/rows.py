"""Rows as a configuration asks for them: how they become tokens, and whether the model has positions for them."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_jax.config import Config, Source
from dpo_jax.data import rows
from dpo_jax.data.chat import reads_clock
from dpo_jax.data.encoding import Rules
from dpo_jax.data.rows import DataRows, Reading
from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, Layout
from dpo_jax.data.specials import Row
from dpo_jax.data.tokens import row_ids_of, sizes_of
from dpo_jax.errors import Advised, UserError
from dpo_jax.experiments.losses import is_unpaired, needs_mismatched
from dpo_jax.files import read_sealed, write_sealed
from dpo_jax.meeting import meet
from dpo_jax.models.spec import Spec
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import Origins, locate, located
from dpo_jax.reference.fingerprint import rows_digest
from dpo_jax.runs.facts import Facts
from dpo_jax.runs.run import Run
from dpo_jax.runtime.hosts import from_first
from dpo_jax.runtime.progress import say
from dpo_jax.types import TokenRow
from dpo_jax.weights.resolve import Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def rules_of(config: Config, resolved: Resolved | None = None) -> Rules:
    """The rules by which text becomes tokens, as `data` says them, and the sizes of the model."""
    names = {field.name for field in dataclasses.fields(Rules)} - {"vocabulary", "positions"}
    given = {name: getattr(config.data, name) for name in names}
    rules = Rules(**{**given, "chat_template": _chat_template(config.data.chat_template)})
    if resolved is None:
        return rules
    return dataclasses.replace(rules, vocabulary=resolved.spec.vocabulary, positions=resolved.positions)


def tell_long(name: str, rows: Sequence[TokenRow], rules: Rules) -> None:
    """Say how many rows are longer than what the model was trained on, which may still compute something."""
    sizes, limit = sizes_of(rows), rules.positions
    lengths = sizes.prompt + sizes.responses.max(axis=1)
    if limit is not None and (longer := int((lengths > limit).sum())):
        say(
            "data",
            f"{name}: {longer} rows are longer than the {limit} positions on which the model was trained "
            f"(max_position_embeddings, and its rope scaling): {lengths.max()} tokens at most. Expect little of what "
            f"lies beyond, or set data.max_tokens to {limit} or less",
        )


def _chat_template(given: str | None) -> str | None:
    """A template in jinja: that of a file, or what is given itself, where it can be nothing else."""
    is_name = given is not None and re.fullmatch(r"[\w-]+", given) and not Path(given).exists()
    if given is None or "{" in given or is_name:  # of one of those that the tokenizer has
        return given
    try:
        return Path(given).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: the file {given} cannot be read ({error}). Name a file, or write the template itself."
        ) from None


def with_date(config: Config, run: Run, tokenizer: Callable[[], PreTrainedTokenizerFast]) -> Config:
    """The configuration with `data.date`: where a chat template reads the clock, the day of the run's first command.

    So a run that goes on tomorrow, its stores and its evaluations read the same prompts.
    """
    data = config.data
    if data.date is not None or data.template != "tokenizer":
        return config
    if not run.begun.exists():
        if config.scratch and data.chat_template is None:  # whose tokenizer is still to be made, and has none
            return config
        try:
            if not reads_clock(tokenizer, data.template, _chat_template(data.chat_template)):
                return config
        except Advised as error:
            raise error.in_section("data") from None
        (today,) = from_first(lambda: np.array([datetime.date.today().toordinal()]))
        write_sealed(run.begun, {"date": datetime.date.fromordinal(int(today)).isoformat()})
        meet("the day is written", sees=run.begun)
    try:
        date = str(read_sealed(run.begun, "date")["date"])
    except UserError as error:
        raise UserError(f"{error} Name the day of the run's first command as data.date, and delete the file.") from None
    say("data", f"the chat template reads the clock, which says {date} all through this run (data.date)")
    return dataclasses.replace(config, data=dataclasses.replace(data, date=date))


def read_rows(
    config: Config,
    origins: Origins,
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    name: str,
    sources: Sequence[Source],
    *,
    limit: int | None = None,
) -> DataRows:
    """Read the rows that the losses learn from, pairs or labelled completions; `name` is the key of the sources.

    No more than `limit` rows, the first ones, if that is given.

    Raises:
        UserError: they cannot be used, or nothing but the fine-tuning has rows.
    """
    if not sources and name == "data.train":
        raise UserError(
            f"{locate(name, origins)}: {name} names no rows of preferences. Add some, or do what goes without: "
            "`dpo-jax run` or `sft`, which fine-tune on sft.data.train, and `export --fine-tuned`."
        )
    if not sources:
        return DataRows([], [])
    layout, more = layout_of(config), {"mismatched": needs_mismatched(config.loss), "limit": limit}
    return _read(layout, config, origins, tokenizer, rules, name, sources, seed=config.seed, **more)


def digest_rows(data: DataRows) -> str:
    """How many rows there are, and a digest of them in their order, with their labels, weights, margins and sources."""
    columns = (data.desirable, data.weight_B, data.margin_B, data.soft_label_B, data.source_B)
    return f"{len(data.rows)} rows {rows_digest(row_ids_of(data.rows), columns)}"


def facts_of_reading(facts: Facts, asked: Mapping[str, Any], trained: Mapping[str, Any]) -> Facts:
    """The facts that hold however a model is measured: its tokenizer, and the template that is still called the same.

    `asked` and `trained` are the sections `data` of now and of the training.
    """
    as_then = all(asked[name] == trained.get(name) for name in ("template", "chat_template", "date"))
    names = ("tokenizer", "vocabulary", "eos", "bos", *(("template",) if as_then else ()))
    return {name: fact for name, fact in facts.items() if name in names}


def several(data: DataRows) -> np.ndarray | None:
    """The source of each row, where there are several."""
    return data.source_B if len(data.sources) > 1 else None


def present(**columns: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """The columns that there are."""
    return {name: values for name, values in columns.items() if values is not None}


def layout_of(config: Config) -> Layout[Any]:
    """The form of the rows that the losses learn from."""
    return UNPAIRED if is_unpaired(config.loss) else PAIRS


def read_completions(
    config: Config,
    origins: Origins,
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    name: str,
    sources: Sequence[Source],
    *,
    seed: int,
) -> DataRows:
    """Read the rows of a fine-tuning; `name` is the key of the sources."""
    return _read(COMPLETIONS, config, origins, tokenizer, rules, name, sources, seed=seed)


def _read(
    layout: Layout[Row],
    config: Config,
    origins: Origins,
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    name: str,
    sources: Sequence[Source],
    *,
    seed: int,
    **more: Any,
) -> DataRows:
    """Read rows and say what was left out; `more` is what else the reading takes."""
    folder = Path(config.workdir) / "tokens"
    reading = Reading(rules=rules, folder=folder, on_error=config.data.on_error, seed=seed)
    with located(name, origins):
        data = rows.read_rows(layout, sources, tokenizer, reading, name=name, **more)
    say("data", ", ".join([f"{name}: {len(data.rows)} rows", *data.notes]))
    say_unread(name, sources, data.unread_columns)
    tell_long(name, data.rows, rules)
    return data


def say_unread(name: str, sources: Sequence[Source], unread: Iterable[Iterable[str]]) -> None:
    """Say of each source which of its columns nobody has read; `name` is the key of the sources."""
    for place, columns in enumerate(unread):
        if listed := ", ".join(columns):
            of = next(iter(sources[place].values()), "")
            say("data", f"{name}.{place} ({of}): columns not read: {listed}")


def check_rows(config: Config, origins: Origins, spec: Spec) -> None:
    """Refuse rows that may be longer than the model's table of positions, as a UserError."""
    longest, limit = config.data.max_tokens, spec.max_positions
    if limit is not None and longest > limit:
        raise UserError(
            f"{locate('data.max_tokens', origins)}: data.max_tokens is {longest}, but {config.model.weights} has "
            f"learned only {limit} positions. Set it to {limit} or less."
        )


def check_samples(config: Config, origins: Origins, spec: Spec, terms: Sequence[Term]) -> None:
    """Refuse responses that training and evaluation will sample, if they may be longer than that table."""
    if config.evaluation.samples:
        check_new_tokens("evaluation.max_new_tokens", config.evaluation.max_new_tokens, config, origins, spec)
    for index, term in enumerate(terms):
        if term.budget:
            key = f"loss.{index}.options.kl_max_new_tokens"
            check_new_tokens(key, term.budget.kl_max_new_tokens, config, origins, spec)


def check_new_tokens(key: str, new: int, config: Config, origins: Origins, spec: Spec) -> None:
    """Refuse responses of `new` tokens, the value of `key`, to the longest prompts, if both need more positions."""
    prompt, limit = config.data.max_prompt_tokens, spec.max_positions
    if limit is None or prompt + new - 1 <= limit:  # the last token is drawn and never read
        return
    fewer = f"{key} to {limit + 1 - prompt} or less, or " if prompt <= limit else ""
    raise UserError(
        f"{locate(key, origins)}: {key} is {new} and data.max_prompt_tokens {prompt}, but {config.model.weights} has "
        f"learned only {limit} positions. Set {fewer}data.max_prompt_tokens lower."
    )
