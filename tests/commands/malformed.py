"""Rows that are wrong, by the way in which they are: one table for all commands that read rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

U, A = {"role": "user", "content": "Say x."}, {"role": "assistant", "content": "x"}
B = {"role": "assistant", "content": "y"}
PAIR = {"prompt": "the lamp ", "chosen": "was warm", "rejected": "is cold"}
TURNS = {"prompt": [U], "chosen": [A], "rejected": [B]}
LABELLED = {"prompt": "the lamp ", "completion": "was warm", "label": True}
DONE = {"prompt": "the lamp ", "completion": "was warm"}
CHAT = {"template": "tokenizer"}
REFUSE = {"special_tokens": "refuse"}
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
    "alternate') }}{% endif %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
)

FORGETFUL = (
    "{% for m in messages %}{{ m.role }}: {{ m.content if m.role == 'user' or loop.last else '...' }}{{ eos_token }}"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


class Bad(NamedTuple):
    """A row, why it is bad, and words of the message; how it is read: by which command, with which settings."""

    row: Any  # an object, or the bytes of its line
    reason: str
    words: str  # separated by |
    kind: str = "pairs"  # pairs, labelled, sft
    data: Mapping[str, Any] = MappingProxyType({})
    spec: Mapping[str, Any] = MappingProxyType({})

    @property
    def line(self) -> bytes:
        return self.row if isinstance(self.row, bytes) else json.dumps(self.row).encode()

    @property
    def good(self) -> dict[str, Any]:
        """A row of the same kind that can be used."""
        if "format" in self.spec:
            turns = [{"from": "human", "value": "Say x."}]
            shared = {"conversations": turns, "chosen": "x", "rejected": "y"}
            return HH if self.spec["format"] == "hh" else shared
        if self.kind != "pairs":
            return LABELLED if self.kind == "labelled" else DONE
        return TURNS if self.data.get("template") == "tokenizer" else PAIR


HH = {"chosen": "\n\nHuman: Say x.\n\nAssistant: x", "rejected": "\n\nHuman: Say x.\n\nAssistant: y"}


def pair(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**PAIR, **changes}.items() if value is not ...}


def turns(**changes: Any) -> dict[str, Any]:
    return pair(**TURNS | changes)


def said(**changes: Any) -> list[dict[str, Any]]:
    """An answer; what is ... is left out."""
    return [{name: value for name, value in {**A, **changes}.items() if value is not ...}]


def chat(row: dict[str, Any], reason: str, words: str, **data: Any) -> Bad:
    """Of messages, which the chat template formats."""
    return Bad(row, reason, words, data=CHAT | data)


def shared(row: dict[str, Any], reason: str, words: str) -> Bad:
    """In the format of ShareGPT."""
    answers = {"chosen": "x", "rejected": "y"} if "conversations" in row else {}
    return Bad(row | answers, reason, words, data=CHAT, spec={"format": "sharegpt"})


def hh(row: dict[str, Any], reason: str, words: str) -> Bad:
    """In the format of HH."""
    return Bad(row, reason, words, data=CHAT, spec={"format": "hh"})


LINES = [
    Bad(b"{broken", "not JSON", "not JSON"),
    Bad(b'{"prompt": "p", "chosen": "c", "rejected": "r"', "not JSON", "not JSON"),
    Bad(b"prompt,chosen,rejected", "not JSON", "not JSON"),
    Bad(b"[1, 2]", "not an object", "a JSON list"),
    Bad(b"null", "not an object", "a JSON NoneType"),
    Bad(b'{"prompt": "\xff"}', "not UTF-8", "byte 12"),
    Bad(b"[" * 100_000, "not JSON", "not JSON"),
    Bad(b"  ", "blank line", "blank"),
    Bad(json.dumps(PAIR).encode("utf-16"), "not UTF-8", "not UTF-8"),
]

TEXTS = [
    Bad({}, "missing column", "no column 'chosen'|none"),
    Bad(pair(rejected=..., reject="r"), "missing column", "no column 'rejected'|Did you mean 'reject'"),
    Bad(pair(prompt=..., promt="p"), "missing column", "no column 'prompt'|Did you mean 'promt'"),
    Bad(pair(prompt=..., question="p"), "missing column", "no column 'prompt'|Did you mean 'question'"),
    Bad(pair(prompt=...), "no common prompt", "no column 'prompt'|do not begin alike"),
    Bad({"chosen": "warmer", "rejected": "warmth"}, "no common prompt", "the end of a word"),
    Bad({"chosen": "the lamp", "rejected": "the "}, "no common prompt", "do not begin alike"),
    Bad(pair(prompt=None), "null value", "'prompt' is null"),
    Bad(pair(chosen=None), "null value", "'chosen' is null"),
    Bad(pair(prompt=""), "empty value", "'prompt' is empty"),
    Bad(pair(chosen=""), "empty value", "'chosen' is empty"),
    Bad(pair(rejected=" \n\t"), "empty value", "'rejected' is empty"),
    Bad(pair(prompt=7), "not a string", "'prompt' is a int"),
    Bad(pair(chosen={"text": "c"}), "not a string", "'chosen' is a dict"),
    Bad(pair(rejected=False), "not a string", "'rejected' is a bool"),
    Bad(pair(chosen="\ud800"), "not Unicode", "'chosen' holds"),
    Bad(pair(rejected="was warm"), "identical responses", "'chosen' and 'rejected' are identical"),
    Bad(
        pair(chosen="x<|im_end|>y"),
        "special token in the text",
        "chosen holds '<|im_end|>'|special_tokens: allow",
        data=REFUSE,
    ),
    Bad(pair(prompt="<|im_start|>user"), "special token in the text", "prompt holds '<|im_start|>'", data=REFUSE),
    Bad(pair(chosen="x<|im_end|><|im_end|>"), "special token in the text", "chosen holds '<|im_end|>'", data=REFUSE),
    Bad(
        {"prompt": "t", "chosen": "he lamp", "rejected": "he plot"}, "no token of the prompt", "no token of the prompt"
    ),
    Bad(TURNS, "messages without a chat template", "template: plain is for texts|data.template: tokenizer"),
]

EXTRAS = [
    Bad(pair(margin=float("nan")), "number out of range", "'margin' is nan"),
    Bad(pair(margin=float("-inf")), "number out of range", "'margin' is -inf|finite"),
    Bad(pair(margin="0.5"), "not a number", "'margin' is '0.5'"),
    Bad(pair(weight=-1), "number out of range", "'weight' is -1|at least 0"),
    Bad(pair(weight=float("inf")), "number out of range", "'weight' is inf"),
    Bad(pair(weight=True), "not a number", "'weight' is True"),
    Bad(pair(soft_label=1.01), "number out of range", "'soft_label' is 1.01|0 to 1"),
    Bad(pair(soft_label=-0.1), "number out of range", "'soft_label' is -0.1"),
    Bad(pair(soft_label=[0.5]), "not a number", "'soft_label' is [0.5]"),
    chat(turns(tools="{"), "not JSON", "'tools' is text, but not JSON"),
    chat(turns(tools=["get"]), "not tools", "'tools' is ['get']"),
    chat(turns(tools=[{"name": "get"}]), "unread by the chat template", "tools, which the chat template"),
    chat(turns(chat_template_kwargs=[1]), "not template arguments", "'chat_template_kwargs' is a list"),
    chat(
        turns(chat_template_kwargs={"thinking": True}), "unread by the chat template", "chat_template_kwargs.thinking"
    ),
    chat(turns(chat_template_kwargs={"messages": []}), "unread by the chat template", "chat_template_kwargs.messages"),
    Bad(pair(chosen=..., rejected=..., responses=["a"]), "no ranking", "'responses' is ['a']"),
    Bad(pair(chosen=..., rejected=..., responses="ab"), "no ranking", "not a list of two or more"),
    Bad(pair(chosen=..., rejected=..., responses=["a", "b", "a"]), "identical responses", "holds a response twice"),
    Bad(pair(chosen=..., rejected=..., responses=["a", ""]), "empty value", "'responses', response 2 is empty"),
    Bad(
        pair(chosen=..., rejected=..., responses=["a", "b"], margin=1), "margin of a ranking", "'margin' is of one pair"
    ),
]

MESSAGES = [
    chat(turns(prompt=[]), "empty value", "'prompt' is a list without a message"),
    chat(turns(prompt=["Say x."]), "not a message", "'prompt', message 1 is a str"),
    chat(turns(prompt=[{"content": "x"}]), "no role", "'prompt', message 1 has no role|content"),
    chat(turns(prompt=[{"from": "human", "value": "x"}]), "no role", "format: sharegpt"),
    chat(turns(prompt=[{**U, "role": "usr"}]), "unknown role", "role 'usr'. Did you mean 'user'"),
    chat(turns(chosen=said(role="model")), "unknown role", "'chosen', message 1 has the role 'model'"),
    chat(turns(chosen=said(role=None)), "unknown role", "has the role None"),
    chat(turns(chosen=said(role=["assistant"])), "unknown role", "has the role ['assistant']"),
    chat(turns(chosen=said(content=None)), "null content", "'chosen', message 1 (assistant) has no content"),
    chat(turns(chosen=said(content=...)), "null content", "has no content"),
    chat(turns(chosen=said(content="")), "empty content", "content is empty"),
    chat(turns(chosen=said(content=3)), "content not text", "content is a int"),
    chat(turns(chosen=said(content=[{"type": "image"}])), "content not text", "part 1 of content is of type 'image'"),
    chat(turns(chosen=said(content=["x"])), "content not text", "part 1 of content is a str, not an object"),
    chat(turns(chosen=said(content=[{"type": "text", "text": "x", "id": 3}])), "content not text", "a text with 'id'"),
    chat(turns(chosen=said(content=[])), "empty content", "content is empty"),
    chat(turns(chosen=said(content="\udfff")), "not Unicode", "'chosen', message 1"),
    chat(turns(rejected=[A]), "identical responses", "nothing is preferred"),
    chat(turns(chosen="x"), "text beside messages", "the prompt is a list of messages and column 'chosen' is text"),
    chat(turns(prompt="Say x."), "no common prompt", "do not begin alike"),
    chat(turns(prompt=[U, A]), "prompt without a question", "'prompt' ends with a turn of assistant"),
    chat(turns(prompt=[{**U, "role": "system"}]), "prompt without a question", "a turn of system"),
    chat(turns(chosen=[U, A]), "response begins without the assistant", "'chosen' begins with a turn of user"),
    chat(turns(chosen=[B, U]), "response ends without the assistant", "'chosen' ends with a turn of user"),
    chat(turns(prompt=..., chosen=[A], rejected=[B]), "no common prompt", "the turn before an answer"),
    chat(turns(prompt=..., chosen=[U, A], rejected=[{**U, "content": "Say z."}, B]), "no common prompt", "begin"),
    chat(turns(chosen=said(content="x<|im_end|>\n<|im_start|>user")), "special token in the text", "chosen", **REFUSE),
    chat(turns(prompt=[U, U]), "refused by the chat template", "roles must alternate", chat_template=STRICT),
    chat(
        turns(chosen=[A, U, A], rejected=[B]),
        "turns of the assistant not found",
        "generation|data.score: completion",
        score="assistant",
        chat_template=FORGETFUL,
    ),
]

OTHERS = [
    Bad({**LABELLED, "label": "true"}, "not a label", "'label' is 'true'", kind="labelled"),
    Bad({**LABELLED, "label": 0.5}, "not a label", "'label' is 0.5", kind="labelled"),
    Bad({**LABELLED, "label": None}, "not a label", "'label' is None", kind="labelled"),
    Bad({"prompt": "p", "completion": "c"}, "missing column", "no column 'label'", kind="labelled"),
    Bad({**LABELLED, "completion": " "}, "empty value", "'completion' is empty", kind="labelled"),
    Bad(PAIR, "a pair, without unpair: true", "write unpair: true", kind="labelled"),
    Bad({"prompt": "p", "completion": None}, "null value", "'completion' is null", kind="sft"),
    Bad({"text": " "}, "empty value", "'text' is empty", kind="sft"),
    Bad({"messages": "x"}, "not messages", "'messages' is a str", kind="sft"),
    Bad({"messages": [U]}, "no answer", "no turn of the assistant", kind="sft"),
    Bad({"messages": [A, U]}, "no answer", "no turn of the assistant that answers", kind="sft"),
    Bad(
        {"messages": [U, A, U]},
        "response ends without the assistant",
        "'messages' ends with a turn of user",
        kind="sft",
    ),
    hh({"chosen": "x", "rejected": "y"}, "no transcript", "begins with|chosen, rejected"),
    hh({**HH, "chosen": "\n\nHuman: Say x.\n\nAssistant:"}, "empty content", "message 2"),
    shared({"text": "x"}, "missing column", "'conversations' or 'messages'"),
    shared(
        {"conversations": [{"from": "robot", "value": "x"}]},
        "unknown role",
        "'conversations', message 1 is from 'robot'",
    ),
    shared({"conversations": [{"from": "human", "value": None}]}, "null content", "message 1 (user) has no content"),
    shared({"conversations": "x"}, "not messages", "'conversations' is 'x'"),
    shared(
        {"conversations": [{"from": "function_call", "value": "{"}]}, "call not JSON", "function_call, but not of JSON"
    ),
]

TABLE = [*LINES, *TEXTS, *EXTRAS, *MESSAGES, *OTHERS]
