"""The judges of texts that a configuration names, opened, reward models among them.

Dimension key: P slot in the pair, n rows or comparisons.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from dpo_jax.config import Config, ExportConfig
from dpo_jax.config.evaluation import (
    ClassifierJudge,
    CommandJudge,
    HttpJudge,
    JudgeConfig,
    LexiconJudge,
    PythonJudge,
    RewardJudge,
)
from dpo_jax.data.sources import read_labelled
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import UserError, sized_by
from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.evaluation.judges.chat import Chat
from dpo_jax.evaluation.judges.http import Cache, http_judge
from dpo_jax.evaluation.judges.programs import (
    comparing_command,
    comparing_function,
    load_function,
    scoring_command,
    scoring_function,
)
from dpo_jax.evaluation.judges.wording import DEFAULT_TEMPLATE, check_template
from dpo_jax.evaluation.judges.words import classifier, lexicon, read_weights, vader
from dpo_jax.experiments.memory import remembering
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import digest_file
from dpo_jax.mesh import constrain
from dpo_jax.models.heads import RewardModel, make_reward_model, trunk_of
from dpo_jax.networks import merge
from dpo_jax.reading import Origins, located, typed
from dpo_jax.reference.fingerprint import weights_digest
from dpo_jax.runs.run import Run
from dpo_jax.runtime import hosts
from dpo_jax.runtime.progress import say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Completion, Params, Prompt, Text, TokenRow, join
from dpo_jax.weights.reward import describe_reward, load_reward

AnyJudge = Scoring | Comparing
J = TypeVar("J", bound=AnyJudge)

_REWARDS_AT_ONCE = 512
TRIED = 256
"""Prompts that a judge must be able to read before anything is sampled."""


@dataclass(frozen=True)
class JudgeContext:
    """The surroundings of a judge: the key that names it, the run, and the opener of reward models.

    `rewards(model)` opens that of a folder, or, of None, that of the run.
    """

    key: str
    origins: Origins
    workdir: Path
    rewards: Callable[[str | None], Scoring]

    def of(self, option: str) -> AbstractContextManager[None]:
        """The context in which a mistake is told as one of this option."""
        return located(f"{self.key}.{option}", self.origins)


def open_judge(
    options: JudgeConfig, experiment: TextExperiment, key: str, *, prompts: Sequence[Prompt] = ()
) -> AnyJudge:
    """The judge that the configuration names at `key`; what it lacks is told now, before anything is sampled.

    Of several processes the first one alone asks a judge that is no model of ours, and tells the others. `prompts` are
    some of those that it will see: a reward model must have tokens for them.
    """
    context = JudgeContext(
        key, experiment.origins, experiment.workdir, lambda model: open_rewards(experiment, model, prompts)
    )
    judge = JUDGES[options.name](options, context)
    is_model = isinstance(options, RewardJudge)
    if not isinstance(options, HttpJudge):  # which keeps its verdicts itself
        judge = remembering(judge, dataclasses.asdict(options), experiment.keeper(key, together=is_model))
    return judge if is_model else judge.through(hosts.from_first)


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"the file {path} cannot be read: there is none. Paths are relative to the current directory, {Path.cwd()}."
        )
    return path


def _of_files(judge: J, *names: str) -> J:
    """The judge, which these files decide, those of them that there are."""
    digests = {name: digest_file(Path(name)) for name in names if Path(name).is_file()}
    judge.facts = lambda: digests
    return judge


def _classifier(options: ClassifierJudge, context: JudgeContext) -> Scoring:
    with context.of("data"):
        return _fitted(json.dumps(options.data, sort_keys=True))


@functools.cache  # every point of a sweep asks for the same one
def _fitted(sources: str) -> Scoring:
    return classifier(*read_labelled(json.loads(sources)))


def _reward(options: RewardJudge, context: JudgeContext) -> Scoring:
    with context.of("model"):
        return context.rewards(options.model)


def _lexicon(options: LexiconJudge, context: JudgeContext) -> Scoring:
    with context.of("words"):
        return _of_files(lexicon(read_weights(_existing(options.words))), options.words) if options.words else vader()


def _command(options: CommandJudge, context: JudgeContext) -> AnyJudge:
    with context.of("command"):
        try:
            program = next(iter(shlex.split(options.command)), "")
        except ValueError as error:
            raise UserError(f"{options.command!r} is no command: {error}.") from None
        if shutil.which(program) is None:
            raise UserError(f"there is no program {program!r} that can be started.")
    make = comparing_command if options.compares else scoring_command
    judge = make(options.command, timeout_seconds=options.timeout_seconds or 600.0)
    return _of_files(judge, *shlex.split(options.command), str(shutil.which(program)))


def _python(options: PythonJudge, context: JudgeContext) -> AnyJudge:
    make = comparing_function if options.compares else scoring_function
    with context.of("function"):
        function = load_function(options.function)
        judge = make(function, timeout_seconds=options.timeout_seconds or 600.0)
    code = getattr(inspect.getmodule(function), "__file__", None) or ""
    return _of_files(judge, options.function.rpartition(":")[0], code)


def _http(options: HttpJudge, context: JudgeContext) -> Comparing:
    with context.of("api_key_env"):
        key = _key(options.api_key_env)
    with context.of("template"):
        template = check_template(_text(_existing(options.template)) if options.template else DEFAULT_TEMPLATE)
    with context.of("cache"):
        cache = Cache(Path(options.cache) if options.cache else Run(context.workdir).verdicts)
    chat = Chat(
        options.url,
        options.model,
        key=key,
        settings=options.request,
        timeout_seconds=options.timeout_seconds or 60.0,
        retries=options.retries,
    )
    return http_judge(
        chat,
        template=template,
        cache=cache,
        parallel=options.parallel,
        input_price=options.input_price,
        output_price=options.output_price,
        progress=_tell,
    )


def _tell(answered: int, asked: int) -> None:
    if answered == asked or answered % max(1, asked // 10) == 0:
        say("judge", f"{answered} of {asked} questions answered")


def _key(name: str | None) -> str | None:
    """The key in a variable of the environment."""
    key = os.environ.get(name, "") if name else None
    if key == "":
        raise UserError(f"the environment has no variable {name}, or it is empty.")
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(f"the variable {name} holds what no header can, such as a line end: write the key alone.")
    return key


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file {path} cannot be read: {error}.") from None


JUDGES: dict[str, Callable[..., AnyJudge]] = {
    "classifier": _classifier,
    "reward": _reward,
    "lexicon": _lexicon,
    "command": _command,
    "python": _python,
    "http": _http,
}
"""Name in a configuration -> the opener of the judge, from its options and its context."""


class RewardExperiment(TextExperiment):
    """An experiment on texts with its reward model."""

    @property
    def reward_folder(self) -> Path:
        """The folder of the reward model."""
        return self.run.reward.folder

    @cached_property
    def reward_model(self) -> RewardModel:
        """The reward model as pure functions."""
        options, model = self.config.model, self.model
        return make_reward_model(model.spec, dtype=options.dtype, remat=options.remat, lora=model.lora)

    def trained_reward(self) -> Params:
        """The reward model of the newest checkpoint; an adapter is joined to its base."""
        trained = self.restored(self.reward_folder, "reward", self.reward_model)
        return join(trunk_of(self.start_params()), trained) if self.model.lora else trained

    def merged_reward(self) -> Params:
        """The reward model of the newest checkpoint without an adapter, in float32."""
        trained, lora = self.restored(self.reward_folder, "reward", self.reward_model), self.model.lora
        if lora is None:
            return trained
        return {**merge(trunk_of(self.start_params(held=False)), trained, lora), "head": trained["head"]}

    @sized_by("reference.batch_pairs")
    def score_rewards(self, model: RewardModel, params: Params, rows: Sequence[TokenRow]) -> np.ndarray:
        """The rewards of rows under a reward model, [n, P], in their order."""
        score = jax.jit(lambda params, batch: constrain(model.rewards(params, batch), None, None))
        rewards: dict[int, np.ndarray] = {}
        for batch in self.scoring_batches(rows):
            rewards_BP = jax.device_get(score(params, self.place(batch.arrays)))
            rewards |= zip(batch.places, rewards_BP, strict=False)  # pairs that only fill the batch have none
        return np.stack([rewards[place] for place in range(len(rows))])

    def judge_rewards(
        self, model: RewardModel, params: Params, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> np.ndarray:
        """The rewards of responses [n], whatever is in them, formatted and cut as rows are."""
        return self.score_rewards(model, params, self.judged_rows(prompts, responses))[:, 0]

    def judge(self, model: RewardModel, load: Callable[[], Params]) -> Scoring:
        """A reward model as a judge, of the parameters that `load` reads when it judges."""
        params = functools.cache(load)

        def facts() -> dict[str, str]:
            shape = f"{model.spec} {model.trunk.dtype} {model.lora}"
            return {**self.scoring_facts(), "weights": weights_digest(params()), "model": shape}

        judge = Scoring("reward", lambda *asked: self.judge_rewards(model, params(), *asked), facts=facts)
        judge.at_once, judge.rest = _REWARDS_AT_ONCE, params.cache_clear
        return judge

    def judged_rows(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenRow]:
        """Prompts with the responses to be judged, as tokens of the reward model."""
        rows = [_answered(f"{n}", *both) for n, both in enumerate(zip(prompts, responses, strict=True), 1)]
        rules = dataclasses.replace(self.rules, special_tokens="allow")
        tokens = tokenize(rows, self.tokenizer, rules).rows
        self.tell_long("judged responses", tokens, self.rules)
        return tokens

    def check_judges(self, *sections: str, prompts: Sequence[Prompt] = ()) -> None:
        """Opens each judge of the configuration, or of these sections, but a reward model that is still to be trained.

        `prompts` are those of `open_judge`.
        """
        config = self.config
        for key, judge in (("evaluation.judge", config.evaluation.judge), ("pairs.judge", config.pairs.judge)):
            asked = not sections or key.startswith(sections)
            if judge and asked and not (isinstance(judge, RewardJudge) and self._will_train(judge.model)):
                open_judge(judge, self, key, prompts=prompts)

    def _will_train(self, location: str | None) -> bool:
        """True for the reward model that `reward` of the configuration describes, until it is there."""
        if self.config.reward is None:
            return False
        model, exported = Path(location or self.workdir).resolve(), self.run.reward.export
        if model == exported.resolve():
            return not exported.exists()
        return model == self.workdir.resolve() and Checkpoints(self.run.reward.checkpoints).latest() is None

    def other(self, config: Config) -> RewardExperiment:
        """Another experiment, on the same mesh."""
        return RewardExperiment(dataclasses.replace(config, mesh=self.config.mesh), {}, command=self.command)


def open_rewards(experiment: TextExperiment, location: str | None, prompts: Sequence[Prompt] = ()) -> Scoring:
    """The reward model of a run (by default of this one), or of a Hugging Face folder.

    That of a run formats and cuts text as in its training, one of a folder as this run does. Whether there is one is
    looked at now, and whether it has a token for all that these prompts become; its parameters are read when it judges.

    Raises:
        UserError: there is none.
    """
    folder = Path(location) if location else experiment.workdir
    opened = RewardExperiment(experiment.config, experiment.origins, command=experiment.command)
    if location is None or Run(folder).exists:
        owner = opened.other(_config_of(folder))
        if location is None:
            owner.sft_folder = experiment.sft_folder  # that of a point of a sweep is shared
        return owner.judge(owner.reward_model, owner.trained_reward)
    config = dataclasses.replace(experiment.config.model, weights=location)
    own = dataclasses.replace(experiment.config, model=config, lora=None, sft=None, export=ExportConfig())
    owner = opened.other(own)
    owner.fix_date()
    try:
        _ = owner.model  # has it positions enough?
        model = describe_reward(owner.source, owner.resolved, dtype=config.dtype)
        if prompts:
            owner.judged_rows(prompts, ["."] * len(prompts))
    except UserError as error:
        raise UserError(f"{error} The WORKDIR of a run is allowed, too.") from None
    return owner.judge(model, lambda: load_reward(owner.source, owner.resolved, model, owner.mesh))


def _answered(number: str, prompt: Prompt, response: str) -> Completion:
    """A prompt and a sampled response to it, in the form of the prompt."""
    answer: Text = response if isinstance(prompt.prompt, str) else ({"role": "assistant", "content": response},)
    return Completion(number, prompt.prompt, answer, f"sample {number}", prompt.tools, prompt.chat_template_kwargs)


def _config_of(folder: Path) -> Config:
    """The configuration of the run in a folder, as it was when its reward model was trained."""
    checkpoints = Checkpoints(Run(folder).reward.checkpoints)
    step = checkpoints.latest()
    if step is None:
        raise UserError(
            f"{folder / 'reward' / 'checkpoints'}: no reward model yet; run `dpo-jax reward` with the configuration of "
            "that run first."
        )
    return dataclasses.replace(typed(Config, checkpoints.record(step)["config"], {}), workdir=str(folder))
