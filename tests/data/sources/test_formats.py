"""Rows as others write them, by hand."""

import pytest

from dpo_jax.data.sources.formats import FORMATS
from dpo_jax.data.sources.record import Record
from dpo_jax.errors import BadRow


def converted(name, values):
    return FORMATS[name](Record("f:1", values)).values


def turns(text):
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[1:]} for turn in text.split()]


def test_transcripts_of_hh():
    values = {
        "chosen": "\n\nHuman: x\n\nAssistant: y\n\nHuman:  z \n\nAssistant: a\n\nb",
        "rejected": "\n\nHuman: x\n\nAssistant: c",
        "id": 3,
        "note": "Human: no transcript",
    }
    assert converted("hh", values) == {
        "chosen": [*turns("ux ay uz"), {"role": "assistant", "content": "a\n\nb"}],
        "rejected": turns("ux ac"),
        "id": 3,
        "note": "Human: no transcript",
    }
    asked = {"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": "\n\nAssistant: y"}
    assert converted("hh", asked) == {"prompt": turns("ux"), "chosen": turns("ay")}
    with pytest.raises(BadRow, match=r"f:1: no column begins with '\\n\\nHuman:' \(columns: chosen\)"):
        converted("hh", {"chosen": "Human: x\n\nAssistant: y"})


def said(text):
    names = {"h": "human", "g": "gpt", "s": "system", "o": "observation"}
    return [{"from": names[turn[0]], "value": turn[1:]} for turn in text.split()]


def test_conversations_of_sharegpt():
    shared = {
        "conversations": said("hx gy hz"),
        "chosen": said("ga")[0],
        "rejected": said("gb")[0],
        "margin": 1,
        "id": 7,
    }
    assert converted("sharegpt", shared) == {
        "prompt": turns("ux ay uz"),
        "chosen": turns("aa"),
        "rejected": turns("ab"),
        "margin": 1,
    }
    beside = {"messages": turns("ux"), "prompt": "x\n", "chosen": "a", "rejected": [*said("gb"), *said("hc gd")]}
    assert converted("sharegpt", beside) == {
        "prompt": turns("ux"),
        "chosen": turns("aa"),
        "rejected": turns("ab uc ad"),
    }
    for label in ("label", "kto_tag"):
        labelled = {"messages": turns("ux ay uz aw"), label: False}
        assert converted("sharegpt", labelled) == {
            "prompt": turns("ux ay uz"),
            "completion": turns("aw"),
            "label": False,
        }
    plain = {"conversations": said("hx gy"), "system": "s", "tools": "[]"}
    assert converted("sharegpt", plain) == {"messages": turns("ss ux ay"), "tools": "[]"}
    assert converted("sharegpt", {"conversations": said("ss hx gy"), "system": ""}) == {"messages": turns("ss ux ay")}


def test_calls_of_tools_in_sharegpt():
    call = {"from": "function_call", "value": '{"name": "get", "arguments": {"x": 1}}'}
    made = converted("sharegpt", {"conversations": [*said("hx"), call, *said("oy gz")]})["messages"]
    assert made[0] == turns("ux")[0] and made[2:] == turns("ty az")
    assert made[1] == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"x": 1}}}],
    }
