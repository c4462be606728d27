"""Exported folders: exact, whole or absent, and readable again."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.errors import UserError
from dpo_jax.files import digest_folder, read_json, read_sealed
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights import export
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny import make_hf_folder


class Loaded:
    """A tiny checkpoint, its parameters on a split mesh, and a short way to export them."""

    def __init__(self, folder: Path):
        self.source = open_weights(str(make_hf_folder(folder)))
        spec, self.rules, *_ = resolve_spec(self.source)
        self.model = make_model(spec)
        self.params = load_params(self.source, self.model, self.rules, make_mesh(data=2, fsdp=2, tensor=2))

    def export(self, folder: Path, **options) -> None:
        files = export.Files(**{name: options.pop(name) for name in export.Files._fields if name in options})
        export.export_folder(folder, self.params, self.model, self.rules, self.source, files=files, **options)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(tmp_path_factory.mktemp("weights") / "model")


def assert_same_tensors(found, expected) -> None:
    assert found.shapes == expected.shapes
    for name in expected.shapes:
        np.testing.assert_array_equal(found.read(name), expected.read(name), strict=True)


def test_import_export_import_is_exact(tmp_path: Path, loaded: Loaded):
    loaded.export(tmp_path / "export")
    again = open_weights(str(tmp_path / "export"))
    assert_same_tensors(again, loaded.source)
    assert again.config == loaded.source.config
    assert again.generation_config == loaded.source.generation_config
    params = load_params(again, loaded.model, loaded.rules, make_mesh())
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), params, loaded.params)


def test_the_tokenizer_and_its_chat_template_come_along(tmp_path: Path, loaded: Loaded):
    loaded.export(tmp_path / "export")
    before, after = loaded.source.tokenizer(), open_weights(str(tmp_path / "export")).tokenizer()
    turns = [{"role": "user", "content": "the lamp\n12"}]
    assert after.apply_chat_template(turns) == before.apply_chat_template(turns)
    assert (after.bos_token, after.eos_token, after.pad_token) == (before.bos_token, before.eos_token, before.pad_token)


def test_several_files_with_an_index(tmp_path: Path, loaded: Loaded):
    limit = 20_000
    loaded.export(tmp_path / "export", max_shard_bytes=limit)
    index = read_json(tmp_path / "export" / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    sizes = [[array.nbytes for array in load_file(tmp_path / "export" / file).values()] for file in files]
    assert all(sum(held) <= limit or len(held) == 1 for held in sizes)
    assert index["metadata"]["total_size"] == sum(map(sum, sizes))
    assert len(files) < len(index["weight_map"])
    assert_same_tensors(open_weights(str(tmp_path / "export")), loaded.source)


def test_bfloat16(tmp_path: Path, loaded: Loaded):
    loaded.export(tmp_path / "export", dtype="bfloat16")
    again = open_weights(str(tmp_path / "export"))
    assert again.config["dtype"] == "bfloat16"
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(again.read(name), loaded.source.read(name).astype(jnp.bfloat16), strict=True)


def test_the_old_name_of_dtype_is_dropped(tmp_path: Path, loaded: Loaded):
    old = Loaded.__new__(Loaded)
    old.__dict__ |= loaded.__dict__ | {"source": loaded.source._replace(config={"torch_dtype": "float16"})}
    old.export(tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text()) == {"dtype": "float32"}


def test_every_file_has_its_digest(tmp_path: Path, loaded: Loaded):
    loaded.export(tmp_path / "export")
    digests = read_sealed(tmp_path / "export" / "digests.json")
    found = digest_folder(tmp_path / "export")
    found.pop("digests.json")
    assert digests == found
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= digests.keys()


def test_an_earlier_export_is_replaced_whole(tmp_path: Path, loaded: Loaded):
    loaded.export(tmp_path / "export", max_shard_bytes=20_000)
    loaded.export(tmp_path / "export")
    assert not list((tmp_path / "export").glob("model-*"))
    assert_same_tensors(open_weights(str(tmp_path / "export")), loaded.source)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_that_another_fills_is_refused(tmp_path: Path, loaded: Loaded):
    with ThreadPoolExecutor(1) as pool, export.whole_or_absent(tmp_path / "export") as partial:
        assert partial
        (partial / "half").touch()
        with pytest.raises(UserError, match=r"export is in use by process .* or name another folder"):
            pool.submit(loaded.export, tmp_path / "export").result()
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["digests.json", "half"]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_midway_leaves_the_old_folder_or_none(tmp_path: Path, loaded: Loaded, monkeypatch, earlier: bool):
    if earlier:
        loaded.export(tmp_path / "export")
    before = digest_folder(tmp_path)

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "digest_folder", fail)
    with pytest.raises(OSError, match="disk full"):
        loaded.export(tmp_path / "export")
    assert (tmp_path / "export").exists() == earlier
    monkeypatch.undo()
    assert {k: v for k, v in digest_folder(tmp_path).items() if k.startswith("export/")} == before
    loaded.export(tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_that_is_no_export_is_not_touched(tmp_path: Path, loaded: Loaded):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty, and no earlier export"):
        loaded.export(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_unknown_dtype(tmp_path: Path, loaded: Loaded):
    with pytest.raises(
        UserError, match=r"'bfloat' is not supported. Did you mean 'bfloat16'\? Allowed: bfloat16, float32"
    ):
        loaded.export(tmp_path / "export", dtype="bfloat")
    assert not (tmp_path / "export").exists()


def test_tensors_that_are_none_of_the_decoders_are_copied_through(tmp_path: Path):
    loaded = Loaded(tmp_path / "model")
    extra = {"vision_tower.layer.weight": np.arange(6, dtype=np.float16).reshape(2, 3)}
    save_file(load_file(tmp_path / "model" / "model.safetensors") | extra, tmp_path / "model" / "model.safetensors")
    loaded.source = open_weights(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"'vision_tower\.layer\.weight' is unknown"):
        load_params(loaded.source, loaded.model, loaded.rules, make_mesh())
    skipped = ("vision_tower.",)
    load_params(loaded.source, loaded.model, loaded.rules, make_mesh(), skipped=skipped)
    loaded.export(tmp_path / "export", skipped=skipped, dtype="bfloat16")
    copied = open_weights(str(tmp_path / "export")).read("vision_tower.layer.weight")
    np.testing.assert_array_equal(copied, extra["vision_tower.layer.weight"], strict=True)


def test_another_export_is_never_replaced(tmp_path: Path):
    folder, merged = tmp_path / "export", export.Made("merged", 4, "float32", "a")
    adapter, longer, other = merged._replace(form="adapter"), merged._replace(step=8), merged._replace(checkpoint="b")

    def write(made: export.Made | None) -> Path:
        place = export.free_place(folder, made) if made else folder
        with export.whole_or_absent(place, made):
            return place

    assert write(merged) == write(merged) == folder  # the same again
    assert write(adapter).name == "export-adapter-step-4-float32"
    assert write(longer).name == "export-merged-step-8-float32"
    assert write(other).name == "export-merged-step-4-float32"
    assert write(merged) == folder and read_json(folder / "export.json")["checkpoint"] == "a"
    with pytest.raises(UserError, match=r"holds an export \(merged of step 4, float32\), and .* of another run"):
        write(merged._replace(checkpoint="c"))
    write(None)  # as an earlier version wrote it
    assert write(merged._replace(dtype="bfloat16")).name == "export-merged-step-4-bfloat16"


@pytest.mark.parametrize(
    ("named", "written"), [({"eos_token_id": 5}, [2, 5]), ({}, 2), ({"eos_token_id": [5, 2]}, [5, 2])]
)
def test_other_programs_stop_at_the_eos_of_the_tokenizer_too(tmp_path: Path, loaded: Loaded, named, written):
    source = loaded.source._replace(generation_config=named)
    export.export_folder(tmp_path / "export", loaded.params, loaded.model, loaded.rules, source)
    assert read_json(tmp_path / "export" / "generation_config.json")["eos_token_id"] == written


def test_a_stop_token_that_is_no_id_is_refused(loaded: Loaded):
    source = loaded.source._replace(generation_config={"eos_token_id": ["</s>"]})
    with pytest.raises(UserError, match=r"eos_token_id is \['</s>'\]; a token id, or a list of them"):
        source.stop_tokens(source.tokenizer())


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "bfloat16"), (3.4e38, "bfloat16")])
def test_numbers_that_are_not_finite_are_not_exported(value: float, dtype: str, tmp_path: Path, loaded: Loaded):
    """In the file, whose type may hold less: then there is no folder, or the earlier one as it was."""
    loaded.export(tmp_path / "export")
    before = digest_folder(tmp_path / "export")
    harmed = Loaded.__new__(Loaded)
    leaves, tree = jax.tree.flatten(loaded.params)
    leaves[-1] = leaves[-1].at[(-1,) * leaves[-1].ndim].set(value)
    harmed.__dict__ |= loaded.__dict__ | {"params": jax.tree.unflatten(tree, leaves)}
    for folder in ("export", "new"):
        with pytest.raises(UserError, match=f"the tensor .* holds NaN, or a number that {dtype} does not"):
            harmed.export(tmp_path / folder, dtype=dtype)
    assert digest_folder(tmp_path / "export") == before and not (tmp_path / "new").exists()
