"""How often rows come: by weight, by seed, and by nothing else."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dpo_jax.data.sources import PAIRS, read_pairs, read_unpaired, stream
from dpo_jax.data.sources.mixture import copies
from dpo_jax.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("one", 400), ("two", 10)):
        rows = [{"prompt": f"{name}{n}", "chosen": "c", "rejected": "r"} for n in range(count)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def drawn(seed=0, **spec):
    return [row.prompt for row in read_pairs([{"path": "one.jsonl", **spec}], seed=seed).rows]


def test_copies_are_the_weight_on_average():
    for weight in (0.1, 0.5, 1.0, 2.0, 2.75):
        counts = Counter(copies(weight, f"{n}") for n in range(4000))
        assert set(counts) <= {int(weight), int(weight) + 1}
        assert abs(sum(n * many for n, many in counts.items()) / 4000 - weight) < 0.025  # three standard errors
    assert copies(1.0, "x") == 1 and copies(3.0, "x") == 3


def test_a_weight_draws_the_same_rows_for_the_same_seed():
    half = drawn(weight=0.5)
    assert 170 < len(half) < 230 and len(set(half)) == len(half)
    assert half == drawn(weight=0.5) and half != drawn(weight=0.5, seed=1) and half != drawn(weight=0.5, name="other")
    assert half == sorted(half, key=lambda prompt: int(prompt[3:]))  # the order is that of the file
    assert drawn(weight=2) == [prompt for prompt in drawn() for _ in range(2)]
    more = Counter(drawn(weight=1.5))
    assert set(more.values()) == {1, 2} and len(more) == 400


def test_sources_keep_their_names_and_do_not_change_each_other():
    specs = [{"path": "one.jsonl", "weight": 0.25, "name": "few"}, {"path": "two.jsonl", "weight": 3}]
    rows = read_pairs(specs).rows
    sources = Counter(row.source for row in rows)
    assert sources["two"] == 30 and 70 < sources["few"] < 130 and len(sources) == 2
    assert [row.prompt for row in rows if row.source == "few"] == drawn(weight=0.25, name="few")


def test_both_halves_of_a_pair_are_drawn_or_none():
    rows, _ = read_unpaired([{"path": "one.jsonl", "unpair": True, "weight": 0.5}], mismatched=False)
    assert Counter(row.prompt for row in rows).most_common()[-1][1] == 2


def test_a_bad_row_counts_once_whatever_the_weight():
    Path("bad.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n[]\n[]')
    assert read_pairs([{"path": "bad.jsonl", "weight": 3}], on_error="skip").skipped == {"not an object": 2}


def test_rows_come_one_by_one():
    def lines():
        yield from stream(PAIRS, [{"path": "one.jsonl"}, {"path": "two.jsonl"}, {"path": "none.jsonl"}])

    rows = lines()
    assert [next(rows).prompt for _ in range(402)][-2:] == ["two0", "two1"]  # the third file was not looked for yet
    with pytest.raises(UserError, match=r"none.jsonl does not exist"):
        list(rows)
