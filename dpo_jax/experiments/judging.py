"""The judge that a configuration names, opened, and its verdicts on the responses of two models.

Dimension key: n comparisons.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.config.evaluation import JudgeConfig
from dpo_jax.data.sources import read_labelled
from dpo_jax.errors import UserError
from dpo_jax.evaluation.intervals import difference_interval, share_interval
from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.evaluation.judges.cache import Cache
from dpo_jax.evaluation.judges.chat import Chat
from dpo_jax.evaluation.judges.classifier import classifier
from dpo_jax.evaluation.judges.command import comparing_command, scoring_command
from dpo_jax.evaluation.judges.function import comparing_function, load_function, scoring_function
from dpo_jax.evaluation.judges.http import http_judge
from dpo_jax.evaluation.judges.lexicon import lexicon, read_weights, vader
from dpo_jax.evaluation.judges.wording import DEFAULT_TEMPLATE
from dpo_jax.evaluation.length_controlled import length_controlled
from dpo_jax.evaluation.rewards import compare_rewards
from dpo_jax.evaluation.winrate import order_effect, win_rate
from dpo_jax.experiments.scoring import open_rewards
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.reading import locate
from dpo_jax.runtime import hosts
from dpo_jax.runtime.progress import say
from dpo_jax.types import Prompt

AnyJudge = Scoring | Comparing


def open_judge(experiment: TextExperiment, options: JudgeConfig) -> AnyJudge:
    """A judge; what it lacks is told now, before anything is sampled.

    Of several processes the first one alone asks a judge that is no model of ours, and tells the others.
    """
    judge = JUDGES[options.name](experiment, options)
    return judge if options.name == "reward" else judge.through(hosts.from_first)


def key_of(experiment: TextExperiment, options: JudgeConfig) -> str:
    """Where the configuration names this judge."""
    return "pairs.judge" if options is experiment.config.pairs.judge else "evaluation.judge"


def _classifier(experiment: TextExperiment, options: JudgeConfig) -> Scoring:
    return _fitted(json.dumps(options.data, sort_keys=True))


@functools.cache  # every point of a sweep asks for the same one
def _fitted(sources: str) -> Scoring:
    return classifier(*read_labelled(json.loads(sources)))


def _reward(experiment: TextExperiment, options: JudgeConfig) -> Scoring:
    return Scoring("reward", open_rewards(experiment, options.model, key=f"{key_of(experiment, options)}.model"))


def _lexicon(experiment: TextExperiment, options: JudgeConfig) -> Scoring:
    return lexicon(read_weights(Path(options.words))) if options.words else vader()


def _command(experiment: TextExperiment, options: JudgeConfig) -> AnyJudge:
    assert options.command is not None
    make = comparing_command if options.compares else scoring_command
    return make(options.command, timeout_seconds=options.timeout_seconds or 600.0)


def _python(experiment: TextExperiment, options: JudgeConfig) -> AnyJudge:
    assert options.function is not None
    return (comparing_function if options.compares else scoring_function)(load_function(options.function))


def _http(experiment: TextExperiment, options: JudgeConfig) -> Comparing:
    assert options.url is not None and options.model is not None
    name = options.api_key_env
    if name and not os.environ.get(name):
        where = f"{key_of(experiment, options)}.api_key_env"
        at = locate(where, experiment.origins)
        raise UserError(f"{at}: {where}: the environment has no variable {name}, or it is empty.")
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
        template=_template(options.template, key_of(experiment, options)),
        cache=Cache(Path(options.cache) if options.cache else experiment.workdir / "verdicts.jsonl"),
        parallel=options.parallel,
        input_price=options.input_price,
        output_price=options.output_price,
        progress=_tell,
    )


def _tell(answered: int, asked: int) -> None:
    if answered == asked or answered % max(1, asked // 10) == 0:
        say("judge", f"{answered} of {asked} questions answered")


def _template(path: str | None, key: str) -> str:
    if path is None:
        return DEFAULT_TEMPLATE
    try:
        return Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}.template: the file {path} cannot be read: {error}.") from None


JUDGES: dict[str, Callable[[TextExperiment, JudgeConfig], AnyJudge]] = {
    "classifier": _classifier,
    "reward": _reward,
    "lexicon": _lexicon,
    "command": _command,
    "python": _python,
    "http": _http,
}
"""Name in a configuration -> what opens the judge."""


def judged(
    judge: AnyJudge,
    prompts: Sequence[Prompt],
    policy: Sequence[str],
    reference: Sequence[str],
    *,
    difficulty_n: np.ndarray | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a judge says of the policy's responses against the reference's, in all and of each comparison.

    Win rates, raw and length-controlled, always; of a judge that scores the mean scores, and, where its scores have a
    neutral value, the shares above it; of one that compares what the order does, and what it cost. `difficulty_n` is
    that of `length_controlled`.
    """
    names, of_each = [prompt.text for prompt in prompts], list[dict[str, Any]]()
    if isinstance(judge, Scoring):
        policy_n, reference_n = np.split(judge.scores([*prompts, *prompts], [*policy, *reference]), 2)
        verdicts_n = (1 + np.sign(policy_n - reference_n)) / 2
        found = _of_scores(policy_n, reference_n, judge.neutral, names)
        of_each = [{"reference_score": b, "policy_score": a} for a, b in zip(policy_n, reference_n, strict=True)]
    else:
        orders = judge.orders(prompts, policy, reference)
        verdicts_n = orders.verdicts
        found = {**win_rate(verdicts_n, names), "order": order_effect(orders, names)}
        found |= {"usage": usage} if (usage := dict(judge.usage())) else {}
        of_each = [{"verdict": verdict} for verdict in verdicts_n]
    ours, theirs = ([text.strip() for text in texts] for texts in (policy, reference))
    found["length_controlled"] = length_controlled(verdicts_n, ours, theirs, names, difficulty_n=difficulty_n)
    return {"judge": judge.name, **found}, [{key: float(value) for key, value in each.items()} for each in of_each]


def _of_scores(
    policy_n: np.ndarray, reference_n: np.ndarray, neutral: float | None, prompts: Sequence[str]
) -> dict[str, Any]:
    found = compare_rewards(policy_n, reference_n, prompts)
    if neutral is None:
        return found
    positive = {}
    for name, scores_n in (("policy", policy_n), ("reference", reference_n)):
        positive[name] = (int(np.sum(scores_n > neutral)), len(scores_n))
        share = {"positive": positive[name][0] / len(scores_n), "interval": share_interval(*positive[name])}
        found[name] = {"score": found[name]["reward"], "score_interval": found[name]["interval"], **share}
    found["difference"] = found["policy"]["positive"] - found["reference"]["positive"]
    found["difference_interval"] = difference_interval(positive["policy"], positive["reference"])
    return found


def in_words(found: Mapping[str, Any]) -> list[str]:
    """The same for the console."""
    low, high = found["win_rate_interval"]
    wins = f"the policy wins {found['win_rate']:.1%} (95 % interval {low:.1%} to {high:.1%}; {found['ties']} ties)"
    low, high = found["length_controlled"]["win_rate_interval"]
    rate = found["length_controlled"]["win_rate"]
    lines = [f"{wins}, at equal lengths {rate:.1%} ({low:.1%} to {high:.1%})"]
    if "difference" in found:
        low, high = found["difference_interval"]
        lines.append(
            f"judged positive: {found['reference']['positive']:.1%} before, {found['policy']['positive']:.1%} after, "
            f"difference {found['difference']:+.1%} (95 % interval {low:+.1%} to {high:+.1%})"
        )
    elif "reward" in found.get("policy", {}):
        before, after = (found[name]["reward"] for name in ("reference", "policy"))
        lines.append(f"mean reward {before:.3f} before, {after:.3f} after")
    if "order" in found:
        lines.append(f"the winner changed with the order in {found['order']['flipped']:.1%} of the comparisons")
    if usage := found.get("usage"):
        cost = f", cost {usage['cost']:.4f}" if "cost" in usage else ""
        lines.append(
            f"{usage['requests']} requests ({usage['retries']} again), {usage['cached']} verdicts known, "
            f"{usage['not_understood']} answers not understood, {usage['prompt_tokens']} + "
            f"{usage['completion_tokens']} tokens{cost}"
        )
    return lines
