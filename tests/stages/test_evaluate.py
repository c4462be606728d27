"""`dpo-jax evaluate` as a user runs it: rows, samples, every judge, a benchmark, and what is refused."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from dpo_jax import cli, config
from dpo_jax.stages.benchmark import run_rewardbench
from dpo_jax.stages.setup import Setup
from tests.evaluation.judges.endpoint import Reply, longer_wins, said, serve
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder

SAMPLES = 6


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, trained for two long steps on pairs of two sources."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", 8)
    write_rows(folder / "held.jsonl", 5, seed=1)
    write_rows(folder / "other.jsonl", 3, seed=2)
    settings = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {
            "train": [{"path": "pairs.jsonl"}],
            "eval": [{"path": "held.jsonl"}, {"path": "other.jsonl"}],
            "max_prompt_tokens": 32,
            "max_tokens": 64,
        },
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 0.03},
        "train": {"batch_pairs": 4, "steps": 2},
        "evaluation": {"samples": SAMPLES, "max_new_tokens": 5},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(settings))
    (folder / "words.txt").write_text("warm 1\nthe 0.5\ncold -1\n")
    (folder / "mine.py").write_text(
        "def score(prompts, responses):\n    return [len(r) for r in responses]\n"
        "def compare(prompts, a, b):\n    return [0.5 + 0.5 * (len(x) > len(y)) - 0.5 * (len(x) < len(y))"
        " for x, y in zip(a, b)]\n"
    )
    (folder / "judge.py").write_text(
        "import json, sys\nfor line in sys.stdin:\n    print(len(json.loads(line)['response']))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["train", "e.yaml"])
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(house)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def evaluated(*arguments: str, judge: dict[str, Any] | None = None) -> dict[str, Any]:
    named = ["--evaluation.judge", json.dumps(judge)] if judge else []
    cli.main(["evaluate", "e.yaml", *named, *arguments])
    return json.loads(Path("runs/demo/evaluation.json").read_text())


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_and_samples_are_measured_without_a_judge(capsys):
    found = evaluated()
    heldout, kl = found["heldout"], found["kl"]
    assert {name: each["pairs"] for name, each in heldout["by_source"].items()} == {"held": 5, "other": 3}
    assert sum(each["pairs"] for each in heldout["by_length"].values()) == 8
    assert heldout["calibration"]["log_loss"] == pytest.approx(heldout["loss"], rel=1e-4)  # DPO's own, with its beta
    assert kl["samples"] == SAMPLES and kl["sequence_kl"] == kl["k1"] and kl["exact"] > 0 and kl["k3"] > 0
    assert abs(kl["exact"] - kl["k1"]) < 5 * (kl["interval"][1] - kl["interval"][0])
    assert found["entropy"]["sequence"] == pytest.approx(found["entropy"]["token"] * found["tokens"])
    assert 1 <= found["tokens"] <= 5 and found["texts"]["reference"]["characters"] > 0 and "judged" not in found
    assert "calibration error" in (said := capsys.readouterr().err) and "sequence KL" in said


def test_scoring_judges_agree_on_what_they_all_see():
    """A list of words by hand; a program and a function that both count characters."""
    found = evaluated(judge={"name": "lexicon", "words": "words.txt"})
    by_words = found["judged"]
    for name in ("policy", "reference"):
        scores = np.array([row[f"{name}_score"] for row in found["samples"]])
        assert by_words[name]["positive"] == np.mean(scores > 0) and by_words[name]["score"] == scores.mean()
    assert by_words["judge"] == "lexicon" and by_words["samples"] == SAMPLES
    assert by_words["difference"] == by_words["policy"]["positive"] - by_words["reference"]["positive"]
    assert -1 <= evaluated(judge={"name": "lexicon"})["judged"]["policy"]["score"] <= 1  # VADER
    command = {"name": "command", "command": shlex.join([sys.executable, "-I", "judge.py"])}
    both = [evaluated(judge=judge) for judge in (command, {"name": "python", "function": "mine.py:score"})]
    for found in both:
        lengths = [[len(row[name]) for row in found["samples"]] for name in ("policy", "reference")]
        assert [[row[f"{name}_score"] for row in found["samples"]] for name in ("policy", "reference")] == lengths
        assert found["judged"]["win_rate"] == ((1 + np.sign(np.subtract(*lengths))) / 2).mean()
        assert found["judged"]["policy"]["reward"] == pytest.approx(np.mean(lengths[0]))
    compared = evaluated(judge={"name": "python", "function": "mine.py:compare", "compares": True})
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
        found = evaluated(judge=judge)
        asked = len(endpoint.bodies)
        again = evaluated(judge=judge)
        assert len(endpoint.bodies) == asked and again["judged"]["usage"]["requests"] == 0
    usage = found["judged"]["usage"]
    assert usage["retries"] == 2 and usage["requests"] == asked and usage["cost"] > 0
    assert usage["cached"] == 0 and again["judged"]["usage"]["cached"] == usage["answers"] == asked - 2
    assert found["judged"]["win_rate"] == again["judged"]["win_rate"] and endpoint.bodies[0]["max_tokens"] == 3
    assert {header["Authorization"] for header in endpoint.headers} == {"Bearer sk-hidden"}
    said = capsys.readouterr().err
    assert "the winner changed with the order in 0.0%" in said and "verdicts known" in said
    files = [path for path in Path("runs/demo").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".html")]
    assert len(files) > 5 and not any("sk-hidden" in path.read_text() for path in files) and "sk-hidden" not in said


def test_a_biased_endpoint_is_shown_to_be_one():
    with serve(lambda body, number: said("A")) as endpoint:
        found = evaluated(judge={"name": "http", "url": endpoint.url, "model": "m", "cache": "biased.jsonl"})
    assert found["judged"]["win_rate"] == 0.5 and found["judged"]["order"]["first_preferred"] > 0.5
    assert found["judged"]["order"]["flipped"] == 2 * found["judged"]["order"]["first_preferred"] - 1
    assert Path("biased.jsonl").exists()
    cli.main(["report", "e.yaml"])
    shown = Path("runs/demo/report.html").read_text()
    assert "Win rate at equal lengths" in shown and "Calibration error" in shown
    assert "its samples win 50.0" in shown and "Sequence KL, exact" in shown


def test_rewardbench_of_the_policy_and_of_the_judge():
    rows = [
        {"prompt": "say", "chosen": "warm and long", "rejected": "cold", "subset": "alpacaeval-easy"},
        {"prompt": "say", "chosen": "warm", "rejected": "cold and long", "subset": "donotanswer"},
        {"prompt": "tell", "chosen": "warm days", "rejected": "cold", "subset": "donotanswer"},
    ]
    write("bench.jsonl", rows)
    arguments = ["--evaluation.samples", "0", "--evaluation.rewardbench", "bench.jsonl", "--data.eval", "[]"]
    found = evaluated(*arguments, judge={"name": "python", "function": "mine.py:score"})
    assert found["rewardbench"]["judge"]["name"] == "python" and "heldout" not in found
    assert {name: each["accuracy"] for name, each in found["rewardbench"]["judge"]["sections"].items()} == {
        "Chat": 1.0,
        "Safety": 0.5,
    }
    assert found["rewardbench"]["policy"]["rows"] == 3
    assert evaluated(*arguments)["rewardbench"].keys() == {"policy"}
    setup = Setup(*config.load("e.yaml"), command="test")
    with jax.set_mesh(setup.mesh):
        frozen = setup.start_params()
        same = run_rewardbench(setup, "bench.jsonl", None, frozen, frozen)
    assert same["policy"]["accuracy"] == 0.0  # who is the reference prefers nothing, and a tie is wrong


REFUSED = {
    "another judge's option": ({"name": "lexicon", "model": "x"}, [], "judge.model: is no option of the judge lexicon"),
    "what it may have": (
        {"name": "command", "function": "x", "command": "y"},
        [],
        "Allowed: command, compares, timeou",
    ),
    "no url": ({"name": "http", "model": "m"}, [], "evaluation.judge.url: the judge http needs it"),
    "an unknown judge": ({"name": "htpp"}, [], "'htpp' is unknown. Did you mean 'http'"),
    "a key for a name": (
        {"name": "http", "url": "u", "model": "m", "api_key_env": "sk-12-34"},
        [],
        "api_key_env: is no name of an environment variable",
    ),
    "an empty variable": (
        {"name": "http", "url": "u", "model": "m", "api_key_env": "NOT_THERE_AT_ALL"},
        [],
        "the environment has no variable NOT_THERE_AT_ALL",
    ),
    "one price": ({"name": "http", "url": "u", "model": "m", "input_price": 1}, [], "needs both prices"),
    "no template": ({"name": "http", "url": "u", "model": "m", "template": "no.txt"}, [], "no.txt cannot be read"),
    "a thin template": (
        {"name": "http", "url": "u", "model": "m", "template": "words.txt"},
        [],
        "template lacks {promp",
    ),
    "no words": ({"name": "lexicon", "words": "none.txt"}, [], "none.txt: the list of words cannot be read"),
    "no function": ({"name": "python", "function": "mine.py:scor"}, [], "has no function 'scor'. Did you mean 'score'"),
    "a broken command": ({"name": "command", "command": "false"}, [], "'false' ended with exit code 1"),
    "nobody listens": (
        {"name": "http", "url": "http://127.0.0.1:9", "model": "m", "retries": 0},
        [],
        "failed 1 times, at last with: URLError",
    ),
    "no time": ({"name": "command", "command": "true", "timeout_seconds": 0}, [], "nothing ends in 0 s"),
    "outputs without a judge": (
        None,
        ["--evaluation.outputs", "{policy: a, reference: b}"],
        "leave out evaluation.sam",
    ),
    "samples beside outputs": (
        {"name": "lexicon"},
        ["--evaluation.outputs", "{policy: a, reference: b}"],
        "is judged alone; leave out evaluation.samples",
    ),
    "nothing to judge": ({"name": "lexicon"}, ["--evaluation.samples", "0"], "needs evaluation.samples to judge, or"),
}


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "e.yaml", *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense(capsys, case: str):
    judge, arguments, says = REFUSED[case]
    named = ["--evaluation.judge", json.dumps(judge)] if judge else []
    said = refused(capsys, *named, *arguments)
    assert says in said and "sk-12-34" not in said


def test_a_benchmark_without_subsets_is_refused(capsys):
    arguments = ["--evaluation.samples", "0", "--evaluation.rewardbench", "held.jsonl"]
    assert "held.jsonl:1: subset is None" in refused(capsys, *arguments)
