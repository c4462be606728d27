"""Judges that keep what they have said, on disk as it comes, and are not asked that again."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.files import digest
from dpo_jax.runs.kept import Keeper, Kept
from dpo_jax.runtime.progress import say
from dpo_jax.types import Prompt

_FIRST, _MOST = 8, 1024  # texts of a call
_CALL_SECONDS = 30.0  # may be lost by a kill


def remembering(judge: Scoring | Comparing, settings: Mapping[str, object], keep: Keeper) -> Scoring | Comparing:
    """The judge, asked some texts at a time and what it has not answered yet.

    What it has holds for these settings and for the facts of the judge itself. Calls grow until one takes half a
    minute, or, of who says how many texts it takes at once, have that size: rows that are computed together then are
    together after a kill, too.
    """

    @functools.cache
    def opened() -> Kept:
        return keep({"judge": json.dumps(settings, sort_keys=True), **judge.facts()})

    def ask(answer: Callable[..., np.ndarray], prompts: Sequence[Prompt], *texts: Sequence[str]) -> np.ndarray:
        kept = opened()
        keys = [_key(prompt, *each) for prompt, *each in zip(prompts, *texts, strict=True)]
        left = list({key: place for place, key in enumerate(keys) if key not in kept}.items())
        if len(left) < len(set(keys)):
            say("judge", f"{judge.name}: {len(set(keys)) - len(left)} of {len(set(keys))} answers are known")
        size, before = judge.at_once or _FIRST, float("inf")
        while left:
            now, left, start = left[:size], left[size:], time.monotonic()
            asked = ([each[place] for _, place in now] for each in (prompts, *texts))
            kept.put(dict(zip((key for key, _ in now), answer(*asked).tolist(), strict=True)))
            took = time.monotonic() - start
            # What hardly takes longer for twice as many is the time to begin.
            if judge.at_once is None and (took < _CALL_SECONDS or took < 1.5 * before):
                size = min(2 * size, _MOST)
            before = took
        judge.rest()
        return np.array([kept[key] for key in keys], np.float64)

    return judge.remembered(ask)


def _key(prompt: Prompt, *texts: str) -> str:
    """A digest of all that a judge is shown."""
    shown = [prompt.prompt, prompt.tools, prompt.chat_template_kwargs, *texts]
    return digest(json.dumps(shown, default=list).encode())
