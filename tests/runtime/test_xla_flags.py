"""The settings of each kind of device: the user's own stay, jaxlib knows the flags, and the page shows the table."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_jax import XLA_CPU_FLAG, miscompiles
from dpo_jax.errors import UserError
from dpo_jax.runtime import xla_flags

ROOT = Path(__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True
    )


def test_everything_is_set_where_nothing_is():
    new = xla_flags.additions("tpu", {})
    assert new == {"LIBTPU_INIT_ARGS": " ".join(value for _, value, _ in xla_flags.SETTINGS["tpu"])}
    assert xla_flags.additions("gpu", {})["JAX_OPTIMIZATION_LEVEL"] == "O1"
    assert xla_flags.additions("gpu", xla_flags.additions("gpu", {})) == {}  # and twice is once


def test_what_the_user_set_stays():
    own = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "JAX_OPTIMIZATION_LEVEL": "O2"}
    assert xla_flags.additions("gpu", own) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    own = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler_v2=false"}  # another flag, which begins alike
    flags = xla_flags.additions("gpu", own)["XLA_FLAGS"].split()
    assert flags == [own["XLA_FLAGS"], "--xla_gpu_enable_latency_hiding_scheduler=true"]


@pytest.mark.parametrize(
    ("environment", "files", "platform"),
    [
        ({}, [], None),
        ({}, ["nvidiactl"], "gpu"),
        ({}, ["accel0"], "tpu"),
        ({}, ["vfio/0"], "tpu"),
        ({}, ["vfio/vfio"], None),  # every machine with that module has it
        ({"JAX_PLATFORMS": "cpu"}, ["nvidiactl"], None),
        ({"JAX_PLATFORMS": "cuda,cpu"}, [], "gpu"),
        ({"JAX_PLATFORMS": "tpu"}, [], "tpu"),
    ],
)
def test_which_machine_this_is(tmp_path: Path, environment: dict[str, str], files: list[str], platform: str | None):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert xla_flags.find_platform(environment, devices=tmp_path) == platform
    environment |= {"XLA_FLAGS": XLA_CPU_FLAG}
    applied = dict(environment)
    xla_flags.apply(applied, devices=tmp_path)
    assert applied == environment | (xla_flags.additions(platform, environment) if platform else {})
    refused = {**environment, xla_flags.SWITCH: "off"}
    xla_flags.apply(refused, devices=tmp_path)
    assert refused == {**environment, xla_flags.SWITCH: "off"}


def test_the_switch_is_on_or_off():
    with pytest.raises(UserError, match=r"DPO_JAX_XLA_FLAGS=of is not understood. Did you mean 'off'"):
        xla_flags.apply({xla_flags.SWITCH: "of"})


QUIET_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
QUIET_GPU = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}


@pytest.mark.parametrize(
    ("environment", "files", "added"),
    [
        ({}, [], QUIET_TPU | QUIET_GPU),
        ({"DPO_JAX_XLA_FLAGS": "off"}, [], QUIET_TPU | QUIET_GPU),
        ({"JAX_PLATFORMS": "cpu"}, [], QUIET_TPU | QUIET_GPU),
        ({"TPU_WORKER_HOSTNAMES": "mine"}, [], {"TPU_ACCELERATOR_TYPE": "v5litepod-4"} | QUIET_GPU),
        # A failure where one is asked for, or where there is one, is shown.
        ({"JAX_PLATFORMS": "tpu,cpu"}, [], QUIET_GPU),
        ({"JAX_FORCE_TPU_INIT": "1"}, [], QUIET_GPU),
        ({}, ["accel0"], QUIET_GPU),
        ({}, ["vfio/0"], QUIET_GPU),
        ({"JAX_PLATFORMS": "cpu,cuda"}, [], QUIET_TPU),
        ({}, ["nvidia0"], QUIET_TPU),
        ({}, ["nvidiactl"], QUIET_TPU),
        ({}, ["dxg"], QUIET_TPU),  # a GPU under Windows
    ],
)
def test_packages_for_an_accelerator_that_is_not_here_do_not_complain(
    tmp_path: Path, monkeypatch, environment: dict[str, str], files: list[str], added: dict[str, str]
):
    (tmp_path / "packages" / "jax_plugins").mkdir(parents=True)
    (tmp_path / "packages" / "libtpu").mkdir()
    devices = tmp_path / "dev"
    for name in files:
        (devices / name).parent.mkdir(parents=True, exist_ok=True)
        (devices / name).touch()
    environment = environment | {"XLA_FLAGS": XLA_CPU_FLAG}
    names = {*QUIET_TPU, *QUIET_GPU}

    def applied() -> dict[str, str]:
        changed = dict(environment)
        xla_flags.apply(changed, devices=devices)
        return {name: changed[name] for name in names & changed.keys() if name not in environment}

    assert applied() == {}  # nothing is said without the packages
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert applied() == added


def test_libtpu_on_a_machine_without_a_tpu_is_silent(tmp_path: Path):
    """As `doctor` starts it, where libtpu is installed; whoever has it not sees the same of a pretended one."""
    if not importlib.util.find_spec("libtpu"):
        (tmp_path / "libtpu.py").write_text(PRETENDED_LIBTPU)
    command = [sys.executable, "-m", "dpo_jax.cli", "doctor", "--workdir", str(tmp_path)]
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = mine | {"PYTHONPATH": path, "XLA_FLAGS": ""}
    if xla_flags.find_platform(environment):
        pytest.skip("there is an accelerator here")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    asked = {"JAX_PLATFORMS": "tpu,cpu"}  # whoever asks for a TPU hears of it
    done = subprocess.run(command, env=environment | asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "JAX finds none: Unable to initialize backend 'tpu'" in done.stdout


PRETENDED_LIBTPU = """
import os, sys

def get_library_path():
    if os.environ.get("TPU_ACCELERATOR_TYPE") is None or os.environ.get("TPU_WORKER_HOSTNAMES") is None:
        print("could not determine TPU accelerator type", file=sys.stderr)
    return "/nowhere/libtpu.so"
"""


SQUARED_NORMS = """
import jax, jax.numpy as jnp
rows = jnp.zeros((32_769, 3)).at[:, 0].set(jnp.arange(32_769))
print(int(jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)[-1]))
"""


def test_xla_computes_right_on_a_cpu_once_dpo_jax_is_imported():
    done = python(f"import dpo_jax.losses, dpo_jax\n{SQUARED_NORMS}", XLA_FLAGS="", JAX_PLATFORMS="cpu")
    assert (done.stdout.split(), done.stderr) == ([str(32_768**2)], "")
    # where JAX has started it cannot be helped, and is said; so this test can fail
    done = python(f"{SQUARED_NORMS}\nimport dpo_jax\n{SQUARED_NORMS}", XLA_FLAGS="", JAX_PLATFORMS="cpu")
    if done.stdout.split() == [str(32_768**2)] * 2:
        assert not miscompiles({}) and done.stderr == ""
    else:
        assert miscompiles({}) and "RuntimeWarning: JAX has started already" in done.stderr


@pytest.mark.skipif(not miscompiles({}), reason="this jaxlib computes right without the flag")
def test_a_user_who_turns_the_wrong_programs_on_is_refused(tmp_path: Path):
    assert not miscompiles({"XLA_FLAGS": f"--xla_a=b {XLA_CPU_FLAG}"})
    own = {"XLA_FLAGS": f"{XLA_CPU_FLAG} {XLA_CPU_FLAG}dot,reduce"}  # XLA takes the last
    with pytest.raises(UserError, match=r"XLA_FLAGS=.*dot,reduce: with that, this jaxlib computes some programs wrong"):
        xla_flags.apply(own, devices=tmp_path)
    xla_flags.apply(own | {"JAX_PLATFORMS": "cuda"}, devices=tmp_path)
    done = python("import os, dpo_jax; print(os.environ['XLA_FLAGS'])", **own)
    assert done.stdout.strip() == own["XLA_FLAGS"]


def test_jaxlib_knows_the_settings_for_gpus():
    compiled = "import jax; print(jax.config.jax_optimization_level, jax.jit(lambda x: x + 1)(1))"
    done = python(compiled, **xla_flags.additions("gpu", {}), JAX_PLATFORMS="cpu")
    assert done.stdout.split() == ["O1", "2"], done.stderr
    # one that it does not know ends the process: so this test can fail
    done = python(compiled, XLA_FLAGS="--xla_gpu_no_such_flag=true", JAX_PLATFORMS="cpu")
    assert done.returncode and "Unknown flag in XLA_FLAGS: --xla_gpu_no_such_flag=true" in done.stderr


def test_the_command_prints_lines_for_a_shell():
    command = [sys.executable, "-m", "dpo_jax.runtime.xla_flags"]
    script = f'eval "$({shlex.join([*command, "gpu"])})" && printf "%s\n" "$XLA_FLAGS"'
    environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to=a {XLA_CPU_FLAG}"}
    done = subprocess.run(["bash", "-euc", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    both = f"{environment['XLA_FLAGS']} --xla_gpu_enable_latency_hiding_scheduler=true\n"
    assert done.stdout == both, done.stderr
    done = subprocess.run([*command, "gpus"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "xla_flags: give one word. Did you mean 'gpu'? Allowed: cpu, gpu, table, tpu.\n"


def test_it_loads_nothing_heavy():
    done = python("import sys, dpo_jax.runtime.xla_flags; print(*({'jax', 'numpy'} & set(sys.modules)))")
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_the_page_shows_the_table():
    page = (ROOT / "launch" / "README.md").read_text(encoding="utf8")
    assert xla_flags.table() in page, "python -m dpo_jax.runtime.xla_flags table prints it"
