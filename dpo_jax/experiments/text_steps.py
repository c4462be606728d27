"""What commands do with an experiment on texts.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import as_mapping, file_bytes
from dpo_jax.config.resume import deciding
from dpo_jax.data.chat import exported
from dpo_jax.data.sources import KINDS
from dpo_jax.data.tokens import row_ids_of
from dpo_jax.errors import UserError
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.evaluation.records import BestOf, Evaluation
from dpo_jax.experiments import data_reports, scratch, text_analysis, text_evaluation, text_samples
from dpo_jax.experiments.heldout import check_losses, prompt_groups, say_how_fitted
from dpo_jax.experiments.inputs import check_inputs
from dpo_jax.experiments.judging import TRIED, RewardExperiment
from dpo_jax.experiments.rows import present, several
from dpo_jax.experiments.steps import Exported, Start, Steps
from dpo_jax.experiments.training import make_training
from dpo_jax.experiments.watch import make_callback
from dpo_jax.files import digest, read_sealed, write_sealed
from dpo_jax.losses import bradley_terry
from dpo_jax.models.heads import trunk_of
from dpo_jax.objectives.preference import completion_objective, reward_objective, with_margins
from dpo_jax.objectives.terms import Term
from dpo_jax.reference.store import Scores, Store
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.report import TEXTS
from dpo_jax.runtime.progress import say
from dpo_jax.training.loop import After
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Training
from dpo_jax.types import Params
from dpo_jax.weights.adapter import export_adapter
from dpo_jax.weights.export import Files, Made, export_folder, free_place
from dpo_jax.weights.opening import Base, base_of
from dpo_jax.weights.reward import export_reward
from dpo_jax.weights.source import WeightsSource


class TextSteps(RewardExperiment, Steps):
    """An experiment on texts."""

    kind = "texts"
    report_kind = TEXTS
    reward_loss = staticmethod(bradley_terry)
    _inputs_are_checked = False

    def check_inputs(self, *sections: str) -> None:
        """Refuses sources, files and judges that cannot be opened, and rows that cannot be used."""
        if not self._inputs_are_checked:
            _ = self.terms  # which decide what rows are wanted
            check_inputs(self.config, self.origins, *sections)
            self.check_judges(*sections)
            self._inputs_are_checked = not sections

    def prepare(self) -> None:
        """Makes the weights of `scratch:`, where they are missing."""
        if self.config.scratch and not scratch.is_there(self.config):
            self.make_scratch()

    @property
    def only_fine_tunes(self) -> bool:
        """True if there are no rows of preferences."""
        return not self.config.data.train

    def make_scratch(self) -> None:
        """Writes the folder that `model.weights` names: a tokenizer and random weights."""
        scratch.make(self.config, self.origins, self.mesh)

    def check(self) -> None:
        """Refuses losses, lengths, rows and batches that cannot be, and says what is unusual about the losses."""
        terms, _ = self.terms, self.model
        reason = self.why_no_store()
        if reason and self.live_reference:
            say("reference", f"no store: {reason}")
        if not (self.reads_store or self.live_reference):
            say("reference", f"no store: {' and '.join(term.name for term in terms)} needs no reference")
        alone = [term.name for term in terms if term.entry.beside_sft]
        if alone and not any(term.entry.likelihood for term in terms):
            say("train", f"{alone[0]} is published beside an sft term; `loss` names none, so none is added")
        self.read_all()
        self._check_evaluation()

    @property
    def train_labels(self) -> np.ndarray | None:
        """The labels of the training rows, bool [n]; None where they are pairs."""
        return self.train_data.desirable

    def read_all(self) -> None:
        """Reads and checks the rows of both splits, and whether the losses read their columns."""
        super().read_all()
        self.check_columns(self.train_data)

    def before_sft(self) -> None:
        """Reads and checks all rows."""
        _ = self.only_fine_tunes or self.train_data, self.eval_data

    def sft_training(self) -> Training:
        """Supervised fine-tuning on completions."""
        section, seed, data = self.config.sft, self.sft_seed, self.sft_data
        assert section is not None
        model, weights = self.sft_model, present(loss_weight_B=data.weight_B)
        lora = bool(model.lora)
        start = Start(lambda: self.load_pretrained(held=lora))
        return make_training(
            section,
            stage="sft",
            folder=self.sft_folder,
            model=model,
            objective=completion_objective(model.apply, adapter=model.lora is not None, **self.tiles),
            batches=self.batches_of(section.train, data.rows, seed=seed, columns=weights),
            start=(lambda: self.fresh_adapter(model, seed=seed)) if lora else start.take,
            frozen=start.take if lora else None,
            facts=self.facts_of_training("sft.data.train", data, self.sft_folder, start, frozen=lora),
            seed=seed,
        )

    def say_how_fitted(self, store: Store | None, start: Start) -> None:
        """Says the perplexity of chosen responses where training starts, and before fine-tuning."""
        base = (lambda: self.pretrained(held=True)) if self.config.sft else None
        say_how_fitted(self.train_data, self.scorer, store, start, base=base, path=self.run.fitted)

    def callback(self, steps: int, store: Store | None) -> After | None:
        """Steers alpha by the KL, and measures held-out rows and samples, where the configuration asks for that."""
        return make_callback(self, store, steps)

    def check_known_losses(self, row_ids: Sequence[str], now: Scores, stored: Scores, where: str) -> None:
        """Checks each loss of these rows against its known value where policy and reference are one."""
        labels = self.train_data.desirable
        desirable = None if labels is None else labels[: len(row_ids)]
        check_losses(self.terms, now, stored, desirable, where=where, dtype=self.config.model.dtype)

    def score_lines(self, store: Store) -> list[dict[str, Any]]:
        """The stored log-probs and token counts of the training rows, an object for each."""
        rows = self.train_data.rows
        stored = store.lookup(row_ids_of(rows))
        names = ("chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")
        if self.is_labelled:
            kinds = ("completion", "mismatched")[: stored.logps_nP.shape[1]]
            names = tuple(f"{kind}_{what}" for what in ("logps", "tokens") for kind in kinds)
        columns = np.concatenate([stored.logps_nP.astype(object), stored.tokens_nP.astype(object)], axis=1)
        return [
            {"row_id": row.row_id, **dict(zip(names, values, strict=True))}
            for row, values in zip(rows, columns.tolist(), strict=True)
        ]

    @property
    def analyses(self) -> bool:
        """True if the configuration has a section `analysis`."""
        return self.config.analysis is not None

    def check_analysis(self) -> None:
        """Refuses losses on labelled completions."""
        if self.is_labelled:
            raise UserError(
                f"analyse: {self.config.loss[0].name} is trained on labelled completions; what is analysed are pairs "
                "of a chosen and a rejected response."
            )

    def analyse(self) -> Analysis:
        """The analysis of the newest checkpoint: trajectory, field, displacement, one step taken apart."""
        return text_analysis.analyse(self)

    @property
    def has_evaluation(self) -> bool:
        """True if there are held-out rows, outputs of others, or a benchmark to be evaluated."""
        options = self.config.evaluation
        return bool(self.has_heldout or options.outputs or options.rewardbench)

    @property
    def compares_points(self) -> bool:
        """True if there are held-out rows."""
        return self.has_heldout

    @property
    def has_best_of(self) -> bool:
        """True if `evaluation.best_of` is set."""
        return bool(self.config.evaluation.best_of)

    def shared_best_of(self) -> Sequence[BestOf]:
        """Scores of the best of n responses of the start; measured once, and kept in WORKDIR/best_of.json."""
        config, (params, facts) = as_mapping(self.config), self.load_start()
        asked = {"evaluation": config["evaluation"], "prompts": config["data"]["eval"], "seed": config["seed"]}
        asked["facts"] = {**facts, **self.facts_of_rows("data.eval", self.eval_data)}
        path, wanted = self.run.best_of, json.loads(json.dumps(deciding("sft", config) | asked))
        if path.exists() and (kept := read_sealed(path))["settings"] == wanted:
            return Evaluation.from_json(kept, where=str(path)).best_of
        table = text_evaluation.measure_best_of(self, params, text_evaluation.judge_of(self))
        write_sealed(path, Evaluation(settings=wanted, best_of=table).to_json())
        return table

    def check_reward(self) -> None:
        """Refuses a reward model that cannot be trained."""
        super().check_reward()
        for name, rows in {"train": self.train_data, **({"eval": self.eval_data} if self.has_heldout else {})}.items():
            if rows.soft_label_B is not None:
                raise UserError(
                    f"reward: data.{name} has soft labels, which a reward model cannot read. Take the column "
                    "soft_label out of the rows."
                )

    def reward_training(self, term: Term) -> Training:
        """A reward model's training, from where the policy starts."""
        config, data, model = self.config, self.train_data, self.reward_model
        assert config.reward is not None
        head_key, adapter_key = jax.random.split(jax.random.key(config.seed))
        start, lora = Start(self.load_start), bool(model.lora)

        def first() -> Params:
            trunk = model.trunk.init_adapter(adapter_key) if lora else trunk_of(start.take())
            return jax.device_put({**trunk, **model.init_head(head_key)}, param_shardings(self.mesh, model.trained))

        columns = present(loss_weight_B=data.weight_B, margin_B=data.margin_B, source_B=several(data))
        return make_training(
            config.reward,
            stage="reward",
            folder=self.reward_folder,
            model=model,
            objective=reward_objective(model.rewards, adapter=lora, sources=data.sources),
            batches=self.batches_of(config.reward.train, data.rows, seed=config.seed, columns=columns),
            start=first,
            frozen=(lambda: trunk_of(start.take())) if lora else None,
            facts=self.facts_of_training("data.train", data, self.reward_folder, start, frozen=lora),
            hyperparams=lambda step: {"options": term.knobs(step)},
            seed=config.seed,
        )

    def heldout_rewards(self, term: Term) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [n, P] of the held-out pairs, and their losses [n]."""
        data = self.eval_data
        rewards_nP = self.score_rewards(self.reward_model, self.trained_reward(), data.rows)
        losses_n = bradley_terry(*jnp.asarray(rewards_nP.T), **with_margins(term.knobs(0), data.margin_B))
        return rewards_nP, np.asarray(losses_n if data.weight_B is None else losses_n * data.weight_B)

    def heldout_groups(self) -> np.ndarray:
        """The pairs of one prompt belong together."""
        return prompt_groups(self.eval_data.rows)

    def export_reward(self) -> None:
        """Writes the reward model as a Hugging Face folder, WORKDIR/reward/export."""
        options, (folder, made) = self.config.export, self.place_of("reward model", self.reward_folder, "reward")
        can_pad = export_reward(
            folder,
            self.merged_reward(),
            self.reward_model,
            self.exported_source,
            ends={*self.stop_tokens, *(int(each[-1]) for row in self.train_data.rows for each in row.responses)},
            files=Files(options.dtype, file_bytes(options.max_shard_size), made),
        )
        alone = "" if can_pad else "; its tokenizer has no token to pad with, so score one sequence at a time"
        say("reward", f"wrote {folder} ({options.dtype}, for AutoModelForSequenceClassification{alone})")

    def data_reports(self) -> list[SplitReport]:
        """Reports of each split: rows read, cut and left out, and what is odd about the rest."""
        held_out = self.eval_data if self.has_heldout else None
        name, train = ("sft.data.train", self.sft_data) if self.only_fine_tunes else ("data.train", self.train_data)
        return data_reports.reports_of_texts(self.tokenizer, self.stop_tokens, {name: train}, held_out)

    def warn_of_data(self) -> None:
        """Says what is odd about the rows, and keeps all that was counted in WORKDIR/data.json."""
        reports = self.data_reports()
        data_reports.keep(self.workdir, reports)
        data_reports.warn(reports)

    def write_pairs(self, output: str | None) -> None:
        """Writes pairs of the model's own responses as JSON Lines that `data.train` reads."""
        text_samples.write_pairs(self, output)

    def write_samples(self, *, prompts: str | None, output: str | None, reference: bool) -> None:
        """Writes responses to prompts, with the keys that AlpacaEval reads."""
        text_samples.write_samples(self, prompts=prompts, output=output, reference=reference)

    def export(self, *, what: Exported, card: Callable[[Collection[str]], str]) -> None:
        """Writes a Hugging Face folder of weights, or an adapter.

        The base of an adapter that was trained after fine-tuning is the result of that, in WORKDIR/sft/export; what
        PEFT cannot open (a GGUF file, a package) goes to WORKDIR/base.
        """
        config, lora = self.config, self.model.lora
        if what == "base":
            self._export_base()
        elif what == "fine-tuned":
            self._export_fine_tuned()
        elif config.export.lora == "merged" or lora is None:
            place, made = self.place_of("merged", self.workdir, "train")
            self._export_weights(place, made, self.merged_params, card=card(KINDS))
        else:
            _ = self.start_params()  # is the base still the one it was trained over?
            place, made = self.place_of("adapter", self.workdir, "train")
            base = Base(str(self._export_fine_tuned())) if config.sft else base_of(config.model.weights)
            base = base or Base(str(self._export_base()))
            export_adapter(
                place,
                self.trained_adapter(),
                lora,
                self.resolved.rules,
                base=base,
                tokenizer=self.exported_source.tokenizer(),
                card=card(KINDS),
                made=made,
            )
            say("export", f"wrote {place} (an adapter of {base}; `dpo-jax export CONFIG --base` writes model.weights)")

    def _export_fine_tuned(self) -> Path:
        place, made = self.place_of("fine-tuned", self.sft_folder, "sft")
        return self._export_weights(place, made, lambda: self.start_params(held=False))

    def _export_base(self) -> Path:
        """The weights before any training, with their own chat template."""
        options, weights = self.config.export, self.config.model.weights
        made = Made("base", dtype=options.dtype, checkpoint=digest(weights.encode()))
        place = free_place(self.run.base, made)
        return self._export_weights(place, made, lambda: self.load_pretrained()[0], source=self.source)

    @property
    def exported_source(self) -> WeightsSource:
        """The pretrained weights with the chat template of the training in their tokenizer, for exports."""
        tokenizer, rules = copy.copy(self.tokenizer), self.rules
        tokenizer.chat_template = exported(self.tokenizer, rules.template, rules.chat_template)
        return self.source._replace(tokenizer=lambda: tokenizer)

    def _export_weights(
        self,
        folder: Path,
        made: Made,
        params: Callable[[], Params],
        *,
        source: WeightsSource | None = None,
        card: str | None = None,
    ) -> Path:
        options = self.config.export
        export_folder(
            folder,
            params(),
            self.model,
            self.resolved.rules,
            source or self.exported_source,
            skipped=self.resolved.skipped,
            files=Files(options.dtype, file_bytes(options.max_shard_size), made),
            card=card,
        )
        say("export", f"wrote {folder} ({options.dtype})")
        return folder.resolve()

    def _check_evaluation(self) -> None:
        """Refuses a judge that has no tokens for the prompts, and a benchmark that cannot be scored."""
        options = self.config.evaluation
        self.check_judges("evaluation", prompts=self.eval_data.prompts[:TRIED] if options.samples else ())
        if options.rewardbench:
            text_evaluation.benchmark_rows(self, text_evaluation.read_benchmark(options.rewardbench)[0])

    def evaluate(self) -> Evaluation:
        """The evaluation of the newest checkpoint, or of the outputs that the configuration names."""
        self._check_evaluation()
        return text_evaluation.evaluate(self)
