"""The store: what it keeps, what it refuses, what a kill leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.files import digest, read_json
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.reference.fingerprint import RowIndex, as_ids, differences, make_fingerprint, rows_digest, weights_digest
from dpo_jax.reference.store import OtherStore, Scores, Store, listing
from tests.processes import ROOT

FINGERPRINT = {"weights": "w", "template": "plain", "truncation": "256, 512"}


def ids(*numbers: int) -> list[str]:
    return [digest(str(number).encode()) for number in numbers]


def scores(*numbers: int) -> Scores:
    """Rows whose log-probs are their numbers."""
    logps = np.array([[-n, -n - 0.5] for n in numbers], np.float32)
    return Scores(logps, np.array([[n, n + 1] for n in numbers]), logps / 2)


def filled(folder: Path) -> Store:
    store = Store(folder, FINGERPRINT)
    store.append(ids(1, 2, 3), scores(1, 2, 3))
    store.append(ids(4, 5), scores(4, 5))
    return store


def test_reads_back_by_row_id_in_any_order(tmp_path: Path):
    filled(tmp_path / "s")
    found = Store(tmp_path / "s", FINGERPRINT).lookup(ids(5, 1, 4, 1))
    np.testing.assert_array_equal(found.logps_nP, scores(5, 1, 4, 1).logps_nP)
    np.testing.assert_array_equal(found.tokens_nP, scores(5, 1, 4, 1).tokens_nP)
    np.testing.assert_array_equal(found.heads_nP, scores(5, 1, 4, 1).heads_nP)
    assert found.logps_nP.dtype == np.float32 and found.tokens_nP.dtype == np.int32


def test_says_which_rows_are_missing_each_once(tmp_path: Path):
    store = filled(tmp_path / "s")
    assert store.missing(ids(9, 1, 9, 8, 5)).tolist() == [0, 3]
    with pytest.raises(UserError, match="3 of 5 rows are missing"):
        store.lookup(ids(9, 1, 9, 8, 5))


def test_a_store_finds_what_it_appended_after_it_was_asked(tmp_path: Path):
    store = filled(tmp_path / "s")
    assert store.missing(ids(1, 6)).tolist() == [1] and store.lookup(ids(1)).logps_nP[0, 0] == -1
    store.append(ids(6), scores(6))
    assert len(store) == 6 and store.missing(ids(1, 6)).size == 0
    np.testing.assert_array_equal(store.lookup(ids(6, 1)).logps_nP, scores(6, 1).logps_nP)


def test_the_listing_names_stores_with_their_rows_and_who_reads_them(tmp_path: Path):
    store = filled(tmp_path / "a" / "s")
    for run in ("one", "two", "one"):
        store.serves(run)
    filled(tmp_path / "b")
    for name, text in (("c", "[]"), ("d", '{"shards": []}')):  # manifests of something else
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    found = [(one.folder, one.rows, one.fingerprint, one.used_by) for one in listing(tmp_path)]
    assert found == [(tmp_path / "a" / "s", 5, FINGERPRINT, ["one", "two"]), (tmp_path / "b", 5, FINGERPRINT, [])]
    assert read_json(tmp_path / "a" / "s" / "used_by.json") == ["one", "two"]


SERVES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dpo_jax.reference.store import Store
folder, name = sys.argv[1:]
sys.stdin.read()  # until all are there
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda number: Store(Path(folder), {}).serves(f"{name} {number}"), range(12)))
"""


def test_none_of_many_readers_is_forgotten(tmp_path: Path):
    names = ("one", "two", "three")
    script = [sys.executable, "-c", SERVES, str(tmp_path / "s")]
    own: Any = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdin": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen([*script, name], **own) for name in names]
    for reader in readers:
        assert reader.stdin
        reader.stdin.close()
    assert [reader.wait(60) for reader in readers] == [0] * len(readers)
    assert sorted(read_json(tmp_path / "s" / "used_by.json")) == sorted(
        f"{name} {n}" for name in names for n in range(12)
    )
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["used_by.json"]


def test_an_open_store_reads_what_another_process_adds(tmp_path: Path):
    early, late = Store(tmp_path / "s", FINGERPRINT), filled(tmp_path / "s")
    early.read_on()
    assert len(early) == 5
    late.append(ids(6), scores(6))
    early.read_on()
    assert early.missing(ids(6, 7)).tolist() == [1]
    np.testing.assert_array_equal(early.lookup(ids(6, 1)).logps_nP, scores(6, 1).logps_nP)
    early.append(ids(7), scores(7))
    assert Store(tmp_path / "s", FINGERPRINT).missing(ids(*range(1, 8))).size == 0


def test_ids_are_found_by_all_of_their_bytes():
    tails = [b"\0\0", b"\0\1", b"\1\0", b"\1\1", b"\xff\0"]
    known = [(head + bytes(13) + tail).hex() for head in (b"\0", b"\1") for tail in tails]
    index = RowIndex(as_ids([*known, known[3]]))
    assert len(index) == 10 and index.first.tolist() == list(range(10))
    assert index.find(as_ids(known[::-1])).tolist() == list(range(10))[::-1]
    assert index.find(as_ids(["ff" * 16, "00" * 15 + "02", "01" * 16])).tolist() == [-1] * 3
    assert RowIndex(as_ids([])).find(as_ids(known)).tolist() == [-1] * 10


@pytest.mark.parametrize("field", FINGERPRINT)
def test_refuses_another_fingerprint_naming_what_differs(tmp_path: Path, field: str):
    filled(tmp_path / "s")
    with pytest.raises(OtherStore, match=f'{field}: the store has ".*", this run has "other"') as refused:
        Store(tmp_path / "s", FINGERPRINT | {field: "other"})
    assert not any(f"{other}:" in str(refused.value) for other in FINGERPRINT if other != field)


def test_a_field_that_only_one_side_has_differs():
    assert differences({"a": "1"}, {"a": "1", "b": "2"}) == ['b: the store has null, this run has "2"']


def test_a_shard_that_the_manifest_does_not_name_is_written_again(tmp_path: Path):
    store = filled(tmp_path / "s")
    manifest = (tmp_path / "s" / "manifest.json").read_bytes()
    store.append(ids(6), scores(6))
    (tmp_path / "s" / "manifest.json").write_bytes(manifest)  # killed between the shard and the manifest
    again = Store(tmp_path / "s", FINGERPRINT)
    assert len(again) == 5 and again.missing(ids(6)).tolist() == [0]
    again.append(ids(6), scores(6))
    assert len(Store(tmp_path / "s", FINGERPRINT)) == 6


def test_a_flipped_byte_is_found(tmp_path: Path):
    filled(tmp_path / "s")
    shard = tmp_path / "s" / read_json(tmp_path / "s" / "manifest.json")["shards"][1]["name"]
    for path in [path for path in shard.rglob("*") if path.is_file() and path.stat().st_size]:
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(UserError, match="damaged"):
            Store(tmp_path / "s", FINGERPRINT)
        path.write_bytes(good)
    assert len(Store(tmp_path / "s", FINGERPRINT)) == 5


def test_a_score_that_is_not_finite_is_never_stored(tmp_path: Path):
    store = Store(tmp_path / "s", FINGERPRINT)
    bad = Scores(np.array([[-1.0, np.nan]], np.float32), np.ones((1, 2)), np.zeros((1, 2)))
    with pytest.raises(FloatingPointError, match=f"log-prob of row {ids(7)[0]}"):
        store.append(ids(7), bad)
    assert not (tmp_path / "s" / "manifest.json").exists()


def params(offset: float = 0.0):
    return {"a": jnp.arange(32.0).reshape(8, 4).at[3, 1].add(offset), "b": jnp.ones(8, jnp.bfloat16)}


def test_the_digest_of_weights_sees_one_bit_one_swap_one_name_and_no_mesh():
    whole = weights_digest(params())
    assert weights_digest(params(1e-6)) != whole
    assert weights_digest({**params(), "a": params()["a"][::-1]}) != whole
    assert weights_digest({"aa": params()["a"], "b": params()["b"]}) != whole  # in the same order
    mesh = make_mesh(fsdp=4, tensor=2)
    names = {"a": ("embed", "mlp"), "b": ("embed",)}
    split = {name: jax.device_put(x, named_sharding(mesh, names[name], x.shape)) for name, x in params().items()}
    assert weights_digest(split) == whole


def test_the_fingerprint_has_all_fields_and_sees_the_order_of_rows():
    made = make_fingerprint(params(), ids(1, 2), {"template": "plain"}, model="spec", dtype="float32")
    assert made.keys() == {"weights", "model", "dtype", "scorer version", "rows", "template"}
    assert rows_digest(ids(1, 2)) != rows_digest(ids(2, 1))
