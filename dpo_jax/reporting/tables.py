"""Tables of a report: its results in short, win rates, properties of the samples, held-out accuracy by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.evaluation.intervals import Interval
from dpo_jax.evaluation.records import Evaluation, Heldout, Judged
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.numbers import GAP, Format, interval, nats, percent, plain, points

INTERVAL = f"95{GAP}% interval"


class Table(NamedTuple):
    """A table with a title, its columns named; the first column is text. `note` are sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def judged_table(evaluation: Evaluation) -> Table | None:
    """Win rates: raw, at equal lengths, and in either order; None where nobody judged."""
    judged, equal, order = evaluation.judged, evaluation.judged.length_controlled, evaluation.judged.order
    rates = (
        ("as judged, ties half", judged.win_rate, judged.win_rate_interval),
        ("at equal lengths", equal.win_rate, equal.win_rate_interval),
        ("policy shown first", order.policy_first, order.policy_first_interval),
        ("policy shown second", order.policy_second, order.policy_second_interval),
    )
    rows = [
        (what, percent(rate), interval(bounds, percent)) for what, rate, bounds in rates if rate is not None and bounds
    ]
    if not rows:
        return None
    return Table(f"Judged by {judged.judge}", ("", "policy wins", INTERVAL), rows, _said_of_the_judge(judged))


def _said_of_the_judge(judged: Judged) -> str:
    said, order, usage = [], judged.order, judged.usage
    if judged.wins is not None:
        said.append(
            f"Of {judged.samples} comparisons {judged.wins} were won, {judged.ties} tied and {judged.losses} lost."
        )
    if judged.length_controlled.longer is not None:
        said.append(f"The policy's response was the longer one in {percent(judged.length_controlled.longer)}.")
    if order.flipped is not None and order.first_preferred is not None:
        said.append(
            f"The winner changed with the order in {percent(order.flipped)}; the response shown first won "
            f"{percent(order.first_preferred)}."
        )
    if usage:
        cost = "" if usage.cost is None else f", at a cost of {usage.cost:.4f}"
        said.append(
            f"The endpoint answered {usage.requests} requests{cost}; {usage.not_understood} answers were not "
            f"understood, {usage.cached} verdicts were known."
        )
    return " ".join(said)


def samples_table(evaluation: Evaluation) -> Table | None:
    """Distance of samples from the reference, their variety, length and repetition; None without samples."""
    rows: list[tuple[str, str, str]] = []

    def add(
        what: str,
        form: Format,
        policy: float | None,
        bounds: Interval | None = None,
        reference: float | None = None,
    ) -> None:
        if policy is not None:
            spread = f" ({interval(bounds, form)})" if bounds else ""
            rows.append((what, form(policy) + spread, "" if reference is None else form(reference)))

    kl, policy, reference = evaluation.kl, evaluation.texts.policy, evaluation.texts.reference
    add("KL a response, over the vocabulary", nats, kl.exact, kl.exact_interval)
    add("its estimate k1, the mean log-ratio", nats, kl.k1, kl.k1_interval)
    add("k2", nats, kl.k2, kl.k2_interval)
    add("k3", nats, kl.k3, kl.k3_interval)
    add("entropy a token", nats, evaluation.entropy.token)
    add("tokens", plain, evaluation.tokens, evaluation.tokens_interval)
    add("words", plain, policy.words, policy.words_interval, reference.words)
    add("empty responses", percent, policy.empty, None, reference.empty)
    add("groups of 4 words that repeat within a response", percent, policy.repeated, None, reference.repeated)
    add("different words, of all", percent, policy.distinct_1, None, reference.distinct_1)
    add("different pairs of words, of all", percent, policy.distinct_2, None, reference.distinct_2)
    if not rows:
        return None
    return Table(f"Distance, length and repetition of samples, with the {INTERVAL}", ("", "policy", "reference"), rows)


def heldout_table(evaluation: Evaluation) -> Table | None:
    """Held-out accuracy by which response is longer, and by source where there are several."""
    by_source = evaluation.heldout.by_source
    parts = {name.replace("_", " "): part for name, part in evaluation.heldout.by_length.items()}
    parts |= by_source if len(by_source) > 1 else {}
    rows = [
        (name, str(part.pairs), percent(part.accuracy), interval(part.accuracy_interval, percent))
        for name, part in parts.items()
        if part.accuracy is not None and part.accuracy_interval
    ]
    return Table("Held-out accuracy by part", ("", "pairs", "accuracy", INTERVAL), rows) if rows else None


def benchmark_table(evaluation: Evaluation) -> Table | None:
    """RewardBench by section; None where it was not run."""
    of_both = [each for each in (evaluation.rewardbench.policy, evaluation.rewardbench.judge) if each]
    if not of_both:
        return None
    names = [f"judge: {each.name}" if each.name else "implicit reward" for each in of_both]
    sections = dict.fromkeys(section for each in of_both for section in each.sections)
    accuracies = {"all rows": [each.accuracy for each in of_both]}
    accuracies |= {name: [each.sections[name].accuracy for each in of_both] for name in sections}
    rows = [
        (name, *("" if share is None else percent(share) for share in shares)) for name, shares in accuracies.items()
    ]
    return Table("RewardBench accuracy", ("", *names), rows)


def data_table(splits: Sequence[SplitReport]) -> Table | None:
    """The facts of `check-data` in short, a column a split; odd counts are marked, and what is nowhere is named."""
    if not splits:
        return None
    counts: dict[str, dict[str, str]] = {}
    for split in splits:
        for what, count, odd in split.facts:
            counts.setdefault(what, {})[split.name] = f"! {count}" if odd else count
        half, longest = (split.percentiles.index(share) for share in (50, 100))
        for name, lengths in split.lengths.items():
            tokens = f"{lengths[half]:,} / {lengths[longest]:,}"
            counts.setdefault(f"tokens of {name}, median / longest", {})[split.name] = tokens
    names = [split.name for split in splits]
    nowhere = [what for what, of_splits in counts.items() if set(of_splits.values()) == {"0"}]
    rows = [
        (what, *(of_splits.get(name, "") for name in names))
        for what, of_splits in counts.items()
        if what not in nowhere
    ]
    return Table("", ("", *names), rows, f"There were no {', no '.join(nowhere)}." if nowhere else "")


class Result(NamedTuple):
    """One line of the table. `interval` may be empty."""

    measure: str
    value: str
    interval: str
    note: str


def result_rows(
    evaluation: Evaluation, reward: Heldout | None = None, *, reward_name: str = "Reward model"
) -> list[Result]:
    """The lines of all that was measured, the verdict's numbers first; `reward` is of the run's reward model."""
    of_pictures = bool(evaluation.metrics) or evaluation.heldout.draws is not None
    rows = [*(_of_pictures(evaluation) if of_pictures else _of_texts(evaluation))]
    if reward:
        held = f"{reward.pairs} held-out pairs"
        rows.append(_row(f"{reward_name}'s accuracy", reward.accuracy, reward.accuracy_interval, percent, held))
    return [row for row in rows if row is not None]


def _of_texts(evaluation: Evaluation) -> Sequence[Result | None]:
    judged, kl, heldout = evaluation.judged, evaluation.kl, evaluation.heldout
    policy, reference, equal = judged.policy, judged.reference, judged.length_controlled
    shares = f"share of {judged.samples} samples"
    labelled = heldout.rows is not None
    kind = f"{heldout.rows} labelled rows" if labelled else f"{heldout.pairs} pairs"
    good, bad = ("desirable", "undesirable") if labelled else ("chosen", "rejected")
    by_judge = f"by the judge, {judged.judge}, after training"
    against = f"policy against reference, ties half; judge: {judged.judge}"
    never, error = f"{good} above {bad}, {kind} never trained on", heldout.calibration.expected_error
    sampled = f"from the reference, on {kl.samples} samples"
    exactly = "the same, over the vocabulary at each token"
    return (
        _row("Judged positive, policy", policy.positive, policy.interval, percent, f"{shares} after training"),
        _row(
            "Judged positive, reference", reference.positive, reference.interval, percent, f"{shares} before training"
        ),
        _row("Difference", judged.difference, judged.difference_interval, points, f"judge: {judged.judge}"),
        _row("Mean reward, policy", policy.reward, policy.interval, plain, by_judge),
        _row("Mean reward, reference", reference.reward, reference.interval, plain, "the same, before training"),
        _row("Win rate", judged.win_rate, judged.win_rate_interval, percent, against),
        _row(
            "Win rate at equal lengths", equal.win_rate, equal.win_rate_interval, percent, "as AlpacaEval 2 controls it"
        ),
        _row("Sequence KL", kl.sequence_kl, kl.interval, nats, sampled),
        _row("Sequence KL, exact", kl.exact, kl.exact_interval, nats, exactly),
        _row("Held-out accuracy", heldout.accuracy, heldout.accuracy_interval, percent, never),
        _row("Held-out margin", heldout.margin, None, nats, f"{good} less {bad} log-ratio, the same"),
        _row("Calibration error", error, None, percent, "of preference probabilities, the same"),
        _row("Held-out loss", heldout.loss, None, plain, "the same"),
    )


def _of_pictures(evaluation: Evaluation) -> Sequence[Result | None]:
    judged, classes, heldout = evaluation.judged, evaluation.classes, evaluation.heldout
    noise = f"samples from the same noise; {judged.judge}"
    rows = [_row("Win rate", judged.win_rate, judged.win_rate_interval, percent, noise)]
    for side, scores in (("reference", judged.reference), ("policy", judged.policy)):
        rows.append(_row(f"Mean score, {side}", scores.reward, scores.interval, plain, ""))
    for metric, found in evaluation.metrics.items():
        note = f"{_or_none(found.reference, plain)} before, {_or_none(found.policy, plain)} after; their difference:"
        name = metric.replace("_", " ").capitalize()
        rows.append(_row(name, found.difference, found.difference_interval, plain, note))
    before, real = _or_none(classes.reference.share, percent), _or_none(classes.real, percent)
    seen = f"{before} before; the classifier is right on {real} of real samples"
    draws = f"{heldout.pairs} held-out pairs, {heldout.draws} draws of time and noise each"
    errors = f"of held-out samples, {_or_none(heldout.errors.reference, plain)} before"
    return (
        *rows,
        _row("Class asked for is seen", classes.policy.share, classes.policy.interval, percent, seen),
        _row("Preference accuracy", heldout.accuracy, heldout.accuracy_interval, percent, draws),
        _row("Denoising error", heldout.errors.policy, None, plain, errors),
    )


def _or_none(value: float | None, form: Format) -> str:
    return "none" if value is None else form(value)


def _row(measure: str, value: float | None, bounds: Sequence[float] | None, form: Format, note: str) -> Result | None:
    return None if value is None else Result(measure, form(value), interval(bounds, form) if bounds else "", note)
