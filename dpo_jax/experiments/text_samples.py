"""Texts that a model writes: samples for AlpacaEval, and preference pairs of which a judge said what is better.

Dimension key: N prompts, S responses to each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax.config import Source
from dpo_jax.data.sources import PROMPTS, read_sources
from dpo_jax.data.sources.rows import CUT
from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges import Scoring
from dpo_jax.evaluation.selection import comparisons, select_pairs, win_shares
from dpo_jax.experiments.inputs import check_inputs
from dpo_jax.experiments.judging import TRIED, AnyJudge, open_judge
from dpo_jax.experiments.rows import say_unread
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import named_output, write_atomic, write_json
from dpo_jax.reading import locate, located
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Prompt


def write_pairs(experiment: TextExperiment, output: str | None) -> None:
    """Writes pairs as JSON Lines that `data.train` reads: prompt, chosen, rejected, and the score of each response.

    The policy of the newest checkpoint answers, or, before there is one, the model with which training starts.
    """
    options = experiment.config.pairs
    asked = options.judge or experiment.config.evaluation.judge
    if asked is None:
        raise UserError(
            f"{locate('pairs', experiment.origins)}: pairs: nobody says which response is better: name pairs.judge, "
            "such as {name: lexicon}."
        )
    path = named_output("--output", output) if output else experiment.run.pairs
    if experiment.config.sampling.samples < 2:
        at = locate("sampling.samples", experiment.origins)
        raise UserError(f"{at}: sampling.samples: a pair needs 2 responses to a prompt at least; 4 are usual.")
    check_inputs(experiment.config, experiment.origins, "pairs" if options.prompts else "data.train")
    key = "pairs.judge" if options.judge else "evaluation.judge"
    open_judge(asked, experiment, key)
    if options.prompts:
        prompts = _read(experiment, options.prompts, "pairs", "pairs.prompts")
    else:
        prompts = experiment.train_data.prompts
    judge = open_judge(asked, experiment, key, prompts=prompts[:TRIED])
    experiment.check_sampling()
    if Checkpoints(experiment.run.checkpoints).latest() is None:
        params, who = experiment.start_params(), "the model with which training starts"
    else:
        params, who = experiment.trained_params(), "the trained policy"
    responses = experiment.sample("pairs", prompts, params, who)
    samples, advice = experiment.config.sampling.samples, ""
    responses_NS = [responses.written[n * samples : (n + 1) * samples] for n in range(len(prompts))]
    if cut := sum(responses.cut):  # training would put an EOS behind them, and teach to stop anywhere
        advice = f"{cut} of {len(responses.cut)} were cut at sampling.max_new_tokens: raise it, so that they end"
        say("pairs", f"{cut} cut responses are in no pair; sampling.max_new_tokens says where they are cut")
    ended = ["" if cut else text for text, cut in zip(responses.written, responses.cut, strict=True)]
    ended_NS = [ended[n * samples : (n + 1) * samples] for n in range(len(prompts))]
    if empty := sum(not text.strip() for text in responses.written):
        say("pairs", f"{empty} responses are empty, and in no pair")
    scores_NS = score(judge, prompts, responses_NS)
    selected = select_pairs(scores_NS, ended_NS, select=options.select, min_gap=options.min_gap)
    rows = [
        _row(prompts[n], responses_NS[n][chosen], responses_NS[n][rejected])
        | {"chosen_score": float(scores_NS[n, chosen]), "rejected_score": float(scores_NS[n, rejected])}
        for n, chosen, rejected in zip(selected.prompts, selected.chosen, selected.rejected, strict=True)
    ]
    if not rows:
        raise UserError(
            f"pairs: {judge.name} finds no response better than another to the same prompt; nothing written."
            + (advice and f" {advice}.")
        )
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    without = f"; {selected.without} prompts gave none" if selected.without else ""
    say("pairs", f"wrote {len(rows)} pairs to {path}{without}; mean score of all responses {scores_NS.mean():.3f}")


def score(judge: AnyJudge, prompts: list[Prompt], responses_NS: list[list[str]]) -> np.ndarray:
    """Quality of each response, [N, S]: its own score, or its share of wins over the others to its prompt."""
    samples = len(responses_NS[0])
    if isinstance(judge, Scoring):
        every = [prompt for prompt in prompts for _ in range(samples)]
        return judge.scores(every, [text for texts in responses_NS for text in texts]).reshape(len(prompts), samples)
    places = comparisons(samples)
    every = [prompt for prompt in prompts for _ in places]
    first, second = ([texts[place[side]] for texts in responses_NS for place in places] for side in (0, 1))
    return win_shares(judge.verdicts(every, first, second), prompts=len(prompts), samples=samples)


def _row(prompt: Prompt, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair with the columns of its prompt; answers to a conversation are messages."""
    beside = {"tools": prompt.tools, "chat_template_kwargs": prompt.chat_template_kwargs}
    brings = {name: value for name, value in beside.items() if value is not None}
    if isinstance(prompt.prompt, str):
        return {"prompt": prompt.prompt, "chosen": chosen, "rejected": rejected, **brings}
    chosen_turns, rejected_turns = ([{"role": "assistant", "content": text.strip()}] for text in (chosen, rejected))
    return {"prompt": list(prompt.prompt), "chosen": chosen_turns, "rejected": rejected_turns, **brings}


def write_samples(experiment: TextExperiment, *, prompts: str | None, output: str | None, reference: bool) -> None:
    """Samples from the policy (the newest checkpoint) or the reference (where it started), and writes the file.

    One object for each response, in the order of the prompts: instruction (the prompt), output (without white space
    around it), generator, dataset where the prompt's row names one, of several to a prompt sample (from 0), and
    finish_reason length where it was cut before it ended.
    JSON Lines; a file called .json holds one array, the only JSON that AlpacaEval opens.
    """
    path = named_output("--output", output) if output else experiment.run.samples
    samples, name = experiment.config.sampling.samples, "reference" if reference else "policy"
    experiment.check_sampling()
    if prompts:
        asked = _read(experiment, [{"path": prompts}], "sample", "command line: --prompts")
    elif experiment.has_heldout:
        asked = experiment.eval_data.prompts
    else:
        raise UserError("sample: no prompts: give --prompts FILE, or set data.eval, whose prompts are the default.")
    params = experiment.start_params() if reference else experiment.trained_params()
    responses = experiment.sample("sample", asked, params, f"the {name}")
    tokens = sum(len(row.responses[0]) for row in responses.rows)
    generator = name if reference else experiment.run.name
    objects = _objects(asked, responses, generator, samples)
    if path.suffix == ".json":
        write_json(path, objects)
    else:
        write_atomic(path, "".join(json.dumps(each) + "\n" for each in objects))
    seconds = responses.seconds
    say(
        "sample",
        f"wrote {len(objects)} samples to {path}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s "
        "(generated tokens, each response's end included; compilation left out)",
    )


def _read(experiment: TextExperiment, sources: Sequence[Source], command: str, name: str) -> list[Prompt]:
    """The prompts of some sources; `command` and `name`, the key of the sources, are for messages."""
    config, unread = experiment.config, list[Counter[str]]()
    with located(name, experiment.origins):
        prompts = read_sources(PROMPTS, sources, on_error=config.data.on_error, seed=config.seed, unread=unread)
    say_unread(name, sources, unread)
    for reason, count in prompts.skipped.items():
        say(command, f"{name}: {count} skipped ({reason})")
    return prompts.rows


def _objects(prompts: list[Prompt], responses: Any, generator: str, samples: int) -> list[dict[str, Any]]:
    objects = []
    for row, (text, cut) in enumerate(zip(responses.texts, responses.cut, strict=True)):
        prompt = prompts[row // samples]
        line: dict[str, Any] = {"instruction": prompt.text, "output": text, "generator": generator}
        if prompt.dataset is not None:
            line["dataset"] = prompt.dataset
        if samples > 1:
            line["sample"] = row % samples
        if cut:  # as completions of others have it; `data` leaves such a row out
            line["finish_reason"] = CUT
        objects.append(line)
    return objects
