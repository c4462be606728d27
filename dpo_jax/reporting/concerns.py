"""What to worry about in a run, each worry in its own case only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.reporting.numbers import interval, nats, percent, plain
from dpo_jax.reporting.results import Evaluation, kl_of, part
from dpo_jax.reporting.series import Rows, broken_steps, ends, series

FAR_KL_NATS = 8.0
FALLEN_LOGPS_NATS = 1.0
MEMORISED_LOSS = 0.05
LONGER = 1.25  # times the words of the reference; or shorter by as much
REPEATED = 0.05  # more of the groups of words than of the reference's
EMPTY = 0.05  # more of the responses than of the reference's
BY_LENGTH = 0.05  # of the win rate, gone or won at equal lengths
FLIPPED = 0.2  # of the verdicts, with the order


def judgement_concerns(evaluation: Evaluation | None) -> list[str]:
    """Whether the difference is one, and whether it is the judge's liking for length or for what comes first."""
    concerns = []
    bounds = part(evaluation, "judged", "difference_interval")
    if part(evaluation, "judged", "difference") is not None and not _clear(bounds, 0.0):
        concerns.append("The interval of the difference is not clear of zero: judge more samples before believing it.")
    bounds = part(evaluation, "judged", "win_rate_interval")
    if bounds and not _clear(bounds, 0.5):
        concerns.append("The interval of the win rate is not clear of one half: judge more samples before believing.")
    raw, equal = part(evaluation, "judged", "win_rate"), part(evaluation, "judged", "length_controlled", "win_rate")
    if None not in (raw, equal) and not abs(raw - equal) <= BY_LENGTH:
        share = "part of it is length" if raw > equal else "shorter responses hide part of it"
        concerns.append(f"The win rate is {percent(raw)}, and at equal lengths {percent(equal)}: {share}.")
    flipped = part(evaluation, "judged", "order", "flipped")
    if flipped is not None and not flipped <= FLIPPED:
        concerns.append(f"The judge is unsure: in {percent(flipped)} of the comparisons the order decided who won.")
    if lost := part(evaluation, "judged", "usage", "not_understood"):
        concerns.append(f"{lost} answers of the judge were not understood, and count as ties.")
    return concerns


def sample_concerns(evaluation: Evaluation | None) -> list[str]:
    """Whether the policy went far, and what its samples became: long, short, empty, repetitive."""
    concerns = []
    kl = kl_of(evaluation)
    if kl is not None and not kl[0] <= FAR_KL_NATS:
        concerns.append(
            f"The sequence KL is {nats(kl[0])}, not within {nats(FAR_KL_NATS)}: look for overshoot in the samples."
        )
    policy, reference = (part(evaluation, "texts", side) or {} for side in ("policy", "reference"))

    def both(name: str) -> tuple[float, float] | None:
        after, before = policy.get(name), reference.get(name)
        return None if after is None or before is None else (after, before)

    if (words := both("words")) and not words[1] / LONGER <= words[0] <= words[1] * LONGER:
        became = "longer" if words[0] > words[1] else "shorter"
        concerns.append(f"Responses became {became}: {plain(words[0])} words against {plain(words[1])} before.")
    if (repeated := both("repeated")) and not repeated[0] <= repeated[1] + REPEATED:
        concerns.append(
            f"Samples repeat themselves: {percent(repeated[0])} of their groups of four words were there before in the "
            f"same response, {percent(repeated[1])} in the reference's."
        )
    if (empty := both("empty")) and not empty[0] <= empty[1] + EMPTY:
        concerns.append(f"{percent(empty[0])} of the samples are empty, {percent(empty[1])} of the reference's.")
    return concerns


def heldout_concerns(evaluation: Evaluation | None) -> list[str]:
    """Whether it prefers what it never saw."""
    bounds = part(evaluation, "heldout", "accuracy_interval")
    if bounds and not bounds[0] > 0.5:
        return [f"Held-out accuracy is not clear of chance: its interval is {interval(bounds, percent)}."]
    return []


def training_concerns(rows: Rows, fitted: Mapping[str, Any] | None) -> list[str]:
    """Whether the training went as it should, and began where it should; `fitted` as `RunReport` has it."""
    concerns = []
    if broken := broken_steps(rows):
        count = f"{len(broken)} of {len(rows)} logged steps"
        concerns.append(f"NaN or infinite values at {count}, first at step {broken[0]}.")
    if skipped := int(rows[-1].get("skipped_steps", 0)) if rows else 0:
        concerns.append(f"Steps skipped because their loss or gradient was not finite: {skipped}.")
    # Log-ratios are free of how long each batch's responses happen to be; log-probs are not.
    _, ratio = ends(series(rows, "log_ratios/chosen")[1])
    before, after = ends(series(rows, "logps/chosen")[1])
    if ratio < -FALLEN_LOGPS_NATS:
        concerns.append(f"Chosen responses fell {nats(-ratio)} below the reference: likelihood is being displaced.")
    elif math.isnan(ratio) and after - before < -FALLEN_LOGPS_NATS:
        fall = nats(before - after)
        concerns.append(f"Chosen responses lost {fall} of log-probability in training: likelihood is being displaced.")
    loss = ends(series(rows, "loss")[1])[1]
    if loss < MEMORISED_LOSS:
        concerns.append(f"The training loss ends at {plain(loss)}: the pairs are all but memorised.")
    if (fitted or {}).get("fitted") is False:
        concerns.append(
            "Fine-tuning had not fitted the policy to the chosen responses: their perplexity was "
            f"{plain(part(fitted, 'perplexity'))} a token, and {plain(part(fitted, 'before_fine_tuning'))} before it."
        )
    return concerns


def data_concerns(splits: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `check-data` called odd, one worry for each split."""
    found = {split["name"]: [f"{count} {what}" for what, count, odd in split["facts"] if odd] for split in splits}
    return [f"Odd in {name}: {'; '.join(odd)}." for name, odd in found.items() if odd]


def _clear(bounds: Sequence[float] | None, value: float) -> bool:
    return bounds is not None and (bounds[0] > value or bounds[1] < value)
