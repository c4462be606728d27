"""A language model behind an OpenAI-compatible endpoint as a judge, and its verdicts on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from dpo_jax.errors import UserError, each_once, told
from dpo_jax.evaluation.judges.chat import Answer, Chat
from dpo_jax.evaluation.judges.interface import Comparing
from dpo_jax.evaluation.judges.wording import DEFAULT_TEMPLATE, check_template, fill, understand
from dpo_jax.evaluation.records import Usage
from dpo_jax.types import Prompt

_MUCH_NONSENSE = 0.5


class Cache:
    """Verdicts that are `known` by their key, so that none is paid for twice.

    On disk it is JSON Lines, a line for each, added as it comes; without a path it is forgotten with the process. A
    last line that a crash cut short is left out. Processes that write at the same time add lines of their own.
    """

    def __init__(self, path: Path | None):
        self._path, self.known = path, dict[str, float]()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines() if path.exists() else []
            with path.open("ab") as file:
                if lines and not path.read_bytes().endswith(b"\n"):
                    file.write(b"\n")
        except OSError as error:
            raise UserError(f"judge http: the cache {path} cannot be used: {error.strerror}.") from None
        for line in lines:
            try:
                row = json.loads(line, object_pairs_hook=each_once)
                key, value = row["key"], row["value"]
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
            if isinstance(key, str) and type(value) in (int, float) and 0 <= value <= 1:
                self.known[key] = value

    def put(self, key: str, value: float) -> None:
        """Keeps a verdict, on disk before this returns."""
        self.known[key] = value
        if self._path is not None:
            with self._path.open("a", encoding="utf8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")


def http_judge(
    chat: Chat,
    *,
    template: str = DEFAULT_TEMPLATE,
    cache: Cache,
    parallel: int = 8,
    input_price: float | None = None,
    output_price: float | None = None,
    progress: Callable[[int, int], None] = lambda answered, asked: None,
) -> Comparing:
    """Asks `chat` which response is better, every comparison in both orders, many at a time.

    An answer that is not understood is a tie, is counted and is not kept; where most are so, that is an error.
    `usage()` of the judge says how many requests were made, made again and spared by the cache, the tokens, and, where
    both prices are given and every answer counts its tokens, the cost; all of this process, not of verdicts that were
    there before.

    Args:
        chat: the endpoint.
        template: the question, with {prompt}, {a} and {b}.
        cache: verdicts by endpoint, model, settings, template and texts.
        parallel: requests at a time.
        input_price: of a million tokens of the prompts, in any currency; output_price of the answers.
        progress: is told how many questions are answered, and how many there are.
    """
    check_template(template)
    counts = _Counts(input_price, output_price)

    def compare(prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[float]:
        texts = [
            {"prompt": prompt.text, "a": left.strip(), "b": right.strip()}
            for prompt, left, right in zip(prompts, a, b, strict=True)
        ]
        asked = [json.dumps((chat.url, chat.model, chat.settings, template, text), sort_keys=True) for text in texts]
        keys = [hashlib.sha256(each.encode()).hexdigest() for each in asked]
        questions = dict(zip(keys, (fill(template, **text) for text in texts), strict=True))
        wanted = {key: question for key, question in questions.items() if key not in cache.known}
        counts.add(cached=len(questions) - len(wanted))

        async def judge(key: str, question: str) -> float:
            answer = await chat.ask(question)
            verdict = understand(answer.text)
            counts.answered(answer, understood=verdict is not None)
            if verdict is None:
                return 0.5
            cache.put(key, verdict)
            return verdict

        verdicts = asyncio.run(_all(judge, wanted, chat, parallel, progress)) if wanted else {}
        counts.check()
        return [cache.known[key] if key in cache.known else verdicts[key] for key in keys]

    return Comparing("http", compare, usage=lambda: counts.summary(chat))


async def _all(
    judge: Callable[[str, str], Awaitable[float]],
    wanted: dict[str, str],
    chat: Chat,
    parallel: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """The verdicts by key. The first that fails for good ends all others."""
    verdicts: dict[str, float] = {}
    waiting = iter(wanted.items())

    async def work() -> None:
        for key, question in waiting:
            verdicts[key] = await judge(key, question)
            progress(len(verdicts), len(wanted))

    try:
        async with chat.connected(), asyncio.TaskGroup() as group:
            for _ in range(min(parallel, len(wanted))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return verdicts


class _Counts:
    """Questions and answers so far."""

    def __init__(self, input_price: float | None, output_price: float | None):
        self._prices = input_price, output_price
        self._counts: dict[str, int] = dict.fromkeys(("answers", "cached", "not_understood", "not_counted"), 0)
        self._tokens = [0, 0]
        self._nonsense = ""

    def add(self, **more: int) -> None:
        for name, count in more.items():
            self._counts[name] += count

    def answered(self, answer: Answer, *, understood: bool) -> None:
        tokens = (answer.prompt_tokens, answer.completion_tokens)
        self.add(answers=1, not_understood=not understood, not_counted=None in tokens)
        self._tokens = [before + (more or 0) for before, more in zip(self._tokens, tokens, strict=True)]
        self._nonsense = self._nonsense if understood else answer.text

    def check(self) -> None:
        """Refuses verdicts that are mostly none, as a UserError."""
        lost, answers = self._counts["not_understood"], self._counts["answers"]
        if lost > _MUCH_NONSENSE * answers:
            raise UserError(
                f"judge http: {lost} of {answers} answers were not understood, such as "
                f"'{told(self._nonsense, 80)}'. The template has to ask for one letter, A, B or C, or for [[A]], "
                "[[B]], [[C]]; a model that thinks first needs more max_tokens in the judge's `request`."
            )

    def summary(self, chat: Chat) -> Usage:
        prompt_tokens, completion_tokens = self._tokens
        input_price, output_price = self._prices
        cost = None
        if input_price is not None and output_price is not None and not self._counts["not_counted"]:
            cost = (prompt_tokens * input_price + completion_tokens * output_price) / 1e6
        return Usage(
            requests=chat.requests,
            retries=chat.repeated,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=cost,
            **self._counts,
        )
