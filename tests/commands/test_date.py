"""The day of a run whose chat template reads the clock, and the template that its exports carry."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from dpo_jax.files import read_sealed, write_sealed
from tests.tiny import CHAT_TEMPLATE
from tests.tiny_experiment import make_experiment, metrics, opened, refused, run

CLOCK = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}", "{{ message['content'] + (strftime_now('%d') if message.role == 'user' else '') }}"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_experiment(tmp_path, data={"template": "tokenizer"}, reference={"store": None})
    path = Path("model/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CLOCK}))
    return tmp_path


def test_a_run_that_goes_on_tomorrow_reads_the_day_it_began(folder: Path, capsys: pytest.CaptureFixture[str]):
    run(folder, "check-data", "runs/new")
    assert read_sealed(Path("runs/new/begun.json"), "date") == {"date": datetime.date.today().isoformat()}
    write_sealed(Path("runs/a/begun.json"), {"date": "2024-07-26"})
    for name, date in {"a": (), "b": ("--data.date", "2024-07-26"), "new": ()}.items():
        run(folder, "reference", f"runs/{name}", "--jsonl", f"{name}.jsonl", *date)
    a, b, new = (Path(f"{name}.jsonl").read_text() for name in ("a", "b", "new"))
    assert a == b != new
    run(folder, "train", "runs/a", "--train.steps", "1")  # reads the store of the day before
    assert "2024-07-26 all through this run" in " ".join(capsys.readouterr().err.split())
    assert "date: '2024-07-26'" in Path("runs/a/config.yaml").read_text()
    other = ("train", "e.yaml", "--workdir", "runs/a", "--data.date", "2024-07-27")
    assert "data.date: was '2024-07-26', is '2024-07-27'" in refused(capsys, *other)  # before its store is looked at
    assert "data.date: 'today' is no day" in refused(capsys, "train", "e.yaml", "--data.date", "today")
    assert not Path("runs/demo").exists()


def test_a_template_that_reads_no_clock_has_no_date(folder: Path):
    opened("--data.chat_template", CHAT_TEMPLATE).begin()
    assert not Path("runs/demo/begun.json").exists()


def test_a_model_that_is_still_to_be_made_has_no_template_to_ask(folder: Path):
    scratch = ("--scratch.data", "[{path: pairs.jsonl}]", "--model.weights", "runs/none")
    for more in ((), ("--data.chat_template", CLOCK)):
        made = opened(*scratch, *more)
        made.begin()
        assert (made.config.data.date is not None) == bool(more)


def test_exports_carry_the_template_of_the_training(folder: Path):
    Path("own.jinja").write_text(CHAT_TEMPLATE.replace("user", "human"))
    arguments = ("--data.chat_template", "own.jinja", "--lora.rank", "2", "--train.steps", "1")
    run(folder, "train", "runs/own", *arguments)
    for more in ((), ("--export.lora", "adapter")):
        run(folder, "export", "runs/own", *arguments, *more)
    templates = [path.read_text() for path in Path("runs/own").glob("export*/chat_template.jinja")]
    assert templates == 2 * [Path("own.jinja").read_text()]
    (adapter,) = Path("runs/own").glob("export*/adapter_model.safetensors")
    with safe_open(adapter, "numpy") as opened_adapter:
        assert opened_adapter.keys()
    assert metrics("runs/own")
