"""How often rows come: by weight, by seed, and by nothing else."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, read_sources, stream
from dpo_jax.data.sources.record import copies
from dpo_jax.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("one", 400), ("two", 10)):
        rows = [{"prompt": f"{name}{n}", "chosen": "c", "rejected": "r"} for n in range(count)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def drawn(seed=0, **spec):
    return [row.prompt for row in read_sources(PAIRS, [{"path": "one.jsonl", **spec}], seed=seed).rows]


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
    rows = read_sources(PAIRS, specs).rows
    sources = Counter(row.source for row in rows)
    assert sources["two"] == 30 and 70 < sources["few"] < 130 and len(sources) == 2
    assert [row.prompt for row in rows if row.source == "few"] == drawn(weight=0.25, name="few")


def test_both_halves_of_a_pair_are_drawn_or_none():
    rows, _ = read_sources(UNPAIRED, [{"path": "one.jsonl", "unpair": True, "weight": 0.5}])
    assert Counter(row.prompt for row in rows).most_common()[-1][1] == 2


def labels(**spec):
    return {row.prompt: row.chosen for row in read_sources(PAIRS, [{"path": "one.jsonl", **spec}]).rows}


def test_flips_are_that_share_and_grow_with_it():
    plain, flipped = (
        read_sources(PAIRS, [{"path": "one.jsonl"}]).rows,
        read_sources(PAIRS, [{"path": "one.jsonl", "flip": 0.2}]).rows,
    )
    assert [(row.prompt, row.where) for row in plain] == [(row.prompt, row.where) for row in flipped]
    wrong = [n for n, row in enumerate(flipped) if (row.chosen, row.rejected) == ("r", "c")]
    assert 50 < len(wrong) < 110
    assert [n for n, row in enumerate(flipped) if row.row_id != plain[n].row_id] == wrong
    more = {prompt for prompt, chosen in labels(flip=0.4).items() if chosen == "r"}
    assert {flipped[n].prompt for n in wrong} < more
    assert set(labels(flip=1).values()) == {"r"} and set(labels(flip=0).values()) == {"c"}
    assert labels(flip=0.5) != labels(flip=0.5, name="other")


def test_labelled_completions_are_flipped_with_their_pair():
    def good(**spec):
        found = read_sources(UNPAIRED, [{"path": "one.jsonl", "unpair": True, **spec}]).rows
        return {(row.prompt, row.completion): row.desirable for row in found}

    flipped = good(flip=0.3)
    assert all(flipped[prompt, "c"] != flipped[prompt, "r"] for prompt, _ in flipped)
    assert 80 < sum(flipped[prompt, "r"] for prompt, _ in flipped) / 2 < 160


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "half", None])
def test_a_share_is_a_share(share):
    with pytest.raises(UserError, match="flip is"):
        labels(flip=share)


def test_texts_have_no_label_to_flip():
    with pytest.raises(UserError, match="unknown key 'flip'"):
        read_sources(COMPLETIONS, [{"path": "one.jsonl", "flip": 0.1}])


def test_a_bad_row_counts_once_whatever_the_weight():
    Path("bad.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n[]\n[]')
    assert read_sources(PAIRS, [{"path": "bad.jsonl", "weight": 3}], on_error="skip").skipped == {"not an object": 2}


def test_rows_come_one_by_one():
    def lines():
        yield from stream(PAIRS, [{"path": "one.jsonl"}, {"path": "two.jsonl"}, {"path": "none.jsonl"}])

    rows = lines()
    assert [next(rows).prompt for _ in range(402)][-2:] == ["two0", "two1"]  # the third file was not looked for yet
    with pytest.raises(UserError, match=r"none.jsonl does not exist"):
        list(rows)
