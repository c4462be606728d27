"""The JobSet, the SkyPilot task, the Dockerfile and the page: their fields, and that they agree with the rest."""

from __future__ import annotations

import base64
import math
import os
import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from tests.launch.conftest import ROOT, Fakes

LAUNCH = ROOT / "launch"
JOBSET = (LAUNCH / "gke_jobset.yaml").read_text()
VALUES = {"NAME": "demo", "IMAGE": "registry/dpo-jax:tpu", "CONFIG": "configs/mine.yaml", "CLAIM": "runs"}

_POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {str: str},
    "containers": [
        {
            "name": str,
            "image": str,
            "args": [str],
            "env": [{"name": str, "value": str}],
            "envFrom": [{"secretRef": {"name": str, "optional": bool}}],
            "ports": [{"containerPort": int}],
            "securityContext": {"privileged": bool, "runAsUser": int},
            "resources": {"limits": {str: int}},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
}
_JOB = {"parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int, "template": {"spec": _POD}}
SCHEMA = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {str: str}},
    "spec": {
        "failurePolicy": {"maxRestarts": int},
        "network": {"enableDNSHostnames": bool, "subdomain": str},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": _JOB}}],
    },
}
"""The fields of jobset.x-k8s.io/v1alpha2 that we use, by the names and types of its CRD."""


def mistakes(value: Any, schema: Any, at: str = "") -> list[str]:
    """Places at which a value has another type or field than the schema."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{at}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no list"]
        return [found for n, item in enumerate(value) for found in mistakes(item, schema[0], f"{at}[{n}]")]
    if not isinstance(value, dict):
        return [f"{at}: {value!r} is no mapping"]
    found = []
    for key, item in value.items():
        own = schema.get(key, schema.get(str))
        found += mistakes(item, own, f"{at}.{key}") if own else [f"{at}.{key}: unknown"]
    return found


def rendered() -> dict[str, Any]:
    """The JobSet as envsubst writes it."""
    text = re.sub(r"\$\{(\w+)\}", lambda match: VALUES[match[1]], JOBSET)
    return yaml.safe_load(text)


def test_the_jobset_has_known_fields_only():
    assert mistakes(rendered(), SCHEMA) == []


@pytest.mark.parametrize(
    ("old", "new"), [("backoffLimit: 0", "backofLimit: 0"), ("replicas: 1", "replicas: one"), ("args: [", "args: [1, ")]
)
def test_a_planted_mistake_is_found(old: str, new: str):
    planted = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: VALUES[match[1]], JOBSET.replace(old, new)))
    assert len(mistakes(planted, SCHEMA)) == 1


def test_the_jobset_asks_for_one_whole_slice():
    jobset = rendered()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["parallelism"] == job["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert (job["completionMode"], job["backoffLimit"], pod["restartPolicy"]) == ("Indexed", 0, "Never")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0  # all hosts together, which resumes
    assert container["args"] == ["run", "configs/mine.yaml", "--workdir", "/runs/demo"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    assert container["args"][-1].startswith(container["volumeMounts"][0]["mountPath"])
    label = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
    names = [jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"], replicated["name"], container["name"]]
    assert all(label.fullmatch(name) for name in [*names, pod["volumes"][0]["name"]])
    longest_pod = f"{'n' * 40}-{replicated['name']}-0-{job['completions'] - 1}-xxxxx"  # NAME has at most 40 characters
    assert label.fullmatch(longest_pod)


def test_the_header_substitutes_every_placeholder_and_explains_it():
    header, _, body = JOBSET.partition("apiVersion")
    placeholders = set(re.findall(r"\$\{(\w+)\}", body))
    assert placeholders == set(VALUES)
    assert {frozenset(re.findall(r"\$(\w+)", used)) for used in re.findall(r"envsubst '([^']*)'", header)} == {
        frozenset(placeholders)
    }
    assert all(re.search(rf"^# {name} +\S", header, re.MULTILINE) for name in placeholders)
    assert "kubectl create --dry-run=server" in header and "xpk workload create" in header


def test_the_jobset_refers_to_a_secret_by_name_and_holds_none():
    (replicated,) = rendered()["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "dpo-jax", "optional": True}}]
    assert not {"HF_TOKEN", "WANDB_API_KEY"} & {variable["name"] for variable in container["env"]}
    header = JOBSET.partition("apiVersion")[0]
    assert "kubectl create secret generic dpo-jax --from-env-file=<(" in header


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_command_that_makes_the_secret_does():
    (command,) = re.findall(r"^# +(kubectl create secret .*)$", JOBSET, re.MULTILINE)
    environment = {**os.environ, "HF_TOKEN": "hf_it's one", "OTHER": "no"}
    environment.pop("WANDB_API_KEY", None)
    made = subprocess.run(
        ["bash", "-c", f"{command} --dry-run=client -o yaml"], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    secret = yaml.safe_load(made.stdout)
    assert secret["metadata"]["name"] == "dpo-jax"
    assert {name: base64.b64decode(value).decode() for name, value in secret["data"].items()} == {
        "HF_TOKEN": "hf_it's one"
    }


def test_the_commands_that_look_at_the_jobset_use_its_names():
    header, _, body = JOBSET.partition("apiVersion")
    commands = re.findall(r"^# +(kubectl (?:get|logs|delete) .*?)(?: +#.*)?$", header, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["get", "get", "logs", "delete"]
    selectors = [re.search(r" -l (\S+)", command) for command in commands]
    # The labels that the controllers of JobSet and of Job put on each pod.
    wanted = "jobset.sigs.k8s.io/jobset-name=$NAME"
    assert [found and found[1] for found in selectors] == [
        None,
        wanted,
        f"{wanted},batch.kubernetes.io/job-completion-index=0",
        None,
    ]
    assert all("$NAME" in command for command in commands) and "name: ${NAME}" in body


@pytest.mark.parametrize("name", ["skypilot.yaml", "Dockerfile", "README.md"])
def test_every_launcher_says_how_secrets_go_along(name: str):
    text = (LAUNCH / name).read_text()
    assert "HF_TOKEN" in text and "WANDB_API_KEY" in text


def skypilot() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def test_the_skypilot_task_has_known_fields_only():
    schema = {"name": str, "workdir": str, "num_nodes": int, "setup": str, "run": str, "envs": {str: type(None)}}
    assert mistakes(skypilot(), schema | {"resources": {"accelerators": str, "use_spot": bool}}) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilot_gives_jax_the_nodes(fakes: Fakes, rank: int):
    task = skypilot()
    for name in ("mountpoint", "sudo"):
        fakes.add(name)
    fakes.add("bash", "env | grep ^JAX_")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": f"{rank}"}
    environment = fakes.environment(nodes | {"CONFIG": "configs/mine.yaml", "NAME": "demo", "NFS": "10.0.0.2:/share"})
    # /bin/bash runs the script; the `bash` in it is the pretended one.
    done = subprocess.run(["/bin/bash", "-c", task["run"]], env=environment, capture_output=True, text=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    wanted = {"COORDINATOR_ADDRESS": "10.0.0.7:12355", "NUM_PROCESSES": "2", "PROCESS_ID": f"{rank}"}
    assert {name: found.get(f"JAX_{name}") for name in wanted} == wanted, done.stderr
    assert fakes.calls()[-1] == ["bash", "launch/local.sh", "configs/mine.yaml", "--workdir", "/runs/demo"]


def test_the_dockerfile_copies_what_there_is_and_starts_our_command():
    lines = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaged = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"pyproject.toml", "README.md", "LICENSE", "dpo_jax", *(name.split("/")[0] for name in packaged)} <= {
        *copied
    }
    installed = [rest for name, rest in steps if name == "RUN" and "--require-hashes" in rest]
    assert all(file in installed[0] and file in copied for file in ("launch/lock-py312.txt", "launch/quickstart.txt"))
    assert ["FROM", "python:3.12-slim"] in steps  # the lock's
    assert (
        steps[-2:] == [["USER", "1000"], ["ENTRYPOINT", '["dpo-jax"]']] and "dpo-jax" in project["project"]["scripts"]
    )
    assert {"cuda12", "cuda13", "tpu"} <= set(project["project"]["optional-dependencies"])  # what ACCELERATOR may be


def test_the_page_names_every_file():
    page = (LAUNCH / "README.md").read_text()
    assert [
        file.name for file in sorted(LAUNCH.iterdir()) if f"{file.name}" not in page and file.name != "README.md"
    ] == []
