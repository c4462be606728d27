"""The analysis of a run: one step taken apart by value, the field's predictions by formula, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.analysis.field import pair_loss
from dpo_jax.analysis.trajectory import field_of, halves
from dpo_jax.config import LossConfig
from dpo_jax.errors import UserError
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.experiments.losses import read_terms
from dpo_jax.experiments.text_analysis import loss_of_run, read_trajectory, take_apart
from dpo_jax.losses import PairLogps, RunningMean, bco_pair, dpo, simpo
from dpo_jax.objectives.preference import preference_objective
from dpo_jax.reference.score import score_rows
from dpo_jax.training.state import TrainState
from dpo_jax.training.step import gradients
from tests.objectives.toy import PAIRS, Toy, make_batch, parameters, warm
from tests.tiny_experiment import make_experiment, opened, refused, run

PAIR = PairLogps(*map(np.asarray, (-20.0, -12.0, 8.0, 5.0)))

MIXTURES: dict[str, list[dict[str, Any]]] = {
    "dpo and sft": [{"name": "dpo", "weight": 0.7}, {"name": "sft", "weight": 0.2}],
    "heads apart": [{"name": "ipo", "ld_alpha": 0.4}],
    "of the whole batch": [{"name": "alpha_dpo"}],
}


def toy_step(losses: list[dict[str, Any]], alone: int | None = None) -> Any:
    """A step of plain gradient descent in float64, taken apart; one pair may count alone."""
    terms = read_terms([LossConfig(**loss) for loss in losses], {})
    objective = preference_objective(Toy().apply, terms)  # type: ignore[arg-type]
    counts = np.ones((PAIRS, 1)) if alone is None else np.eye(PAIRS)[:, alone : alone + 1]
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=PAIRS, reference=True)
    batch = batch._replace(loss_weight_B=counts)
    memory = tuple(warm(term.memory()) for term in terms)
    knobs = {"losses": [term.knobs(0) for term in terms]}

    def run(params: Any, batch: Any) -> Any:
        state = TrainState(jnp.zeros((), jnp.int32), params, None, jnp.zeros(2, jnp.uint32), memory)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradient = gradients(objective, state, batch, knobs, key)[1]
        after = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
        return take_apart(objective, state, after, batch, knobs)

    return jax.device_get(STEPS.setdefault(repr(losses), jax.jit(run))(parameters(0), batch))


RATE = 1e-7
SLOW = pytest.mark.slow("a step of its own")
STEPS: dict[str, Any] = {}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "mixture", ["dpo and sft", *(pytest.param(name, marks=SLOW) for name in ("heads apart", "of the whole batch"))]
)
def test_the_pulls_add_up_to_what_gradient_descent_does(mixture: str):
    found = toy_step(MIXTURES[mixture])
    whole = found.pulls.own_chosen + found.pulls.own_rejected + found.pulls.others
    np.testing.assert_allclose(found.pulls.first_order, RATE * whole, rtol=1e-6)  # a step of 1e-7 keeps 9 digits
    np.testing.assert_allclose(found.after_AP - found.before_AP, RATE * whole, rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mixture", ["dpo and sft", pytest.param("heads apart", marks=SLOW)])
def test_a_pair_that_counts_alone_is_pulled_by_nothing_else(mixture: str):
    """So what goes for its own pull is the gradient of its own loss."""
    pulls = toy_step(MIXTURES[mixture], alone=3).pulls
    own = pulls.own_chosen + pulls.own_rejected
    assert np.abs(own[3]).min() > 1e-3
    np.testing.assert_allclose(pulls.others[3], 0.0, atol=1e-12)
    np.testing.assert_allclose(np.delete(own, 3, axis=0), 0.0, atol=1e-12)


def metrics_of(kind: str, count: int = 40) -> list[dict[str, float]]:
    steps = np.arange(1, count + 1)
    return [{"step": s, f"{kind}/chosen": -50 - s / 10, f"{kind}/rejected": -30 - s} for s in steps.tolist()]


def test_a_trajectory_is_of_log_ratios_else_of_changes():
    found = read_trajectory(metrics_of("log_ratios"), where="x")
    assert found.kind == "log_ratios" and found.places_S2[0].tolist() == [-50.1, -31]
    np.testing.assert_allclose(found.moved_2, [-50 - 3.8, -30 - 38])  # the mean of steps 36 to 40
    found = read_trajectory(metrics_of("logps"), where="x")
    assert found.kind == "logps"
    np.testing.assert_allclose(found.moved_2, [-3.5, -35.0])  # less that of steps 1 to 5
    with pytest.raises(UserError, match="no step has been logged"):
        read_trajectory([{"step": 1, "loss": 0.3}], where="metrics.jsonl")


def read(*losses: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    terms = read_terms([LossConfig(**loss) for loss in losses], {})
    return terms, [term.memory() for term in terms]


def test_the_field_is_of_the_runs_own_loss():
    ramp = {"start": 0.1, "end": 0.3, "steps": 10}
    terms, memory = read(
        {"name": "dpo", "weight": 0.5, "options": {"beta": ramp}}, {"name": "simpo"}, {"name": "bco_pair"}
    )
    memory[2]["state"] = RunningMean(np.float32(0.4), np.float32(9.0))
    loss, _ = loss_of_run(terms, memory, step=5)
    assert loss
    policy = PairLogps(*(jnp.array([x]) for x in (-18.0, -13.0, 8.0, 5.0)))
    frozen = PairLogps(*(jnp.array([x]) for x in PAIR))
    wanted = 0.5 * dpo(policy, frozen, beta=0.2) + simpo(policy) + bco_pair(policy, frozen, delta=0.4)
    np.testing.assert_allclose(loss(policy, frozen), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ({"name": "alpha_dpo"}, "other pairs of the batch"),
        ({"name": "tdpo2"}, "at every token"),
        ({"name": "dpo", "ld_alpha": 0.5}, "heads"),
        ({"name": "dpo", "wpo": True}, "weighs pairs"),
    ],
)
def test_a_loss_without_a_field_says_why(loss: dict[str, Any], reason: str):
    found, why = loss_of_run(*read({"name": "sft"}, loss), step=0)
    assert found is None and reason in why and loss["name"] in why


def test_the_field_predicts_both_halves_at_the_same_margin():
    trajectory = read_trajectory(metrics_of("log_ratios"), where="x")
    trajectory = trajectory._replace(places_S2=np.array([[0.0, 0.0], [-1.0, -4.0]]))
    found = halves(trajectory.moved_2, pair_loss("dpo"), PAIR)
    assert found["measured"] == {"chosen": -1.0, "rejected": -4.0, "faster": "rejected"}
    predicted, fallen = found["predicted"], 0.5 * np.log(2 / (1 + np.exp(6.0)))  # x_w^2 + x_l^2 = 2, x_w / x_l = e^3
    assert predicted["logp"] == pytest.approx({"chosen": 1.5, "rejected": -1.5}, abs=1e-3)
    assert predicted["ratio"] == pytest.approx({"chosen": 3 + fallen, "rejected": fallen}, abs=1e-3)
    assert predicted["probability"] == pytest.approx({"chosen": 3.0, "rejected": 0.0}, abs=1e-3)  # it is likelier
    for loss, places in (
        (pair_loss("ipo", average=False, beta=0.5), trajectory.places_S2),  # ends at a margin of 1
        (pair_loss("dpo"), trajectory.places_S2[:, ::-1]),  # the margin fell
    ):
        predicted = halves(trajectory._replace(places_S2=places).moved_2, loss, PAIR)["predicted"]
        assert set(predicted.values()) == {None}
    assert halves(trajectory.moved_2, None, PAIR)["predicted"] == {}


def test_the_field_covers_the_places_and_the_reference():
    places = np.array([[0.5, -20.0], [3.0, -5.0]])
    found = field_of(pair_loss("dpo"), PAIR, places)
    # 3 wide and 20 high with the reference: a square of 24 around (1.5, -10).
    assert found["low"] == pytest.approx([-10.5, -22]) and found["high"] == pytest.approx([13.5, 2.0])
    grid, arrows = np.array(found["grid"]), np.array(found["logp"]["arrows"])
    assert grid.shape == arrows.shape == (169, 2) and len(found["slope"]) == 169
    np.testing.assert_allclose(arrows, np.array([[1, -1]] * 169) / 2**0.5, atol=1e-4)
    slopes = 0.1 * 2**0.5 / (1 + np.exp(0.1 * (grid[:, 0] - grid[:, 1])))
    np.testing.assert_allclose(found["slope"], slopes, atol=1e-4)
    # In ratios the arrow leans to the half that has lost more; chosen is the likelier one everywhere to the left.
    leans = np.abs(np.array(found["ratio"]["arrows"]))
    assert ((leans[:, 1] > leans[:, 0]) == (grid[:, 0] > grid[:, 1])).all()
    lines = np.array(found["ratio"]["lines"])
    np.testing.assert_allclose(lines[0, 0], 0.0, atol=1e-4)
    np.testing.assert_allclose((np.exp(lines[0]) ** 2).sum(-1), 2.0, rtol=2e-3)


def make_run(folder: Path, *, heldout: bool = True, **sections: Any) -> Path:
    data = {"eval": [{"path": "held.jsonl"}] if heldout else []}
    more: dict[str, Any] = {"train": {"steps": 3}, "analysis": {"pairs": 8}, "reference": None, **sections}
    return make_experiment(folder, held=10, data=data, **more)


def analysed(folder: Path, *arguments: str) -> dict[str, Any]:
    run(folder, "analyse", "runs/demo", *arguments)
    written = json.loads((folder / "runs/demo/analysis.json").read_text())
    assert Analysis.from_json(written).to_json() == written  # a report reads what was written
    return written


def test_there_must_be_a_run_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(make_run(tmp_path))
    for arguments, says in (
        ((), "there is no trained run yet; run `dpo-jax train` first"),
        (("--loss.name", "kto"), "kto is trained on labelled completions"),
    ):
        assert says in refused(capsys, "analyse", "e.yaml", *arguments)


def scores_of(row_ids: list[str]) -> np.ndarray:
    """Log-probs of training rows under the newest checkpoint, [n, P]."""
    setup = opened()
    with jax.set_mesh(setup.mesh):
        rows = setup.train_data.rows
        names, found = score_rows(setup.score, setup.trained_params(), setup.scoring_batches(rows), place=setup.place)
    known = dict(zip(names, found.logps_nP, strict=True))
    return np.stack([known[row_id] for row_id in row_ids])


@pytest.mark.slow("whole commands")
def test_a_run_of_dpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(make_run(tmp_path))
    here = Path()
    logged = run(here, "train", "runs/demo")
    found = analysed(here)
    assert "8 pairs: the first order misses" in capsys.readouterr().err
    assert found["step"] == 3 and found["trajectory"]["steps"] == [1, 2, 3]
    assert found["trajectory"]["places"] == [
        [row[f"log_ratios/{half}"] for half in ("chosen", "rejected")] for row in logged
    ]
    assert found["halves"]["measured"]["rejected"] == found["trajectory"]["places"][-1][1]
    assert len(found["field"]["grid"]) == 169

    # The held-out rows, as an evaluation sees them.
    run(here, "evaluate", "runs/demo")
    lost, heldout = found["displacement"], json.loads(Path("runs/demo/evaluation.json").read_text())["heldout"]
    assert lost["split"] == "held out" and lost["pairs"] == 10
    assert lost["chosen"] - lost["rejected"] == pytest.approx(heldout["margin"], rel=1e-4)
    for likeness in lost["by"].values():
        assert sum(part["pairs"] for part in likeness["bins"]) == 10
        assert sum(part["fell"] for part in likeness["bins"]) == lost["fell"]
        means = [part["pairs"] * part["chosen"] / 10 for part in likeness["bins"]]
        assert sum(means) == pytest.approx(lost["chosen"], abs=1e-4)

    # The step that was taken apart is the run's next one.
    pairs = found["one_step"]["pairs"]
    row_ids = [pair["row_id"] for pair in pairs]
    before = scores_of(row_ids)
    run(here, "train", "runs/demo", "--train.steps", "4")
    happened = scores_of(row_ids) - before
    told = np.array([[pair[half]["happened"] for half in ("chosen", "rejected")] for pair in pairs])
    np.testing.assert_allclose(told, happened, atol=2e-3)
    assert np.abs(happened).max() > 0.1 and "the warm" in pairs[0]["chosen"]["text"]


@pytest.mark.slow("whole commands")
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"loss": {"name": "simpo"}, "heldout": False}, "logps"),  # neither a reference nor a store
        ({"lora": {"rank": 4}}, "log_ratios"),
        ({"loss": {"name": "tdpo2"}, "reference": {"update_every": 2}}, "log_ratios"),
    ],
    ids=["simpo", "lora", "tdpo, moving reference"],
)
def test_other_runs(tmp_path: Path, changes: dict[str, Any], kind: str):
    folder = make_run(tmp_path, **changes)
    run(folder, "train", "runs/demo")
    found = analysed(folder, "--optimizer.learning_rate", "1e-5", "--analysis.rows", "4", "--analysis.pairs", "2")
    assert found["trajectory"]["kind"] == kind and found["displacement"]["pairs"] == 4
    assert ("refused" in found["field"]) == (changes.get("loss") == {"name": "tdpo2"})
    assert found["displacement"]["split"] == ("held out" if changes.get("heldout", True) else "training")
    assert len(found["one_step"]["pairs"]) == 2 and found["one_step"]["learning_rate"] == 1e-5
    assert found["one_step"]["unexplained"] < 0.02  # a small step is its first order
