"""The model card: a head that hubs read, the results, and nothing that should not be published."""

from __future__ import annotations

import pytest
import yaml

from dpo_jax.reporting.card import model_card, public_name
from tests.reporting.made_up import CONFIG, EVALUATION, made_up_run, measured


def _head(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_head() -> None:
    head = _head(model_card(made_up_run(), base_model="someone/some-model", license_id="apache-2.0"))
    tags = ["dpo", "dpo_jax"]
    expected = {
        "library_name": "transformers",
        "tags": tags,
        "base_model": "someone/some-model",
        "license": "apache-2.0",
    }
    assert head == expected


def test_the_head_claims_nothing_that_was_not_given() -> None:
    assert set(_head(model_card(made_up_run()))) == {"library_name", "tags"}


def test_body() -> None:
    card = model_card(made_up_run())
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7 and len({line.count("|") for line in table}) == 1
    for text in ("# Kinder one-line reviews", "`package:some-model`", "`dpo` loss", "90.6", "beta: 0.1", "steps: 40"):
        assert text in card
    assert "learning_rate: 0.0001" in card  # of the supervised part


def test_concerns_are_told() -> None:
    card = model_card(made_up_run()._replace(evaluation=measured(EVALUATION | {"kl": {"sequence_kl": 16.2}})))
    assert "- The sequence KL is 16.2" in card


def test_a_run_without_an_evaluation_has_no_table() -> None:
    card = model_card(made_up_run()._replace(evaluation=measured({}), metrics=[], config={}))
    assert "|" not in card and "not been evaluated" in card


@pytest.mark.parametrize(
    ("data", "says", "asks"),
    [
        ({"template": "plain"}, "without a chat template (`template: plain`)", 'write("Once'),
        ({"template": "hh"}, "turns of Human and Assistant (`template: hh`)", '"role": "user"'),
        ({"template": "tokenizer"}, "the chat template of the base's tokenizer", '"role": "user"'),
        (
            {"template": "tokenizer", "chat_template": "/home/me/own.jinja", "date": "2026-11-30"},
            "own (`chat_template`: `own.jinja`), not that of the base",
            '"role": "user"',
        ),
    ],
)
def test_it_says_how_prompts_were_written_and_are_to_be(data: dict, says: str, asks: str) -> None:
    card = model_card(made_up_run()._replace(config=CONFIG | {"data": data}))
    assert says in card and asks in card and "/home" not in card
    assert ("2026-11-30 all through the training" in card) == ("date" in data)


def test_several_losses_are_all_named() -> None:
    losses = [{"name": "dpo", "options": {}, "weight": 1.0}, {"name": "sft", "options": {}, "weight": 0.1}]
    assert "`dpo + sft` loss" in model_card(made_up_run()._replace(config=CONFIG | {"loss": losses}))


def test_nothing_private_is_published() -> None:
    config = CONFIG | {
        "workdir": "/home/SECRET/runs",
        "model": {"weights": "/home/SECRET/models/tiny"},
        "data": {"train": [{"path": "https://SECRET@host/rows.jsonl?key=SECRET"}, {"path": "~/SECRET/more.jsonl"}]},
        "tracking": {"api_key": "SECRET"},
        "reference": {"store": "/home/SECRET/stores"},
        "sft": {"data": {"train": [{"path": "/home/SECRET/sft.jsonl"}]}, "train": {"steps": 1}},
    }
    environment = {"hostname": "SECRET", "TOKEN": "SECRET", "jax": "0.12.0"}
    run = made_up_run()._replace(config=config, environment=environment, command="HF_TOKEN=SECRET dpo-jax run")
    card = model_card(run, source_kinds=["path"])
    assert "SECRET" not in card
    assert all(name in card for name in ("`tiny`", "`rows.jsonl`", "`more.jsonl`", "jax 0.12.0"))


@pytest.mark.parametrize("evil", ["a | b", "<script>alert(1)</script>", "[link](http://x)", "two\n# lines"])
def test_text_from_data_stays_text(evil: str) -> None:
    judged = EVALUATION["judged"] | {"judge": evil}
    card = model_card(made_up_run()._replace(title=evil, evaluation=measured(EVALUATION | {"judged": judged})))
    assert "<script" not in card.replace("\\<", "") and "\n# lines" not in card and "\n[link]" not in card
    assert len([line for line in card.splitlines() if line.startswith("|")]) == 9
    (row,) = [line for line in card.splitlines() if line.startswith("| Difference")]
    assert row.replace("\\|", "").count("|") == 5


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("someone/some-model", "someone/some-model"),
        ("package:some-model", "package:some-model"),
        ("/home/me/models/tiny/", "tiny"),
        ("gs://bucket/deep/rows.jsonl", "rows.jsonl"),
        ("../data/rows.jsonl", "rows.jsonl"),
    ],
)
def test_public_name(source: str, name: str) -> None:
    assert public_name(source) == name
