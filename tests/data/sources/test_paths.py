"""Where rows of files are, and what CSV and Parquet say of numbers and nulls."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.data.sources import PAIRS, UNPAIRED, read_sources
from dpo_jax.errors import BadRow, UserError
from tests.contracts.test_sources import FILES

ROWS = [("p", "c\nü", "r"), ("12", "true", "x"), ("q", "a", "b")]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_places_are_lines_or_rows():
    for name, made in FILES.items():
        Path(name).write_bytes(made(ROWS))
    places = {name: [row.where for row in read_sources(PAIRS, [{"path": name}]).rows] for name in FILES}
    assert places["a.jsonl"] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert places["lines.json"] == ["lines.json:1", "lines.json:2", "lines.json:3"]
    assert places["a.csv"] == ["a.csv:3", "a.csv:4", "a.csv:5"]  # the line on which a row ends
    assert places["a.parquet"] == ["a.parquet row 1", "a.parquet row 2", "a.parquet row 3"]
    assert places["columns.json"] == ["columns.json row 1", "columns.json row 2", "columns.json row 3"]


def test_parquet_is_not_compressed_once_more():
    Path("a.parquet.gz").write_bytes(b"")
    with pytest.raises(UserError, match="no suffix that says how to read it"):
        read_sources(PAIRS, [{"path": "a.parquet.gz"}])


NUMBERS = {"margin": ["1e39", "NaN", "-inf", "1e400"], "weight": ["-1", "1e39"], "soft_label": ["NaN", "1.1"]}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_no_format_brings_a_number_that_is_not_finite(suffix: str):
    for column, values in NUMBERS.items():
        for value in values:
            row = {"prompt": "p", "chosen": "c", "rejected": "r", column: float(value)}
            if suffix == "parquet":
                pq.write_table(pa.Table.from_pylist([row]), "x.parquet")
            elif suffix == "csv":
                Path("x.csv").write_text(f"prompt,chosen,rejected,{column}\np,c,r,{value}\n")
            else:
                text = json.dumps(row).replace("Infinity", "1e400")
                Path(f"x.{suffix}").write_text(f"[{text}]" if suffix == "json" else text)
            with pytest.raises(BadRow, match=f"column '{column}' is"):
                read_sources(PAIRS, [{"path": f"x.{suffix}"}])


def test_a_key_given_twice_is_refused_wherever_a_row_is_json():
    row = '{"prompt": "p", "chosen": "a", "chosen": "c", "rejected": "r"}'
    deep = '{"prompt": "p", "chosen": "a", "rejected": "r", "tools": [{"name": "x", "name": "y"}]}'
    text = json.dumps({"prompt": "p", "chosen": "a", "rejected": "r", "tools": '[{"name": "x", "name": "y"}]'})
    for twice in (row, deep, text):
        key = "chosen" if twice == row else "name"
        for name, content in (("x.jsonl", twice), ("x.json", f"[{twice}]")):
            Path(name).write_text(content)
            with pytest.raises(UserError, match=f"the key '{key}' is given twice"):
                read_sources(PAIRS, [{"path": name}])
    Path("x.json").write_text('{"prompt": ["p"], "chosen": ["a"], "rejected": ["r"], "chosen": ["c"]}')
    with pytest.raises(UserError, match="the key 'chosen' is given twice"):
        read_sources(PAIRS, [{"path": "x.json"}])


def test_csv_has_numbers_in_the_columns_of_numbers_only():
    Path("a.csv").write_text("prompt,chosen,rejected,margin,soft\n1,true,2.5,0.5,\n3,4,null,,0.25\n")
    rows, _ = read_sources(PAIRS, [{"path": "a.csv", "columns": {"soft_label": "soft"}}])
    assert [row.prompt for row in rows] == ["1", "3"] and rows[0].responses == ("true", "2.5")
    assert [(row.margin, row.soft_label) for row in rows] == [(0.5, None), (None, 0.25)]
    Path("b.csv").write_text("prompt,completion,label\np,c,True\np,d,0\np,e,yes\n")
    labelled, skipped = read_sources(UNPAIRED, [{"path": "b.csv"}], on_error="skip")
    assert [row.desirable for row in labelled] == [True, False] and skipped == {"not a label": 1}


def test_parquet_has_messages_and_nulls_for_what_a_row_lacks():
    user = {"role": "user", "content": "x", "name": None}
    pairs = [
        {
            "prompt": [user],
            "chosen": [{"role": "assistant", "content": "a", "name": "b"}],
            "rejected": [{"role": "assistant", "content": "c", "name": None}],
            "margin": margin,
            "tools": None,
        }
        for margin in (0.5, None)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), "a.parquet")
    rows, _ = read_sources(PAIRS, [{"path": "a.parquet"}])
    assert rows[0].prompt == ({"role": "user", "content": "x"},)
    assert rows[0].chosen == ({"role": "assistant", "content": "a", "name": "b"},)
    assert [row.margin for row in rows] == [0.5, None] and rows[0].tools is None
