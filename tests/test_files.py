"""Files that say whether they are as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax.errors import UserError
from dpo_jax.files import changed, digest_folder, read_json, read_json_lines, read_sealed, write_json, write_sealed

VALUE = {"record": {"beta": 0.1, "name": "Müller\n"}, "digests": {"a": "0" * 32}}


def test_every_byte_of_a_sealed_file_counts(tmp_path: Path):
    path = tmp_path / "4.json"
    write_sealed(path, VALUE)
    assert read_sealed(path, "record", "digests") == VALUE
    data = path.read_bytes()
    for place in range(len(data)):
        for other in {data[place] ^ 1, data[place] ^ 0x80, ord("\r"), ord(" "), ord("0")} - {data[place]}:
            path.write_bytes(data[:place] + bytes([other]) + data[place + 1 :])
            with pytest.raises(UserError, match=r"4\.json: .*damaged"):
                read_sealed(path, "record", "digests")
    for size in range(len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="damaged"):
            read_sealed(path, "record", "digests")


def test_a_sealed_file_without_its_digest_or_of_something_else(tmp_path: Path):
    for without in (VALUE, {**VALUE, "digest": "0" * 32}, [VALUE], {"digest": None, **VALUE}):
        write_json(tmp_path / "old.json", without)
        with pytest.raises(UserError, match=r"old\.json: damaged, or of an earlier version"):
            read_sealed(tmp_path / "old.json", "record", "digests")
    write_sealed(tmp_path / "other.json", {"shards": []})
    with pytest.raises(UserError, match="damaged"):
        read_sealed(tmp_path / "other.json", "record", "digests")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 1}]}', '{"a": 1, "\\u0061": 2}'])
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(f"{text}\n")
    with pytest.raises(UserError, match=r"x\.json: not JSON .*the key 'a' is given twice"):
        read_json(path)
    with pytest.raises(UserError, match=r"x\.json, line 1: damaged"):
        read_json_lines(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_named(tmp_path: Path, data: bytes):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.json: not JSON"):
        read_json(tmp_path / "x.json")


def test_lines(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": NaN}\n{"a": ')
    assert [*map(len, read_json_lines(path))] == [1, 1]  # a killed process left the last one half
    for damaged in (b'{"a": 1}\n{"a": \n{"a": 2}\n', b'{"a": 1}\nnull\n'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.jsonl, line 2: damaged"):
            read_json_lines(path)


def test_changed_missing_and_new_files(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    digests = digest_folder(tmp_path)
    assert changed(tmp_path, digests) == []
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").unlink()
    (tmp_path / "d").write_text("d")
    assert changed(tmp_path, digests) == ["a", "b", "d"]
