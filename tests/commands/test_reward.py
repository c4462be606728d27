"""The reward model from the command line, its objective in float64, and its verdicts."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import cli
from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges import Scoring
from dpo_jax.experiments.judging import open_rewards
from dpo_jax.experiments.text_evaluation import compare_samples, judge_of
from dpo_jax.mesh import make_mesh
from dpo_jax.models.heads import RewardModel
from dpo_jax.objectives.preference import reward_objective
from dpo_jax.training.metrics import divide
from dpo_jax.types import PairBatch, Prompt
from tests.commands.test_replaced import other_weights
from tests.objectives.toy import WIDTH, Toy, first_micro_batch, jitted_gradients, make_batch, parameters, place
from tests.tiny_experiment import forget, make_experiment, metrics, opened, read_lines, refused, run, write_lines
from tests.tiny_gpt2 import make_gpt2_folder

KNOBS = {"options": {"margin": 0.3, "center": 0.05}}
SOURCES = ("one", "other")


def toy_params() -> dict[str, Any]:
    weight = jnp.asarray(np.random.default_rng(7).normal(size=WIDTH))
    return {"read": parameters(0)["read"], "say": parameters(0)["say"], "head": {"weight": weight}}


STEP = jitted_gradients(reward_objective(RewardModel(Toy()).rewards, sources=SOURCES))  # type: ignore[arg-type]


def found_by(micro_batches: int, mesh: Any = None, **columns: Any) -> Any:
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=micro_batches, reference=False)
    shape = batch.weight_B.shape
    brought = {"loss_weight_B": np.ones(shape), "margin_B": np.zeros(shape), "source_B": np.zeros(shape, int)}
    batch = batch._replace(**{**brought, **columns})
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        return jax.device_get(STEP(toy_params(), None, place(batch, mesh) if mesh else batch, KNOBS, ()))


@jax.jit
def by_hand(params: Any, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
    """The loss of one micro-batch, row by row, and its rewards [B, P]."""
    hidden_RTD, _ = Toy().apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
    last_R = batch.segments_RT.sum(axis=1) - 1
    rewards = jnp.stack([hidden_RTD[r, last_R[r]] @ params["head"]["weight"] for r in range(16)]).reshape(8, 2)
    gaps = rewards[:, 0] - rewards[:, 1] - 0.3
    return (jnp.log1p(jnp.exp(-gaps)) + 0.05 * rewards.sum(axis=1) ** 2).mean(), rewards


def by_hand_of_all() -> tuple[np.ndarray, np.ndarray]:
    """The rewards of the whole batch [B, P], and what a pair loses for their sum."""
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=False)
    rewards_BP = np.asarray(by_hand(toy_params(), first_micro_batch(batch))[1])
    return rewards_BP, 0.05 * rewards_BP.sum(axis=1) ** 2


def test_loss_gradients_and_metrics_by_hand(x64):
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=False)
    (loss, metrics, _), gradient = found_by(1)
    of_loss = jax.jit(jax.value_and_grad(lambda params: by_hand(params, first_micro_batch(batch))[0]))
    wanted, slope = of_loss(toy_params())
    assert loss == pytest.approx(float(wanted), rel=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), gradient, slope)
    assert np.any(gradient["read"]) and np.all(gradient["head"]["weight"])
    rewards, _ = by_hand_of_all()
    values = {name: float(value) for name, value in divide(metrics).items() if not name.endswith(SOURCES)}
    assert values == pytest.approx(
        {
            "rewards/chosen": rewards[:, 0].mean(),
            "rewards/rejected": rewards[:, 1].mean(),
            "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
            "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).mean(),
        },
        rel=1e-9,
    )


def test_micro_batches_on_eight_devices_change_nothing(x64):
    found, wanted = found_by(4, make_mesh(data=2, fsdp=2, tensor=2)), found_by(1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, wanted)


def test_a_pair_without_weight_does_not_count(x64):
    weight_AB = np.float32([[1, 0, 1, 1, 0, 1, 1, 1]])
    (loss, metrics, _), _ = found_by(1, weight_B=weight_AB)
    rewards, centered = (each[weight_AB[0] > 0] for each in by_hand_of_all())
    gaps = rewards[:, 0] - rewards[:, 1] - 0.3
    assert loss == pytest.approx((np.log1p(np.exp(-gaps)) + centered).mean(), rel=1e-9)
    assert divide(metrics)["rewards/chosen"] == pytest.approx(rewards[:, 0].mean(), rel=1e-9)


def test_pairs_bring_weights_margins_and_sources(x64):
    weight_B, margin_B, source_B = np.arange(8) / 4, np.linspace(-1, 2, 8), np.arange(8) % 2
    brought = {"loss_weight_B": weight_B[None], "margin_B": margin_B[None], "source_B": source_B[None]}
    (loss, metrics, _), _ = found_by(1, **brought)
    rewards, centered = by_hand_of_all()
    gaps = rewards[:, 0] - rewards[:, 1] - 0.3 - margin_B
    assert loss == pytest.approx((weight_B * (np.log1p(np.exp(-gaps)) + centered)).mean(), rel=1e-9)
    means = divide(metrics)
    for number, name in enumerate(SOURCES):
        margins = (rewards[:, 0] - rewards[:, 1])[number::2]
        assert means[f"rewards/margins/{name}"] == pytest.approx(margins.mean(), rel=1e-9)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, 20 pairs and 6 held-out ones, and a reward model trained on them."""
    reward = {
        "options": {"center": 0.01, "margin": 2.0},
        "optimizer": {"learning_rate": 3e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 6, "save_every": 4},
    }
    folder = make_experiment(
        tmp_path_factory.mktemp("reward"),
        held=6,
        data={"eval": [{"path": "held.jsonl"}]},
        reward=reward,
        evaluation={"samples": 16, "max_new_tokens": 5, "judge": {"name": "reward"}},
    )
    make_gpt2_folder(folder / "gpt2", old=True)
    run(folder, "reward", "runs/demo")
    return folder


@pytest.fixture
def inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)


def judged(location: str | None, *arguments: str) -> np.ndarray:
    """The rewards of the held-out pairs, [n, 2]."""
    setup = opened(*arguments)
    rows = read_lines("held.jsonl")
    with jax.set_mesh(setup.mesh):
        judge = open_rewards(setup, location).scores
        columns = [
            judge([Prompt(row["prompt"], None, "") for row in rows], [row[side] for row in rows])
            for side in ("chosen", "rejected")
        ]
    return np.stack(columns, axis=1)


def test_it_does_not_go_on_with_other_margins_or_weights(house, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(house, tmp_path, dirs_exist_ok=True))
    rows = Path("pairs.jsonl").read_text()
    write_lines("pairs.jsonl", [{**row, "margin": 0.5} for row in read_lines("pairs.jsonl")])
    assert "runs/demo/reward was trained on something else" in refused(capsys, "reward", "e.yaml")
    Path("pairs.jsonl").write_text(rows)
    other_weights()
    assert "model.weights in float32: was" in refused(capsys, "reward", "e.yaml")


def test_it_learns_and_says_how_well(house: Path, inside: None):
    rows = metrics("runs/demo/reward")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[0]["loss"] > np.log1p(np.exp(2.0 - rows[0]["rewards/margins"]))  # convex: above that of the mean
    assert rows[-1]["rewards/accuracies"] > 0.9 and rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    assert not Path("runs/demo/checkpoints").exists() and not Path("runs/demo/config.yaml").exists()
    found = json.loads(Path("runs/demo/reward/evaluation.json").read_text())["heldout"]
    rewards = judged(None)
    margins = rewards[:, 0] - rewards[:, 1]
    assert found["pairs"] == 6 and found["accuracy"] == (margins > 0).mean()
    assert found["margin"] == pytest.approx(margins.mean(), rel=1e-5)
    assert found["loss"] == pytest.approx(
        np.mean(np.log1p(np.exp(2.0 - margins)) + 0.01 * rewards.sum(axis=1) ** 2), rel=1e-4
    )


def test_run_workdir_and_exported_folder_judge_alike(inside: None):
    wanted, short = judged(None), ("--data.max_tokens", "12", "--data.max_prompt_tokens", "4")
    np.testing.assert_array_equal(judged("runs/demo", "--workdir", "runs/other", *short), wanted)
    np.testing.assert_allclose(judged("runs/demo/reward/export", "--workdir", "runs/other"), wanted, rtol=1e-5)
    adapter = ("--workdir", "runs/other", "--lora", "{rank: 4}", "--export.lora", "adapter")  # the judge has none
    np.testing.assert_allclose(judged("runs/demo/reward/export", *adapter), wanted, rtol=1e-5)
    assert np.all(judged("runs/demo/reward/export", *short) != wanted)  # a folder does not know how it was trained
    exported = load_file("runs/demo/reward/export/model.safetensors")
    assert exported["score.weight"].shape == (1, 32) and "lm_head.weight" not in exported
    start = load_file("model/model.safetensors")
    assert np.any(exported["model.layers.0.mlp.up_proj.weight"] != start["model.layers.0.mlp.up_proj.weight"])
    settings = json.loads(Path("runs/demo/reward/export/config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"] and len(settings["id2label"]) == 1
    assert settings["pad_token_id"] not in (None, settings["eos_token_id"])


@pytest.mark.slow("whole commands")
def test_resuming_is_bit_exact_and_refuses_another_experiment(inside: None, capsys):
    shutil.copytree("runs/demo", "runs/broken")
    forget("runs/broken/reward", 6)
    shutil.rmtree("runs/broken/reward/export")
    broken = ("--workdir", "runs/broken")
    cli.main(["reward", "e.yaml", *broken, "--loss.options", "{beta: 0.3}"])  # which is not the reward model's
    assert metrics("runs/broken/reward") == metrics("runs/demo/reward")
    files = [Path(f"runs/{name}/reward/export/model.safetensors").read_bytes() for name in ("broken", "demo")]
    assert files[0] == files[1]
    other = ("--reward.options.center", "0.5", "--reward.train.steps", "8")
    assert "reward.options.center: was 0.01, is 0.5" in refused(capsys, "reward", "e.yaml", *broken, *other)


@pytest.mark.slow("a whole command")
def test_a_layout_changes_nothing(inside: None):
    cli.main(["reward", "e.yaml", "--workdir", "runs/shared", "--data.layout", "shared", "--reward.train.steps", "2"])
    for found, wanted in zip(metrics("runs/shared/reward"), metrics("runs/demo/reward")[:2], strict=True):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.slow("a whole command")
def test_margins_and_weights_of_rows_are_read_and_soft_labels_refused(inside: None, capsys):
    rows = read_lines("pairs.jsonl")

    def command(**more: float) -> list[str]:
        for name in ("more.jsonl", "twin.jsonl"):
            Path(name).write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
        workdir = f"runs/{'-'.join(more)}"
        data = ("--data.train", "[{path: more.jsonl}, {path: twin.jsonl}]", "--data.eval", "[{path: more.jsonl}]")
        return ["reward", "e.yaml", "--workdir", workdir, *data, "--reward.train.steps", "1"]

    cli.main(command(margin=3.0, weight=2.0))
    (row,) = metrics("runs/margin-weight/reward")
    assert row["loss"] > 2 * np.log1p(np.exp(5.0 - row["rewards/margins"]))  # convex: above that of the mean
    assert sum(name.startswith("rewards/margins/") for name in row) == 2
    heldout = json.loads(Path("runs/margin-weight/reward/evaluation.json").read_text())["heldout"]
    assert heldout["loss"] > np.log1p(np.exp(5.0 - heldout["margin"]))
    assert "soft labels, which a reward model cannot read" in refused(capsys, *command(soft_label=0.8))


@pytest.mark.slow("whole commands")
def test_an_adapter_and_the_head_are_trained_together(inside: None, capsys):
    lora = ("--workdir", "runs/lora", "--lora", "{rank: 4}", "--reward.optimizer.learning_rate", "0.01")
    cli.main(["reward", "e.yaml", *lora])
    assert "trains 4,128 numbers beside 29,472 frozen ones" in capsys.readouterr().err  # 4,096 and the head of 32
    assert metrics("runs/lora/reward")[-1]["loss"] < metrics("runs/lora/reward")[0]["loss"]
    saved = {path.parent.name: path.read_text() for path in Path("runs/lora/reward/checkpoints/6").glob("*/_METADATA")}
    assert "adapter" in saved["params"] and "head" in saved["params"] and "embedding" not in saved["params"]
    merged = judged("runs/lora/reward/export")
    np.testing.assert_allclose(merged, judged(None, *lora), rtol=1e-4, atol=1e-4)
    exported, start = load_file("runs/lora/reward/export/model.safetensors"), load_file("model/model.safetensors")
    np.testing.assert_array_equal(exported["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    assert np.any(exported["model.layers.0.mlp.up_proj.weight"] != start["model.layers.0.mlp.up_proj.weight"])
    first = opened(*lora).reward_model.init_head(jax.random.split(jax.random.key(0))[0])["head"]["weight"]
    assert np.all(exported["score.weight"][0] != first)


@pytest.mark.slow("whole commands")
def test_it_starts_from_the_fine_tuned_model_and_gpt2_has_one_too(inside: None):
    sft = "{data: {train: [{path: pairs.jsonl, columns: {completion: chosen}}]}, train: {batch_pairs: 4, steps: 1}}"
    still = ("--reward.train.steps", "1", "--reward.optimizer.learning_rate", "0")
    gpt2 = ("--workdir", "runs/gpt2", "--model.weights", "gpt2", "--sft", sft, *still)
    cli.main(["reward", "e.yaml", *gpt2])
    setup, exported = opened(*gpt2), load_file("runs/gpt2/reward/export/model.safetensors")
    with jax.set_mesh(setup.mesh):
        tuned = setup.start_params()
    np.testing.assert_array_equal(exported["transformer.wpe.weight"], tuned["positions"])
    assert np.any(tuned["positions"] != load_file("gpt2/model.safetensors")["wpe.weight"])
    np.testing.assert_allclose(judged("runs/gpt2/reward/export"), judged(None, *gpt2), rtol=1e-5, atol=1e-6)


@pytest.mark.slow("whole commands")
def test_it_judges_samples_of_policy_and_reference(inside: None, capsys):
    setup = opened()
    with jax.set_mesh(setup.mesh):
        frozen = setup.start_params()
        policy = jax.tree.map(lambda x: 0.5 * x, frozen)
        found = compare_samples(setup, policy, frozen, judge_of(setup))
        judge = open_rewards(setup, None).scores
        again = {
            name: judge(
                [Prompt(row.prompt, None, "") for row in found.samples], [getattr(row, name) for row in found.samples]
            )
            for name in ("policy", "reference")
        }
    scores = {name: np.array([getattr(row, f"{name}_score") for row in found.samples]) for name in again}
    for name, rewards in again.items():  # those of the samples whose white space the report leaves out differ
        assert np.isclose(scores[name], rewards, rtol=1e-4).mean() >= 0.5
        assert getattr(found.judged, name).reward == pytest.approx(scores[name].mean())
    assert found.judged.judge == "reward" and found.judged.samples == 16
    assert found.judged.win_rate == (1 + np.sign(scores["policy"] - scores["reference"])).mean() / 2
    assert "the policy wins" in capsys.readouterr().err


@pytest.mark.slow("samples of two models")
def test_what_the_model_wrote_is_judged_with_its_white_space(inside: None):
    seen: list[str] = []

    def judge(prompts: list[Prompt], responses: list[str]) -> np.ndarray:
        seen.extend(responses)
        return np.arange(len(responses), dtype=float)

    setup = opened("--seed", "1")  # with which some of it begins or ends with a space
    with jax.set_mesh(setup.mesh):
        frozen = setup.start_params()
        found = compare_samples(setup, frozen, frozen, Scoring("mine", judge))
    assert any(text != text.strip() for text in seen) and len(seen) == 32
    assert [text.strip() for text in seen[:16]] == [row.policy for row in found.samples]
    assert [row.reference_score for row in found.samples] == list(range(16, 32))


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("reward", ["--reward", "null"], "no `reward:` section"),
        ("reward", ["--reward.options", "{centre: 1}"], "reward.options.centre: bradley_terry has no such option. Did"),
        ("reward", ["--reward.options.center", "-1"], "command line: reward.options.center: a number in [0, inf) is"),
        ("reward", ["--reward.train.micro_batch_pairs", "3"], "reward.train.micro_batch_pairs: 3 does not divide"),
        ("reward", ["--loss.name", "kto"], "a reward model learns from pairs, but with loss kto"),
        ("evaluate", ["--evaluation.judge.data", "[{path: a}]"], "is no option of the judge reward. Allowed: model."),
        (
            "evaluate",
            ["--evaluation.judge", "{name: classifier, model: x, data: [{path: a}]}"],
            "evaluation.judge.model: is",
        ),
    ],
)
def test_nonsense(inside: None, capsys, command: str, arguments: list[str], says: str):
    assert says in refused(capsys, command, "e.yaml", "--workdir", "runs/nonsense", *arguments)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        (None, "runs/empty/reward/checkpoints: no reward model yet; run `dpo-jax reward`"),
        ("model", "evaluation.judge.model: model: no reward model: there is no tensor score.weight"),
        ("nowhere", "command line: evaluation.judge.model: weights 'nowhere': no such folder"),
        ("gpt2", "no tensor score.weight"),
    ],
)
def test_a_judge_that_is_none_is_refused_before_anything_is_sampled(inside: None, location: str | None, says: str):
    setup = opened("--workdir", "runs/empty", "--evaluation.judge", f"{{name: reward, model: {location or 'null'}}}")
    with pytest.raises(UserError) as refused:
        judge_of(setup)
    assert says in str(refused.value)


def test_a_family_without_such_a_class_is_refused_by_name(inside: None, monkeypatch, capsys):
    monkeypatch.delitem(__import__("dpo_jax.weights.reward", fromlist=["_CLASSES"])._CLASSES, "llama")
    assert "reward export: model_type 'llama' has no such form" in refused(capsys, "reward", "e.yaml")
