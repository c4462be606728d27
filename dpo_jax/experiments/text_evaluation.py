"""The evaluation of a policy on texts: held-out rows, samples, a judge's verdicts on them, divergence, benchmarks.

Dimension key: n samples or rows, N prompts, S responses to each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpo_jax.config import as_mapping
from dpo_jax.data.tokenize import tokenize
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import sized_by
from dpo_jax.evaluation.best_of import best_of_table, soft_best_of_table
from dpo_jax.evaluation.divergence import Divergences, divergence_metrics, sample_divergences
from dpo_jax.evaluation.intervals import bounded_interval, groups_of, in_words
from dpo_jax.evaluation.judges import Scoring
from dpo_jax.evaluation.length_controlled import length_controlled
from dpo_jax.evaluation.records import (
    Benchmark,
    Benchmarks,
    BestOf,
    BothTexts,
    Evaluation,
    Heldout,
    Judged,
    JudgedSide,
    Sample,
)
from dpo_jax.evaluation.rewardbench import rewardbench
from dpo_jax.evaluation.texts import describe_texts
from dpo_jax.evaluation.winrate import compare_rewards, order_effect, win_rate
from dpo_jax.experiments.heldout import heldout
from dpo_jax.experiments.judging import AnyJudge, open_judge
from dpo_jax.experiments.outputs import (
    Matched,
    Output,
    judged_text,
    read_benchmark,
    read_matched,
    write_outputs,
)
from dpo_jax.experiments.samples import Samples
from dpo_jax.experiments.stores import heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import digest
from dpo_jax.mesh import constrain
from dpo_jax.reference.fingerprint import as_ids
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.types import PairBatch, Params, PreferencePair, Prompt, TokenRow


def evaluate(experiment: TextExperiment) -> Evaluation:
    """The evaluation of the newest checkpoint, or of the outputs that the configuration names."""
    config, options, workdir = experiment.config, experiment.config.evaluation, experiment.workdir
    settings, judge = as_mapping(config)["evaluation"], judge_of(experiment)
    if options.outputs:
        matched = read_matched(options.outputs)
        answered = f"{len(matched.prompts)} responses in {options.outputs.policy} and in {options.outputs.reference}"
        say("evaluate", answered)
        return dataclasses.replace(compare(matched, judge, folder=Run(workdir).outputs), settings=settings)
    frozen = experiment.start_params()
    policy = experiment.trained_params(frozen)
    parts: dict[str, Any] = {"settings": settings, **experiment.run.measured()}
    if experiment.has_heldout:
        parts["rows"] = digest(as_ids(row_ids_of(experiment.eval_data.rows)).tobytes())  # what was held out
        parts["heldout"] = _heldout(experiment, policy, frozen)
    if options.rewardbench:
        parts["rewardbench"] = run_rewardbench(
            options.rewardbench, judge, lambda pairs: prefers(experiment, pairs, policy, frozen)
        )
    sampled = compare_samples(experiment, policy, frozen, judge) if options.samples else Evaluation()
    if options.best_of:
        parts["best_of"] = measure_best_of(experiment, frozen, judge)
    return dataclasses.replace(sampled, **parts)


def judge_of(experiment: TextExperiment) -> AnyJudge | None:
    """The judge of the evaluation, opened; None where nobody judges."""
    options = experiment.config.evaluation.judge
    return options and open_judge(options, experiment, "evaluation.judge")


def _heldout(experiment: TextExperiment, policy: Params, frozen: Params) -> Heldout:
    store, loss_state = heldout_store(experiment, lambda: frozen), experiment.restored_memory()
    metrics = heldout(experiment.eval_data, experiment.terms, experiment.scorer, store, policy, loss_state)
    compared = "held-out pairs" if metrics.rows is None else "comparisons of labelled rows"
    said = (
        f"{metrics.pairs} {compared}: accuracy {metrics.accuracy:.3f} ({in_words(metrics.accuracy_interval, '.3f')}), "
        f"margin {metrics.margin:.2f} nats ({in_words(metrics.margin_interval, '.2f')})"
    )
    if metrics.calibration:
        said += f", calibration error {metrics.calibration.expected_error:.3f}"
    say("evaluate", said)
    return metrics


def compare_samples(experiment: TextExperiment, policy: Params, frozen: Params, judge: AnyJudge | None) -> Evaluation:
    """Samples of both models on the held-out prompts, the policy's divergence on its own, and the judgement on them."""
    options, known = experiment.config.evaluation, experiment.eval_data.prompts
    prompts = [known[i % len(known)] for i in range(options.samples)]
    sample = experiment.evaluation_sampler(prompts)
    sampled: dict[str, Samples] = {}
    for name, params in (("reference", frozen), ("policy", policy)):
        say("evaluate", f"samples {options.samples} responses from the {name}")
        sampled[name] = sample(params, jax.random.key(experiment.config.seed), keep=experiment.keeper(name))
    measured = measure_divergence(experiment, sampled["policy"].rows, policy, frozen)
    kl = measured.kl
    say(
        "evaluate",
        f"on {kl.samples} samples: sequence KL {kl.exact:.2f} nats ({in_words(kl.exact_interval, '.2f')}); by "
        f"log-ratios alone {kl.sequence_kl:.2f} ({in_words(kl.interval, '.2f')}); entropy "
        f"{measured.entropy.token:.2f} nats a token",
    )
    names = {"policy": experiment.run.name, "reference": "reference"}
    outputs = {
        side: [Output(prompt.text, text, name, None) for prompt, text in zip(prompts, sampled[side].texts, strict=True)]
        for side, name in names.items()
    }
    matched = Matched(prompts, outputs["policy"], outputs["reference"])
    written = {side: samples.written for side, samples in sampled.items()}
    judgement = compare(matched, judge, folder=experiment.run.outputs, written=written)
    ours, theirs = (
        dataclasses.replace(getattr(judgement.texts, side), cut=float(np.mean(sampled[side].cut))) for side in names
    )
    texts = BothTexts(policy=ours, reference=theirs)
    return dataclasses.replace(measured, texts=texts, judged=judgement.judged, samples=judgement.samples)


def compare(
    matched: Matched, judge: AnyJudge | None, *, folder: Path, written: Mapping[str, Sequence[str]] | None = None
) -> Evaluation:
    """`judged`, `texts` and `samples` of both sides, which are also written in the formats of others into `folder`.

    `written` are the responses with the white space around them, where it is known.
    """
    sides = {"policy": matched.policy, "reference": matched.reference}
    texts = {name: [output.text for output in outputs] for name, outputs in sides.items()}
    samples = [
        Sample(prompt=prompt.text, reference=before, policy=after)
        for prompt, before, after in zip(matched.prompts, texts["reference"], texts["policy"], strict=True)
    ]
    write_outputs(folder, matched)
    groups_n = groups_of([prompt.text for prompt in matched.prompts])
    described = BothTexts(**{name: describe_texts(each, groups_n) for name, each in texts.items()})
    if not judge:
        return Evaluation(texts=described, samples=samples)
    shown = {**texts, **(written or {})}
    judgement, of_each = judged(
        judge, matched.prompts, shown["policy"], shown["reference"], difficulty_n=matched.difficulty_n
    )
    tell_judged(judgement)
    samples = [dataclasses.replace(sample, **own) for sample, own in zip(samples, of_each, strict=True)]
    return Evaluation(texts=described, judged=judgement, samples=samples)


def judged(
    judge: AnyJudge,
    prompts: Sequence[Prompt],
    policy: Sequence[str],
    reference: Sequence[str],
    *,
    difficulty_n: np.ndarray | None = None,
) -> tuple[Judged, list[dict[str, float]]]:
    """The judgement on the policy's responses against the reference's, in all and, by fields of `Sample`, of each.

    Win rates, raw and length-controlled, always; of a judge that scores the mean scores, and, where its scores have a
    neutral value, the shares above it; of one that compares the effect of the order, and its cost. `difficulty_n` is
    that of `length_controlled`.
    """
    names = [prompt.text for prompt in prompts]
    if isinstance(judge, Scoring):
        policy_n, reference_n = np.split(judge.scores([*prompts, *prompts], [*policy, *reference]), 2)
        verdicts_n = (1 + np.sign(policy_n - reference_n)) / 2
        total = judged_by_scores(policy_n, reference_n, names, judge=judge.name, neutral=judge.neutral)
        of_each = [
            {"reference_score": float(b), "policy_score": float(a)} for a, b in zip(policy_n, reference_n, strict=True)
        ]
    else:
        orders = judge.orders(prompts, policy, reference)
        verdicts_n = orders.verdicts
        rate = vars(win_rate(verdicts_n, names))
        total = Judged(judge=judge.name, order=order_effect(orders, names), usage=judge.usage(), **rate)
        of_each = [{"verdict": float(verdict)} for verdict in verdicts_n]
    ours, theirs = ([text.strip() for text in texts] for texts in (policy, reference))
    equal = length_controlled(verdicts_n, ours, theirs, names, difficulty_n=difficulty_n)
    return dataclasses.replace(total, length_controlled=equal), of_each


def judged_by_scores(
    policy_n: np.ndarray, reference_n: np.ndarray, prompts: Sequence[str], *, judge: str | None, neutral: float | None
) -> Judged:
    """The rewards of both; of scores that have a neutral one how many are above it, and how many more."""
    rewards = compare_rewards(policy_n, reference_n, prompts, judge=judge)
    if neutral is None:
        return rewards
    groups_n, above = groups_of(prompts), [scores_n > neutral for scores_n in (policy_n, reference_n)]
    policy, reference = (
        JudgedSide(
            score=side.reward,
            score_interval=side.interval,
            positive=float(above_n.mean()),
            interval=bounded_interval(above_n, groups_n),
        )
        for side, above_n in zip((rewards.policy, rewards.reference), above, strict=True)
    )
    differences_n = above[0].astype(float) - above[1]  # of the answers to the same prompts
    return dataclasses.replace(
        rewards,
        policy=policy,
        reference=reference,
        difference=float(differences_n.mean()),
        difference_interval=bounded_interval(differences_n, groups_n, low=-1.0),
    )


def tell_judged(judged: Judged) -> None:
    """The same for the console."""
    equal, order, usage = judged.length_controlled, judged.order, judged.usage
    wins = f"the policy wins {judged.win_rate:.1%} of {judged.samples} comparisons"
    rate = f"{wins} ({in_words(judged.win_rate_interval, '.1%')}; {judged.ties} ties)"
    lines = [f"{rate}, at equal lengths {equal.win_rate:.1%} ({in_words(equal.win_rate_interval, '.1%')})"]
    before, after = judged.reference, judged.policy
    if judged.difference is not None:
        lines.append(
            f"judged positive: {before.positive:.1%} ({in_words(before.interval, '.1%')}) before, {after.positive:.1%} "
            f"({in_words(after.interval, '.1%')}) after, difference {judged.difference:+.1%} "
            f"({in_words(judged.difference_interval, '+.1%')})"
        )
    elif after.reward is not None:
        lines.append(
            f"mean reward {before.reward:.3f} ({in_words(before.interval, '.3f')}) before, {after.reward:.3f} "
            f"({in_words(after.interval, '.3f')}) after"
        )
    if order:
        flipped = f"{order.flipped:.1%} of the comparisons ({in_words(order.flipped_interval, '.1%')})"
        lines.append(f"the winner changed with the order in {flipped}")
    if usage:
        cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
        lines.append(
            f"{usage.requests} requests ({usage.retries} again), {usage.cached} verdicts known, "
            f"{usage.not_understood} answers not understood, {usage.prompt_tokens} + "
            f"{usage.completion_tokens} tokens{cost}"
        )
    for line in lines:
        say("evaluate", line)


@sized_by("reference.batch_pairs")
def measure_divergence(
    experiment: TextExperiment, rows: Sequence[TokenRow], policy: Params, frozen: Params
) -> Evaluation:
    """`kl`, `entropy` and token counts of sampled responses, both models in one pass; see `divergence_metrics`."""
    apply, tiles = experiment.model.apply, experiment.tiles

    @jax.jit
    def measure(policy: Params, frozen: Params, batch: PairBatch) -> Divergences:
        inputs = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        ours, theirs = (apply(params, *inputs, sequences=batch.sequences) for params in (policy, frozen))
        sums = sample_divergences(ours, theirs, batch, **tiles)
        return Divergences(*(constrain(each_BP, None, None) for each_BP in sums))  # every host reads them

    parts, tokens, asked = list[Divergences](), list[np.ndarray](), list[bytes]()
    for batch in experiment.scoring_batches(rows):
        count = len(batch.places)  # pairs that only fill the batch come last
        asked += [rows[place].prompt.tobytes() for place in batch.places]
        sums = jax.device_get(measure(policy, frozen, experiment.place(batch.arrays)))
        parts.append(jax.tree.map(lambda each_BP, count=count: each_BP[:count, 0], sums))
        tokens.append(np.asarray(batch.arrays.response_tokens_BP)[:count, 0])
    joined = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    return divergence_metrics(joined, np.concatenate(tokens), groups_of(asked))


def measure_best_of(experiment: TextExperiment, frozen: Params, judge: AnyJudge | None) -> list[BestOf]:
    """The gain of choosing among the reference's own responses, as the judge sees it: the frontier without training.

    `evaluation.best_of` responses to each of the first `evaluation.samples` held-out prompts, or as many as there are.
    """
    assert isinstance(judge, Scoring)
    options = experiment.config.evaluation
    prompts = experiment.eval_data.prompts[: options.samples]
    total = len(prompts) * options.best_of
    sample = experiment.evaluation_sampler(prompts, samples=options.best_of)
    say("evaluate", f"samples {total} responses from the reference, for the best of {options.best_of}")
    responses = sample(frozen, jax.random.key(experiment.config.seed), keep=experiment.keeper("best_of")).written
    every = [prompt for prompt in prompts for _ in range(options.best_of)]
    scores_NS = judge.scores(every, responses).reshape(len(prompts), options.best_of)
    table = best_of_table(scores_NS)
    best = table[-1]
    score = f"mean score {best.score:.3f} ({in_words(best.interval, '.3f')}) over {len(prompts)} prompts"
    say("evaluate", f"best of {best.n}: {score} at {best.kl:.2f} nats at most")
    return table + soft_best_of_table(scores_NS)


def run_rewardbench(
    path: str, judge: AnyJudge | None, implicit: Callable[[list[PreferencePair]], np.ndarray]
) -> Benchmarks:
    """RewardBench's accuracy: of `implicit`, the pairs whose log-ratio is larger for chosen, and of the judge."""
    pairs, subsets = read_benchmark(path)
    of_policy, of_judge = rewardbench(implicit(pairs), subsets), Benchmark()
    if judge:
        prompts = [Prompt(pair.prompt, None, pair.where) for pair in pairs]
        verdicts = judge.verdicts(prompts, *([judged_text(pair, slot) for pair in pairs] for slot in (0, 1)))
        of_judge = rewardbench(verdicts > 0.5, subsets, name=judge.name)
    for name, each in (("policy", of_policy), ("judge", of_judge)):
        if each:
            total = f"accuracy {each.accuracy:.1%} of {each.rows} rows ({in_words(each.accuracy_interval, '.1%')})"
            sections = ", ".join(
                f"{section} {share.accuracy:.1%} of {share.rows} ({in_words(share.accuracy_interval, '.1%')})"
                for section, share in each.sections.items()
            )
            say("evaluate", f"RewardBench, {name}: {total}; {sections}")
    return Benchmarks(policy=of_policy, judge=of_judge)


def prefers(experiment: TextExperiment, pairs: list[PreferencePair], policy: Params, frozen: Params) -> np.ndarray:
    """Of each pair, is the log-ratio of chosen the larger one; bool [n]."""
    tokens = benchmark_rows(experiment, pairs)
    experiment.tell_long("evaluation.rewardbench", tokens, experiment.rules)
    ours, theirs = (
        scores.logps_nP[:, 0] - scores.logps_nP[:, 1]
        for _, scores in (experiment.scorer(params, tokens) for params in (policy, frozen))
    )
    return ours > theirs


def benchmark_rows(experiment: TextExperiment, pairs: list[PreferencePair]) -> list[TokenRow]:
    """The tokens of a benchmark; raises UserError at a row that cannot be scored."""
    rules = dataclasses.replace(experiment.rules, truncation="keep")
    return tokenize(pairs, experiment.tokenizer, rules).rows
