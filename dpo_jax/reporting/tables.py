"""Tables of a report: its results in short, win rates, properties of the samples, held-out accuracy by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.evaluation.intervals import Interval
from dpo_jax.evaluation.records import Benchmark, Evaluation, Heldout, Judged, Section
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.numbers import GAP, Format, counted, interval, nats, percent, plain, points

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
        longer = _with(judged.length_controlled.longer, judged.length_controlled.longer_interval, percent)
        said.append(f"The policy's response was the longer one in {longer}.")
    if order.flipped is not None and order.first_preferred is not None:
        said.append(
            f"The winner changed with the order in {_with(order.flipped, order.flipped_interval, percent)}; the "
            f"response shown first won {_with(order.first_preferred, order.first_preferred_interval, percent)}."
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
        reference_bounds: Interval | None = None,
    ) -> None:
        if policy is not None:
            before = "" if reference is None else _with(reference, reference_bounds, form)
            rows.append((what, _with(policy, bounds, form), before))

    kl, policy, reference = evaluation.kl, evaluation.texts.policy, evaluation.texts.reference
    repeated = (policy.repeated, policy.repeated_interval, reference.repeated, reference.repeated_interval)
    add("KL a response, over the vocabulary", nats, kl.exact, kl.exact_interval)
    add("its estimate k1, the mean log-ratio", nats, kl.k1, kl.k1_interval)
    add("k2", nats, kl.k2, kl.k2_interval)
    add("k3", nats, kl.k3, kl.k3_interval)
    add("entropy a token", nats, evaluation.entropy.token)
    add("tokens", plain, evaluation.tokens, evaluation.tokens_interval)
    add("words", plain, policy.words, policy.words_interval, reference.words, reference.words_interval)
    add("empty responses", percent, policy.empty, policy.empty_interval, reference.empty, reference.empty_interval)
    add("groups of 4 words that repeat within a response", percent, *repeated)
    add("responses cut before they ended", percent, policy.cut, None, reference.cut)
    add("different words, of all", percent, policy.distinct_1, None, reference.distinct_1)
    add("different pairs of words, of all", percent, policy.distinct_2, None, reference.distinct_2)
    if not rows:
        return None
    number = len(evaluation.samples) or kl.samples
    title = f"Distance, length and repetition of {counted(number, 'samples')}, with the {INTERVAL}"
    note = "Shares of different words have no interval: they fall with the number of samples."
    return Table(title, ("", "policy", "reference"), rows, note if policy.distinct_1 is not None else "")


def _with(value: float, bounds: Interval | None, form: Format) -> str:
    """The value, and its interval in brackets."""
    return form(value) + (f" ({interval(bounds, form)})" if bounds else "")


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
    parts = {"all rows": list[Benchmark | Section](of_both)}
    parts |= {name: [each.sections[name] for each in of_both] for name in sections}
    rows = [(name, *map(_share, shares)) for name, shares in parts.items()]
    return Table(f"RewardBench accuracy, with the {INTERVAL}", ("", *names), rows)


def _share(part: Benchmark | Section) -> str:
    if part.accuracy is None:
        return ""
    on = f", {part.rows:,} rows" if part.rows is not None else ""
    return _with(part.accuracy, part.accuracy_interval, percent) + on


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
    evaluation: Evaluation, reward: Heldout | None = None, *, reward_name: str = "Reward model", shared: int = 0
) -> list[Result]:
    """The lines of all that was measured, the verdict's numbers first.

    Args:
        evaluation: of the run.
        reward: that of the run's reward model.
        reward_name: what the page calls it.
        shared: how many held-out rows are training rows, too.
    """
    also = f", {shared:,} of the rows also trained on" if shared else ""
    of_pictures = bool(evaluation.metrics) or evaluation.heldout.draws is not None
    rows = [*(_of_pictures(evaluation, also) if of_pictures else _of_texts(evaluation, also))]
    if reward:
        held = f"{reward.pairs} held-out pairs{also}"
        rows.append(_row(f"{reward_name}'s accuracy", reward.accuracy, reward.accuracy_interval, percent, held))
    return [row for row in rows if row is not None]


def _of_texts(evaluation: Evaluation, also: str) -> Sequence[Result | None]:
    judged, kl, heldout = evaluation.judged, evaluation.kl, evaluation.heldout
    policy, reference, equal = judged.policy, judged.reference, judged.length_controlled
    number, compared = counted(judged.samples, "samples"), counted(judged.samples, "comparisons")
    shares = f"share of {number}"
    labelled = heldout.rows is not None
    kind = f"{heldout.rows} labelled rows" if labelled else f"{heldout.pairs} pairs"
    good, bad = ("desirable", "undesirable") if labelled else ("chosen", "rejected")
    by_judge = f"by the judge, {judged.judge}, {number} after training"
    against = f"policy against reference in {compared}, ties half; judge: {judged.judge}"
    on, error = f"{kind} of data.eval{also}" if also else f"{kind} held out", heldout.calibration.expected_error
    sampled = f"from the reference, on {counted(kl.samples, 'samples')}"
    exactly = f"{sampled}, over the vocabulary at each token"
    biased = f"of preference probabilities, {on}; it has no interval, and is too large where pairs are few"
    return (
        _row("Judged positive, policy", policy.positive, policy.interval, percent, f"{shares} after training"),
        _row(
            "Judged positive, reference", reference.positive, reference.interval, percent, f"{shares} before training"
        ),
        _row(
            "Difference",
            judged.difference,
            judged.difference_interval,
            points,
            f"judge: {judged.judge}, {number} of each",
        ),
        _row("Mean reward, policy", policy.reward, policy.interval, plain, by_judge),
        _row("Mean reward, reference", reference.reward, reference.interval, plain, f"{number} before training"),
        _row("Win rate", judged.win_rate, judged.win_rate_interval, percent, against),
        _row(
            "Win rate at equal lengths",
            equal.win_rate,
            equal.win_rate_interval,
            percent,
            f"as AlpacaEval 2 controls it, {compared}",
        ),
        _row("Sequence KL", kl.sequence_kl, kl.interval, nats, sampled),
        _row("Sequence KL, exact", kl.exact, kl.exact_interval, nats, exactly),
        _row("Held-out accuracy", heldout.accuracy, heldout.accuracy_interval, percent, f"{good} above {bad}, {on}"),
        _row("Held-out margin", heldout.margin, heldout.margin_interval, nats, f"{good} less {bad} log-ratio, {on}"),
        _row("Calibration error", error, None, percent, biased),
        _row("Held-out loss", heldout.loss, heldout.loss_interval, plain, on),
    )


def _of_pictures(evaluation: Evaluation, also: str) -> Sequence[Result | None]:
    judged, classes, heldout = evaluation.judged, evaluation.classes, evaluation.heldout
    number = counted(judged.samples, "samples")
    noise = f"{number} from the same noise; {judged.judge}"
    rows = [_row("Win rate", judged.win_rate, judged.win_rate_interval, percent, noise)]
    for side, scores in (("reference", judged.reference), ("policy", judged.policy)):
        rows.append(_row(f"Mean score, {side}", scores.reward, scores.interval, plain, number))
    for metric, found in evaluation.metrics.items():
        sides = f"{_or_none(found.reference, plain)} before, {_or_none(found.policy, plain)} after"
        note = f"{sides}, {counted(found.samples, 'samples')}; their difference:"
        name = metric.replace("_", " ").capitalize()
        rows.append(_row(name, found.difference, found.difference_interval, plain, note))
    before, real = _or_none(classes.reference.share, percent), _or_none(classes.real, percent)
    real_of = counted(classes.real_samples, "real samples")
    seen = f"of {counted(classes.samples, 'samples')}, {before} before; the classifier is right on {real} of {real_of}"
    draws = f"{heldout.pairs} held-out pairs{also}, {heldout.draws} draws of time and noise each"
    errors = f"of {heldout.pairs} held-out pairs{also}, {_or_none(heldout.errors.reference, plain)} before"
    return (
        *rows,
        _row("Class asked for is seen", classes.policy.share, classes.policy.interval, percent, seen),
        _row("Preference accuracy", heldout.accuracy, heldout.accuracy_interval, percent, draws),
        _row("Denoising error", heldout.errors.policy, heldout.errors.policy_interval, plain, errors),
    )


def _or_none(value: float | None, form: Format) -> str:
    return "none" if value is None else form(value)


def _row(measure: str, value: float | None, bounds: Sequence[float] | None, form: Format, note: str) -> Result | None:
    return None if value is None else Result(measure, form(value), interval(bounds, form) if bounds else "", note)
