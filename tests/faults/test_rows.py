"""Malformed rows, those of a table and some spoiled at random: each is refused, or skipped and counted."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dpo_jax.data.encoding import Rules
from dpo_jax.data.sources import COMPLETIONS, PAIRS, UNPAIRED, Layout, paths, stream
from dpo_jax.data.tokenize import tokenize_chunks
from dpo_jax.errors import BadRow, Skipped, UserError
from dpo_jax.weights.opening import open_weights
from tests.commands.malformed import TABLE
from tests.faults.fuzzed import GOOD, lines
from tests.faults.within import within
from tests.tiny import make_hf_folder

LAYOUTS: dict[str, Layout[Any]] = {"pairs": PAIRS, "labelled": UNPAIRED, "sft": COMPLETIONS, "completions": COMPLETIONS}
CASES = st.sampled_from(GOOD).flatmap(
    lambda of: st.tuples(st.just(of), st.lists(lines(of[1]), min_size=10, max_size=10))
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = open_weights(str(make_hf_folder(tmp_path_factory.mktemp("model")))).tokenizer()
    for kind, good, data, spec in GOOD:  # what is imported on the way is not held against the rows
        one(tmp_path_factory.mktemp("good") / "rows.jsonl", kind, tokenizer, data, spec, json.dumps(good).encode())
    return tokenizer


def read(path: Path, kind: str, tokenizer: Any, data: Mapping[str, Any], spec: Mapping[str, Any], on_error: str) -> Any:
    """The number of token rows that a file holds, and what was skipped."""
    skipped = Skipped()
    rules = Rules(**{"max_prompt_tokens": data.get("max_tokens", 65) - 1, "max_tokens": 65, **data})
    rows = stream(LAYOUTS[kind], [{"path": str(path), **spec}], on_error=on_error, skipped=skipped)
    found = 0
    for chunk in tokenize_chunks(rows, tokenizer, rules, on_error=on_error):
        found += len(chunk.tokens)
        skipped.update(chunk.skipped)
    return found, skipped


@pytest.mark.fault("malformed rows, by hand")
def test_the_table(tmp_path: Path, tokenizer: Any, held):
    assert len(TABLE) >= 60
    with within(60, 200):
        for number, bad in enumerate(TABLE):
            path = tmp_path / f"{number}.jsonl"
            good = json.dumps(bad.good).encode()
            path.write_bytes(b"\n".join([good, bad.line, good]) + b"\n")
            found, skipped = read(path, bad.kind, tokenizer, bad.data, bad.spec, "skip")
            assert (found, skipped) == (2, {bad.reason: 1}), bad
            with pytest.raises(BadRow) as stop:
                read(path, bad.kind, tokenizer, bad.data, bad.spec, "stop")
            said = str(stop.value.in_section("data"))  # as a configuration would have it
            assert said.startswith(f"{path}:2: ") and "on_error: skip" in said and len(said) < 1000
            assert all(words in said for words in bad.words.split("|")), said
    held(len(TABLE), "refused with file and line, or skipped and counted")


@pytest.mark.fault("malformed rows, at random")
def test_rows_spoiled_at_random(tmp_path: Path, tokenizer: Any, trials, held):
    """The rows beside a spoiled one are read, and it is used, or skipped once and refused if asked."""
    cases, outcomes, path = trials(40, 250), Counter[str](), tmp_path / "rows.jsonl"

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    def check(drawn: Any) -> None:
        (kind, good, data, spec), spoiled = drawn
        if "tools" in good:  # this template reads neither; the row is refused for that, whatever else it holds
            good = {name: value for name, value in good.items() if name not in ("tools", "chat_template_kwargs")}
        around = json.dumps(good).encode()
        with within(60, 200):  # not around hypothesis, which builds its tables of Unicode in a clean clone
            alone = one_by_one(path, kind, tokenizer, data, spec, spoiled)
            path.write_bytes(b"\n".join([around, *spoiled, around]) + b"\n")
            found, skipped = read(path, kind, tokenizer, data, spec, "skip")
            made, _ = one(path, kind, tokenizer, data, spec, around)
        assert skipped == Counter(reason for _, reason in alone if reason)
        assert found == 2 * made + sum(count for count, _ in alone)
        outcomes.update(reason or "used" for _, reason in alone)

    check()
    assert len(outcomes) > 15 and outcomes["used"] < sum(outcomes.values()) / 2, outcomes
    held(
        sum(outcomes.values()),
        "used, or refused with file and line, or skipped and counted; no other exception, within 200 MB",
    )


def one(path: Path, kind: str, tokenizer: Any, data: Any, spec: Any, line: bytes) -> tuple[int, str | None]:
    """The number of token rows that a line becomes alone, and the reason where it is refused."""
    path.write_bytes(line + b"\n")
    try:
        return read(path, kind, tokenizer, data, spec, "stop")[0], None
    except BadRow as bad:
        assert str(bad).startswith(f"{path}:1: ") and len(str(bad)) < 1000 and str(bad).isprintable(), bad
        traceback.clear_frames(
            bad.__traceback__
        )  # else the collector closes the file, and where recursion ends it fails
        return 0, bad.reason


def one_by_one(path: Path, kind: str, tokenizer: Any, data: Any, spec: Any, spoiled: list[bytes]) -> list[Any]:
    return [one(path, kind, tokenizer, data, spec, line) for line in spoiled]


@pytest.mark.fault("huge expansions")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.csv"])
def test_a_line_without_an_end(name: str, tmp_path: Path, tokenizer: Any, held):
    import pyarrow as pa

    path, zeros = tmp_path / name, b" " * 2**20
    with pa.output_stream(path, compression={".gz": "gzip", ".zst": "zstd"}.get(path.suffix)) as file:
        for _ in range(300):
            file.write(zeros)
    with within(60, 200), pytest.raises(UserError, match=r"rows.*:1: the line is longer than"):
        read(path, "pairs", tokenizer, {}, {}, "skip")
    held(1, "refused within 200 MB")


@pytest.mark.fault("huge expansions")
def test_a_small_parquet_file_that_holds_much(tmp_path: Path, tokenizer: Any, monkeypatch, held):
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(paths, "_MOST_BYTES", 2**24)
    path, count = tmp_path / "rows.parquet", 200
    prompts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 2**22]))
    answers = {name: pa.array([name] * count) for name in ("chosen", "rejected")}
    smallest: dict[str, Any] = {"compression": "zstd", "dictionary_pagesize_limit": 2**26, "store_schema": False}
    parquet.write_table(pa.table({"prompt": prompts, **answers}), path, **smallest)
    del prompts
    assert path.stat().st_size < 2**16
    before = pa.default_memory_pool().max_memory()
    with within(60, 200), pytest.raises(UserError, match=r"rows\.parquet: rows 1 to 8 hold 32 MiB"):
        read(path, "pairs", tokenizer, {}, {}, "skip")
    assert pa.default_memory_pool().max_memory() - before < 200e6
    held(1, "refused within 200 MB")
