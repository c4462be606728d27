"""Rows read from JSONL files, and every way in which a file, a row or a source can be wrong."""

import gzip
import json

import pytest

from dpo_jax.data.sources import COMPLETIONS, PAIRS, read_sources
from dpo_jax.errors import UserError

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
GOOD_LINE = json.dumps(GOOD).encode()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, *lines):
    from pathlib import Path

    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)
    return {"path": path}


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


def test_the_row_id_is_the_content_and_nothing_else():
    reordered = {"rejected": "r", "chosen": "c", "prompt": "p", "extra": 1}
    swapped = {"prompt": "p", "chosen": "r", "rejected": "c"}
    shifted = {"prompt": "pc", "chosen": "c2", "rejected": "r"}
    rows, _ = read_sources(PAIRS, [write("a.jsonl", GOOD, reordered, swapped, shifted)])
    ids = [row.row_id for row in rows]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(len(row_id) == 32 for row_id in ids)


def test_line_ends_marks_and_blank_last_lines_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD_LINE + b"\r\n" + GOOD_LINE + b"\n\n  \n")
    rows, skipped = read_sources(PAIRS, [{"path": "a.jsonl"}])
    assert [row.where for row in rows] == ["a.jsonl:1", "a.jsonl:2"]
    assert skipped == {}


def test_completions_and_chosen_as_completion_only_if_asked():
    spec = write("a.jsonl", {"prompt": "p", "completion": "c"})
    rows, _ = read_sources(COMPLETIONS, [spec])
    assert rows[0][1:4] == ("p", "c", "a.jsonl:1")
    pairs = write("b.jsonl", GOOD)
    assert "b.jsonl:1: no column 'completion'" in message(read_sources, COMPLETIONS, [pairs])
    asked, _ = read_sources(COMPLETIONS, [{**pairs, "columns": {"completion": "chosen"}}])
    assert (asked[0].prompt, asked[0].completion) == ("p", "c")
    assert asked[0].row_id == rows[0].row_id  # the same content, whatever the columns were called


BAD_LINES = {
    b"{broken": ("not JSON", ["not JSON"]),
    b"[1, 2]": ("not an object", ["a JSON list"]),
    b'{"prompt": "\xff"}': ("not UTF-8", ["not UTF-8"]),
    b"[" * 100_000: ("not JSON", ["not JSON"]),
    b"  ": ("blank line", ["blank"]),
    b'{"prompt": "p", "chosen": "c", "reject": "r"}': (
        "missing column",
        ["no column 'rejected'", "Did you mean 'reject'", "columns: {rejected: reject}", "chosen, prompt, reject"],
    ),
    b"{}": ("missing column", ["no column 'chosen'", "none"]),
    b'{"prompt": null, "chosen": "c", "rejected": "r"}': ("null value", ["'prompt' is null"]),
    b'{"prompt": "p", "chosen": "", "rejected": "r"}': ("empty value", ["'chosen' is empty"]),
    b'{"prompt": "p", "chosen": "c", "rejected": " \\n"}': ("empty value", ["'rejected' is empty"]),
    b'{"prompt": 1, "chosen": "c", "rejected": "r"}': ("not a string", ["'prompt' is a int"]),
    b'{"prompt": ["p"], "chosen": "c", "rejected": "r"}': ("not a message", ["'prompt', message 1 is a str"]),
    b'{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}': ("not Unicode", ["'chosen'", "surrogate"]),
    b'{"prompt": "p", "chosen": "c", "rejected": "c"}': ("identical responses", ["'chosen' and 'rejected'"]),
}


@pytest.mark.parametrize("line", BAD_LINES, ids=[f"{i} {reason}" for i, (reason, _) in enumerate(BAD_LINES.values())])
def test_a_bad_row_stops_with_its_place_or_is_skipped_and_counted(line):
    reason, words = BAD_LINES[line]
    specs = [write("a.jsonl", GOOD, line, GOOD)]
    text = message(read_sources, PAIRS, specs)
    assert text.startswith("a.jsonl:2: ")
    assert all(word in text for word in [*words, "on_error: skip"]), text
    rows, skipped = read_sources(PAIRS, specs, on_error="skip")
    assert [row.where for row in rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert skipped == {reason: 1}


def test_a_bad_file_or_source_is_named_and_never_skipped(tmp_path):
    whole = gzip.compress(GOOD_LINE * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    (tmp_path / "flipped.jsonl.gz").write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    (tmp_path / "text.jsonl.gz").write_bytes(GOOD_LINE)
    (tmp_path / "folder").mkdir()
    write("a.jsonl", GOOD)
    cases = [
        ({"path": "none.jsonl"}, ["none.jsonl does not exist", str(tmp_path)]),
        ({"path": "folder"}, ["folder is a directory", "hub: folder"]),
        ({"path": "cut.jsonl.gz"}, ["cut.jsonl.gz cannot be read"]),
        ({"path": "flipped.jsonl.gz"}, ["flipped.jsonl.gz cannot be read"]),
        ({"path": "text.jsonl.gz"}, ["text.jsonl.gz cannot be read"]),
        ({"path": "a.jsonl", "colums": {}}, ["unknown key 'colums'", "Did you mean 'columns'", "path"]),
        ({"path": "a.jsonl", "columns": {"choosen": "x"}}, ["'choosen'", "Did you mean 'chosen'"]),
        ({"path": "a.jsonl", "columns": {"chosen": 1}}, ["columns.chosen is 1"]),
        ({"path": "a.jsonl", "columns": "chosen"}, ["columns is 'chosen'"]),
        ({"path": None}, ["path is None"]),
        ({"hub": "some/set", "path": "a.jsonl"}, ["two kinds: hub and path"]),
        ({"pth": "a.jsonl"}, ["unknown key 'pth'", "Did you mean 'path'"]),
        ({}, ["Allowed: hub, package, path, tfds"]),
        ("a.jsonl", ["'a.jsonl' is not a mapping", "{path:"]),
    ]
    for spec, words in cases:
        text = message(read_sources, PAIRS, [spec], on_error="skip")
        assert all(word in text for word in words), text


def test_a_limit_takes_the_first_records_of_each_source(tmp_path):
    write("a.jsonl", *({**GOOD, "prompt": f"{n}"} for n in range(3)), b"broken")
    limited = [{"path": "a.jsonl", "limit": 2}, {"path": "a.jsonl", "limit": 1, "weight": 2}]
    assert [row.prompt for row in read_sources(PAIRS, limited).rows] == ["0", "1", "0", "0"]
    for limit in (0, True, 1.5, "2"):
        text = message(read_sources, PAIRS, [{"path": "a.jsonl", "limit": limit}])
        assert f"limit is {limit!r}; it must be a whole number above 0" in text


def test_sources_without_a_row_and_unknown_policies_are_refused():
    assert "hold no rows" in message(read_sources, PAIRS, [write("empty.jsonl")])
    assert "hold no rows" in message(read_sources, PAIRS, [])
    specs = [write("a.jsonl", b"1", b"2", b"x")]
    text = message(read_sources, PAIRS, specs, on_error="skip")
    assert "2 skipped: not an object" in text and "1 skipped: not JSON" in text
    with pytest.raises(ValueError, match=r"on_error is 'ignore'. Allowed: skip, stop\."):
        read_sources(PAIRS, specs, on_error="ignore")
