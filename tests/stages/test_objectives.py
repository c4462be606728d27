"""Every loss in the step, in float64, at unequal lengths: micro-batches and a mesh change no value and no gradient."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.mesh import make_mesh
from dpo_jax.stages.terms import TRAINED
from tests.stages.toy import found_by

MIXTURES = {
    "mpo": [
        LossConfig(name="dpo", weight=0.8),
        LossConfig(name="bco_pair", weight=0.2),
        LossConfig(name="sft", weight=1.0),
    ],
    "two that remember": [LossConfig(name="alpha_dpo"), LossConfig(name="beta_dpo", weight=0.5)],
    "sft by sequence": [
        LossConfig(name="orpo", weight=0.1),
        LossConfig(name="sft", options={"nll_reduction": "sequence"}),
    ],
    "unpaired": [LossConfig(name="kto"), LossConfig(name="bco", weight=0.3)],
    "ld and wpo": [LossConfig(name="dpo", ld_alpha=0.3), LossConfig(name="aot", wpo=True)],
}
CASES = {name: [LossConfig(name=name)] for name in TRAINED} | MIXTURES


MESHES = {
    "data": {"data": 8, "fsdp": 1},
    "fsdp": {"fsdp": 8},
    "tensor": {"fsdp": 1, "tensor": 8},
    "sequence": {"fsdp": 1, "sequence": 8},
    "data, fsdp, tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "slice, fsdp, sequence": {"slice": 2, "fsdp": 2, "sequence": 2},
}


IN_TURN = [(name, list(MESHES)[number % len(MESHES)]) for number, name in enumerate(CASES)]


@pytest.mark.parametrize(("name", "mesh"), IN_TURN)
def test_micro_batches_on_eight_devices_equal_one_batch_on_one(x64, name: str, mesh: str):
    whole = found_by(CASES[name], micro_batches=1)
    parts = found_by(CASES[name], micro_batches=4, mesh=make_mesh(**MESHES[mesh]))
    assert whole[0][0].dtype == np.float64
    for ours, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-11)
