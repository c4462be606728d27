"""The records of an evaluation: all that evaluation.json holds.

A part that was not measured is there and false: `evaluation.judged.policy.positive` can be read whether or not anybody
judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import ClassVar

from dpo_jax.evaluation.intervals import Interval
from dpo_jax.evaluation.record import Record

Settings = Mapping[str, object]
"""Plain data of a configuration: key, or dotted key, -> value."""


class Sides(Record):
    """One figure of policy and reference."""

    policy: float | None = None
    policy_interval: Interval | None = None
    reference: float | None = None
    reference_interval: Interval | None = None


class Accuracy(Record):
    """Number of pairs that are right."""

    pairs: int | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None


class Moved(Record):
    """The log-ratios of one slot: their mean, nats, and the share below 0."""

    mean: float | None = None
    interval: Interval | None = None
    fell: float | None = None


class BothMoved(Record):
    """The log-ratios of both slots."""

    chosen: Moved = Moved()
    rejected: Moved = Moved()


class CalibrationBin(Record):
    """The pairs whose confidence lies in a bin that begins at `from_`."""

    from_: float | None = None
    pairs: int | None = None
    confidence: float | None = None
    accuracy: float | None = None


class Calibration(Record):
    """Calibration of preference probabilities."""

    expected_error: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    log_loss_interval: Interval | None = None
    bins: Sequence[CalibrationBin] = ()


class Heldout(Record):
    """Held-out rows: how often a policy, a reward model or a scorer is right on them, and by how much.

    `rows` says that they are labelled completions, compared with each other. Margins are differences of log-ratios in
    nats, or of rewards. Of pictures there are denoising errors, over so many draws of time and noise.
    """

    rows: int | None = None
    pairs: int | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    margin: float | None = None
    margin_interval: Interval | None = None
    reward_margin: float | None = None
    moved: BothMoved = BothMoved()
    calibration: Calibration = Calibration()
    perplexity: Sides = Sides()
    by_length: Mapping[str, Accuracy] = field(default_factory=dict)
    by_source: Mapping[str, Accuracy] = field(default_factory=dict)
    chosen: float | None = None
    rejected: float | None = None
    error_margin: float | None = None
    errors: Sides = Sides()
    draws: int | None = None
    loss: float | None = None
    loss_interval: Interval | None = None


class Divergence(Record):
    """Estimates of KL(policy || reference), nats a response, over samples of the policy; `sequence_kl` is k1."""

    sequence_kl: float | None = None
    interval: Interval | None = None
    samples: int | None = None
    exact: float | None = None
    exact_interval: Interval | None = None
    k1: float | None = None
    k1_interval: Interval | None = None
    k2: float | None = None
    k2_interval: Interval | None = None
    k3: float | None = None
    k3_interval: Interval | None = None

    @property
    def best(self) -> tuple[float, Interval | None] | None:
        """The estimate over the vocabulary and its interval where that was measured, else that by log-ratios."""
        if self.exact is not None:
            return self.exact, self.exact_interval
        return None if self.sequence_kl is None else (self.sequence_kl, self.interval)


class Entropy(Record):
    """The entropy of the policy, nats: a token, and a response."""

    token: float | None = None
    sequence: float | None = None
    sequence_interval: Interval | None = None


class Texts(Record):
    """Lengths and repetition of sampled texts, as `describe_texts` has them."""

    always: ClassVar = ("distinct_1", "distinct_2", "repeated")

    characters: float | None = None
    words: float | None = None
    words_interval: Interval | None = None
    empty: float | None = None
    empty_interval: Interval | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    repeated: float | None = None
    repeated_interval: Interval | None = None
    cut: float | None = None  # share of those that did not end within the most tokens; of others' texts not known


class BothTexts(Record):
    """The sampled texts of policy and reference."""

    policy: Texts = Texts()
    reference: Texts = Texts()


class JudgedSide(Record):
    """One model's mean score: a `reward`, or a `score` with the share above the judge's neutral value."""

    reward: float | None = None
    score: float | None = None
    score_interval: Interval | None = None
    positive: float | None = None
    interval: Interval | None = None  # of the reward, or of the share


class WinRate(Record):
    """Share of wins of the policy, a tie being half a win."""

    samples: int | None = None
    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None


class LengthControlled(Record):
    """The win rate at equal lengths, and how often the policy's response is the longer one."""

    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    length_effect: float | None = None
    longer: float | None = None
    longer_interval: Interval | None = None


class OrderEffect(Record):
    """Effect of the order of two responses on a judge, as `order_effect` has it."""

    flipped: float | None = None
    flipped_interval: Interval | None = None
    first_preferred: float | None = None
    first_preferred_interval: Interval | None = None
    policy_first: float | None = None
    policy_first_interval: Interval | None = None
    policy_second: float | None = None
    policy_second_interval: Interval | None = None


class Usage(Record):
    """Questions to a judge behind an endpoint, and their cost."""

    requests: int | None = None
    retries: int | None = None
    answers: int | None = None
    cached: int | None = None
    not_understood: int | None = None
    not_counted: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None


class Judged(Record):
    """Judgement of the policy's samples against the reference's."""

    judge: str | None = None
    policy: JudgedSide = JudgedSide()
    reference: JudgedSide = JudgedSide()
    reward_difference: float | None = None
    reward_difference_interval: Interval | None = None
    samples: int | None = None
    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    difference: float | None = None  # of the shares above the neutral value
    difference_interval: Interval | None = None
    order: OrderEffect = OrderEffect()
    usage: Usage = Usage()
    length_controlled: LengthControlled = LengthControlled()


class Sample(Record):
    """Answers of both models to a prompt, and the scores or the verdict: how likely the policy's is better."""

    prompt: str
    reference: str
    policy: str
    reference_score: float | None = None
    policy_score: float | None = None
    verdict: float | None = None


class BestOf(Record):
    """The best of n responses, or with `beta` a softer choice: the mean score, and its KL or a bound on it, nats."""

    n: int | None = None
    beta: float | None = None
    score: float | None = None
    interval: Interval | None = None
    kl: float | None = None


class Share(Record):
    """Accuracy on some rows of a benchmark."""

    rows: int | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None


class Section(Record):
    """Accuracy on a section of a benchmark, and the subsets that were not there."""

    rows: int | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    lacks: Sequence[str] = ()


class Benchmark(Record):
    """Accuracy as RewardBench counts it; `name` is the judge's, `score` is there where every section is whole."""

    always: ClassVar = ("sections",)

    name: str | None = None
    rows: int | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    subsets: Mapping[str, Share] = field(default_factory=dict)
    sections: Mapping[str, Section] = field(default_factory=dict)
    score: float | None = None


class Benchmarks(Record):
    """RewardBench of the policy's implicit rewards, and of the judge."""

    policy: Benchmark = Benchmark()
    judge: Benchmark = Benchmark()


class Quality(Record):
    """Means of a quality measure of pictures, and of the difference from the same noise."""

    policy: float | None = None
    reference: float | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    samples: int | None = None


class Seen(Record):
    """The share of samples in which a classifier sees the class that was asked for."""

    share: float | None = None
    interval: Interval | None = None


class Classes(Record):
    """Share of samples in which the class asked for is seen; `real` is the classifier's accuracy on real samples."""

    real: float | None = None
    real_samples: int | None = None
    real_interval: Interval | None = None
    samples: int | None = None
    policy: Seen = Seen()
    reference: Seen = Seen()
    difference: float | None = None
    difference_interval: Interval | None = None


class Place(Record):
    """Log-ratios of chosen and rejected, nats, and the half that moved more."""

    chosen: float | None = None
    rejected: float | None = None
    faster: str | None = None


class Halves(Record):
    """Distance that training moved both halves of a pair, and that the field of its loss would have; None: never."""

    always: ClassVar = ("predicted",)

    measured: Place = Place()
    predicted: Mapping[str, Place | None] = field(default_factory=dict)


class Evaluation(Record):
    """All that was measured of a policy.

    `settings` are those of `evaluation` in the configuration, `step` and `checkpoint`, a digest of its seal, say whose
    weights were measured, and `rows` is a digest of the held-out rows. `halves` is of the analysis of a run, where a
    sweep asks for one.
    """

    settings: Settings = field(default_factory=dict)
    step: int | None = None
    checkpoint: str | None = None
    rows: str | None = None
    heldout: Heldout = Heldout()
    rewardbench: Benchmarks = Benchmarks()
    kl: Divergence = Divergence()
    entropy: Entropy = Entropy()
    tokens: float | None = None
    tokens_interval: Interval | None = None
    texts: BothTexts = BothTexts()
    metrics: Mapping[str, Quality] = field(default_factory=dict)
    judged: Judged = Judged()
    classes: Classes = Classes()
    samples: Sequence[Sample] = ()
    best_of: Sequence[BestOf] = ()
    halves: Halves = Halves()


class Fitted(Record):
    """Fit of a policy to chosen responses where a training began: their perplexity a token, and before fine-tuning."""

    responses: int | None = None
    perplexity: float | None = None
    perplexity_interval: Interval | None = None
    before_fine_tuning: float | None = None
    fitted: bool | None = None


class Trial(Record):
    """One point of a sweep: its settings by dotted keys, and what came of it, or why it failed.

    `facts` are digests of what decided it beside its configuration.
    """

    label: str
    settings: Settings
    config: Settings = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    seconds: float | None = None
    compiled: int | None = None
    failed: str | None = None
