"""Names of things whose values are secrets: of settings, flags, headers, query parameters, environment variables."""

from __future__ import annotations

import functools
import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENDINGS = {"id", "value", "header", "data", "base", "hash", "1", "2"}  # such as AWS_ACCESS_KEY_ID
_SECRETS = {
    "token", "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passcode", "pat",
    "authorization", "authtoken", "credential", "credentials", "cookie", "jwt", "bearer", "apikey", "apikeys",
    "accesskey", "secretkey", "privatekey", "accesstoken", "authkey", "keypass", "storepass", "dbpass",
    "pgpassword", "sshpass", "userpass", "apitoken", "clientsecret", "webhook", "passin",
}  # fmt: skip
_KINDS_OF_KEY = {
    "api", "access", "secret", "private", "auth", "signing", "encryption", "account", "service", "subscription",
    "master", "session", "shared", "license", "deploy", "ssh", "app", "admin", "functions", "storage",
}  # fmt: skip
_KINDS_OF_PASS = {"db", "database", "user", "smtp", "mail", "ftp", "admin", "root", "redis", "ldap"}
# The tokens of a tokenizer, with what a model or a template says of them.
_OF_TEXT = {
    "bos", "eos", "pad", "unk", "cls", "sep", "mask", "stop", "start", "end", "begin", "special", "image", "images",
    "video", "audio", "boi", "eoi", "bot", "eot", "eom", "first", "last", "next", "new", "added", "prompt", "response",
    "think", "tool", "per", "sub", "vocab", "word", "text", "prefix", "suffix", "middle", "separator", "user",
    "system", "assistant", "sentence", "unknown", "padding", "no", "of", "the", "a", "each", "one", "target",
    "source", "scored", "chosen", "rejected", "every", "same", "this", "other", "byte", "control", "normal",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Tell whether a value under this name is a secret: api_key, X-Auth-Token, clientSecret; not eos_token."""
    name = re.split(r"[.\[\]:/]", name.rstrip(".]:"))[-1] if len(name) < 200 else ""
    words = [word.lower() for word in _WORD.findall(name)]
    if len(words) > 1 and words[-1] in _ENDINGS:
        words.pop()
    if not words or words[0] in ("num", "max", "min", "n"):
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last == "token":
        return before not in _OF_TEXT
    if last == "pwd":  # PWD is the folder that a shell is in
        return before not in ("", "old") or name.islower()
    if last in ("key", "keys"):
        return before in _KINDS_OF_KEY
    return last in _SECRETS or (last == "pass" and before in _KINDS_OF_PASS)


def is_secret_variable(name: str) -> bool:
    """Tell whether an environment variable holds a secret; there every other KEY does, too."""
    return is_secret(name) or name.upper().endswith("_KEY")


def is_secret_parameter(name: str) -> bool:
    """Tell whether a parameter in an address does; short names and signatures are usual there."""
    return is_secret(name) or _WORD.findall(name.lower())[-1:] in (["sig"], ["signature"], ["key"], ["auth"], ["code"])
