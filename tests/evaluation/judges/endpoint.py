"""A real HTTP server on this machine that answers as an OpenAI-compatible endpoint does, or as a test tells it to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

SHOWN = re.compile(r"\[Response A\]\n(.*?)\n\n\[Response B\]\n(.*?)\n\nAnswer", re.S)


class Reply(NamedTuple):
    """One answer of the server."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    delay_seconds: float = 0.0


Behave = Callable[[dict[str, Any], int], Reply]


def said(text: str, prompt_tokens: int = 100, completion_tokens: int = 2) -> Reply:
    """A chat completion."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def longer_wins(body: dict[str, Any], number: int) -> Reply:
    """A judge without a position bias."""
    a, b = SHOWN.search(body["messages"][0]["content"]).groups()
    return said("C" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


class Endpoint:
    """The address, and what was asked so far: bodies and headers, in order, and how many at the same time."""

    def __init__(self, url: str):
        self.url, self.bodies, self.headers = url, list[dict[str, Any]](), list[dict[str, str]]()
        self.paths, self.now, self.most = list[str](), 0, 0
        self.lock = threading.Lock()


@contextmanager
def serve(behave: Behave) -> Iterator[Endpoint]:
    """`behave(body, number)` answers each request; numbers count from 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                number = len(endpoint.bodies)
                endpoint.bodies.append(body)
                endpoint.headers.append(dict(self.headers))
                endpoint.paths.append(self.path)
                endpoint.now += 1
                endpoint.most = max(endpoint.most, endpoint.now)
            reply = behave(body, number)
            time.sleep(reply.delay_seconds)
            with endpoint.lock:
                endpoint.now -= 1
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has gone
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
