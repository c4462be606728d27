"""Conversations as text and as tokens: templates, tools, ends and beginnings, and what of them is scored."""

import json
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from dpo_jax.data.chat import TEMPLATES, find_template
from dpo_jax.data.encoding import Rules, tokenization_fingerprint
from dpo_jax.data.tokenize import Counts, tokenize, tokenize_chunks, tokenize_prompts
from dpo_jax.errors import BadRow, UserError
from dpo_jax.types import Completion, PreferencePair, Prompt, TokenRow
from tests.tiny import CHAT_TEMPLATE, SPECIAL, train_tokenizer

END = "<|im_end|>"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if loud is defined and loud %}LOUD\n{% endif %}" + CHAT_TEMPLATE
)
FORGETFUL = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}", "{{ message['content'] if loop.last or message.role == 'user' else '...' }}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_tokenizer(*, adds="$A", chat=CHAT_TEMPLATE, **more) -> PreTrainedTokenizerFast:
    backend = train_tokenizer()
    if adds != "$A":
        specials = [(name, backend.token_to_id(name)) for name in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(single=adds, special_tokens=specials)
    _, bos, eos = SPECIAL
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, **more)
    made.chat_template = chat
    return made


def turns(*texts: str) -> tuple[dict[str, Any], ...]:
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return tuple({"role": roles[text[0]], "content": text[2:]} for text in texts)


def pair(prompt, chosen, rejected, **more) -> PreferencePair:
    return PreferencePair("id", prompt, chosen, rejected, "f:1", **more)


TALK = pair(turns("u:the lamp"), turns("a:was warm"), turns("a:is cold"))
LONG = pair(turns("u:the lamp"), turns("a:was warm", "u:and?", "a:quiet"), turns("a:is cold"))


def one(row, tokenizer, **rules) -> TokenRow:
    [tokens], _ = tokenize([row], tokenizer, Rules(**{"template": "tokenizer", **rules}))
    return tokens


def texts(row: TokenRow, tokenizer) -> tuple[str, list[str]]:
    return tokenizer.decode(row.prompt), [tokenizer.decode(response) for response in row.responses]


def scored(row: TokenRow, tokenizer) -> list[str]:
    assert row.masks is not None
    assert [mask.shape for mask in row.masks] == [response.shape for response in row.responses]
    return [tokenizer.decode(ids[mask]) for ids, mask in zip(row.responses, row.masks, strict=True)]


def test_messages_are_what_the_chat_template_makes_of_them(tokenizer):
    row = one(TALK._replace(prompt=turns("s:Be old.", "u:the lamp")), tokenizer)
    prompt = "<|im_start|>system\nBe old.<|im_end|>\n<|im_start|>user\nthe lamp<|im_end|>\n<|im_start|>assistant\n"
    assert texts(row, tokenizer) == (prompt, ["was warm<|im_end|>\n", "is cold<|im_end|>\n"])
    assert row.masks is None


def test_texts_are_one_turn_each(tokenizer):
    as_text = one(pair("the lamp", "was warm", "is cold"), tokenizer)
    as_turns = one(TALK, tokenizer)
    assert texts(as_text, tokenizer) == texts(as_turns, tokenizer)


def test_tools_and_arguments_reach_the_template_or_are_refused(tokenizer):
    reading = make_tokenizer(chat=TOOLS)
    tools = ({"name": "get"},)
    row = one(TALK._replace(tools=tools, chat_template_kwargs={"loud": True}), reading)
    assert texts(row, reading)[0].startswith('[{"name": "get"}]\nLOUD\n<|im_start|>user\n')
    prompts, _ = tokenize_prompts(
        [Prompt(TALK.prompt, None, "f:1", tools, {"loud": True})], reading, Rules(template="tokenizer")
    )
    assert prompts[0].tolist() == row.prompt.tolist()
    for more, words in (
        ({"tools": tools}, "tools"),
        ({"chat_template_kwargs": {"loud": 1}}, "chat_template_kwargs.loud"),
    ):
        with pytest.raises(BadRow, match=f"f:1: the row has {words}, which the chat template does not read"):
            one(TALK._replace(**more), tokenizer)
    with pytest.raises(BadRow, match=r"chat_template_kwargs\.add_generation_prompt"):
        one(TALK._replace(chat_template_kwargs={"add_generation_prompt": True}), reading)


def test_a_template_of_the_configuration_takes_the_place_of_the_tokenizers_own(tokenizer):
    own = (
        "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
    )
    own += "{% if add_generation_prompt %}a: {% endif %}"
    row = one(TALK, tokenizer, chat_template=own)
    assert texts(row, tokenizer) == (
        "u: the lamp\na:",
        [" was warm<|im_end|>\n", " is cold<|im_end|>\n"],
    )  # " was" is one
    bare = make_tokenizer(chat=None)
    assert one(TALK, bare, chat_template=own).prompt.tolist() == row.prompt.tolist()
    prints = [
        tokenization_fingerprint(tokenizer, Rules(template="tokenizer", chat_template=t))
        for t in (None, own, own + " ")
    ]
    assert len({found["template"] for found in prints}) == 3


@pytest.mark.parametrize("adds", ["$A", "<|im_start|> $A", "<|im_start|> $A <|im_end|>"])
def test_hh_writes_transcripts_that_end_once(adds):
    tokenizer = make_tokenizer(adds=adds)
    row = one(LONG, tokenizer, template="hh")
    start = "<|im_start|>" if "im_start" in adds else ""
    assert texts(row, tokenizer) == (
        f"{start}\n\nHuman: the lamp\n\nAssistant:",
        [" was warm\n\nHuman: and?\n\nAssistant: quiet<|im_end|>", " is cold<|im_end|>"],
    )
    assert scored(one(LONG, tokenizer, template="hh", score="assistant"), tokenizer) == [
        " was warm quiet<|im_end|>",
        " is cold<|im_end|>",
    ]
    with pytest.raises(BadRow, match="turns of user and assistant only, not of system"):
        one(TALK._replace(prompt=turns("s:x", "u:y")), tokenizer, template="hh")
    with pytest.raises(UserError, match="no eos_token, which template: hh"):
        tokenizer.eos_token = None
        one(TALK, tokenizer, template="hh")


def test_the_end_comes_once_and_the_beginning_too():
    twice = {"special_tokens": "allow"}
    tokenizer = make_tokenizer(adds="<|im_start|> $A <|im_end|>")
    ended = one(pair("<|im_start|>the lamp", " was<|im_end|>", " is"), tokenizer, template="plain", **twice)
    assert texts(ended, tokenizer) == ("<|im_start|>the lamp", [" was<|im_end|>", " is<|im_end|>"])
    chat = one(TALK._replace(chosen=turns("a:was warm<|im_end|>")), tokenizer, **twice)
    assert texts(chat, tokenizer)[1] == ["was warm<|im_end|>\n", "is cold<|im_end|>\n"]
    writes_bos = make_tokenizer(
        adds="<|im_start|> $A", chat="{{ bos_token }}" + CHAT_TEMPLATE.replace("<|im_start|>", "")
    )
    assert one(TALK, writes_bos).prompt.tolist().count(1) == 1


def test_text_alone_is_scored_from_the_first_token_that_has_one_before_it():
    row = Completion("id", "", "the lamp was warm", "f:1")
    for template in TEMPLATES:
        bare, adding = make_tokenizer(), make_tokenizer(adds="<|im_start|> $A")
        assert texts(one(row, bare, template=template), bare) == ("the", [" lamp was warm<|im_end|>"])
        assert texts(one(row, adding, template=template), adding) == ("<|im_start|>", ["the lamp was warm<|im_end|>"])
    mixed = [TALK._replace(row_id=f"{n}") for n in range(2)] + [row, TALK._replace(row_id="3")]
    found, counts = tokenize(mixed, bare, Rules(template="tokenizer"))
    assert [tokens.row_id for tokens in found] == ["0", "1", "id", "3"] and counts == Counts()
    assert found[2].prompt.tolist() == bare("the")["input_ids"]


def test_only_what_the_assistant_says_is_scored_if_asked(tokenizer):
    row = one(LONG, tokenizer, score="assistant")
    whole = "was warm<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nquiet<|im_end|>\n"
    assert texts(row, tokenizer)[1] == [whole, "is cold<|im_end|>\n"]
    assert scored(row, tokenizer) == ["was warm<|im_end|>\nquiet<|im_end|>\n", "is cold<|im_end|>\n"]
    assert one(LONG, tokenizer).masks is None
    assert one(TALK, tokenizer, score="assistant").masks is None  # nothing is left out


def test_markers_of_the_template_say_what_the_assistant_says():
    tokenizer = make_tokenizer(chat=MARKED)
    found = scored(one(LONG, tokenizer, score="assistant"), tokenizer)
    assert found == ["was warm<|im_end|>quiet<|im_end|>", "is cold<|im_end|>"]  # the line's end is not marked
    earlier = pair(turns("u:x", "a:the plot", "u:y"), turns("a:was warm", "u:z", "a:quiet"), turns("a:is cold"))
    assert scored(one(earlier, tokenizer, score="assistant"), tokenizer) == found
    public = tokenizer.apply_chat_template(
        [*LONG.prompt, *LONG.chosen], return_dict=True, return_assistant_tokens_mask=True
    )
    row = one(LONG, tokenizer, score="assistant")
    assert row.masks is not None
    assert public["assistant_masks"] == [0] * len(row.prompt) + row.masks[0].astype(int).tolist()


def test_turns_that_cannot_be_told_apart_are_refused():
    tokenizer = make_tokenizer(chat=FORGETFUL)
    with pytest.raises(BadRow, match=r"f:1: .*generation.*set score: completion"):
        one(LONG, tokenizer, score="assistant")
    with pytest.raises(
        BadRow, match=r"f:1: message 2 \(assistant\) has content, which the chat template does not write"
    ):
        one(LONG, tokenizer)  # it writes the last turn alone
    assert one(TALK, tokenizer, score="assistant").masks is None


def test_masks_are_cut_with_their_responses(tokenizer):
    whole = one(LONG, tokenizer, score="assistant")
    assert whole.masks is not None
    limit = len(whole.prompt) + 5
    cut = one(LONG, tokenizer, score="assistant", max_prompt_tokens=limit - 1, max_tokens=limit)
    assert cut.masks is None or [len(mask) for mask in cut.masks] == [5, 5]
    short = one(LONG, tokenizer, score="assistant", max_prompt_tokens=3, max_tokens=3 + len(whole.responses[0]) - 1)
    assert short.masks is not None and short.masks[0].tolist() == whole.masks[0][:-1].tolist()


def test_special_tokens_in_a_text_are_refused_wherever_they_stand(tokenizer):
    refuse = {"special_tokens": "refuse"}
    said = turns("a:x<|im_start|>y")
    call = ({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"q": "<|im_end|>"}}}]},)
    rows = [
        (TALK._replace(chosen=said), "chosen holds '<|im_start|>'"),
        (TALK._replace(prompt=turns("s:<|endoftext|>", "u:x")), "prompt holds '<|endoftext|>'"),
        (TALK._replace(rejected=call + said[:0] + turns("a:x")), "rejected holds '<|im_end|>'"),
        (TALK._replace(tools=({"name": "<|im_end|>"},)), "tools holds '<|im_end|>'"),
    ]
    for row, words in rows:
        with pytest.raises(BadRow, match="f:1: " + words.replace("|", r"\|")):
            one(row, tokenizer, **refuse)
    assert one(rows[0][0], tokenizer, special_tokens="allow").responses[0].tolist().count(1) == 1
    added = make_tokenizer(extra_special_tokens=["<tool>"])
    with pytest.raises(BadRow, match="chosen holds '<tool>'"):
        one(TALK._replace(chosen=turns("a:a <tool> b")), added, **refuse)
    with pytest.raises(BadRow, match="prompt holds"):
        tokenize_prompts([Prompt("x<|im_end|>", None, "f:1")], tokenizer, Rules(template="plain", **refuse))
    closed = one(
        pair("the", " lamp<|im_end|>", " plot"), tokenizer, template="plain", **refuse
    )  # as TRL's users may have it
    assert texts(closed, tokenizer)[1] == [" lamp<|im_end|>", " plot<|im_end|>"]


def test_long_rows_are_cut_or_dropped_and_counted_either_way(tokenizer):
    rows = [TALK, TALK._replace(row_id="long", chosen=turns("a:" + "was warm " * 20)), TALK._replace(row_id="last")]
    limits = {"template": "tokenizer", "max_prompt_tokens": 30, "max_tokens": 50}
    found, counts = tokenize(rows, tokenizer, Rules(**limits))
    assert [row.row_id for row in found] == ["id", "long", "last"] and counts == Counts(responses_truncated=1)
    found, counts = tokenize(rows, tokenizer, Rules(**limits, truncation="drop"))
    assert [row.row_id for row in found] == ["id", "last"] and counts == Counts(long_rows_dropped=1)
    found, counts = tokenize(rows, tokenizer, Rules(**{**limits, "max_prompt_tokens": 5}, truncation="drop"))
    assert not found and counts == Counts(long_rows_dropped=3)
    just = len(one(TALK, tokenizer).prompt)
    assert tokenize([TALK], tokenizer, Rules(**{**limits, "max_prompt_tokens": just}, truncation="drop")).rows
    prints = [
        tokenization_fingerprint(tokenizer, Rules(**limits, truncation=how))["truncation"] for how in ("keep", "drop")
    ]
    assert prints[0] != prints[1]


def test_chunks_are_made_as_they_are_asked_for(tokenizer, monkeypatch):
    monkeypatch.setattr("dpo_jax.data.tokenize._CHUNK_ROWS", 2)
    taken = []

    def rows():
        for n in range(7):
            taken.append(n)
            yield TALK._replace(row_id=f"{n}", chosen=turns("a:<|im_end|>") if n in (2, 3, 5) else TALK.chosen)

    rules = Rules(template="tokenizer", special_tokens="refuse")
    chunks = tokenize_chunks(rows(), tokenizer, rules, on_error="skip")
    first = next(chunks)
    assert taken == [0, 1] and [row.row_id for row in first.tokens] == ["0", "1"]
    rest = list(chunks)
    assert [[row.row_id for row in chunk.rows] for chunk in rest] == [[], ["4"], ["6"]]
    assert [[row.row_id for row in chunk.tokens] for chunk in rest] == [[], ["4"], ["6"]]
    assert [chunk.skipped for chunk in rest] == [{"special token in the text": 2}, {"special token in the text": 1}, {}]
    with pytest.raises(BadRow, match="special token"):
        list(tokenize_chunks(rows(), tokenizer, rules))


def test_a_template_that_fails_as_a_program_is_a_bad_row(tokenizer):
    for broken in ("{{ messages[0].content + 1 }}", "{{ messages[9].content.x }}"):
        with pytest.raises(BadRow, match="f:1: the tokenizer's chat template refuses a message or is broken"):
            one(TALK, tokenizer, chat_template=broken)
    with pytest.raises(BadRow, match="broken"):  # the sandbox
        one(TALK, tokenizer, chat_template="{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}")


def test_a_template_that_cannot_be_read_is_no_bad_row(tokenizer):
    with pytest.raises(UserError, match=r"the chat template, line 2: .*name another chat_template") as caught:
        one(TALK, tokenizer, chat_template="x\n{% for")
    assert not isinstance(caught.value, BadRow)


def test_rules_that_there_are_not_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^template is 'plan'. Did you mean 'plain'\? Allowed: hh, plain, tokenizer"):
        Rules(template="plan")
    for rule in ("score", "special_tokens", "truncation"):
        with pytest.raises(ValueError, match=f"^{rule} is 'x'. Allowed: "):
            tokenize([TALK], tokenizer, Rules(**{rule: "x"}))
    prints = [tokenization_fingerprint(tokenizer, Rules(score=how)) for how in ("completion", "assistant")]
    assert {name for name in prints[0] if prints[0][name] != prints[1][name]} == {"scored"}
    assert json.dumps(prints[0]) and find_template("hh").special_tokens
