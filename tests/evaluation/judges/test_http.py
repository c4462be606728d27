"""The judge behind an endpoint, against a real server on this machine: flaky, slow, biased and talking nonsense."""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.chat import Chat
from dpo_jax.evaluation.judges.http import Cache, http_judge
from dpo_jax.evaluation.judges.interface import Comparing
from dpo_jax.types import Prompt
from tests.evaluation.judges.endpoint import Endpoint, Reply, longer_wins, said, serve

PROMPTS = [Prompt(f"question {i}", None, "here") for i in range(3)]
A, B = ["aaa", "b", "cc"], ["a", "bbb", "dd"]
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def judge(
    endpoint: Endpoint | str,
    *,
    cache: Path | None = None,
    key: str | None = None,
    model: str = "judge-1",
    **settings: Any,
) -> Comparing:
    chosen = {"timeout_seconds": 5.0, "retries": 3, "backoff_seconds": 0.01} | {
        name: settings.pop(name) for name in ("timeout_seconds", "retries", "backoff_seconds") if name in settings
    }
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    chat = Chat(url, model, key=key, settings={"max_tokens": 8, "temperature": 0.0}, **chosen)
    return http_judge(chat, cache=Cache(cache), **settings)


def test_both_orders_are_asked_and_the_request_is_as_the_api_has_it():
    with serve(longer_wins) as endpoint:
        found = judge(endpoint, key=KEY)
        assert found.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5]
    assert len(endpoint.bodies) == 6 and set(endpoint.paths) == {"/v1/chat/completions"}
    assert {header["Authorization"] for header in endpoint.headers} == {f"Bearer {KEY}"}
    shown = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert all(
        body | {"messages": None} == {"model": "judge-1", "messages": None, "max_tokens": 8, "temperature": 0.0}
        for body in endpoint.bodies
    )
    assert sum("[Response A]\naaa\n\n[Response B]\na\n" in text for text in shown) == 1
    assert sum("[Response A]\na\n\n[Response B]\naaa\n" in text for text in shown) == 1


def test_a_judge_that_likes_the_first_one_comes_to_ties_and_it_shows():
    with serve(lambda body, number: said("A")) as endpoint:
        orders = judge(endpoint).orders(PROMPTS, A, B)
    assert orders.verdicts.tolist() == [0.5] * 3
    assert orders.a_first.tolist() == [1.0] * 3 and orders.b_first.tolist() == [0.0] * 3


def test_what_passes_is_asked_again():
    failures = {0: Reply({"error": "busy"}, 429), 1: Reply(b"<html>", 503), 2: Reply(b"no json"), 3: Reply({"a": 1})}
    with serve(lambda body, number: failures.get(number) or longer_wins(body, number)) as endpoint:
        found = judge(endpoint, retries=4)
        assert found.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5]
    assert len(endpoint.bodies) == 10 and found.usage().requests == 10 and found.usage().retries == 4


def test_a_slow_answer_is_a_failure_that_passes():
    def slow_once(body: dict[str, Any], number: int) -> Reply:
        reply = longer_wins(body, number)
        return reply._replace(delay_seconds=1.5) if number == 0 else reply

    with serve(slow_once) as endpoint:
        found = judge(endpoint, timeout_seconds=0.6, parallel=1)
        assert found.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5]
    assert found.usage().retries == 1


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_waited_for(dated: bool):
    wait = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "1"
    times = []

    def busy_once(body: dict[str, Any], number: int) -> Reply:
        times.append(time.time())
        return Reply({}, 429, {"Retry-After": wait}) if number == 0 else said("A")

    with serve(busy_once) as endpoint:
        judge(endpoint, parallel=1).verdicts(PROMPTS[:1], A[:1], B[:1])
    assert 0.9 <= times[1] - times[0] < 10


def test_waits_grow_from_retry_to_retry(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", noted)
    says = "failed 4 times, at last with: 500"
    with serve(lambda body, number: Reply({}, 500)) as endpoint, pytest.raises(UserError, match=says):
        judge(endpoint, parallel=1, backoff_seconds=0.1).verdicts(PROMPTS[:1], A[:1], B[:1])
    np.testing.assert_allclose(waits, [0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply({"error": f"Incorrect API key provided: {KEY}"}, 401), r"refused the request: 401 .*provided: \*\*\*"),
        (Reply({"error": "no such model"}, 404), "refused the request: 404 .*no such model"),
        (Reply({}, 302, {"Location": "http://127.0.0.1:9/"}), "refused the request: 302"),
        (Reply({}, 429, {"Retry-After": "86400"}), "asks to wait 86400 s"),
    ],
)
def test_what_does_not_pass_ends_it_at_once_and_the_key_is_not_told(reply: Reply, says: str):
    with serve(lambda body, number: reply) as endpoint, pytest.raises(UserError, match=says) as error:
        judge(endpoint, key=KEY, parallel=1).verdicts(PROMPTS, A, B)
    assert KEY not in str(error.value) and len(endpoint.bodies) <= 2


def test_nobody_listens():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1/chat/completions failed 2 times.*Connect call failed"):
        judge("http://127.0.0.1:9/v1", retries=1).verdicts(PROMPTS, A, B)
    with pytest.raises(UserError, match=r"cannot be asked: .*'http://' or 'https://'"):
        judge("localhost/v1").verdicts(PROMPTS, A, B)


def test_verdicts_are_kept_and_what_changes_the_question_is_asked_anew(tmp_path: Path):
    cache = tmp_path / "kept" / "verdicts.jsonl"
    with serve(longer_wins) as endpoint:
        first = judge(endpoint, cache=cache).verdicts(PROMPTS, A, B)
        again = judge(endpoint, cache=cache)
        np.testing.assert_array_equal(again.verdicts(PROMPTS, A, B), first)
        assert len(endpoint.bodies) == 6 and again.usage().requests == 0 and again.usage().cached == 6
        np.testing.assert_array_equal(again.verdicts(PROMPTS, B, A), 1 - first)  # the same questions
        assert len(endpoint.bodies) == 6
        judge(endpoint, cache=cache).verdicts(PROMPTS, ["aaaa", *A[1:]], B)
        assert len(endpoint.bodies) == 8
        other = "Which?\n[Prompt] {prompt}\n[Response A]\n{a}\n\n[Response B]\n{b}\n\nAnswer {not_a_field}"
        judge(endpoint, cache=cache, template=other).verdicts(PROMPTS, A, B)
        assert len(endpoint.bodies) == 14 and endpoint.bodies[-1]["messages"][0]["content"].endswith("{not_a_field}")
        judge(endpoint, cache=cache, model="judge-2").verdicts(PROMPTS, A, B)
        assert len(endpoint.bodies) == 20
    assert KEY not in cache.read_text() and len(cache.read_text().splitlines()) == 20


def test_a_failed_run_keeps_what_it_had_and_a_cut_line_is_left_out(tmp_path: Path):
    cache = tmp_path / "verdicts.jsonl"

    def breaks(body: dict[str, Any], number: int) -> Reply:
        return Reply({}, 400) if number == 4 else longer_wins(body, number)

    with serve(breaks) as endpoint:
        with pytest.raises(UserError, match="400"):
            judge(endpoint, cache=cache, parallel=1).verdicts(PROMPTS, A, B)
        cache.write_text(cache.read_text()[:-20])  # the fourth is cut short
        for asked in (3, 0):  # the next line does not join the cut one, and so is known the second time
            found = judge(endpoint, cache=cache, parallel=1)
            assert found.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5] and found.usage().requests == asked


def test_so_many_at_a_time_and_no_more():
    def slow(body: dict[str, Any], number: int) -> Reply:
        return longer_wins(body, number)._replace(delay_seconds=0.15)

    prompts, a, b = PROMPTS * 4, [f"{i:05}" for i in range(12)], ["x"] * 12
    with serve(slow) as endpoint:
        judge(endpoint, parallel=5).verdicts(prompts, a, b)
    assert endpoint.most == 5 and len(endpoint.bodies) == 24


def test_answers_that_are_not_understood_are_ties_counted_and_not_kept(tmp_path: Path):
    def odd_once(body: dict[str, Any], number: int) -> Reply:
        return said("I cannot say, as both are warm.") if number == 1 else longer_wins(body, number)

    with serve(odd_once) as endpoint:
        found = judge(endpoint, parallel=1, cache=tmp_path / "v.jsonl")
        assert found.verdicts(PROMPTS, A, B).tolist() in ([1.0, 0.25, 0.5], [0.75, 0.0, 0.5], [1.0, 0.0, 0.5])
        assert found.usage().not_understood == 1 and len((tmp_path / "v.jsonl").read_text().splitlines()) == 5
    nonsense = pytest.raises(UserError, match=r"6 of 6 answers were not understood, such as 'Well, well\.'")
    with serve(lambda body, number: said("Well, well.")) as endpoint, nonsense:
        judge(endpoint).verdicts(PROMPTS, A, B)


def test_tokens_and_cost_are_counted():
    with serve(longer_wins) as endpoint:
        found = judge(endpoint, input_price=2.5, output_price=10.0)
        found.verdicts(PROMPTS, A, B)
        usage = found.usage()
    assert usage.prompt_tokens == 600 and usage.completion_tokens == 12
    assert usage.cost == pytest.approx((600 * 2.5 + 12 * 10.0) / 1e6)
    bare = Reply({"choices": [{"message": {"content": "A"}}]})
    with serve(lambda body, number: bare) as endpoint:
        found = judge(endpoint, input_price=2.5, output_price=10.0)
        found.verdicts(PROMPTS, A, B)
        assert found.usage().cost is None and found.usage().not_counted == 6
    for tokens in (True, -5, 1.5, "7", math.nan, 10**30):  # which are no counts
        with serve(lambda body, number, tokens=tokens: said("A", prompt_tokens=tokens)) as endpoint:
            found = judge(endpoint, input_price=2.5, output_price=10.0)
            found.verdicts(PROMPTS, A, B)
            assert found.usage().not_counted == 6 and found.usage().cost is None and not found.usage().prompt_tokens
    with serve(longer_wins) as endpoint:
        found = judge(endpoint)
        found.verdicts(PROMPTS, A, B)
        assert found.usage().cost is None


def test_a_verdict_on_disk_is_one_or_is_asked_for_again(tmp_path: Path):
    path = tmp_path / "v.jsonl"
    values = ["1", "0", "0.5", "true", "NaN", "7", "-1", '"1"', "null", "[1]", "1e400"]
    lines = [f'{{"key": "{number}", "value": {value}}}' for number, value in enumerate(values)]
    lines += ['{"key": "a", "value": 1, "value": 0}', '{"key": 5, "value": 1}', "[" * 100_000]
    path.write_text("\n".join(lines) + "\n")
    known = Cache(path)
    assert [known.known.get(str(number)) for number in range(len(values))] == [1, 0, 0.5] + [None] * 8
    assert known.known.get("a") is None
