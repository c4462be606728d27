"""The result of a training: its metrics, its samples, its evaluation, its weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dpo_jax.api.experiment import OwnSteps, PythonSteps
from dpo_jax.api.rows import Rows, source_of
from dpo_jax.api.settings import plain
from dpo_jax.commands import results
from dpo_jax.config import SamplingConfig, changed
from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.types import Params, Prompt

_MODELS = ("policy", "reference")


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """A finished training; what it holds is read from its folder when it is asked for."""

    experiment: PythonSteps

    def __repr__(self) -> str:
        return f"Result({str(self.workdir)!r}, {len(self.metrics)} steps logged)"

    @property
    def workdir(self) -> Path:
        """The folder of the run: checkpoints, metrics, stores, config.yaml for the command line."""
        return self.experiment.workdir

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each logged step, oldest first; `step` is its number."""
        lines = self.experiment.run.metrics.read_text(encoding="utf8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def params(self) -> Params:
        """The trained parameters on the mesh; of an adapter merged with its base, of an own model by path."""
        with jax.set_mesh(self.experiment.mesh):
            return self.experiment.merged_params()

    @property
    def model(self) -> Any:
        """A model of one's own as it was given to `train`, with the trained arrays in it.

        Raises:
            UserError: it was a checkpoint; `save` writes it, `params` are its arrays.
        """
        if not isinstance(self.experiment, OwnSteps):
            raise UserError("model: this policy came from a checkpoint; `save` writes it, `params` are its arrays.")
        with jax.set_mesh(self.experiment.mesh):
            return self.experiment.trained_model()

    def sample(
        self, prompts: Sequence[str | Sequence[Mapping[str, Any]]], *, model: str = "policy", **drawing: Any
    ) -> list[str] | list[list[str]]:
        """Answer prompts, texts or conversations, as the template of the training formats them.

        Args:
            prompts: a list of them.
            model: policy, or reference, the start of the training.
            **drawing: `max_new_tokens`, `temperature`, `top_p`, `top_k`, `batch_rows`, and `samples` of each prompt.

        Returns:
            A response to each prompt; with `samples` above 1 a list of them.
        """
        if isinstance(prompts, str):
            raise UserError("sample: give a list of prompts, not one text.")
        if model not in _MODELS:
            raise UserError(f"sample: model={model!r} is unknown. {nearest(model, _MODELS)}")
        settings = {f"sampling.{name}": plain(value) for name, value in drawing.items()}
        config, _ = changed(self.experiment.config, self.experiment.origins, settings)
        options: SamplingConfig = config.sampling
        asked = [
            Prompt(prompt if isinstance(prompt, str) else tuple(prompt), None, f"prompts[{number}]")
            for number, prompt in enumerate(prompts)
        ]
        if not asked:
            return []
        experiment = self.experiment
        with jax.set_mesh(experiment.mesh):
            start = experiment.start_params()
            params = start if model == "reference" else experiment.trained_params(start)
            written = experiment.sampler(asked, options)(params, jax.random.key(config.seed)).written
        each = options.samples
        return written if each == 1 else [written[place : place + each] for place in range(0, len(written), each)]

    def evaluate(self, held_out: Rows | None = None, **evaluation: Any) -> Evaluation:
        """Measure the policy on held-out rows, and by samples where `samples` asks for some.

        Args:
            held_out: rows as `train` takes them; default: those that were given to it.
            **evaluation: settings of the section `evaluation`, such as `samples` and `judge`.

        Returns:
            What WORKDIR/evaluation.json holds then: `heldout.accuracy`, `kl.exact`, `judged`, each with its interval.
        """
        settings = {f"evaluation.{name}": plain(value) for name, value in evaluation.items()}
        if held_out is not None:
            settings["data.eval"] = [source_of(held_out, self.workdir / "rows", "held_out")]
        experiment = self.experiment.again(settings)
        experiment.stores_heldout_alone = held_out is not None
        with experiment.in_use():
            results.evaluate(experiment)
        return Evaluation.from_json(json.loads(experiment.run.evaluation.read_text(encoding="utf8")))

    def save(self, folder: str | os.PathLike[str], *, adapter: bool = False, dtype: str = "float32") -> Path:
        """Write the policy as a Hugging Face folder, which transformers, PEFT and vLLM load.

        Args:
            folder: an empty or a new one, or one that holds the same.
            adapter: write the adapter of a run with `lora` alone, as PEFT has it; else merged with its base.
            dtype: float32 or bfloat16.

        Returns:
            The folder. That of a model of one's own has its arrays by path, and the tokenizer.
        """
        experiment = self.experiment.again({"export.dtype": dtype, "export.lora": "adapter" if adapter else "merged"})
        experiment.export_to = Path(os.fspath(folder))
        with experiment.in_use():
            results.export(experiment)
        return experiment.export_to
