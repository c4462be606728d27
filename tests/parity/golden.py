"""Shapes and logits of the samples of all families as transformers has them, into tests/contracts/families.json."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.contracts.families import GOLDEN, SAMPLES, config_of, draw, ids, some
from tests.parity.ours import their_logits
from tests.tiny import make_hf_folder


def their_model(folder: Path) -> Any:
    """The model of a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def shapes(name: str, folder: Path) -> dict[str, list[int]]:
    """Tensor, `*` for the number of a layer -> how many layers (0: it is in none), and its shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(name))).save_pretrained(folder)
    found: dict[str, list[int]] = {}
    for tensor, array in load_file(folder / "model.safetensors").items():
        pattern, layers = re.subn(r"(?<=\.)\d+(?=\.)", "*", tensor)
        found[pattern] = [found.get(pattern, [0])[0] + layers, *array.shape]
    return dict(sorted(found.items()))


def computed(name: str, folder: Path) -> dict[str, Any]:
    """The entry of a sample that `families.json` should have."""
    make_hf_folder(folder)
    (folder / "config.json").write_text(json.dumps(config_of(name)))
    found = shapes(name, folder / "random")
    save_file(draw(found), folder / "model.safetensors", metadata={"format": "pt"})
    logits = some(their_logits(their_model(folder), ids(2, 70)))
    return {"shapes": found, "logits": np.round(logits.astype(float), 6).tolist()}


def write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        held = {name: computed(name, Path(folder, name)) for name in SAMPLES}
    text = json.dumps(held, indent=1)
    text = re.sub(r"\[\s+([-\d.,\se]+?)\s+\]", lambda numbers: "[" + " ".join(numbers[1].split()) + "]", text)
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    write()
