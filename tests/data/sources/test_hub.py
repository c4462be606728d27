"""Hugging Face datasets from folders; what is asked of the hub, on a stub."""

import json

import datasets
import pytest

from dpo_jax.data.sources import PAIRS, read_sources
from dpo_jax.errors import UserError

ROWS = [{"prompt": f"p{n}", "chosen": "c", "rejected": "r"} for n in range(10)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def prompts(**spec) -> list:
    return [row.prompt for row in read_sources(PAIRS, [spec]).rows]


def all_of(low=0, high=10) -> list[str]:
    return [f"p{n}" for n in range(low, high)]


def saved() -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk("one")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk("two")


def test_a_saved_data_set_its_splits_and_slices():
    saved()
    assert prompts(hub="one") == prompts(hub="two") == prompts(hub="two", split="train") == all_of()
    assert prompts(hub="two", split="test") == all_of(0, 2)
    assert prompts(hub="two", split="train[:30%]") == prompts(hub="one", split="train[:3]") == all_of(0, 3)
    assert prompts(hub="two", split="train[-2:]+test[1:]") == ["p8", "p9", "p1"]
    first = read_sources(PAIRS, [{"hub": "two", "split": "train[:30%]"}]).rows[0]
    assert (first.where, first.source) == ("two train[:30%] row 1", "two")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_files(tmp_path, streaming):
    (tmp_path / "folder").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        (tmp_path / "folder" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts(hub="folder", streaming=streaming) == all_of()
    assert prompts(hub="folder", split="test", streaming=streaming) == all_of(0, 2)
    if not streaming:
        assert prompts(hub="folder", split="train[:20%]") == all_of(0, 2)


def test_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    spec = {"hub": "org/pairs", "split": "train[:1%]", "config": "en", "revision": "abc", "streaming": True}
    row = read_sources(PAIRS, [{**spec, "name": "mine"}]).rows[0]
    read_sources(PAIRS, [{"hub": "org/pairs"}])
    assert asked == [
        (("org/pairs", "en"), {"split": "train[:1%]", "revision": "abc", "streaming": True}),
        (("org/pairs", None), {"split": "train", "revision": None, "streaming": False}),
    ]
    assert (row.where, row.source) == ("org/pairs train[:1%] row 1", "mine")


def test_what_cannot_be_had_is_said(tmp_path):
    saved()
    (tmp_path / "empty").mkdir()
    cases = [
        ({"hub": "two", "split": "tst"}, "no split 'tst'. Did you mean 'test'"),
        ({"hub": "two", "split": "train[:x]"}, "cannot be read (ValueError)"),
        ({"hub": "one", "split": "test"}, "no split 'test'. Allowed: train."),
        ({"hub": "two", "config": "en"}, "a saved data set, which has no config"),
        ({"hub": "empty"}, "cannot be read"),
        ({"hub": "no/such"}, "cannot be read"),
    ]
    for spec, words in cases:
        with pytest.raises(UserError) as error:
            read_sources(PAIRS, [spec], on_error="skip")
        assert words in str(error.value), str(error.value)


def test_a_failing_reader_is_the_users_error_and_a_bad_row_is_a_bad_row(monkeypatch):
    def rows(*args, **kwargs):
        yield ROWS[0]
        yield {**ROWS[1], "chosen": ""}
        raise ConnectionError("the line\nbroke")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    with pytest.raises(UserError, match="org/pairs train row 2: column 'chosen' is empty"):
        read_sources(PAIRS, [{"hub": "org/pairs"}])
    with pytest.raises(UserError, match=r"cannot be read \(ConnectionError\): the line broke"):
        read_sources(PAIRS, [{"hub": "org/pairs"}], on_error="skip")
