"""One request to an OpenAI-compatible endpoint, made again where the failure may pass.

The key is sent in a header alone: it is in no message, and is taken out of what the endpoint says.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo_jax.errors import UserError

_LONGEST_WAIT_SECONDS = 600
_SHOWN_CHARACTERS = 300
_PASSING_CODES = (408, 409, 425, 429)  # and all from 500 on


class Answer(NamedTuple):
    """An answer of the model; its tokens are None where the endpoint does not count them."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Stopped(Exception):
    """Another request has failed for good, and this one is not wanted any more."""


class _Passing(Exception):
    """A failure that may pass, and after how many seconds the endpoint wants to be asked again, if it says so."""

    def __init__(self, says: str, retry_after: float | None = None):
        super().__init__(says)
        self.retry_after = retry_after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Chat:
    """`ask(text)` of one model; threads may share it.

    Args:
        url: of the API, such as http://localhost:8000/v1, or of its /chat/completions.
        model: as the endpoint calls it.
        key: sent as a bearer token; None: none is sent.
        settings: what the request holds beside model and messages, such as max_tokens.
        timeout_seconds: that the endpoint may be silent.
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
        self.model, self.settings, self._key = model, dict(settings), key
        self._timeout, self._retries, self._backoff = timeout_seconds, retries, backoff_seconds
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock, self.requests, self.repeated = threading.Lock(), 0, 0
        self.stop = threading.Event()

    def ask(self, text: str) -> Answer:
        """The answer to one user message. Raises UserError once all retries are used up; Stopped after `stop`."""
        for attempt in range(self._retries + 1):
            if self.stop.is_set():
                raise Stopped
            with self._lock:
                self.requests += 1
                self.repeated += attempt > 0
            try:
                return self._once(text)
            except _Passing as failure:
                if attempt == self._retries:
                    raise UserError(
                        f"judge http: {self.url} failed {attempt + 1} times, at last with: {failure}. The verdicts so "
                        "far are kept in the judge's `cache`: the same command goes on from them."
                    ) from None
                self._wait(failure.retry_after, attempt)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, text: str) -> Answer:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.settings}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
            with self._opener.open(request, timeout=self._timeout) as response:
                return _read(response.read())
        except urllib.error.HTTPError as error:
            says = self._clean(f"{error.code} {error.reason}: {_body(error)}")
            if error.code in _PASSING_CODES or error.code >= 500:
                raise _Passing(says, _retry_after(error.headers.get("Retry-After"))) from None
            raise UserError(f"judge http: {self.url} refused the request: {says}") from None
        except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, a time-out
            raise _Passing(self._clean(f"{type(error).__name__}: {error}")) from None
        except ValueError as error:  # an address or a key that cannot be sent
            raise UserError(self._clean(f"judge http: {self.url} cannot be asked: {error}")) from None

    def _wait(self, retry_after: float | None, attempt: int) -> None:
        """Waits as long as the endpoint asks for, else twice as long as before, spread so that threads part."""
        if retry_after is not None and retry_after > _LONGEST_WAIT_SECONDS:
            raise UserError(
                f"judge http: {self.url} asks to wait {retry_after:.0f} s; run the same command again after that."
            )
        spread = self._backoff * 2**attempt * random.uniform(0.5, 1.0)
        if self.stop.wait(min(spread, _LONGEST_WAIT_SECONDS) if retry_after is None else retry_after):
            raise Stopped

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        line = " ".join(text.split())
        return (line.replace(self._key, "***") if self._key else line)[:_SHOWN_CHARACTERS]


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(4096).decode("utf8", "replace")
    except OSError:  # it broke off, or went silent
        return ""


def _read(body: bytes) -> Answer:
    try:
        found = json.loads(body)
        text, usage = found["choices"][0]["message"]["content"], found.get("usage") or {}
        return Answer(str(text or ""), _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Passing(f"no answer in {body[:80]!r}") from None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which has them or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
