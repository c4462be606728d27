"""Which form of attention is used where."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from dpo_jax.models.attention import choose_attention
from tests.models.test_decoder import SPEC

CPU, TPU = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="tpu")
HOPPER, AMPERE = (SimpleNamespace(platform="gpu", compute_capability=of) for of in ("9.0", "8.0"))
CAPPED = dataclasses.replace(SPEC, attention_soft_cap=50.0)
WIDE, ODD = (dataclasses.replace(SPEC, head_size=size) for size in (256, 36))


@pytest.mark.parametrize(
    ("device", "spec", "dtype", "name", "why"),
    [
        (CPU, SPEC, "bfloat16", "blocks", ""),
        (TPU, CAPPED, "float32", "splash", ""),
        (HOPPER, SPEC, "bfloat16", "cudnn", ""),
        (HOPPER, WIDE, "bfloat16", "cudnn", ""),
        (HOPPER, SPEC, "float32", "blocks", "cudnn attention needs dtype bfloat16, not float32"),
        (HOPPER, CAPPED, "bfloat16", "blocks", "cudnn attention has no soft cap, and this model caps its scores"),
        (AMPERE, WIDE, "bfloat16", "blocks", "heads of at most 128 numbers, a multiple of 8, not 256"),
        (HOPPER, ODD, "bfloat16", "blocks", "heads of at most 256 numbers, a multiple of 8, not 36"),
    ],
)
def test_auto_takes_the_fastest_that_can(device, spec, dtype: str, name: str, why: str):
    choice = choose_attention("auto", spec, dtype, device)
    assert choice.name == name and why in choice.why and bool(why) == bool(choice.why)


@pytest.mark.parametrize("name", ["dense", "blocks"])
@pytest.mark.parametrize("device", [CPU, TPU, HOPPER])
def test_some_run_everywhere(device, name: str):
    assert choose_attention(name, SPEC, "float32", device) == (name, "")


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        ("splash", CPU, "splash attention needs a TPU, and this is a cpu. Possible here: auto, dense, blocks."),
        ("cudnn", TPU, "cudnn attention needs an NVIDIA GPU, and this is a tpu. Possible here: auto, dense, blocks, s"),
        ("cudnn", HOPPER, "cudnn attention needs dtype bfloat16, not float32. Possible here: auto, dense, blo"),
    ],
)
def test_what_cannot_be_is_refused(wanted: str, device, message: str):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        choose_attention(wanted, SPEC, "float32", device)
