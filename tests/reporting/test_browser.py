"""The pages in a real browser: plots have data, a phone scrolls only downward, nothing is asked of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_jax.reporting import data
from dpo_jax.reporting.comparison import render_comparison
from dpo_jax.reporting.report import render
from dpo_jax.reporting.sweep import as_html, make_table
from tests.reporting.browser import CHROMIUM, Browser
from tests.reporting.made_up import CONFIG, DATA, FITTED, WHOLE, made_up_run, measured
from tests.reporting.test_analysis import made_up_analysis
from tests.reporting.test_comparison import compared, run
from tests.reporting.test_pictures import made_up_pictures
from tests.reporting.test_sweep import LINES

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
PHONE, DESK = 390, 1200

# Of every plot its box, and how many lines and marks in the colours of data can be seen.
PLOTS = """[...document.querySelectorAll("svg")].map(plot => {
  const box = plot.getBoundingClientRect();
  const data = [...plot.querySelectorAll("path, use")].filter(node => /var\\(--line-/.test(node.getAttribute("style")));
  const seen = data.map(node => node.getBoundingClientRect()).filter(mark => mark.width + mark.height > 4);
  return [box.width, box.height, seen.length];
})"""
# The contrast (WCAG 2) of all text on what lies behind it, text in plots included; the faintest of each colour.
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = colour => rgba(colour).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    while (node.parentElement && rgba(getComputedStyle(node).backgroundColor)[3] === 0) node = node.parentElement;
    return getComputedStyle(node).backgroundColor;
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, style = getComputedStyle(node);
    if (!walker.currentNode.data.trim() || node.closest("style, metadata")) continue;
    const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found[style.color] = Math.min(found[style.color] ?? 99, ratio);
  }
  return [light(getComputedStyle(document.body).backgroundColor), Math.min(...Object.values(found))];
})()"""
ASKS = """[...document.querySelectorAll("*")].flatMap(node => [...node.attributes])
  .filter(each => /^(src|srcset|href|xlink:href|action|data|poster|formaction|background)$/.test(each.name))
  .map(each => each.value)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each page with more of everything than is good for it, and nothing folded: what is folded cannot overflow."""
    long = {"prompt": "p" * 400, "reference": "r" * 400, "policy": "a long answer " * 80, "verdict": 1.0}
    whole = made_up_run()._replace(
        title="t" * 90,
        command="dpo-jax " + "c" * 400,
        environment={"machine": "m" * 200},
        config=CONFIG | {"long": "x" * 400},
        analysis=made_up_analysis(),
        evaluation=measured(WHOLE | {"samples": [long, *WHOLE["samples"]]}),
        fitted=FITTED,
        data=DATA,
    )
    other = run(evaluation__settings__judge__model="m" * 200)._replace(metrics=[])
    several = {"one": run(), "t" * 90: run(), "three": run(config__seed=3)}
    pieces = [data.Piece("p" * 200, "prompt"), data.Piece("s" * 200, "scored"), data.Piece("u" * 200, "unscored")]
    example = data.Example("e" * 200, [("chosen", pieces)])
    split = data.SplitReport("data.train", [("f" * 200, "4", True)], (50, 100), {"prompt": (10**6, 10**7)}, [example])
    made = {
        "report": render(whole),
        "comparison": render_comparison(compared(**several)),
        "unlike": render_comparison(compared(one=run(), other=other)),
        "data": data.as_html("d" * 90, [split]),
        "pictures": render(made_up_pictures()._replace(title="t" * 90, command="c" * 400)),
        "clips": render(made_up_pictures(clips=True)),
        "sweep": as_html("s" * 90, "dpo-jax " + "c" * 400, make_table(LINES, [("p" * 90, "w" * 90)]), LINES),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text.replace("<details>", "<details open>"), encoding="utf8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


PLOTS_OF = {"report": 12, "comparison": 6, "unlike": 5, "data": 0, "sweep": 1, "pictures": 8, "clips": 8}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", PLOTS_OF)
def test_a_page(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.said.clear()
    browser.open(pages[name], width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width

    plots: list[list[Any]] = browser.evaluate(PLOTS)
    assert len(plots) == PLOTS_OF[name]
    assert all(wide > 200 and high > 100 and marks for wide, high, marks in plots), plots

    paper, faintest = browser.evaluate(CONTRAST)
    assert (paper < 0.05) == dark and (paper > 0.8) != dark
    assert faintest >= 4.5  # what WCAG 2 asks of text
    asked = [address for address in browser.requests if not address.startswith("data:")]
    assert browser.said == [] and asked == [pages[name].as_uri()]
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth && image.width > 30)")


def test_nothing_leaves_the_file(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page, width=PHONE, dark=False)
        assert all(link.startswith(("#", "data:")) for link in browser.evaluate(ASKS))
        styles = browser.evaluate(
            "[...document.styleSheets].map(sheet => [...sheet.cssRules].map(r => r.cssText).join())"
        )
        assert not re.search(r"url\((?![\"']?#)|@import", page.read_text(encoding="utf8") + "".join(styles))
        assert not browser.evaluate("document.scripts.length + document.querySelectorAll('iframe, object').length")


def test_responses_stand_side_by_side_where_there_is_room(browser: Browser, pages: dict[str, Path]) -> None:
    sides = '[...document.querySelector(".pair").children].map(side => side.getBoundingClientRect().left)'
    browser.open(pages["report"], width=PHONE, dark=False)
    assert len(set(browser.evaluate(sides))) == 1
    browser.open(pages["report"], width=DESK, dark=False)
    before, after = browser.evaluate(sides)
    assert before < after
    browser.open(pages["comparison"], width=DESK, dark=False)
    assert len(set(browser.evaluate(sides))) == 4  # the reference and three runs


def test_what_the_console_says_and_what_is_asked_for_is_seen(browser: Browser, tmp_path: Path) -> None:
    """That the tests above can fail."""
    page = tmp_path / "leak.html"
    page.write_text(
        "<script>console.error('heard'); nowhere()</script><img src='other.png'><p style='width: 900px'>wide"
    )
    browser.said.clear()
    browser.open(page, width=PHONE, dark=False)
    assert any("heard" in text for text in browser.said) and any("nowhere" in text for text in browser.said)
    assert any(address.endswith("other.png") for address in browser.requests)
    assert browser.evaluate("document.documentElement.scrollWidth") > PHONE
