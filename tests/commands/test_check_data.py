"""`dpo-jax check-data`: what it says of data with something of everything, and what training says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax import cli
from dpo_jax.commands import training
from dpo_jax.experiments import text_steps
from tests.tiny_experiment import make_experiment, write_lines

SAME = "the plot is thin, the jokes are old and the ending is cold, and the room was quiet and the lamp was warm"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    more = {"eval": [{"path": "held.jsonl"}], "max_tokens": 96, "on_error": "skip"}
    monkeypatch.chdir(make_experiment(tmp_path, data=more, train={"steps": 1, "batch_pairs": 4}))
    rows = [{"prompt": f"Row {n}:", "chosen": " it is good, " * 3 + str(n), "rejected": " bad"} for n in range(10)]
    rows.append(rows[2])
    rows.append({"prompt": "Row 3:", "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]})
    rows.append({"prompt": "Row <b>:", "chosen": SAME + " so.", "rejected": SAME + " no."})
    rows.append({"prompt": "Row x:", "chosen": " word" * 200, "rejected": " it"})
    rows.append({"prompt": "Row y:", "chosen": "", "rejected": " it"})
    write_lines(tmp_path / "pairs.jsonl", rows)
    write_lines(tmp_path / "held.jsonl", [rows[4], {"prompt": "Row 5:", "chosen": " c", "rejected": " d"}])
    return tmp_path


FOUND = {
    "data.train": {
        "rows kept": (14, False),
        "rows left out: empty value": (1, True),
        "prompts truncated, their end kept": (0, False),
        "responses truncated, their start kept": (1, True),
        "pairs nearly identical": (1, True),
        "responses that do not end with a stop token": (1, True),
        "rows that stand there twice": (1, True),
        "pairs labelled both ways": (1, True),
    },
    "data.eval": {
        "rows kept": (2, False),
        "rows that are also in data.train": (1, True),
        "prompts also in data.train": (2, True),
    },
}


def test_it_counts_what_is_odd_and_shows_rows_as_they_are_scored(experiment: Path, capsys):
    cli.main(["check-data", "e.yaml"])
    parts = capsys.readouterr().out.split("data.eval:")
    for part, wanted in zip(parts, FOUND.values(), strict=True):
        lines = {
            line[4:].strip().partition("  ")[2]: line for line in part.splitlines() if line[:4].strip() in ("", "!")
        }
        for what, (count, odd) in wanted.items():
            assert lines[what].split()[-len(what.split()) - 1] == str(count) and ("!" in lines[what]) == odd, what
        assert "of the pairs have the longer response chosen" in part and "longest" in part
    page = Path("runs/demo/data.html").read_text()
    assert '<span class="prompt">Row 0:</span><span class="scored"> it is good,' in page
    assert page.count("<h3>Row ") == 3 + 2 and "<b>" not in page and "://" not in page


def test_training_says_the_odd_part(experiment: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "fit", lambda *_: None)
    monkeypatch.setattr(text_steps, "say_how_fitted", lambda *_, **__: None)
    cli.main(["train", "e.yaml", "--loss.name", "simpo"])  # which needs no reference: no model runs
    said = capsys.readouterr().err
    assert "data.train: 1 pairs labelled both ways" in said and "data.eval: 1 rows that are also in data.train" in said
    assert "BOS" not in said and "check-data` shows these" in said
