"""Columns that nobody reads, Alpaca's rows, and cells that `datasets` stores otherwise than they are meant."""

from __future__ import annotations

import decimal
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from dpo_jax.data.sources import COMPLETIONS, PAIRS, PROMPTS, UNPAIRED, read_sources
from dpo_jax.errors import UserError

PAIR = {"prompt": "the lamp ", "chosen": "was warm", "rejected": "is cold"}
ALPACA = {"instruction": "Translate.", "input": "the lamp", "system": "Be brief.", "history": [["a", "b"]]}
ASKED = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "Translate.\nthe lamp"},
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write(*rows: dict[str, Any], **options: Any) -> dict[str, Any]:
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"path": "a.jsonl", **options}


def refusal(layout: Any, spec: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        read_sources(layout, [spec])
    return str(error.value)


def test_columns_that_nobody_reads_are_told_for_each_source():
    unread: list[Counter[str]] = []
    first = write(PAIR | {"id": 1, "note": "", "weight": 1}, PAIR | {"id": 2, "lang": "en"})
    read_sources(PAIRS, [first, first | {"ignore": ["id"]}], unread=unread)
    assert unread == [{"id": 2, "lang": 1}, {"lang": 1}]
    completions: list[Counter[str]] = []
    spec = write({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "q"})
    read_sources(COMPLETIONS, [spec], unread=completions)
    assert completions == [{"prompt": 1}]


@pytest.mark.parametrize(
    ("column", "value", "advice"),
    [
        ("input", "Paris", "format: alpaca"),
        ("System", "You are brief.", "format: alpaca"),
        ("system_prompt", "You are brief.", "first message"),
        ("history", [["a", "b"]], "format: alpaca"),
        ("images", ["a.png"], "model of texts"),
        ("video", "a.mp4", "model of texts"),
        ("context", "Paris", "into the prompt"),
        ("functions", [{"name": "f"}], "columns: {tools: functions}"),
    ],
)
def test_a_column_meant_for_the_model_is_refused_unless_it_is_ignored(column: str, value: Any, advice: str):
    said = refusal(PAIRS, write(PAIR, PAIR | {column: value}))
    assert f"a.jsonl:2: column {column!r} is not read" in said and advice in said and f"ignore: [{column}]" in said
    assert len(read_sources(PAIRS, [write(PAIR | {column: value}, ignore=[column])]).rows) == 1
    empty: Any = [] if isinstance(value, list) else " "
    assert len(read_sources(PAIRS, [write(PAIR | {column: empty})]).rows) == 1
    assert "not a list of columns" in refusal(PAIRS, write(PAIR, ignore=column))


def test_what_stands_in_the_prompt_already_is_not_lost():
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Context:\nParis\nWhere?"}]
    answers = {key: [{"role": "assistant", "content": PAIR[key]}] for key in ("chosen", "rejected")}
    row = {"prompt": talk, **answers, "system": "Be brief.", "context": "Paris"}
    assert len(read_sources(PAIRS, [write(row)]).rows) == 1
    assert "'context'" in refusal(PAIRS, write(row | {"context": "Par"}))


@pytest.mark.parametrize("layout", [PAIRS, PROMPTS])
def test_the_hint_for_alpaca_loses_nothing(layout: Any):
    row = {**ALPACA, "chosen": "la lampe", "rejected": "le lamp"}
    assert "format: alpaca" in refusal(layout, write(row))
    (read,) = read_sources(layout, [write(row, format="alpaca")]).rows if layout is PAIRS else [None]
    if read is not None:
        assert read.prompt == ASKED and read.chosen == ({"role": "assistant", "content": "la lampe"},)
    assert "format: alpaca" in refusal(PAIRS, write(row, columns={"prompt": "instruction"}))


def test_alpaca_of_each_form():
    spec = write(ALPACA | {"output": "la lampe", "kto_tag": False}, format="alpaca")
    (row,) = read_sources(UNPAIRED, [spec]).rows
    answer = ({"role": "assistant", "content": "la lampe"},)
    assert (row.prompt, row.desirable, row.completion) == (ASKED, False, answer)
    (done,) = read_sources(COMPLETIONS, [spec]).rows
    assert done.prompt == ASKED
    (plain,) = read_sources(
        COMPLETIONS, [write({"instruction": "Sing.", "input": "", "output": "la"}, format="alpaca")]
    ).rows
    assert plain.prompt == ({"role": "user", "content": "Sing."},)
    assert "'images' is not read" in refusal(
        COMPLETIONS, write(ALPACA | {"output": "x", "images": ["a.png"]}, format="alpaca")
    )
    assert "not a list of a question" in refusal(
        COMPLETIONS, write(ALPACA | {"output": "x", "history": ["a"]}, format="alpaca")
    )
    assert "format: alpaca" in refusal(COMPLETIONS, write({"instruction": "Sing.", "input": "", "output": "la"}))


def saved(rows: list[dict[str, Any]], form: str | None = None, **features: Any) -> list[dict[str, Any]]:
    """The rows as a saved data set and as Parquet that `datasets` wrote."""
    made = datasets.Dataset.from_list(rows)
    made = made.cast(datasets.Features({**made.features, **features}))
    made.with_format(form).save_to_disk("saved")
    made.to_parquet("a.parquet")
    return [{"hub": "saved"}, {"path": "a.parquet"}]


@pytest.mark.parametrize("names", [["chosen", "rejected"], ["true", "false"], ["Desirable", "undesirable"], ["1", "0"]])
def test_a_class_is_a_label_by_its_name(names: list[str]):
    rows = [{"prompt": "p", "completion": f"{n}", "label": n} for n in range(2)]
    for spec in saved(rows, label=datasets.ClassLabel(names=names)):
        assert [row.desirable for row in read_sources(UNPAIRED, [spec]).rows] == [True, False]


def test_a_class_whose_names_say_nothing_is_refused_with_them():
    rows = [{"prompt": "p", "completion": "c", "label": 1}]
    for spec in saved(rows, label=datasets.ClassLabel(names=["cat", "dog"])):
        assert "column 'label' is the class 'dog' of cat, dog; it must be" in refusal(UNPAIRED, spec)


@pytest.mark.parametrize("form", ["numpy", "pandas", "arrow"])
def test_a_saved_data_set_forgets_its_format(form: str):
    talk = {key: [{"role": role, "content": key}] for key, role in (("prompt", "user"), ("chosen", "assistant"))}
    row = {**talk, "rejected": [{"role": "assistant", "content": "x"}], "weight": 0.5}
    (read,) = read_sources(PAIRS, saved([row], form)[:1]).rows
    assert (read.prompt, read.weight) == (({"role": "user", "content": "prompt"},), 0.5)
    labelled = [{"prompt": "p", "completion": "c", "label": True}]
    assert read_sources(UNPAIRED, saved(labelled, form)[:1]).rows[0].desirable is True


def test_structs_of_lists_decimals_and_classes_inside_cells_are_what_they_mean():
    turns = {"role": [0, 1], "content": ["q", "a"]}
    rows = [{"messages": turns, "weight": decimal.Decimal("0.50")}]
    roles = {"role": datasets.ClassLabel(names=["user", "assistant"]), "content": datasets.Value("string")}
    for spec in saved(rows, messages={key: datasets.List(of) for key, of in roles.items()}):
        (row,) = read_sources(COMPLETIONS, [spec]).rows
        assert row.prompt == ({"role": "user", "content": "q"},) and row.weight == 0.5
