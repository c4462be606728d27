"""Things that attack: templates, configurations, names and files that unpack to much more than they are."""

from __future__ import annotations

import io
import resource
import signal
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpo_jax.config import load
from dpo_jax.data import rendering
from dpo_jax.data.decoding import Undecodable, clip, picture
from dpo_jax.data.encoding import Rules
from dpo_jax.data.tokenize import tokenize
from dpo_jax.errors import BadRow, UserError
from dpo_jax.types import PreferencePair
from dpo_jax.weights.opening import open_weights
from tests.faults.within import within
from tests.tiny import make_hf_folder

pytestmark = pytest.mark.fault("attacks")
HELD = "refused in one sentence, within 10 s and 100 MB; nothing ran"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = open_weights(str(make_hf_folder(tmp_path_factory.mktemp("model")))).tokenizer()
    render(found, "{{ messages[0].content }} {{ messages[-1].content }}")
    return found


def render(tokenizer: Any, template: str, *, own: bool = False) -> Any:
    """A pair formatted by a template, that of the configuration or the tokenizer's own."""
    asked, said, other = ({"role": role, "content": text} for role, text in (("user", "a"), *[("assistant", "b")] * 2))
    row = PreferencePair("r", (asked,), (said,), ({**other, "content": "c"},), "f:1")
    rules: dict[str, Any] = {"template": "tokenizer"}
    if not own:
        return tokenize([row], tokenizer, Rules(chat_template=template, **rules)).rows
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        return tokenize([row], tokenizer, Rules(**rules)).rows
    finally:
        tokenizer.chat_template = before


TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "attributes by filter": "{{ (''|attr('__class__'))|attr('__mro__') }}",
    "attributes by format": "{{ '{0.__class__.__mro__}'.format(messages) ~ 1/0 }}",
    "a changed list": "{{ messages.append(messages[0]) }}",
    "a changed message": "{{ messages[0].update({'content': 'x'}) }}",
    "a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n.__init__.__globals__ }}",
    "an import": "{% import 'os' as os %}{{ os.system('touch ran') }}",
    "an include": "{% include '/etc/passwd' %}",
    "a parent": "{% extends '/etc/passwd' %}",
    "a range": "{% for i in range(10**9) %}x{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
}


ENDLESS = {
    "a long text": "{{ 'x' * 10000000000 }}",
    "a wide field": "{{ '%4000000000d' % 1 }}",
    "a doubled text": "{% set n = namespace(x='xx') %}{% for _ in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a large text": "{{ 'x' * 100000000 }}",
    "ranges in ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a large power": "{{ 10 ** 10 ** 9 }}",
    "deep nesting": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_chat_template_without_end(name: str, tokenizer: Any, monkeypatch, held):
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    monkeypatch.setattr(rendering, "_MORE_BYTES", 2**29)
    limits = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with within(10, 600), pytest.raises(UserError, match=r"the chat template") as stop:
        render(tokenizer, ENDLESS[name])
    assert not isinstance(stop.value, BadRow), "each of a million rows would take as long"
    assert limits == (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM))
    held(1, "templates without end are stopped by their bounds")


@pytest.mark.parametrize("own", [False, True], ids=["config", "tokenizer"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template(name: str, own: bool, tokenizer: Any, tmp_path: Path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    with within(10, 100), pytest.raises(UserError) as stop:
        render(tokenizer, TEMPLATES[name], own=own)
    # A sandbox gives nothing for some names: the row is then refused because the template wrote nothing.
    assert any(words in str(stop.value) for words in ("chat template", "no token of the prompt")), stop.value
    assert len(str(stop.value)) < 900
    assert not list(tmp_path.iterdir())
    held(1, HELD)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
CONFIGS = {
    "a call": ("workdir: !!python/object/apply:os.system ['touch ran']", "tag"),
    "an object": ("workdir: !!python/object/new:pathlib.Path [ran]", "tag"),
    "a name": ("workdir: !!python/name:os.system", "tag"),
    "a tag of its own": ("workdir: !env HOME", "tag"),
    "a key twice": ("workdir: a\nworkdir: b", "given twice"),
    "a billion laughs": (LAUGHS, "more than 20,000 values"),
    "an alias in itself": ("workdir: &a [*a]", "stands in itself"),
    "deep nesting": ("workdir: " + "[" * 5000, "nested too deeply"),
    "binary": ("\0\1\2", "not YAML"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration(name: str, tmp_path: Path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    text, words = CONFIGS[name]
    Path("e.yaml").write_text(text)
    with within(10, 100), pytest.raises(UserError) as stop:
        load("e.yaml")
    assert words in str(stop.value) and "e.yaml" in str(stop.value), stop.value
    assert not Path("ran").exists()
    held(1, HELD)


def png(width: int, height: int) -> bytes:
    """A picture of so many zeros, which take little when they are packed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = packer.compress(bytes(2**20)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def gif() -> bytes:
    small = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(small, "GIF")
    data = bytearray(small.getvalue())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


@pytest.mark.parametrize("name", ["png", "gif"])
def test_a_picture_that_claims_much(name: str, held):
    data = {"png": lambda: png(60_000, 60_000), "gif": gif}[name]()
    with within(10, 100), pytest.raises(Undecodable, match="pixels"):
        (picture if name == "png" else lambda data: clip(data, frames=4))(data)
    held(1, HELD)
