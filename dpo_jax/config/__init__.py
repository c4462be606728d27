"""An experiment: frozen dataclasses, one YAML file each, dotted overrides on top. Only `experiments` reads them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from dpo_jax.config import shipped
from dpo_jax.config.evaluation import EvaluationConfig, JudgeConfig
from dpo_jax.config.model import ExportConfig, LoraConfig, ModelConfig, ScratchConfig, Source, file_bytes
from dpo_jax.config.pictures import PictureConfig, PictureJudgeConfig, check_pictures
from dpo_jax.config.settings import meant_by
from dpo_jax.config.texts import AnalysisConfig, Config, DataConfig, PairsConfig, SamplingConfig, check_texts
from dpo_jax.config.training import (
    LoggingConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    ReferenceConfig,
    RewardConfig,
    SftConfig,
    TilesConfig,
    TrainConfig,
)
from dpo_jax.errors import printable
from dpo_jax.masking import masked
from dpo_jax.reading import (
    Origins,
    Plain,
    UnknownKey,
    Written,
    as_setting,
    as_yaml,
    mistake,
    options_of_all,
    override,
    put,
    read_settings,
    structure,
    typed,
)

AnyConfig = Config | PictureConfig
"""A file with a section `pictures` is an experiment on pictures or clips."""
ALONE = "weights alone"
"""Origin of the working directory of weights for which there is no experiment."""
_NAMED = (JudgeConfig, PictureJudgeConfig)
C = TypeVar("C", bound=AnyConfig)
_LONGEST_KEY = 1000  # characters; YAML finds the colon behind no longer one
_FIRST = ("workdir", "seed", "pictures", "model", "data", "reference", "loss")  # of what is shown


def load(path: str, overrides: Sequence[str] = ()) -> tuple[AnyConfig, Origins]:
    """Read one experiment file, apply the overrides, check everything. Raises `UserError`."""
    mapping, origins = read_settings(_find(path))
    if isinstance(mapping.get("loss"), dict):
        overrides = [re.sub(r"^--loss\.0\b", "--loss", word) for word in overrides]
    override(mapping, origins, overrides)
    return _finished(mapping, origins)


def load_or_make(named: str, overrides: Sequence[str] = ()) -> tuple[AnyConfig, Origins]:
    """Read an experiment file, or, of a name of weights, make the configuration that has these and no rows.

    Raises:
        UserError: as `load`.
    """
    path = Path(named)
    if path.suffix in (".yaml", ".yml") or (path.is_file() and path.suffix != ".gguf"):
        return load(named, overrides)
    settings: Plain = {"workdir": "runs", "model": {"weights": named}, "data": {"train": [{"path": ""}]}}
    origins: Origins = {}
    override(settings, origins, overrides)
    config, origins = _finished({**settings, "loss": {"name": "dpo"}}, origins)
    return config, {**origins, "workdir": ALONE}


def made(mapping: Plain, origin: str) -> tuple[AnyConfig, Origins]:
    """An experiment from plain data that no file holds; `origin` says in messages where it came from.

    Raises:
        UserError: as `load` does.
    """
    return _finished(dict(mapping), {key: origin for key in mapping})


def changed(config: C, origins: Origins, settings: Mapping[str, object]) -> tuple[C, Origins]:
    """The same experiment with other values of these dotted keys, checked like a file's. Raises `UserError`."""
    mapping = _plain(config)
    if len(mapping["loss"]) == 1:  # as most files have it
        mapping["loss"] = mapping["loss"][0]
        origins = {key.replace("loss.0.", "loss.", 1): at for key, at in origins.items()}
    origins = dict(origins)
    for key, value in settings.items():
        put(mapping, origins, key, value)
    return _finished(mapping, origins)  # pyright: ignore[reportReturnType]


def check(config: C, origins: Origins) -> C:
    """Return a configuration, whoever made it, as if it came from a file: every value of its type and in its range.

    Raises:
        UserError: a value is of another type or out of its range, or two contradict each other.
    """
    return _checked(type(config), _plain(config), origins)


def _finished(mapping: Plain, origins: Origins) -> tuple[AnyConfig, Origins]:
    if isinstance(loss := structure(mapping.get("loss")), dict):
        mapping["loss"] = [loss]
        origins |= {key.replace("loss.", "loss.0.", 1): at for key, at in origins.items() if key.startswith("loss.")}
    return _checked(PictureConfig if "pictures" in mapping else Config, mapping, origins), origins


def _checked(kind: type[C], mapping: Plain, origins: Origins) -> C:
    try:
        config = typed(kind, {**mapping, "sweep": _grids(kind, mapping.get("sweep") or ())}, origins)
    except UnknownKey as unknown:
        raise unknown.hinted(meant_by(kind, unknown.key)) from None
    if isinstance(config, Config) and "max_prompt_tokens" not in (structure(mapping["data"]) or {}):
        config = _with_room(config)
    _check_lengths(config, origins)
    if isinstance(config, PictureConfig):
        check_pictures(config, origins)
    else:
        check_texts(config, origins)
    return config


def _with_room(config: Config) -> Config:
    """The configuration with prompts of at most half of data.max_tokens, where the default would take all of it."""
    data = config.data
    if data.max_prompt_tokens < data.max_tokens:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(data, max_prompt_tokens=max(1, data.max_tokens // 2)))


def _grids(kind: type, grids: Any) -> Any:
    """The section `sweep`, with the values of each setting as that setting reads them."""

    def read(key: str, values: Any) -> Any:
        values = structure(values)
        return [as_setting(kind, key, each) for each in (values if isinstance(values, list | tuple) else [values])]

    grids = structure(grids)
    if not isinstance(grids, list | tuple) or not all(isinstance(structure(grid), dict) for grid in grids):
        return grids
    return [{key: read(key, values) for key, values in structure(grid).items()} for grid in grids]


def _find(path: str) -> Path:
    """The file itself, or the configuration of that name that comes with the package: configs/NAME.yaml, or NAME."""
    given = Path(path)
    if given.exists() or not (given.parent.name == "configs" or (given.name == path and not given.suffix)):
        return given
    return shipped.names().get(given.stem, given)


def _check_lengths(config: AnyConfig, origins: Origins) -> None:
    """Refuse lengths and portions of trainings that contradict each other."""
    sections = {"train": config, "sft.train": config.sft, "reward.train": config.reward}
    for key, train in ((key, section.train) for key, section in sections.items() if section):
        if train.steps is not None and train.epochs is not None:
            raise mistake(f"{key}.epochs", origins, "give steps or epochs, not both.")
        micro = train.micro_batch_pairs or train.batch_pairs
        if train.batch_pairs % micro:
            says = f"{micro} does not divide {key}.batch_pairs, {train.batch_pairs}."
            raise mistake(f"{key}.micro_batch_pairs", origins, says)
    start, steps = config.profile.start_step, config.train.steps
    if config.profile.num_steps and steps is not None and start >= steps:
        says = f"{start} steps before the trace leave none of train.steps, {steps}, to be traced."
        raise mistake("profile.start_step", origins, says)


def as_mapping(config: AnyConfig) -> Plain:
    """The whole configuration as plain data to be kept and shown: defaults filled in, secrets hidden."""
    return masked(_plain(config))


def _plain(config: AnyConfig) -> Plain:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            # A judge is written with the options of all judges: that is the form of every file that holds one.
            kinds = next((get_args(union) for union in _NAMED if isinstance(value, union)), ())
            return plain({**options_of_all(kinds), **vars(value)})
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    mapping = plain(config)
    return {key: mapping[key] for key in (*_FIRST, *mapping) if key in mapping}


def render(config: AnyConfig, origins: Origins, *, comments: bool) -> str:
    """The merged configuration as YAML; with comments, each value says where it came from."""
    mapping = as_mapping(config)
    if not comments:
        return as_yaml(mapping)
    lines: list[str] = []

    def written(value: Any) -> str:
        return as_yaml(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")

    def as_key(text: str, indent: str) -> str:
        return f"{text}:" if len(text) < _LONGEST_KEY else f"? {text}\n{indent}:"

    def walk(value: Any, key: str, depth: int) -> None:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            below = f"{key}.{name}" if key else str(name)
            indent = "  " * depth
            label = f"{indent}{as_key(written(name), indent)}" if isinstance(value, dict) else f"{indent}-"
            if isinstance(item, dict | list) and item:
                lines.append(label)
                walk(item, below, depth + 1)
            else:
                lines.append(f"{label} {written(item)}".ljust(48) + f"  # {printable(origins.get(below, 'default'))}")

    walk(mapping, "", 0)
    return "\n".join(lines) + "\n"
