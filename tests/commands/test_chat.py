"""`dpo-jax chat`: what is answered is what `sample` writes, token by token, to people and to programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_jax import cli
from dpo_jax.commands import chat
from dpo_jax.errors import printable
from dpo_jax.experiments.speakers import Speaker, Voice
from tests.tiny import make_hf_folder
from tests.tiny_experiment import read_lines, refused, write_lines

GREEDY = ("--temperature", "0", "--max-new-tokens", "6")


def talked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str
) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    capsys.readouterr()
    cli.main(["chat", *arguments])
    return capsys.readouterr().out.split("\n")[:-1]


def test_policy_and_reference_answer_as_sample_has_them(trained: str, capsys, monkeypatch: pytest.MonkeyPatch):
    prompts = ["the lamp", "a quiet film"]
    write_lines("prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    wanted = {}
    sampling = ("--sampling.temperature", "0", "--sampling.max_new_tokens", "6", "--sampling.batch_rows", "8")
    for model in ("policy", "reference"):
        cli.main(["sample", trained, "--prompts", "prompts.jsonl", "--output", "s.jsonl", "--model", model, *sampling])
        wanted[model] = [printable(row["output"]) for row in read_lines("s.jsonl")]
    before = sorted(Path().rglob("*"))
    found = talked(capsys, monkeypatch, "\n".join(prompts), trained, *GREEDY)
    assert [line.split() for line in found] == [
        f"{model}: {wanted[model][number]}".split() for number in (0, 1) for model in ("policy", "reference")
    ]
    assert wanted["policy"] != wanted["reference"]
    assert talked(capsys, monkeypatch, prompts[0], trained, "--model", "policy", *GREEDY)[0].split() == (
        wanted["policy"][0].split()
    )
    assert sorted(Path().rglob("*")) == before  # it writes nothing
    assert "'polcy' is unknown. Did you mean 'policy'" in refused(capsys, "chat", trained, "--model", "polcy")


def test_a_folder_remembers_the_turns_until_it_is_told_to_forget(tmp_path: Path, capsys, monkeypatch):
    model = str(make_hf_folder(tmp_path / "model"))
    monkeypatch.setattr(chat, "_shown", lambda text: text)  # of random weights it is full of controls
    lines = ["the lamp", "and?", "/reset", "the lamp", "/quit", "never read"]
    found = talked(capsys, monkeypatch, "\n".join(lines), model, *GREEDY)
    assert len(found) == 3 and found[0] == found[2]
    # The second answer is that to the whole conversation.
    talk = [{"role": "user", "content": "the lamp"}, {"role": "assistant", "content": found[0].strip()}]
    monkeypatch.chdir(tmp_path)
    write_lines("prompts.jsonl", [{"prompt": [*talk, {"role": "user", "content": "and?"}]}])
    settings = {"workdir": "run", "model": {"weights": model}, "loss": {"name": "dpo"}}
    settings |= {"data": {"train": [{"path": "x"}], "template": "tokenizer"}, "sampling": {"max_new_tokens": 6}}
    Path("e.yaml").write_text(json.dumps(settings))
    arguments = ("--prompts", "prompts.jsonl", "--model", "reference", "--sampling.temperature", "0")
    cli.main(["sample", "e.yaml", *arguments])
    assert found[1].split() == read_lines("run/samples.jsonl")[0]["output"].split()


def test_without_a_chat_template_each_line_is_continued(tmp_path: Path, capsys, monkeypatch):
    folder = make_hf_folder(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = talked(capsys, monkeypatch, "the lamp\nand?\nthe lamp\n", str(folder), *GREEDY)
    assert len(found) == 3 and found[0] == found[2]  # what was said in between is no part of it


class Told:
    """A speaker of pieces that are given; an exception among them is raised."""

    def __init__(self, name: str, *pieces: str | BaseException, seen: list[str] | None = None):
        self.name, self.pieces, self.seen, self.resets = name, pieces, seen, 0

    def reset(self) -> None:
        self.resets += 1

    def answer(self, text: str, key: object) -> Iterator[str]:
        for piece in self.pieces:
            if self.seen is not None:
                self.seen.append(sys.stdout.getvalue())  # type: ignore[attr-defined]
            if isinstance(piece, BaseException):
                raise piece
            yield piece


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_piece_is_shown_before_the_next_is_drawn(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    chat.talk([Told("policy", "a ", "b ", "c\x1b[2J", seen=seen), Told("reference", "d")], seed=0)  # type: ignore[list-item]
    assert seen == ["policy: ", "policy: a ", "policy: a b "]
    assert out.getvalue() == "policy: a b c\\x1b[2J\nreference: d\n"


def test_an_interrupt_ends_the_answer_and_not_the_talk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n/reset\n/what\nagain"))
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    speaker = Told("policy", "a ", KeyboardInterrupt())
    chat.talk([speaker], seed=0)  # type: ignore[list-item]
    assert out.getvalue() == "a \na \n" and speaker.resets == 1


def test_in_a_terminal_the_answers_grow_side_by_side(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    lines = ["hello"]

    def asked(prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop()

    monkeypatch.setattr("builtins.input", asked)
    chat.talk([Told("policy", "one ", "two"), Told("reference", "three")], seed=0)  # type: ignore[list-item]
    shown = out.getvalue()
    assert shown.index("one") < shown.index("three") < shown.index("two")
    (last,) = [line for line in shown.splitlines() if "one two" in line][-1:]
    assert "three" in last and "policy" in shown and "reference" in shown


def test_a_stopped_answer_is_remembered_as_far_as_it_went():
    class Parrot(Voice):
        def __init__(self):
            self.heard: list[object] = []

        talks = True  # type: ignore[assignment]

        def speak(self, params: object, asked: object, key: object) -> Iterator[str]:
            self.heard.append(asked)
            yield "one "
            yield "two"

    parrot = Parrot()
    speaker = Speaker("policy", parrot, {})
    answer = speaker.answer("hello", None)  # type: ignore[arg-type]
    assert next(answer) == "one "
    answer.close()
    assert list(speaker.answer("and?", None)) == ["one ", "two"]  # type: ignore[arg-type]
    assert [turn["content"] for turn in parrot.heard[1]] == ["hello", "one", "and?"]  # type: ignore[attr-defined]


def test_mistakes(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "weights 'nowhere': no such folder" in refused(capsys, "chat", "nowhere")
    assert "sampling.top_p: must be at least 0" in refused(capsys, "chat", "nowhere", "--top-p", "2")
    assert "missing.yaml: there is no such" in refused(capsys, "chat", "missing.yaml")
