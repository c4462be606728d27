"""A conversation in the terminal with the policy and the reference, or with one model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dpo_jax.config import ALONE
from dpo_jax.errors import UserError, nearest, printable
from dpo_jax.experiments.speakers import Speaker, Voice
from dpo_jax.experiments.text_steps import TextSteps
from dpo_jax.runtime.machine import compile_cache
from dpo_jax.runtime.progress import say

_MODELS = ("both", "policy", "reference")


def run(experiment: TextSteps, *, model: str | None) -> None:
    """Answer line after line of standard input, side by side in a terminal, else one answer after the other.

    /reset forgets the conversation; /quit or the end of the input ends it; an interrupt ends an answer.
    """
    asked = model or "both"
    if asked not in _MODELS:
        raise UserError(f"command line: --model {asked!r} is unknown. {nearest(asked, _MODELS)}")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    with tempfile.TemporaryDirectory() as scratch, jax.set_mesh(experiment.mesh):
        if alone := experiment.origins["workdir"] == ALONE:
            experiment.workdir = Path(scratch)
            if "data.template" not in experiment.origins and experiment.tokenizer.chat_template:
                data = dataclasses.replace(experiment.config.data, template="tokenizer")
                experiment.config = dataclasses.replace(experiment.config, data=data)
        experiment.fix_date()
        voice = Voice(
            experiment.model,
            experiment.tokenizer,
            experiment.config.sampling,
            rules=experiment.rules,
            stop_tokens=experiment.stop_tokens,
        )
        speakers = list[Speaker]()
        start = None if asked == "policy" and not experiment.model.lora else experiment.start_params()
        if not alone and asked != "reference":
            speakers.append(Speaker("policy", voice, experiment.trained_params(start)))
        if alone or asked != "policy":
            speakers.append(Speaker("model" if alone else "reference", voice, start or experiment.start_params()))
        how = "several turns, by the chat template" if voice.talks else "no chat template: each line is continued"
        say("chat", f"{how}; \\n is a line end in a line; /reset, /quit; Ctrl-C ends an answer, Ctrl-D the talk")
        talk(speakers, seed=experiment.config.seed)


def talk(speakers: Sequence[Speaker], *, seed: int) -> None:
    """Read lines and answer them, until there are no more."""
    key, number = jax.random.key(seed), 0
    while (line := _next_line()) is not None:
        text = line.replace("\\n", "\n")
        if not text.strip():
            continue
        if text.strip() == "/quit":
            return
        if text.strip() == "/reset":
            for speaker in speakers:
                speaker.reset()
            continue
        if text.startswith("/"):
            say("chat", f"{text.strip()!r} is no command. Allowed: /quit, /reset.")
            continue
        answers = [speaker.answer(text, jax.random.fold_in(key, number)) for speaker in speakers]
        number += 1
        names = [speaker.name for speaker in speakers]
        try:
            (_side_by_side if sys.stdout.isatty() else _one_by_one)(names, answers)
        except KeyboardInterrupt:
            print(flush=True)
            for answer in answers:
                answer.close()


def _next_line() -> str | None:
    """The next line that is asked; None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines by it
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _one_by_one(names: Sequence[str], answers: Sequence[Iterator[str]]) -> None:
    for name, answer in zip(names, answers, strict=True):
        print(f"{name}: " * (len(names) > 1), end="", flush=True)
        for piece in answer:
            print(_shown(piece), end="", flush=True)
        print(flush=True)


def _side_by_side(names: Sequence[str], answers: Sequence[Iterator[str]]) -> None:
    """Columns that grow together, a token of each in turn."""
    console = Console(highlight=False)
    said = [""] * len(names)
    left = dict(enumerate(answers))

    def table() -> Table:
        shown = Table(*(names if len(names) > 1 else [""]), show_header=len(names) > 1, box=None, expand=True)
        shown.add_row(*map(Text, said))
        return shown

    with Live(table(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while left:
            for place, answer in list(left.items()):
                piece = next(answer, None)
                if piece is None:
                    del left[place]
                else:
                    said[place] += _shown(piece)
            live.update(table(), refresh=True)


def _shown(text: str) -> str:
    """A text with its lines, and nothing else in it that a terminal obeys."""
    return "\n".join(map(printable, text.split("\n")))
