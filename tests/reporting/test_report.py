"""The report: whole without the network, safe whatever the data says, the same bytes for the same run."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpo_jax.reporting.plots import PREFERENCE_PLOTS, draw
from dpo_jax.reporting.report import SHOWN_SAMPLES, RunReport, render, training_summary
from tests.reporting.made_up import EVALUATION, made_up_run, measured, preference_rows

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 6 }}"
ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(made_up_run())


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_page_holds_every_part(html: str) -> None:
    page = Page(html)
    run = made_up_run()
    for text in (run.title, run.command, run.created, "Better", "90.6", "beta: 0.1", "13.4", "2 cores"):
        assert text in page.text
    assert all(sample["policy"] in page.text for sample in EVALUATION["samples"])
    assert f"{len(EVALUATION['samples']) - SHOWN_SAMPLES} more" in page.text
    assert page.text.count("Write a one-line movie review.") == 1  # shared by all samples: said once
    assert sum(tag == "svg" for tag, _ in page.tags) == len(PREFERENCE_PLOTS) + 1


def test_the_verdict_comes_first(html: str) -> None:
    assert html.index("judged better") < html.index("<table") < html.index("<svg") < html.index("Configuration")


def test_nothing_is_asked_of_the_network(html: str) -> None:
    tags = Page(html).tags
    assert not {"script", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in tags}
    links = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    addresses = set(re.findall(r"https?://[^\"'\s<]+", html))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, never fetched
    assert "default-src 'none'" in html


def test_text_from_data_stays_text() -> None:
    sample = {"prompt": EVIL, "reference": EVIL, "policy": EVIL}
    run = RunReport(
        title=EVIL,
        command=EVIL,
        created=EVIL,
        environment={EVIL: EVIL},
        config={"loss": {"name": EVIL}},
        metrics=[],
        evaluation=measured({"samples": [sample], "judged": EVALUATION["judged"] | {"judge": EVIL}}),
    )
    page = Page(render(run))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(EVIL) >= 8 and "42" not in page.text


def test_accessible(html: str) -> None:
    tags = Page(html).tags
    assert ("html", {"lang": "en"}) in tags and any(tag == "title" for tag, _ in tags)
    pictures = [attrs["aria-label"] or "" for _, attrs in tags if attrs.get("role") == "img"]
    assert len(pictures) == len(PREFERENCE_PLOTS) + 1 and all(re.search(r" at step \d+", text) for text in pictures)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in tags if tag == "th")


def test_ids_are_unique_and_every_reference_is_met(html: str) -> None:
    tags = Page(html).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["xlink:href"] for _, attrs in tags if "xlink:href" in attrs} | set(
        re.findall(r"url\((#[^)]+)\)", html)
    )
    labelled = {f"#{attrs['aria-labelledby']}" for _, attrs in tags if "aria-labelledby" in attrs}
    assert wanted and wanted | labelled <= {f"#{name}" for name in ids}


def test_the_same_run_gives_the_same_bytes() -> None:
    run = made_up_run()._replace(metrics=preference_rows(3), sft_metrics=[])
    code = (
        "from tests.reporting.made_up import *; from dpo_jax.reporting.report import render\n"
        "print(render(made_up_run()._replace(metrics=preference_rows(3), sft_metrics=[])))"
    )
    assert _python(code) == render(run) + "\n"


@pytest.mark.parametrize("missing", ["heldout", "kl", "judged", "samples", "scores", "all"])
def test_a_run_without_a_part_still_has_a_report(missing: str) -> None:
    evaluation = {name: value for name, value in EVALUATION.items() if name != missing}
    if missing == "scores":
        evaluation["samples"] = [{"prompt": "p", "reference": "r", "policy": "q"}]
    run = made_up_run()._replace(
        metrics=[], sft_metrics=[], evaluation=measured({} if missing == "all" else evaluation)
    )
    page = Page(render(run))
    assert "None" not in page.text and run.command in page.text
    assert ("Results" in page.text) == (missing != "all")


def test_curves_are_drawn_for_what_was_logged_only() -> None:
    curves = draw(PREFERENCE_PLOTS, [{"step": 1, "loss": 0.5}, {"step": 2, "logps/chosen": -4.0}], prefix="x")
    assert [curve.title for curve in curves] == ["Loss"]


def test_a_curve_has_no_colour_and_no_size_of_its_own() -> None:
    for curve in draw(PREFERENCE_PLOTS, preference_rows(), prefix="x"):
        root = ElementTree.fromstring(curve.svg)
        assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
        assert not re.search(r"(fill|stroke): #", curve.svg) and "var(--line-1)" in curve.svg
        assert ("var(--line-2)" in curve.svg) == bool(curve.legend)


def test_nan_is_marked_and_said() -> None:
    rows = preference_rows()
    rows[16]["loss"], rows[20]["loss"] = math.nan, math.inf
    loss, margin = draw(PREFERENCE_PLOTS, rows, prefix="x")[:2]
    assert loss.svg.count("var(--bad)") == 2 and "var(--bad)" not in margin.svg
    assert "not finite at 2" in loss.description
    rows[-1]["loss"] = math.nan
    assert "NaN to NaN) over the last 5" in training_summary(rows) and "mark NaN" in render(
        made_up_run()._replace(metrics=rows)
    )


def test_the_loss_of_two_batches_is_no_trend() -> None:
    rows = preference_rows()
    whole, few = training_summary(rows), training_summary(rows[:9])
    assert "loss 0.638" in whole and "interval" in whole and "over the first 5 logged steps" in whole
    assert "loss" not in few and "Up to step 9" in few
    (curve, *_) = draw(PREFERENCE_PLOTS, rows[:9], prefix="x")
    assert "from" not in curve.description and "between" in curve.description


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, dpo_jax.reporting.card; print({'matplotlib', 'jinja2', 'yaml', 'jax'} & set(sys.modules))"
    assert _python(code) == "set()\n"


def test_the_template_is_a_file_of_the_package() -> None:
    assert (Path(render.__code__.co_filename).parent / "report.html.jinja").is_file()
