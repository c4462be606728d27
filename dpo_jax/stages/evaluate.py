"""What came of it: held-out rows, samples of policy and reference, a judge's verdict on them, and the KL of both."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dpo_jax.config import EvaluationConfig, as_mapping
from dpo_jax.data.sources import read_labelled
from dpo_jax.errors import UserError
from dpo_jax.evaluation.intervals import difference_interval, share_interval
from dpo_jax.evaluation.judges.classifier import classifier
from dpo_jax.evaluation.preference import sequence_kl
from dpo_jax.evaluation.rewards import compare_rewards
from dpo_jax.files import write_json
from dpo_jax.stages import reference
from dpo_jax.stages.heldout import heldout
from dpo_jax.stages.progress import say
from dpo_jax.stages.samples import make_sampling, sampled_logps
from dpo_jax.stages.scoring import RewardJudge, open_judge
from dpo_jax.stages.setup import Setup
from dpo_jax.types import Params, Prompt, TokenRow


def run(setup: Setup) -> None:
    """Writes WORKDIR/evaluation.json for the newest checkpoint."""
    if not setup.config.data.eval:
        raise UserError("evaluate: the configuration names no held-out pairs; set data.eval.")
    frozen = setup.start_params()
    policy = setup.trained_params(frozen)
    result: dict[str, Any] = {"settings": as_mapping(setup.config)["evaluation"]}
    store = reference.heldout_store(setup, lambda: frozen)
    result["heldout"] = heldout(setup, store, policy, setup.restored_memory())
    found = result["heldout"]
    compared = "comparisons of labelled rows" if "rows" in found else "held-out pairs"
    accuracy, margin = found["accuracy"], found["margin"]
    say("evaluate", f"{found['pairs']} {compared}: accuracy {accuracy:.3f}, margin {margin:.2f} nats")
    if setup.config.evaluation.samples:
        result |= compare_samples(setup, policy, frozen)
    write_json(setup.workdir / "evaluation.json", result)
    say("evaluate", f"wrote {setup.workdir / 'evaluation.json'}")


def compare_samples(setup: Setup, policy: Params, frozen: Params) -> dict[str, Any]:
    """Samples both models on the held-out prompts and compares them."""
    options = setup.config.evaluation
    asked = options.judge
    by_reward = open_judge(setup, asked.model) if asked and asked.name == "reward" else None
    known = setup.eval_data.prompts
    prompts = [known[i % len(known)] for i in range(options.samples)]
    sample = make_sampling(
        setup,
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        batch_rows=options.batch_rows,
    )
    sampled = {}
    for name, params in (("reference", frozen), ("policy", policy)):
        say("evaluate", f"samples {options.samples} responses from the {name}")
        sampled[name] = sample(params, jax.random.key(setup.config.seed))
    rows, texts = sampled["policy"].rows, {name: found.texts for name, found in sampled.items()}
    result: dict[str, Any] = {"kl": _kl(setup, rows, policy, frozen)}
    samples: list[dict[str, Any]] = [
        {"prompt": prompt.text, "reference": before, "policy": after}
        for prompt, before, after in zip(prompts, texts["reference"], texts["policy"], strict=True)
    ]
    if by_reward:
        result["judged"] = _judge_by_reward(by_reward, prompts, {n: s.written for n, s in sampled.items()}, samples)
    elif asked:
        result["judged"] = _judge(options, prompts, texts, samples)
    return {**result, "samples": samples}


def _kl(setup: Setup, rows: list[TokenRow], policy: Params, frozen: Params) -> dict[str, Any]:
    """KL of the policy to the reference over whole responses, estimated on the policy's own samples."""
    logps = [sampled_logps(setup, rows, params) for params in (policy, frozen)]
    found = sequence_kl(*logps)
    low, high = found["interval"]
    say("evaluate", f"sequence KL {found['sequence_kl']:.2f} nats, 95 % interval {low:.2f} to {high:.2f}")
    return found


def _judge(
    options: EvaluationConfig, prompts: list[Prompt], texts: dict[str, list[str]], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    judge_config = options.judge
    assert judge_config is not None
    judge_texts, labels = read_labelled(judge_config.data)
    judge = classifier(judge_texts, labels)
    result: dict[str, Any] = {"judge": judge_config.name, "samples": options.samples}
    positive: dict[str, tuple[int, int]] = {}
    for name, written in texts.items():
        scores = judge.scores(prompts, written)
        positive[name] = (int(np.sum(scores > 0.5)), len(written))
        result[name] = {"positive": positive[name][0] / len(written), "interval": share_interval(*positive[name])}
        for sample, score in zip(samples, scores.tolist(), strict=True):
            sample[f"{name}_score"] = score
    result["difference"] = result["policy"]["positive"] - result["reference"]["positive"]
    result["difference_interval"] = difference_interval(positive["policy"], positive["reference"])
    low, high = result["difference_interval"]
    say(
        "evaluate",
        f"judged positive: {result['reference']['positive']:.1%} before, {result['policy']['positive']:.1%} after, "
        f"difference {result['difference']:+.1%} (95 % interval {low:+.1%} to {high:+.1%})",
    )
    return result


def _judge_by_reward(
    judge: RewardJudge, prompts: list[Prompt], written: dict[str, list[str]], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    both = [*written["policy"], *written["reference"]]
    policy_n, reference_n = np.split(judge([*prompts, *prompts], both), 2)
    for sample, after, before in zip(samples, policy_n.tolist(), reference_n.tolist(), strict=True):
        sample |= {"reference_score": before, "policy_score": after}
    found = {
        "judge": "reward",
        **compare_rewards(policy_n, reference_n, [prompt.text for prompt in prompts]),
    }
    low, high = found["win_rate_interval"]
    say(
        "evaluate",
        f"mean reward {found['reference']['reward']:.3f} before, {found['policy']['reward']:.3f} after; the policy "
        f"wins {found['win_rate']:.1%} (95 % interval {low:.1%} to {high:.1%})",
    )
    return found
