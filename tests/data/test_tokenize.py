"""Boundaries, end of sequence, truncation and the fingerprint, on ids worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data.chat import TEMPLATES, find_template
from dpo_jax.data.encoding import Rules, tokenization_fingerprint
from dpo_jax.data.tokenize import Counts, tokenize, tokenize_chunks, tokenize_prompts
from dpo_jax.errors import BadRow, UserError
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

UNK, BOS, EOS, USER, BOT = range(5)
A, B, C, D, SPACE, AB = range(5, 11)


def limits(**changes) -> Rules:
    return Rules(**{"template": "plain", "max_prompt_tokens": 50, "max_tokens": 100, **changes})


def pair(prompt, chosen, rejected):
    return PreferencePair("id", prompt, chosen, rejected, "rows.jsonl:7")


def ids(row):
    return row.prompt.tolist(), [response.tolist() for response in row.responses]


@pytest.mark.parametrize(
    ("single", "prompt"),
    [
        ("$A", [C, SPACE]),  # a bos_token exists, but this tokenizer does not add it
        ("<s> $A", [BOS, C, SPACE]),
        ("$A </s>", [C, SPACE]),
        ("<s> $A </s>", [BOS, C, SPACE]),
    ],
)
def test_plain_has_the_tokenizers_own_start_and_one_end(make_tokenizer, single, prompt):
    [row], counts = tokenize([pair("c ", "ab", "d</s>")], make_tokenizer(single), limits())
    assert ids(row) == (prompt, [[AB, EOS], [D, EOS]])  # a response that ends with EOS gets no second one
    assert (row.row_id, counts) == ("id", Counts())
    assert row.prompt.dtype == row.responses[0].dtype == np.int32


@pytest.mark.parametrize("single", ["$A", "<s> $A </s>"])
def test_a_response_that_is_only_the_end_is_scored(make_tokenizer, single):
    [row], _ = tokenize([pair("c", "</s>", "d")], make_tokenizer(single), limits())
    assert ids(row)[1] == [[EOS], [D, EOS]]


def test_the_boundary_is_where_any_of_the_encodings_diverges(make_tokenizer):
    # "ca" is c a; "cab" is c ab, "cac" is c a c: both responses begin behind c, as one of them has to.
    [row], counts = tokenize([pair("ca", "b", "c")], make_tokenizer(), limits())
    assert ids(row) == ([C], [[AB, EOS], [A, C, EOS]])
    assert counts == Counts(boundaries_moved=1)


def test_a_completion_is_a_row_with_one_response(make_tokenizer):
    rows = [Completion("x", "c", "d", "rows.jsonl:1"), Completion("y", "d", "c", "rows.jsonl:2")]
    tokenized, _ = tokenize(rows, make_tokenizer(), limits())
    assert [ids(row) for row in tokenized] == [([C], [[D, EOS]]), ([D], [[C, EOS]])]
    assert [row.row_id for row in tokenized] == ["x", "y"]


def test_a_labelled_completion_has_its_mismatched_one_beside_it(make_tokenizer):
    rows = [
        UnpairedCompletion("x", "c ", "d", True, "ab", "rows.jsonl:1"),
        UnpairedCompletion("y", "d ", "c", False, None, "rows.jsonl:2"),
    ]
    tokenized, counts = tokenize(rows, make_tokenizer(), limits())
    assert [ids(row) for row in tokenized] == [([C, SPACE], [[D, EOS], [AB, EOS]]), ([D, SPACE], [[C, EOS]])]
    assert [row.row_id for row in tokenized] == ["x", "y"]
    assert counts == Counts()


def test_nobody_prefers_a_completion_to_the_mismatched_one(make_tokenizer):
    row = UnpairedCompletion("x", "c ", "dcd", True, "dcab", "rows.jsonl:1")  # alike when truncated to 4 tokens
    [tokens], counts = tokenize([row], make_tokenizer(), limits(max_tokens=4))
    assert ids(tokens)[1] == [[D, C], [D, C]]
    assert counts == Counts(responses_truncated=2)


@pytest.mark.parametrize("single", ["$A", "<s> $A </s>"])
def test_the_chat_template_brings_all_of_its_special_tokens(make_tokenizer, single):
    tokenizer = make_tokenizer(single)
    [row], _ = tokenize([pair("c", "ab", "d")], tokenizer, limits(template="tokenizer"))
    assert ids(row) == ([BOS, USER, C, BOT], [[AB, EOS, SPACE], [D, EOS, SPACE]])
    messages = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "ab"}]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert whole == [*row.prompt, *row.responses[0]]
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert asked == row.prompt.tolist()


def test_a_prompt_keeps_its_end_and_a_response_its_start(make_tokenizer):
    short = limits(max_prompt_tokens=3, max_tokens=5)
    rows = [pair("abcd d ", "cd", "c"), pair("cd ", "d", "c")]
    tokenized, counts = tokenize(rows, make_tokenizer(), short)
    # ab c d _ d _ keeps _ d _; then 5 - 3 = 2 tokens are left: c d EOS loses its EOS, c EOS just fits
    assert ids(tokenized[0]) == ([SPACE, D, SPACE], [[C, D], [C, EOS]])
    assert ids(tokenized[1]) == ([C, D, SPACE], [[D, EOS], [C, EOS]])
    assert counts == Counts(prompts_truncated=1, responses_truncated=1)


def test_a_truncated_prompt_keeps_the_bos_it_had(make_tokenizer):
    for size, kept in ((3, [BOS, D, SPACE]), (1, [SPACE])):
        [row], _ = tokenize([pair("abcd ", "c", "d")], make_tokenizer("<s> $A"), limits(max_prompt_tokens=size))
        assert ids(row)[0] == kept


def test_responses_that_truncation_makes_identical_are_refused(make_tokenizer):
    row = pair("c ", "dcd", "dcab")
    with pytest.raises(BadRow, match=r"chosen and rejected differ, but not .* within max_tokens, 4\.") as refused:
        list(tokenize_chunks([row], make_tokenizer(), limits(max_tokens=4)))
    assert refused.value.reason == "identical responses"
    assert len(next(tokenize_chunks([row], make_tokenizer(), limits(max_tokens=6))).rows) == 1


@pytest.mark.parametrize(
    ("row", "changes", "words"),
    [
        (
            pair("cd ", "c", "d"),
            {"max_tokens": 3},
            ["rows.jsonl:7", "takes 3 tokens", "max_tokens", "max_prompt_tokens"],
        ),
        (pair("cd ", "c", "d"), {"max_tokens": 2}, ["rows.jsonl:7", "takes 3 tokens"]),
        (pair("", "c", "d"), {}, ["rows.jsonl:7", "no token of the prompt"]),
        (pair("a", "b", "c"), {}, ["rows.jsonl:7", "no token of the prompt"]),  # "ab" is one token
    ],
)
def test_what_cannot_be_scored_is_refused(make_tokenizer, row, changes, words):
    with pytest.raises(UserError) as error:
        tokenize([row], make_tokenizer(), limits(**changes))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_tokenizers_that_lack_what_the_template_needs_are_refused(make_tokenizer):
    broken = make_tokenizer(chat="{{ raise_exception('no system message') }}")
    splitting = make_tokenizer()
    splitting.split_special_tokens = True
    cases = [
        (make_tokenizer(eos=None), "plain", "no eos_token"),
        (splitting, "plain", "as one token"),
        (make_tokenizer(chat=None), "tokenizer", "no chat template"),
        (broken, "tokenizer", "no system message"),
    ]
    for tokenizer, template, words in cases:
        with pytest.raises(UserError, match=words):
            tokenize([pair("c", "c", "d")], tokenizer, limits(template=template))


def test_prompts_alone_are_what_the_rows_begin_with(make_tokenizer):
    for template in ("plain", "tokenizer"):
        tokenizer = make_tokenizer("<s> $A </s>")
        short = limits(template=template, max_prompt_tokens=3)
        [row], _ = tokenize([pair("abcd ", "c", "d")], tokenizer, short)
        [prompt], truncated = tokenize_prompts(
            [Prompt("abcd ", None, "x")], tokenizer, Rules(template=template, max_prompt_tokens=3)
        )
        assert prompt.tolist() == row.prompt.tolist() and truncated == 1
        [whole], _ = tokenize_prompts(
            [Prompt("abcd ", None, "x")], tokenizer, Rules(template=template, max_prompt_tokens=50)
        )
        fits = {"template": template, "max_prompt_tokens": len(whole)}
        assert tokenize_prompts([Prompt("abcd ", None, "x")], tokenizer, Rules(**fits))[1] == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abcd ", min_size=1, max_size=9), min_size=3, max_size=3))
def test_prompt_and_response_together_are_the_encoding_of_the_text(make_tokenizer, texts):
    prompt, chosen, rejected = texts
    tokenizer = make_tokenizer()
    [row], _ = tokenize([pair("d" + prompt, chosen, rejected)], tokenizer, limits())
    for response, text in zip(row.responses, (chosen, rejected), strict=True):
        assert [*row.prompt, *response] == tokenizer("d" + prompt + text + "</s>")["input_ids"]
        assert response.tolist().count(EOS) == 1 and response[-1] == EOS


def test_many_rows_keep_their_order_over_chunks(make_tokenizer, monkeypatch):
    monkeypatch.setattr("dpo_jax.data.tokenize._CHUNK_ROWS", 2)
    monkeypatch.setattr("dpo_jax.data.encoding._BATCH_CHARACTERS", 6)
    tokenizer, sizes = make_tokenizer(), []
    call = type(tokenizer).__call__

    def counted(self, texts, **settings):
        sizes.append([len(text) for text in texts])
        return call(self, texts, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    rows = [pair("c" * n, "d", "ab") for n in range(1, 6)]
    tokenized, _ = tokenize(rows, tokenizer, limits())
    assert [len(row.prompt) for row in tokenized] == [1, 2, 3, 4, 5]
    assert [len(row.responses[0]) for row in tokenized] == [2] * 5
    assert max(map(len, sizes)) > 1 and all(len(some) == 1 or sum(some) < 12 for some in sizes)


def test_a_text_that_is_too_long_to_encode_is_refused(make_tokenizer, monkeypatch):
    monkeypatch.setattr("dpo_jax.data.encoding._LONGEST_TEXT", 20)
    for template in ("plain", "tokenizer"):
        with pytest.raises(BadRow, match="characters; at most 20 are read"):
            tokenize([pair("c" * 20, "d", "ab")], make_tokenizer(), limits(template=template))
        with pytest.raises(BadRow, match="at most 20 are read"):
            tokenize_prompts(
                [Prompt("c" * 21, None, "x")], make_tokenizer(), Rules(template=template, max_prompt_tokens=3)
            )


def test_the_fingerprint_changes_with_all_that_changes_ids(make_tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    def fingerprint(tokenizer, **changes):
        return tokenization_fingerprint(tokenizer, limits(**changes))

    tokenizer = make_tokenizer()
    base = fingerprint(tokenizer)
    changed = {
        "template": fingerprint(tokenizer, template="tokenizer"),
        "truncation": fingerprint(tokenizer, max_prompt_tokens=49),
        "tokenizer": fingerprint(make_tokenizer("<s> $A")),
        "eos": fingerprint(make_tokenizer(eos="<bot>")),
    }
    for field, other in changed.items():
        assert {name for name in base if base[name] != other[name]} == {field}
    assert fingerprint(tokenizer, max_tokens=99)["truncation"] != base["truncation"]
    chats = [make_tokenizer(chat=chat) for chat in ("{{ 1 }}", "{{ 2 }}")]
    assert len({fingerprint(chat, template="tokenizer")["template"] for chat in chats}) == 2

    tokenizer(["a", "aa"], padding=True, truncation=True, max_length=1)  # leaves its settings in the backend
    assert fingerprint(tokenizer) == base
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == base


def test_every_template_is_found_by_its_name():
    assert [find_template(name) for name in TEMPLATES] == list(TEMPLATES.values())
