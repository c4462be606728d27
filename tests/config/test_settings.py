"""The settings as help and as a JSON schema: complete, with defaults and comments, and true to what is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from dpo_jax.config import Config, PictureConfig, load
from dpo_jax.config.settings import json_schema, settings_of
from dpo_jax.errors import UserError
from dpo_jax.reading import read_yaml

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))
SCHEMA = json_schema(Config, PictureConfig)
MINIMAL: dict[str, Any] = {
    "workdir": "w",
    "model": {"weights": "m"},
    "data": {"train": [{"path": "p.jsonl"}]},
    "loss": {"name": "dpo"},
}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def fits(schema: dict[str, Any], value: Any) -> bool:
    """A JSON Schema validator of the keywords that are written, and of no other."""
    assert not schema.keys() - KEYWORDS.keys() - SAYS, schema
    return all(KEYWORDS[word](wanted, value, schema) for word, wanted in schema.items() if word not in SAYS)


def has_type(name: str, value: Any, schema: dict[str, Any]) -> bool:
    if name == "null":
        return value is None
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def known_or(additional: Any, value: Any, schema: dict[str, Any]) -> bool:
    others = [item for name, item in value.items() if name not in schema.get("properties", {})]
    return not others if additional is False else all(fits(additional, item) for item in others)


SAYS = {"$schema", "$defs", "title", "description", "default", "then", "else"}
KEYWORDS: dict[str, Any] = {
    "$ref": lambda name, value, _: fits(SCHEMA["$defs"][name.removeprefix("#/$defs/")], value),
    "if": lambda test, value, all_: fits(all_["then" if fits(test, value) else "else"], value),
    "type": has_type,
    "enum": lambda allowed, value, _: value in allowed,
    "anyOf": lambda options, value, _: any(fits(option, value) for option in options),
    "items": lambda item, value, _: all(fits(item, each) for each in value),
    "required": lambda names, value, _: all(name in value for name in names),
    "properties": lambda names, value, _: all(fits(names[name], value[name]) for name in names if name in value),
    "additionalProperties": known_or,
    "minimum": lambda low, value, _: value >= low,
    "maximum": lambda high, value, _: value <= high,
    "pattern": lambda pattern, value, _: bool(re.search(pattern, value)),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_fits_the_schema_and_a_wrong_key_does_not(path: Path):
    config = read_yaml(path)
    assert fits(SCHEMA, config)
    assert not fits(SCHEMA, config | {"trian": {}}) and not fits(SCHEMA, config | {"train": {"stepz": 3}})


@pytest.mark.parametrize(
    "section",
    [
        {"seed": -1},
        {"seed": "one"},
        {"seed": True},
        {"data": {"train": {"path": "p.jsonl"}}},
        {"data": {"train": [{"path": "gs://b/p.jsonl"}]}},
        {"workdir": "s3://b"},
        {"optimizer": {"schedule": "cosin"}},
        {"evaluation": {"judge": {"name": "lexicon", "url": "http://h"}}},
        {"evaluation": {"judge": {"name": "command"}}},
        {"loss": [{"name": "dpo", "wpo": "maybe"}]},
        {"pictures": {"height": 8}},
        {"sft": {"train": {"steps": 3}}},
    ],
)
def test_what_the_schema_refuses_is_refused_when_it_is_read(tmp_path: Path, section: dict[str, Any]):
    assert fits(SCHEMA, MINIMAL)
    assert not fits(SCHEMA, MINIMAL | section)
    (tmp_path / "c.yaml").write_text(json.dumps(MINIMAL | section))
    with pytest.raises(UserError):
        load(str(tmp_path / "c.yaml"))


def test_settings_have_their_types_defaults_and_comments():
    lines = {each.key: each[1:] for each in settings_of(Config)}
    assert lines["train.batch_pairs"] == ("whole number from 1", "8", "real pairs in a step")
    assert lines["optimizer.schedule"][0] == "constant | linear | cosine"
    assert lines["sft.optimizer.learning_rate"][1:] == ("2e-05", "at its peak")  # of the section, not of its class
    assert lines["data.special_tokens"][2].startswith("<|im_end|> and the like")  # stands above its line
    assert lines["evaluation.judge.url"][2].startswith("http: ") and lines["workdir"][1] == "needed"
    assert {each.key.partition(".")[0] for each in settings_of(PictureConfig, {"sft", "seed"})} == {"sft", "seed"}


def test_a_command_lists_its_settings(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["sft", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--sft.optimizer.learning_rate number from 0; default: 2e-05; at its peak" in said
    assert "--pictures.height whole number from 1; it is needed" in said and "--evaluation" not in said


def test_the_losses_and_the_schema_are_printed(capsys: pytest.CaptureFixture[str]):
    cli.main(["losses"])
    said = capsys.readouterr().out
    assert "dpo: Logistic loss on the margin" in said and "label_smoothing 0.0: a number in [0, 0.5]" in said
    assert "f_dpo:" in said and "labelled pictures, and a reference" in said
    cli.main(["config", "schema"])
    written = json.loads(capsys.readouterr().out)
    names = written["$defs"]["LossConfig"]["properties"]["name"].pop("enum")
    assert {"dpo", "kto"} <= {*names} and written == json.loads(json.dumps(SCHEMA))
