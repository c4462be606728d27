"""Opening Hugging Face folders: what is read, and every way a folder can be wrong."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.errors import UserError
from dpo_jax.files import digest_folder, read_json, write_json, write_sealed
from dpo_jax.weights.opening import open_weights
from tests.tiny import make_hf_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_hf_folder(tmp_path / "model")


def test_one_file_is_read_as_safetensors_reads_it(folder: Path):
    source, expected = open_weights(str(folder)), load_file(folder / "model.safetensors")
    assert source.shapes == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(source.read(name), array, strict=True)
    assert source.config["model_type"] == "llama"
    assert source.generation_config["eos_token_id"] == 2


def test_tensors_are_mapped_not_copied(folder: Path):
    source = open_weights(str(folder))
    array = source.read("model.embed_tokens.weight")
    assert not array.flags.owndata and not array.flags.writeable


def test_bfloat16_keeps_its_bits(folder: Path):
    values = np.array([[1.5, -3.0, 0.1]], ml_dtypes.bfloat16)
    save_file({"x": values}, folder / "model.safetensors")
    np.testing.assert_array_equal(open_weights(str(folder)).read("x"), values, strict=True)


def test_generation_config_comes_from_the_config_where_there_is_none(folder: Path):
    (folder / "generation_config.json").unlink()
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert open_weights(str(folder)).generation_config == expected


def test_the_tokenizer_is_that_of_the_folder(folder: Path):
    tokenizer = open_weights(str(folder)).tokenizer()
    assert tokenizer.eos_token == "<|im_end|>"
    text = "the lamp\n12 was naïve"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template


def test_a_tokenizer_that_is_missing(folder: Path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        open_weights(str(folder)).tokenizer()


def test_a_flipped_byte_in_a_folder_with_digests(folder: Path):
    write_sealed(folder / "digests.json", digest_folder(folder))
    open_weights(str(folder))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: missing, damaged or edited"):
        open_weights(str(folder))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_that_comes_with_a_tokenizer_is_never_run(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch):
    (folder / "own.py").write_text("raise SystemExit('it ran')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks
    content = read_json(folder / file)
    write_json(folder / file, content | {"auto_map": {"AutoTokenizer": [None, "own.Own"]}})
    with pytest.raises(UserError, match=r"auto_map: the tokenizer wants to run code .* dpo_jax never does"):
        open_weights(str(folder)).tokenizer()
    write_json(folder / file, content | {"auto_map": {"AutoModelForCausalLM": "own.Own"}})
    assert len(open_weights(str(folder)).tokenizer()) > 300  # of the model only the tensors are read
