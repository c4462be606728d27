"""Rows on disk are the rows that were written, and batches of them the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.data.batches import Batches
from dpo_jax.data.shapes import Packing
from dpo_jax.data.tokens import sizes_of, write_table
from dpo_jax.errors import UserError
from dpo_jax.types import TokenRow
from tests.data.test_batches import make_rows


def with_ids(count: int, *, masked: bool = False) -> list[TokenRow]:
    rows = [row._replace(row_id=f"{n:032x}") for n, row in enumerate(make_rows(count))]
    if not masked:
        return rows
    masks = [tuple(np.arange(len(response)) % 3 == 0 for response in row.responses) for row in rows]
    return [row._replace(masks=mask) if n % 2 else row for n, (row, mask) in enumerate(zip(rows, masks, strict=True))]


def assert_same(found: TokenRow, wanted: TokenRow) -> None:
    assert found.row_id == wanted.row_id
    np.testing.assert_array_equal(found.prompt, wanted.prompt)
    for ours, theirs in zip(found.responses, wanted.responses, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for slot, response in enumerate(wanted.responses):
        ours = np.ones(len(response), bool) if found.masks is None else found.masks[slot]
        theirs = np.ones(len(response), bool) if wanted.masks is None else wanted.masks[slot]
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_come_back_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked: bool):
    monkeypatch.setattr("dpo_jax.data.tokens._CHUNK_ROWS", 4)
    rows = with_ids(11, masked=masked)
    table = write_table(iter(rows), tmp_path / "new")
    assert len(table) == 11 and not (tmp_path / "new").exists()  # mapped, but no longer there
    for found, wanted in zip(table, rows, strict=True):
        assert_same(found, wanted)
    for ours, theirs in zip(sizes_of(table), sizes_of(rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    picks = np.array([7, 0, 7, 10])
    for found, pick in zip(table.take(picks), picks, strict=True):
        assert_same(found, rows[pick])
    assert_same(table[3:8].take(np.array([1]))[0], rows[4])
    assert_same(table[-1], rows[-1])


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_batches_of_a_table_are_those_of_its_rows(tmp_path: Path, layout: str):
    rows = with_ids(9, masked=True)
    options = {"batch_pairs": 4, "micro_batch_pairs": 2, "seed": 0, "packing": Packing(layout)}
    for step in range(5):
        ours, wanted = (Batches(each, **options).batch(step) for each in (write_table(rows, tmp_path), rows))
        assert ours.row_ids == wanted.row_ids
        for name, a, b in zip(wanted.arrays._fields, ours.arrays, wanted.arrays, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def test_no_rows_are_a_table_too(tmp_path: Path):
    assert len(write_table([], tmp_path / "new")) == 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the rows cannot be written there"):
        write_table(with_ids(1), tmp_path / "file")


def test_a_row_costs_little_memory(tmp_path: Path):
    """60,000 rows of 1,200 tokens are 288 MB on disk; in a child process, which begins with nothing."""
    code = f"""
import resource, sys
import numpy as np
from pathlib import Path
from dpo_jax.data.shapes import Packing
from dpo_jax.data.tokens import write_table
from dpo_jax.types import TokenRow
long = np.arange(400, dtype=np.int32)
write_table([TokenRow("0" * 32, long, (long, long))], Path({str(tmp_path)!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = write_table((TokenRow(f"{{n:032x}}", long, (long, long)) for n in range(60_000)), Path({str(tmp_path)!r}))
assert len(table) == 60_000 and table[59_999].responses[1][399] == 399
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 60_000  # KiB
