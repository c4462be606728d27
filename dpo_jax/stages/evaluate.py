"""What came of it: held-out pairs, samples of policy and reference, a judge's verdict on them, and the KL between both.

Dimension key: n rows or samples, P slot in the pair.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import EvaluationConfig, as_mapping
from dpo_jax.data.batches import evaluation_batches
from dpo_jax.data.sources import read_labelled
from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.intervals import difference_interval, share_interval
from dpo_jax.evaluation.judges import JUDGES
from dpo_jax.evaluation.preference import preference_metrics, sequence_kl
from dpo_jax.files import digest, write_json
from dpo_jax.losses import PAIRWISE, PairLogps
from dpo_jax.models.sampling import generate, make_sampler
from dpo_jax.reference.score import score_rows
from dpo_jax.reference.store import Store
from dpo_jax.stages import reference
from dpo_jax.stages.objectives import loss_knobs
from dpo_jax.stages.progress import say
from dpo_jax.stages.setup import Setup
from dpo_jax.types import Params, TokenRow


def run(setup: Setup) -> None:
    """Writes WORKDIR/evaluation.json for the newest checkpoint."""
    if not setup.eval_rows:
        raise UserError("evaluate: the configuration names no held-out pairs; set data.eval.")
    policy = setup.restored_params(setup.workdir, "train")
    frozen = setup.start_params()
    result: dict[str, Any] = {"settings": as_mapping(setup.config)["evaluation"]}
    store = reference.complete_store(setup, lambda: frozen)
    result["heldout"] = heldout(setup, store, policy)
    found = result["heldout"]
    say(
        "evaluate",
        f"{found['pairs']} held-out pairs: accuracy {found['accuracy']:.3f}, margin {found['margin']:.2f} nats",
    )
    if setup.config.evaluation.samples:
        result |= compare_samples(setup, policy, frozen)
    write_json(setup.workdir / "evaluation.json", result)
    say("evaluate", f"wrote {setup.workdir / 'evaluation.json'}")


def heldout(setup: Setup, store: Store, policy: Params) -> dict[str, Any]:
    """Reward accuracy, margin and loss on the held-out pairs."""
    options = setup.config.reference
    batches = evaluation_batches(setup.eval_rows, pairs=options.batch_pairs, row_multiple=setup.row_multiple)
    row_ids, now = score_rows(setup.score, policy, batches, place=setup.place)
    frozen = store.lookup(row_ids)
    knobs = loss_knobs(setup.config.loss, setup.origins)
    found = preference_metrics(now.logps_nP, frozen.logps_nP, beta=knobs[0]["beta"])
    pairs = [PairLogps(*map(jnp.asarray, (*scores.logps_nP.T, *scores.tokens_nP.T))) for scores in (now, frozen)]
    terms = zip(setup.config.loss, knobs, strict=True)
    loss = sum(term.weight * PAIRWISE[term.name].function(*pairs, **options).mean() for term, options in terms)
    return {**found, "loss": float(loss)}


def compare_samples(setup: Setup, policy: Params, frozen: Params) -> dict[str, Any]:
    """Samples both models on the held-out prompts and compares them."""
    options = setup.config.evaluation
    tokenizer = setup.tokenizer
    prompts = [setup.eval_prompts[i % len(setup.eval_prompts)] for i in range(options.samples)]
    data = setup.config.data
    prompt_ids = tokenize_prompts(prompts, tokenizer, template=data.template, max_prompt_tokens=data.max_prompt_tokens)
    stops = {tokenizer.eos_token_id, *np.atleast_1d(setup.source.generation_config.get("eos_token_id") or [])}
    sampler = make_sampler(
        setup.model,
        max_new_tokens=options.max_new_tokens,
        stop_tokens=tuple(int(token) for token in stops if token is not None),
    )
    texts: dict[str, list[str]] = {}
    rows: list[TokenRow] = []
    for name, params in (("reference", frozen), ("policy", policy)):
        say("evaluate", f"samples {options.samples} responses from the {name}")
        responses = generate(
            sampler,
            params,
            prompt_ids,
            key=jax.random.key(setup.config.seed),
            batch_rows=options.batch_rows,
            temperature=options.temperature,
        )
        texts[name] = [text.strip() for text in tokenizer.batch_decode(responses, skip_special_tokens=True)]
        rows = [
            TokenRow(digest(f"{i}".encode()), prompt, (response,))
            for i, (prompt, response) in enumerate(zip(prompt_ids, responses, strict=True))
        ]
    result: dict[str, Any] = {"kl": _kl(setup, rows, policy, frozen)}
    samples: list[dict[str, Any]] = [
        {"prompt": prompt, "reference": before, "policy": after}
        for prompt, before, after in zip(prompts, texts["reference"], texts["policy"], strict=True)
    ]
    if options.judge:
        result["judged"] = _judge(options, texts, samples)
    return {**result, "samples": samples}


def _kl(setup: Setup, rows: list[TokenRow], policy: Params, frozen: Params) -> dict[str, Any]:
    """KL of the policy to the reference over whole responses, estimated on the policy's own samples."""
    logps = []
    for params in (policy, frozen):
        batches = evaluation_batches(rows, pairs=setup.config.reference.batch_pairs, row_multiple=setup.row_multiple)
        logps.append(score_rows(setup.score, params, batches, place=setup.place)[1].logps_nP[:, 0])
    found = sequence_kl(*logps)
    low, high = found["interval"]
    say("evaluate", f"sequence KL {found['sequence_kl']:.2f} nats, 95 % interval {low:.2f} to {high:.2f}")
    return found


def _judge(options: EvaluationConfig, texts: dict[str, list[str]], samples: list[dict[str, Any]]) -> dict[str, Any]:
    judge_config = options.judge
    assert judge_config is not None
    if judge_config.name not in JUDGES:
        raise UserError(
            f"evaluation.judge.name: {judge_config.name!r} is unknown. {nearest(judge_config.name, JUDGES)}"
        )
    judge_texts, labels = read_labelled(judge_config.data)
    judge = JUDGES[judge_config.name](judge_texts, labels)
    result: dict[str, Any] = {"judge": judge_config.name, "samples": options.samples}
    positive: dict[str, tuple[int, int]] = {}
    for name, written in texts.items():
        scores = judge.score(written)
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
