"""The layouts that TRL reads become the tokens that TRL makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_jax.data.encoding import Rules
from dpo_jax.data.sources import PAIRS, read_sources
from dpo_jax.data.tokenize import tokenize
from tests.data.test_chat import TOOLS, make_tokenizer, turns

USER, WARM, COLD = turns("u:the lamp"), turns("a:was warm"), turns("a:is cold")
ASKED = turns("s:Be old.", "u:the lamp", "a:yes", "u:and?")
CASES: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"prompt": USER, "chosen": WARM, "rejected": COLD},
        {"prompt": ASKED, "chosen": COLD, "rejected": WARM},
    ],
    "implicit messages": [
        {"chosen": USER + WARM, "rejected": USER + COLD},
        {"chosen": ASKED + WARM, "rejected": ASKED + COLD},
    ],
    "several turns": [{"prompt": USER, "chosen": WARM + turns("u:and?", "a:quiet"), "rejected": COLD}],
    "tools": [
        {
            "prompt": USER,
            "chosen": WARM,
            "rejected": COLD,
            "tools": '[{"name": "get"}]',
            "chat_template_kwargs": {"loud": True},
        }
    ],
    "texts": [{"prompt": "the room ", "chosen": "quiet", "rejected": "old"}],
    "implicit texts": [
        {"chosen": "the lamp was warm", "rejected": "the lamp was cold"},
        {"chosen": "What is 12 + 30?\n42", "rejected": "What is 12 + 30?\n 43"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: hi\n\nAssistant: No."},
    ],
}


def of_trl(rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[list[int], ...]]:
    import datasets
    from trl import DPOTrainer

    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    data = datasets.Dataset.from_list([json.loads(json.dumps(row)) for row in rows])
    done = DPOTrainer._prepare_dataset(trainer, data, tokenizer, settings, "train")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in done]


@pytest.mark.parametrize("adds", ["$A", "<|im_start|> $A"])
@pytest.mark.parametrize("name", CASES)
def test_a_layout_becomes_the_same_tokens(name: str, adds: str, tmp_path: Path):
    tokenizer, rows = make_tokenizer(adds=adds, chat=TOOLS), CASES[name]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_sources(PAIRS, [{"path": str(tmp_path / "a.jsonl")}]).rows
    ours, _ = tokenize(read, tokenizer, Rules(template="plain" if "texts" in name else "tokenizer"))
    expected = of_trl(rows, tokenizer)
    assert [(row.prompt.tolist(), *(ids.tolist() for ids in row.responses)) for row in ours] == expected
