"""Reward models by value against transformers: the exported folder, gradients, and a folder that transformers saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import padded
from dpo_jax.losses import bradley_terry
from dpo_jax.models.heads import RewardModel, make_reward_model, trunk_of
from dpo_jax.types import PairBatch, Params, TokenRow
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.reward import _CLASSES, describe_reward, export_reward, load_reward
from tests.contracts.families import FIRST, write_folder
from tests.parity.ours import load

EOS = 2  # and the padding of the tokenizer


def ids(*tokens: int) -> np.ndarray:
    return np.array([*tokens, EOS], np.int32)


ROWS = [
    TokenRow("a", np.arange(5, 12, dtype=np.int32), (ids(40, 3, 99), ids(7))),
    TokenRow("b", np.array([300], np.int32), (ids(8), ids(*range(100, 119)))),
]


class Pair(NamedTuple):
    """transformers' model from our exported folder, and ours."""

    theirs: Any
    model: RewardModel
    params: Params
    mesh: jax.sharding.Mesh
    folder: Path


@pytest.fixture(scope="module", params=[name for name in FIRST if name.split(",")[0] in _CLASSES])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    base = load(write_folder(request.param, folder / "base"))
    model = make_reward_model(base.model.spec)
    params = {**trunk_of(base.params), **model.init_head(jax.random.key(0))}
    assert export_reward(folder / "reward", params, model, base.source, ends={EOS})
    theirs, said = AutoModelForSequenceClassification.from_pretrained(folder / "reward", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert theirs.config.num_labels == 1
    return Pair(theirs.eval(), model, params, base.mesh, folder)


def their_rewards(model: Any, folder: Path) -> Any:
    """Rewards [B, P] of rows that its own tokenizer pads."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = [np.concatenate([row.prompt, response]).tolist() for row in ROWS for response in row.responses]
    inputs = tokenizer.pad({"input_ids": sequences}, return_tensors="pt", padding=True)
    assert inputs["input_ids"].shape == (4, 21) and int(inputs["attention_mask"][1].sum()) == 9
    with torch.enable_grad():
        return model(**inputs).logits.reshape(2, 2)


def batch() -> PairBatch:
    return padded(ROWS, length=32, scored=24, row_multiple=8)


@pytest.mark.filterwarnings("ignore:.*__call__. method is faster:UserWarning")
def test_rewards_of_the_exported_folder(pair: Pair):
    with jax.set_mesh(pair.mesh):
        found = np.asarray(jax.jit(pair.model.rewards)(pair.params, batch()))
    wanted = their_rewards(pair.theirs, pair.folder / "reward").detach().numpy()
    assert np.ptp(wanted) > 0.2
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


def test_gradients_of_the_bradley_terry_loss(pair: Pair):
    import torch

    def loss(params: Params) -> jax.Array:
        rewards_BP = pair.model.rewards(params, batch())
        return bradley_terry(rewards_BP[:, 0], rewards_BP[:, 1]).mean()

    with jax.set_mesh(pair.mesh):
        slope = jax.device_get(jax.jit(jax.grad(loss))(pair.params))
    rewards = their_rewards(pair.theirs, pair.folder / "reward")
    pair.theirs.zero_grad()
    (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()
    for ours, theirs in (
        (slope["head"]["weight"], pair.theirs.score.weight.grad.numpy()[0]),
        (slope["embedding"], pair.theirs.get_input_embeddings().weight.grad.numpy()),
    ):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())


def test_a_folder_that_transformers_saved(pair: Pair, tmp_path: Path):
    import torch
    from transformers import AutoTokenizer

    with torch.no_grad():
        pair.theirs.score.weight.mul_(-0.5)
    pair.theirs.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pair.folder / "reward").save_pretrained(tmp_path)
    source = open_weights(str(tmp_path))
    resolved = resolve_spec(source)
    model = describe_reward(source, resolved, dtype=jnp.float32)
    with jax.set_mesh(pair.mesh):
        found = np.asarray(jax.jit(model.rewards)(load_reward(source, resolved, model, pair.mesh), batch()))
    wanted = their_rewards(pair.theirs, pair.folder / "reward").detach().numpy()
    with torch.no_grad():
        pair.theirs.score.weight.mul_(-2.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
