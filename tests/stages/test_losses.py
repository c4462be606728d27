"""Every loss by its name, from the command line: it trains, starts where it must, and adds up over micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpo_jax import cli
from dpo_jax.losses import REFERENCE_FREE, TOKEN_LEVEL, UNPAIRED
from dpo_jax.stages.budget import next_alpha
from dpo_jax.stages.terms import TRAINED, KlBudget
from dpo_jax.training.checkpoint import Checkpoints
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, 20 pairs, and an experiment file; the stores are shared by all tests."""
    folder = tmp_path_factory.mktemp("losses")
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", 20)
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "reference": {"store": "runs/stores"},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 2},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(config))
    (folder / "unpaired.yaml").write_text(
        yaml.safe_dump(config | {"data": {**config["data"], "train": [{"path": "pairs.jsonl", "unpair": True}]}})
    )
    return folder


def train(house: Path, monkeypatch: pytest.MonkeyPatch, losses: Any, workdir: str, *arguments: str) -> list[dict]:
    monkeypatch.chdir(house)
    names = [losses["name"]] if isinstance(losses, dict) else [one["name"] for one in losses]
    config = yaml.safe_load((house / ("unpaired.yaml" if names[0] in UNPAIRED else "e.yaml")).read_text())
    (house / "now.yaml").write_text(yaml.safe_dump(config | {"loss": losses, "workdir": workdir}))
    cli.main(["train", "now.yaml", *arguments])
    return [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TRAINED)
def test_every_loss_trains_by_its_name(house: Path, monkeypatch, capsys, name: str):
    found = train(house, monkeypatch, {"name": name}, f"runs/{name}")
    said = capsys.readouterr().err
    assert len(found) == 2 and all(np.isfinite(list(row.values())).all() for row in found)
    assert found[0]["grad_norm"] > 0 and found[0]["loss"] != found[1]["loss"]
    if name in REFERENCE_FREE:
        assert "needs no reference" in said and "log_ratios/chosen" not in found[0]
    elif name in TOKEN_LEVEL:
        assert f"no store: {name}" in said and found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    else:
        assert "policy and reference agree" in said and abs(found[0]["log_ratios/chosen"]) < 1e-3


def test_a_checkpoint_holds_the_reference_only_where_it_moves(house: Path, monkeypatch):
    for name, every in (("dpo", 0), ("simpo", 0), ("tdpo1", 0), ("dpo", 2)):
        workdir, moves = f"runs/live-{name}-{every}", ("--reference.update_every", f"{every}")
        train(house, monkeypatch, {"name": name}, workdir, "--train.steps", "1", *moves)
        saved = Path(f"{workdir}/checkpoints/1")
        assert (saved / "rest").exists() and (saved / "frozen").exists() == bool(every)


def test_a_reference_that_stays_is_read_again_by_a_resumed_run(house: Path, monkeypatch):
    whole = train(house, monkeypatch, {"name": "tdpo1"}, "runs/tdpo-whole", "--train.steps", "3")
    train(house, monkeypatch, {"name": "tdpo1"}, "runs/tdpo-parts", "--train.steps", "2")
    parts = train(house, monkeypatch, {"name": "tdpo1"}, "runs/tdpo-parts", "--train.steps", "3")
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]


def test_a_mixture_is_the_weighted_sum_of_its_terms(house: Path, monkeypatch):
    losses = [{"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}, {"name": "sft", "weight": 1.5}]
    row = train(house, monkeypatch, losses, "runs/mixture")[0]
    assert row["loss/dpo"] == pytest.approx(np.log(2), abs=1e-5)
    assert row["loss/bco_pair"] == pytest.approx(2 * np.log(2), abs=1e-5)
    parts = 0.8 * row["loss/dpo"] + 0.2 * row["loss/bco_pair"] + 1.5 * row["loss/sft"]
    assert row["loss"] == pytest.approx(parts, rel=1e-6)


def test_rows_bring_weights_soft_labels_and_their_source(house: Path, monkeypatch, capsys):
    rows = [json.loads(line) for line in (house / "pairs.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"weight": n % 3, "soft_label": 1 - 0.1 * (n % 2)}) for n, row in enumerate(rows)]
    (house / "soft.jsonl").write_text("\n".join(lines) + "\n")
    sources = ("--data.train", "[{path: soft.jsonl, name: soft}, {path: pairs.jsonl}]", "--train.batch_pairs", "40")
    losses = {"name": "dpo", "options": {"beta": 5.0}}
    found = train(house, monkeypatch, losses, "runs/soft", *sources)
    # 20 pairs of weight 1 and 20 of weights 0, 1, 2 (7, 7 and 6 of them): 39 of 40
    assert found[0]["loss"] == pytest.approx(np.log(2) * 39 / 40, abs=1e-4)  # beta 5 lifts the noise
    assert {"rewards/margins/soft", "rewards/accuracies/pairs"} <= found[0].keys()
    with pytest.raises(SystemExit) as stopped:
        train(house, monkeypatch, {"name": "ipo"}, "runs/deaf", *sources)
    assert stopped.value.code == 2 and "soft labels, which ipo cannot read. Allowed: dpo" in capsys.readouterr().err


def test_kto_scores_the_mismatched_completions_into_the_store(house: Path, monkeypatch):
    monkeypatch.chdir(house)
    cli.main(["reference", "unpaired.yaml", "--loss.name", "kto", "--jsonl", "kto.jsonl"])
    rows = [json.loads(line) for line in Path("kto.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    names = ["row_id", "completion_logps", "mismatched_logps", "completion_tokens", "mismatched_tokens"]
    assert list(rows[0]) == names and all(row["completion_logps"] != row["mismatched_logps"] for row in rows)
    metrics = train(house, monkeypatch, {"name": "kto"}, "runs/kto-again")
    assert metrics[0]["log_ratios/mismatched"] == pytest.approx(0.0, abs=1e-4)
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert abs(metrics[1]["log_ratios/mismatched"]) > 1e-4


def test_ld_and_wpo_train_from_the_store(house: Path, monkeypatch, capsys):
    monkeypatch.chdir(house)
    cli.main(["reference", "e.yaml"])
    both = {"name": "dpo", "ld_alpha": 0.5, "wpo": True}
    found = train(house, monkeypatch, both, "runs/ld-wpo")
    assert "nothing to score" in capsys.readouterr().err  # the store that all losses share
    assert found[0]["loss"] < np.log(2) - 1e-3 and found[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    ld = train(house, monkeypatch, {"name": "dpo", "ld_alpha": 0.5}, "runs/ld")
    assert ld[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_an_option_may_move_in_a_straight_line(house: Path, monkeypatch):
    # beta scales the reward: at 0 log-ratio the loss stays log 2, so it shows in IPO, 1 / (4 beta^2)
    ramp = {"start": 0.5, "end": 0.25, "steps": 1}
    losses = {"name": "ipo", "options": {"beta": ramp}}
    found = train(house, monkeypatch, losses, "runs/ramp", "--optimizer.learning_rate", "0")
    assert [row["loss"] for row in found] == pytest.approx([1.0, 4.0], rel=1e-4)


def steered(house: Path, monkeypatch: pytest.MonkeyPatch, workdir: str, *arguments: str) -> list[dict]:
    options = {
        "alpha": "auto",
        "kl_budget": 30.0,
        "kl_every": 2,
        "kl_samples": 4,
        "kl_max_new_tokens": 5,
        "alpha_start": 0.2,
    }
    return train(house, monkeypatch, {"name": "alpha_dpo", "options": options}, workdir, *arguments)


def test_alpha_is_steered_by_the_measured_kl_and_resumes_exactly(house: Path, monkeypatch, capsys):
    rates = ("--optimizer.learning_rate", "0.02", "--train.save_every", "3")
    whole = steered(house, monkeypatch, "runs/auto", *rates, "--train.steps", "6")
    assert [row["step"] for row in whole if "alpha_dpo/kl" in row] == [2, 4, 6]
    assert [row["alpha_dpo/alpha"] for row in whole[:2]] == pytest.approx([0.2, 0.2])
    alphas = [row["alpha_dpo/alpha"] for row in whole[2:]]
    # the line to the budget of 30 nats: two steps ahead of step 2 it is at 4/6 of it, ahead of step 4 at all of it
    first, second = whole[1]["alpha_dpo/kl"], whole[3]["alpha_dpo/kl"]
    wanted = [4.0 * (4 / 6 - 2 * first / 30), 4.0 * (1 - (2 * second - first) / 30)]
    wanted = [max(-2.0, min(0.5, alpha)) for alpha in wanted]
    assert alphas == pytest.approx([wanted[0], wanted[0], wanted[1], wanted[1]], abs=1e-6)
    assert -2.0 < alphas[0] < 0.5 and alphas[0] != pytest.approx(0.2)

    save = Checkpoints.save

    def killed(self, number, *rest):
        save(self, number, *rest)
        if number == 3:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(SystemExit):
        steered(house, monkeypatch, "runs/auto-parts", *rates, "--train.steps", "6")
    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(SystemExit):
        steered(house, monkeypatch, "runs/auto-parts", *rates, "--train.steps", "7")
    assert "alpha: auto reaches its budget there" in capsys.readouterr().err
    parts = steered(house, monkeypatch, "runs/auto-parts", *rates, "--train.steps", "6")
    timed = ("tokens_per_second", "pairs_per_second")
    for ours, wanted in zip(parts, whole, strict=True):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in wanted.items() if k not in timed}


def test_alpha_stays_within_its_bounds_and_falls_where_the_kl_is_above_its_line():
    budget = KlBudget(kl_budget=10.0, kl_every=10)
    # half of the run: the line is at 6 by the next measurement
    assert next_alpha(5.0, 4.0, 50, 100, budget) == 0.0
    assert next_alpha(5.5, 4.0, 50, 100, budget) == pytest.approx(4.0 * (6 - 7) / 10)
    assert next_alpha(50.0, 4.0, 50, 100, budget) == -2.0 and next_alpha(0.0, 0.0, 50, 100, budget) == 0.5
    # the line ends at the budget
    assert next_alpha(10.0, 10.0, 100, 100, budget) == 0.0


def test_the_reference_moves_to_the_policy(house: Path, monkeypatch, capsys):
    arguments = ("--reference.update_every", "2", "--train.steps", "5")
    found = train(house, monkeypatch, {"name": "dpo"}, "runs/tr", *arguments)
    assert "no store: the reference moves to the policy every 2 steps" in capsys.readouterr().err
    at_reference = [abs(row["loss"] - np.log(2)) < 1e-5 for row in found]
    assert at_reference == [True, False, True, False, True]
    half = train(house, monkeypatch, {"name": "dpo"}, "runs/tr-half", *arguments, "--reference.update_share", "0.5")
    assert half[2]["loss"] < np.log(2) - 1e-4
    # resumed in the middle, between two moves
    train(house, monkeypatch, {"name": "dpo"}, "runs/tr-parts", *arguments[:2], "--train.steps", "3")
    parts = train(house, monkeypatch, {"name": "dpo"}, "runs/tr-parts", *arguments)
    assert [row["loss"] for row in parts] == [row["loss"] for row in found]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--loss.name", "tdpo1"], "whole distribution"),
    (["--reference.update_every", "3"], "moves to the policy every 3 steps"),
])  # fmt: skip
def test_the_reference_command_says_why_there_is_nothing_to_store(house: Path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(house)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reference", "e.yaml", *arguments])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({"name": "hige"}, "'hige' is unknown. Did you mean 'hinge'"),
        ({"name": "dpo", "options": {"bta": 1}}, "loss.options.bta: dpo has no such option. Did you mean 'beta'"),
        ({"name": "dpo", "options": {"beta": 0}}, "loss.options.beta: a number in (0, inf) is wanted, not 0"),
        ({"name": "dpo", "options": {"beta": float("nan")}}, "is wanted, not nan"),
        ({"name": "dpo", "options": {"beta": True}}, "is wanted, not True"),
        ({"name": "dpo", "options": {"beta": {"start": 0.1, "end": 0.2}}}, "a value that moves is written {start:"),
        ({"name": "dpo", "options": {"beta": {"start": 0.1, "end": -1, "steps": 5}}}, "a number in (0, inf) is wanted"),
        ({"name": "dpo", "options": {"beta": {"from": 0.1}}}, "loss.options.beta.from: the key is unknown"),
        ({"name": "exo_pair", "options": {"label_smoothing": 0.5}}, "a number in (0, 0.5) is wanted, not 0.5"),
        ({"name": "f_dpo", "options": {"divergence": "kl"}}, "'kl' is unknown. Allowed: reverse_kl, forward_kl, js"),
        ({"name": "ipo", "options": {"average": 1}}, "1 is unknown. Allowed: false, true"),
        ({"name": "chi_po", "options": {"clip": "no"}}, "a number in (0, inf) or null is wanted, not 'no'"),
        ({"name": "bco_pair", "options": {"delta": 0.1}}, "bco_pair has no such option"),
        ({"name": "simpo", "options": {"kl_budget": 3}}, "belongs to alpha_dpo with `alpha: auto`"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto"}}, "give it as kl_budget"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": -1}}, "kl_budget: a number above 0 is wanted"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": 1, "kl_every": 1.5}}, "a whole number"),
        ({"name": "kto", "wpo": True}, "loss.wpo: belongs to losses on pairs; kto is none"),
        ({"name": "dpo", "ld_alpha": 2}, "ld_alpha: must be at least 0 and at most 1, got 2"),
        ([{"name": "dpo"}, {"name": "kto"}], "kto reads labelled completions and dpo reads pairs"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_are_refused_in_one_sentence(house: Path, monkeypatch, capsys, losses: Any, says: str):
    with pytest.raises(SystemExit) as stopped:
        train(house, monkeypatch, losses, "runs/refused")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and says in said and "Traceback" not in said and "now.yaml" in said


def test_a_loss_published_beside_an_sft_term_says_so_when_alone(house: Path, monkeypatch, capsys):
    train(house, monkeypatch, {"name": "orpo"}, "runs/orpo-alone", "--train.steps", "1")
    assert "orpo is published beside an sft term" in capsys.readouterr().err
    losses = [{"name": "sft"}, {"name": "orpo", "weight": 0.1}]
    train(house, monkeypatch, losses, "runs/orpo-sft", "--train.steps", "1")
    assert "is published beside" not in capsys.readouterr().err


def test_the_whole_job_on_labelled_completions(house: Path, monkeypatch, capsys):
    monkeypatch.chdir(house)
    write_rows(house / "held.jsonl", 6, seed=1)
    config = yaml.safe_load((house / "unpaired.yaml").read_text())
    config |= {"workdir": "runs/labelled", "loss": {"name": "kto"}, "evaluation": {"samples": 3, "max_new_tokens": 4}}
    config["data"]["eval"] = [{"path": "held.jsonl", "unpair": True}]
    config["evaluation"]["every"] = 1
    (house / "labelled.yaml").write_text(yaml.safe_dump(config))
    cli.main(["run", "labelled.yaml"])
    found = json.loads(Path("runs/labelled/evaluation.json").read_text())["heldout"]
    assert (found["rows"], found["pairs"]) == (12, 36) and 0 <= found["accuracy"] <= 1 and np.isfinite(found["loss"])
    rows = [json.loads(line) for line in Path("runs/labelled/metrics.jsonl").read_text().splitlines()]
    assert all("eval/accuracy" in row and "rewards/margins" in row for row in rows)
    assert rows[-1]["eval/loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert "<svg" in Path("runs/labelled/report.html").read_text()


def test_a_loss_without_a_reference_scores_only_what_the_evaluation_reads(house: Path, monkeypatch, capsys):
    monkeypatch.chdir(house)
    write_rows(house / "held.jsonl", 6, seed=1)
    config = yaml.safe_load((house / "e.yaml").read_text())
    config |= {"workdir": "runs/free", "loss": {"name": "simpo"}}
    config["data"]["eval"] = [{"path": "held.jsonl"}]
    (house / "free.yaml").write_text(yaml.safe_dump(config))
    cli.main(["run", "free.yaml"])
    said = capsys.readouterr().err
    assert "scores 6 rows" in said and "scores 26 rows" not in said


def test_the_evaluation_of_a_steered_alpha_takes_the_alpha_that_was_reached(house: Path, monkeypatch):
    monkeypatch.chdir(house)
    write_rows(house / "held.jsonl", 6, seed=1)
    config = yaml.safe_load((house / "e.yaml").read_text())
    options = {
        "alpha": "auto",
        "kl_budget": 50.0,
        "alpha_start": 0.1,
        "kl_every": 1,
        "kl_samples": 2,
        "kl_max_new_tokens": 3,
    }
    config |= {"workdir": "runs/reached", "loss": {"name": "alpha_dpo", "options": options}}
    config["data"]["eval"] = [{"path": "held.jsonl"}]
    config["evaluation"] = {"every": 2}
    config["optimizer"]["learning_rate"] = 0.02
    (house / "reached.yaml").write_text(yaml.safe_dump(config))
    cli.main(["run", "reached.yaml"])
    rows = [json.loads(line) for line in Path("runs/reached/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["alpha_dpo/alpha"] not in (0.0, pytest.approx(0.1))
    found = json.loads(Path("runs/reached/evaluation.json").read_text())["heldout"]
    assert found["loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-5)
