"""The model card: README.md of an exported folder, in the form that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_jax.evaluation.records import Evaluation
from dpo_jax.reporting.data import shared_rows
from dpo_jax.reporting.markdown import code, text
from dpo_jax.reporting.numbers import GAP
from dpo_jax.reporting.report import RunReport, training_summary, verdict_of
from dpo_jax.reporting.tables import result_rows

# A card is published: only what is named here leaves the configuration, and neither command nor environment does.
_TRAINING_KEYS = ("loss", "optimizer", "train", "seed")
_SFT_KEYS = ("optimizer", "train")
_USE = """\
from transformers import pipeline

write = pipeline("text-generation", "path/to/this/folder")
"""
_ASK = {
    "plain": 'print(write("Once upon a time")[0]["generated_text"])\n',
    "chat": 'print(write([{"role": "user", "content": "Who are you?"}])[0]["generated_text"][-1]["content"])\n',
}
_WRITTEN = {
    "plain": "as they are, without a chat template (`template: plain`), and the response right after them. Prompt it "
    "with plain text, with as much white space at its end as there was in training. The chat template of this "
    "tokenizer does the same with messages: it writes their contents one after the other.",
    "hh": "as turns of Human and Assistant (`template: hh`), by no chat template of the base. The chat template of "
    "this tokenizer writes them so: prompt it with messages.",
    "tokenizer": "by the chat template of the base's tokenizer (`template: tokenizer`), which this tokenizer has. "
    "Prompt it with messages.",
    "own": "by a chat template of the run's own (`chat_template`: {name}), not that of the base; this tokenizer has "
    "it. Prompt it with messages.",
}
_LIBRARIES = ("dpo_jax", "python", "jax", "flax", "optax")


def model_card(
    run: RunReport,
    *,
    source_kinds: Collection[str] = (),
    base_model: str | None = None,
    license_id: str | None = None,
) -> str:
    """Markdown with a YAML head.

    Args:
        run: the run that made the weights.
        source_kinds: the keys under which a source of data says what it is read from.
        base_model: hub id of the model that was trained, for the head; without it only the name in the text tells.
        license_id: SPDX-like id of the licence of the weights, `apache-2.0`; left out where nobody gave one.
    """
    from dpo_jax.reading import as_yaml

    optional = {"base_model": base_model, "license": license_id}
    head = {"library_name": "transformers", "tags": ["dpo", "dpo_jax"]} | {k: v for k, v in optional.items() if v}
    weights = base_model or public_name(run.config.get("model", {}).get("weights", "an unnamed model"))
    loss = _loss_name(run.config.get("loss"))
    sources = _sources(run.config, source_kinds)
    template = (run.config.get("data") or {}).get("template")
    if run.outdated:  # numbers of other weights than those it lies beside are not published
        run = run._replace(evaluation=Evaluation())
    judgement = verdict_of(run)
    parts = [
        f"---\n{as_yaml(head)}---",
        f"# {text(run.title)}",
        f"{code(weights)}, trained on preferences with the {code(loss)} loss by dpo_jax, {text(run.created)}.",
        text(judgement.text),
        "\n".join(f"- {text(concern)}" for concern in judgement.concerns),
        _result_table(run),
        "## How it was trained",
        training_summary(run.metrics),
        f"Preference data: {', '.join(map(code, sources))}." if sources else "",
        f"```yaml\n{as_yaml(_published(run.config))}```",
        _versions(run.environment),
        "## Use",
        _prompting(run.config.get("data") or {}),
        f"```python\n{_USE}{_ASK['plain' if template in (None, 'plain') else 'chat']}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def public_name(source: str) -> str:
    """A name fit to publish: of an absolute, home, parent or web address only the last part, without its query."""
    if source.startswith(("/", "~", "..")) or "://" in source:
        return re.split(r"[?#]", source)[0].rstrip("/").rpartition("/")[2]
    return source


def _result_table(run: RunReport) -> str:
    rows = result_rows(run.evaluation, shared=shared_rows(run.data))
    if not rows:
        return ""
    lines = [f"| {text(row.measure)} | {row.value} | {row.interval} | {text(row.note)} |" for row in rows]
    head = ("## Results", "", f"| Measure | Value | 95{GAP}% interval | Note |", "| --- | --- | --- | --- |")
    return "\n".join((*head, *lines))


def _published(config: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {key: config[key] for key in _TRAINING_KEYS if key in config}
    sft = {key: value for key, value in (config.get("sft") or {}).items() if key in _SFT_KEYS}
    return chosen | ({"sft": sft} if sft else {})


def _prompting(data: Mapping[str, object]) -> str:
    """How prompts were written in training, and how to write them for the model; empty of an unknown template."""
    template, own, date = (data.get(name) for name in ("template", "chat_template", "date"))
    form = "own" if template == "tokenizer" and own else str(template)
    if form not in _WRITTEN:
        return ""
    written = f"In training prompts were written {_WRITTEN[form].format(name=code(public_name(str(own))))}"
    clock = f" The template reads the clock, which said {text(str(date))} all through the training: give it that day."
    return written + (clock if date and template == "tokenizer" else "")


def _sources(config: Mapping[str, Any], kinds: Collection[str]) -> list[str]:
    sources = (config.get("data") or {}).get("train") or []
    return [public_name(str(source[kind])) for source in sources for kind in kinds if kind in source]


def _loss_name(loss: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> str:
    losses = [loss] if isinstance(loss, Mapping) else loss or []
    return " + ".join(str(one["name"]) for one in losses)


def _versions(environment: Mapping[str, str]) -> str:
    known = [f"{name} {text(environment[name])}" for name in _LIBRARIES if name in environment]
    return f"Made with {', '.join(known)}." if known else ""
