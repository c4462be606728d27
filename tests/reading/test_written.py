"""Values as they are written: texts stay texts, numbers are numbers everywhere, addresses are no paths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dpo_jax.config import as_mapping, load, render
from dpo_jax.config.resume import refuse_changes
from dpo_jax.errors import UserError
from tests.test_config import EXAMPLE, MINIMAL, write


@pytest.fixture
def example(tmp_path: Path) -> str:
    path = tmp_path / "e.yaml"
    path.write_text(EXAMPLE)
    return str(path)


@pytest.mark.parametrize(
    "text",
    ["runs/run #1", "2026", "runs/a: b", "12:30", "on", "1e5", "2024-01-01", "010", "null", "1_000", "[a]", "{a"],
)
def test_a_text_setting_is_the_text_that_was_typed(example: str, tmp_path: Path, text: str):
    settings = {"workdir": text, "data.train.0.path": text, "data.train.0.columns.chosen": text}
    given, _ = load(example, [f"--{key}={text}" for key in settings])
    assert given.workdir == text and given.data.train[0] == {"path": text, "columns": {"chosen": text}}
    if text not in ("runs/run #1", "runs/a: b", "[a]", "{a"):  # YAML itself cuts or refuses these
        listed = f"[{{path: {text}, columns: {{chosen: {text}}}}}]"
        written = (
            MINIMAL.replace(": w", f": {text}").replace("[{path: p.jsonl}]", listed) + f"sweep: [{{workdir: {text}}}]"
        )
        read, _ = load(write(tmp_path, written))
        assert (read.workdir, read.data.train) == (given.workdir, given.data.train)
        assert read.sweep == ({"workdir": [text]},)


ODD = [
    "yes",
    "1e5",
    "0x1F",
    "0o17",
    "1_0",
    ".inf",
    "~",
    "",
    " a ",
    "- a",
    "# a",
    "a # b",
    "a: b",
    "a\nb: c\n\n",
    "\t",
    "'",
    '"',
]
ODD += [
    "[a",
    "{a}",
    "&a",
    "*a",
    "!a",
    "%a",
    "@a",
    "`",
    "|",
    ">",
    "---",
    "...",
    "?",
    "\u2028",
    "\x85",
    "\x1b[31m",
    "\ufeff",
    "é 日本 😀",
]
ODD += ["word " * 600, "x" * 3000, "a\n" * 1000, "\\n", "\r\n", "2026-11-30", "<<", "=", "null", "\udcff", "'a'", '"1"']


@pytest.mark.parametrize("text", ODD)
def test_what_is_shown_and_kept_is_read_as_the_same(example: str, tmp_path: Path, text: str):
    """As a value of a setting that is text, of one that may be anything, in a list, and as a key."""
    config, origins = load(example)
    source: dict[str, Any] = {"path": text or "p", "columns": {"chosen": text}}
    options = {"beta": 0.5, "odd": text, "listed": [text, {text: text}], text: 1}
    config = dataclasses.replace(
        config,
        workdir=text or "w",
        data=dataclasses.replace(config.data, train=(source,), chat_template=text, template="tokenizer"),
        loss=(dataclasses.replace(config.loss[0], options=options),),
    )
    for comments in (True, False):
        shown = render(config, {**origins, "workdir": "odd\nname.yaml:1"}, comments=comments)
        read, _ = load(write(tmp_path, shown))
        assert as_mapping(read) == as_mapping(config)
        assert as_mapping(read)["loss"][0]["options"] == as_mapping(config)["loss"][0]["options"]


@pytest.mark.parametrize("text", ["1e-1", "1E-1", "1.0e-1", ".1", "0.1"])
def test_numbers_are_numbers_everywhere(tmp_path: Path, text: str):
    sections = f"reward: {{options: {{margin: {text}}}}}\nsweep: [{{loss.options.beta: [{text}], seed: 1e1}}]"
    config, _ = load(
        write(tmp_path, MINIMAL.replace("dpo}", f"dpo, options: {{beta: {{start: {text}}}}}}}") + sections)
    )
    assert config.loss[0].options == {"beta": {"start": 0.1}} and config.sweep[0]["loss.options.beta"] == [0.1]
    assert config.reward and config.reward.options == {"margin": 0.1} and config.sweep[0]["seed"] == [10.0]
    given, _ = load(write(tmp_path, MINIMAL), ["--loss.options.beta", text, "--train.steps", "1e3"])
    assert given.loss[0].options == {"beta": 0.1} and given.train.steps == 1000


def test_a_number_that_was_kept_as_text_is_the_same_run(tmp_path: Path):
    config, _ = load(write(tmp_path, MINIMAL.replace("dpo}", "dpo, options: {beta: 1e-1}}")))
    saved, now = ({"config": as_mapping(config), "steps": 1} for _ in range(2))
    saved["config"]["loss"][0]["options"] = {"beta": "1e-1"}
    refuse_changes("train", saved, now)
    saved["config"]["loss"][0]["options"] = {"beta": "2e-1"}
    with pytest.raises(UserError, match=r"beta: was 0\.2, is 0\.1"):
        refuse_changes("train", saved, now)


@pytest.mark.parametrize(
    "address", ["gs://bucket/x", "s3://b/x", "hf://datasets/x", "http://host/x", "file:///x", "GS:/b"]
)
def test_an_address_is_no_path(example: str, address: str):
    judge = "--evaluation.judge={name: http, url: http://h/v1, model: m, %s: %s}"
    keys = [
        "workdir",
        "model.weights",
        "reference.store",
        "data.chat_template",
        "data.train.0.path",
        "data.train.0.hub",
    ]
    keys += ["evaluation.rewardbench", "evaluation.outputs.policy", "sft.data.train.0.path", "data.eval.0.data_dir"]
    for arguments in [f"--{key}={address}" for key in keys], [judge % (key, address) for key in ("template", "cache")]:
        for argument in arguments:
            with pytest.raises(
                UserError, match=r"command line: [\w.]+: '.*' is an address.* file or folder of this machine"
            ):
                load(example, ["--evaluation.outputs.reference=x" if "outputs" in argument else "--seed=1", argument])
