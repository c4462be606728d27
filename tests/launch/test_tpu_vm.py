"""tpu_vm.sh against a pretended gcloud: what it calls in which order, also when the slice is taken away."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import tarfile

import pytest

from tests.launch.conftest import Fakes, refused

# Answers come from files: one line for each question about the request, one exit code for each start of the run.
GCLOUD = """\
next() { head -n1 "$FAKES/$1"; sed -i 1d "$FAKES/$1"; }
case "$*" in
    *"queued-resources describe"*) next states ;;
    *"tpu-vm describe"*) next nodes ;;
    *"tpu-vm scp"*) cp -p "$5" "$FAKES/$(basename "$5" .tar.gz)" ;;
    *"detached.sh status"*) next workers ;;
    *"bash launch/local.sh"*) exit "$(next codes)" ;;
esac
"""
SLICE = ("--name", "demo", "--zone", "us-west4-a", "--type", "v5litepod-16")
MOUNT = ("--setup", "sudo mount -t nfs 10.0.0.2:/share /runs")
CREATE = "queued-resources create demo"
DELETE = "queued-resources delete demo --force --quiet"


@pytest.fixture
def cloud(fakes: Fakes) -> Fakes:
    fakes.add("gcloud", GCLOUD)
    fakes.add("git", r"printf 'launch/local.sh\0configs/quickstart.yaml\0'")
    return fakes


def answers(cloud: Fakes, *, states: str, codes: str, nodes: str = "", workers: str = "") -> None:
    """`-` stands for: there is no such request."""
    (cloud.folder / "workers").write_text(f"{workers}\n")
    for name, words in (("states", states), ("codes", codes), ("nodes", nodes)):
        lines = [word.replace("-", "") for word in words.split()]
        (cloud.folder / name).write_text("".join(f"{line}\n" for line in lines))


def is_question(call: list[str]) -> bool:
    return "describe" in call or call[-2].endswith("detached.sh status")


def changes(cloud: Fakes) -> list[str]:
    """The calls of gcloud that change something, without the questions."""
    told = [" ".join(call[3:]) for call in cloud.calls() if call[0] == "gcloud" and not is_question(call)]
    assert all(line.endswith("--zone=us-west4-a") for line in told)
    return [line.removesuffix(" --zone=us-west4-a") for line in told]


def kinds(cloud: Fakes) -> list[str]:
    """The same in a word each."""
    words = {CREATE: "create", DELETE: "delete", "scp": "copy", "tar -x": "unpack", "uv ": "python", "mount": "setup"}
    words |= {"dpo_jax_secrets demo:": "secrets", "local.sh": "run"}
    return [[word for text, word in words.items() if text in line][-1] for line in changes(cloud)]


def test_a_run_creates_waits_copies_installs_runs_and_deletes(cloud: Fakes):
    answers(cloud, states="- WAITING_FOR_RESOURCES PROVISIONING ACTIVE", codes="0")
    done = cloud.run(
        "tpu_vm.sh", "run", *SLICE, *MOUNT, "--spot", "configs/quickstart.yaml", "--workdir", "/runs/it's $x"
    )
    assert done.returncode == 0, done.stderr
    assert kinds(cloud) == ["create", "copy", "unpack", "python", "setup", "run", "delete"]
    create, copy, *_, run, delete = changes(cloud)
    assert create == (
        f"{CREATE} --node-id=demo --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert copy.endswith("dpo_jax.tar.gz demo: --worker=all --quiet")
    assert run.startswith("tpu-vm ssh demo --worker=all --quiet")
    before, _, arguments = run.partition("bash launch/local.sh ")
    assert "cd dpo_jax && DPO_JAX_ACCELERATOR=tpu PYTHON=$(" in before
    assert shlex.split(arguments) == ["configs/quickstart.yaml", "--workdir", "/runs/it's $x"]
    assert delete == DELETE
    with tarfile.open(cloud.folder / "dpo_jax") as archive:
        assert sorted(archive.getnames()) == ["configs/quickstart.yaml", "launch/local.sh"]


@pytest.mark.parametrize(("states", "nodes"), [("SUSPENDING", "READY"), ("ACTIVE", "PREEMPTED")])
def test_a_slice_that_is_taken_away_is_created_again_and_the_same_run_goes_on(cloud: Fakes, states: str, nodes: str):
    answers(cloud, states=f"- ACTIVE {states} - ACTIVE", codes="255 0", nodes=nodes)
    done = cloud.run("tpu_vm.sh", "run", *SLICE, *MOUNT, "configs/quickstart.yaml")
    assert done.returncode == 0 and "demo was taken away" in done.stderr
    once = ["create", "copy", "unpack", "python", "setup", "run", "delete"]
    assert kinds(cloud) == once + once
    runs = [line for line in changes(cloud) if "local.sh" in line]
    assert runs[0] == runs[1]


def test_a_request_left_suspended_is_deleted_first(cloud: Fakes):
    answers(cloud, states="SUSPENDED - ACTIVE", codes="0")
    cloud.run("tpu_vm.sh", "create", *SLICE)
    assert kinds(cloud) == ["delete", "create"]


def test_a_run_that_fails_is_not_repeated_and_its_code_is_told(cloud: Fakes):
    answers(cloud, states="- ACTIVE ACTIVE", codes="7", nodes="READY")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, *MOUNT, "configs/quickstart.yaml")
    assert done.returncode == 7
    assert kinds(cloud) == ["create", "copy", "unpack", "python", "setup", "run", "delete"]


def test_a_slice_may_be_kept_and_used_again(cloud: Fakes):
    answers(cloud, states="ACTIVE", codes="0")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, "--keep", "configs/quickstart.yaml")
    assert (done.returncode, kinds(cloud)) == (0, ["copy", "unpack", "python", "run"])


def test_a_request_that_fails_ends_it(cloud: Fakes):
    answers(cloud, states="- FAILED", codes="")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, *MOUNT, "configs/quickstart.yaml")
    assert done.returncode == 1 and "queued-resources describe demo" in done.stderr
    assert kinds(cloud) == ["create", "delete"]


@pytest.mark.parametrize("where", [(), ("--project", "mine")])
def test_a_dry_run_prints_the_very_commands_and_calls_nothing(cloud: Fakes, where: tuple[str, ...]):
    arguments = ("run", *SLICE, *MOUNT, *where, "configs/quickstart.yaml")
    dry = cloud.run("tpu_vm.sh", arguments[0], "--dry-run", *arguments[1:])
    assert (dry.returncode, cloud.calls()) == (0, [])
    printed = [shlex.split(line) for line in dry.stdout.splitlines() if not line.startswith("#")]
    answers(cloud, states="- ACTIVE", codes="0")
    assert cloud.run("tpu_vm.sh", *arguments).returncode == 0
    called = [call for call in cloud.calls() if call[0] == "gcloud" and not is_question(call)]
    without_folder = [[word.rpartition("/")[2] if "tar.gz" in word else word for word in call] for call in called]
    assert [
        [word.rpartition("/")[2] if "tar.gz" in word else word for word in line] for line in printed
    ] == without_folder
    assert all(("--project=mine" in line) == bool(where) for line in printed)


SECRETS = {"HF_TOKEN": "hf_s3cr3t-0123456789", "WANDB_API_KEY": "it's $(a) key", "JUDGE_KEY": "sk-0123456789"}


def test_secrets_go_in_a_file_that_only_the_user_can_read(cloud: Fakes):
    answers(cloud, states="- ACTIVE", codes="0")
    arguments = (*SLICE, *MOUNT, "--secret", "JUDGE_KEY", "configs/quickstart.yaml")
    done = cloud.run("tpu_vm.sh", "run", *arguments, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert kinds(cloud) == ["create", "copy", "unpack", "python", "setup", "secrets", "run", "delete"]
    file = cloud.folder / ".dpo_jax_secrets"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    dry = cloud.run("tpu_vm.sh", "run", "--dry-run", *arguments, **SECRETS)
    for text in (done.stdout, done.stderr, dry.stdout, dry.stderr, (cloud.folder / "calls").read_text()):
        assert [name for name, value in SECRETS.items() if value in text or shlex.quote(value) in text] == []
    # What the workers do: read it, delete it, and run.
    (run,) = [call[-2] for call in cloud.calls() if "local.sh" in call[-2] and call[0] == "gcloud"]
    (cloud.folder / "dpo_jax").unlink()
    (cloud.folder / "dpo_jax" / "launch").mkdir(parents=True)
    script = "; ".join(f'printf "%s\\n" "${name}"' for name in SECRETS)
    (cloud.folder / "dpo_jax" / "launch" / "local.sh").write_text(script)
    home = {"PATH": os.environ["PATH"], "HOME": str(cloud.folder)}
    command = ["bash", "-c", run.removeprefix("--command=")]
    ran = subprocess.run(command, cwd=cloud.folder, env=home, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [*SECRETS.values()] and not file.exists(), ran.stderr


def test_without_secrets_no_file_is_sent(cloud: Fakes):
    answers(cloud, states="- ACTIVE", codes="0")
    cloud.run("tpu_vm.sh", "run", *SLICE, *MOUNT, "configs/quickstart.yaml", HF_TOKEN="")
    assert "secrets" not in kinds(cloud) and "dpo_jax_secrets" not in "".join(changes(cloud))


def test_a_detached_run_is_started_and_its_slice_stays(cloud: Fakes):
    answers(cloud, states="- ACTIVE", codes="0")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, "--detach", "configs/quickstart.yaml", "--seed", "1")
    assert done.returncode == 0 and "status, logs, stop, and at last delete: with --name demo" in done.stderr
    assert kinds(cloud) == ["create", "copy", "unpack", "python", "run"]
    assert changes(cloud)[-1].endswith(
        "bash launch/detached.sh start bash launch/local.sh configs/quickstart.yaml --seed 1"
    )


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_a_slice_on_which_a_detached_run_goes_on_is_neither_written_nor_deleted(cloud: Fakes, how: tuple[str, ...]):
    answers(cloud, states="ACTIVE", codes="0", workers="t1v-0: running (process 12); the end of log:")
    done = cloud.run("tpu_vm.sh", "run", *SLICE, *MOUNT, *how, "configs/quickstart.yaml")
    assert done.returncode == 2 and "A detached run goes on there" in done.stderr
    assert kinds(cloud) == []


@pytest.mark.parametrize(("action", "worker"), [("status", "all"), ("logs", "0"), ("stop", "all")])
def test_a_detached_run_is_looked_at_and_stopped(cloud: Fakes, action: str, worker: str):
    answers(cloud, states="ACTIVE", codes="", workers="t1v-0: running (process 12); the end of log:")
    done = cloud.run("tpu_vm.sh", action, *SLICE[:4])
    assert done.returncode == 0, done.stderr
    call = cloud.calls()[-1]
    assert call[1:7] == ["compute", "tpus", "tpu-vm", "ssh", "demo", f"--worker={worker}"]
    assert call[-2] == f"--command=bash dpo_jax/launch/detached.sh {action}"
    assert ("t1v-0: running" in done.stdout) == (action == "status")


@pytest.mark.parametrize(("state", "says"), [("-", "there is no such slice"), ("SUSPENDED", "SUSPENDED")])
def test_the_status_of_a_slice_that_is_gone(cloud: Fakes, state: str, says: str):
    answers(cloud, states=state, codes="")
    done = cloud.run("tpu_vm.sh", "status", *SLICE[:4])
    assert (done.returncode, done.stdout) == (3, f"demo: {says}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: bash launch/tpu_vm.sh"),
        (["status"], "Give --name and --zone."),
        (["stop", *SLICE[:4], "configs/quickstart.yaml"], "stop takes no CONFIG: configs/quickstart.yaml"),
        (["run", "--secret", "hf_abc-1"], "--secret wants the name of a variable, not its value."),
        (["run", "--secret", "NO_SUCH_KEY"], "--secret NO_SUCH_KEY: the environment has no variable NO_SUCH_KEY"),
        (["start"], "Usage: bash launch/tpu_vm.sh"),
        (["run"], "Give --name and --zone."),
        (["run", "--name"], "--name wants a value."),
        (["run", *SLICE[:4]], "Give --type, such as v5litepod-16."),
        (
            ["run", *SLICE, "--train.steps", "3"],
            "--train.steps is not an option of tpu_vm.sh; what is meant for dpo-jax",
        ),
        (["run", *SLICE], "Give the CONFIG to run."),
        (["run", *SLICE, "nowhere.yaml"], "No such file: nowhere.yaml"),
        (["run", *SLICE, "/etc/hosts"], "/etc/hosts must lie in "),
        (["run", *SLICE, "configs/quickstart.yaml"], "Name by --setup the command that mounts a disk"),
        (["create", *SLICE[:5], "v9-8"], "The image for v9-8 is not known here; name it by --runtime."),
        (["delete", *SLICE[:4], "configs/quickstart.yaml"], "delete takes no CONFIG: configs/quickstart.yaml"),
    ],
)
def test_nonsense(cloud: Fakes, arguments: list[str], says: str):
    assert refused(cloud.run("tpu_vm.sh", *arguments)).startswith(says)
    assert cloud.calls() == []
