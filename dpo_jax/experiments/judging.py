"""The judge that a configuration names, opened, and its verdicts on the responses of two models.

Dimension key: n comparisons.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpo_jax.config.evaluation import (
    ClassifierJudge,
    CommandJudge,
    HttpJudge,
    JudgeConfig,
    LexiconJudge,
    PythonJudge,
    RewardJudge,
)
from dpo_jax.data.sources import read_labelled
from dpo_jax.errors import UserError
from dpo_jax.evaluation.intervals import difference_interval, in_words, share_interval
from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.evaluation.judges.chat import Chat
from dpo_jax.evaluation.judges.http import Cache, http_judge
from dpo_jax.evaluation.judges.interface import Score
from dpo_jax.evaluation.judges.programs import (
    comparing_command,
    comparing_function,
    load_function,
    scoring_command,
    scoring_function,
)
from dpo_jax.evaluation.judges.wording import DEFAULT_TEMPLATE
from dpo_jax.evaluation.judges.words import classifier, lexicon, read_weights, vader
from dpo_jax.evaluation.length_controlled import length_controlled
from dpo_jax.evaluation.records import Judged, JudgedSide
from dpo_jax.evaluation.winrate import compare_rewards, order_effect, win_rate
from dpo_jax.reading import Origins, locate
from dpo_jax.runs.run import Run
from dpo_jax.runtime import hosts
from dpo_jax.runtime.progress import say
from dpo_jax.types import Prompt

AnyJudge = Scoring | Comparing


@dataclass(frozen=True)
class JudgeContext:
    """The surroundings of a judge: the key that names it, the run, and the opener of reward models.

    `rewards(model, key)` opens that of a folder, or, of None, that of the run.
    """

    key: str
    origins: Origins
    workdir: Path
    rewards: Callable[[str | None, str], Score]

    def refuse(self, option: str, says: str) -> UserError:
        """The error of one of its options."""
        where = f"{self.key}.{option}"
        return UserError(f"{locate(where, self.origins)}: {where}: {says}")


def open_judge(options: JudgeConfig, context: JudgeContext) -> AnyJudge:
    """A judge; what it lacks is told now, before anything is sampled.

    Of several processes the first one alone asks a judge that is no model of ours, and tells the others.
    """
    judge = JUDGES[options.name](options, context)
    return judge if options.name == "reward" else judge.through(hosts.from_first)


def _classifier(options: ClassifierJudge, context: JudgeContext) -> Scoring:
    return _fitted(json.dumps(options.data, sort_keys=True))


@functools.cache  # every point of a sweep asks for the same one
def _fitted(sources: str) -> Scoring:
    return classifier(*read_labelled(json.loads(sources)))


def _reward(options: RewardJudge, context: JudgeContext) -> Scoring:
    return Scoring("reward", context.rewards(options.model, f"{context.key}.model"))


def _lexicon(options: LexiconJudge, context: JudgeContext) -> Scoring:
    return lexicon(read_weights(Path(options.words))) if options.words else vader()


def _command(options: CommandJudge, context: JudgeContext) -> AnyJudge:
    make = comparing_command if options.compares else scoring_command
    return make(options.command, timeout_seconds=options.timeout_seconds or 600.0)


def _python(options: PythonJudge, context: JudgeContext) -> AnyJudge:
    return (comparing_function if options.compares else scoring_function)(load_function(options.function))


def _http(options: HttpJudge, context: JudgeContext) -> Comparing:
    name = options.api_key_env
    if name and not os.environ.get(name):
        raise context.refuse("api_key_env", f"the environment has no variable {name}, or it is empty.")
    chat = Chat(
        options.url,
        options.model,
        key=os.environ[name] if name else None,
        settings=options.request,
        timeout_seconds=options.timeout_seconds or 60.0,
        retries=options.retries,
    )
    return http_judge(
        chat,
        template=_template(options.template, context),
        cache=Cache(Path(options.cache) if options.cache else Run(context.workdir).verdicts),
        parallel=options.parallel,
        input_price=options.input_price,
        output_price=options.output_price,
        progress=_tell,
    )


def _tell(answered: int, asked: int) -> None:
    if answered == asked or answered % max(1, asked // 10) == 0:
        say("judge", f"{answered} of {asked} questions answered")


def _template(path: str | None, context: JudgeContext) -> str:
    if path is None:
        return DEFAULT_TEMPLATE
    try:
        return Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise context.refuse("template", f"the file {path} cannot be read: {error}.") from None


JUDGES: dict[str, Callable[..., AnyJudge]] = {
    "classifier": _classifier,
    "reward": _reward,
    "lexicon": _lexicon,
    "command": _command,
    "python": _python,
    "http": _http,
}
"""Name in a configuration -> the opener of the judge, from its options and its context."""


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
        total = _of_scores(policy_n, reference_n, judge, names)
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


def _of_scores(policy_n: np.ndarray, reference_n: np.ndarray, judge: Scoring, prompts: Sequence[str]) -> Judged:
    rewards = compare_rewards(policy_n, reference_n, prompts, judge=judge.name)
    if judge.neutral is None:
        return rewards
    counts = [(int(np.sum(scores_n > judge.neutral)), len(scores_n)) for scores_n in (policy_n, reference_n)]
    policy, reference = (
        JudgedSide(
            score=side.reward,
            score_interval=side.interval,
            positive=above / total,
            interval=share_interval(above, total),
        )
        for side, (above, total) in zip((rewards.policy, rewards.reference), counts, strict=True)
    )
    return dataclasses.replace(
        rewards,
        policy=policy,
        reference=reference,
        difference=counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1],
        difference_interval=difference_interval(*counts),
    )


def tell_judged(judged: Judged) -> None:
    """The same for the console."""
    equal, order, usage = judged.length_controlled, judged.order, judged.usage
    wins = f"the policy wins {judged.win_rate:.1%} ({in_words(judged.win_rate_interval, '.1%')}; {judged.ties} ties)"
    low, high = equal.win_rate_interval or (math.nan, math.nan)
    lines = [f"{wins}, at equal lengths {equal.win_rate:.1%} ({low:.1%} to {high:.1%})"]
    if judged.difference is not None:
        lines.append(
            f"judged positive: {judged.reference.positive:.1%} before, {judged.policy.positive:.1%} after, "
            f"difference {judged.difference:+.1%} ({in_words(judged.difference_interval, '+.1%')})"
        )
    elif judged.policy.reward is not None:
        lines.append(f"mean reward {judged.reference.reward:.3f} before, {judged.policy.reward:.3f} after")
    if order:
        lines.append(f"the winner changed with the order in {order.flipped:.1%} of the comparisons")
    if usage:
        cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
        lines.append(
            f"{usage.requests} requests ({usage.retries} again), {usage.cached} verdicts known, "
            f"{usage.not_understood} answers not understood, {usage.prompt_tokens} + "
            f"{usage.completion_tokens} tokens{cost}"
        )
    for line in lines:
        say("evaluate", line)
