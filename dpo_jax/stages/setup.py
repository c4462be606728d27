"""From a configuration to what stages use: mesh, model, tokenizer, rows, scorer; each is made when asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dpo_jax import config as configuration
from dpo_jax.config import Config
from dpo_jax.data.sources import read_pairs
from dpo_jax.data.tokenize import tokenization_fingerprint, tokenize
from dpo_jax.errors import UserError
from dpo_jax.files import write_atomic
from dpo_jax.mesh import make_mesh, named_sharding, place
from dpo_jax.models.decoder import Model, make_model
from dpo_jax.models.families import TensorRule
from dpo_jax.reading import Origins, locate
from dpo_jax.reference.score import Score, make_scorer
from dpo_jax.stages.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.state import param_shardings
from dpo_jax.types import Completion, PairBatch, Params, PreferencePair, TokenRow
from dpo_jax.weights.load import load_params, resolve_spec
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.source import WeightsSource

BATCH_AXES: dict[str, tuple[str | None, ...]] = {
    "tokens_RT": ("rows", "length"),
    "positions_RT": ("rows", "length"),
    "segments_RT": ("rows", "length"),
    "source_RN": ("rows", None),
    "target_RN": ("rows", None),
    "response_RN": ("rows", None),
    "response_tokens_BP": (None, None),
    "weight_B": (None,),
    "reference_logps_BP": (None, None),
}
"""How a batch lies on the mesh: rows are split, the small arrays of pairs are whole on every device."""


class Setup:
    """One experiment, opened."""

    def __init__(self, config: Config, origins: Origins, *, command: str):
        self.config, self.origins, self.command = config, origins, command
        self.workdir = Path(config.workdir)

    def begin(self) -> None:
        """Makes the working directory and turns the compile cache on."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"workdir: {self.workdir} cannot be written: {error.strerror}.") from None
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dpo_jax" / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(cache))

    def keep_config(self) -> None:
        """Writes the merged configuration beside what it makes; called once nothing on disk contradicts it."""
        write_atomic(self.workdir / "config.yaml", render(self.config, self.origins, comments=False))

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        try:
            return make_mesh(**dataclasses.asdict(self.config.mesh))
        except ValueError as error:
            raise UserError(f"{locate('mesh', self.origins)}: mesh: {error}.") from None

    @cached_property
    def source(self) -> WeightsSource:
        """The pretrained weights, opened."""
        return open_weights(self.config.model.weights)

    @cached_property
    def _spec_rules(self) -> tuple[Any, Sequence[TensorRule]]:
        return resolve_spec(self.source)

    @property
    def rules(self) -> Sequence[TensorRule]:
        """Which tensor of the checkpoint is which parameter."""
        return self._spec_rules[1]

    @cached_property
    def model(self) -> Model:
        """The model as pure functions."""
        return make_model(self._spec_rules[0], dtype=self.config.model.dtype, remat=self.config.model.remat)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        return self.source.tokenizer()

    @cached_property
    def score(self) -> Score:
        """Response log-probs of a batch, compiled once for all stages."""
        return make_scorer(self.model.apply)

    @cached_property
    def train_rows(self) -> list[TokenRow]:
        """The training pairs as tokens, in data order."""
        return self._pairs("data.train", self.config.data.train)

    @cached_property
    def eval_rows(self) -> list[TokenRow]:
        """The held-out pairs as tokens; may be empty."""
        return self._pairs("data.eval", self.config.data.eval) if self.config.data.eval else []

    @cached_property
    def eval_prompts(self) -> list[str]:
        """The different prompts of the held-out pairs, in their order."""
        rows = read_pairs(self.config.data.eval, on_error=self.config.data.on_error).rows
        return list(dict.fromkeys(row.prompt for row in rows))

    def _pairs(self, name: str, sources: Sequence[configuration.Source]) -> list[TokenRow]:
        found = read_pairs(sources, on_error=self.config.data.on_error)
        return self.tokens(name, found.rows, found.skipped)

    def tokens(self, name: str, rows: Sequence[PreferencePair | Completion], skipped: dict[str, int]) -> list[TokenRow]:
        """Rows as tokens; what was changed or skipped is said."""
        data = self.config.data
        done = tokenize(
            rows,
            self.tokenizer,
            template=data.template,
            max_prompt_tokens=data.max_prompt_tokens,
            max_tokens=data.max_tokens,
        )
        notes = [f"{count} skipped ({reason})" for reason, count in skipped.items()]
        notes += [f"{count} {field.replace('_', ' ')}" for field, count in done.counts._asdict().items() if count]
        say("data", f"{name}: {len(done.rows)} rows" + "".join(f", {note}" for note in notes))
        return done.rows

    def tokenization(self) -> dict[str, str]:
        """What decides how text became tokens, for the fingerprint of a store."""
        data = self.config.data
        return tokenization_fingerprint(
            self.tokenizer,
            template=data.template,
            max_prompt_tokens=data.max_prompt_tokens,
            max_tokens=data.max_tokens,
        )

    @property
    def row_multiple(self) -> int:
        """Into how many parts the mesh splits the rows of a batch."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def batch_shardings(self, batch: PairBatch, *, micro_batches: bool) -> PairBatch:
        """Where the arrays of a batch lie; `micro_batches` says whether they have that leading axis."""
        shardings: dict[str, Any] = {}
        for name, array in batch._asdict().items():
            names = (None, *BATCH_AXES[name]) if micro_batches else BATCH_AXES[name]
            shardings[name] = None if array is None else named_sharding(self.mesh, names, array.shape)
        return PairBatch(**shardings)

    def place(self, batch: PairBatch, *, micro_batches: bool = False) -> PairBatch:
        """Puts a batch on the mesh."""
        shardings = self.batch_shardings(batch, micro_batches=micro_batches)
        return jax.tree.map(lambda array, to: place(to, array), batch, shardings)

    def pretrained(self) -> Params:
        """The pretrained parameters, on the mesh."""
        return load_params(self.source, self.model, self.rules, self.mesh)

    def start_params(self) -> Params:
        """Where the policy starts, and what the reference is: the result of fine-tuning, or the pretrained weights."""
        if not self.config.sft:
            return self.pretrained()
        return self.restored_params(self.workdir / "sft", "sft")

    def restored_params(self, folder: Path, command: str) -> Params:
        """The parameters of the newest checkpoint below `folder`."""
        checkpoints = Checkpoints(folder / "checkpoints")
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{folder / 'checkpoints'}: no checkpoint yet; run `dpo-jax {command}` first.")
        shardings = param_shardings(self.mesh, self.model.shapes, self.model.axes)
        like = jax.tree.map(
            lambda shape, to: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=to), self.model.shapes, shardings
        )
        return checkpoints.restore_params(step, like)


def render(config: Config, origins: Origins, *, comments: bool) -> str:
    """The merged configuration as YAML; with comments, each value says where it came from."""
    import yaml

    mapping = configuration.as_mapping(config)
    if not comments:
        return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    lines: list[str] = []

    def walk(value: Any, key: str, depth: int) -> None:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            below = f"{key}.{name}" if key else str(name)
            label = f"{'  ' * depth}{name}:" if isinstance(value, dict) else f"{'  ' * depth}-"
            if isinstance(item, dict | list) and item:
                lines.append(label)
                walk(item, below, depth + 1)
            else:
                text = yaml.safe_dump(item, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip()
                lines.append(f"{label} {text}".ljust(48) + f"  # {origins.get(below, 'default')}")

    walk(mapping, "", 0)
    return "\n".join(lines) + "\n"
