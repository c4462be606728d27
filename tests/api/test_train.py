"""Training from Python: the numbers of the command line, and what a call is refused for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
import optax
import pytest

import dpo_jax as dj
from dpo_jax.mesh import make_mesh
from tests.tiny_experiment import make_experiment, metrics, read_lines, run

SETTINGS: dict[str, Any] = {
    "batch_pairs": 8,
    "micro_batch_pairs": 4,
    "steps": 4,
    "learning_rate": 1e-3,
    "max_tokens": 64,
    "max_prompt_tokens": 32,
    "reference": {"batch_pairs": 8, "rows_per_shard": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "pairs.jsonl")


@pytest.fixture(scope="module")
def result(folder: Path, rows: list[dict[str, Any]]) -> dj.Result:
    seen: list[int] = []
    found = dj.train(
        folder / "model",
        iter(rows),
        workdir=folder / "here",
        callback=lambda step, values: seen.append(step),
        **SETTINGS,
    )
    assert seen == [1, 2, 3, 4]
    return found


def test_it_trains_as_the_command_line_does(folder: Path, result: dj.Result):
    assert metrics(result.workdir) == run(folder, "train", "runs/there")
    assert [row["step"] for row in result.metrics] == [1, 2, 3, 4]


def test_a_result_samples_measures_and_saves_what_is_loaded_again(
    folder: Path, rows: list[dict[str, Any]], result: dj.Result, tmp_path: Path
):
    prompts = [row["prompt"] for row in rows[:2]]
    answers = result.sample(prompts, max_new_tokens=6, temperature=0.0)
    several = result.sample(prompts, model="reference", max_new_tokens=6, samples=2)
    assert [len(each) for each in several] == [2, 2] and all(isinstance(text, str) for text in answers)
    measured = result.evaluate(read_lines(folder / "held.jsonl"))
    assert measured.heldout.pairs == 5 and measured.step == 4
    saved = result.save(tmp_path / "out")
    again = dj.train(dj.load(saved), rows, workdir=tmp_path / "again", **SETTINGS | {"learning_rate": 0.0, "steps": 1})
    assert again.sample(prompts, max_new_tokens=6, temperature=0.0) == answers
    with pytest.raises(dj.UserError, match="holds another export, which stays as it is"):
        again.save(saved)


def test_the_same_call_goes_on_and_another_is_refused(folder: Path, rows: list[dict[str, Any]], result: dj.Result):
    def call(rows: Any, **more: Any) -> dj.Result:
        return dj.train(dj.load(folder / "model"), rows, workdir=result.workdir, **(SETTINGS | more))

    before = (result.workdir / "metrics.jsonl").read_bytes()
    call(datasets.Dataset.from_list(rows))
    assert (result.workdir / "metrics.jsonl").read_bytes() == before
    with pytest.raises(dj.UserError, match=r"data\.train"):
        call(rows[1:])
    with pytest.raises(dj.UserError, match=r"loss\.0\.options"):
        call(rows, beta=0.5)
    with pytest.raises(dj.UserError, match="optimizer: "):
        call(rows, optimizer=optax.sgd(1e-3))


def test_an_own_optimizer_and_mesh_are_used(folder: Path, rows: list[dict[str, Any]], tmp_path: Path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    call: dict[str, Any] = {"mesh": mesh, "workdir": tmp_path / "run", **SETTINGS, "steps": 2}
    still = optax.sgd(optax.linear_schedule(0.0, 0.0, 100))
    found = dj.train(folder / "model", rows, optimizer=still, **call)
    np.testing.assert_allclose([row["loss"] for row in found.metrics], np.log(2), atol=1e-6)
    assert jax.tree.leaves(found.params)[0].sharding.mesh.shape["fsdp"] == 4
    for other in (optax.sgd(optax.linear_schedule(0.1, 0.0, 100)), None):
        with pytest.raises(dj.UserError, match="optimizer: "):
            dj.train(folder / "model", rows, optimizer=other, **call)
    with pytest.raises(dj.UserError, match="mesh: the axis 'model' is unknown"):
        dj.train(folder / "model", rows, mesh=jax.sharding.Mesh(np.array(jax.devices()), ("model",)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": []}, "rows: there are no rows"),
        ({"rows": ["text"]}, r"rows\[0\]: a str, not a dict"),
        ({"rows": [{"prompt": "a", "chosen": object(), "rejected": "b"}]}, r"rows\[0\]: it holds a object"),
        ({"rows": [{"prompt": "a", "chosen": "b", "rejected": "b"}]}, r"rows-\w+\.jsonl:1: .*identical"),
        ({"rows": "missing.jsonl"}, "missing.jsonl"),
        ({"loss": "dop"}, "loss='dop': there is no such loss. Did you mean 'dpop'"),
        ({"betta": 0.1}, "betta=0.1: no option of the loss, and no setting. Did you mean 'beta'"),
        ({"beta": "much"}, r"options\.beta: a number"),
        ({"steps": 2.5}, r"train\.steps"),
        ({"lora": {"rnak": 8}}, r"lora\.rnak: the key is unknown. Did you mean 'rank'"),
        ({"model": "nowhere"}, "weights 'nowhere'"),
    ],
)
def test_a_mistake_is_told_by_its_name(folder: Path, rows: list[dict[str, Any]], tmp_path: Path, given: Any, says: str):
    call: dict[str, Any] = {
        "model": str(folder / "model"),
        "rows": rows[:8],
        "workdir": tmp_path / "run",
        **SETTINGS,
    } | given
    with pytest.raises(dj.UserError, match=says):
        dj.train(call.pop("model"), call.pop("rows"), **call)


def test_a_run_without_a_workdir_says_where_it_lives(
    folder: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = dj.train(dj.load(folder / "model"), rows, loss="simpo", **SETTINGS | {"steps": 1})
    assert found.workdir.parent == tmp_path and str(found.workdir) in capsys.readouterr().err.replace("\n", "")
    assert json.loads((found.workdir / "metrics.jsonl").read_text())["step"] == 1


def test_a_mesh_by_its_sizes(folder: Path, rows: list[dict[str, Any]], tmp_path: Path):
    assert make_mesh(tensor=2).shape["fsdp"] == 4
    with pytest.raises(dj.UserError, match="mesh"):
        dj.train(dj.load(folder / "model"), rows, mesh={"tensor": 3}, workdir=tmp_path / "run", **SETTINGS)


PAGES = {"README.md": "dj.train", "configs/python.md": "dj.load", "configs/python.md#own": "dj.Model"}


@pytest.mark.slow("the steps of the pages, one of which takes a hundred")
@pytest.mark.parametrize("page", PAGES)
def test_the_lines_of_the_pages_run(page: str, folder: Path, rows: list[dict[str, Any]], monkeypatch, tmp_path: Path):
    text = (Path(__file__).parents[2] / page.partition("#")[0]).read_text(encoding="utf8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if PAGES[page] in block)
    load = dj.load
    monkeypatch.setattr(dj, "load", lambda weights, **options: load(folder / "model", **options), raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"rows": rows[:12], "held_out": rows[12:], "tokenizer": load(folder / "model").tokenizer}
    exec(code, names)
    assert len(list(filter(str.strip, code.splitlines()))) <= (24 if page == "configs/python.md" else 15)
    assert names["result"].metrics[-1]["step"] in (4, 100)
    if "save" in code:
        assert any((tmp_path / "out").rglob("*.safetensors"))
