"""The command line as a user meets it: help, nonsense, and mistakes in files, each with exit code 2 and one message."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_jax import cli
from tests.tiny import make_hf_folder
from tests.tiny_experiment import refused, write_pairs

CONFIG = """\
workdir: runs/demo
model: {{weights: {weights}}}
data: {{train: [{{path: pairs.jsonl}}], max_prompt_tokens: 16, max_tokens: 32}}
loss: {{name: dpo}}
train: {{batch_pairs: 2, steps: 1}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(CONFIG.format(weights=model))
    write_pairs("pairs.jsonl", 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "command line: .*COMMAND.*--help"),
        (["trian", "e.yaml"], "'trian' is not a command. Did you mean 'train'"),
        (["train", "e.yaml", "--loss.name", "dpoo"], "loss.name: 'dpoo' is unknown. Did you mean 'dpo'"),
        (["train", "e.yaml", "--loss.options.bta", "1"], "dpo has no such option. Did you mean 'beta'"),
        (["train", "e.yaml", "--model.weights", "nowhere"], "weights 'nowhere': no such folder"),
        (["train", "e.yaml", "--mesh.data", "3"], "the mesh data 3 .* this machine has 8"),
        (["train", "e.yaml", "--workdir", "e.yaml/below"], "workdir: e.yaml/below cannot be written"),
        (["sft", "e.yaml"], "the configuration has no `sft:` section"),
        (["evaluate", "e.yaml"], "set data.eval"),
        (["export", "e.yaml"], "run `dpo-jax train` first"),
        (["report", "e.yaml"], "run `dpo-jax train` first"),
        (["reference", "e.yaml", "--jsonl", "s3://b/x"], "command line: --jsonl: 's3://b/x' is an address"),
        (["report", "e.yaml", "--compare", "gs://b/x"], "command line: --compare: 'gs://b/x' is an address"),
        (["verify", "gs://b/x"], "command line: FOLDER: 'gs://b/x' is an address"),
        (["train", "--config", "e.yaml"], "name the experiment file without --config"),
        (["train", "--seed", "3", "e.yaml"], "3: there is no such configuration file. The file is named right behind"),
        (["losses", "dpo"], "losses: 'dpo' is not understood"),
        (["config", "schema", "e.yaml"], "config: 'e.yaml' is not understood"),
        (["config", "show"], "config show: name the experiment file"),
        (["config", "shwo", "e.yaml"], "command line: .*shwo"),
    ],
)
def test_nonsense(capsys, arguments: list[str], says: str):
    assert re.search(says, refused(capsys, *arguments), re.DOTALL)


def test_xla_is_told_before_jax_starts(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DPO_JAX_XLA_FLAGS", "maybe")
    assert "DPO_JAX_XLA_FLAGS=maybe is not understood" in refused(capsys, "train", "e.yaml")


def test_config_show_says_where_each_value_came_from(capsys):
    cli.main(["config", "show", "e.yaml", "--train.steps", "9"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["steps:", "9", "#", "command", "line"] in lines
    assert ["batch_pairs:", "2", "#", "e.yaml:5"] in lines
    assert ["log_every:", "1", "#", "default"] in lines


def test_a_crash_exits_with_one(monkeypatch: pytest.MonkeyPatch):
    code = (
        "from dpo_jax import cli\nfrom dpo_jax.commands import table\n"
        "table.COMMANDS['train'] = table.Command('', lambda: lambda setup: 1 / 0)\n"
        "cli.main(['train', 'e.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_help_needs_nothing_heavy_and_is_quick():
    code = (
        "import sys; from dpo_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'jax', 'flax', 'numpy', 'transformers', 'orbax', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert done.stderr.strip() == "[]" and "evaluate" in done.stdout
    assert seconds < 2.0, f"{seconds:.2f} s"  # 0.2 s on an idle machine; the imports are what this guards


def test_who_stops_reading_hears_no_complaint():
    command = [sys.executable, "-u", "-m", "dpo_jax.cli", "config", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout and child.stderr
        fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)  # else all of it fits, and nobody learns who has left
        child.stdout.read(9)
        child.stdout.close()
        assert (child.wait(), child.stderr.read()) == (141, b"")
