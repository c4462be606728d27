"""GGUF files: a tiny one written here, and the real model of the quickstart where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize
from safetensors.numpy import load_file

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny import CHAT_TEMPLATE, SPECIAL, make_hf_folder, train_tokenizer

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANTISED = "model.layers.1.mlp.down_proj.weight"


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of a query or key projection."""
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.weight"
    layer, kind = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[kind]}.weight"


def write_tokenizer(writer: GGUFWriter) -> None:
    model = train_tokenizer()
    tokens = sorted(model.get_vocab(), key=model.get_vocab().__getitem__)
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges_of(model)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def merges_of(tokenizer) -> list[list[str]]:
    return json.loads(tokenizer.to_str())["model"]["merges"]


def write_gguf(path: Path, tensors: dict[str, np.ndarray], *, architecture: str = "llama", **extra: str) -> str:
    """Writes the tiny model as llama.cpp's converter would; `extra` is more metadata. Returns the path."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    for key, value in extra.items():
        writer.add_string(key, value)
    write_tokenizer(writer)
    for name, array in tensors.items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        stored = permute(array, heads) if heads else array
        if name == QUANTISED:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name) if name.endswith(".weight") else name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = make_hf_folder(tmp_path_factory.mktemp("hf"), tied=True)
    return load_file(folder / "model.safetensors")


def test_every_tensor_comes_back_under_its_name(tmp_path: Path, tensors: dict[str, np.ndarray]):
    source = open_weights(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert source.shapes == {name: array.shape for name, array in tensors.items()}
    for name, array in tensors.items():
        if name == QUANTISED:
            kind = GGMLQuantizationType.Q8_0
            np.testing.assert_allclose(source.read(name), array, atol=np.abs(array).max() / 127)
            array = dequantize(quantize(array, kind), kind)
        np.testing.assert_array_equal(source.read(name), array, strict=True)


def test_it_loads_like_the_folder(tmp_path: Path, tensors: dict[str, np.ndarray]):
    source = open_weights(write_gguf(tmp_path / "tiny.gguf", tensors))
    spec, rules, *_ = resolve_spec(source)
    params = load_params(source, make_model(spec), rules, make_mesh(data=2, fsdp=2, tensor=2))
    key = tensors["model.layers.1.self_attn.k_proj.weight"]  # head 1, element 3 is row 11
    np.testing.assert_array_equal(params["layers"]["attention"]["key"]["weight"][1, :, 1, 3], key[11])


def test_the_config_is_made_from_the_metadata(tmp_path: Path, tensors: dict[str, np.ndarray]):
    config = open_weights(write_gguf(tmp_path / "tiny.gguf", tensors)).config
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (32, 64, 2)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 8)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 50000.0)
    assert config["vocab_size"] == len(tensors["model.embed_tokens.weight"])
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["tie_word_embeddings"] is True


def test_a_head_of_its_own_unties_the_model(tmp_path: Path, tensors: dict[str, np.ndarray]):
    untied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    source = open_weights(write_gguf(tmp_path / "tiny.gguf", untied))
    assert source.config["tie_word_embeddings"] is False
    np.testing.assert_array_equal(source.read("lm_head.weight"), untied["lm_head.weight"])


def test_the_tokenizer_splits_digits_and_knows_its_special_tokens(tmp_path: Path, tensors: dict[str, np.ndarray]):
    tokenizer = open_weights(write_gguf(tmp_path / "tiny.gguf", tensors)).tokenizer()
    digits = tokenizer("\n12")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(digits) == ["Ċ", "1", "2"]
    text = "<|im_start|>the lamp, naïve\n 30<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the lamp, naïve\n 30"
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        0,
        1,
        2,
        2,
    )
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma2"}, r"GGUF architecture 'gemma2'. Allowed: llama"),
        ({"llama.rope.scaling.type": "yarn"}, r"metadata llama.rope.scaling.type = 'yarn' would change"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], options: dict, message: str):
    with pytest.raises(UserError, match=message):
        open_weights(write_gguf(tmp_path / "tiny.gguf", tensors, **options))


def test_an_unknown_tensor_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray]):
    extra = {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    with pytest.raises(UserError, match=r"'blk\.0\.attn_q\.bias' is not understood. Did you mean"):
        open_weights(write_gguf(tmp_path / "tiny.gguf", tensors | extra))
