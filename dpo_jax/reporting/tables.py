"""Tables of a report: who won by whose judgement, what the samples are like, and where held-out pairs are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.reporting.numbers import GAP, Format, interval, nats, percent, plain
from dpo_jax.reporting.results import Evaluation, part

INTERVAL = f"95{GAP}% interval"


class Table(NamedTuple):
    """A table with a title, its columns named; the first column is text. `note` are sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def judged_table(evaluation: Evaluation | None) -> Table | None:
    """Win rates: raw, at equal lengths, and in either order; None where nobody judged."""
    judged: Mapping[str, Any] = part(evaluation, "judged") or {}
    found: list[tuple[str, Mapping[str, Any], str]] = [
        ("as judged, ties half", judged, "win_rate"),
        ("at equal lengths", judged.get("length_controlled") or {}, "win_rate"),
        ("policy shown first", judged.get("order") or {}, "policy_first"),
        ("policy shown second", judged.get("order") or {}, "policy_second"),
    ]
    rows = [
        (what, percent(values[name]), interval(values[f"{name}_interval"], percent))
        for what, values, name in found
        if values.get(name) is not None and values.get(f"{name}_interval")
    ]
    if not rows:
        return None
    return Table(f"Judged by {judged.get('judge')}", ("", "policy wins", INTERVAL), rows, _said_of_the_judge(judged))


def _said_of_the_judge(judged: Mapping[str, Any]) -> str:
    said = []
    if "wins" in judged:
        said.append(
            f"Of {judged['samples']} comparisons {judged['wins']} were won, {judged['ties']} tied and "
            f"{judged['losses']} lost."
        )
    if equal := judged.get("length_controlled"):
        said.append(f"The policy's response was the longer one in {percent(equal['longer'])}.")
    if order := judged.get("order"):
        said.append(
            f"The winner changed with the order in {percent(order['flipped'])}; the response shown first won "
            f"{percent(order['first_preferred'])}."
        )
    if usage := judged.get("usage"):
        cost = f", at a cost of {usage['cost']:.4f}" if "cost" in usage else ""
        said.append(
            f"The endpoint answered {usage['requests']} requests{cost}; {usage['not_understood']} answers were not "
            f"understood, {usage['cached']} verdicts were known."
        )
    return " ".join(said)


def samples_table(evaluation: Evaluation | None) -> Table | None:
    """How far samples are from the reference, how varied, how long, and how much they repeat; None without samples."""
    sides = [part(evaluation, "texts", name) or {} for name in ("policy", "reference")]
    rows: list[tuple[str, str, str]] = []

    def add(what: str, form: Format, policy: Any, bounds: Sequence[float] | None = None, reference: Any = None) -> None:
        if policy is not None:
            spread = f" ({interval(bounds, form)})" if bounds else ""
            rows.append((what, form(policy) + spread, "" if reference is None else form(reference)))

    kl, entropy = (part(evaluation, name) or {} for name in ("kl", "entropy"))
    add("KL a response, over the vocabulary", nats, kl.get("exact"), kl.get("exact_interval"))
    for name, what in (("k1", "its estimate k1, the mean log-ratio"), ("k2", "k2"), ("k3", "k3")):
        add(what, nats, kl.get(name), kl.get(f"{name}_interval"))
    add("entropy a token", nats, entropy.get("token"))
    add("tokens", plain, part(evaluation, "tokens"), part(evaluation, "tokens_interval"))
    policy, reference = sides
    add("words", plain, policy.get("words"), policy.get("words_interval"), reference.get("words"))
    for name, what in (
        ("empty", "empty responses"),
        ("repeated", "groups of 4 words that repeat within a response"),
        ("distinct_1", "different words, of all"),
        ("distinct_2", "different pairs of words, of all"),
    ):
        add(what, percent, policy.get(name), None, reference.get(name))
    if not rows:
        return None
    return Table(f"Distance, length and repetition of samples, with the {INTERVAL}", ("", "policy", "reference"), rows)


def heldout_table(evaluation: Evaluation | None) -> Table | None:
    """Held-out accuracy by which response is longer, and by source where there are several."""
    by_source = part(evaluation, "heldout", "by_source") or {}
    parts = {name.replace("_", " "): each for name, each in (part(evaluation, "heldout", "by_length") or {}).items()}
    parts |= by_source if len(by_source) > 1 else {}
    rows = [
        (name, str(each["pairs"]), percent(each["accuracy"]), interval(each["accuracy_interval"], percent))
        for name, each in parts.items()
    ]
    return Table("Held-out accuracy by part", ("", "pairs", "accuracy", INTERVAL), rows) if rows else None


def benchmark_table(evaluation: Evaluation | None) -> Table | None:
    """RewardBench by section; None where it was not run."""
    found: Mapping[str, Any] = part(evaluation, "rewardbench") or {}
    if not found:
        return None
    names = [f"judge: {each['name']}" if "name" in each else "implicit reward" for each in found.values()]
    sections = dict.fromkeys(section for each in found.values() for section in each["sections"])
    rows = [("all rows", *(percent(each["accuracy"]) for each in found.values()))]
    rows += [
        (section, *(percent(part(each, "sections", section, "accuracy")) for each in found.values()))
        for section in sections
    ]
    return Table("RewardBench accuracy", ("", *names), rows)


def data_table(splits: Sequence[Mapping[str, Any]]) -> Table | None:
    """What `check-data` found, in short, a column a split; odd counts are marked, and what is nowhere is named."""
    if not splits:
        return None
    counts: dict[str, dict[str, str]] = {}
    for split in splits:
        for what, count, odd in split["facts"]:
            counts.setdefault(what, {})[split["name"]] = f"! {count}" if odd else count
        half, longest = (split["percentiles"].index(share) for share in (50, 100))
        for name, lengths in split["lengths"].items():
            tokens = f"{lengths[half]:,} / {lengths[longest]:,}"
            counts.setdefault(f"tokens of {name}, median / longest", {})[split["name"]] = tokens
    names = [split["name"] for split in splits]
    nowhere = [what for what, found in counts.items() if set(found.values()) == {"0"}]
    rows = [(what, *(found.get(name, "") for name in names)) for what, found in counts.items() if what not in nowhere]
    return Table("", ("", *names), rows, f"There were no {', no '.join(nowhere)}." if nowhere else "")
