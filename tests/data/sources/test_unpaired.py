"""Labelled completions from files of them and from files of pairs, and the mismatched completion of each."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, read_sources
from dpo_jax.data.sources.labels import labelled, with_mismatched
from dpo_jax.errors import UserError

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, *rows) -> dict:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    return {"path": name}


def line(prompt, completion, label) -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


def mismatched_rows(specs):
    return with_mismatched(read_sources(UNPAIRED, specs).rows)


def test_a_label_is_true_or_false_or_one_or_zero():
    spec = write("a.jsonl", *(line("p", str(n), label) for n, label in enumerate([True, False, 1, 0, 1.0, 0.0])))
    rows, skipped = read_sources(UNPAIRED, [spec])
    assert [row[1:6] for row in rows] == [
        ("p", str(n), label, None, f"a.jsonl:{n + 1}") for n, label in enumerate([True, False] * 3)
    ]
    assert all(type(row.desirable) is bool for row in rows) and skipped == {}


@pytest.mark.parametrize("label", ["true", 2, -1, 0.5, float("nan"), None, [], {}])
def test_any_other_label_is_a_bad_row(label):
    spec = write("a.jsonl", line("p", "c", True), line("p", "d", label))
    text = message(read_sources, UNPAIRED, [spec])
    assert text.startswith("a.jsonl:2: column 'label' is ") and "must be true or false (1 or 0)" in text
    assert read_sources(UNPAIRED, [spec], on_error="skip").skipped == {"not a label": 1}


def test_columns_are_renamed_and_checked_as_elsewhere():
    spec = write("a.jsonl", {"question": "p", "text": "c", "good": 1}, {"question": "p", "text": " ", "good": 1})
    columns = {"prompt": "question", "completion": "text", "label": "good"}
    rows, skipped = read_sources(UNPAIRED, [{**spec, "columns": columns}], on_error="skip")
    assert [row[1:4] for row in rows] == [("p", "c", True)] and skipped == {"empty value": 1}
    without = write("b.jsonl", {"prompt": "p", "completion": "c", "labels": True})
    assert "b.jsonl:1: no column 'label'. Did you mean 'labels'" in message(read_sources, UNPAIRED, [without])


def test_a_pair_becomes_two_rows_if_asked():
    spec = write("pairs.jsonl", PAIR, {"prompt": "q", "best": "b", "rejected": "r"})
    asked = {**spec, "unpair": True}
    rows, skipped = read_sources(UNPAIRED, [asked], on_error="skip")
    assert [row[1:6] for row in rows] == [
        ("p", "c", True, None, "pairs.jsonl:1"),
        ("p", "r", False, None, "pairs.jsonl:1"),
    ]
    assert skipped == {"missing column": 1}
    assert "no column 'chosen'" in message(read_sources, UNPAIRED, [asked])
    renamed = write("best.jsonl", {"prompt": "q", "best": "b", "rejected": "r"})
    rows, _ = read_sources(UNPAIRED, [{**renamed, "unpair": True, "columns": {"chosen": "best"}}])
    assert [row.completion for row in rows] == ["b", "r"]


def test_a_pair_is_not_split_unasked():
    spec = write("pairs.jsonl", PAIR)
    for source in (spec, {**spec, "unpair": False}):
        text = message(read_sources, UNPAIRED, [source])
        assert text.startswith("pairs.jsonl:1: no column 'completion'") and "write unpair: true" in text
    skipping = message(read_sources, UNPAIRED, [spec], on_error="skip")
    assert "1 skipped: a pair, without unpair: true" in skipping
    assert "unpair is 'yes'. Allowed: false, true" in message(read_sources, UNPAIRED, [{**spec, "unpair": "yes"}])


def test_unpair_is_a_key_of_labelled_completions_only():
    spec = {**write("pairs.jsonl", PAIR), "unpair": True}
    of_pairs, of_completions = (message(read_sources, layout, [spec]) for layout in (PAIRS, COMPLETIONS))
    assert "'unpair'. Allowed: columns, flip, format, ignore, limit, name, path, rankings, weight." in of_pairs
    assert "'unpair'. Allowed: columns, format, ignore, limit, name, path, weight." in of_completions
    typo = {"path": "pairs.jsonl", "unpiar": True}
    assert "unknown key 'unpiar'. Did you mean 'unpair'?" in message(read_sources, UNPAIRED, [typo])


def test_the_id_is_of_prompt_completion_label_and_mismatched():
    spec = write("a.jsonl", line("p", "c", True), line("p", "r", 0), line("p", "c", False))
    rows, _ = read_sources(UNPAIRED, [spec])
    halves, _ = read_sources(UNPAIRED, [{**write("pairs.jsonl", PAIR), "unpair": True}])
    assert [row.row_id for row in rows[:2]] == [row.row_id for row in halves]  # the same content, from either file
    base = {"prompt": "p", "completion": "c", "desirable": True, "mismatched": "m"}
    others = [{"prompt": "q"}, {"completion": "d"}, {"desirable": False}, {"mismatched": "n"}, {"mismatched": None}]
    ids = {labelled(**{**base, **change}, where="x").row_id for change in [{}, *others]}
    assert len(ids) == 6
    assert labelled(**base, where="y").row_id in ids


def test_the_mismatched_completion_by_hand():
    rows = [line("p", "c", True), line("p", "d", False), line("q", "e", True), line("r", "c", True)]
    read = mismatched_rows([write("a.jsonl", *rows)])
    assert read[0].mismatched == "e"  # the only other text of another prompt
    assert read[1].mismatched in "ce" and read[2].mismatched in "cd" and read[3].mismatched in "de"
    assert [row[1:4] for row in read] == [tuple(row.values()) for row in rows]
    plain, _ = read_sources(UNPAIRED, [{"path": "a.jsonl"}])
    assert not {row.row_id for row in read} & {row.row_id for row in plain}
    # written down once: a store of scores stays of use
    assert [row.mismatched for row in read] == ["e", "e", "d", "d"]


TEXT = st.sampled_from("abcd")


@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_pick_has_another_prompt_and_text_and_any_order_gives_it(contents, dice):
    rows = [labelled(p, c, desirable=good, where="f") for p, c, good in contents]
    suiting = [{o.completion for o in rows if o.prompt != r.prompt and o.completion != r.completion} for r in rows]
    if not all(suiting):
        assert "no mismatched completion" in message(with_mismatched, rows)
        return
    done = with_mismatched(rows)
    assert [row[1:4] for row in done] == [row[1:4] for row in rows]
    assert all(row.mismatched in allowed for row, allowed in zip(done, suiting, strict=True))
    mixed = rows + rows[:2]  # a repeated row changes nothing either
    dice.shuffle(mixed)
    assert set(with_mismatched(mixed)) == set(done)


def test_the_longest_way_around_finds_the_only_one_that_suits():
    # From the last row of z over a into p, behind which z begins with the wrong text again; ids decide who is last.
    contents = [("a", "c", 1), ("p", "c", 1), ("p", "d", 1), ("z", "c", 1), ("z", "c", 0), ("z", "e", 1)]
    for n in range(200):
        rows = [labelled(f"{p}{n}", f"{c}{n}", desirable=bool(good), where="f") for p, c, good in contents]
        assert with_mismatched(rows)[1].mismatched == f"e{n}"


def test_picks_are_spread_over_the_other_rows():
    rows = [labelled("most", f"m{n}", desirable=True, where="f") for n in range(900)]
    rows += [labelled(f"p{n}", f"c{n}", desirable=False, where="f") for n in range(30)]
    picked = Counter(row.mismatched for row in with_mismatched(rows) if row.prompt == "most")
    assert len(picked) == 30 and max(picked.values()) < 60  # 30 each on average


@pytest.mark.parametrize("few", ["prompts", "completions"])
def test_many_rows_of_one_prompt_or_one_text_take_no_longer(few):
    dice = random.Random(0)
    contents = [("same" if dice.random() < 0.98 else f"x{n}", f"c{n}") for n in range(20_000)]
    contents = contents if few == "prompts" else [content[::-1] for content in contents]
    rows = [labelled(*content, desirable=True, where="f") for content in contents]
    start = time.perf_counter()
    with_mismatched(rows)
    assert time.perf_counter() - start < 5  # 0.2 s; a walk over all rows for each takes minutes


def test_without_another_prompt_there_is_none_and_it_is_said_what_needs_none():
    spec = write("a.jsonl", line("p", "c", True), line("p", "d", False))
    text = message(mismatched_rows, [spec])
    for words in ("at least two different prompts", "2 different rows have 1 different prompt.", "bco", "apo_zero_unp"):
        assert words in text, text
    assert len(read_sources(UNPAIRED, [spec]).rows) == 2
    same = write("b.jsonl", line("p", "c", True), line("q", "c", False))
    text = message(mismatched_rows, [same])
    assert "b.jsonl:1" in text and "2 different prompts, and those with another prompt than b.jsonl:1 all have" in text
