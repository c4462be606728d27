"""Every family by value against transformers: logits, gradients, greedy decoding, and the exported folder."""

from __future__ import annotations

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
from dpo_jax.weights.opening import open_weights
from tests.parity.ours import Ours, load, their_logits
from tests.tiny import make_hf_folder

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOW = {"sliding_window": 6, "max_position_embeddings": 128}
GEMMA = {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24, **WINDOW}
CASES: dict[str, dict[str, Any]] = {
    "llama, tied, grouped": {"tie_word_embeddings": True, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "llama, untied, one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-3},
    "llama, untied, all key heads": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "llama, rope of 3.1": {"rope_parameters": {**LLAMA3, "rope_theta": 1e3, "original_max_position_embeddings": 32}},
    "llama, linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3}},
    "mistral": {"num_key_value_heads": 2, "head_dim": 16, **WINDOW},
    "mistral, no window": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
    "qwen2, window above layer 1": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
        **WINDOW,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": GEMMA
    | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
        },
    },
    "phi3": {"num_key_value_heads": 2, **WINDOW},
    "phi3, half of each head turned": {
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5},
    },
    "gpt2": {"n_positions": 80, "n_inner": None, "layer_norm_epsilon": 1e-3},
    "gpt2, untied, inner width": {
        "n_inner": 40,
        "activation_function": "gelu_pytorch_tanh",
        "tie_word_embeddings": False,
        "reorder_and_upcast_attn": True,
    },
}
ROWS = (
    TokenRow("a", np.arange(5, 12, dtype=np.int32), (np.array([40, 3, 99], np.int32), np.array([7, 2], np.int32))),
    TokenRow("b", np.array([300], np.int32), (np.array([8], np.int32), np.arange(100, 120, dtype=np.int32))),
)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Path]:
    """A random model of transformers, ours read from what it saved, and the folder."""
    folder = make_hf_folder(tmp_path_factory.mktemp("model") / "hf")  # for its tokenizer; the model is replaced
    theirs = random_model(request.param.split(",")[0], **CASES[request.param])
    theirs.save_pretrained(folder)
    return theirs, load(folder), folder


def random_model(model_type: str, **shape: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=350,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **shape,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_" in name:  # all alike otherwise: a forgotten or swapped one would not show
                weight.add_(0.3 * torch.randn_like(weight))
            elif "bias" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
        # tied, a large one makes every token predict itself; Gemma multiplies it by the root of the width
        model.get_input_embeddings().weight.mul_(0.15 if "gemma" in model_type else 0.3)
    return model


def random_ids(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 350, (rows, length))


def test_logits(pair):
    theirs, ours, _ = pair
    ids_RT = random_ids(3, 70)
    expected_RTV = their_logits(theirs, ids_RT)
    assert np.ptp(expected_RTV) > 2
    np.testing.assert_allclose(ours.logits(ids_RT), expected_RTV, rtol=0, atol=2e-4)


def test_gradients_of_the_dpo_loss(pair):
    theirs, ours, _ = pair
    reference_BP = np.array([[-20.0, -14.0], [-5.0, -130.0]], np.float32)
    batch = padded(ROWS, length=32, scored=24, row_multiple=8)

    def loss(params):
        hidden_RTD, unembedding = ours.model.apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        logps_BP = batch_logps(hidden_RTD, unembedding, batch)
        return dpo(PairLogps(*logps_BP.T), PairLogps(*reference_BP.T), beta=0.1).mean()

    with jax.set_mesh(ours.mesh):
        value, gradient = jax.jit(jax.value_and_grad(loss))(ours.params)
    expected, expected_gradient = their_gradients(theirs, reference_BP, beta=0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    fused = any(rule.part for rule in ours.rules)
    for name, array in some_by_name(jax.device_get(gradient), fused=fused).items():
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


def their_gradients(model: Any, reference_BP: np.ndarray, *, beta: float) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients in plain PyTorch, one unpadded row at a time."""
    import torch

    def response_logps(prompt: np.ndarray, response: np.ndarray) -> Any:
        ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64))
        log_probs = model(ids[None]).logits[0].log_softmax(-1)
        return log_probs[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).sum()

    model.zero_grad()
    losses = []
    for row, (chosen, rejected) in zip(ROWS, reference_BP, strict=True):
        policy_chosen, policy_rejected = (response_logps(row.prompt, response) for response in row.responses)
        margin = (policy_chosen - float(chosen)) - (policy_rejected - float(rejected))
        losses.append(-torch.nn.functional.logsigmoid(beta * margin))
    loss = torch.stack(losses).mean()
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), {name: weight.grad.numpy() for name, weight in trained.items()}


def test_greedy_decoding(pair):
    import torch

    theirs, ours, _ = pair
    prompts = [random_ids(1, length)[0].astype(np.int32) for length in (3, 17)]
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


@pytest.mark.parametrize("max_shard_bytes", [2**30, 40_000], ids=["one file", "several files"])
def test_export_is_read_back(pair, tmp_path, max_shard_bytes):
    """By transformers with the same logits and tokens, by us bit for bit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, ours, folder = pair
    exported = ours.export(tmp_path / "export", max_shard_bytes=max_shard_bytes)
    assert (exported / "model.safetensors").exists() == (max_shard_bytes == 2**30)
    saved = load_file(folder / "model.safetensors")
    again = open_weights(str(exported))
    assert set(again.shapes) == set(saved)
    for name, array in saved.items():
        np.testing.assert_array_equal(again.read(name), array, err_msg=name, strict=True)
    reloaded = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
    assert reloaded.dtype == theirs.dtype
    ids_RT = random_ids(2, 30)
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
    from transformers import AutoModelForCausalLM

    folder = make_hf_folder(tmp_path / "old")
    theirs = random_model("gpt2", n_positions=80)
    theirs.save_pretrained(folder)
    file = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): array for name, array in load_file(file).items()}
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 80, 80), np.float32)) for layer in range(3)}
    save_file(bare | masks, file, metadata={"format": "pt"})
    ours, ids_RT = load(folder), random_ids(2, 30)
    expected_RTV = their_logits(theirs, ids_RT)
    np.testing.assert_allclose(ours.logits(ids_RT), expected_RTV, rtol=0, atol=2e-4)
    exported = ours.export(tmp_path / "export")
    assert set(load_file(exported / "model.safetensors")) == set(bare)
    reloaded = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
    np.testing.assert_array_equal(their_logits(reloaded, ids_RT), expected_RTV)
