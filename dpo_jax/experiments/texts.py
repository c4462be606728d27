"""From a configuration to what commands use: mesh, model, tokenizer, rows, scorer; each is made when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from dpo_jax.config import Config, LoraConfig
from dpo_jax.data.batches import evaluation_batches
from dpo_jax.data.rules import tokenization_fingerprint
from dpo_jax.errors import UserError
from dpo_jax.experiments.experiment import Experiment, newest
from dpo_jax.experiments.losses import read_terms
from dpo_jax.experiments.positions import check_rows, check_samples
from dpo_jax.experiments.rows import DataRows, read_rows, rules_of
from dpo_jax.mesh import replicated
from dpo_jax.models.attention import BACKENDS
from dpo_jax.models.attention.choice import choose_attention
from dpo_jax.models.decoder import Model, make_model
from dpo_jax.models.lora import Lora
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import locate
from dpo_jax.reference.score import Score, Scorer, make_scorer
from dpo_jax.reference.store import Scores
from dpo_jax.runtime.progress import say
from dpo_jax.runtime.translate import sized_by
from dpo_jax.types import HostBatch, Params, TokenRow
from dpo_jax.weights.adapter import adapted_paths
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import Resolved, resolve_spec
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
    "reference_heads_BP": (None, None),
    "desirable_B": (None,),
    "loss_weight_B": (None,),
    "margin_B": (None,),
    "soft_label_B": (None,),
    "source_B": (None,),
    "sequences": ("rows", None, None),
}
"""How a batch lies on the mesh: rows are split, the small arrays of pairs are whole on every device."""


class TextExperiment(Experiment):
    """One experiment on texts, opened."""

    config: Config
    batch_axes = BATCH_AXES

    @cached_property
    def source(self) -> WeightsSource:
        """The pretrained weights, opened."""
        weights = self.config.model.weights
        if self.config.scratch and not Path(weights).exists():
            raise UserError(
                f"model.weights: {weights} is still to be made from `scratch:`; run `dpo-jax scratch` first."
            )
        return open_weights(self.config.model.weights)

    @cached_property
    def resolved(self) -> Resolved:
        """The pretrained model's spec, and which tensor of the checkpoint is which parameter."""
        found = resolve_spec(self.source)
        if found.unknown:
            say("model", f"config.json has keys that nobody knows, left unread: {', '.join(found.unknown)}")
        return found

    @cached_property
    def model(self) -> Model:
        """The model as pure functions."""
        check_rows(self.config, self.origins, self.resolved.spec)
        check_samples(self.config, self.origins, self.resolved.spec, self.terms)
        return self._make_model(self.config.lora, "lora")

    @cached_property
    def attention(self) -> str:
        """The form of attention: what is asked for, or the fastest that this machine and model can do."""
        spec, options = self.resolved.spec, self.config.model
        try:
            found = choose_attention(options.attention, spec, options.dtype, self.device)
        except ValueError as error:
            raise UserError(f"{locate('model.attention', self.origins)}: model.attention: {error}") from None
        if found.why:
            say("model", f"attention: {found.name}, because {found.why}")
        return found.name

    @cached_property
    def sft_model(self) -> Model:
        """The same model with the adapter of the fine-tuning."""
        return self._make_model(self.config.sft and self.config.sft.lora, "sft.lora")

    def _make_model(self, lora: LoraConfig | None, key: str) -> Model:
        options = self.config.model
        return make_model(
            self.resolved.spec,
            dtype=options.dtype,
            remat=options.remat,
            attention=self.attention,
            lora=lora and self._adapter(lora, key),
        )

    def _adapter(self, lora: LoraConfig, key: str) -> Lora:
        try:
            paths = adapted_paths(self.resolved.rules, lora.targets)
        except ValueError as error:
            raise UserError(f"{locate(f'{key}.targets', self.origins)}: {key}.targets: {error}") from None
        return Lora(lora.rank, lora.alpha, lora.dropout, paths)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        return self.source.tokenizer()

    @cached_property
    def score(self) -> Score:
        """Response log-probs of a batch, compiled once for all commands."""
        return make_scorer(self.model.apply, **self.tiles)

    def scorer(
        self, params: Params, rows: Sequence[TokenRow], *, progress: Callable[[int], None] = lambda rows: None
    ) -> tuple[list[str], Scores]:
        """Row ids and response log-probs of rows, in batches of `reference.batch_pairs`."""
        with sized_by("reference.batch_pairs"):
            return Scorer(self.score, self.scoring_batches, self.place)(params, rows, progress=progress)

    @property
    def tiles(self) -> dict[str, int]:
        """How large the tiles of logits are."""
        return {f"tile_{name}": size for name, size in dataclasses.asdict(self.config.tiles).items()}

    @cached_property
    def terms(self) -> list[Term]:
        """The losses of the objective, with their options."""
        return read_terms(self.config.loss, self.origins)

    @cached_property
    def train_data(self) -> DataRows:
        """The training rows, in data order."""
        return read_rows(self.config, self.tokenizer, "data.train", self.config.data.train)

    @cached_property
    def eval_data(self) -> DataRows:
        """The held-out rows; may be empty."""
        return read_rows(self.config, self.tokenizer, "data.eval", self.config.data.eval)

    def read_data(self) -> None:
        """Reads and checks the rows now; without a call that happens where they are needed."""
        _ = self.train_data, self.eval_data

    def tokenization(self) -> dict[str, str]:
        """What decides how text became tokens, for the fingerprint of a store."""
        return tokenization_fingerprint(self.tokenizer, **rules_of(self.config))

    @property
    def unpack(self) -> tuple[str, ...] | None:
        """The layouts whose sequences attention must be told; None: of none."""
        return BACKENDS[self.attention].unpacks

    def scoring_batches(self, rows: Sequence[TokenRow]) -> Iterator[HostBatch]:
        """Every row once, in batches of `reference.batch_pairs`."""
        pairs, layout = self.config.reference.batch_pairs, self.config.data.layout
        return evaluation_batches(rows, pairs=pairs, row_multiple=self.row_multiple, layout=layout, unpack=self.unpack)

    def pretrained(self, *, held: bool = False) -> Params:
        """The pretrained parameters, on the mesh: float32, or as they are held where they are not trained."""
        found, model = self.resolved, self.model
        dtypes = model.held_dtypes() if held else None
        return load_params(
            self.source,
            model,
            found.rules,
            self.mesh,
            dtypes=dtypes,
            skipped=found.skipped,
            told=lambda loaded: say("model", str(loaded)),
        )

    def restored_memory(self) -> tuple[Any, ...]:
        """What the losses remember at the newest checkpoint of the training."""
        checkpoints, step = newest(self.workdir, "train")
        whole = replicated(self.mesh)
        blank = tuple(term.memory() for term in self.terms)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), blank)
        return checkpoints.restore_memory(step, like)
