"""From sources to token rows with what they bring, through the configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_jax.config import Config, DataConfig, LossConfig, ModelConfig
from dpo_jax.config.training import TrainConfig
from dpo_jax.data.rows import DataRows
from dpo_jax.data.shapes import Packing
from dpo_jax.errors import UserError
from dpo_jax.experiments.rows import read_rows, rules_of
from dpo_jax.experiments.texts import TextExperiment
from tests.data.test_chat import make_tokenizer

PAIR = {"prompt": "the lamp", "chosen": " was warm", "rejected": " is cold"}
TALK = {
    "prompt": [{"role": "user", "content": "the lamp"}],
    "chosen": [{"role": "assistant", "content": "was warm"}],
    "rejected": [{"role": "assistant", "content": "is cold"}],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*files: list[dict[str, Any]], loss: str = "dpo", seed: int = 0, weights: tuple[float, ...] = (), **data: Any):
    sources = []
    for number, rows in enumerate(files):
        path = Path(f"file{number}.jsonl")
        path.write_text("\n".join(map(json.dumps, rows)))
        sources.append({"path": str(path), **({"weight": weights[number]} if weights else {})})
    config = Config(
        workdir="run",
        seed=seed,
        model=ModelConfig(weights="none"),
        data=DataConfig(train=tuple(sources), **data),
        loss=(LossConfig(name=loss),),
    )
    return read_rows(config, {}, make_tokenizer(), rules_of(config), "data.train", config.data.train)


def test_columns_of_numbers_become_arrays_in_the_order_of_the_rows():
    first = [{**PAIR, "margin": 0.5}, {**PAIR, "soft_label": 0.75}]
    data = read(first, [{**PAIR, "margin": -2}])
    assert data.margin_B is not None and data.soft_label_B is not None and data.source_B is not None
    assert data.margin_B.tolist() == [0.5, 0.0, -2.0] and data.margin_B.dtype == np.float32
    assert data.soft_label_B.tolist() == [1.0, 0.75, 1.0]
    assert data.weight_B is None
    assert data.source_B.tolist() == [0, 0, 1] and data.sources == ("file0", "file1")
    plain = read([PAIR])
    assert (plain.weight_B, plain.margin_B, plain.soft_label_B) == (None, None, None)


def test_arrays_leave_out_what_tokenization_leaves_out():
    bad = {**PAIR, "chosen": "x<|im_end|>y", "margin": 9, "prompt": "other"}
    long = {**PAIR, "chosen": " was warm" * 30, "margin": 8, "prompt": "another"}
    rows = [{**PAIR, "margin": 1}, bad, {**PAIR, "margin": 2}, long]
    refuse = {"on_error": "skip", "special_tokens": "refuse"}
    limits = {**refuse, "truncation": "drop", "max_prompt_tokens": 16, "max_tokens": 32}
    data = read(rows, **limits)
    assert len(data.rows) == 2 and data.margin_B is not None and data.margin_B.tolist() == [1, 2]
    assert [prompt.prompt for prompt in data.prompts] == ["the lamp"]
    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": place in (0, 1), "weight": place}
        for place, row in enumerate(rows)
    ]
    data = read(labelled, loss="bco", **limits)
    assert data.desirable is not None and data.weight_B is not None
    assert data.desirable.tolist() == [True, False] and data.weight_B.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"data.train: no rows are left of .*: 1 skipped \(special token in the text\)"):
        read([bad], **refuse)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"conversations": [], "chosen": "a", "rejected": "b"}, "format: sharegpt"),
        ({"text": "\n\nHuman: a\n\nAssistant: b"}, "format: hh"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "prompt: question"),
    ],
)
def test_where_no_row_is_left_the_first_says_which_column_is_missing(row: dict[str, Any], hint: str):
    with pytest.raises(
        UserError, match=r"no rows are left of .*first: file0.jsonl:1: no column .*Columns of the row: "
    ) as said:
        read([row, row], on_error="skip")
    assert hint in str(said.value) and "2 skipped (" in str(said.value)


@pytest.mark.parametrize(
    ("template", "advice"),
    [(None, "data.template: plain, or name one in data.chat_template"), ("mine", "file in data.chat_template")],
)
def test_a_tokenizer_without_a_template_names_the_settings(template: str | None, advice: str, monkeypatch):
    bare = make_tokenizer()
    bare.chat_template = None
    monkeypatch.setattr(f"{__name__}.make_tokenizer", lambda: bare)
    with pytest.raises(UserError, match=f"^configuration: data.train: the tokenizer has no chat template.*{advice}"):
        read([TALK], template="tokenizer", chat_template=template)


def test_a_bad_row_is_told_with_the_place_of_its_source():
    with pytest.raises(UserError, match=r"^configuration: data\.train\.1: file1\.jsonl:2: .* set data.on_error: skip"):
        read([PAIR], [PAIR, {**PAIR, "chosen": ""}])
    with pytest.raises(UserError, match=r"^configuration: data\.train: file0\.jsonl:1: .*special"):
        read([{**PAIR, "chosen": "x<|im_end|>y"}], special_tokens="refuse")


def test_prompts_are_the_different_ones_with_what_they_bring():
    tools = [{"name": "get"}]
    template = "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    rows = [TALK, {**TALK, "tools": tools}, {**TALK, "chosen": [{"role": "assistant", "content": "x"}]}]
    data = read(rows, template="tokenizer", chat_template=template)
    assert [(prompt.prompt, prompt.tools) for prompt in data.prompts] == [
        (tuple(TALK["prompt"]), None),
        (tuple(TALK["prompt"]), tuple(tools)),
    ]


def test_a_chat_template_is_a_file_or_the_template_itself():
    def template(given: str) -> Any:
        data = DataConfig(train=(), template="tokenizer", chat_template=given)
        config = Config(workdir="run", model=ModelConfig(weights="none"), data=data, loss=(LossConfig(name="dpo"),))
        return rules_of(config).chat_template

    Path("own.jinja").write_text("{{ messages }} ü", encoding="utf8")
    assert template("own.jinja") == "{{ messages }} ü" and template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(UserError, match=r"none\.jinja cannot be read"):
        template("none.jinja")


def test_the_seed_of_the_experiment_draws_the_mixture():
    rows = [{**PAIR, "prompt": f"the lamp {n}"} for n in range(64)]

    def prompts(seed: int) -> list[Any]:
        return [prompt.prompt for prompt in read(rows, seed=seed, weights=(0.5,)).prompts]

    assert prompts(0) == prompts(0) != prompts(1) and 20 < len(prompts(0)) < 44


def test_a_drawn_mixture_has_a_store_for_each_seed():
    def folder(seed: int, **more: Any) -> Path:
        data = DataConfig(train=({"path": "a.jsonl", **more},))
        model, loss = ModelConfig(weights="none"), (LossConfig(name="dpo"),)
        config = Config(workdir="run", seed=seed, model=model, data=data, loss=loss)
        return TextExperiment(config, {}, command="").store_folder({})

    assert folder(0) == folder(1) and folder(0, weight=0.5) != folder(1, weight=0.5)


def test_what_was_done_to_the_rows_is_said(capsys: pytest.CaptureFixture[str]):
    read([PAIR, {**PAIR, "prompt": "the lamp " * 20}, {}], on_error="skip", max_prompt_tokens=16, max_tokens=32)
    told = " ".join(capsys.readouterr().err.split())
    assert "data.train: 2 rows, 1 skipped (missing column), 1 prompts truncated" in told


def test_labels_that_no_batch_could_hold_both_of_are_told_with_the_place():
    labelled = [{"prompt": f"the lamp {n}", "completion": " is cold", "label": n == 0} for n in range(5)]
    data = read(labelled, loss="bco")
    config = SimpleNamespace(data=DataConfig(train=()))
    experiment: Any = SimpleNamespace(config=config, packing=Packing(), origins={"train.batch_pairs": "e.yaml:7"})
    train, labels = TrainConfig(batch_pairs=4), data.desirable
    with pytest.raises(
        UserError, match=r"^e\.yaml:7: train\.batch_pairs: batch_pairs is 4, and .* 1 desirable and 4 .*to 5 or more"
    ):
        TextExperiment.batches_of(experiment, train, data.rows, seed=0, desirable=labels)
    TextExperiment.batches_of(
        experiment, dataclasses.replace(train, batch_pairs=5), data.rows, seed=0, desirable=labels
    )


def test_no_sources_are_no_rows_but_of_a_training():
    config = Config(
        workdir="run", model=ModelConfig(weights="none"), data=DataConfig(train=()), loss=(LossConfig(name="dpo"),)
    )
    assert read_rows(config, {}, make_tokenizer(), rules_of(config), "data.eval", ()) == DataRows([], [])
    with pytest.raises(UserError, match=r"data\.train names no rows of preferences"):
        read()
