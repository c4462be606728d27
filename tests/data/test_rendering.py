"""Chat templates as functions of the row and a date: clocks, chance, containers, what they leave out, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from dpo_jax.data import chat
from dpo_jax.data.encoding import Rules, tokenization_fingerprint
from dpo_jax.data.rows import DataRows, Reading, read_rows
from dpo_jax.data.sources import PAIRS
from dpo_jax.data.tokenize import tokenize_prompts
from dpo_jax.errors import BadRow, UserError
from dpo_jax.types import Prompt
from tests.data.test_chat import MARKED, make_tokenizer, turns
from tests.tiny import CHAT_TEMPLATE

CLOCK = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content }}"
    "{% for call in m.tool_calls or [] %}{% set call = call.function %}{{ call.name + ' ' }}{{ ARGUMENTS }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
OBJECT = CALLS.replace("ARGUMENTS", "call.arguments | tojson")  # as Qwen's
TEXT = CALLS.replace("ARGUMENTS", "'' + call.arguments")  # as DeepSeek's
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def call(name: str, arguments: object) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def row(chosen: Any, rejected: Any, prompt: Any = None, **more: Any) -> dict[str, Any]:
    parts = {"prompt": prompt or turns("u:the day"), "chosen": chosen, "rejected": rejected}
    return {name: [part] if isinstance(part, dict) else list(part) for name, part in parts.items()} | more


def read(folder: Path, rows: list[dict[str, Any]], template: str | None = None, **rules: Any) -> DataRows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return read_from({"path": str(path)}, folder, template, **rules)


def read_from(source: dict[str, Any], folder: Path, template: str | None, **rules: Any) -> DataRows:
    tokenizer = make_tokenizer(chat=template) if template else make_tokenizer()
    reading = Reading(rules=Rules(template="tokenizer", **rules), folder=folder / "tokens")
    return read_rows(PAIRS, [source], tokenizer, reading, name="data.train")


def texts(data: DataRows) -> list[list[str]]:
    tokenizer = make_tokenizer()
    return [[tokenizer.decode(ids) for ids in (row.prompt, *row.responses)] for row in data.rows]


ANSWERS = turns("a:was warm"), turns("a:is cold")


def test_the_clock_of_a_template_stands_at_the_date(tmp_path: Path):
    rows = [row(*ANSWERS)]
    first, again = (texts(read(tmp_path, rows, CLOCK, date="2024-07-26"))[0][0] for _ in range(2))
    assert first == again and first.startswith("26 Jul 2024")
    assert texts(read(tmp_path, rows, CLOCK, date="2024-07-27"))[0][0].startswith("27 Jul 2024")
    with pytest.raises(UserError, match=r"reads the clock \(strftime_now\); set date to the day"):
        read(tmp_path, rows, CLOCK)
    spans = CLOCK.replace("{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}")
    read(tmp_path, rows, CLOCK, date="2024-07-28")  # the program that transformers keeps is told each time
    assert texts(read(tmp_path, rows, spans, date="2024-07-26", score="assistant"))[0][0].startswith("26 Jul 2024")


def test_the_date_is_in_the_fingerprint_of_a_template_that_reads_it():
    def template(text: str, date: str) -> str:
        return tokenization_fingerprint(make_tokenizer(chat=text), Rules(template="tokenizer", date=date))["template"]

    assert template(CLOCK, "2024-07-26") != template(CLOCK, "2024-07-27")
    assert template(CHAT_TEMPLATE, "2024-07-26") == template(CHAT_TEMPLATE, "2024-07-27")
    assert chat.reads_clock(lambda: make_tokenizer(chat=CLOCK), "tokenizer")
    assert not chat.reads_clock(lambda: make_tokenizer(chat=CLOCK), "hh")
    assert not chat.reads_clock(lambda: make_tokenizer(chat=CLOCK), "tokenizer", CHAT_TEMPLATE)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("{{ ['user', 'you'] | random }}", "uses random"),
        ("{{ [['user', 'you']] | map('random') | join }}", "uses random"),
        ("{{ lipsum(1) }}", "uses lipsum"),
        ("{{ cycler('a') }}", "where in memory"),
    ],
)
def test_a_template_that_is_no_function_of_the_row_is_refused(tmp_path: Path, program: str, words: str):
    with pytest.raises(UserError, match=words):
        read(tmp_path, [row(*ANSWERS)], program + CHAT_TEMPLATE)


def test_the_same_row_from_a_table_has_the_same_tokens_and_id(tmp_path: Path):
    rows = [
        row(call("weather", {"city": "Rome"}), call("weather", {"city": "Oslo"})),
        row(call("add", {"a": 1, "b": {"c": 2}}), turns("a:was warm")),
    ]
    for number, each in enumerate(rows):
        each["tools"] = [{"type": "function", "function": {"name": f"f{number}", "parameters": SCHEMA}}]
        each["tools"][0]["function"][f"only{number}"] = "x"
    lines = read(tmp_path, rows, OBJECT)
    tables = {"arrow": tmp_path / "saved", "parquet": tmp_path / "rows.parquet"}
    table = datasets.Dataset.from_list(rows).with_format("numpy")
    table.save_to_disk(str(tables["arrow"]))
    table.to_parquet(str(tables["parquet"]))
    for source in ({"hub": str(tables["arrow"])}, {"path": str(tables["parquet"])}):
        data = read_from(source, tmp_path, OBJECT)
        assert texts(data) == texts(lines)
        assert [each.row_id for each in data.rows] == [each.row_id for each in lines.rows]
    assert "null" not in "".join(texts(lines)[0]) + "".join(texts(lines)[1])


def test_an_order_of_keys_that_is_written_is_part_of_the_id(tmp_path: Path):
    first, second = (
        read(tmp_path, [row(call("f", arguments), turns("a:was warm"))], OBJECT)
        for arguments in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    )
    assert texts(first) != texts(second) and first.rows[0].row_id != second.rows[0].row_id
    roles = [{"content": "was warm", "role": "assistant"}], [{"role": "assistant", "content": "was warm"}]
    ids = {read(tmp_path, [row(each, turns("a:is cold"))]).rows[0].row_id for each in roles}
    assert len(ids) == 1  # the template writes role and content where it wants them


@pytest.mark.parametrize("template", [OBJECT, TEXT])
def test_arguments_are_written_once_whether_a_row_has_an_object_or_its_json(tmp_path: Path, template: str):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    as_text = [{"type": "function", "function": {"name": "weather", "parameters": json.dumps(SCHEMA)}}]
    rows = [
        row(call("weather", {"city": "Rome"}), turns("a:was warm"), tools=tools),
        row(call("weather", '{"city": "Rome"}'), turns("a:was warm"), tools=as_text),
        row(call("weather", '{"city": "Rome"}'), turns("a:was warm"), tools=json.dumps(tools)),
    ]
    data = read(tmp_path, rows, template)
    assert len({each.row_id for each in data.rows}) == 1
    assert all('weather {"city": "Rome"}' in text[1] for text in texts(data))
    with pytest.raises(BadRow, match=r"tool_calls, function, arguments is text, but not JSON"):
        read(tmp_path, [row(call("weather", "{city"), turns("a:was warm"))], template)


def said(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "was warm", **more}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(call("f", {"a": "x"}), call("f", {"a": "y"})), r"message 2 \(assistant\) has tool_calls"),
        (row(said(reasoning_content="for"), said(reasoning_content="so")), "message 2 .* has reasoning_content"),
        (
            row(*ANSWERS, prompt=[*turns("u:the"), call("f", {"a": "x"}), *turns("t:warm")]),
            "message 2 .* has tool_calls",
        ),
        (row(*ANSWERS, prompt=turns("s:secret words", "u:the")), r"message 1 \(system\) has content"),
        (
            row(turns("a:<think> the old day </think> warm"), turns("a:<think> a </think> is")),
            "message 2 .* has content",
        ),
    ],
)
def test_what_the_template_does_not_write_is_refused(tmp_path: Path, bad: dict[str, Any], words: str):
    deaf = CHAT_TEMPLATE.replace(
        "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] if message.role != 'system' else '' }}"
    )
    with pytest.raises(BadRow, match=words) as refused:
        read(tmp_path, [bad], deaf)
    assert refused.value.reason == "unread by the chat template"
    prompts = [Prompt(tuple(bad["prompt"]), None, "p")]
    if "message 2" not in words or len(bad["prompt"]) > 1:  # it stands in the prompt: sampling says so too
        with pytest.raises(BadRow, match=words):
            tokenize_prompts(prompts, make_tokenizer(chat=deaf), Rules(template="tokenizer"))


def test_what_templates_leave_out_with_intent_is_counted_by_name(tmp_path: Path):
    thoughts = [*turns("u:the"), said(reasoning_content="the old day"), *turns("u:and")]
    rows = [
        row(*ANSWERS, prompt=thoughts),
        row(*ANSWERS, prompt=[{"role": "user", "content": "day", "name": "ann"}]),
        row(*ANSWERS),
    ]
    assert read(tmp_path, rows).unread == {"reasoning_content": 1, "name": 1}
    blind = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    assert read(tmp_path, rows[2:], blind).notes == [
        "1 with role assistant unread by the chat template",
        "1 with role user unread by the chat template",
    ]


@pytest.mark.parametrize("named", [{"default": CHAT_TEMPLATE, "tool_use": OBJECT}, {"rag": OBJECT, "tool_use": OBJECT}])
def test_a_tokenizer_with_several_templates(tmp_path: Path, named: dict[str, str]):
    tools = row(call("f", {"a": "x"}), turns("a:is cold"), tools=[{"name": "f"}])
    templates: Any = named
    assert read(tmp_path, [tools], templates).rows[0].row_id == read(tmp_path, [tools], OBJECT).rows[0].row_id
    assert texts(read(tmp_path, [tools], templates)) == texts(read(tmp_path, [tools], OBJECT))
    rules = Rules(template="tokenizer")
    assert tokenization_fingerprint(make_tokenizer(chat=templates), rules)["template"]
    assert not chat.reads_clock(lambda: make_tokenizer(chat=templates), "tokenizer")
    if "default" in named:
        assert texts(read(tmp_path, [row(*ANSWERS)], templates)) == texts(read(tmp_path, [row(*ANSWERS)]))
        return
    with pytest.raises(UserError, match=r"no chat template named 'default'.*chat_template: rag, tool_use"):
        read(tmp_path, [row(*ANSWERS)], templates)
    assert texts(read(tmp_path, [row(*ANSWERS)], templates, chat_template="rag")) == texts(
        read(tmp_path, [row(*ANSWERS)], OBJECT)
    )


@pytest.mark.parametrize("adds", ["$A", "<|im_start|> $A"])
@pytest.mark.parametrize(
    "rules", [{"template": "plain"}, {"template": "hh"}, {"template": "tokenizer", "chat_template": MARKED}]
)
def test_an_exported_template_asks_as_the_training_did(adds: str, rules: dict[str, Any]):
    tokenizer = make_tokenizer(adds=adds)
    prompt = "the day " if rules["template"] == "plain" else turns("u:the day")
    [trained], _ = tokenize_prompts([Prompt(prompt, None, "p")], tokenizer, Rules(**rules))
    exported = make_tokenizer(adds=adds)
    exported.chat_template = chat.exported(tokenizer, rules["template"], rules.get("chat_template"))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    asked = exported.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked == trained.tolist()
    if rules["template"] == "hh":  # ours has markers, which few programs know
        assert "{%- generation" not in str(exported.chat_template)
