"""Every parser of foreign bytes, with a few sound inputs: what a coverage-guided fuzzer begins with."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.errors import UserError

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


class Parser(NamedTuple):
    """A parser of bytes: what it is tried with first, and the errors by which it may refuse them."""

    parse: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    refuses: tuple[type[BaseException], ...] = (UserError,)


def _written(data: bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _rows(layout: str, suffix: str, **settings: object) -> Callable[[bytes], object]:
    """A file of rows, skipping bad ones; `settings` are further ones of its source."""

    def parse(data: bytes) -> object:
        from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, read_sources

        layouts: dict[str, Any] = {"pairs": PAIRS, "completions": COMPLETIONS, "labelled": UNPAIRED}
        path = _written(data, f"rows{suffix}")
        return read_sources(layouts[layout], [{"path": str(path), **settings}], on_error="skip").rows

    return parse


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _good(layout: str, **settings: object) -> Callable[[], Sequence[bytes]]:
    """Rows of a layout in the form that these settings of a source ask for."""

    def seeds() -> Sequence[bytes]:
        from tests.faults.fuzzed import GOOD

        return [_lines(row, row) for named, row, _, source in GOOD if (named, source) == (layout, settings)]

    return seeds


def _alpaca() -> Sequence[bytes]:
    return [_lines({"instruction": "Say", "input": "x", "chosen": "x", "rejected": "y"})]


def _csv() -> Sequence[bytes]:
    return [b"prompt,chosen,rejected\na,b,c\n", b'prompt,chosen,rejected,weight\n"a, ""x""\nb",c,d,2.0\n']


def _parquet() -> Sequence[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([{"prompt": "a", "chosen": "b", "rejected": "c"}]), sink)
    return [sink.getvalue()]


def _configuration(data: bytes) -> object:
    from dpo_jax.config import load

    return load(str(_written(data, "e.yaml")))


def _configurations() -> Sequence[bytes]:
    files = sorted(Path("configs").glob("*.yaml"))[::4]
    return [
        b"workdir: w\nmodel: {weights: m}\ndata: {train: [{path: p.jsonl}]}\nloss: {name: dpo}\n",
        *(f.read_bytes() for f in files),
    ]


@cache
def _model() -> Path:
    from tests.tiny import make_hf_folder

    return make_hf_folder(FOLDER / "model")


def _config_json(data: bytes) -> object:
    from dpo_jax.weights.folder import open_folder
    from dpo_jax.weights.resolve import resolve_spec

    folder = _model()
    (folder / "config.json").write_bytes(data)
    return resolve_spec(open_folder(folder))


def _safetensors(data: bytes) -> object:
    from dpo_jax.weights.folder import map_file

    return [
        tensor.data.view(tensor.dtype).reshape(tensor.shape)
        for tensor in map_file(_written(data, "m.safetensors")).values()
    ]


def _safetensors_seeds() -> Sequence[bytes]:
    from safetensors.numpy import save

    return [save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)})]


def _gguf(data: bytes) -> object:
    from dpo_jax.weights.gguf import open_gguf
    from dpo_jax.weights.resolve import resolve_spec

    source = open_gguf(_written(data, "m.gguf"))
    resolve_spec(source)
    return source.tokenizer()


def _gguf_seeds() -> Sequence[bytes]:
    from safetensors.numpy import load_file

    from tests.weights.test_gguf import write_gguf

    write_gguf(FOLDER / "seed.gguf", load_file(_model() / "model.safetensors"))
    whole = (FOLDER / "seed.gguf").read_bytes()
    return [whole, whole[: len(whole) // 2]]


def _template(data: bytes) -> object:
    from transformers import PreTrainedTokenizerFast

    from dpo_jax.data.rendering import Jinja, render, variables
    from tests.tiny import train_tokenizer

    text = data.decode("utf8", "replace")
    variables(text)
    turns = [{"role": "user", "content": "Say x."}, {"role": "assistant", "content": "x"}]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer())
    return render(tokenizer, Jinja(text), turns, {}, "row 1", asks=False)


def _templates() -> Sequence[bytes]:
    return [
        b"{% for message in messages %}<|{{ message.role }}|>{{ message['content'] | trim }}\n{% endfor %}",
        b"{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages | tojson }}",
        b"{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}",
    ]


def _judge(data: bytes) -> object:
    from dpo_jax.evaluation.judges.chat import _Passing, _read
    from dpo_jax.evaluation.judges.wording import understand

    understand(data.decode("utf8", "replace"))
    try:
        return understand(_read(data).text)
    except _Passing:
        return None


def _answers() -> Sequence[bytes]:
    said = {"choices": [{"message": {"content": "I prefer [[A]] to B."}}], "usage": {"prompt_tokens": 3}}
    return [_lines(said), b"Verdict: [[B]]", b'{"winner": "tie"}', b"A > B, final answer: **A**"]


def _picture(data: bytes) -> object:
    from dpo_jax.data.decoding import picture

    return picture(data)


def _pictures() -> Sequence[bytes]:
    from PIL import Image

    made = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        sink = io.BytesIO()
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(sink, form)
        made.append(sink.getvalue())
    return made


def _clip(data: bytes) -> object:
    from dpo_jax.data.decoding import clip

    return clip(data, frames=2)


def _clips() -> Sequence[bytes]:
    from PIL import Image

    frames = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    array, packed, gif = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, frames)
    np.savez_compressed(packed, frames)
    first, second = map(Image.fromarray, frames)
    first.save(gif, "GIF", save_all=True, append_images=[second])
    return [array.getvalue(), packed.getvalue(), gif.getvalue()]


def _undecodable() -> tuple[type[BaseException], ...]:
    from dpo_jax.data.decoding import Undecodable

    return (Undecodable, UserError)


PARSERS: dict[str, Parser] = {
    "pairs": Parser(_rows("pairs", ".jsonl"), _good("pairs")),
    "pairs, sharegpt": Parser(_rows("pairs", ".jsonl", format="sharegpt"), _good("pairs", format="sharegpt")),
    "pairs, hh": Parser(_rows("pairs", ".jsonl", format="hh"), _good("pairs", format="hh")),
    "pairs, alpaca": Parser(_rows("pairs", ".jsonl", format="alpaca"), _alpaca),
    "completions": Parser(_rows("completions", ".jsonl"), _good("completions")),
    "labelled": Parser(_rows("labelled", ".jsonl"), _good("labelled")),
    "labelled, unpaired": Parser(_rows("labelled", ".jsonl", unpair=True), _good("labelled", unpair=True)),
    "pairs.csv": Parser(_rows("pairs", ".csv"), _csv),
    "pairs.parquet": Parser(_rows("pairs", ".parquet"), _parquet),
    "configuration": Parser(_configuration, _configurations),
    "config.json": Parser(_config_json, lambda: [(_model() / "config.json").read_bytes()]),
    "safetensors": Parser(_safetensors, _safetensors_seeds),
    "gguf": Parser(_gguf, _gguf_seeds),
    "chat template": Parser(_template, _templates),
    "judge's answer": Parser(_judge, _answers),
    "picture": Parser(_picture, _pictures, _undecodable()),
    "clip": Parser(_clip, _clips, _undecodable()),
}
"""Name -> parser. To add one: its function, and its line here."""
