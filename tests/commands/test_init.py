"""`dpo-jax init`: every form of rows becomes a file that loads, whose rows are read, and that trains."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dpo_jax import cli, config
from dpo_jax.commands import init
from dpo_jax.drafting import looked
from dpo_jax.experiments.planned import Planned
from dpo_jax.planning.topologies import Chip, Machine
from tests.tiny import make_hf_folder
from tests.tiny_experiment import refused, write_lines, write_pairs

WORDS = ("warm", "quiet", "old", "cold", "thin")
ASKED = [{"role": "user", "content": "the lamp"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rows(make: Any, count: int = 20) -> list[dict[str, Any]]:
    return [make(number, f"the day was {WORDS[number % 5]} {number}") for number in range(count)]


PAIR = rows(lambda n, text: {"prompt": f"say {n}\n", "chosen": text, "rejected": f"no {n}"})
LABELLED = rows(lambda n, text: {"prompt": f"say {n}\n", "completion": text, "label": n % 4 == 0})
COMPLETION = rows(lambda n, text: {"prompt": f"say {n}\n", "completion": text})
TALK = rows(lambda n, text: {"prompt": ASKED, "chosen": said(text), "rejected": said(f"no {n}")})
HH = rows(
    lambda n, text: {
        "chosen": f"\n\nHuman: say {n}\n\nAssistant: {text}",
        "rejected": f"\n\nHuman: say {n}\n\nAssistant: no {n}",
    }
)
SHAREGPT = rows(
    lambda n, text: {
        "conversations": [{"from": "human", "value": f"say {n}"}],
        "chosen": {"from": "gpt", "value": text},
        "rejected": {"from": "gpt", "value": f"no {n}"},
    }
)
ALPACA = rows(lambda n, text: {"instruction": f"say {n}", "input": "now", "output": text})
ORCA = rows(lambda n, text: {"system": "be kind", "question": f"say {n}", "chosen": text, "rejected": f"no {n}"})
RENAMED = rows(lambda n, text: {"question": f"say {n}\n", "better": text, "worse": f"no {n}", "id": n})
ANSWERED = rows(lambda n, text: {"question": f"say {n}\n", "response": text})
RANKED = rows(lambda n, text: {"prompt": f"say {n}\n", "responses": [text, f"no {n}", "x"]})
BINARIZED = rows(
    lambda n, text: {
        "prompt": f"say {n}",
        "chosen": [{"role": "user", "content": f"say {n}"}, *said(text)],
        "rejected": [{"role": "user", "content": f"say {n}"}, *said(f"no {n}")],
        "messages": [{"role": "user", "content": f"say {n}"}, *said(text)],
        "score_chosen": 9.0,
    }
)
FORMS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "pairs of texts": (PAIR, {}, "dpo"),
    "pairs without a prompt": (rows(lambda n, t: {"chosen": f"say {n}\n{t}", "rejected": f"say {n}\nno"}), {}, "dpo"),
    "conversations": (TALK, {}, "dpo"),
    "rankings": (RANKED, {}, "dpo"),
    "ultrafeedback_binarized": (BINARIZED, {}, "dpo"),
    "hh": (HH, {"format": "hh"}, "dpo"),
    "sharegpt": (SHAREGPT, {"format": "sharegpt"}, "dpo"),
    "alpaca": (ALPACA, {"format": "alpaca"}, "sft"),
    "a system prompt": (ORCA, {"format": "alpaca"}, "dpo"),
    "other names": (RENAMED, {"columns": {"chosen": "better", "rejected": "worse", "prompt": "question"}}, "dpo"),
    "labelled": (LABELLED, {}, "kto"),
    "completions": (COMPLETION, {}, "sft"),
    "answers": (ANSWERED, {"columns": {"completion": "response", "prompt": "question"}}, "sft"),
    "messages": (rows(lambda n, text: {"messages": [*ASKED, *said(text)]}), {}, "sft"),
    "texts": (rows(lambda n, text: {"text": text}), {}, "sft"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path):
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)


def drafted(capsys: pytest.CaptureFixture[str], *arguments: str, model: str = "model") -> tuple[dict[str, Any], str]:
    """The settings of the file that is printed, and the file."""
    capsys.readouterr()
    cli.main(["init", *arguments, "--model", model])
    text = capsys.readouterr().out
    Path("e.yaml").write_text(text)
    config.load("e.yaml")
    assert all(len(line) <= 120 for line in text.splitlines() if not line.strip().startswith("- "))
    return yaml.safe_load(text), text


def write(path: str, table: list[dict[str, Any]]) -> None:
    if path.endswith(".csv"):
        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        Path(path).write_text(lines.getvalue())
    elif path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(table), path)
    elif path.endswith(".json"):
        Path(path).write_text(json.dumps(table))
    else:
        write_lines(path, table)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_is_read_as_it_is_written(form: str, capsys):
    table, beside, what = FORMS[form]
    write_lines("mine.jsonl", table)
    found, text = drafted(capsys, "mine.jsonl")
    sources = found["sft"]["data"]["train"] if what == "sft" else found["data"]["train"]
    assert sources == [{"path": "mine.jsonl", **beside}]
    assert what == "sft" or found["loss"]["name"] == what
    assert (what == "sft") == (not found["data"]["train"])
    assert found["workdir"] == "runs/mine" and f"{60 if form == 'rankings' else 20} " in text and "on_error" not in text
    cli.main(["check-data", "e.yaml"])
    kept = capsys.readouterr().out
    assert f"{60 if form == 'rankings' else 20}  rows kept" in kept


@pytest.mark.parametrize("path", ["mine.csv", "mine.parquet", "mine.json", "mine.ndjson"])
@pytest.mark.parametrize("table", [PAIR, LABELLED], ids=["pairs", "labelled"])
def test_every_kind_of_file_is_read(path: str, table: list[dict[str, Any]], capsys):
    write(path, table)
    found, _ = drafted(capsys, path)
    assert found["data"]["train"] == [{"path": path}]
    assert found["loss"]["name"] == ("dpo" if table is PAIR else "kto")


def test_several_files_each_have_their_part(capsys):
    write_lines("pairs.jsonl", PAIR)
    write_lines("pairs_test.jsonl", PAIR[:4])
    write_lines("texts.jsonl", COMPLETION)
    found, text = drafted(capsys, "pairs.jsonl", "pairs_test.jsonl", "texts.jsonl")
    assert found["data"]["train"] == [{"path": "pairs.jsonl"}]
    assert found["data"]["eval"] == [{"path": "pairs_test.jsonl"}] and found["evaluation"]["every"] >= 1
    assert found["sft"]["data"]["train"] == [{"path": "texts.jsonl"}] and "held out, by its name" in text
    write_lines("labels.jsonl", LABELLED)
    found, _ = drafted(capsys, "pairs.jsonl", "labels.jsonl")
    assert found["data"]["train"] == [{"path": "pairs.jsonl", "unpair": True}, {"path": "labels.jsonl"}]
    assert found["loss"]["name"] == "kto"
    cli.main(["check-data", "e.yaml"])


def test_limits_are_those_of_the_rows_and_the_reason_has_their_percentiles(capsys):
    long = [{**row, "chosen": " ".join([*WORDS] * (300 if n > 18 else 1))} for n, row in enumerate(PAIR * 5)]
    write_lines("mine.jsonl", [*long[:100]])
    found, text = drafted(capsys, "mine.jsonl")
    (line,) = [line for line in text.splitlines() if "of your rows are no longer" in line]
    assert "% of your rows are no longer (median " in line and ", p98 = " in line and "longest 4,0" not in line
    write_lines("short.jsonl", PAIR)
    found, text = drafted(capsys, "short.jsonl")
    assert found["data"]["max_tokens"] == 64 and "100 % of your rows are no longer" in text
    assert found["data"]["max_prompt_tokens"] < 64


def test_labels_of_unequal_number_get_weights_and_every_step_has_both(capsys):
    write_lines("mine.jsonl", LABELLED * 4)
    found, text = drafted(capsys, "mine.jsonl")
    assert found["loss"]["options"] == {"desirable_weight": 3.0} and "20 good and 60 bad rows" in text
    write_lines("mine.jsonl", [{**row, "label": n == 0} for n, row in enumerate(LABELLED)])
    found, text = drafted(capsys, "mine.jsonl")
    assert found["train"]["batch_pairs"] == 20 and "each step has both labels" in text


def test_rows_that_cannot_be_used_are_counted_and_left_out(capsys):
    write_lines("mine.jsonl", [*PAIR, {**PAIR[0], "chosen": ""}, "{oops", {**PAIR[0], "chosen": PAIR[0]["rejected"]}])
    found, text = drafted(capsys, "mine.jsonl")
    assert found["data"]["on_error"] == "skip"
    assert "1 (empty value), 1 (not JSON), 1 (identical responses)" in " ".join(text.replace("# ", "").split())
    cli.main(["check-data", "e.yaml"])


def test_without_a_chat_template_texts_are_plain_and_conversations_are_written_out(capsys):
    bare = Path("bare")
    make_hf_folder(bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    for table, template in ((PAIR, "plain"), (TALK, "hh")):
        write_lines("mine.jsonl", table)
        found, _ = drafted(capsys, "mine.jsonl", model="bare")
        assert found["data"]["template"] == template
        cli.main(["check-data", "e.yaml"])


def machine(capacity: float) -> Machine:
    return Machine("here", Chip("pretend", int(capacity), 1e12), 1, tuple(jax.devices()[:1]))


def test_memory_decides_as_plan_weighs_it(capsys, monkeypatch: pytest.MonkeyPatch):
    """Ever smaller machines: all at once, remat, micro-batches, an adapter, nothing."""
    make_hf_folder(Path("wide"), width=256, head_size=64, mlp_width=1024)  # an adapter is much smaller
    write_lines("mine.jsonl", [{**row, "chosen": f"{row['chosen']} {'warm ' * 100}"} for row in PAIR * 4])
    monkeypatch.setattr(init, "_machine", lambda: machine(2**40))
    drafted(capsys, "mine.jsonl", model="wide")
    planned = Planned(*config.load("e.yaml"), command="", machine=machine(2**40))
    lengths = planned.find_lengths().data
    needs = {
        name: planned.but(changes).analyse_train(lengths)["needs"]
        for name, changes in {
            "all": {},
            "remat": {"model.remat": "full"},
            "micro": {"model.remat": "full", "train.micro_batch_pairs": 1},
            "lora": {"lora": config.LoraConfig(), "model.remat": "full", "train.micro_batch_pairs": 1},
        }.items()
    }
    every = [value for value in needs.values() if value]
    assert every == sorted(every, reverse=True) and len(every) == 4
    found = {}
    for name, value in (*needs.items(), ("nothing", 1000)):
        monkeypatch.setattr(init, "_machine", lambda value=value: machine(1.001 * (value or 0) / 0.8))
        capsys.readouterr()
        cli.main(["init", "mine.jsonl", "--model", "wide"])
        told = capsys.readouterr()
        found[name] = yaml.safe_load(told.out), told
    settings = {name: each[0] for name, each in found.items()}
    assert "remat" not in settings["all"]["model"] and "micro_batch_pairs" not in settings["all"]["train"]
    assert settings["remat"]["model"]["remat"] in ("dots", "full") and "lora" not in settings["remat"]
    assert settings["micro"]["train"]["micro_batch_pairs"] == 1 and "lora" not in settings["micro"]
    assert settings["lora"]["lora"]["rank"] == 16
    assert "DOES NOT FIT" in found["nothing"][1].out and "it does not fit this machine" in found["nothing"][1].err


def test_a_model_of_the_hub_is_drafted_for_without_a_network(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_lines("mine.jsonl", PAIR)
    found, text = drafted(capsys, "mine.jsonl", model="Qwen/Qwen3-0.6B")
    assert "table of published architectures" in text and "the tokenizer was not looked at" in text
    assert found["model"]["weights"] == "Qwen/Qwen3-0.6B" and "a step needs" in text
    found, text = drafted(capsys, "mine.jsonl", model="nobody/nothing")
    assert "whether it fits is not known" in text and found["data"]["max_tokens"] == 64


def test_what_is_written_is_never_replaced_unasked(capsys):
    write_lines("mine.jsonl", PAIR)
    cli.main(["init", "mine.jsonl", "--model", "model", "--out", "mine.yaml"])
    assert "dpo-jax run mine.yaml" in capsys.readouterr().err
    first = Path("mine.yaml").read_text()
    assert "mine.yaml is there already" in refused(
        capsys, "init", "mine.jsonl", "--model", "model", "--out", "mine.yaml"
    )
    Path("mine.yaml").write_text("mine: own\n")
    cli.main(["init", "mine.jsonl", "--model", "model", "--out", "mine.yaml", "--force"])
    assert Path("mine.yaml").read_text() == first
    Path("runs/mine").mkdir(parents=True)
    cli.main(["init", "mine.jsonl", "--model", "model", "--out", "-"])
    assert yaml.safe_load(capsys.readouterr().out)["workdir"] == "runs/mine-2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_what_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    write_lines("mine.jsonl", PAIR)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stdin", Terminal("mine.jsonl\nmodel\n"))
    cli.main(["init"])
    found = yaml.safe_load(Path("experiment.yaml").read_text())
    assert found["model"]["weights"] == "model" and found["data"]["train"] == [{"path": "mine.jsonl"}]
    monkeypatch.setattr(looked, "_INSTALLED", "model")
    monkeypatch.setattr(sys, "stdin", Terminal("never asked\n"))
    cli.main(["init", "mine.jsonl", "--yes", "--force"])
    assert sys.stdin.read() == "never asked\n"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([{"prompt": "x"}], "mine.jsonl:1: the rows of mine.jsonl are prompts alone .*missing are the answers"),
        ([{"foo": 1, "bar": 2}], "mine.jsonl:1: rows of no known form, with the columns foo, bar. Allowed: pairs"),
        ([{**row, "label": True} for row in COMPLETION], "all 20 labels say good; .*leave the label out"),
        ([{**row, "label": "fine"} for row in COMPLETION], "mine.jsonl:1: column 'label' is 'fine'; it must be true"),
        ([], "mine.jsonl.* holds no rows: it is empty"),
        (["{oops"], "mine.jsonl:1: the line is not JSON"),
        ([{"prompt": "x", "chosen": "a", "rejected": "a"}], "mine.jsonl:1: columns .* are identical"),
    ],
)
def test_rows_that_nothing_can_be_trained_on_are_refused(table: list[Any], says: str, capsys):
    write_lines("mine.jsonl", table)
    found = refused(capsys, "init", "mine.jsonl", "--model", "model", "--out", "e.yaml")
    assert re.search(says, found), found
    assert not Path("e.yaml").exists()


def test_other_mistakes(capsys):
    write_lines("mine.jsonl", PAIR)
    assert "nowhere.jsonl does not exist" in refused(capsys, "init", "nowhere.jsonl", "--model", "model")
    assert "weights 'nowhere': no such folder" in refused(capsys, "init", "mine.jsonl", "--model", "nowhere")
    assert "DATA: 's3://b/x' is an address" in refused(capsys, "init", "s3://b/x", "--model", "model")


def test_the_drafted_file_trains(capsys):
    write_pairs("pairs.jsonl", 20)
    drafted(capsys, "pairs.jsonl")
    cli.main(["train", "e.yaml", "--train.steps", "2", "--train.epochs", "null"])
    assert len(Path("runs/pairs/metrics.jsonl").read_text().splitlines()) == 2


def test_without_preferences_the_fine_tuning_is_all(capsys):
    write_lines("mine.jsonl", COMPLETION)
    drafted(capsys, "mine.jsonl")
    cli.main(["run", "e.yaml", "--sft.train.steps", "2", "--sft.train.epochs", "null"])
    run = Path("runs/mine")
    assert (run / "sft/export/model.safetensors").exists() and (run / "report.html").exists()
    assert "data.train names no rows of preferences" in refused(capsys, "train", "e.yaml")
