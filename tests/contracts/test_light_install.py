"""`dpo_jax.losses` and `dpo_jax.logprobs` work with jax and chex alone, as launch/README.md installs them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ALONE = ("jax", "chex")

CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
USE = """
import jax, jax.numpy as jnp
from dpo_jax.losses import LOSSES, PairLogps, dpo
from dpo_jax.logprobs import response_logps, token_logps
from dpo_jax.types import Unembedding

hidden_RTD = jnp.ones((2, 3, 4))
unembedding = Unembedding(jnp.zeros((5, 4)), vocabulary=5)
tokens_RN = token_logps(hidden_RTD, jnp.zeros((2, 3), jnp.int32), unembedding)
logps_BP = response_logps(tokens_RN, jnp.array([[0, 0, 0], [1, 1, -1]]), pairs=1, slots=2)
policy = PairLogps(chosen=logps_BP[:, 0], rejected=logps_BP[:, 1])
loss, slope = jax.value_and_grad(lambda each: dpo(each, policy).mean())(policy)
print(len(LOSSES), *(round(float(each), 4) for each in (*logps_BP.ravel(), loss, slope.chosen[0])))
"""


def left_out() -> list[str]:
    """The modules of all that is installed here, but for jax and chex, what they need, and ours."""
    needed, waiting = set(), [*ALONE]
    while waiting:
        name = canonical(waiting.pop())
        if name not in needed:
            needed.add(name)
            lines = [Requirement(line) for line in metadata.requires(name) or []]
            waiting += [each.name for each in lines if not each.marker or each.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions().items()
    return sorted(module for module, of in modules if not (needed | {"dpo-jax"}) & {canonical(each) for each in of})


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def alone(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE + code, *left_out()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_losses_and_logprobs_need_jax_and_chex_alone():
    heavy = {"flax", "optax", "transformers", "datasets", "tensorflow_datasets", "pandas", "matplotlib", "yaml"}
    assert heavy <= {*left_out()} and not {"jaxlib", "numpy", "absl"} & {*left_out()}
    done = alone(USE)
    assert done.returncode == 0, done.stderr
    losses, *values = map(float, done.stdout.split())
    assert losses >= 32
    assert values == [round(value, 4) for value in (3 * -1.6094379, 2 * -1.6094379, 0.6931472, -0.05)]


def test_what_is_not_there_is_blocked():
    done = alone("import yaml")
    assert done.returncode == 1 and "No module named 'yaml'" in done.stderr


def test_a_command_says_what_it_lacks():
    done = alone("from dpo_jax import cli")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"dpo-jax: the package \w+ is not installed; the commands need all of .*", line)


def test_the_page_names_the_versions_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {Requirement(line).name: line for line in project["dependencies"]}
    page = (ROOT / "launch" / "README.md").read_text(encoding="utf8")
    assert f"pip install {' '.join(repr(bounds[name]) for name in ALONE)} && pip install --no-deps ." in page
    eight = {"jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "tensorflow-datasets", "chex"}
    assert eight <= bounds.keys()  # which `pip install .` brings
