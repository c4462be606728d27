"""What commands do with an experiment on pictures or clips.

Dimension key: n rows, P members of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config.pictures import QualityJudge
from dpo_jax.data.pictures import Pictures, check_pictures
from dpo_jax.data.pictures.layouts import Wanted
from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.experiments import data_reports, picture_evaluation, picture_samples
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.experiments.steps import Exported, Start, Steps
from dpo_jax.experiments.training import fit, make_training
from dpo_jax.losses import preference_score
from dpo_jax.objectives.diffusion import denoising_objective, scoring_objective
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import located
from dpo_jax.reference.store import Errors, Store
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.report import PICTURES
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Training
from dpo_jax.weights.dit import dit_config, export_dit


class PictureSteps(PictureExperiment, Steps):
    """An experiment on pictures or clips."""

    kind = "pictures"
    report_kind = PICTURES
    reward_loss = staticmethod(preference_score)

    def check_inputs(self, *sections: str) -> None:
        """Refuses sources that cannot be opened, or whose first row cannot be used, and judges that cannot be."""
        config, pairs = self.config, self.config.pairs
        wanted = Wanted(self.shape, config.pictures.classes, config.pictures.text_width)
        preferences = "labelled" if self.is_labelled else "pairs"
        for key, layout, sources in (
            ("sft.data.train", "samples", config.sft.data.train if config.sft else ()),
            ("data.train", preferences, config.data.train),
            ("data.eval", preferences, config.data.eval),
            ("evaluation.classifier", "samples", config.evaluation.classifier),
        ):
            if not sections or key.startswith(sections):
                with located(key, self.origins):
                    check_pictures(sources, layout=layout, wanted=wanted, on_error=config.data.on_error)
        for key, judge in (("evaluation.judge", config.evaluation.judge), ("pairs.judge", pairs and pairs.judge)):
            if isinstance(judge, QualityJudge):
                picture_evaluation.check_quality(judge, config.pictures, f"{self.at(key)}: {key}")
            elif judge and judge.model is not None and Path(judge.model).resolve() != self.workdir.resolve():
                with located(f"{key}.model", self.origins):
                    picture_evaluation.other_run(self, judge.model)

    def before_sft(self) -> None:
        """Reads and checks the rows that are there already."""
        if self.config.data.train:
            _ = self.train_data, self.eval_data

    @property
    def train_labels(self) -> np.ndarray | None:
        """The labels of the training rows, bool [n]; None where they are pairs."""
        return np.array([row.desirable for row in self.train_data.rows], bool) if self.is_labelled else None

    def check(self) -> None:
        """Refuses a model or a loss that cannot be, and says that the reference runs in every step."""
        _ = self.term, self.model
        if reason := self.why_no_store():
            say("reference", f"no store: {reason}")

    def make_missing_pairs(self) -> None:
        """Makes the pairs of the model's own samples, where they are missing."""
        picture_samples.make_missing(self)

    def sft_training(self) -> Training:
        """Pre-training on samples alone."""
        section, model, seed = self.config.sft, self.sft_model, self.sft_seed
        assert section is not None
        average = section.average
        data = self.read("sft.data.train", section.data.train, "samples", seed=seed)
        start = Start(self.load_pretrained)
        return make_training(
            section,
            stage="sft",
            folder=self.sft_folder,
            model=model,
            start=start.take,
            frozen=self.pretrained if average else None,  # another copy: it moves
            facts=self.facts_of_training("sft.data.train", data, self.sft_folder, start, frozen=False),
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

    @property
    def reward_needs_start(self) -> bool:
        """True if the scorer learns from the model's own samples."""
        return self.config.pairs is not None

    def reward_training(self, term: Term) -> Training:
        """A scorer's training, from random parameters."""
        section, model, seed = self.config.reward, self.reward_model, self.config.seed
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
            facts=lambda: self.facts_of_rows("data.train", self.train_data),
            hyperparams=lambda step: {"options": term.knobs(step)},
            seed=seed,
        )

    def heldout_rewards(self, term: Term) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, P] of the held-out pairs, and their losses [n]."""
        score, rows = picture_evaluation.reward_scores(self), self.eval_data.rows
        scores_nP = np.stack([score(picture_evaluation.members(rows, slot)) for slot in (0, 1)], axis=1)
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
        return data_reports.reports_of_pictures(splits)

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
        picture_samples.make(self, *self.load_start())

    def write_samples(self, *, prompts: str | None, output: str | None, reference: bool) -> None:
        """Writes pictures or clips into WORKDIR/samples, or the folder `output`."""
        if prompts is not None:
            raise UserError("command line: --prompts is of experiments on texts; classes are shown in turn.")
        picture_samples.write(self, output=output, reference=reference)

    def why_no_export(self) -> str | None:
        """The reason for which Diffusers has no class for this model; None if it has."""
        try:
            dit_config(self.model.spec)
        except UserError as error:
            return str(error)
        return None

    def export(self, *, what: Exported, card: Callable[[Collection[str]], str]) -> None:
        """Writes a Diffusers folder; an adapter is merged. The format has no card."""
        if what == "base":
            raise UserError("command line: export --base is of experiments on texts.")
        stage, where = ("sft", self.sft_folder) if what == "fine-tuned" else ("train", self.workdir)
        folder, made = self.place_of(what, where, stage)
        params = self.start_params(held=False) if what == "fine-tuned" else self.merged_params()
        dtype = self.config.export.dtype
        export_dit(folder, params, self.model, dtype=dtype, made=made)
        say("export", f"wrote {folder} ({dtype}, for Diffusers' DiTTransformer2DModel)")

    @property
    def shown_samples(self) -> int:
        """Number of sampled pictures in its report."""
        return self.config.evaluation.shown

    def evaluate(self) -> Evaluation:
        """The evaluation of the newest checkpoint; the samples go into WORKDIR/samples.npz."""
        return picture_evaluation.evaluate(self)
