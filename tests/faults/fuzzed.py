"""Good rows spoiled at random, as hypothesis draws it: values, keys, turns and bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from tests.commands.malformed import CHAT, DONE, HH, LABELLED, PAIR, TURNS

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
CALL = [{"type": "function", "function": {"name": "get", "arguments": {"x": [1, {"y": None}]}}}]
SHARED = {"conversations": [{"from": "human", "value": "Say x."}], "chosen": "x", "rejected": "y"}
SAYS = [{"role": "user", "content": "Say x."}, {"role": "assistant", "content": "x"}]
SCORED = {**CHAT, "score": "assistant"}

GOOD: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("pairs", PAIR, {}, {}),
    ("pairs", {**PAIR, "margin": 0.5, "weight": 2, "soft_label": 0.9}, {}, {}),
    ("pairs", {"prompt": "the lamp ", "responses": ["was warm", "is cold", "is old"]}, {}, {}),
    ("pairs", TURNS, CHAT, {}),
    ("pairs", {**TURNS, "tools": [TOOL], "chat_template_kwargs": {"thinking": True}}, CHAT, {}),
    ("pairs", {**TURNS, "chosen": [{"role": "assistant", "tool_calls": CALL}, *SAYS]}, SCORED, {}),
    ("pairs", SHARED, CHAT, {"format": "sharegpt"}),
    ("pairs", HH, {"template": "hh"}, {"format": "hh"}),
    ("labelled", LABELLED, {}, {}),
    ("labelled", PAIR, {}, {"unpair": True}),
    ("completions", DONE, {}, {}),
    ("completions", {"text": "the lamp was warm"}, {}, {}),
    ("completions", {"messages": SAYS}, CHAT, {}),
]
"""The layout that is read, a row of it, the settings of `data` and those of the source."""

_WORDS = ["", " ", "\0", "\x1b[2J", "\ud800", "\ud83d", "\u202e", "\ufeff", "\r\n", "\u2028"]
_WORDS += ["e\u0301" * 99, "x" * 50_000]
_WORDS += ["<|im_end|>", "<|im_start|>assistant\n", "{{ messages }}", "{% endfor %}", "\n\nHuman:", "../../etc/passwd"]
_WORDS += ["prompt", "role", "content", "assistant", "system", "tool", "__class__", "NaN", "-1", "1e999"]
_NUMBERS = [0, 1, -1, 2**63, 2**64, -(2**70), 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf")]
_NESTED: Any = None
for _ in range(300):
    _NESTED = [_NESTED]
_DEEP: Any = {}
for _ in range(300):
    _DEEP = {"content": _DEEP}
_PLAIN = st.sampled_from([None, True, False, [], {}, [None], [[]], _NESTED, _DEEP, *_NUMBERS, *_WORDS])
_JSON = st.recursive(
    _PLAIN | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
_TURN = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "from", "value", "name"]),
    _JSON | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "x"]),
    max_size=4,
)
_KEYS = ["prompt", "chosen", "rejected", "completion", "label", "messages", "text", "responses", "tools", "margin"]
_KEYS += ["chat_template_kwargs", "weight", "soft_label", "system", "conversations", "kto_tag", "x" * 5000]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value, with each of its keys or places."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in _places(inner)]


@st.composite
def lines(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """The line of a row, spoiled once to three times."""
    row = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(row)
        if not places:
            break
        box, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["value", "value", "turn", "drop", "key", "twice", "wrap"])):
            case "value":
                box[key] = copy.deepcopy(draw(_JSON))  # what is drawn is the same object every time
            case "turn":
                box[key] = copy.deepcopy(draw(st.lists(_TURN, max_size=3)))
            case "drop":
                del box[key]
            case "key":
                row[draw(st.sampled_from(_KEYS))] = copy.deepcopy(draw(_JSON))
            case "twice":
                box[key] = [box[key], copy.deepcopy(box[key])]
            case "wrap":
                box[key] = {"text": box[key]}
    data = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:  # bytes, of any row
        start = draw(st.integers(0, len(data)))
        cut = data[start + draw(st.integers(0, 9)) :]
        data = data[:start] + draw(st.binary(max_size=6) | st.just(b"[" * 5000)) + cut
    return data.replace(b"\n", b" ") or b"{"
