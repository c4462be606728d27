"""What commands do with an experiment on pictures or clips.

Dimension key: n rows, P members of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.data.pictures import Pictures
from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.experiments import picture_evaluation, picture_pairs, picture_reports
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.losses import read_term
from dpo_jax.experiments.picture_judging import in_parts, members, scorer_of
from dpo_jax.experiments.picture_samples import make_sampling, what_to_show
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.experiments.steps import Steps
from dpo_jax.experiments.training import make_training
from dpo_jax.files import write_atomic
from dpo_jax.losses import Loss, preference_score
from dpo_jax.objectives.diffusion import denoising_objective, pixels, scoring_objective
from dpo_jax.objectives.terms import Term
from dpo_jax.reference.store import Errors, Store
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.report import PICTURES
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.scorers.networks import Scorer
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Training
from dpo_jax.weights.dit import export_dit
from dpo_jax.weights.dit_config import dit_config


class PictureSteps(PictureExperiment, Steps):
    """An experiment on pictures or clips."""

    kind = "pictures"

    def check(self) -> None:
        """Refuses a loss that cannot be, and says that the reference runs in every step."""
        _ = self.term
        if reason := self.why_no_store():
            say("reference", f"no store: {reason}")

    def make_missing_pairs(self) -> None:
        """Makes the pairs of the model's own samples, where they are missing."""
        picture_pairs.make_missing(self)

    def sft_training(self) -> Training:
        """Pre-training on samples alone."""
        config, section, model = self.config, self.config.sft, self.sft_model
        assert section is not None
        seed, average = config.seed if section.seed is None else section.seed, section.average
        data = self.read("sft.data.train", section.data.train, "samples", seed=seed)
        return make_training(
            section,
            stage="sft",
            folder=self.sft_folder,
            model=model,
            start=self.pretrained,
            frozen=self.pretrained if average else None,
            objective=denoising_objective(
                model.apply, **self.noise, seed=seed, drop=section.drop_condition, average=average
            ),
            batches=self.batches(section.train, data, seed=seed),
            seed=seed,
        )

    def score_lines(self, store: Store[Errors]) -> list[dict[str, Any]]:
        """The stored errors of the training rows, draw after draw, an object for each."""
        rows, draws = self.train_data.rows, self.config.reference.draws
        errors_nKP = store.lookup([row.row_id for row in rows]).errors_nP.reshape(len(rows), draws, -1).tolist()
        return [{"row_id": row.row_id, "errors": errors} for row, errors in zip(rows, errors_nKP, strict=True)]

    @property
    def has_evaluation(self) -> bool:
        """True if there are held-out rows, or samples are asked for."""
        return self.has_heldout or bool(self.config.evaluation.samples)

    def reward_term(self) -> Term:
        """The loss of the scorer with the options of `reward`."""
        config = self.config.reward
        if config is None:
            raise UserError(
                "reward: the configuration has no `reward:` section, which would say how to train a scorer; "
                "`reward: {train: {epochs: 10}}` is enough."
            )
        if self.is_labelled:
            raise UserError(
                f"{self.at('loss')}: reward: a scorer learns from pairs, and the loss reads labelled samples."
            )
        return read_term(
            "preference_score",
            Loss(preference_score),
            config.options,
            lambda name: f"{self.at(f'reward.options.{name}')}: reward",
        )

    @property
    def reward_needs_start(self) -> bool:
        """True if the scorer learns from the model's own samples."""
        return self.config.pairs is not None

    @property
    def _scorer(self) -> Scorer:
        assert self.config.reward is not None
        return scorer_of(self.config.pictures, self.config.reward)

    def reward_training(self, term: Term) -> Training:
        """A scorer's training, from random parameters."""
        section, model, seed = self.config.reward, self._scorer, self.config.seed
        assert section is not None
        init = jax.jit(model.init, out_shardings=param_shardings(self.mesh, model.tree))
        return make_training(
            section,
            stage="reward",
            folder=self.run.reward.folder,
            model=model,
            start=lambda: init(jax.random.key(seed)),
            objective=scoring_objective(model),
            batches=self.batches(section.train, self.train_data, seed=seed),
            hyperparams=lambda step: {"options": term.knobs(step)},
            seed=seed,
        )

    def heldout_rewards(self, term: Term) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, P] of the held-out pairs, and their losses [n]."""
        model, rows = self._scorer, self.eval_data.rows
        params = self.restored(self.run.reward.folder, "reward", model)
        score = jax.jit(lambda samples: model.scores(params, pixels(samples)))
        scores_nP = np.stack([in_parts(score, members(rows, slot)) for slot in (0, 1)], axis=1)
        return scores_nP, np.asarray(preference_score(*jnp.asarray(scores_nP.T), **term.knobs(0)))

    def data_reports(self) -> list[SplitReport]:
        """Reports of each split: rows read and left out, and what is odd about the rest."""
        config = self.config
        splits: dict[str, Pictures] = {}
        if config.sft:
            splits["sft.data.train"] = self.read("sft.data.train", config.sft.data.train, "samples")
        if config.data.train or self.pairs_file.exists():
            splits["data.train"] = self.train_data
            if self.has_heldout:
                splits["data.eval"] = self.eval_data
        return picture_reports.reports_of(splits)

    def write_pairs(self, output: str | None) -> None:
        """Writes WORKDIR/pairs.parquet and heldout.parquet anew, after the pre-training where it is missing."""
        if output is not None:
            raise UserError("command line: --output is of experiments on texts; these write WORKDIR/pairs.parquet.")
        if self.config.pairs is None:
            raise UserError(
                "pairs: the configuration has no `pairs:` section; `pairs: {groups: 256, samples: 4}` is enough."
            )
        if self.config.sft:
            fit(self, self.sft_training())
        picture_pairs.make(self, self.start_params())

    def write_samples(self, *, prompts: str | None, output: str | None, reference: bool) -> None:
        """Writes evaluation.samples pictures (PNG) or clips (.npy) into WORKDIR/samples, or the folder `output`."""
        if prompts is not None:
            raise UserError("command line: --prompts is of experiments on texts; classes are shown in turn.")
        count = self.config.evaluation.samples
        if not count:
            raise UserError(f"{self.at('evaluation.samples')}: evaluation.samples is 0; it says how many to draw.")
        params = self.start_params() if reference else self.trained_params()
        shown, sample = what_to_show(self, count), make_sampling(self, seed=self.config.seed)
        with Progress("sample", count, unit="samples") as progress:
            samples = sample(params, shown, count, "samples", progress.update)
        folder, suffix = Path(output) if output else self.run.samples_folder, "npy" if samples.ndim == 5 else "png"
        by_class = shown is not None and shown.ndim == 1
        for number, each in enumerate(samples):
            at = folder / str(shown[number]) if shown is not None and by_class else folder
            at.mkdir(parents=True, exist_ok=True)
            write_atomic(at / f"{number:05d}.{suffix}", picture_pairs.encoded(np.asarray(each)))
        say("sample", f"wrote {count} files to {folder}" + (", by class" if by_class else ""))

    def why_no_export(self) -> str | None:
        """The reason for which Diffusers has no class for this model; None if it has."""
        try:
            dit_config(self.model.spec)
        except UserError as error:
            return str(error)
        return None

    def export(self, *, fine_tuned: bool, card: Callable[[], str]) -> None:
        """Writes a Diffusers folder; an adapter is merged. The format has no card."""
        folder = (self.sft_folder if fine_tuned else self.workdir) / "export"
        params = self.start_params(held=False) if fine_tuned else self.merged_params()
        dtype = self.config.export.dtype
        export_dit(folder, params, self.model, dtype=dtype)
        say("export", f"wrote {folder} ({dtype}, for Diffusers' DiTTransformer2DModel)")

    report_kind = PICTURES

    @property
    def shown_samples(self) -> int:
        """Number of sampled pictures in its report."""
        return self.config.evaluation.shown

    def evaluate(self) -> Evaluation:
        """The evaluation of the newest checkpoint; the samples go into WORKDIR/samples.npz."""
        return picture_evaluation.evaluate(self)
