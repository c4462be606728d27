"""Secrets that are hidden, and texts that are left alone."""

from __future__ import annotations

import pytest

from dpo_jax.masking import mask, masked

SECRET = "s3cr3t-Value-0123456789"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MY_SECRET", "JUDGE_KEY", "token"]
)
def test_values_of_variables_are_hidden_wherever_they_stand(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, SECRET)
    assert mask(f"asked with {SECRET}, twice {SECRET}") == "asked with ***, twice ***"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "MAX_TOKENS", "EOS_TOKEN", "HOME"])
def test_other_variables_are_not_secret(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "/home/someone")
    assert mask("wrote /home/someone/run") == "wrote /home/someone/run"


def test_a_short_value_hides_no_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "train")
    assert mask("train: done") == "train: done"


def test_of_two_values_the_longer_is_hidden_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-and-more")
    assert mask("x abcdefgh-and-more") == "x ***"


@pytest.mark.parametrize(
    "text",
    [
        f"https://someone:{SECRET}@host/v1",
        f"data file https:/{SECRET}@host/rows.jsonl does not exist",  # as pathlib writes it
        f"https://host/rows.jsonl?token={SECRET}&page=2",
        f"https://host/rows?page=2&api_key={SECRET}",
        f"https://bucket/rows?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f"https://blob/rows?sv=1&sig={SECRET}",
        f"dpo-jax train e.yaml --evaluation.judge.request.api_key {SECRET}",
        f"dpo-jax train e.yaml --evaluation.judge.request.api_key={SECRET}",
        f"--evaluation.judge '{{name: http, request: {{api_key: {SECRET}}}}}'",
        f'{{"password": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        "the hub says hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdefghijklmnopqrstuvwxyz is not valid",
    ],
)
def test_secrets_in_text_are_hidden(text: str):
    found = mask(text)
    assert SECRET not in found and "abcdefghijklmnop" not in found and "***" in found


@pytest.mark.parametrize(
    "text",
    [
        "https://host/v1/chat?model=some-model",
        "runs/demo/checkpoints/4: params/ocdbt.process_0/d/0123456789abcdef",
        "weights org/name@0123456789abcdef0123456789abcdef01234567",
        "the special tokens <|im_end|> and tokenizer.json: 340 tokens",
        "eos_token: <|endoftext|>, pad_token: 'endoftext'",
        "data.max_tokens: 1024; the token refreshed itself; --data.max_tokens 12345678",
        "someone@host.org wrote 12:30/x@y",
    ],
)
def test_other_text_stays(text: str):
    assert mask(text) == text


def test_settings_are_hidden_by_their_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = {"judge": {"request": {"api_key": "short", "max_tokens": 16}, "api_key_env": "HF_TOKEN"}, "on": (SECRET,)}
    assert masked(config) == {
        "judge": {"request": {"api_key": "***", "max_tokens": 16}, "api_key_env": "HF_TOKEN"},
        "on": ["***"],
    }
