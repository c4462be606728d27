"""Every loss by its name, from the command line: it trains, starts where it must, and is told what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.config import LossConfig
from dpo_jax.experiments.losses import TRAINED, read_terms
from dpo_jax.experiments.watch import next_alpha
from dpo_jax.losses import PAIRWISE, REFERENCE_FREE, STATEFUL, TOKEN_LEVEL, UNPAIRED, Loss
from dpo_jax.objectives.terms import KlBudget
from tests.tiny_experiment import forget, make_experiment, read_lines, refused, run


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores are shared by all tests."""
    return make_experiment(tmp_path_factory.mktemp("losses"), held=6, train={"steps": 2})


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)


UNPAIR = ("--data.train.0.unpair", "true")
HELD = ("--data.eval", "[{path: held.jsonl}]")


def train(losses: dict[str, Any] | list[dict[str, Any]], workdir: str, *arguments: str, command: str = "train") -> list:
    losses = losses if isinstance(losses, list) else [losses]
    unpair = UNPAIR if losses[0]["name"] in UNPAIRED else ()
    return run(Path(), command, workdir, "--loss", json.dumps(losses), *unpair, *arguments)


TOGETHER = {
    "pairwise": PAIRWISE,
    "stateful and without a reference": STATEFUL | REFERENCE_FREE,
    "token level": TOKEN_LEVEL,
    "unpaired": UNPAIRED,
}


def test_every_loss_is_trained():
    assert {name for table in TOGETHER.values() for name in table} == TRAINED.keys()


DEAR = pytest.mark.slow("a program of its own")


@pytest.mark.parametrize(
    "names",
    [pytest.param(names, id=form, marks=() if form == "pairwise" else DEAR) for form, names in TOGETHER.items()],
)
def test_every_loss_trains_by_its_name_and_starts_where_it_must(capsys, names: dict[str, Loss]):
    """In a mixture, whose metrics have the value of each."""
    losses = [{"name": name, "weight": 1 + number / 10} for number, name in enumerate(names)]
    rows = train(losses, f"runs/all-{next(iter(names))}", "--train.micro_batch_pairs", "8")
    said = capsys.readouterr().err
    assert "is published beside" not in said  # an sft term, which is there
    assert ("no store: tdpo1 reads the reference's whole distribution" in said) == ("tdpo1" in names)
    assert rows[0].get("log_ratios/mismatched", 0) == pytest.approx(0, abs=1e-4) != rows[1].get("log_ratios/mismatched")
    assert len(rows) == 2 and all(np.isfinite(list(row.values())).all() for row in rows)
    for row in rows:
        weighted = [one["weight"] * row[f"loss/{one['name']}"] for one in losses]
        assert row["loss"] == pytest.approx(sum(weighted), rel=1e-6)
    for term in read_terms([LossConfig(name=name) for name in names], {}):
        first, second = (row[f"loss/{term.name}"] for row in rows)
        assert first != second, term.name
        if term.entry.at_reference and term.name not in ("r_dpo", "alpha_dpo"):  # which look at the rows
            start = np.asarray(term.entry.at_reference(np.ones(1, bool), **term.options)).mean()
            assert first == pytest.approx(start, rel=1e-3), term.name


def saved_parts(workdir: str, step: int) -> set[str]:
    """Of a checkpoint; the reference is one only where it moves."""
    return {path.parent.name for path in Path(workdir, "checkpoints", f"{step}").glob("*/_METADATA")}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("orpo", "orpo needs no reference"),
        pytest.param("dpo", "policy and reference agree", marks=pytest.mark.slow("a run")),
    ],
)
def test_what_a_loss_of_each_kind_says_logs_and_saves(capsys, name: str, says: str):
    (row,) = train({"name": name}, f"runs/alone-{name}", "--train.steps", "1")
    said = capsys.readouterr().err
    assert says in said and ("orpo is published beside an sft term" in said) == (name == "orpo")
    assert row["grad_norm"] > 0
    assert ("log_ratios/chosen" in row) == (name != "orpo") and abs(row.get("log_ratios/chosen", 0)) < 1e-3
    assert saved_parts(f"runs/alone-{name}", 1) == {"params", "rest"}


@pytest.mark.slow("whole commands")
def test_a_reference_that_stays_is_read_again_by_a_resumed_run():
    arguments = ({"name": "tdpo1"}, "runs/tdpo", "--train.steps", "3", "--train.save_every", "2")
    whole = train(*arguments)
    assert saved_parts("runs/tdpo", 3) == {"params", "rest"}
    forget("runs/tdpo", 3)
    assert [row["loss"] for row in train(*arguments)] == [row["loss"] for row in whole]


@pytest.mark.slow("a training of its own")
def test_rows_bring_weights_soft_labels_and_their_source(capsys):
    rows = read_lines("pairs.jsonl")
    lines = [json.dumps(row | {"weight": n % 3, "soft_label": 1 - 0.1 * (n % 2)}) for n, row in enumerate(rows)]
    Path("soft.jsonl").write_text("\n".join(lines) + "\n")
    sources = ("--data.train", "[{path: soft.jsonl, name: soft}, {path: pairs.jsonl}]", "--train.batch_pairs", "40")
    losses = {"name": "dpo", "options": {"beta": 5.0}}
    found = train(losses, "runs/soft", *sources)
    # 20 pairs of weight 1 and 20 of weights 0, 1, 2 (7, 7 and 6 of them): 39 of 40
    assert found[0]["loss"] == pytest.approx(np.log(2) * 39 / 40, abs=1e-4)  # beta 5 lifts the noise
    assert {"rewards/margins/soft", "rewards/accuracies/pairs"} <= found[0].keys()
    said = refused(capsys, "train", "e.yaml", "--workdir", "runs/deaf", "--loss.name", "ipo", *sources)
    assert "soft labels, which ipo cannot read. Allowed: dpo" in said


@pytest.mark.slow("whole commands")
def test_kto_scores_the_mismatched_completions_into_the_store():
    cli.main(["reference", "e.yaml", "--loss.name", "kto", *UNPAIR, "--jsonl", "kto.jsonl"])
    rows = read_lines("kto.jsonl")
    assert len(rows) == 40
    names = ["row_id", "completion_logps", "mismatched_logps", "completion_tokens", "mismatched_tokens"]
    assert list(rows[0]) == names and all(row["completion_logps"] != row["mismatched_logps"] for row in rows)
    metrics = train({"name": "kto"}, "runs/kto-again")
    assert metrics[0]["log_ratios/mismatched"] == pytest.approx(0.0, abs=1e-4)
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert abs(metrics[1]["log_ratios/mismatched"]) > 1e-4


@pytest.mark.slow("whole commands")
def test_ld_wpo_and_an_option_that_moves_train_from_the_store_that_all_losses_share(capsys):
    cli.main(["reference", "e.yaml"])
    losses = [
        {"name": "dpo", "ld_alpha": 0.5},
        {"name": "hinge", "wpo": True},
        {"name": "ipo", "options": {"beta": {"start": 0.5, "end": 0.25, "steps": 1}}},
    ]
    rows = train(losses, "runs/ld-wpo", "--optimizer.learning_rate", "0")
    assert "nothing to score" in capsys.readouterr().err
    for row, ipo in zip(rows, (1.0, 4.0), strict=True):  # the log-ratios stay 0, where IPO is 1 / (4 beta^2)
        assert row["loss/ipo"] == pytest.approx(ipo, rel=1e-4) and row["loss/hinge"] < 1 - 1e-3
        assert row["loss/dpo"] == pytest.approx(np.log(2), abs=1e-5)
        assert row["rewards/margins"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow("whole commands")
def test_alpha_is_steered_by_the_measured_kl_resumes_exactly_and_is_what_the_evaluation_takes(capsys):
    budget = {"kl_budget": 30.0, "kl_every": 2, "kl_samples": 4, "kl_max_new_tokens": 5, "alpha_start": 0.2}
    losses = {"name": "alpha_dpo", "options": {"alpha": "auto", **budget}}
    arguments = ("--optimizer.learning_rate", "0.02", "--train.save_every", "3")
    arguments += (*HELD, "--evaluation.every", "6", "--evaluation.samples", "0")
    whole = train(losses, "runs/auto", *arguments, "--train.steps", "6")
    assert [row["step"] for row in whole if "alpha_dpo/kl" in row] == [2, 4, 6]
    assert [row["alpha_dpo/alpha"] for row in whole[:2]] == pytest.approx([0.2, 0.2])
    alphas = [row["alpha_dpo/alpha"] for row in whole[2:]]
    # the line to the budget of 30 nats: two steps ahead of step 2 it is at 4/6 of it, ahead of step 4 at all of it
    first, second = whole[1]["alpha_dpo/kl"], whole[3]["alpha_dpo/kl"]
    wanted = [4.0 * (4 / 6 - 2 * first / 30), 4.0 * (1 - (2 * second - first) / 30)]
    wanted = [max(-2.0, min(0.5, alpha)) for alpha in wanted]
    assert alphas == pytest.approx([wanted[0], wanted[0], wanted[1], wanted[1]], abs=1e-6)
    assert -2.0 < alphas[0] < 0.5 and alphas[0] != pytest.approx(0.2)
    train(losses, "runs/auto", *arguments, "--train.steps", "6", command="evaluate")
    heldout = json.loads(Path("runs/auto/evaluation.json").read_text())["heldout"]
    assert heldout["loss"] == pytest.approx(whole[-1]["eval/loss"], rel=1e-5)

    forget("runs/auto", 6)
    more = ("--workdir", "runs/auto", "--loss", json.dumps([losses]), *arguments, "--train.steps", "7")
    assert "alpha: auto reaches its budget there" in refused(capsys, "train", "e.yaml", *more)
    assert train(losses, "runs/auto", *arguments, "--train.steps", "6") == whole


def test_alpha_stays_within_its_bounds_and_falls_where_the_kl_is_above_its_line():
    budget = KlBudget(kl_budget=10.0, kl_every=10)
    # half of the run: the line is at 6 by the next measurement
    assert next_alpha(5.0, 4.0, 50, 100, budget) == 0.0
    assert next_alpha(5.5, 4.0, 50, 100, budget) == pytest.approx(4.0 * (6 - 7) / 10)
    assert next_alpha(50.0, 4.0, 50, 100, budget) == -2.0 and next_alpha(0.0, 0.0, 50, 100, budget) == 0.5
    # the line ends at the budget
    assert next_alpha(10.0, 10.0, 100, 100, budget) == 0.0


@pytest.mark.slow("whole commands")
def test_the_reference_moves_to_the_policy(capsys):
    losses, moves = {"name": "dpo"}, ("--reference.update_every", "2", "--train.steps", "5", "--train.save_every", "3")
    rows = train(losses, "runs/tr", *moves)
    assert "no store: the reference moves to the policy every 2 steps" in capsys.readouterr().err
    assert saved_parts("runs/tr", 5) == {"params", "rest", "frozen"}
    at_reference = [abs(row["loss"] - np.log(2)) < 1e-5 for row in rows]
    assert at_reference == [True, False, True, False, True]
    half = ("--reference.update_share", "0.5", "--train.steps", "3")
    assert train(losses, "runs/tr-half", *moves[:2], *half)[2]["loss"] < np.log(2) - 1e-4
    forget("runs/tr", 5)  # resumed in the middle, between two moves
    assert [row["loss"] for row in train(losses, "runs/tr", *moves)] == [row["loss"] for row in rows]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--loss.name", "tdpo1"], "whole distribution"),
    (["--reference.update_every", "3"], "moves to the policy every 3 steps"),
])  # fmt: skip
def test_the_reference_command_says_why_there_is_nothing_to_store(capsys, arguments, says):
    assert says in refused(capsys, "reference", "e.yaml", *arguments)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({"name": "dpo", "ld_alpha": 2}, "ld_alpha: must be at least 0 and at most 1, got 2"),
        ([{"name": "dpo"}, {"name": "kto"}], "kto reads labelled completions and dpo reads pairs"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_are_refused_in_one_sentence(capsys, losses: Any, says: str):
    said = refused(capsys, "train", "e.yaml", "--workdir", "runs/refused", "--loss", json.dumps(losses))
    assert says in said and "command line: loss" in said


@pytest.mark.slow("whole commands")
def test_the_whole_job_on_labelled_completions():
    held = ("--data.eval", "[{path: held.jsonl, unpair: true}]")
    evaluation = ("--evaluation", "{samples: 3, max_new_tokens: 4, every: 1}")
    rows = train({"name": "kto"}, "runs/labelled", *held, *evaluation, command="run")
    found = json.loads(Path("runs/labelled/evaluation.json").read_text())["heldout"]
    assert (found["rows"], found["pairs"]) == (12, 36) and 0 <= found["accuracy"] <= 1 and np.isfinite(found["loss"])
    assert all("eval/accuracy" in row and "rewards/margins" in row for row in rows)
    assert rows[-1]["eval/loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert "<svg" in Path("runs/labelled/report.html").read_text()


@pytest.mark.slow("a whole command")
def test_a_loss_without_a_reference_scores_only_what_the_evaluation_reads(capsys):
    train({"name": "simpo"}, "runs/free", *HELD, command="run")
    said = capsys.readouterr().err
    assert "scores 6 rows" in said and "scores 26 rows" not in said
