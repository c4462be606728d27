"""An opened experiment on texts: weights, tokenizer, model, rows, batches, objective, scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from dpo_jax.config import Config, LoraConfig, SamplingConfig, Source, TrainConfig, as_mapping
from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.data.encoding import Rules, tokenization_fingerprint
from dpo_jax.data.order import UnevenLabels
from dpo_jax.data.rows import DataRows
from dpo_jax.data.shapes import Packing
from dpo_jax.errors import UserError, sized_by
from dpo_jax.experiments.experiment import Experiment, newest
from dpo_jax.experiments.losses import is_unpaired, needs_mismatched, read_terms, soft_labelled
from dpo_jax.experiments.rows import (
    check_new_tokens,
    check_rows,
    check_samples,
    digest_rows,
    facts_of_reading,
    present,
    read_completions,
    read_rows,
    rules_of,
    several,
    tell_long,
    with_date,
)
from dpo_jax.experiments.samples import Sampler, Samples, make_sampling
from dpo_jax.files import digest
from dpo_jax.mesh import replicated
from dpo_jax.models.attention import BACKENDS, choose_attention
from dpo_jax.models.model import Model, make_model
from dpo_jax.models.spec import Spec
from dpo_jax.objectives.preference import moving, preference_objective
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import locate, mistake
from dpo_jax.reference.fingerprint import Fingerprint
from dpo_jax.reference.score import Score, Scorer, make_scorer
from dpo_jax.reference.store import Scores
from dpo_jax.runs.facts import Facts
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.types import HostBatch, Knobs, Lora, Objective, Params, Prompt, TokenRow
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


class TextExperiment(Experiment[Config]):
    """One experiment on texts, opened."""

    batch_axes = BATCH_AXES
    score_type = Scores
    tell_long = staticmethod(tell_long)

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
        resolved = resolve_spec(self.source)
        if resolved.unknown:
            say("model", f"config.json has keys that nobody knows, left unread: {', '.join(resolved.unknown)}")
        return resolved

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
            choice = choose_attention(options.attention, spec, options.dtype, self.device)
        except ValueError as error:
            raise UserError(f"{locate('model.attention', self.origins)}: model.attention: {error}") from None
        if choice.why:
            say("model", f"attention: {choice.name}, because {choice.why}")
        return choice.name

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
        """The model's own tokenizer, which ends responses with tokens that the model has."""
        vocabulary = self.resolved.spec.vocabulary
        return self.source.check_stop_tokens(self.source.tokenizer(), vocabulary)

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return self.source.stop_tokens(self.tokenizer)

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

    def sampler(self, prompts: Sequence[Prompt], drawing: SamplingConfig) -> Sampler:
        """The sampler of responses to these prompts, each formatted and cut as in training."""
        return make_sampling(
            self.model,
            self.tokenizer,
            prompts,
            drawing,
            rules=self.rules,
            stop_tokens=self.stop_tokens,
            row_multiple=self.row_multiple,
        )

    def evaluation_sampler(self, prompts: Sequence[Prompt], *, samples: int = 1) -> Sampler:
        """The sampler of the evaluation, of `samples` responses to each of these prompts."""
        options = self.config.evaluation
        same = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "batch_rows")}
        return self.sampler(prompts, SamplingConfig(samples=samples, **same))

    def sample(self, command: str, prompts: Sequence[Prompt], params: Params, who: str) -> Samples:
        """Responses to prompts as `sampling` of the configuration says; `command` and `who` are for messages."""
        options = self.config.sampling
        total = len(prompts) * options.samples
        say(command, f"{total} responses to {len(prompts)} prompts from {who}")
        with Progress(command, total, unit="responses") as progress:
            key, keep = jax.random.key(self.config.seed), self.keeper(command)
            return self.sampler(prompts, options)(params, key, progress.update, keep)

    def check_sampling(self) -> None:
        """Refuses responses for which the model has not learned positions enough."""
        new = self.config.sampling.max_new_tokens
        check_new_tokens("sampling.max_new_tokens", new, self.config, self.origins, self.resolved.spec)

    @property
    def tiles(self) -> dict[str, int]:
        """Sizes of the tiles of logits."""
        return {f"tile_{name}": size for name, size in dataclasses.asdict(self.config.tiles).items()}

    @cached_property
    def terms(self) -> list[Term]:
        """The losses of the objective, with their options."""
        return read_terms(self.config.loss, self.origins)

    @property
    def is_labelled(self) -> bool:
        """True if the losses read labelled completions."""
        return is_unpaired(self.config.loss)

    @property
    def rules(self) -> Rules:
        """The rules by which text becomes tokens."""
        return rules_of(self.config, self.resolved)

    def begin(self) -> None:
        """Makes the working directory, turns the compile cache on and fixes the day of the run."""
        super().begin()
        self.fix_date()

    def fix_date(self) -> None:
        """Sets `data.date`, where a chat template reads the clock, to the day of the first command of the run."""
        self.config = with_date(self.config, self.run, lambda: self.tokenizer)

    def read(self, name: str, sources: Sequence[Source], *, limit: int | None = None) -> DataRows:
        """The rows of some sources, the first `limit` of them; `name` is their key in the configuration."""
        return read_rows(self.config, self.origins, self.tokenizer, self.rules, name, sources, limit=limit)

    @cached_property
    def train_data(self) -> DataRows:
        """The training rows, in data order."""
        return self.read("data.train", self.config.data.train)

    @cached_property
    def eval_data(self) -> DataRows:
        """The held-out rows; may be empty."""
        return self.read("data.eval", self.config.data.eval)

    @property
    def sft_data(self) -> DataRows:
        """The rows of the fine-tuning."""
        section = self.config.sft
        assert section is not None
        name, sources, seed = "sft.data.train", section.data.train, self.sft_seed
        return read_completions(self.config, self.origins, self.tokenizer, self.rules, name, sources, seed=seed)

    @property
    def spec(self) -> Spec:
        """The sizes of the model."""
        return self.model.spec

    @property
    def has_heldout(self) -> bool:
        """True if the configuration names held-out rows."""
        return bool(self.config.data.eval)

    def scoring_facts(self) -> dict[str, str]:
        """Named facts that decide how text becomes tokens."""
        return tokenization_fingerprint(self.tokenizer, self.rules)

    def facts_of_rows(self, name: str, data: DataRows) -> Facts:
        """Digests of rows and their columns, and of what makes tokens of them."""
        return {f"rows of {name}": digest_rows(data), **self.scoring_facts()}

    def facts_of_reading(self, trained: Mapping[str, Any]) -> Facts:
        """The tokenizer, and the template where it is called as it was in the training."""
        return facts_of_reading(self.scoring_facts(), as_mapping(self.config)["data"], trained["data"])

    @property
    def packing(self) -> Packing:
        """The form of batches, with the layouts whose sequences attention must be told."""
        return Packing(self.config.data.layout, self.row_multiple, BACKENDS[self.attention].unpacks)

    def scoring_batches(self, rows: Sequence[TokenRow]) -> Iterator[HostBatch]:
        """Every row once, in batches of `reference.batch_pairs`."""
        return evaluation_batches(rows, pairs=self.config.reference.batch_pairs, packing=self.packing)

    def pretrained(self, *, held: bool = False) -> Params:
        """The pretrained parameters, on the mesh: float32, or as they are held where they are not trained."""
        resolved, model = self.resolved, self.model
        dtypes = model.held_dtypes() if held else None
        return load_params(
            self.source,
            model,
            resolved.rules,
            self.mesh,
            dtypes=dtypes,
            skipped=resolved.skipped,
            told=lambda loaded: say("model", str(loaded)),
        )

    def batches(self, train: TrainConfig, data: DataRows, *, seed: int, scores: Scores | None = None) -> Batches:
        """Batches of a preference training on these rows."""
        if data.margin_B is not None:
            say("train", "data.train: the column margin is read by `dpo-jax reward` alone, and by no loss here")
        self.check_columns(data)
        columns = present(
            loss_weight_B=data.weight_B,
            soft_label_B=data.soft_label_B,
            source_B=several(data),
            reference_logps_BP=scores and scores.logps_nP,
            reference_heads_BP=scores and scores.heads_nP,
        )
        return self.batches_of(train, data.rows, seed=seed, columns=columns, desirable=data.desirable)

    def check_columns(self, data: DataRows) -> None:
        """Refuses soft labels that a loss cannot read, as a UserError."""
        unread = [term.name for term in self.terms if not term.reads_soft_labels]
        if data.soft_label_B is not None and unread:
            raise UserError(
                f"data.train has soft labels, which {unread[0]} cannot read. Allowed: "
                f"{', '.join(soft_labelled())}, and sft beside them; or take the column soft_label out of the rows."
            )

    def batches_of(self, train: TrainConfig, rows: Sequence[TokenRow], *, seed: int, **more: Any) -> Batches:
        """Batches of any training on texts; `more` are further arguments of `Batches`."""
        try:
            return Batches(
                rows,
                batch_pairs=train.batch_pairs,
                micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
                seed=seed,
                order=self.config.data.order,
                packing=self.packing,
                **more,
            )
        except UnevenLabels as error:
            raise mistake("train.batch_pairs", self.origins, str(error)) from None

    def objective(self, data: DataRows) -> Objective:
        """The objective of a preference training; of several sources each has metrics of its own."""
        reference = self.config.reference
        return preference_objective(
            self.model.apply,
            self.terms,
            adapter=self.model.lora is not None,
            live=self.live_reference,
            refresh=moving(reference.update_every, reference.update_share) if reference.update_every else None,
            sources=data.sources,
            **self.tiles,
        )

    def hyperparams(self, step: int) -> Knobs:
        """Traced options of every loss at a step, counted from 0."""
        return {"losses": [term.knobs(step) for term in self.terms]}

    def why_no_store(self) -> str | None:
        """The reason for which training cannot read the reference's log-probs from a store; None if it can."""
        every = self.config.reference.update_every
        if every:
            return (
                f"the reference moves to the policy every {every} steps (reference.update_every), so that stored "
                "log-probs would soon be of another model; it runs in every step instead"
            )
        whole = [term.name for term in self.terms if term.entry.needs_distribution]
        if whole:
            return (
                f"{whole[0]} reads the reference's whole distribution at every token, which no store holds; the "
                "reference runs in every step instead"
            )
        if self.config.lora and not self.config.reference.store:
            return (
                "the reference is the base under the adapter, which is at hand in every step (name a reference.store, "
                "and it scores every row once instead)"
            )
        return None

    def store_folder(self, fingerprint: Fingerprint, *, heldout_only: bool = False) -> Path:
        """The store of this model on these sources, named by what the user calls them."""
        config = self.config
        root = Path(config.reference.store) if config.reference.store else self.run.stores
        weights = str(self.sft_folder) if config.sft else config.model.weights
        sources = (*(() if heldout_only else config.data.train), *config.data.eval)
        named: list[Any] = [weights, [dict(source) for source in sources]]
        if any({"weight", "flip"} & source.keys() for source in sources):  # the seed draws the rows
            named.append(config.seed)
        if self.is_labelled:  # other rows of the same file
            named.append("mismatched" if needs_mismatched(config.loss) else "unpaired")
        name = Path(weights.removeprefix("package:")).name or "model"
        return root / f"{name}-{digest(json.dumps(named, sort_keys=True).encode())[:12]}"

    def stored_rows(self, *, heldout_only: bool = False) -> list[Sequence[TokenRow]]:
        """The rows of both splits, or of the held-out one."""
        train = [] if heldout_only else [self.train_data.rows]
        return [*train, *([self.eval_data.rows] if self.has_heldout else [])]

    def restored_memory(self) -> tuple[Any, ...]:
        """The loss state at the newest checkpoint of the training."""
        checkpoints, step = newest(self.workdir, "train")
        whole = replicated(self.mesh)
        blank = tuple(term.memory() for term in self.terms)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), blank)
        return checkpoints.restore_loss_state(step, like)
