"""Every loss in the step, in float64, at unequal lengths: micro-batches and a mesh change no value and no gradient."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.experiments.losses import TRAINED
from dpo_jax.losses import TOKEN_LEVEL, UNPAIRED, Loss
from dpo_jax.mesh import make_mesh
from tests.objectives.toy import found_by


def kind(name: str, entry: Loss) -> tuple[bool, bool, bool]:
    """What the step asks of a loss: its rows, the reference in the step, and whether micro-batches add up to it."""
    whole = bool(entry.batch_global or entry.state or entry.mismatched)
    return name in UNPAIRED, name in TOKEN_LEVEL, whole


KINDS = {"pairs": (False, False), "tokens": (False, True), "completions": (True, False)}
CASES = {
    f"{rows}{', of the whole batch' * whole}": [
        LossConfig(name=name, weight=1 + number / 10)
        for number, (name, entry) in enumerate(TRAINED.items())
        if kind(name, entry) == (*of_rows, whole)
    ]
    for rows, of_rows in KINDS.items()
    for whole in (False, True)
}
CASES = {name: losses for name, losses in CASES.items() if losses} | {
    "by sequence, heads apart": [
        LossConfig(name="dpo", ld_alpha=0.3),
        LossConfig(name="sft", options={"nll_reduction": "sequence"}),
    ],
    "weighed by their tokens": [LossConfig(name="dpo"), LossConfig(name="aot", wpo=True)],
}
MESHES = {
    "data": {"data": 8, "fsdp": 1},
    "fsdp": {"fsdp": 8},
    "tensor": {"fsdp": 1, "tensor": 8},
    "sequence": {"fsdp": 1, "sequence": 8},
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "slice, fsdp, sequence": {"slice": 2, "fsdp": 2, "sequence": 2},
}
IN_TURN = [(name, list(MESHES)[number % len(MESHES)]) for number, name in enumerate(CASES)]


def test_every_loss_is_in_a_case():
    assert {loss.name for losses in CASES.values() for loss in losses} == TRAINED.keys()


@pytest.mark.parametrize(
    ("name", "mesh"), [*IN_TURN, pytest.param("pairs", "data, fsdp, tensor", marks=pytest.mark.slow("another mesh"))]
)
def test_micro_batches_on_eight_devices_equal_one_batch_on_one(x64, name: str, mesh: str):
    """The metrics say of which loss the value differs; the gradient is that of all of the case, each with a weight."""
    whole = found_by(CASES[name], micro_batches=1)
    parts = found_by(CASES[name], micro_batches=4, mesh=make_mesh(**MESHES[mesh]))
    assert whole[0][0].dtype == np.float64
    ours, wanted = (dict(jax.tree_util.tree_leaves_with_path(found)) for found in (parts, whole))
    assert ours.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-9, atol=1e-11, err_msg=jax.tree_util.keystr(path))
