"""Adapters by value against PEFT: the exported folder is loaded, logits and the gradients of the DPO loss compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dpo_jax.models.model import make_model
from dpo_jax.types import Lora, Params, join
from dpo_jax.weights.adapter import adapted_paths, export_adapter
from dpo_jax.weights.opening import Base
from tests.contracts.families import ids, write_folder
from tests.parity.golden import their_model
from tests.parity.ours import Ours, load, their_logits
from tests.parity.test_families import our_gradients, their_gradients

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CASES = {
    "llama, every map": ("llama, one key head, wide heads", ["all-linear"]),
    "qwen2, two names": ("qwen2", ["q_proj", "down_proj"]),
    "gemma3_text, attention": ("gemma3_text", ["*.self_attn.*"]),
    "gpt2, one of two of a name": ("gpt2", ["attn.c_proj", "c_attn"]),
    "gpt2, every map": ("gpt2, untied, inner width", ["all-linear"]),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Params]:
    """PEFT's model made from our exported adapter, our base, and the adapter."""
    from peft import PeftModel

    sample, targets = CASES[request.param]
    folder = tmp_path_factory.mktemp("lora")
    base, ours = their_model(write_folder(sample, folder / "base")), load(folder / "base")
    lora = Lora(rank=3, alpha=7.0, dropout=0.1, paths=adapted_paths(ours.rules, targets))
    model = make_model(ours.model.spec, lora=lora)
    leaves, tree = jax.tree.flatten(jax.jit(model.init_adapter)(jax.random.key(0)))
    draw = np.random.default_rng(0).standard_normal
    adapter = tree.unflatten([np.asarray(leaf + 0.2 * draw(leaf.shape), np.float32) for leaf in leaves])
    export_adapter(
        folder / "adapter",
        jax.device_put(adapter),
        lora,
        ours.rules,
        base=Base(str(folder / "base")),
        tokenizer=ours.source.tokenizer(),
    )
    theirs = PeftModel.from_pretrained(base, str(folder / "adapter"), is_trainable=True).eval()
    return theirs, ours._replace(model=model), adapter


def test_logits(pair: tuple[Any, Ours, Params]):
    theirs, ours, adapter = pair
    ids_RT = ids(3, 70)
    expected_RTV = their_logits(theirs, ids_RT)
    with_adapter = ours._replace(params=join(ours.params, adapter))
    np.testing.assert_allclose(with_adapter.logits(ids_RT), expected_RTV, rtol=0, atol=2e-4)
    with theirs.disable_adapter():
        assert np.abs(their_logits(theirs, ids_RT) - expected_RTV).max() > 0.1


def test_gradients_of_the_dpo_loss(pair: tuple[Any, Ours, Params], tmp_path: Path):
    theirs, ours, adapter = pair
    value, gradient = our_gradients(ours, adapter, lambda adapter: join(ours.params, adapter))
    expected, expected_gradient = their_gradients(theirs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert ours.model.lora
    # PEFT's names and axes, as the export gives them
    export_adapter(
        tmp_path / "g",
        jax.device_put(gradient),
        ours.model.lora,
        ours.rules,
        base=Base(""),
        tokenizer=ours.source.tokenizer(),
    )
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "g" / "adapter_model.safetensors")
    assert {name.replace(".weight", ".default.weight") for name in found} == expected_gradient.keys()
    for name, array in found.items():
        wanted = expected_gradient[name.replace(".weight", ".default.weight")]
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
