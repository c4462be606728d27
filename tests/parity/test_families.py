"""Every family by value against transformers: the golden logits, gradients, greedy decoding, the exported folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.data.batches import padded
from dpo_jax.logprobs import batch_logps
from dpo_jax.losses import PairLogps, dpo
from dpo_jax.models.sampling import generate, make_sampler
from dpo_jax.types import Params, TokenRow
from tests.contracts.families import CASES, FIRST, golden, ids, write_folder
from tests.parity.golden import computed, their_model
from tests.parity.ours import Ours, load, their_logits

ROWS = (
    TokenRow("a", np.arange(5, 12, dtype=np.int32), (np.array([40, 3, 99], np.int32), np.array([7, 2], np.int32))),
    TokenRow("b", np.array([300], np.int32), (np.array([8], np.int32), np.arange(100, 120, dtype=np.int32))),
)


@pytest.fixture(scope="module", params=FIRST)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Path]:
    """The model of transformers, ours from the same folder, and the folder."""
    folder = write_folder(request.param, tmp_path_factory.mktemp("model") / "hf")
    return their_model(folder), load(folder), folder


@pytest.mark.parametrize("name", CASES)
def test_the_golden_values_are_those_of_transformers(name: str, tmp_path: Path):
    found, held = computed(name, tmp_path), golden(name)
    assert found["shapes"] == held["shapes"]
    np.testing.assert_allclose(found["logits"], held["logits"], rtol=0, atol=2e-6)


REFERENCE_BP = np.array([[-20.0, -14.0], [-5.0, -130.0]], np.float32)


def our_gradients(ours: Ours, params: Params, whole: Callable[[Params], Params] = lambda params: params) -> Any:
    """The DPO loss of ROWS and its gradient by these parameters, of which `whole` makes those of the model."""
    batch = padded(ROWS, length=32, scored=24, row_multiple=8)

    def loss(params: Params) -> jax.Array:
        hidden_RTD, unembedding = ours.model.apply(
            whole(params), batch.tokens_RT, batch.positions_RT, batch.segments_RT
        )
        logps_BP = batch_logps(hidden_RTD, unembedding, batch)
        return dpo(PairLogps(*logps_BP.T), PairLogps(*REFERENCE_BP.T), beta=0.1).mean()

    with jax.set_mesh(ours.mesh):
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


def test_gradients_of_the_dpo_loss(pair):
    theirs, ours, _ = pair
    value, gradient = our_gradients(ours, ours.params)
    expected, expected_gradient = their_gradients(theirs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    fused = any(rule.part for rule in ours.rules)
    for name, array in some_by_name(gradient, fused=fused).items():
        largest = np.abs(expected_gradient[name]).max()
        assert largest > 1e-3, name
        np.testing.assert_allclose(array, expected_gradient[name], rtol=1e-4, atol=1e-5 * largest, err_msg=name)


def some_by_name(params: Params, *, fused: bool) -> dict[str, np.ndarray]:
    """A few parameters under the names and in the axes of transformers; `fused` as Phi-3 has them."""
    attention, embedding = params["layers"]["attention"], params["embedding"]
    width = embedding.shape[1]
    if "qkv" in attention:
        return {
            "transformer.wte.weight": embedding,
            "transformer.wpe.weight": params["positions"],
            "transformer.h.1.attn.c_attn.weight": attention["qkv"]["weight"][1].reshape(width, -1),
            "transformer.h.1.attn.c_attn.bias": attention["qkv"]["bias"][1].reshape(-1),
            "transformer.h.2.attn.c_proj.weight": attention["output"]["weight"][2].reshape(-1, width),
        }
    maps = {f"{name[0]}_proj": attention[name]["weight"][1].reshape(width, -1).T for name in ("query", "key", "value")}
    name, array = ("qkv_proj", np.concatenate(list(maps.values()))) if fused else ("k_proj", maps["k_proj"])
    return {
        "model.embed_tokens.weight": embedding,
        f"model.layers.1.self_attn.{name}.weight": array,
        "model.layers.2.self_attn.o_proj.weight": attention["output"]["weight"][2].reshape(-1, width).T,
    }


def their_gradients(model: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients in plain PyTorch, one unpadded row at a time."""
    import torch

    def response_logps(prompt: np.ndarray, response: np.ndarray) -> Any:
        ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64))
        log_probs = model(ids[None]).logits[0].log_softmax(-1)
        return log_probs[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).sum()

    model.zero_grad()
    losses = []
    for row, (chosen, rejected) in zip(ROWS, REFERENCE_BP, strict=True):
        policy_chosen, policy_rejected = (response_logps(row.prompt, response) for response in row.responses)
        margin = (policy_chosen - float(chosen)) - (policy_rejected - float(rejected))
        losses.append(-torch.nn.functional.logsigmoid(0.1 * margin))
    loss = torch.stack(losses).mean()
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    plain = {name.replace("model.language_model.", "model."): weight for name, weight in trained.items()}
    return loss.item(), {name: weight.grad.numpy() for name, weight in plain.items()}


def test_greedy_decoding(pair):
    import torch

    theirs, ours, _ = pair
    prompts = [ids(1, length)[0].astype(np.int32) for length in (3, 17)]
    theirs.generation_config.eos_token_id = None
    expected = [
        theirs.generate(
            torch.tensor(prompt[None].astype(np.int64)),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=32,
        )[0, len(prompt) :].numpy()
        for prompt in prompts
    ]
    sampler = make_sampler(ours.model, max_new_tokens=32, stop_tokens=())
    with jax.set_mesh(ours.mesh):
        decoded = generate(sampler, ours.params, prompts, key=jax.random.key(0), batch_rows=2, temperature=0.0)
    assert len({int(token) for tokens in expected for token in tokens}) > 3  # not one token for ever
    np.testing.assert_array_equal(decoded, expected)


def test_transformers_reads_the_export(pair, tmp_path):
    """In several files, with the same logits and tokens."""
    from transformers import AutoTokenizer

    theirs, ours, folder = pair
    exported = ours.export(tmp_path / "export", max_shard_bytes=40_000)
    assert not (exported / "model.safetensors").exists()
    reloaded = their_model(exported)
    assert reloaded.dtype == theirs.dtype
    ids_RT = ids(2, 30)
    np.testing.assert_array_equal(their_logits(reloaded, ids_RT), their_logits(theirs, ids_RT))
    text = "Write a line. 世界 42\n"
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(exported)
    assert after(text).input_ids == before(text).input_ids
    assert (after.eos_token_id, after.pad_token_id) == (before.eos_token_id, before.pad_token_id)
    messages = [{"role": "user", "content": text}]
    template = {"tokenize": False, "add_generation_prompt": True}
    assert after.apply_chat_template(messages, **template) == before.apply_chat_template(messages, **template)


def test_a_gpt2_of_the_old_spelling(tmp_path):
    """Read without its prefix and its stored masks, and written as it was, it is the same model to transformers."""
    folder = write_folder("gpt2", tmp_path / "old")
    ids_RT = ids(2, 30)
    expected_RTV = their_logits(their_model(folder), ids_RT)
    file = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): array for name, array in load_file(file).items()}
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 80, 80), np.float32)) for layer in range(3)}
    save_file(bare | masks, file, metadata={"format": "pt"})
    ours = load(folder)
    np.testing.assert_allclose(ours.logits(ids_RT), expected_RTV, rtol=0, atol=2e-4)
    exported = ours.export(tmp_path / "export")
    assert set(load_file(exported / "model.safetensors")) == set(bare)
    np.testing.assert_array_equal(their_logits(their_model(exported), ids_RT), expected_RTV)
