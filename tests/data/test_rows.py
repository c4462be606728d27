"""Rows to tokens and columns with plain arguments; tests/experiments/test_rows.py reads them as configured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dpo_jax.data.encoding import Rules
from dpo_jax.data.rows import DataRows, Reading, read_rows
from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, Layout
from dpo_jax.errors import BadRow, UserError

PAIR = {"prompt": "c ", "chosen": "ab", "rejected": "d", "margin": 0.5}
SHORT = {"max_prompt_tokens": 3, "max_tokens": 20}


@pytest.fixture
def read(tmp_path: Path, make_tokenizer):
    def read(layout: Layout[Any], rows: list[dict[str, Any]], *, limit: int | None = None, **changes: Any) -> DataRows:
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        mismatched = changes.pop("mismatched", False)
        reading = dataclasses.replace(Reading(rules=Rules(**SHORT), folder=tmp_path / "tokens"), **changes)
        sources = [{"path": str(path)}]
        return read_rows(
            layout, sources, make_tokenizer(), reading, name="these rows", mismatched=mismatched, limit=limit
        )

    return read


def test_what_was_left_out_and_changed_is_counted(read):
    data = read(PAIRS, [PAIR, {**PAIR, "prompt": "c" * 5 + " "}, {}, {**PAIR, "chosen": " "}], on_error="skip")
    assert len(data.rows) == 2 and data.skipped == {"missing column": 1, "empty value": 1}
    assert data.notes == ["1 skipped (missing column)", "1 skipped (empty value)", "1 prompts truncated"]
    assert data.margin_B is not None and data.margin_B.tolist() == [0.5, 0.5] and data.sources == ("mine",)


def test_a_limit_takes_the_first_rows(read):
    rows = [{**PAIR, "prompt": f"{letter} "} for letter in "abcd"]
    assert [prompt.prompt for prompt in read(PAIRS, rows, limit=2).prompts] == ["a ", "b "]
    assert len(read(PAIRS, rows, limit=9).rows) == 4


def test_labelled_rows_have_two_responses_where_mismatched_ones_are_wanted(read):
    rows = [{"prompt": f"{letter} ", "completion": letter, "label": letter == "a"} for letter in "abd"]
    plain, paired = read(UNPAIRED, rows), read(UNPAIRED, rows, mismatched=True)
    assert {len(row.responses) for row in plain.rows} == {1} and {len(row.responses) for row in paired.rows} == {2}
    assert plain.desirable is not None and plain.desirable.tolist() == [True, False, False]
    assert read(COMPLETIONS, rows).desirable is None
    with pytest.raises(UserError, match=r"^these rows: all 2 labels are False; both labels are needed"):
        read(UNPAIRED, rows[1:])


def test_a_bad_row_names_the_settings_that_would_help(read):
    with pytest.raises(BadRow) as bad:
        read(PAIRS, [PAIR], rules=Rules(max_prompt_tokens=2, max_tokens=2))
    assert "Raise max_tokens or lower max_prompt_tokens (now 2). Mend the row" in str(bad.value)
    assert "Raise data.max_tokens or lower data.max_prompt_tokens (now 2)." in str(bad.value.in_section("data"))
    assert bad.value.in_section("data").reason == "no room for a response"


def test_no_row_left_is_said_with_the_reasons(read):
    with pytest.raises(UserError, match=r"^these rows: .* 1 skipped \(empty value\)\. The first: .*mine\.jsonl:1: .*"):
        read(PAIRS, [{**PAIR, "chosen": ""}], on_error="skip")
    with pytest.raises(UserError, match=r"no rows are left of .*: the sources are empty\.$"):
        read(PAIRS, [])
    with pytest.raises(ValueError, match=r"on_error is 'no'"):
        read(PAIRS, [PAIR], on_error="no")
