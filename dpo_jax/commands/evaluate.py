"""What came of it: held-out rows, samples of policy and reference, a judge's verdict on them, and the KL of both."""

from __future__ import annotations

from typing import Any

import jax

from dpo_jax.config import as_mapping
from dpo_jax.config.evaluation import OutputsConfig
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import UserError
from dpo_jax.evaluation.texts import describe_texts
from dpo_jax.experiments.benchmark import run_rewardbench
from dpo_jax.experiments.best_of import measure_best_of
from dpo_jax.experiments.divergence import measure_divergence
from dpo_jax.experiments.heldout import heldout
from dpo_jax.experiments.judging import AnyJudge, in_words, judged, open_judge
from dpo_jax.experiments.outputs import Matched, Output, read_matched, write_outputs
from dpo_jax.experiments.samples import Samples, make_sampling
from dpo_jax.experiments.stores import heldout_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import digest, write_json
from dpo_jax.reference.rows import as_ids
from dpo_jax.runtime.progress import say
from dpo_jax.types import Params, Prompt


def run(experiment: TextExperiment) -> None:
    """Writes WORKDIR/evaluation.json for the newest checkpoint, or for the outputs that the configuration names."""
    options = experiment.config.evaluation
    if not has_work(experiment):
        raise UserError("evaluate: the configuration names no held-out pairs; set data.eval.")
    result: dict[str, Any] = {"settings": as_mapping(experiment.config)["evaluation"]}
    judge = open_judge(experiment, options.judge) if options.judge else None
    if options.outputs:
        result |= compare_outputs(experiment, options.outputs, judge)
    else:
        frozen = experiment.start_params()
        policy = experiment.trained_params(frozen)
        if experiment.config.data.eval:
            result["rows"] = digest(as_ids(row_ids_of(experiment.eval_data.rows)).tobytes())  # what was held out
            result["heldout"] = _heldout(experiment, policy, frozen)
        if options.rewardbench:
            result["rewardbench"] = run_rewardbench(experiment, options.rewardbench, judge, policy, frozen)
        if options.samples:
            result |= compare_samples(experiment, policy, frozen, judge)
        if options.best_of:
            result["best_of"] = measure_best_of(experiment, frozen, judge)
    write_json(experiment.workdir / "evaluation.json", result)
    say("evaluate", f"wrote {experiment.workdir / 'evaluation.json'}")


def has_work(experiment: TextExperiment) -> bool:
    """Whether the configuration names anything to be evaluated."""
    options = experiment.config.evaluation
    return bool(experiment.config.data.eval or options.outputs or options.rewardbench)


def _heldout(experiment: TextExperiment, policy: Params, frozen: Params) -> dict[str, Any]:
    found = heldout(experiment, heldout_store(experiment, lambda: frozen), policy, experiment.restored_memory())
    compared = "comparisons of labelled rows" if "rows" in found else "held-out pairs"
    accuracy, margin = found["accuracy"], found["margin"]
    said = f"{found['pairs']} {compared}: accuracy {accuracy:.3f}, margin {margin:.2f} nats"
    if "calibration" in found:
        said += f", calibration error {found['calibration']['expected_error']:.3f}"
    say("evaluate", said)
    return found


def compare_samples(
    experiment: TextExperiment, policy: Params, frozen: Params, judge: AnyJudge | None
) -> dict[str, Any]:
    """Samples both models on the held-out prompts, measures the policy's divergence on its own, and has them judged."""
    prompts, sampled = _sample(experiment, policy, frozen)
    measured = measure_divergence(experiment, sampled["policy"].rows, policy, frozen)
    kl, generator = measured["kl"], experiment.workdir.name or str(experiment.workdir)
    low, high = kl["exact_interval"]
    say(
        "evaluate",
        f"sequence KL {kl['exact']:.2f} nats, 95 % interval {low:.2f} to {high:.2f}; by log-ratios alone "
        f"{kl['sequence_kl']:.2f}; entropy {measured['entropy']['token']:.2f} nats a token",
    )
    sides = {
        name: [
            Output(prompt.text, text, generator if name == "policy" else name, None)
            for prompt, text in zip(prompts, found.texts, strict=True)
        ]
        for name, found in sampled.items()
    }
    matched = Matched(prompts, sides["policy"], sides["reference"])
    written = {name: found.written for name, found in sampled.items()}
    return {**measured, **_compare(experiment, matched, judge, written)}


def _sample(experiment: TextExperiment, policy: Params, frozen: Params) -> tuple[list[Prompt], dict[str, Samples]]:
    """Held-out prompts, one after the other, and what reference and policy answer."""
    options = experiment.config.evaluation
    known = experiment.eval_data.prompts
    prompts = [known[i % len(known)] for i in range(options.samples)]
    sample = make_sampling(
        experiment,
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        batch_rows=options.batch_rows,
    )
    sampled: dict[str, Samples] = {}
    for name, params in (("reference", frozen), ("policy", policy)):
        say("evaluate", f"samples {options.samples} responses from the {name}")
        sampled[name] = sample(params, jax.random.key(experiment.config.seed))
    return prompts, sampled


def compare_outputs(experiment: TextExperiment, outputs: OutputsConfig, judge: AnyJudge | None) -> dict[str, Any]:
    """Has the responses of two files judged; no model of this run is needed."""
    matched = read_matched(outputs)
    say("evaluate", f"{len(matched.prompts)} responses in {outputs.policy} and in {outputs.reference}")
    return _compare(experiment, matched, judge, {})


def _compare(
    experiment: TextExperiment, matched: Matched, judge: AnyJudge | None, written: dict[str, list[str]]
) -> dict[str, Any]:
    """`judged`, `texts` and `samples` of both sides, which are also written in the formats of others.

    `written` are the responses with the white space around them, where it is known.
    """
    sides = {
        name: [each.text for each in side]
        for name, side in (("policy", matched.policy), ("reference", matched.reference))
    }
    samples: list[dict[str, Any]] = [
        {"prompt": prompt.text, "reference": before, "policy": after}
        for prompt, before, after in zip(matched.prompts, sides["reference"], sides["policy"], strict=True)
    ]
    write_outputs(experiment.workdir / "outputs", matched)
    result: dict[str, Any] = {"texts": {name: describe_texts(texts) for name, texts in sides.items()}}
    if judge:
        shown = {**sides, **written}
        result["judged"], of_each = judged(
            judge, matched.prompts, shown["policy"], shown["reference"], difficulty_n=matched.difficulty_n
        )
        for line in in_words(result["judged"]):
            say("evaluate", line)
        samples = [sample | more for sample, more in zip(samples, of_each, strict=True)]
    return {**result, "samples": samples}
