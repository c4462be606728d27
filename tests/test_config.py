"""Reading a configuration: the file of the documentation, overrides, origins, and every kind of mistake."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from dpo_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    PictureConfig,
    SftConfig,
    TrainConfig,
    as_mapping,
    check,
    load,
)
from dpo_jax.config.model import FREE
from dpo_jax.config.pictures import PicturesConfig
from dpo_jax.config.resume import free_settings
from dpo_jax.config.training import CommonConfig, SftDataConfig
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.reading import Written, typed

EXAMPLE = """\
workdir: runs/demo
seed: 0
model: {weights: some/hf-folder, dtype: float32}
data:
  train: [{path: pairs.jsonl}]
  eval: [{path: heldout.jsonl}]
  template: plain
  order: shuffle
  max_prompt_tokens: 256
  max_tokens: 512
reference: {store: runs/stores}
loss: {name: dpo, options: {beta: 0.1}}
optimizer: {name: adamw, learning_rate: 2.0e-5, schedule: constant, warmup_steps: 0, weight_decay: 0.0, clip_norm: 1.0}
train: {batch_pairs: 8, micro_batch_pairs: 4, steps: 100, save_every: 50, log_every: 1}
mesh: {data: 1, fsdp: -1, tensor: 1, sequence: 1}
sft: {data: {train: [{path: sft.jsonl}]}, optimizer: {learning_rate: 1.0e-5}, train: {epochs: 2}}
evaluation: {every: 50}
"""
MINIMAL = "workdir: w\nmodel: {weights: m}\ndata: {train: [{path: p.jsonl}]}\nloss: {name: dpo}\n"


@pytest.fixture
def example(tmp_path: Path) -> str:
    path = tmp_path / "e.yaml"
    path.write_text(EXAMPLE)
    return str(path)


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "c.yaml").write_text(text)
    return str(tmp_path / "c.yaml")


def test_the_documented_file(example: str):
    config, origins = load(example)
    assert config.train.micro_batch_pairs == 4 and config.loss[0].options == {"beta": 0.1}
    assert config.sft and config.sft.train.epochs == 2.0 and config.sft.train.batch_pairs == 8
    assert origins["train.steps"].endswith("e.yaml:14") and "train.keep" not in origins


def test_only_four_keys_are_required(tmp_path: Path):
    config, _ = load(write(tmp_path, MINIMAL))
    assert config == Config(workdir="w", model=config.model, data=config.data, loss=config.loss)


def test_overrides_come_last_and_say_so(example: str):
    config, origins = load(
        example,
        [
            "--train.steps",
            "7",
            "--loss.options.beta=0.5",
            "--optimizer.learning_rate",
            "2e-5",
            "--data.train.0.path",
            "b.jsonl",
        ],
    )
    assert config.train.steps == 7 and config.loss[0].options["beta"] == 0.5
    assert config.optimizer.learning_rate == 2e-5  # YAML reads 2e-5 as text
    assert config.data.train[0] == {"path": "b.jsonl"}
    assert origins["train.steps"] == "command line" and origins["loss.0.options.beta"] == "command line"


def test_losses_may_be_a_list(tmp_path: Path):
    text = MINIMAL.replace("{name: dpo}", "[{name: dpo, weight: 0.8}, {name: dpo, options: {beta: 0.5}}]")
    config, _ = load(write(tmp_path, text), ["--loss.0.weight", "0.5"])
    assert [term.weight for term in config.loss] == [0.5, 1.0]


def test_the_merged_configuration_reads_back_as_itself(example: str, tmp_path: Path):
    config, _ = load(example)
    assert load(write(tmp_path, yaml.safe_dump(as_mapping(config))))[0] == config


MISTAKES = {
    "unknown key": ("trian: {steps: 3}", r"c\.yaml:5: trian: .*Did you mean 'train'"),
    "unknown key below": ("train: {stepz: 3}", r"c\.yaml:5: train\.stepz: .*Did you mean 'steps'"),
    "text for a number": ("train: {steps: many}", r"c\.yaml:5: train\.steps: a whole number is wanted, not 'many'"),
    "half a step": ("train: {steps: 1.5}", r"a whole number is wanted, not 1\.5"),
    "yes for a number": ("seed: true", r"seed: a whole number is wanted, not True"),
    "zero steps": ("train: {steps: 0}", r"must be at least 1, got 0"),
    "negative rate": ("optimizer: {learning_rate: -1.0}", r"must be at least 0"),
    "share above one": ("optimizer: {beta1: 1.5}", r"at least 0 and at most 0.999999, got 1\.5"),
    "unknown choice": ("optimizer: {schedule: cosin}", r"Did you mean 'cosine'\? Allowed: constant, cosine, linear"),
    "list for a mapping": ("train: [1]", r"train: a mapping of keys is wanted"),
    "mapping for a list": ("evaluation: {judge: {data: {path: x}}}", r"judge\.data: a list is wanted"),
    "missing key": ("sft: {train: {steps: 3}}", r"c\.yaml:5: sft: the key sft\.data is missing"),
    "steps and epochs": ("train: {steps: 3, epochs: 1}", r"c\.yaml:5: train\.epochs: give steps or epochs"),
    "micro batch": (
        "train: {batch_pairs: 8, micro_batch_pairs: 3}",
        r"c\.yaml:5: train\.micro_batch_pairs: 3 does not divide train\.batch_pairs, 8",
    ),
    "no step left to trace": (
        "train: {steps: 3}\nprofile: {start_step: 3, num_steps: 1}",
        r"c\.yaml:6: profile\.start_step: 3 steps before the trace leave none of train\.steps, 3",
    ),
    "evaluation of nothing": ("evaluation: {every: 5}", r"c\.yaml:5: evaluation\.every: needs held-out rows"),
    "samples of nothing": ("evaluation: {samples: 5}", r"evaluation\.samples: needs held-out rows"),
    "nothing to judge": ("evaluation: {judge: {data: [{path: x}]}}", r"evaluation\.judge: needs evaluation\.samples"),
    "the key twice": ("seed: 1\nseed: 2", r"c\.yaml:6: seed: the key is given twice"),
    "a tag": ("seed: !!python/object/apply:os.system [ls]", r"c\.yaml:5"),
    "not YAML": ("seed: [1", r"c\.yaml:\d+: not YAML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_file(tmp_path: Path, name: str):
    line, says = MISTAKES[name]
    with pytest.raises(UserError, match=says):
        load(write(tmp_path, MINIMAL + line + "\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a configuration is a mapping"),
        ("- a\n", "a configuration is a mapping"),
        ("workdir: w\n", "model is missing"),
        (MINIMAL.replace("[{path: p.jsonl}]", "[]"), "name at least one source"),
        (MINIMAL.replace("{name: dpo}", "[]"), "name at least one"),
        (MINIMAL.replace("p.jsonl}]", "p.jsonl}], max_prompt_tokens: 9, max_tokens: 9"), "leaves no room"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, says: str):
    with pytest.raises(UserError, match=says):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trian.steps", "3"], "command line: trian: .*Did you mean 'train'"),
        (["--train.steps", "x"], "command line: train.steps: a whole number"),
        (["--train.steps"], "--train.steps has no value"),
        (["steps=3"], "'steps=3' is not an override"),
        (["--"], "'--' is not an override"),
        (["--seed.x", "3"], "seed is a value, it has no keys below it"),
        (["--data.train.5.path", "x"], "data.train is a list of 1, from 0"),
        (["--loss.options", "3"], "options: a mapping of keys is wanted"),
        (["--train.steps", "--seed", "3"], "--train.steps has no value"),
        (["--train.steps", "010"], "train.steps: a whole number is wanted, not '010'"),
        (["--lr", "3"], "lr: the key is unknown. Did you mean optimizer.learning_rate[?] Allowed: analysis"),
        (["--train.lr", "3"], "train.lr: the key is unknown. Did you mean optimizer.learning_rate[?]"),
        (["--lora_rank", "3"], "Did you mean lora.rank[?]"),
        (["--wpo", "true"], "Did you mean loss.wpo[?]"),
        (["--train.epochs", "inf"], "train.epochs: must be finite, and at most 3.4e.38"),
        (["--train.epochs", "1e7"], "train.epochs: must be at least 1e-06 and at most 1000000"),
        (["--optimizer.learning_rate", ".inf"], "optimizer.learning_rate: must be finite"),
        (["--optimizer.learning_rate", "1e39"], "optimizer.learning_rate: must be finite"),
        (["--optimizer.learning_rate", ".nan"], "optimizer.learning_rate: a number is wanted"),
        (["--loss.options.beta", ".inf"], "command line: loss.0.options.beta: must be finite, and at most 3.4e.38"),
        (["--loss.options.beta", "{start: 0, end: .nan}"], r"loss.0.options.beta.end: must be finite"),
        (["--optimizer.beta2", "1"], "optimizer.beta2: must be at least 0 and at most 0.999999"),
        (["--optimizer.epsilon", "0"], "optimizer.epsilon: must be at least 1e-30"),
        (["--loss.weight", "-1"], "loss.0.weight: must be at least 0, got -1"),
        (["--seed", "-1"], "must be at least 0 and at most 4294967295, got -1"),
        (["--a..b", "3"], "'--a..b' is not an override"),
        (["--model", "NAME"], "not 'NAME'. Write --model '{weights: NAME}'."),
        (["--data", "a.jsonl"], r"Write --data '{train: \[{path: a.jsonl}\]}'"),
        (["--loss", "dpo"], r"Write --loss '\[{name: dpo}\]'"),
    ],
)
def test_mistakes_on_the_command_line(example: str, arguments: list[str], says: str):
    with pytest.raises(UserError, match=says):
        load(example, arguments)


@pytest.mark.parametrize("path", ["nowhere.yaml", "configs/nowhere.yaml", "."])
def test_a_file_that_is_not_there(path: str):
    with pytest.raises(UserError, match=r"no (such )?configuration file.*right behind the command"):
        load(path)


def test_a_file_that_is_not_text(tmp_path: Path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"c\.yaml: (cannot be read|.*not YAML)"):
        load(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path):
    config, _ = load(str(path))
    assert config.workdir == f"runs/{path.stem}"
    assert re.search(r"^# date +\d{4}-\d\d-\d\d$", path.read_text(encoding="utf8"), re.MULTILINE), "no lab record"
    project = tomllib.loads((path.parents[1] / "pyproject.toml").read_text(encoding="utf8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert wheel[f"configs/{path.name}"] == f"dpo_jax/configs/{path.name}"


def in_python(**sections: object) -> Config:
    own = {
        "workdir": "w",
        "model": ModelConfig(weights="m"),
        "data": DataConfig(train=({"path": "p.jsonl"},)),
        "loss": (LossConfig(name="dpo"),),
    }
    return Config(**{**own, **sections})  # type: ignore[arg-type]


FINE_TUNING = SftConfig(data=SftDataConfig(train=({"path": "p"},)), train=TrainConfig(steps=2, epochs=3))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"train": TrainConfig(steps=2, epochs=3)}, r"train\.epochs: give steps or epochs, not both"),
        ({"train": TrainConfig(micro_batch_pairs=3)}, r"train\.micro_batch_pairs: 3 does not divide"),
        ({"train": TrainConfig(steps=0)}, r"train\.steps: must be at least 1, got 0"),
        ({"train": TrainConfig(steps=1.5)}, r"train\.steps: a whole number is wanted, not 1\.5"),
        ({"train": {"stepz": 2}}, r"train\.stepz: the key is unknown\. Did you mean 'steps'"),
        ({"sft": FINE_TUNING}, r"sft\.train\.epochs: give steps or epochs"),
        ({"seed": "one"}, "seed: a whole number is wanted, not 'one'"),
        ({"model": ModelConfig(weights="m", dtype="float8")}, r"model\.dtype: 'float8' is unknown"),
        ({"loss": ()}, "loss: name at least one"),
        ({"loss": (LossConfig(name="dpo", ld_alpha=1.5),)}, r"loss\.0\.ld_alpha: must be at least 0 and at most 1"),
        ({"data": DataConfig(train=())}, r"data\.train: name at least one source"),
        ({"evaluation": EvaluationConfig(every=2)}, r"evaluation\.every: needs held-out rows"),
    ],
)
def test_mistakes_in_python(sections: dict[str, object], says: str):
    config = in_python(**sections)
    for opens in (lambda: check(config, {}), lambda: TextExperiment(config, {}, command="")):
        with pytest.raises(UserError, match=says):
            opens()


def test_pictures_in_python():
    with pytest.raises(UserError, match="model: there are no weights"):
        check(PictureConfig(workdir="w", pictures=PicturesConfig(height=8, width=8)), {})


def test_a_checked_configuration_is_as_if_it_came_from_a_file(tmp_path: Path):
    read, _ = load(write(tmp_path, MINIMAL + "train: {steps: 3}\n"))
    assert check(in_python(train={"steps": 3}), {}) == read  # a mapping is as good as its dataclass


DECIDED = {
    "Config": (
        "workdir mesh logging profile sweep tiles evaluation sampling pairs analysis export",
        "seed lora optimizer train model data reference loss scratch sft reward",
    ),
    "DataConfig": (
        "layout",
        "train eval template chat_template date score order max_prompt_tokens max_tokens truncation special_tokens "
        "on_error",
    ),
    "DiffuserConfig": (
        "remat",
        "weights patch frame_patch layers heads head_size mlp_width schedule prediction dtype",
    ),
    "DiffusionLossConfig": ("", "name options temporal_weight"),
    "LoraConfig": ("", "rank alpha dropout targets"),
    "LossConfig": ("", "name options weight ld_alpha wpo"),
    "ModelConfig": ("remat attention", "weights dtype"),
    "OptimizerConfig": (
        "",
        "name learning_rate schedule warmup_steps weight_decay clip_norm beta1 beta2 epsilon moment_dtype",
    ),
    "PictureConfig": (
        "workdir mesh logging profile sweep evaluation export",
        "seed lora optimizer train pictures model data reference loss sft reward sampling pairs",
    ),
    "PictureDataConfig": ("", "train eval order on_error"),
    "PicturePairsConfig": ("", "groups samples heldout select min_gap seed judge"),
    "PictureReferenceConfig": ("store batch_pairs rows_per_shard", "draws"),
    "PictureSamplingConfig": ("", "sampler steps guidance eta clip batch_rows"),
    "PictureSftConfig": ("", "data seed drop_condition average optimizer train"),
    "PicturesConfig": ("", "height width channels frames classes text_width"),
    "QualityJudge": ("", "name weights metrics"),
    "ReferenceConfig": ("store batch_pairs rows_per_shard", "update_every update_share"),
    "RewardConfig": ("", "options optimizer train"),
    "ScorerConfig": ("", "options first_width second_width head_width dtype optimizer train"),
    "ScorerJudge": ("", "name model"),
    "ScratchConfig": ("", "data vocabulary width layers heads mlp_width max_positions seed"),
    "SftConfig": ("", "data seed lora optimizer train"),
    "SftDataConfig": ("", "train"),
    "TrainConfig": (
        "micro_batch_pairs steps epochs save_every log_every keep skips_allowed step_timeout_seconds",
        "batch_pairs",
    ),
}
"""Section -> its settings that a resumed run may change, and those that decide what it computes.

A new setting has to be put into one of the two. `free(default)` beside it says that it may change.
"""


def sections_of(kind: type) -> dict[str, type]:
    """The dataclasses in which a setting may decide: those within one that may change as a whole are left out."""
    found = {kind.__name__: kind}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        parts = (hints[field.name], *get_args(hints[field.name]))
        if field.metadata != FREE:
            for part in filter(dataclasses.is_dataclass, parts):
                found |= sections_of(part)
    return found


def test_of_every_setting_it_is_decided_whether_it_may_change():
    sections = sections_of(Config) | sections_of(PictureConfig)
    assert DECIDED.keys() == sections.keys()
    for name, kind in sections.items():
        free, decides = (set(names.split()) for names in DECIDED[name])
        assert {field.name for field in dataclasses.fields(kind)} == free | decides, name
        assert {field.name for field in dataclasses.fields(kind) if field.metadata == FREE} == free, name


@pytest.mark.parametrize("kind", [Config, PictureConfig])
def test_training_may_go_on_for_longer_and_fine_tuning_may_not(kind: type[CommonConfig]):
    free = free_settings(kind)
    assert {"train.steps", "reward.train.steps", "sft.train.keep", "model.remat", "workdir"} <= {*free}
    assert not {"sft.train.steps", "sft.train.epochs", "train.batch_pairs", "sft.train"} & {*free}
    assert ("sampling" in free) == (kind is Config)  # pictures train on what they sample


def numbers_of(kind: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of all settings that are numbers, or mappings that may hold some, and their types."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        for name, hint in get_type_hints(kind, include_extras=True).items():
            yield from numbers_of(hint, f"{key}.{name}" if key else name)
    elif origin in (Union, types.UnionType, tuple):
        for option in inner:
            yield from numbers_of(option, key)
    elif kind in (int, float) or (origin is Annotated and inner[0] in (int, float)) or "Mapping" in str(kind):
        yield key, kind


NUMBERS = dict([*numbers_of(Config), *numbers_of(PictureConfig)])


@pytest.mark.parametrize("key", NUMBERS)
def test_no_setting_takes_a_number_that_is_not_finite(key: str):
    """Nor one that a device does not hold, in a file or deep in a mapping."""
    for text in (".nan", ".inf", "-.inf", "1e39", "-1e400", "1" + 400 * "0"):
        given: Any = Written(text)
        if "Mapping" in str(NUMBERS[key]):
            given = {"deep": [1, {"x": given}]} if "float" not in str(NUMBERS[key]) else {"x": given}
        with pytest.raises(
            UserError, match=rf"here: {re.escape(key)}[\w.]*: .*(must be (finite|at )|number is wanted)"
        ):
            typed(NUMBERS[key], given, {key: "here"}, key)


def test_there_are_numbers_in_every_section():
    assert len(NUMBERS) > 80 and {"loss.options", "sft.optimizer.learning_rate", "data.train"} <= NUMBERS.keys()


@pytest.mark.parametrize(("given", "prompt"), [("max_tokens: 64", 32), ("max_tokens: 513", 512), ("max_tokens: 1", 0)])
def test_short_rows_leave_half_of_them_to_prompts(tmp_path: Path, given: str, prompt: int):
    path = tmp_path / "e.yaml"
    path.write_text(MINIMAL.replace("p.jsonl}]", f"p.jsonl}}], {given}"))
    if prompt:
        assert load(str(path))[0].data.max_prompt_tokens == prompt  # type: ignore[union-attr]
    else:
        with pytest.raises(UserError, match="leaves no room"):
            load(str(path))
