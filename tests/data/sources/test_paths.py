"""The same rows from every kind of file; what CSV and Parquet say of numbers and places."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.data.sources import read_pairs, read_unpaired
from dpo_jax.data.sources.paths import READERS

ROWS = [
    {"prompt": "p ", "chosen": 'c,"c"\nü', "rejected": " r"},
    {"prompt": "12", "chosen": "true", "rejected": "\u2028x"},
    {"prompt": "q", "chosen": "x" * 200_000, "rejected": "y"},  # longer than the csv module's own limit
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def as_csv(rows, columns) -> bytes:
    def cell(text):
        return '"' + str(text).replace('"', '""') + '"'

    return "\r\n".join([",".join(columns), *(",".join(cell(row[name]) for name in columns) for row in rows)]).encode()


def contents() -> dict[str, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    return {
        "a.jsonl": lines,
        "a.ndjson": lines + b"\n\n",
        "array.json": json.dumps(ROWS, indent=1).encode(),
        "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
        "lines.json": b"\xef\xbb\xbf" + lines,
        "a.csv": b"\xef\xbb\xbf" + as_csv(ROWS, list(ROWS[0])),
        "a.parquet": sink.getvalue().to_pybytes(),
    }


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
def test_all_files_give_the_same_rows(name, compressed):
    data = contents()[name]
    if compressed == ".gz":
        data = gzip.compress(data)
    elif compressed:
        data = pa.compress(data[:9], "zstd", asbytes=True) + pa.compress(data[9:], "zstd", asbytes=True)  # two frames
    Path(name + compressed).write_bytes(data)
    if compressed and name.endswith(".parquet"):
        with pytest.raises(Exception, match="no suffix that says how to read it"):
            read_pairs([{"path": name + compressed}])
        return
    rows, skipped = read_pairs([{"path": name + compressed}])
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [tuple(row.values()) for row in ROWS]
    assert skipped == {} and len({row.row_id for row in rows}) == 3
    assert {row.source for row in rows} == {name.partition(".")[0]}


def test_every_suffix_of_the_table_is_tried():
    assert {Path(name).suffix for name in contents()} == set(READERS)


def test_places_are_lines_or_rows():
    for name, data in contents().items():
        Path(name).write_bytes(data)
    places = {name: [row.where for row in read_pairs([{"path": name}]).rows] for name in contents()}
    assert places["a.jsonl"] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert places["lines.json"] == ["lines.json:1", "lines.json:2", "lines.json:3"]
    assert places["a.csv"] == ["a.csv:3", "a.csv:4", "a.csv:5"]  # the line on which a row ends
    assert places["a.parquet"] == ["a.parquet row 1", "a.parquet row 2", "a.parquet row 3"]
    assert places["columns.json"] == ["columns.json row 1", "columns.json row 2", "columns.json row 3"]


def test_csv_has_numbers_in_the_columns_of_numbers_only():
    Path("a.csv").write_text("prompt,chosen,rejected,margin,soft\n1,true,2.5,0.5,\n3,4,null,,0.25\n")
    rows, _ = read_pairs([{"path": "a.csv", "columns": {"soft_label": "soft"}}])
    assert [row.prompt for row in rows] == ["1", "3"] and rows[0].responses == ("true", "2.5")
    assert [(row.margin, row.soft_label) for row in rows] == [(0.5, None), (None, 0.25)]
    Path("b.csv").write_text("prompt,completion,label\np,c,True\np,d,0\np,e,yes\n")
    labelled, skipped = read_unpaired([{"path": "b.csv"}], on_error="skip", mismatched=False)
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
    rows, _ = read_pairs([{"path": "a.parquet"}])
    assert rows[0].prompt == ({"role": "user", "content": "x"},)
    assert rows[0].chosen == ({"role": "assistant", "content": "a", "name": "b"},)
    assert [row.margin for row in rows] == [0.5, None] and rows[0].tools is None
