"""Headless Chromium over its own debugging pipe: no driver and no package beside it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_SECONDS = 60.0


class Browser:
    """A browser with one page, used as a context manager.

    `requests` are the addresses that the page asked for, `said` what stood in its console.
    """

    def __init__(self, profile: Path):
        read_fd, self._to = os.pipe()
        self._from, write_fd = os.pipe()
        # The browser reads commands from its descriptor 3 and answers on 4.
        shell = f'exec 3<&{read_fd} 4>&{write_fd}; exec "$0" "$@"'
        command = ["bash", "-c", shell, str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(read_fd, write_fd), stderr=subprocess.DEVNULL)
        os.close(read_fd)
        os.close(write_fd)
        self._received, self._last, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.said: list[str] = []

    def __enter__(self) -> Browser:
        (page,) = (each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        target = {"targetId": page["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **target)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        """Loads a file as a phone of this width has it, or a desk, by day or by night."""
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.call("Page.navigate", url=page.as_uri())
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") != page.as_uri():
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page, which is none of the page's own."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._last, "method": method, "params": params, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + _SECONDS)
            self._note(answer)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._from, 1 << 16) if ready else b""
            assert part, "the browser does not answer"
            self._received += part
        line, _, self._received = self._received.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(params))
