"""`dpo-jax plan`: by analysis always, compiled for eight pretend CPU devices, and for a TPU slice where libtpu is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.commands.training import train
from dpo_jax.config import load
from dpo_jax.experiments import plan, training
from dpo_jax.experiments.planned import Planned, _largest
from dpo_jax.experiments.text_steps import TextSteps
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.planning.outcomes import bytes_per_chip
from dpo_jax.planning.topologies import CHIPS, Chip, Machine
from tests import tiny_experiment
from tests.tiny import make_hf_folder

CONFIG = """\
workdir: runs/demo
model: {{weights: {weights}, remat: dots}}
data: {{train: [{{path: pairs.jsonl}}], max_prompt_tokens: 16, max_tokens: 32}}
loss: {{name: dpo}}
optimizer: {{schedule: linear}}
train: {{batch_pairs: 16, micro_batch_pairs: 8, steps: 4}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("tiny") / "model", width=64, layers=3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(CONFIG.format(weights=model))
    rows = [{"prompt": f"say {n}\n", "chosen": "good " * (n % 3 + 1), "rejected": "bad"} for n in range(20)]
    tiny_experiment.write_lines("pairs.jsonl", rows)
    return tmp_path


def machine(capacity: float = 2**40) -> Machine:
    """The pretend CPU devices, as chips of this capacity."""
    return Machine("cpu:8", Chip("pretend", int(capacity), 1e12), 8, tuple(jax.devices()))


def planned(*overrides: str, capacity: float = 2**40) -> Planned:
    config, origins = load("e.yaml", overrides)
    return Planned(config, origins, command="", machine=machine(capacity))


def planning(*arguments: str) -> dict[str, Any]:
    cli.main(["plan", "e.yaml", "--json", "plan.json", *arguments])
    return json.loads(Path("plan.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    out, _, err = tiny_experiment.refused(capsys, "plan", "e.yaml", *arguments).rpartition("dpo-jax: ")
    return out, err


def test_by_analysis_and_nothing_else_is_written(capsys, folder: Path):
    before = sorted(folder.rglob("*"))
    found = planning("--topology", "gpu:8")
    out = capsys.readouterr().out
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "plan.json"])
    assert "compiled on GPUs only" in out and "analysis" in out and "programs" not in found
    assert found["machine"]["chip"] == CHIPS["h100"].name and found["mesh"]["fsdp"] == 8
    assert found["lengths"]["origin"] == "the first 20 rows of data.train"
    assert found["analysis"]["bytes"]["optimizer"] == 2 * found["analysis"]["bytes"]["parameters"] + 4
    # the table of 344 or so tokens twice, and one layer, in float32
    layer = 64 * 32 + 2 * 64 * 16 + 32 * 64 + 3 * 64 * 64
    assert found["analysis"]["bytes"]["gathered"] == 4 * (2 * 64 * found["model"]["vocabulary"] + layer)
    assert found["analysis"]["needs"] == sum(found["analysis"]["bytes"].values())


def test_data_that_is_not_there_is_replaced_by_the_longest_rows(capsys):
    Path("pairs.jsonl").unlink()
    found = planning("--topology", "gpu:8", "--mfu", "0.5")
    assert "a prompt of 1 token, 31 in each response" in found["lengths"]["origin"]
    assert "pairs.jsonl" in found["lengths"]["origin"]
    assert (found["lengths"]["trunk_tokens"], found["lengths"]["response_tokens"]) == (63, 62)
    assert found["analysis"]["rows"] == {"shape": [2, 8, 64], "scored": 64}  # two micro-batches of 8 pairs, shared
    work = found["work"]
    assert work["seconds_per_step"] == pytest.approx(16 * work["train_flops_per_pair"] / (0.5 * 989e12 * 8))
    assert work["pairs_per_second"] == pytest.approx(16 / work["seconds_per_step"])


@pytest.mark.parametrize(
    ("layout", "shape"), [("padded", [2, 16, 32]), ("packed", [2, 16, 32]), ("shared", [2, 8, 64])]
)
def test_no_rows_are_longer_than_the_longest(layout: str, shape: list[int]):
    setup = planned("--data.layout", layout)
    batch = setup.train_call(setup.largest_rows()).arguments[1]
    assert list(batch.tokens_RT.shape) == shape


def test_without_libtpu_it_says_what_to_install_and_still_prints(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = planning("--topology", "v5e:2x2")
    assert 'pip install "libtpu' in capsys.readouterr().out and found["analysis"]["needs"] > 0


def test_too_large_by_analysis_exits_with_two_after_the_tables(capsys):
    out, err = refused(capsys, "--topology", "gpu:2", "--model.weights", "meta-llama/Llama-3.1-70B")
    assert "meta-llama/Llama-3.1-70B: 70,553,706,496 parameters" in out and "table of published" in out
    assert "by analysis needs" in err and "too much" in err and "Nothing that was tried fits" in err


def test_what_fits_by_analysis_is_said(capsys):
    Path("pairs.jsonl").unlink()
    long = ["--data.max_tokens", "8192", "--train.batch_pairs", "64", "--train.micro_batch_pairs", "64"]
    long += ["--model.attention", "dense"]  # all scores at once are what is too much
    out, err = refused(capsys, "--topology", "gpu:8", *long)
    assert "Alternatives, by analysis" in out and "What fits, by analysis: --" in err
    change = err.split("by analysis: ", 1)[1].split(" or ")[0].rstrip(".\n").split()
    found = planning("--topology", "gpu:8", *long, *change)
    assert found["analysis"]["fits"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the machine"),
        (["--topology", "v5p-512"], "command line: --topology 'v5p-512' is not a machine"),
        (["--topology", "gpu:8", "--mfu", "40"], "a share of the peak"),
        (["--topology", "gpu:8", "--seconds", "soon"], "a number of seconds"),
        (["--topology", "gpu:8", "--mesh.tensor", "3"], "this machine has 8"),
    ],
)
def test_mistakes(capsys, arguments: list[str], says: str):
    assert says in refused(capsys, *arguments)[1]


LORA = ["--lora", "{rank: 2}", "--model.dtype", "bfloat16"]


@pytest.mark.slow("loads and lowers what is trained")
@pytest.mark.parametrize("overrides", [[], LORA])
def test_the_programs_are_the_very_ones_that_train_and_reference_call(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str]
):
    called: dict[str, str] = {}

    def instead(step, state, read, knobs, **options):
        called["train"] = step.__wrapped__.lower(state, read(0).arrays, knobs(0)).as_text()
        return state._replace(step=options["steps"])

    score = TextExperiment.score.func  # type: ignore[attr-defined]

    def watched(setup):
        scorer = score(setup)

        def scoring(params, batch):
            called.setdefault("reference", scorer.lower(params, batch).as_text())
            return scorer(params, batch)

        return scoring

    config, origins = load("e.yaml", overrides)
    setup = TextSteps(config, origins, command="")
    setup.begin()
    with monkeypatch.context() as patched, jax.set_mesh(setup.mesh):
        patched.setattr(training, "train_loop", instead)
        patched.setattr(TextExperiment, "score", property(watched))
        train(setup)
    ours = planned(*overrides)
    data = ours.find_lengths().data
    calls = {"train": ours.train_call(data)} | ({} if overrides else {"reference": ours.reference_call(data)})
    with jax.set_mesh(ours.mesh):
        for name, call in calls.items():
            assert call.function.lower(*call.arguments).as_text() == called[name], name


def test_the_largest_of_the_first_batches_is_planned_for():
    sizes = [(2, 8), (4, 8), (4, 16), (1, 24)]

    class Some:
        def steps(self, epochs):
            return len(sizes)

        def batch(self, step):
            tokens_RT, target_RN = (np.zeros(shape) for shape in (sizes[step], (sizes[step][0], 3)))
            return SimpleNamespace(arrays=SimpleNamespace(tokens_RT=tokens_RT, target_RN=target_RN))

    assert _largest(Some()).tokens_RT.shape == (4, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(LORA, marks=pytest.mark.slow("compiles for eight devices")),
        pytest.param(
            ["--loss.name", "tdpo1", "--reference.update_every", "2", "--optimizer.moment_dtype", "bfloat16"],
            marks=pytest.mark.slow("compiles for eight devices"),
        ),
    ],
)
def test_bytes_are_those_of_the_state(overrides: list[str]):
    """The compiler's count of what the step is given is that of the shapes, and the old state's place is used again."""
    setup = planned(*overrides)
    call = setup.train_call(setup.largest_rows())
    found = setup.measure(call, full=False)
    state, batch, _ = call.arguments
    read = bytes_per_chip((state, batch))
    assert found["fits"] and found["bytes"]["arguments"] == pytest.approx(read, rel=0.02)  # a loss reads not all
    assert found["bytes"]["donated"] == pytest.approx(bytes_per_chip(state), rel=0.02)
    assert found["bytes"]["outputs"] < 0.02 * read
    assert found["bytes"]["parameters"] == bytes_per_chip(state.params)
    assert {each["kind"] for each in found["collectives"]} >= {"all-gather"}
    assert found["buffers"] and not found["collectives_in_unknown_loops"]


def test_what_is_compiled_is_shown_and_without_time_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(plan, "open_machine", lambda name: machine())
    found = planning("--topology", "cpu:8", "--seconds", "0")
    assert found["alternatives"] == [] and found["programs"]["train"]["needs"] > 0
    said = capsys.readouterr().out
    assert "Collectives of one run of train" in said and "Largest arrays of train" in said


def test_alternatives_and_search_are_weighed_as_the_program_is(monkeypatch: pytest.MonkeyPatch, capsys):
    """In place of compiling: a byte of each token of a micro-batch, on a machine that holds 8 pairs and not 16."""
    names = ("parameters", "optimizer", "frozen", "batch", "gradients", "activations", "temporary", "outputs", "code")
    figures = {"bytes": dict.fromkeys((*names, "arguments", "donated"), 0), "compile_seconds": 0.1}
    figures |= {"buffers": [], "collectives": [], "collectives_in_unknown_loops": 0, "has": 5000}

    def weigh(planned: Planned, call: Any, *, full: bool) -> dict[str, Any]:
        *micro_batches, rows, length = call.arguments[1].tokens_RT.shape
        needs = rows * length if micro_batches else 1  # the reference's pass has none
        return figures | {"needs": needs, "fits": needs <= 5000, "rows": {"shape": [rows, length], "scored": length}}

    monkeypatch.setattr(Planned, "measure", weigh)
    monkeypatch.setattr(plan, "open_machine", lambda name: machine(5000))
    Path("pairs.jsonl").unlink()
    long = ["--data.max_tokens", "256", "--topology", "cpu:8"]
    found = planning(*long, "--search")
    assert found["programs"]["train"]["fits"] and found["search"]["largest"] == 8
    tried = {each["change"]: each["fits"] for each in found["alternatives"]}
    assert tried["--train.micro_batch_pairs 16"] is False and tried["--tiles.tokens 4096"] is True
    _, err = refused(capsys, *long, "--train.micro_batch_pairs", "16")
    assert "too much" in err and "What fits, as it was compiled: --" in err and "--train.micro_batch_pairs 8" in err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles TPU programs, is not installed"
)
def test_a_small_slice(capsys):
    found = planning("--topology", "v5e:2x2", "--seconds", "0", "--model.dtype", "bfloat16")
    programs = found["programs"]
    assert programs["train"]["fits"] and programs["reference"]["fits"]
    assert programs["train"]["bytes"]["temporary"] > 0 and programs["train"]["collectives"]
    assert programs["train"]["bytes"]["donated"] >= programs["train"]["bytes"]["parameters"]
    _, err = refused(capsys, "--topology", "v5e:1x1", "--seconds", "0", "--model.weights", "meta-llama/Llama-3.2-1B")
    assert "needs" in err and "GiB too much" in err
