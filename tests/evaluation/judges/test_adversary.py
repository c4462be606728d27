"""Endpoints, programs and functions that want to hold a run up, to fill its memory, or to have its secrets shown."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shlex
import socketserver
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from dpo_jax import masking
from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges import chat as chats
from dpo_jax.evaluation.judges.chat import Chat
from dpo_jax.evaluation.judges.http import Cache, http_judge
from dpo_jax.evaluation.judges.programs import scoring_command, scoring_function
from dpo_jax.evaluation.judges.wording import understand
from dpo_jax.types import Prompt
from tests.evaluation.judges.endpoint import longer_wins, said, serve

PROMPTS = [Prompt("question", None, "here")]
A, B = ["aaa"], ["b"]
KEY = "judge/key+0123 456789"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Send = Callable[[bytes], None]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(masking, "_remembered", set())


@contextlib.contextmanager
def serving(act: Callable[[Send], None]) -> Iterator[str]:
    """The address of a server that does to each request, when it has read it, what it likes."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = list(iter(self.rfile.readline, b"\r\n"))
            length = next(line for line in head if line.lower().startswith(b"content-length:"))
            self.rfile.read(int(length.split(b":")[1]))
            with contextlib.suppress(OSError):
                act(self.connection.sendall)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def ask(url: str, *, seconds: float = 0.5, retries: int = 1, key: str | None = None) -> list[float]:
    chat = Chat(url, "m", key=key, settings={}, timeout_seconds=seconds, retries=retries, backoff_seconds=0.01)
    return http_judge(chat, cache=Cache(None)).verdicts(PROMPTS, A, B).tolist()


def drip(start: bytes, piece: bytes, pause: float = 0.02) -> Callable[[Send], None]:
    def act(send: Send) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(pause)

    return act


def whole(body: bytes, *headers: bytes) -> Callable[[Send], None]:
    head = b"".join(header + b"\r\n" for header in (*headers, b"Content-Length: %d" % len(body), b"Connection: close"))
    return lambda send: send(OK + head + b"\r\n" + body)


def says(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


FOREVER = {
    "white space": drip(OK + b"\r\n", b" "),
    "one byte of the status": drip(b"", b"H"),
    "one byte of a header": drip(OK + b"X: ", b"x"),
    "headers": drip(OK, b"X-More: 1\r\n"),
    "a body, chunked": drip(CHUNKED, b"1\r\n \r\n"),
    "a chunk's length": drip(CHUNKED, b"0"),
    "go on": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "less than it announced": drip(OK + b"Content-Length: 100000\r\n\r\n", b"{"),
    "an error's text": drip(b"HTTP/1.1 503 Busy\r\n\r\n", b"b"),
    "silence": lambda send: time.sleep(30),
}


@pytest.mark.parametrize("kind", FOREVER)
def test_what_comes_for_ever_has_its_time(kind: str):
    started = time.perf_counter()
    with serving(FOREVER[kind]) as url, pytest.raises(UserError, match=r"failed 2 times, at last with"):
        ask(url)
    assert time.perf_counter() - started < 15  # twice 0.5 s, on a busy machine


def flood(start: bytes, piece: bytes) -> Callable[[Send], None]:
    return drip(start, piece, 0.0)


@pytest.mark.parametrize(
    "act",
    [
        flood(OK + b"\r\n", b" " * (1 << 20)),
        flood(CHUNKED, b"100000\r\n" + b" " * (1 << 20) + b"\r\n"),
        flood(b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * (1 << 20)),
        flood(OK + b"X: ", b"x" * (1 << 20)),
        flood(OK, b"X-More: 1\r\n" * 1000),
        flood(b"", b"x" * (1 << 20)),
        whole(gzip.compress(b" " * (64 << 20)), b"Content-Encoding: gzip"),
        whole(says("A" * (3 << 20))),
    ],
)
def test_what_comes_in_masses_fills_no_memory(act: Callable[[Send], None]):
    with serving(act) as url:
        with contextlib.suppress(UserError):
            ask(url, retries=0)  # what is imported the first time does not count
        tracemalloc.start()
        with pytest.raises(UserError, match=r"failed 1 times|were not understood"):
            ask(url, seconds=20, retries=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * chats.LARGEST_ANSWER


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"1" * 100_000,
        b"\xff\xfe\x00",
        b"",
        b"null",
        b'{"choices": []}',
        says([["A"]]),
        says({"text": "A"}),
        says(7),
        b'{"choices": [{"message": {"content": "A"}}], "usage": "much"}',
    ],
)
def test_what_holds_no_answer_is_asked_for_again(body: bytes):
    with serving(whole(body)) as url, pytest.raises(UserError, match="failed 3 times, at last with: no answer in '"):
        ask(url, seconds=5, retries=2)


@pytest.mark.parametrize("wrong", [True, -1, 1e3, "7", 10**400, None, [3]])
def test_counts_that_are_none_are_not_counted(wrong: object):
    reply = said("A", prompt_tokens=wrong)
    with serve(lambda body, number: reply) as endpoint:
        chat = Chat(endpoint.url, "m", key=None, settings={}, timeout_seconds=5, retries=0)
        found = http_judge(chat, cache=Cache(None))
        found.verdicts(PROMPTS, A, B)
    assert found.usage().prompt_tokens == 0 and found.usage().not_counted == 2


@pytest.mark.parametrize("text", [" " * 3_000_000 + "x", "[[" * 500_000, "<think>" * 300_000, "(" * 3_000_000])
def test_an_answer_is_read_in_no_time(text: str):
    started = time.process_time()
    assert understand(text) is None
    assert time.process_time() - started < 2


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/v1", "http://localhost:{port}/", "file:///etc/passwd", "//x"]
)
def test_a_redirect_is_not_followed(code: int, target: str):
    with serve(longer_wins) as other:
        port = other.url.split(":")[2].split("/")[0]
        head = f"HTTP/1.1 {code} Moved\r\nLocation: {target.format(port=port)}\r\nContent-Length: 0\r\n\r\n".encode()
        with (
            serving(lambda send: send(head)) as url,
            pytest.raises(UserError, match=f"refused the request: {code} Moved"),
        ):
            ask(url, key=KEY)
    assert other.bodies == []


@pytest.mark.parametrize("status", [200, 401, 429, 500])
@pytest.mark.parametrize("written", [KEY, quote(KEY, safe=""), json.dumps(KEY), f"Bearer {KEY}", "x" * 140 + KEY])
def test_what_it_says_is_shown_without_the_key_on_one_short_line(status: int, written: str):
    text = f"\x1b[2J\u202e{written}\r\n\x00\x07 {'y' * 5000} {written}"
    head = f"HTTP/1.1 {status} {KEY}\r\nX: y\r\nConnection: close\r\n\r\n".encode()
    with serving(lambda send: send(head + text.encode())) as url, pytest.raises(UserError) as failed:
        ask(url, key=KEY, retries=0)
    shown = str(failed.value)
    assert KEY[:8] not in shown and "0123" not in shown and quote(KEY[:8], safe="") not in shown
    assert shown.isprintable() and len(shown) < 700 and ("***" in shown or status == 200)
    with serving(whole(says(text))) as url, pytest.raises(UserError, match="were not understood") as failed:
        ask(url, key=KEY, retries=0)
    assert KEY[:8] not in str(failed.value) and str(failed.value).isprintable()


def test_secrets_of_the_request_are_not_shown_either():
    def echo(body: dict, number: int):
        return said(f"I was given {body['api_key']}")

    with serve(echo) as endpoint, pytest.raises(UserError) as failed:
        url = f"{endpoint.url}?token=token-of-the-address&path="
        chat = Chat(url, "m", key=None, settings={"api_key": "key-of-the-request"}, timeout_seconds=5, retries=0)
        http_judge(chat, cache=Cache(None)).verdicts(PROMPTS, A, B)
    assert "key-of-the-request" not in str(failed.value) and "***" in str(failed.value)
    assert "token-of-the-address" not in masking.mask("it says token-of-the-address")


def test_a_key_that_no_header_can_hold_is_not_shown():
    for key in ("sécret-of-the-judge", "secret\r\nX-Other: of-the-judge"):
        with serve(longer_wins) as endpoint, pytest.raises(UserError, match="judge http") as failed:
            ask(endpoint.url, key=key)
        assert "of-the-judge" not in str(failed.value) and endpoint.bodies == []


def test_a_verdict_that_was_kept_and_is_none_is_asked_for_again(tmp_path: Path):
    with serve(longer_wins) as endpoint:
        chat = Chat(endpoint.url, "m", key=None, settings={}, timeout_seconds=5, retries=0)
        path = tmp_path / "v.jsonl"
        http_judge(chat, cache=Cache(path)).verdicts(PROMPTS, A, B)
        keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
        rows = [f'{{"key": "{keys[0]}", "value": {value}}}' for value in ("7", "NaN", '"A"', "true", "[" * 100_000)]
        path.write_text("\n".join(rows) + "\n")
        assert http_judge(chat, cache=Cache(path)).verdicts(PROMPTS, A, B).tolist() == [1.0]
        assert len(endpoint.bodies) == 4


def program(tmp_path: Path, code: str) -> str:
    (tmp_path / "judge.py").write_text(f"import os, signal, subprocess, sys, time\n{code}\n")
    return shlex.join([sys.executable, "-I", str(tmp_path / "judge.py")])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("while True: sys.stdout.write('x' * 65536)", "wrote more than 1,052,672 bytes for 1 rows"),
        ("while True: sys.stderr.write('x' * 65536)", "had not ended after 1.5 s"),
        ("while True: print(1, flush=True), time.sleep(0.01)", "had not ended after 1.5 s"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "had not ended after 1.5 s"),
        ("os.close(1), os.close(2); time.sleep(60)", "had not ended after 1.5 s"),
        ("print('[' * 100_000)", r"line 1 that .* wrote is '\[\["),
        ("print('1' * 4000)", "number 1 of 1 is inf"),
        ("print('9' * 5000)", "line 1 that"),
        ("print('\\x1b[2J\\x07')", r"wrote is '\\x1b\[2J\\x07'"),
        (
            "sys.exit('\\x1b]0;x\\x07 password: ' + 'hunter' * 3 + 'y' * 9999)",
            r"it said: \\x1b\]0;x\\x07 password: \*\*\*",
        ),
    ],
)
def test_a_program_has_its_time_and_its_measure(tmp_path: Path, code: str, words: str):
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(UserError, match=words) as failed:
        scoring_command(program(tmp_path, code), timeout_seconds=1.5).scores(PROMPTS, ["a " * 200_000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - started < 15 and peak < 64e6  # such a program writes 64 MB in a tenth of a second
    assert str(failed.value).isprintable() and len(str(failed.value)) < 1500


def test_a_program_that_reads_nothing_gives_its_numbers(tmp_path: Path):
    judge = scoring_command(program(tmp_path, "print(0.5)"), timeout_seconds=20)
    assert judge.scores(PROMPTS, ["a" * 5_000_000]).tolist() == [0.5]


@pytest.mark.parametrize("session", [False, True])
def test_a_child_that_keeps_the_pipes_is_not_waited_for(tmp_path: Path, session: bool):
    """One in the program's group is ended with it."""
    child = f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'], start_new_session={session})"
    code = f"child = {child}\nopen('{tmp_path / 'pid'}', 'w').write(str(child.pid))\nprint(0.5)"
    started = time.perf_counter()
    assert scoring_command(program(tmp_path, code), timeout_seconds=15).scores(PROMPTS, A).tolist() == [0.5]
    assert time.perf_counter() - started < 10
    pid = int((tmp_path / "pid").read_text())
    if session:
        os.kill(pid, 9)
    else:
        stat = Path(f"/proc/{pid}/stat")
        deadline = time.monotonic() + 5
        while stat.exists() and stat.read_text().split(")")[1].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


class Odd:
    """It is no number, and says so at length."""

    def __float__(self) -> float:
        raise RuntimeError("x")

    __array__ = property(lambda self: 1 / 0)


class Wordy(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ([float("nan")], "number 1 of 1 is nan"),
        ([1e999], "number 1 of 1 is inf"),
        ([10**400], "entries that are no numbers"),
        (["0.5"], "entries that are no numbers"),
        (["much"], "entries that are no numbers"),
        ([1j], "entries that are no numbers"),
        ([Odd()], "entries that are no numbers"),
        (Odd(), "entries that are no numbers"),
        ([[0.5]], r"it gave \[1, 1\]"),
        ([0.5, 0.5], r"it gave \[2\]"),
        ((x for x in [0.5]), "entries that are no numbers"),
        (None, "entries that are no numbers|it gave"),
        (SystemExit(0), "failed at test_adversary.py:.*SystemExit"),
        (Wordy(), "Wordy, whose text fails with ValueError"),
        (ValueError("\x1b[2J" + "x" * 10**7), r"ValueError: \\x1b\[2J"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_a_function_gives_numbers_or_is_told_of(gives: object, words: str):
    def judge(prompts: list[str], responses: list[str]) -> object:
        if isinstance(gives, BaseException):
            raise gives
        return gives

    with pytest.raises(UserError, match=f"judge python: .*(?:{words})") as failed:
        scoring_function(judge).scores(PROMPTS, A)
    assert str(failed.value).isprintable() and len(str(failed.value)) < 1000


def test_a_function_has_its_time():
    def hang(prompts: list[str], responses: list[str]) -> list[float]:
        time.sleep(60)
        return [0.0]

    started = time.perf_counter()
    with pytest.raises(UserError, match=r"had not ended after 0.2 s; .*`timeout_seconds`"):
        scoring_function(hang, timeout_seconds=0.2).scores(PROMPTS, A)
    assert time.perf_counter() - started < 15
