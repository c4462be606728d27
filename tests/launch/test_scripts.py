"""local.sh and slurm.sbatch as they are called, and what holds of every script."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_jax.runtime.watchdog import EXIT_CODE
from tests.launch.conftest import ROOT, Fakes, refused

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch" / "slurm.sbatch"])
CONFIG = "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("driver", "extra"), [("580.65.06", "cuda13"), ("535.1", "cuda12"), ("470.82.01", ""), ("no devices", "")]
)
def test_local_names_what_it_would_install_and_run(fakes: Fakes, tmp_path: Path, driver: str, extra: str):
    fakes.add("nvidia-smi", f"echo {shlex.quote(driver)}")
    there = {"DPO_JAX_VENV": str(tmp_path / "venv"), "PYTHON": sys.executable}
    done = fakes.run("local.sh", "--dry-run", CONFIG, "--workdir", "it's", **there)
    assert done.returncode == 0, done.stderr
    *_, installs, runs = done.stderr.splitlines()
    assert installs.startswith("Installing lock-py3") and str(tmp_path / "venv") in installs
    assert ("and the extra" in installs) == bool(extra) and extra in installs
    command, _, where = runs.removeprefix("Running ").rpartition(" on ")
    assert shlex.split(command) == ["dpo-jax", "run", CONFIG, "--workdir", "it's"]
    assert where == (extra or "the CPU")
    only = fakes.run("local.sh", "--dry-run", "--install", **there).stderr.splitlines()
    assert only[-1] == installs and not any(line.startswith("Running") for line in only)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: bash launch/local.sh"),
        (["--dry"], "Usage: bash launch/local.sh"),
        (["--install", CONFIG], "Usage: bash launch/local.sh"),
        (["nowhere.yaml"], "No such file: nowhere.yaml"),
    ],
)
def test_local_nonsense(fakes: Fakes, arguments: list[str], says: str):
    assert refused(fakes.run("local.sh", *arguments)).startswith(says)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to submit from, whose environment needs no installing."""
    shutil.copytree(ROOT / "launch", tmp_path / "repo" / "launch")
    with (tmp_path / "repo" / "launch" / "environment.sh").open("a") as file:
        file.write('prepare_environment() { echo "prepared $*"; }\n')
    (tmp_path / "repo" / "mine.yaml").touch()
    return tmp_path / "repo"


def job(fakes: Fakes, folder: Path, *arguments: str, **extra: str) -> subprocess.Popen[str]:
    """The script as Slurm runs it: a copy elsewhere, in the environment of a job."""
    copy = shutil.copy(ROOT / "launch" / "slurm.sbatch", fakes.folder / "slurm_script")
    slurm = {"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(folder), "DPO_JAX_ACCELERATOR": "cuda13"} | extra
    environment = fakes.environment(slurm)
    return subprocess.Popen(
        ["bash", copy, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_slurm_job_prepares_once_and_starts_a_process_for_each_gpu(fakes: Fakes, folder: Path):
    fakes.add("srun", "exit 3")
    running = job(fakes, folder, "mine.yaml", "--seed", "1", SLURM_NTASKS_PER_NODE="8", SLURM_GPUS_ON_NODE="8")
    said, errors = running.communicate()
    assert running.returncode == 3, errors  # srun's own
    assert said == f"prepared {folder}/.venv cuda13\n"
    command = f"srun --kill-on-bad-exit=1 --gpu-bind=none {folder}/.venv/bin/dpo-jax run mine.yaml --seed 1"
    assert fakes.calls() == [command.split()]


def test_a_slurm_job_near_its_time_limit_goes_back_into_the_queue(fakes: Fakes, folder: Path):
    fakes.add("srun", "sleep 1")
    fakes.add("scontrol")
    with job(fakes, folder, "mine.yaml") as running:
        until = time.monotonic() + 20
        while not fakes.calls() and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(signal.SIGUSR1)
        assert running.wait(20) == 0  # srun was waited for
    assert fakes.calls()[1:] == [["scontrol", "requeue", "42"]]


def test_a_slurm_job_that_hung_goes_back_into_the_queue(fakes: Fakes, folder: Path):
    fakes.add("srun", f"exit {EXIT_CODE}")
    fakes.add("scontrol")
    with job(fakes, folder, "mine.yaml") as running:
        assert running.wait(20) == EXIT_CODE
    assert fakes.calls()[1:] == [["scontrol", "requeue", "42"]]


def test_a_slurm_job_that_was_killed_hears_of_memory(fakes: Fakes, folder: Path):
    fakes.add("srun", "exit 137")
    with job(fakes, folder, "mine.yaml") as running:
        assert "memory ran out; ask for more by --mem" in running.communicate()[1] and running.returncode == 137


def test_slurm_dry_run_prints_the_commands(fakes: Fakes):
    done = fakes.run("slurm.sbatch", "--dry-run", CONFIG, "--workdir", "it's")
    submit, step = map(shlex.split, done.stdout.splitlines())
    assert submit == ["sbatch", "launch/slurm.sbatch", CONFIG, "--workdir", "it's"]
    assert step[:3] == ["srun", "--kill-on-bad-exit=1", "--gpu-bind=none"]
    assert step[3:] == [f"{ROOT}/.venv/bin/dpo-jax", "run", *submit[2:]]


@pytest.mark.parametrize(
    ("arguments", "extra", "says"),
    [
        ([], {}, "Usage: sbatch launch/slurm.sbatch CONFIG"),
        (["--train.steps"], {}, "Usage: sbatch launch/slurm.sbatch CONFIG"),
        (["nowhere.yaml"], {}, "No such file: nowhere.yaml"),
        ([CONFIG], {}, f"This is for sbatch: sbatch launch/slurm.sbatch {CONFIG}"),
        ([CONFIG], {"SLURM_SUBMIT_DIR": "/"}, "/ is not the folder of dpo_jax; submit the job from there."),
        (
            [CONFIG],
            {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4"},
            "A task for each GPU is needed: 8 tasks and 4 GPUs on a node.",
        ),
    ],
)
def test_slurm_nonsense(fakes: Fakes, arguments: list[str], extra: dict[str, str], says: str):
    assert refused(fakes.run("slurm.sbatch", *arguments, **extra)).startswith(says)


def test_slurm_directives_agree():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # jax.distributed: one process, one GPU
    assert "requeue" in options and options["signal"].startswith("B:USR1@")
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])  # Slurm reads no directive behind the first command


DRY = {
    "local.sh": [CONFIG, "--seed", "1"],
    "slurm.sbatch": [CONFIG],
    "test.sh": ["-k", "it's"],
    "parity.sh": ["--everything"],
    "fashion_mnist.sh": [],
    "tpu_vm.sh": ["run", "--name", "a", "--zone", "b", "--type", "v6e-8", "--keep", CONFIG],
}
"""Scripts that know --dry-run -> their arguments."""
INSTALLS = ("pip", "venv", "uv", "apt-get", "gcloud", "srun", "sbatch", "dpkg-deb", "docker", "curl")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_installs_nothing_wherever_it_is_asked_for(
    fakes: Fakes, folder: Path, tmp_path: Path, name: str, first: bool
):
    for program in INSTALLS:
        fakes.add(program)
    # Python is asked what it is; all else that it is told to do would change something.
    fakes.add("python3", f'case "$1 $2" in "- "* | "-c "*) exec {shlex.quote(sys.executable)} "$@" ;; esac')
    shutil.copytree(ROOT / "launch", folder / "launch", dirs_exist_ok=True)  # without the pretended environment
    for needed in (CONFIG, "pyproject.toml"):
        (folder / needed).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / needed, folder / needed)
    before = sorted(folder.rglob("*"))
    dry = ["--dry-run"]
    arguments = (
        DRY[name][:1] * (name == "tpu_vm.sh") + dry + DRY[name][name == "tpu_vm.sh" :] if first else DRY[name] + dry
    )
    environment = fakes.environment({"PYTHON": "python3", "DPO_JAX_ACCELERATOR": "cpu", "DATASETS": str(tmp_path)})
    command = ["bash", f"launch/{name}", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    asked = [call for call in fakes.calls() if not (call[0] == "python3" and call[1][0] == "-" and call[1] != "-m")]
    assert asked == [] and sorted(folder.rglob("*")) == before
    said = done.stdout + done.stderr
    assert said and "--dry-run" not in said.replace(f"launch/{name} --dry-run", "")


def test_the_scripts_with_a_dry_run_are_all_tried():
    assert {script.name for script in SCRIPTS if "take_dry_run" in script.read_text()} - {"environment.sh"} == {*DRY}
    assert {script.name for script in SCRIPTS if "--dry-run" in script.read_text()} - {"environment.sh"} == {*DRY}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_strict_and_say_how_they_are_called(script: Path):
    text = script.read_text()
    assert f"launch/{script.name}" in text or script.name == "environment.sh"
    assert "\nset -euo pipefail\n" in text or script.name == "environment.sh"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
