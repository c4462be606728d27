"""An opened experiment as the commands see it: its trainings, its store, and what is made of them.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dpo_jax.config import as_mapping
from dpo_jax.config.resume import deciding, refuse_changes
from dpo_jax.data.order import UnevenLabels, require_both_labels
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import UserError
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.evaluation.records import BestOf, Evaluation
from dpo_jax.experiments.experiment import Experiment, newest
from dpo_jax.experiments.losses import read_term
from dpo_jax.experiments.stores import UNITS, check_scores
from dpo_jax.experiments.training import check_batches, preference_training
from dpo_jax.files import digest
from dpo_jax.losses import Loss
from dpo_jax.objectives.terms import Term
from dpo_jax.reading import mistake
from dpo_jax.reference.store import Store
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.report import Kind
from dpo_jax.runs.facts import Facts, facts_of, refuse_other
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.loop import After
from dpo_jax.training.state import TrainState
from dpo_jax.training.training import Training
from dpo_jax.types import Params
from dpo_jax.weights.export import Made, check_export_place, free_place

Exported = Literal["trained", "fine-tuned", "base"]
"""The weights that are exported."""

_CHECKED_ROWS = 4
_NAMING = ("data", "model", "sft", "pairs", "sampling", "pictures", "scratch", "seed", "lora")
"""Sections that decide which rows are read, how, and what the policy starts from."""


class Start:
    """The parameters a training starts from: loaded once, and let go when the training takes them over."""

    def __init__(self, load: Callable[[], tuple[Params, Facts]]):
        self._load, self._params = load, None
        self._facts: Facts | None = None

    def __call__(self) -> Params:
        """Returns them, and keeps them for the next call."""
        if self._params is None:
            self._params, self._facts = self._load()
        return self._params

    def facts(self, *, keep: bool) -> Facts:
        """Returns their digests; `keep` says whether they are still needed."""
        if self._facts is None:
            self()
        if not keep:
            self.forget()
        assert self._facts is not None
        return self._facts

    def take(self) -> Params:
        """Returns them to who uses their buffers up."""
        params = self()
        self.forget()
        return params

    def forget(self) -> None:
        """Lets go of them."""
        self._params = None


class Steps(Experiment):
    """An experiment that commands run. A kind of data fills in its own trainings, reports, samples and files."""

    kind: ClassVar[str]
    """The data, for messages."""
    export_to: Path | None = None
    """The folder for an export of the policy; None: WORKDIR/export."""
    optimizer_facts: Mapping[str, str] = {"optimizer": "as configured"}
    """What tells the optimizer of `train` from another one."""

    @abc.abstractmethod
    def check(self) -> None:
        """Refuses now what would fail after hours, and says what is unusual about the losses."""

    def check_inputs(self, *sections: str) -> None:
        """Refuses files of the configuration that cannot be read; of all, or of these sections of it."""

    def prepare(self) -> None:
        """Makes the weights that training starts from, where they are to be made from nothing."""

    def before_sft(self) -> None:
        """Reads and checks all rows before hours of fine-tuning, where they are there already."""

    def read_all(self) -> None:
        """Reads and checks the rows of both splits, whether a step has enough of them, and the run is still on them."""
        _ = self.train_data, self.eval_data
        if sealed := self.run.newest_checkpoint():
            refuse_changes("train", sealed.record, {**sealed.record, "config": as_mapping(self.config)})
            rows = self.facts_of_rows("data.train", self.train_data)
            refuse_other("train", self.workdir, facts_of(sealed.record), rows)
        batch_pairs, desirable = self.config.train.batch_pairs, self.train_labels
        check_batches(len(self.train_data.rows), batch_pairs, "train", self.origins)
        if desirable is not None:
            try:
                require_both_labels(desirable, batch_pairs=batch_pairs)
            except UnevenLabels as error:
                raise mistake("train.batch_pairs", self.origins, str(error)) from None

    @property
    @abc.abstractmethod
    def train_labels(self) -> np.ndarray | None:
        """The labels of the training rows, bool [n]; None where they are pairs."""

    def make_missing_pairs(self) -> None:
        """Makes the pairs that the experiment samples itself, where they are missing."""

    @property
    def only_fine_tunes(self) -> bool:
        """True if there is nothing to train on but the rows of the fine-tuning."""
        return False

    @abc.abstractmethod
    def sft_training(self) -> Training:
        """The training of `sft`."""

    def training(self, store: Store | None, start: Start) -> Training:
        """The training of `train`: checked before its first step, and watched during it."""
        data = self.train_data
        scores = store.lookup(row_ids_of(data.rows)) if store else None
        if Checkpoints(self.run.checkpoints).latest() is None:
            self.say_how_fitted(store, start)
        elif not self.model.lora:
            start.forget()  # a resumed policy is read from there: the reference must not lie beside it
        taken: dict[str, Any] = {"frozen" if self.model.lora else "start": start.take}
        taken["facts"] = self.facts_of_training("data.train", data, self.workdir, start, frozen=bool(self.model.lora))
        training = preference_training(self, data, scores, check=lambda state: self.check_start(state, store), **taken)
        return dataclasses.replace(training, callback=self.callback(training.steps, store))

    def facts_of_training(
        self, name: str, data: Any, folder: Path, start: Start, *, frozen: bool
    ) -> Callable[[], Facts]:
        """The digests of rows and start that decide a training in `folder`; `name` is the key of its rows.

        The start is let go where the training goes on without it: it has a checkpoint, and no use for `frozen` ones.
        """

        def facts() -> Facts:
            needed = frozen or Run(folder).newest_checkpoint() is None
            return {**self.optimizer_facts, **self.facts_of_rows(name, data), **start.facts(keep=needed)}

        return facts

    def facts_of_result(self, known: dict[str, Facts]) -> Facts:
        """Digests of the start and of the rows of both splits, which decide a training and its evaluation.

        `known` are those of experiments whose data and start are configured alike; these join them.
        """
        settings = deciding("train", as_mapping(self.config)).items()
        named = {name: value for name, value in settings if name.startswith(_NAMING)}
        losses = [term.name for term in self.terms]  # which decide what becomes of a row
        key = json.dumps([named, losses, str(self.sft_folder)], sort_keys=True, default=str)
        if key not in known:
            trained = {**self.facts_of_rows("data.train", self.train_data), **self.load_start()[1]}
            known[key] = {**trained, **self.facts_of_rows("data.eval", self.eval_data)}
        return known[key]

    def say_how_fitted(self, store: Store | None, start: Start) -> None:
        """Says how well the start of the policy knows the chosen responses."""

    def callback(self, steps: int, store: Store | None) -> After | None:
        """The callback after each of `steps` steps: measurements, and losses that are steered by them."""
        return None

    def check_start(self, state: TrainState, store: Store | None) -> None:
        """Checks that before the first step policy and reference say the same.

        Raises:
            UserError: they do not; the message says what to check.
        """
        if store is None and not self.live_reference:
            return
        rows = self.train_data.rows[:_CHECKED_ROWS]
        row_ids, now = self.scorer(self.policy_of(state), rows)
        if store:
            stored, where = store.lookup(row_ids), str(store.folder)
        else:
            stored, where = self.scorer(state.frozen or {}, rows)[1], "the reference beside it"
        check_scores(row_ids, now, stored, where=where, dtype=self.config.model.dtype)
        self.check_known_losses(row_ids, now, stored, where)
        off, unit = np.abs(now[0] - stored[0]).max(), UNITS[type(now)]
        say("train", f"step 0: policy and reference agree on {len(rows)} rows to {off:.1e}{unit}")

    def check_known_losses(self, row_ids: Sequence[str], now: Any, stored: Any, where: str) -> None:
        """Checks each loss of these rows against its known value where policy and reference are one."""

    @abc.abstractmethod
    def score_lines(self, store: Store[Any]) -> list[dict[str, Any]]:
        """The stored scores of the training rows in words, an object for each."""

    @property
    def analyses(self) -> bool:
        """True if the configuration asks for the analysis of log-probs."""
        return False

    def check_analysis(self) -> None:
        """Refuses what cannot be analysed."""

    def analyse(self) -> Analysis:
        """The analysis of the newest checkpoint."""
        raise UserError(f"analyse: {self.kind} have no log-probs to be analysed.")

    @property
    @abc.abstractmethod
    def has_evaluation(self) -> bool:
        """True if there is anything to be measured."""

    @property
    def compares_points(self) -> bool:
        """True if an evaluation has numbers by which points of a sweep are compared."""
        return self.has_evaluation

    @property
    def has_best_of(self) -> bool:
        """True if the best of n samples of the start is to be shown beside the results of a sweep."""
        return False

    def shared_best_of(self) -> Sequence[BestOf]:
        """Scores of the best of n samples of the start, which all points of a sweep share."""
        return []

    reward_loss: ClassVar[Callable[..., Any]]
    """The loss of the reward model."""

    def reward_term(self) -> Term:
        """The loss of the reward model with the options of `reward`.

        Raises:
            UserError: the configuration asks for no reward model, or for one that cannot be.
        """
        config, loss = self.config.reward, self.reward_loss
        if config is None:
            raise UserError(
                "reward: the configuration has no `reward:` section, which would say how to train a reward model; "
                "`reward: {train: {epochs: 1}}` is enough."
            )
        if self.is_labelled:
            raise UserError(
                f"{self.at('loss')}: reward: a reward model learns from pairs, but with loss "
                f"{self.config.loss[0].name} the rows are labelled. Name a loss on pairs."
            )
        where = lambda name: f"{self.at(f'reward.options.{name}')}: reward"  # noqa: E731
        return read_term(loss.__name__, Loss(loss), config.options, where)

    def check_reward(self) -> None:
        """Refuses a reward model that cannot be trained."""
        self.reward_term()

    @property
    def reward_needs_start(self) -> bool:
        """True if the reward model begins as the policy does, or learns from its samples."""
        return True

    @abc.abstractmethod
    def reward_training(self, term: Term) -> Training:
        """The training of `reward`."""

    @abc.abstractmethod
    def heldout_rewards(self, term: Term) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [n, P] of the held-out pairs, and their losses [n]."""

    def heldout_groups(self) -> np.ndarray | None:
        """The group of each held-out pair, [n], where several belong together; None: each is one of its own."""
        return None

    def export_reward(self) -> None:
        """Writes the reward model for other programs, where there is a format for it."""

    @abc.abstractmethod
    def data_reports(self) -> list[SplitReport]:
        """Reports of the rows of each split."""

    def warn_of_data(self) -> None:
        """Says what is odd about the rows before training."""

    @abc.abstractmethod
    def write_pairs(self, output: str | None) -> None:
        """Samples, judges and writes new preference pairs."""

    @abc.abstractmethod
    def write_samples(self, *, prompts: str | None, output: str | None, reference: bool) -> None:
        """Writes samples of the policy, or of the reference."""

    def check_exports(self) -> None:
        """Refuses folders for exports that hold something else."""
        for run in (self.run, self.run.reward, Run(self.sft_folder)):
            for folder in (run.export, run.base):
                check_export_place(folder)

    def why_no_export(self) -> str | None:
        """The reason for which no other program has a format for this model; None if one has."""
        return None

    def place_of(self, form: str, folder: Path, stage: str) -> tuple[Path, Made]:
        """The place for an export of the newest checkpoint in a folder, and its origin; another export stays."""
        _, step = newest(folder, stage)
        seal = Run(folder).checkpoints / f"{step}.json"
        dtype = "float32" if form == "adapter" else self.config.export.dtype
        made = Made(form, step, dtype, digest(seal.read_bytes()))
        usual = self.export_to or Run(folder).export
        place = free_place(usual, made)
        if place != usual and self.export_to:
            raise UserError(f"{usual} holds another export, which stays as it is. Name another folder.")
        if place != usual:
            say("export", f"{usual} holds another export, which stays as it is: this one goes to {place}")
        return place, made

    @abc.abstractmethod
    def export(self, *, what: Exported, card: Callable[[Collection[str]], str]) -> None:
        """Writes the trained model, the result of the fine-tuning, or the weights before either, for other programs.

        `card` makes the page that lies beside the trained model, where the format has one, of the kinds of sources.
        """

    @abc.abstractmethod
    def evaluate(self) -> Evaluation:
        """The evaluation of the newest checkpoint, or of outputs that are there."""

    report_kind: ClassVar[Kind]
    """The names and the curves of its report."""

    @property
    def shown_samples(self) -> int:
        """Number of sampled pictures in its report."""
        return 0
