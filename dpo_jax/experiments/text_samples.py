"""Responses of the policy, or of the reference, to prompts, with the keys that AlpacaEval reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_jax.data.sources import PROMPTS, read_sources
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_atomic, write_json
from dpo_jax.runtime.progress import say
from dpo_jax.types import Prompt


def write(experiment: TextExperiment, *, prompts: str | None, output: str | None, reference: bool) -> None:
    """Samples from the policy (the newest checkpoint) or the reference (where it started), and writes the file.

    One object for each response, in the order of the prompts: instruction (the prompt), output (without white space
    around it), generator, dataset where the prompt's row names one, and, of several to a prompt, sample (from 0).
    JSON Lines; a file called .json holds one array, the only JSON that AlpacaEval opens.
    """
    path = Path(output) if output else experiment.run.samples
    if path.is_dir():
        raise UserError(f"command line: --output {path} is a directory; name a file.")
    samples, name = experiment.config.sampling.samples, "reference" if reference else "policy"
    experiment.check_sampling()
    asked = _read(experiment, prompts)
    params = experiment.start_params() if reference else experiment.trained_params()
    responses = experiment.sample("sample", asked, params, f"the {name}")
    tokens = sum(len(row.responses[0]) for row in responses.rows)
    generator = name if reference else experiment.run.name
    objects = _objects(asked, responses.texts, generator, samples)
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


def _read(experiment: TextExperiment, path: str | None) -> list[Prompt]:
    if path:
        read = read_sources(PROMPTS, [{"path": path}], on_error=experiment.config.data.on_error)
        for reason, count in read.skipped.items():
            say("sample", f"{path}: {count} skipped ({reason})")
        return read.rows
    if not experiment.config.data.eval:
        raise UserError("sample: no prompts: give --prompts FILE, or set data.eval, whose prompts are the default.")
    return experiment.eval_data.prompts


def _objects(prompts: list[Prompt], texts: list[str], generator: str, samples: int) -> list[dict[str, Any]]:
    objects = []
    for row, text in enumerate(texts):
        prompt = prompts[row // samples]
        line: dict[str, Any] = {"instruction": prompt.text, "output": text, "generator": generator}
        if prompt.dataset is not None:
            line["dataset"] = prompt.dataset
        if samples > 1:
            line["sample"] = row % samples
        objects.append(line)
    return objects
