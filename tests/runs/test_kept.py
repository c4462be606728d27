"""What a command keeps as it comes is there after any crash, for the facts that decide it and for no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax.errors import UserError
from dpo_jax.runs.kept import Kept

FACTS = {"weights": "ab", "sampling": "8 rows"}
VALUES = {"0": [1, 2.5, "ü\n"], "1": {"b": 0.1, "a": [3]}, "2": 1e-300}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kept" / "policy.jsonl"
    Kept(path, FACTS).put({"0": VALUES["0"], "1": VALUES["1"]})
    Kept(path, FACTS).put({"2": VALUES["2"]})
    return path


def known(path: Path, **facts: str) -> dict[str, object]:
    kept = Kept(path, {**FACTS, **facts})
    return {key: kept[key] for key in VALUES if key in kept}


def test_all_is_there_again(path: Path):
    assert known(path) == VALUES and known(path) == VALUES


@pytest.mark.parametrize("other", [{"weights": "ac"}, {"sampling": "9 rows"}, {"prompts": "more"}])
def test_nothing_is_there_for_other_facts(path: Path, other: dict[str, str]):
    assert known(path, **other) == {}
    assert known(path) == {}  # the other ones have taken its place


def test_a_file_cut_anywhere_goes_on_from_its_last_whole_line(path: Path):
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        there = max(0, sum(end <= cut for end in ends) - 1)
        assert list(known(path).items()) == list(VALUES.items())[:there]
        Kept(path, FACTS).put({"3": cut})
        kept = Kept(path, FACTS)
        assert kept["3"] == cut and ("2" in kept) == (there == 3)


def test_a_changed_byte_is_seen(path: Path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        line = whole[:place].count(b"\n")
        assert list(known(path).items()) == list(VALUES.items())[: max(0, line - 1)]


def test_what_not_all_processes_see_counts_for_none(path: Path):
    seen: list[int] = []
    kept = Kept(path, FACTS, agreed=lambda number: not seen.append(number))
    assert "2" in kept
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    Kept(path, FACTS, agreed=lambda number: not seen.append(number))
    assert seen[0] != seen[1]
    kept.put({"0": 1})
    assert "0" not in Kept(path, FACTS, agreed=lambda number: False) and "0" not in Kept(path, FACTS)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match=r"kept/policy\.jsonl: cannot be read or written"):
        Kept(tmp_path / "kept" / "policy.jsonl", FACTS)
