"""The layouts of columns that rows come in, what they bring beside their texts, and the ids of their content."""

import math
from decimal import Decimal

import pytest

from dpo_jax.data.sources import rows
from dpo_jax.data.sources.record import Record, column_names
from dpo_jax.errors import BadRow

U, A, B = ({"role": role, "content": text} for role, text in (("user", "x"), ("assistant", "a"), ("assistant", "b")))
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
TALK = {"prompt": [U], "chosen": [A], "rejected": [B]}


def made(make, values, columns=None, **options):
    names = {
        rows.pairs: rows.PAIR_COLUMNS,
        rows.completions: rows.COMPLETION_COLUMNS,
        rows.unpaired: rows.UNPAIRED_COLUMNS,
    }
    known = column_names({"columns": columns or {}}, names.get(make, rows.TEMPLATE_COLUMNS))
    return make(Record("f:1", values), known, **options)


def pair(values, **options):
    (found,) = made(rows.pairs, values, **options)
    return found


def test_ids_of_texts_are_what_they_were():
    # written down once: stores of scores stay of use
    assert pair(PAIR).row_id == "05a0759d8ba1cbcb44cce3eac7a9fcee"
    (labelled,) = made(rows.unpaired, {"prompt": "p", "completion": "c", "label": True})
    assert labelled.row_id == "0d89b674c6036f88f2a1c680dc202414"


def test_the_id_is_of_all_that_decides_log_probs_and_of_nothing_else():
    same = [TALK, {**TALK, "margin": 1}, {**TALK, "weight": 2}, {**TALK, "soft_label": 0.5}, {**TALK, "tools": []}]
    same += [{**TALK, "chosen": [{"content": "a", "role": "assistant", "name": None}]}, {**TALK, "tools": None}]
    parts = [{"type": "text", "text": text, "cache_control": None} for text in ("a", "")]
    same += [{**TALK, "chosen": [{"role": "assistant", "content": parts}]}]
    assert len({pair(values).row_id for values in same}) == 1
    other = [{**TALK, "tools": [{"name": "t"}]}, {**TALK, "chat_template_kwargs": {"a": 1}}]
    other += [
        {**TALK, "prompt": [{**U, "name": "n"}]},
        {**TALK, "prompt": [U, U]},
        {**TALK, "chosen": [B], "rejected": [A]},
    ]
    assert len({pair(values).row_id for values in [TALK, *other]}) == 6


def test_a_pair_of_messages_or_texts():
    assert pair(TALK)[1:5] == ((U,), (A,), (B,), "f:1")
    assert pair({"chosen": [U, A], "rejected": [U, B]})[1:4] == ((U,), (A,), (B,))
    assert pair({"prompt": "x", "chosen": [U, A], "rejected": [U, B]})[1:4] == ((U,), (A,), (B,))  # as UltraFeedback
    assert pair({"chosen": "x y a", "rejected": "x y b"})[1:4] == ("x y", " a", " b")
    renamed = {"chosen": "best", "prompt": "question"}
    assert pair({"question": "p", "best": "c", "rejected": "r"}, columns=renamed)[1:4] == ("p", "c", "r")


def test_system_turns_tools_and_arguments_come_along():
    system, call = {"role": "system", "content": "s"}, {"role": "assistant", "tool_calls": [{"id": 1}], "content": None}
    result = {"role": "tool", "content": "", "name": "get"}
    row = pair(
        {
            "prompt": [system, U],
            "chosen": [call, result, A],
            "rejected": [B],
            "tools": '[{"name": "get"}]',
            "chat_template_kwargs": {"thinking": False, "date": None},
        }
    )
    assert row.prompt == (system, U) and row.chosen == ({**call, "content": ""}, result, A)
    assert row.tools == ({"name": "get"},) and row.chat_template_kwargs == {"thinking": False}


def test_margin_weight_and_soft_label():
    row = pair({**PAIR, "margin": -1, "weight": 0, "soft_label": 1})
    assert (row.margin, row.weight, row.soft_label) == (-1.0, 0.0, 1.0)
    assert all(type(value) is float for value in (row.margin, row.weight, row.soft_label))
    row = pair({**PAIR, "margin": None})
    assert (row.margin, row.weight, row.soft_label) == (None, None, None)
    assert pair({**PAIR, "p": 0.25}, columns={"soft_label": "p"}).soft_label == 0.25
    with pytest.raises(BadRow, match="column 'p' is nan"):
        pair({**PAIR, "p": math.nan}, columns={"soft_label": "p"})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e39, 10**400, True, "1", *map(Decimal, ("NaN", "sNaN", "1e99"))]
)
@pytest.mark.parametrize("column", ["margin", "weight", "soft_label"])
def test_a_number_is_one_that_a_device_holds(column: str, value: object):
    with pytest.raises(BadRow, match=f"column '{column}' is .*(it must be|not a number)"):
        pair({**PAIR, column: value})


def test_a_ranking_is_all_its_pairs_or_its_neighbours():
    ranked = {"prompt": "p", "responses": ["a", "b", "c"], "weight": 2}
    found = made(rows.pairs, ranked)
    assert [row.responses for row in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {row.weight for row in found} == {2.0} and len({row.row_id for row in found}) == 3
    assert [row.responses for row in made(rows.pairs, ranked, rankings="adjacent")] == [("a", "b"), ("b", "c")]
    assert found[0].row_id == pair({"prompt": "p", "chosen": "a", "rejected": "b"}).row_id
    talks = {"prompt": [U], "responses": [[A], [B]]}
    assert [row.responses for row in made(rows.pairs, talks)] == [((A,), (B,))]
    assert pair({**PAIR, "responses": None})[1:4] == ("p", "c", "r")  # a column that only other rows fill


def test_rows_of_fine_tuning():
    def completion(values, **options):
        (found,) = made(rows.completions, values, **options)
        return found.prompt, found.completion

    assert completion({"prompt": "p", "completion": "c"}) == ("p", "c")
    assert completion({"prompt": [U], "completion": [A]}) == ((U,), (A,))
    assert completion({"messages": [U, A, U, B]}) == ((U,), (A, U, B))  # from the first answer on
    assert completion({"text": "all of it"}) == ("", "all of it")
    assert completion({"prompt": "p", "completion": "c", "messages": None, "text": None}) == ("p", "c")
    assert completion({"chosen": [U, A]}, columns={"messages": "chosen"}) == ((U,), (A,))


def test_labelled_completions_and_the_halves_of_a_pair():
    (row,) = made(rows.unpaired, {"prompt": [U], "completion": [A], "label": 0, "weight": 3})
    assert row[1:5] == ((U,), (A,), False, None) and row.weight == 3.0
    good, bad = made(rows.unpaired, {**TALK, "weight": 3, "margin": 1}, unpair=True)
    assert [(half.completion, half.desirable, half.weight) for half in (good, bad)] == [
        ((A,), True, 3),
        ((B,), False, 3),
    ]
    with pytest.raises(BadRow, match="does not say which responses are good"):
        made(rows.unpaired, {"prompt": "p", "responses": ["a", "b"]}, unpair=True)


def test_prompts_of_texts_and_messages():
    def prompt(values):
        (found,) = made(rows.prompts, values)
        return found

    assert prompt({"instruction": "p", "dataset": "d"})[:3] == ("p", "d", "f:1")
    assert prompt({"prompt": [U], "tools": [{"name": "t"}]})[:4] == ((U,), None, "f:1", ({"name": "t"},))
    with pytest.raises(BadRow, match="ends with a turn of assistant"):
        prompt({"prompt": [U, A]})
