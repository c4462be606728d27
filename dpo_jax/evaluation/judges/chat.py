"""One request to an OpenAI-compatible endpoint, made again where the failure may pass.

The endpoint is not trusted: an answer has a time, a size and a depth, redirects are not followed, and what it says is
shown in one short line without secrets. The key is sent in a header alone.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_jax.errors import UserError, each_once, told
from dpo_jax.masking import remember, remember_all

if TYPE_CHECKING:
    import httpx2

LARGEST_ANSWER = 4 << 20
"""Bytes of an answer; a reasoning of 100,000 tokens has a tenth of them."""
_LONGEST_WAIT_SECONDS = 600
_SHOWN_CHARACTERS = 300
_MOST_TOKENS = 1 << 53
_PASSING_CODES = (408, 409, 425, 429)  # and all from 500 on


class Answer(NamedTuple):
    """An answer of the model; its tokens are None where the endpoint does not count them."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class _Passing(Exception):
    """A failure that may pass, and after how many seconds the endpoint wants to be asked again, if it says so."""

    def __init__(self, says: str, retry_after: float | None = None):
        super().__init__(says)
        self.retry_after = retry_after


class Chat:
    """`ask(text)` of one model, within `connected()`.

    Args:
        url: of the API, such as http://localhost:8000/v1, or of its /chat/completions.
        model: as the endpoint calls it.
        key: sent as a bearer token; None: none is sent.
        settings: what the request holds beside model and messages, such as max_tokens.
        timeout_seconds: for a request, from the first byte sent to the last one of its answer.
        retries: how often a request is made again after 429, 5xx, a time-out, a broken connection or no answer in it.
        backoff_seconds: before the first retry; doubled before each later one. Retry-After comes before it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        settings: Mapping[str, Any],
        timeout_seconds: float,
        retries: int,
        backoff_seconds: float = 1.0,
    ):
        self.url = (
            url.rstrip("/") if url.rstrip("/").endswith("/chat/completions") else f"{url.rstrip('/')}/chat/completions"
        )
        self.model, self.settings = model, dict(settings)
        self._timeout, self._retries, self._backoff = timeout_seconds, retries, backoff_seconds
        self._key, self.requests, self.repeated = key, 0, 0
        self._client: httpx2.AsyncClient | None = None
        if key:
            remember(key)
        remember_all(settings)
        remember_all(dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """The context in which it can be asked."""
        import httpx2

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
            async with httpx2.AsyncClient(headers=headers, timeout=None, follow_redirects=False) as self._client:
                yield
        except UnicodeEncodeError:
            raise UserError("judge http: its key holds characters that a header cannot hold.") from None

    async def ask(self, text: str) -> Answer:
        """The answer to one user message. Raises UserError once all retries are used up."""
        for attempt in range(self._retries + 1):
            self.requests += 1
            self.repeated += attempt > 0
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._once(text)
            except TimeoutError:
                failure = _Passing(f"no whole answer within {self._timeout:g} s")
            except _Passing as passing:
                failure = passing
            if attempt == self._retries:
                raise UserError(
                    f"judge http: {self.url} failed {attempt + 1} times, at last with: {failure}. The verdicts so "
                    "far are kept in the judge's `cache`: the same command goes on from them."
                )
            await self._wait(failure.retry_after, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, text: str) -> Answer:
        import httpx2

        assert self._client is not None, "ask within connected()"
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.settings}
        try:
            async with self._client.stream("POST", self.url, content=json.dumps(body)) as response:
                answer = bytearray()
                async for piece in response.aiter_raw():  # as it came: what is small may unpack to anything
                    answer += piece
                    if len(answer) > LARGEST_ANSWER:
                        raise _Passing(f"an answer of more than {LARGEST_ANSWER:,} bytes")
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL) as error:
            raise UserError(f"judge http: {self.url} cannot be asked: {_said(error)}") from None
        except httpx2.TransportError as error:  # no connection, or a broken one
            raise _Passing(f"{type(error).__name__}: {_said(_innermost(error))}") from None
        code = response.status_code
        if code == 200:
            return _read(bytes(answer))
        says = _said(f"{code} {response.reason_phrase}: {answer.decode('utf8', 'replace')}")
        if code in _PASSING_CODES or code >= 500:
            raise _Passing(says, _retry_after(response.headers))
        raise UserError(f"judge http: {self.url} refused the request: {says}")

    async def _wait(self, retry_after: float | None, attempt: int) -> None:
        """Waits as long as the endpoint asks for, else twice as long as before, spread so that requests part."""
        if retry_after is not None and retry_after > _LONGEST_WAIT_SECONDS:
            raise UserError(
                f"judge http: {self.url} asks to wait {retry_after:.0f} s; run the same command again after that."
            )
        spread = self._backoff * 2**attempt * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(spread, _LONGEST_WAIT_SECONDS) if retry_after is None else retry_after)


def _said(what: object) -> str:
    return told(what, _SHOWN_CHARACTERS)


def _innermost(error: BaseException) -> BaseException:
    """What an error comes from: that the connection was refused, and not that all attempts failed."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _read(body: bytes) -> Answer:
    try:
        found = json.loads(body, object_pairs_hook=each_once)
        text, usage = found["choices"][0]["message"]["content"], found.get("usage") or {}
        counts = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text, counts = NotImplemented, (None, None)
    if not isinstance(text, str | None):
        raise _Passing(f"no answer in '{told(body.decode('utf8', 'replace'), 80)}'")
    return Answer(text or "", *counts)


def _count(value: object) -> int | None:
    """A number of tokens; what is none, as true or -5, is not counted."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header, which has them or a date: of the endpoint's clock, which `Date` tells."""
    value = headers.get("Retry-After")
    if not value:
        return None
    try:
        seconds = float(value)
        return None if seconds != seconds else max(0.0, seconds)
    except ValueError:
        until, now = _time_of(value), _time_of(headers.get("Date"))
    return None if until is None else max(0.0, until - (time.time() if now is None else now))


def _time_of(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
