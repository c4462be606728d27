"""The report in a real browser: plots have a size, a phone scrolls only downward, the console stays empty."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from dpo_jax.reporting.report import render
from tests.reporting.made_up import CONFIG, EVALUATION, made_up_run
from tests.reporting.test_analysis import made_up_analysis

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"),
)
# The report runs no scripts, so a page around it measures it, in a frame as wide as a phone and one as wide as a desk.
MEASURE = """
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const plots = [...page.querySelectorAll("svg")].map(plot => plot.getBoundingClientRect());
    return {
      scroll: page.documentElement.scrollWidth,
      plots: plots.filter(box => box.width > 250 && box.height > 100).length,
      sides: [...page.querySelector(".pair").children].map(side => side.getBoundingClientRect().left),
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
};
"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_in_chromium(tmp_path: Path) -> None:
    long = {"prompt": "p" * 400, "reference": "r" * 400, "policy": "a long answer " * 80}
    run = made_up_run()._replace(
        title="t" * 90,
        command="dpo-jax " + "c" * 400,
        environment={"machine": "m" * 200},
        config=CONFIG | {"long": "x" * 400},
        analysis=made_up_analysis(),
        evaluation=EVALUATION | {"samples": [long, *EVALUATION["samples"]]},
    )
    report = html.escape(render(run).replace("<details>", "<details open>"))  # what is folded cannot overflow
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{report}"></iframe>' for width in (380, 1200))
    page = tmp_path / "frames.html"
    page.write_text(
        f'<meta charset="utf-8"><style>iframe {{ border: 0 }}</style><script>{MEASURE}</script>{frames}<p id="found">'
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ":CONSOLE" not in done.stderr
    found = re.search(r'id="found">([^<]+)', done.stdout)
    assert found, "the measuring page did not run"
    phone, desk = json.loads(html.unescape(found[1]))
    assert phone["scroll"] <= 380 and desk["scroll"] <= 1200
    assert phone["plots"] == desk["plots"] == 12
    assert phone["sides"][0] == phone["sides"][1] and desk["sides"][0] < desk["sides"][1]
