"""A run full of secrets: in the environment, in an address, on the command line; none of them is anywhere after it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dpo_jax import cli
from dpo_jax.config import load
from dpo_jax.files import read_json, read_sealed
from tests.commands.test_sinks import Wandb
from tests.evaluation.judges.endpoint import Endpoint, said, serve
from tests.tiny_experiment import EVALUATED, make_experiment, refused

ROOT = Path(__file__).parents[2]
SECRETS = {name: f"s3cr3t-{name}-0123456789" for name in ("variable", "address", "setting", "line")}


def leaks(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serve(lambda body, number: said("A")) as serving:
        yield serving


@pytest.mark.slow("whole commands")
def test_nothing_of_a_run_holds_a_secret(tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("JUDGE_TOKEN", SECRETS["variable"])
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    request = {"max_tokens": 16, "api_key": SECRETS["setting"], "metadata": {"note": SECRETS["variable"]}}
    asks = {
        "name": "http",
        "url": f"{endpoint.url}?token={SECRETS['address']}&path=",
        "model": "m",
        "api_key_env": "JUDGE_TOKEN",
        "request": request,
    }
    make_experiment(
        tmp_path,
        data=EVALUATED,
        train={"steps": 2},
        logging={"wandb": "project"},
        optimizer={"learning_rate": 0.1},  # far enough that the responses differ, and the judge is asked
        evaluation={"samples": 6, "max_new_tokens": 6, "batch_rows": 8, "judge": asks},
    )
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    line = ("e.yaml", "--evaluation.judge.request.extra_token", SECRETS["line"])
    for command in ("run", "export", "report"):
        cli.main([command, *line])
    cli.main(["config", "show", *line])
    told = capsys.readouterr()
    path, key, body = endpoint.paths[-1], endpoint.headers[-1]["Authorization"], endpoint.bodies[-1]  # it was told all
    assert SECRETS["address"] in path and SECRETS["variable"] in key and SECRETS["setting"] == body["api_key"]
    assert body["extra_token"] == SECRETS["line"] and body["metadata"]["note"] == SECRETS["variable"]
    assert not leaks(told.err + told.out) and "***" in told.out
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    found = {str(path): leaks(path.read_bytes().decode("latin1")) for path in made}
    assert len(found) > 30 and not {path: names for path, names in found.items() if names}
    assert not leaks(str([run.settings for run in wandb.runs])) and "***" in str(wandb.runs[0].settings)
    for name in ("config.yaml", "evaluation.json", "history.json"):
        assert "***" in (tmp_path / "runs/demo" / name).read_text()
    record = read_sealed(tmp_path / "runs/demo/checkpoints/2.json", "record", "digests")["record"]
    assert record["config"]["evaluation"]["judge"]["request"]["api_key"] == "***"
    assert read_json(tmp_path / "runs/demo/history.json")[0]["command"].endswith("extra_token ***")
    cli.main(["train", *line, "--train.steps", "3"])  # masked as it is, the record is that of the same run
    assert "resumes at step 2 of 3" in capsys.readouterr().err


def test_an_address_that_cannot_be_read_is_told_without_its_secrets(tmp_path: Path, monkeypatch, capsys):
    make_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    secret = SECRETS["address"]
    for source in (
        f"{{path: 'https://me:{secret}@host/rows.jsonl'}}",
        f"{{path: 'https://host/r.jsonl?sig={secret}'}}",
    ):
        said = refused(capsys, "train", "e.yaml", "--data.train", f"[{source}]")
        assert not leaks(said) and "***" in said and "is an address" in said


def test_what_computes_still_has_the_secret(tmp_path: Path, monkeypatch):
    """Only what is kept and shown is masked."""
    monkeypatch.setenv("SOME_TOKEN", SECRETS["variable"])
    make_experiment(tmp_path, data={"train": [{"path": f"{SECRETS['variable']}.jsonl"}]})
    config, origins = load(str(tmp_path / "e.yaml"), ["--seed", "3"])
    assert config.data.train[0]["path"] == f"{SECRETS['variable']}.jsonl"
    assert yaml.safe_load((tmp_path / "e.yaml").read_text())["data"]["train"][0]["path"].startswith("s3cr3t")
    assert origins["seed"] == "command line"


def test_libraries_are_told_to_send_nothing_home_before_they_are_loaded():
    code = (
        "from dpo_jax import cli\nfrom dpo_jax.commands import table\n"
        "def show(setup):\n"
        "    import datasets, huggingface_hub.constants as hub\n"
        "    print(hub.HF_HUB_DISABLE_TELEMETRY)\n"
        "table.COMMANDS['plan'] = table.Command('', lambda: show, dry=True)\n"
        "cli.main(['plan', 'configs/quickstart.yaml'])"
    )
    bare = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_no_code_of_others_is_ever_asked_for():
    for path in (ROOT / "dpo_jax").rglob("*.py"):
        code = path.read_text(encoding="utf8")
        assert not re.search(r"trust_remote_code\s*=\s*(?!False)", code), path
        assert "pickle.load" not in code and "allow_pickle=True" not in code, path
