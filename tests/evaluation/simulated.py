"""Worlds whose truth is known, and how often each interval that is printed holds it, through what prints it.

    python -m tests.evaluation.simulated          # the table of dpo_jax/evaluation/README.md, 4,000 trials each

A world draws so many values anew each time and gives each interval that came of them with its truth, by the name of
its field.

Dimension key: n values, G groups, P slot in the pair.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import erf

from dpo_jax.evaluation.best_of import best_of_table, soft_best_of_table
from dpo_jax.evaluation.divergence import Divergences, divergence_metrics
from dpo_jax.evaluation.heldout import (
    accuracy_by_length,
    accuracy_by_source,
    calibration,
    perplexity_interval,
    preference_metrics,
    reward_metrics,
    unpaired_metrics,
)
from dpo_jax.evaluation.intervals import Interval, mean_interval
from dpo_jax.evaluation.judges import Orders
from dpo_jax.evaluation.length_controlled import length_controlled
from dpo_jax.evaluation.rewardbench import rewardbench
from dpo_jax.evaluation.seeds import across_seeds
from dpo_jax.evaluation.texts import describe_texts
from dpo_jax.evaluation.winrate import compare_rewards, order_effect, win_rate
from dpo_jax.experiments.picture_evaluation import heldout_of_errors, quality_of, shares_seen
from dpo_jax.experiments.text_analysis import displacement_of
from dpo_jax.experiments.text_evaluation import judged_by_scores
from dpo_jax.reference.store import Scores
from dpo_jax.reporting.plots import LEAST_STEPS, windows

Random = np.random.Generator
Found = Mapping[str, tuple[Interval | None, float]]
"""Field -> the interval that was made, and the truth."""


def phi(x: float) -> float:
    """The share of a normal distribution below x."""
    return (1 + float(erf(x / math.sqrt(2)))) / 2


def _log_loss(margins: np.ndarray) -> float:
    return float(np.logaddexp(0, -margins).mean())


def names(groups: Iterable[int]) -> list[str]:
    """A prompt for each group."""
    return [f"prompt {group}" for group in groups]


class World(NamedTuple):
    """What is drawn, at which sizes, and from which on an interval must not be too long either; `group` values each."""

    draw: Callable[[Random, int], Found]
    sizes: tuple[int, ...]
    exact_from: int = 1_000
    group: int = 1
    skewed: bool = False

    def floor(self, size: int) -> float:
        """How often the truth must be held at least: of fewer than 16 skewed values nothing known does better."""
        return 0.88 if self.skewed and size < 16 * self.group else 0.93


def pairs(of_chosen: float, *, skewed: bool = False, of_group: int = 1) -> Callable[[Random, int], Found]:
    """Held-out pairs, normal or skewed; pairs of one prompt have an effect in common."""
    noise = 1.0 if of_group == 1 else 2.0
    if skewed:
        right = 1 - math.exp(-of_chosen) / 2
        many = np.random.default_rng(1).laplace(of_chosen, 1, 1_000_000)
    else:
        right = phi(of_chosen / math.sqrt(1 + noise))
        many = np.random.default_rng(1).normal(of_chosen, math.sqrt(1 + noise), 1_000_000)
    loss, mean = _log_loss(many), float(skewed)

    def draw(random: Random, size: int) -> Found:
        groups = np.arange(size) // of_group
        draws = random.exponential if skewed else random.normal
        logps_nP = draws(size=(size, 2))
        logps_nP[:, 0] += of_chosen + (random.normal(size=size)[groups] if of_group > 1 else 0.0)
        margins, zeros_nP = logps_nP[:, 0] - logps_nP[:, 1], np.zeros((size, 2))
        of_policy = preference_metrics(logps_nP, zeros_nP, beta=1.0, groups_B=groups)
        rewarded = reward_metrics(logps_nP, groups)
        by_source = accuracy_by_source(margins, np.zeros(size, int), ["one"], groups)["one"]
        by_length = accuracy_by_length(margins, np.ones((size, 2)), groups)["about_equal"]
        losses = np.logaddexp(0, -margins)
        errors = heldout_of_errors(zeros_nP, logps_nP, None, draws=1) if of_group == 1 else None
        fell = displacement_of("x", *_scores(logps_nP - of_chosen - mean), {"a": random.normal(size=size)}, groups)
        below = phi(0) if not skewed else 1 - math.exp(-1)
        found: dict[str, tuple[Interval | None, float]] = {
            "Heldout.accuracy_interval": (of_policy.accuracy_interval, right),
            "Heldout.margin_interval": (rewarded.margin_interval, of_chosen),
            "Heldout.loss_interval": (mean_interval(losses, groups), loss),
            "Accuracy.accuracy_interval": (by_source.accuracy_interval, right),
            "Accuracy.accuracy_interval, by length": (by_length.accuracy_interval, right),
            "Moved.interval": (of_policy.moved.chosen.interval, of_chosen + mean),
            "Moved.interval, rejected": (of_policy.moved.rejected.interval, mean),
            "Calibration.log_loss_interval": (calibration(margins, beta=1.0, groups_B=groups).log_loss_interval, loss),
            "Displacement.interval": (fell.interval, below),
            "LikenessBin.interval": (fell.by["a"].bins[0].interval, below),
        }
        if errors:
            found["Heldout.accuracy_interval, pictures"] = (errors.accuracy_interval, right)
            found["Sides.reference_interval"] = (errors.errors.reference_interval, of_chosen / 2 + mean)
        return found

    return draw


def _scores(logps_nP: np.ndarray) -> tuple[Scores, Scores]:
    tokens_nP = np.ones(logps_nP.shape, int)
    return Scores(logps_nP, tokens_nP, logps_nP), Scores(0 * logps_nP, tokens_nP, logps_nP)


def labelled(area: float, *, of_group: int = 1) -> Callable[[Random, int], Found]:
    """Completions, three in five of them desirable, normal; those of one prompt have an effect in common."""
    noise = 1.0 if of_group == 1 else 2.0
    apart = _normal_quantile(area) * math.sqrt(2 * noise)

    def draw(random: Random, size: int) -> Found:
        groups, good = np.arange(size) // of_group, np.arange(size) * 3 % 5 < 3
        # Desirable and undesirable answers to a prompt are as alike as those of two prompts: no comparison is easier.
        effect = random.normal(size=(size, 2))[groups, good.astype(int)] if of_group > 1 else 0.0
        ratios = random.normal(size=size) + effect + apart * good
        of_texts = unpaired_metrics(ratios, np.zeros(size), good, beta=1.0, groups_n=groups)
        found = {
            "Heldout.accuracy_interval, labelled": (of_texts.accuracy_interval, area),
            "Heldout.margin_interval, labelled": (of_texts.margin_interval, apart),
        }
        if of_group == 1:
            errors = heldout_of_errors(-ratios[:, None], np.zeros((size, 1)), good, draws=1)
            found["Heldout.accuracy_interval, labelled pictures"] = (errors.accuracy_interval, area)
        return found

    return draw


def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def verdicts(won: float, tied: float, *, alike: float = 0.0, of_group: int = 1) -> Callable[[Random, int], Found]:
    """Verdicts of a judge on several answers to a prompt, which with chance `alike` are all judged like the first."""
    chances, rate = [1 - won - tied, tied, won], won + tied / 2

    def judged(random: Random, size: int) -> np.ndarray:
        own, firsts = random.choice([0.0, 0.5, 1.0], (2, size), p=chances)
        groups = np.arange(size) // of_group
        return np.where(random.random(size) < alike, firsts[groups], own) if of_group > 1 else own

    def draw(random: Random, size: int) -> Found:
        groups = np.arange(size) // of_group
        prompts, policy, other = names(groups), judged(random, size), judged(random, size)
        first = order_effect(Orders(policy, other), prompts)
        flipped = 2 * won * (1 - won - tied)
        scored = judged_by_scores(policy, other, prompts, judge=None, neutral=0.75)
        plain = compare_rewards(policy, np.full(size, 0.5), prompts)
        seen = shares_seen(policy == 1, other == 1, policy == 1)
        found = {
            "WinRate.win_rate_interval": (win_rate(policy, prompts).win_rate_interval, rate),
            "Judged.win_rate_interval": (plain.win_rate_interval, rate),
            "JudgedSide.interval": (scored.policy.interval, won),
            "Judged.difference_interval": (scored.difference_interval, 0.0),
            "OrderEffect.policy_first_interval": (first.policy_first_interval, rate),
            "OrderEffect.policy_second_interval": (first.policy_second_interval, rate),
            "OrderEffect.first_preferred_interval": (first.first_preferred_interval, 0.5),
            "Seen.interval": (seen.policy.interval, won),
            "Classes.real_interval": (seen.real_interval, won),
            "Classes.difference_interval": (seen.difference_interval, 0.0),
        }
        if not alike:  # else a flip needs its own arithmetic
            found["OrderEffect.flipped_interval"] = (first.flipped_interval, flipped)
        if of_group > 1:
            found = {name: each for name, each in found.items() if "Seen" not in name and "Classes" not in name}
        return found

    return draw


def rewards(random: Random, size: int) -> Found:
    """Skewed rewards of both models' answers."""
    policy, other = random.exponential(2, size), random.exponential(1, size)
    found = compare_rewards(policy, other, names(range(size)))
    scored = judged_by_scores(policy, other, names(range(size)), judge=None, neutral=1.0)
    return {
        "Judged.reward_difference_interval": (found.reward_difference_interval, 1.0),
        "JudgedSide.interval, rewards": (found.policy.interval, 2.0),
        "JudgedSide.score_interval": (scored.reference.score_interval, 1.0),
        "Judged.win_rate_interval, rewards": (found.win_rate_interval, 2 / 3),
        "Quality.difference_interval": (quality_of(policy, other).difference_interval, 1.0),
    }


def lengths(quality: float, bias: float, longer: float, *, of_group: int = 1) -> Callable[[Random, int], Found]:
    """A judge that likes length, and prompts that are easy or hard for both."""
    spread = 0.0 if of_group == 1 else 1.0
    effects = spread * np.random.default_rng(1).normal(size=200_000)
    truth = float(np.mean(1 / (1 + np.exp(-quality - effects))))

    def draw(random: Random, size: int) -> Found:
        groups = np.arange(size) // of_group
        extra = np.round(random.normal(longer, 60, size)).astype(int)
        chance = 1 / (1 + np.exp(-(quality + spread * random.normal(size=size)[groups] + bias * np.tanh(extra / 60))))
        won = (random.random(size) < chance).astype(float)
        found = length_controlled(won, ["x" * (400 + more) for more in extra], ["y" * 400] * size, names(groups))
        return {
            "LengthControlled.win_rate_interval": (found.win_rate_interval, truth),
            "LengthControlled.longer_interval": (found.longer_interval, 1 - phi((0.5 - longer) / 60)),
        }

    return draw


def samples(of_group: int) -> Callable[[Random, int], Found]:
    """Divergences and lengths of samples of the policy, all of them skewed; perplexities."""

    def draw(random: Random, size: int) -> Found:
        groups = np.arange(size) // of_group
        effect = random.exponential(size=size)[groups] if of_group > 1 else 0.0
        mean = 2.0 if of_group > 1 else 1.0
        exact, k1 = random.exponential(size=size) + effect, random.normal(size=size) + effect
        tokens = 1 + random.poisson(20, size)
        rates = random.gamma(4, 0.5, size)
        logps = -rates * tokens
        sums = Divergences(*(np.asarray(each) for each in (logps, exact, k1, exact / 2, exact * 3)))  # type: ignore[arg-type]
        found = divergence_metrics(sums, tokens, groups)
        return {
            "Divergence.exact_interval": (found.kl.exact_interval, mean),
            "Divergence.k1_interval": (found.kl.k1_interval, mean - 1),
            "Divergence.interval": (found.kl.interval, mean - 1),
            "Divergence.k2_interval": (found.kl.k2_interval, mean / 2),
            "Divergence.k3_interval": (found.kl.k3_interval, mean * 3),
            "Entropy.sequence_interval": (found.entropy.sequence_interval, 42.0),
            "Evaluation.tokens_interval": (found.tokens_interval, 21.0),
            "Sides.policy_interval": (perplexity_interval(logps, tokens, groups), math.exp(2)),
            "Fitted.perplexity_interval": (perplexity_interval(logps, tokens, groups), math.exp(2)),
        }

    return draw


def texts(random: Random, size: int) -> Found:
    """A tenth is empty; of the others a fifth says one word over and over."""
    counts = np.where(random.random(size) < 0.1, 0, 4 + random.poisson(6, size))
    over = random.random(size) < 0.2
    written = [
        " ".join("again" if same else str(word) for word in range(count))
        for count, same in zip(counts, over, strict=True)
    ]
    found = describe_texts(written)
    chances = [math.exp(-6) * 6**more / math.factorial(more) for more in range(60)]
    repeated = 0.2 * sum(chance * (1 - 1 / (1 + more)) for more, chance in enumerate(chances))
    return {
        "Texts.words_interval": (found.words_interval, 9.0),
        "Texts.empty_interval": (found.empty_interval, 0.1),
        "Texts.repeated_interval": (found.repeated_interval, repeated),
    }


def benchmark(random: Random, size: int) -> Found:
    """Rows of RewardBench's reasoning: mathematics counts six times as much as each language."""
    subsets = ["math-prm"] * size + [
        f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust") for _ in range(size)
    ]
    right = random.random(len(subsets)) < np.where(np.arange(len(subsets)) < size, 0.6, 0.95)
    found = rewardbench(right, subsets)
    return {
        "Share.accuracy_interval": (found.subsets["hep-go"].accuracy_interval, 0.95),
        "Section.accuracy_interval": (found.sections["Reasoning"].accuracy_interval, (0.6 + 0.95) / 2),
        "Benchmark.accuracy_interval": (found.accuracy_interval, (0.6 + 6 * 0.95) / 7),
    }


_SOFT = [row.score for row in soft_best_of_table(np.random.default_rng(1).exponential(size=(200_000, 4)))]


def choices(random: Random, size: int) -> Found:
    """The best of four responses with exponential scores: 1 + 1/2 + 1/3 + 1/4."""
    scores = random.exponential(size=(size, 4))
    soft = soft_best_of_table(scores)
    assert _SOFT[3] is not None
    return {
        "BestOf.interval": (best_of_table(scores)[-1].interval, 25 / 12),
        "BestOf.interval, soft": (soft[3].interval, _SOFT[3]),
    }


def seeds(random: Random, size: int) -> Found:
    """Figures of several runs, each a mean of many."""
    return {"Line.measures": (across_seeds(random.normal(size=size).tolist())[1], 0.0)}


def course(random: Random, size: int) -> Found:
    """The first and the last logged steps of a training that moves nowhere, each a mean of a batch of eight."""
    ends = windows(random.exponential(size=(2 * size, 8)).mean(axis=1))
    assert ends is not None and ends[0].steps >= LEAST_STEPS
    return {"Window.interval": (ends[0].interval, 1.0), "Window.interval, last": (ends[1].interval, 1.0)}


WORLDS: dict[str, World] = {
    "pairs": World(pairs(0.5), (8, 64, 200), 64, skewed=True),
    "skewed pairs": World(pairs(0.5, skewed=True), (8, 64, 200), 64, skewed=True),
    "pairs, nearly all right": World(pairs(3.0), (8, 64, 200), skewed=True),
    "four pairs of a prompt": World(pairs(0.5, of_group=4), (20, 80, 200), 200, group=4, skewed=True),
    "labelled completions": World(labelled(0.76), (5, 20, 100), 100),
    "labelled completions, nearly all right": World(labelled(0.97), (5, 20, 100)),
    "five labelled completions of a prompt": World(labelled(0.8, of_group=5), (25, 100), group=5),
    "verdicts": World(verdicts(0.45, 0.1), (4, 8, 64, 200), 64),
    "verdicts, nearly all won": World(verdicts(0.95, 0.0), (8, 64, 200)),
    "verdicts, nearly all ties": World(verdicts(0.1, 0.9), (8, 64, 200)),
    "verdicts on four answers to a prompt": World(verdicts(0.5, 0.0, alike=0.6, of_group=4), (20, 80, 200), group=4),
    "verdicts on four answers, nearly all won": World(verdicts(0.9, 0.0, alike=0.6, of_group=4), (20, 80), group=4),
    "rewards": World(rewards, (4, 8, 64, 200), 64, skewed=True),
    "lengths": World(lengths(0.5, 2.0, 40), (4, 8, 50, 200), 50),
    "lengths, nearly all won": World(lengths(2.9, 0.5, 20), (8, 50, 200)),
    "lengths of four answers to a prompt": World(lengths(0.5, 2.0, 40, of_group=4), (20, 80), group=4),
    "samples": World(samples(1), (4, 8, 64, 200), 64, skewed=True),
    "four samples of a prompt": World(samples(4), (20, 80, 200), 80, group=4, skewed=True),
    "texts": World(texts, (20, 64)),
    "benchmark": World(benchmark, (5, 40)),
    "choices": World(choices, (8, 64), 64, skewed=True),
    "seeds": World(seeds, (2, 3, 5), 2),
    "course": World(course, (5, 50), 50, skewed=True),
}


def coverage(world: World, size: int, trials: int) -> dict[str, float]:
    """How often each interval holds the truth."""
    random, inside = np.random.default_rng(size), Counter[str]()
    for _ in range(trials):
        for name, (interval, truth) in world.draw(random, size).items():
            assert interval is not None
            low, high = interval
            inside[name] += low <= truth <= high
    return {name: held / trials for name, held in inside.items()}


def main(trials: int = 2000) -> None:
    """Print the table: of each world and size the least and the most that any of its intervals covers."""
    print("| world | n | least | | most | |")
    for kind, world in WORLDS.items():
        for size in world.sizes:
            found = coverage(world, size, trials)
            least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
            cells = f"{found[least]:.1%} | {least} | {found[most]:.1%} | {most}"
            short = "" if found[least] >= world.floor(size) else " TOO SHORT"
            print(f"| {kind} | {size} | {cells} |{short}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
