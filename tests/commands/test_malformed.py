"""Wrong rows and wrong files through the command line: exit code 2 with file, line and field, or a counted skip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import cli
from tests import tiny_experiment
from tests.commands.malformed import PAIR, TABLE
from tests.tiny import make_hf_folder

LOSSES = {"pairs": "dpo", "labelled": "bco", "sft": "dpo"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], command: str, config: dict[str, Any]) -> str:
    Path("e.yaml").write_text(yaml.safe_dump(config))
    return tiny_experiment.refused(capsys, command, "e.yaml")


def experiment(model: Path, source: dict[str, Any], data: dict[str, Any], kind: str = "pairs") -> dict[str, Any]:
    config: dict[str, Any] = {
        "workdir": "run",
        "model": {"weights": str(model)},
        "data": {"train": [source], "max_prompt_tokens": data.get("max_tokens", 65) - 1, "max_tokens": 65, **data},
        "loss": {"name": LOSSES[kind]},
    }
    return config | ({"sft": {"data": {"train": [source]}}} if kind == "sft" else {})


@pytest.mark.parametrize("kind", LOSSES)
def test_a_bad_row_stops_or_is_left_out_and_counted(kind: str, model: Path, capsys: pytest.CaptureFixture[str]):
    """One of each kind, in the command that reads it; tests/faults has how every row of the table is told."""
    bad = next(bad for bad in TABLE if bad.kind == kind)
    command = "sft" if kind == "sft" else "reference"
    for lines, on_error in (
        ([good := json.dumps(bad.good).encode(), bad.line, good], "stop"),
        ([bad.line] * 2, "skip"),
    ):
        Path("rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        config = experiment(model, {"path": "rows.jsonl", **bad.spec}, {**bad.data, "on_error": on_error}, kind)
        if kind == "sft":
            Path("pairs.jsonl").write_text(json.dumps(PAIR))
            config["data"]["train"] = [{"path": "pairs.jsonl"}]
        told = refused(capsys, command, config)
        if on_error == "stop":
            assert "rows.jsonl:2: " in told and all(words in told for words in bad.words.split("|")), told
        else:  # nothing is left, so the command ends before anything is scored
            assert "2 skipped" in told and bad.reason in told, told


LINE = json.dumps(PAIR).encode() + b"\n"
FILES: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", "'empty.jsonl'} holds no rows: it is empty"),
    ("text.jsonl.zst", LINE, "text.jsonl.zst cannot be read to its end"),
    ("rows", LINE, "no suffix that says how to read it"),
    ("broken.json", b'[{"prompt": "p"', "broken.json is not JSON"),
    ("latin.json", b'["\xe9"]', "latin.json is not UTF-8 text"),
    ("number.json", b"7", "holds a JSON int"),
    ("uneven.json", b'{"prompt": ["p", "q"], "chosen": ["c"], "rejected": []}', "prompt: 2, chosen: 1, rejected: 0"),
    ("one.json", json.dumps(PAIR).encode(), "not of arrays of one length (prompt: no array"),
    ("list.json", b"[1]", "list.json row 1: the row is a JSON int"),
    ("null.json", b'{"prompt": ["p", null], "chosen": ["c", "c"], "rejected": ["r", "s"]}', "row 2: column 'prompt'"),
    ("cells.csv", b"prompt,chosen,rejected\np,c\n", "cells.csv:2: the row has 2 cells, the first line 3"),
    ("twice.csv", b"prompt,chosen,chosen\np,c,r\n", "twice.csv has a column twice in its first line"),
    ("quotes.csv", b'prompt,chosen,rejected\n"p"x,c,r\n', "quotes.csv:2: not CSV"),
    ("open.csv", b'prompt,chosen,rejected\np,c,"r\n', "open.csv:2: not CSV: unexpected end of data"),
    ("latin.csv", b"prompt,chosen,rejected\np,\xe9,r\n", "latin.csv:2: column 'chosen' holds bytes"),
    ("empty.csv", b"prompt,chosen,rejected\np,,r\n", "empty.csv:2: column 'chosen' is empty"),
    ("margin.csv", b"prompt,chosen,rejected,margin\np,c,r,much\n", "margin.csv:2: column 'margin' is 'much'"),
    ("text.parquet", LINE, "text.parquet is not Parquet, or damaged"),
]


@pytest.mark.parametrize(("name", "content", "words"), FILES, ids=[name for name, *_ in FILES])
def test_a_bad_file_is_named(name: str, content: bytes, words: str, model: Path, capsys: pytest.CaptureFixture[str]):
    Path(name).write_bytes(content)
    told = refused(capsys, "reference", experiment(model, {"path": name}, {}))
    assert words in told and name in told


SOURCES: list[tuple[Any, str]] = [
    ({"path": "a.jsonl", "format": "hhh"}, "format is 'hhh'. Did you mean 'hh'"),
    ({"path": "a.jsonl", "weight": 0}, "weight is 0; it must be a number above 0"),
    ({"path": "a.jsonl", "weight": "2"}, "weight is '2'"),
    ({"path": "a.jsonl", "weight": float("nan")}, "data.train.0.weight: must be finite"),
    ({"path": "a.jsonl", "name": [3]}, "name is [3], not text"),
    ({"path": "a.jsonl", "rankings": "some"}, "rankings is 'some'. Allowed: adjacent, all"),
    ({"path": "a.jsonl", "split": "train"}, "unknown key 'split'"),
    ({"path": "a.jsonl", "columns": {"margn": "x"}}, "unknown name 'margn'. Did you mean 'margin'"),
    ({"hub": "folder", "streaming": "yes"}, "streaming is 'yes'. Allowed: false, true."),
    ({"hub": "folder", "split": ""}, "split is '', not text"),
    ({"hub": "folder"}, "cannot be read"),
    ({"tfds": "none", "data_dir": "folder"}, "cannot be read"),
    ({"tfds": [3]}, "tfds is [3], not text"),
]


@pytest.mark.parametrize(("source", "words"), SOURCES, ids=[str(words) for _, words in SOURCES])
def test_a_bad_source_is_named(source: Any, words: str, model: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.jsonl").write_bytes(LINE)
    Path("folder").mkdir()
    assert words in refused(capsys, "reference", experiment(model, source, {}))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"template": "chatml"}, "data.template: 'chatml' is unknown"),
    ({"score": "all"}, "data.score: 'all' is unknown"),
    ({"truncation": "cut"}, "data.truncation: 'cut' is unknown"),
    ({"special_tokens": "ignore"}, "data.special_tokens: 'ignore' is unknown"),
    ({"chat_template": "x.jinja"}, "data.chat_template: is read with data.template: tokenizer only"),
    ({"template": "tokenizer", "chat_template": "x.jinja"}, "the file x.jinja cannot be read"),
    ({"template": "tokenizer", "chat_template": "{% for"}, "the chat template, line 1"),
    ({"on_error": "ignore"}, "data.on_error: 'ignore' is unknown"),
]


@pytest.mark.parametrize(("data", "words"), SETTINGS, ids=[str(data) for data, _ in SETTINGS])
def test_a_bad_setting_is_named(data: dict[str, Any], words: str, model: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.jsonl").write_bytes(LINE)
    assert words in refused(capsys, "reference", experiment(model, {"path": "a.jsonl"}, data))


def test_what_is_good_is_scored_beside_what_is_skipped(model: Path, capsys: pytest.CaptureFixture[str]):
    bad = [bad for bad in TABLE if bad.kind == "pairs" and not bad.data and not bad.spec]
    good = [json.dumps({**PAIR, "chosen": f"was {word}"}).encode() for word in ("old", "thin", "quiet")]
    lines = [good[0], *(one.line for one in bad[:20]), good[1], *(one.line for one in bad[20:]), good[2]]
    Path("rows.jsonl").write_bytes(b"\n".join(lines))
    Path("e.yaml").write_text(yaml.safe_dump(experiment(model, {"path": "rows.jsonl"}, {"on_error": "skip"})))
    cli.main(["reference", "e.yaml", "--jsonl", "scores.jsonl"])
    told = " ".join(capsys.readouterr().err.split())
    assert len(Path("scores.jsonl").read_text().splitlines()) == 3 and "data.train: 3 rows" in told
    for reason in {one.reason for one in bad}:
        assert f"{sum(one.reason == reason for one in bad)} skipped ({reason})" in told, reason
