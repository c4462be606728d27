"""Secrets that are hidden in all their usual forms, and texts that are left alone."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from dpo_jax.masking import forms, mask, masked, remember
from tests.masking.cases import INNOCENT, SECRETS, V

SECRET = "s3cr3t-Value-0123456789"


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "MY_SECRET"),
        *("JUDGE_KEY", "token", "PGPASSWORD", "MYSQL_PWD", "GITHUB_PAT", "SSHPASS", "apiKey"),
    ],
)
def test_values_of_variables_are_hidden_wherever_they_stand(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, SECRET)
    assert mask(f"asked with {SECRET}, twice {SECRET}") == "asked with ***, twice ***"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "MAX_TOKENS", "EOS_TOKEN", "HOME", "PWD"])
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


def test_what_was_remembered_is_hidden_as_others_write_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dpo_jax.masking._remembered", set())
    remember('k/1 "x"+é')
    for text in ('k/1 "x"+é', "k%2F1%20%22x%22%2B%C3%A9", r"k/1 \"x\"+\u00e9", "ay8xICJ4IivDqQ=="):
        assert mask(f"it said {text}!") == "it said ***!"
    remember("abcd")
    assert mask("abcd, abcde") == "***, abcde"  # a short one hides no part of a word


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_is_hidden_wherever_its_form_stands(text: str, secret: str):
    for around in (text, f"it said: {text} and more", f"a\n  {text}\nb", mask(text)):
        found = mask(around)
        assert secret not in found and "***" in found
    in_config = masked({"judge": {"command": text, "of": [text]}})
    assert secret not in str(in_config) and "***" in in_config["judge"]["command"]


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_stays(text: str):
    assert mask(text) == text and masked({"prompt": [text]}) == {"prompt": [text]}


def test_what_stands_around_a_secret_stays():
    text = (
        f"e.yaml:3: --api-key {V} was refused by https://me:{V}@host/v1?key={V}&page=2, {{'password': '{V}', 'n': 1}}"
    )
    assert mask(text) == (
        "e.yaml:3: --api-key *** was refused by https://***@host/v1?key=***&page=2, {'password': '***', 'n': 1}"
    )


def test_settings_are_hidden_by_their_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = {
        "judge": {"request": {"api_key": "short", "max_tokens": 16, "eos_token": "x"}, "api_key_env": "HF_TOKEN"},
        "on": (SECRET,),
        "headers": {"X-Api-Key": "short", "Authorization": ["short", {"scheme": "short"}], "accept": "json"},
        "password": 12345678,
        "apiKey": "${JUDGE_KEY}",
        "env": [{"name": "MY_SECRET", "value": "short"}, {"name": "HOME", "value": "/home"}],
        "args": ["--api-key", "short", "--page", "2"],
        "token": None,
    }
    assert masked(config) == {
        "judge": {"request": {"api_key": "***", "max_tokens": 16, "eos_token": "x"}, "api_key_env": "HF_TOKEN"},
        "on": ["***"],
        "headers": {"X-Api-Key": "***", "Authorization": ["***", {"scheme": "***"}], "accept": "json"},
        "password": "***",
        "apiKey": "${JUDGE_KEY}",
        "env": [{"name": "MY_SECRET", "value": "***"}, {"name": "HOME", "value": "/home"}],
        "args": ["--api-key", "***", "--page", "2"],
        "token": None,
    }


@pytest.mark.parametrize(
    "piece",
    [
        *("a", " ", "-", "=", ":", "'", "\\", "é", "_", "\n", "@", "a.", "a@", "{'", "x=", "://", "eyJ", "--key "),
        *("token: ", "Cookie: ", "Authorization: ", "bearer ", "curl ", "curl -u ", "wandb login ", "-----BEGIN "),
        *("https://a:", "hooks/", "https://hooks.slack.com/", "x" * 25 + "."),
    ],
)
def test_no_text_takes_long(piece: str):
    text = piece * (40_000 // len(piece))
    started = time.process_time()
    mask(text)
    assert time.process_time() - started < 1.0


def test_the_rules_are_read_when_they_are_needed_and_all_can_be():
    assert len(forms._rules()) > 100
    for words, pattern in forms._rules():
        assert words and all(word == word.lower() for word in words) and isinstance(pattern(), re.Pattern)
    code = "import sys, dpo_jax.masking; print(*sorted(name for name in sys.modules if name in ('requests', 'jax')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
