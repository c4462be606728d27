"""Foreign text in Markdown, in cells, lines and letters of code: read back by a parser, it is the text that it was."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from dpo_jax.reporting.markdown import code, text
from dpo_jax.reporting.sweep import Line, as_markdown, make_table

EVIL = [
    "a | b", "two\n# lines", "<script>alert(1)</script>", "[a](http://x)", "![a](x)", "**a**", "_a_", "~~a~~", "`a`",
    "# a", "- a",
    "> a", "a\n\n---\nb", "a\r\rb", "&lt;b&gt;", "https://evil.example/x", "www.evil.example", "me@evil.example",
    "\x1b[31mred\x1b[0m", "\u202eabc", "\x9b31m", "\\", "\\|", "a\u2028# b", "```\nb\n```", "| --- |", "= a", "===",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_it_is_text_and_nothing_else(evil: str):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    plain = parser.render(f"before {text(evil)} after")
    assert set(re.findall("<[a-z]+", plain)) == {"<p"} and plain.count("<p>") == 1
    alone = parser.render(text(evil))
    assert set(re.findall("<[a-z]+", alone)) <= {"<p"}
    coded = parser.render(f"before {code(evil)} after")
    assert set(re.findall("<[a-z]+", coded)) == {"<p", "<code"}
    assert (text(evil) + code(evil)).replace("\\u", "").isprintable()


@pytest.mark.parametrize("evil", EVIL)
def test_a_cell_of_a_sweep_ends_where_it_does(evil: str):
    line = Line({evil: evil, "seed": 1}, 1, {"held-out accuracy": (0.5, (0.4, 0.6))}, evil)
    written = as_markdown(make_table([line], [(evil, evil)]))
    shown = MarkdownIt("commonmark").enable("table").render(written)
    assert shown.count("<tr>") == 2 and shown.count("<td>") == shown.count("<th>") == 3
    assert set(re.findall("<[a-z]+", shown)) == {"<table", "<thead", "<tbody", "<tr", "<th", "<td", "<p"}
