"""Every model family computes what transformers computes, and what it writes it reads again bit for bit.

The same by value, with gradients and decoding: `tests/parity/test_families.py`, which needs PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.families import FAMILIES
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import _completed
from tests.contracts.families import ADD, CASES, SAMPLES, config_of, golden, ids, some, write_folder
from tests.parity.ours import load

# Keys that only say again what another one says, or speak of what a language model lacks.
SILENT = {"_sliding_window_pattern", "max_window_layers", "original_max_position_embeddings"}
SILENT |= {f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_export(name: str, tmp_path: Path):
    mesh = make_mesh(devices=jax.devices()[:1])
    ours = load(write_folder(name, tmp_path / "model"), mesh)
    logits = some(ours.logits(ids(2, 70)))
    assert np.ptp(golden(name)["logits"]) > 0.5
    np.testing.assert_allclose(logits, golden(name)["logits"], rtol=0, atol=1e-5)
    source, again = ours.source, open_weights(str(ours.export(tmp_path / "export")))
    assert again.shapes == source.shapes
    for tensor in source.shapes:
        np.testing.assert_array_equal(again.read(tensor), source.read(tensor), err_msg=tensor, strict=True)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "export", mesh).params, ours.params)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_samples_try_every_key(family: str):
    """A family that forgets a key would pass if all samples had its default."""
    tried = set()
    for name in SAMPLES:
        if name.split(",")[0] == family:
            _, complete, defaults = _completed(config_of(name), FAMILIES[family].inner)
            tried |= {key for key in defaults if complete.get(key) != defaults[key]}
    assert tried, ADD.format(family)
    silent = (FAMILIES[family].reads & set(defaults)) - tried - SILENT
    assert not silent, f"{ADD.format(family)}; {', '.join(sorted(silent))}: all samples have the default"
