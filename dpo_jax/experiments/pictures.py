"""An opened experiment on pictures or clips: model, rows, batches, objective, denoising errors.

Dimension key: n rows, K draws, P members of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from dpo_jax.config import Source, TrainConfig
from dpo_jax.config.pictures import PictureConfig
from dpo_jax.data.order import UnevenLabels
from dpo_jax.data.pictures import Pictures, Shape, read_pictures
from dpo_jax.data.pictures.batches import PictureBatches, evaluation_batches
from dpo_jax.diffusion.diffuser import Diffuser, make_diffuser
from dpo_jax.diffusion.embeddings import TransformerSpec
from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES
from dpo_jax.errors import UserError, sized_by
from dpo_jax.experiments.experiment import Experiment, newest
from dpo_jax.experiments.losses import read_term
from dpo_jax.experiments.picture_model import ErrorScore, Sample, make_error_score, make_sampling, score_pictures
from dpo_jax.losses import LOSSES
from dpo_jax.mesh import place
from dpo_jax.objectives.diffusion import Noise, preference_objective
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import locate, located, mistake
from dpo_jax.reference.fingerprint import Fingerprint, rows_digest
from dpo_jax.reference.store import Errors
from dpo_jax.runs.facts import Facts
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.scorers.networks import Scorer, ScorerSpec, make_scorer
from dpo_jax.training.state import param_shardings
from dpo_jax.types import Knobs, Lora, Objective, Params, PictureRow
from dpo_jax.weights.adapter import adapted_paths
from dpo_jax.weights.dit import dit_rules, dit_spec, load_dit, open_dit
from dpo_jax.weights.source import WeightsSource

_TEMPORAL_WEIGHT = 0.5


class PictureExperiment(Experiment[PictureConfig]):
    """One experiment on pictures or clips, opened."""

    batch_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "samples_BPX": ("rows",),
        "words_BW": ("rows",),
        "epoch_B": ("rows",),
        "weight_B": (None,),
        "shown_B": ("rows",),
        "desirable_B": (None,),
        "loss_weight_B": (None,),
        "reference_errors_BP": (None,),
    }
    score_type = Errors

    @property
    def shape(self) -> Shape:
        """The shape that every sample is brought to."""
        wanted = self.config.pictures
        return Shape(wanted.frames, wanted.height, wanted.width, wanted.channels)

    @property
    def shape_X(self) -> tuple[int, ...]:
        """The axes of one sample."""
        shape = self.shape
        frames = () if shape.frames is None else (shape.frames,)
        return (*frames, shape.height, shape.width, shape.channels)

    @property
    def noise(self) -> Noise:
        """Schedule and prediction, as functions of `diffusion` take them."""
        model = self.config.model
        return {"schedule": SCHEDULES[model.schedule], "prediction": PREDICTIONS[model.prediction]}

    @cached_property
    def source(self) -> WeightsSource | None:
        """The folder of weights, opened; None where the model begins with random ones."""
        weights = self.config.model.weights
        return None if weights is None else open_dit(Path(weights))

    @cached_property
    def spec(self) -> TransformerSpec:
        """The sizes of the model."""
        pictures, model = self.config.pictures, self.config.model
        if self.source is None:
            return TransformerSpec(
                channels=pictures.channels,
                patch=model.patch,
                base=max(pictures.height, pictures.width) // model.patch,
                layers=model.layers,
                heads=model.heads,
                head_size=model.head_size,
                mlp_width=model.mlp_width,
                frame_patch=model.frame_patch,
                classes=pictures.classes,
                text_width=pictures.text_width,
            )
        spec = dit_spec(self.source)
        if (spec.channels, spec.classes) != (pictures.channels, pictures.classes) or pictures.text_width:
            raise UserError(
                f"{locate('pictures', self.origins)}: pictures: the model in {self.source.where} is of {spec.channels} "
                f"channels and {spec.classes} classes; set pictures.channels and pictures.classes to that."
            )
        sides = (pictures.height, pictures.width)
        if any(side % spec.patch for side in sides):
            at = locate("pictures", self.origins)
            raise UserError(f"{at}: pictures: {sides[0]} x {sides[1]} is no multiple of its patches of {spec.patch}.")
        return spec

    @cached_property
    def model(self) -> Diffuser:
        """The policy; with the adapter of `lora`, if there is one."""
        wanted, lora = self.config.lora, None
        if wanted:
            try:
                paths = adapted_paths(dit_rules(), wanted.targets)
            except ValueError as error:
                raise UserError(f"{locate('lora.targets', self.origins)}: lora.targets: {error}") from None
            lora = Lora(wanted.rank, wanted.alpha, wanted.dropout, paths)
        return self._make_model(lora)

    @cached_property
    def sft_model(self) -> Diffuser:
        """The model without an adapter: all of it is pre-trained."""
        return self._make_model(None)

    def _make_model(self, lora: Lora | None) -> Diffuser:
        options = self.config.model
        return make_diffuser(self.spec, dtype=options.dtype, remat=options.remat, lora=lora)

    def pretrained(self, *, held: bool = False) -> Params:
        """The weights of the folder, or random ones, on the mesh."""
        model, config = self.sft_model, self.config
        if self.source is not None:
            dtypes = model.held_dtypes() if held else None
            return load_dit(self.source, model, self.mesh, dtypes=dtypes, told=lambda loaded: say("model", str(loaded)))
        if config.sft is None:
            raise UserError(
                f"{locate('model', self.origins)}: model: there are no weights; name a folder in model.weights, or "
                "pre-train: add `sft:`. Without them there is `dpo-jax reward` alone."
            )
        born = jax.jit(model.init, out_shardings=param_shardings(self.mesh, model.tree))
        return born(jax.random.key(self.sft_seed))

    def fine_tuned(self) -> Params:
        """The result of the pre-training: the moving average of its parameters, if it keeps one."""
        assert self.config.sft is not None
        if not self.config.sft.average:
            return super().fine_tuned()
        checkpoints, step = newest(self.sft_folder, "sft")
        return checkpoints.restore_frozen(step, self.placed_shapes(self.sft_model))

    @cached_property
    def term(self) -> Term:
        """The loss with its options."""
        loss, origins = self.config.loss[0], self.origins

        def where(option: str) -> str:
            return f"{locate(f'loss.0.options.{option}', origins)}: loss"

        return read_term(loss.name, LOSSES[loss.name], loss.options, where)

    @property
    def temporal_weight(self) -> float:
        """Of the difference of neighbouring frames in the loss."""
        clips = (self.config.pictures.frames or 1) > 1
        wanted = self.config.loss[0].temporal_weight
        return (_TEMPORAL_WEIGHT if clips else 0.0) if wanted is None else wanted

    @property
    def terms(self) -> list[Term]:
        """The loss, alone."""
        return [self.term]

    def hyperparams(self, step: int) -> Knobs:
        """Traced options of the loss at a step, counted from 0."""
        return {"options": self.term.knobs(step)}

    def objective(self, data: Pictures) -> Objective:
        """The objective of a preference training."""
        return preference_objective(
            self.model.apply,
            self.term.entry,
            adapter=self.model.lora is not None,
            noise=self.noise,
            seed=self.config.seed,
            draws=self.config.reference.draws,
            temporal_weight=self.temporal_weight,
        )

    def batches(self, train: TrainConfig, data: Pictures, *, seed: int, scores: Errors | None = None) -> PictureBatches:
        """Batches of any training on these rows."""
        errors_nKP = None
        if scores is not None:
            errors_nKP = scores.errors_nP.reshape(len(data.rows), self.config.reference.draws, -1)
        try:
            return PictureBatches(
                data.rows,
                batch_pairs=train.batch_pairs,
                micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
                seed=seed,
                order=self.config.data.order,
                reference_errors=errors_nKP,
            )
        except UnevenLabels as error:
            raise mistake("train.batch_pairs", self.origins, str(error)) from None

    @cached_property
    def score(self) -> ErrorScore:
        """Denoising errors of a batch at one draw, compiled once for all commands."""
        return make_error_score(self.model.apply, self.noise, seed=self.config.seed)

    def scorer(
        self,
        params: Params,
        rows: Sequence[PictureRow],
        *,
        progress: Callable[[int], None] = lambda rows: None,
        draws: int | None = None,
    ) -> tuple[list[str], Errors]:
        """Row ids and denoising errors of rows at `draws` draws, by default as many as the store has."""
        count = draws or self.config.reference.draws or 1
        with sized_by("reference.batch_pairs"):
            batches = evaluation_batches(rows, pairs=self.config.reference.batch_pairs)
            return score_pictures(self.score, params, batches, draws=count, place=self.place, progress=progress)

    def sampler(self, *, seed: int) -> Sample:
        """The sampler that `sampling` of the configuration describes."""
        return make_sampling(
            self.model.apply,
            self.noise,
            self.config.sampling,
            self.shape_X,
            seed=seed,
            row_multiple=self.row_multiple,
            place=lambda array: place(self._sharding(("rows",), array), array),
        )

    def what_to_show(self, count: int, *, group: int = 1) -> np.ndarray | None:
        """Classes in turn, int32 [count], each `group` times, or text embeddings; None: nothing.

        The texts are those of held-out rows, of those for training, or of pre-training.
        """
        config, places = self.config, np.arange(count) // group
        if config.pictures.classes:
            return (places % config.pictures.classes).astype(np.int32)
        if not config.pictures.text_width:
            return None
        if config.data.train:
            rows = (self.eval_data if self.has_heldout else self.train_data).rows
        else:
            assert config.sft is not None
            rows = self.read("sft.data.train", config.sft.data.train, "samples").rows
        return np.stack([np.asarray(rows[place % len(rows)].shown) for place in places]).astype(np.float32)

    @cached_property
    def reward_model(self) -> Scorer:
        """The scorer that `reward` describes."""
        pictures, reward = self.config.pictures, self.config.reward
        assert reward is not None
        spec = ScorerSpec(
            channels=pictures.channels,
            clips=pictures.frames is not None,
            widths=(reward.first_width, reward.second_width),
            head_width=reward.head_width,
        )
        return make_scorer(spec, dtype=reward.dtype)

    def why_no_store(self) -> str | None:
        """The reason for which training cannot read the reference's errors from a store; None if it can."""
        if self.config.reference.draws:
            return None
        return (
            "the reference runs beside the policy in every step; `reference: {draws: 8}` stores its errors at 8 draws "
            "of time and noise for each row instead"
        )

    @property
    def weights_file(self) -> str | None:
        """The setting that names the weights; None where the model begins with random ones."""
        return None if self.source is None else "model.weights"

    def facts_of_rows(self, name: str, data: Pictures) -> Facts:
        """Digests of rows, which are those of their pixels, with their weights."""
        weights_n = np.array([np.nan if row.weight is None else row.weight for row in data.rows], np.float32)
        rows = rows_digest([row.row_id for row in data.rows], [weights_n])
        return {f"rows of {name}": f"{len(data.rows)} rows {rows}"}

    def scoring_facts(self) -> dict[str, str]:
        """Named facts that decide the errors of rows."""
        config = self.config
        return {
            "noise": f"{config.model.schedule}, {config.model.prediction}",
            "draws": f"{config.reference.draws} of seed {config.seed}",
            "shape": str(self.shape),
        }

    def store_folder(self, fingerprint: Fingerprint, *, heldout_only: bool = False) -> Path:
        """The store of this model; runs of other draws have their own."""
        root, config = Path(self.config.reference.store or self.run.stores), self.config
        return root / f"pictures-{fingerprint['weights'][:12]}-{config.reference.draws}-of-{config.seed}"

    def stored_rows(self, *, heldout_only: bool = False) -> list[Sequence[PictureRow]]:
        """The training rows; held-out ones are scored at draws of their own."""
        return [self.train_data.rows]

    @property
    def is_labelled(self) -> bool:
        """True if the loss reads labelled samples."""
        return self.term.entry.reads_labels

    @property
    def pairs_file(self) -> Path:
        """The pairs that the model made itself, for training."""
        return Run(self.pairs_folder).pictures

    @property
    def heldout_file(self) -> Path:
        """The same, held out."""
        return Run(self.pairs_folder).heldout_pictures

    def read(self, name: str, sources: Sequence[Source], layout: Any, *, seed: int | None = None) -> Pictures:
        """Rows of some sources; `name` is their key in the configuration. What was left out is said."""
        config = self.config
        with located(name, self.origins):
            pictures = read_pictures(
                sources,
                layout=layout,
                shape=self.shape,
                classes=config.pictures.classes,
                text_width=config.pictures.text_width,
                on_error=config.data.on_error,
                seed=config.seed if seed is None else seed,
            )
        notes = [f", {count} skipped ({reason})" for reason, count in pictures.skipped.items()]
        notes += [f", {pictures.ties} ties left out"] if pictures.ties else []
        say("data", f"{name}: {len(pictures.rows)} rows{''.join(notes)}")
        return pictures

    @cached_property
    def train_data(self) -> Pictures:
        """The preference rows: pairs, or, where the loss reads those, labelled samples."""
        return self._preferences("data.train", self.config.data.train or self._own(self.pairs_file))

    @cached_property
    def eval_data(self) -> Pictures:
        """The held-out rows; may be empty."""
        if not self.has_heldout:
            return Pictures([], {}, 0)
        return self._preferences("data.eval", self.config.data.eval or self._own(self.heldout_file))

    @property
    def has_heldout(self) -> bool:
        """True if there are held-out rows, or will be."""
        config = self.config
        return bool(config.data.eval or (config.pairs and config.pairs.heldout))

    def _own(self, file: Path) -> tuple[Source, ...]:
        kind = "images" if self.config.pictures.frames is None else "videos"
        source: dict[str, Any] = {kind: str(file)}
        return (source | ({"unpair": True} if self.is_labelled else {}),)

    def _preferences(self, name: str, sources: Sequence[Source]) -> Pictures:
        return self.read(name, sources, "labelled" if self.is_labelled else "pairs")
