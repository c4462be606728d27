"""Reward models as folders: which token pads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.files import read_json
from dpo_jax.mesh import make_mesh
from dpo_jax.models.heads import make_reward_model, trunk_of
from dpo_jax.models.model import make_model
from dpo_jax.weights.export import Files
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.reward import describe_reward, export_reward, load_reward
from tests.tiny import make_hf_folder

UNK, BOS, EOS = 0, 1, 2  # EOS is also the tokenizer's padding


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    source = open_weights(str(make_hf_folder(tmp_path_factory.mktemp("weights") / "model")))
    spec, rules, *_ = resolve_spec(source)
    model = make_reward_model(spec)
    params = load_params(source, make_model(spec), rules, make_mesh())
    return {**trunk_of(params), **model.init_head(jax.random.key(0))}, model, source


@pytest.mark.parametrize(
    ("ends", "pad"), [({EOS}, UNK), ({EOS, UNK}, BOS), (set(), UNK), ({EOS, UNK, BOS}, None), ({77}, UNK)]
)
def test_no_token_that_ends_a_response_is_padding(made: tuple, tmp_path: Path, ends: set[int], pad: int | None):
    assert export_reward(tmp_path / "out", *made, ends=ends) == (pad is not None)
    again = open_weights(str(tmp_path / "out"))
    assert again.config["pad_token_id"] == pad and again.tokenizer().pad_token_id == pad
    assert again.tokenizer().padding_side == "right" and again.tokenizer().eos_token_id == EOS
    assert made[2].tokenizer().pad_token_id == EOS  # the source is as it was


def test_padding_of_its_own_stays(made: tuple, tmp_path: Path):
    params, model, source = made

    def tokenizer() -> Any:
        found = source.tokenizer()
        found.pad_token = "<|im_start|>"
        found.padding_side = found.init_kwargs["padding_side"] = "left"
        return found

    export_reward(tmp_path / "out", params, model, source._replace(tokenizer=tokenizer), ends={EOS})
    assert read_json(tmp_path / "out" / "config.json")["pad_token_id"] == BOS
    assert open_weights(str(tmp_path / "out")).tokenizer().padding_side == "right"


def test_export_import_is_exact(made: tuple, tmp_path: Path):
    params, model, source = made
    export_reward(tmp_path / "out", params, model, source, ends={EOS}, files=Files(max_shard_bytes=30_000))
    again = open_weights(str(tmp_path / "out"))
    resolved = resolve_spec(again)
    found = load_reward(again, resolved, describe_reward(again, resolved, dtype="float32"), make_mesh(fsdp=4, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_is_no_reward_model_is_refused(made: tuple, tmp_path: Path):
    params, model, source = made
    with pytest.raises(UserError, match=r"no tensor score\.weight"):
        describe_reward(source, resolve_spec(source), dtype="float32")
    two_labels = source._replace(shapes={**source.shapes, "score.weight": (2, 32)})
    del two_labels.shapes["lm_head.weight"]
    resolved = resolve_spec(source)
    with pytest.raises(UserError, match=r"'score.weight' has shape \(2, 32\), config.json asks for \(1, 32\)"):
        load_reward(two_labels, resolved, describe_reward(two_labels, resolved, dtype="float32"), make_mesh())
    with pytest.raises(UserError, match=r"model_type 'gemma3' has no such form\. Did you mean"):
        export_reward(
            tmp_path / "out", params, model, source._replace(config={**source.config, "model_type": "gemma3"}), ends=()
        )
