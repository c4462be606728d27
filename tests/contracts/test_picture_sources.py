"""Every source of pictures and clips gives back what was written, and names what is broken, as those of texts do."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.data.pictures.layouts import LAYOUTS
from dpo_jax.data.pictures.samples import Shape
from dpo_jax.errors import UserError
from dpo_jax.types import PictureRow
from tests.data.pictures.conftest import CLIP, GREY, idx, lines, moving, plain, read, write

VALUES, CLASSES = (7, 40, 9), (0, 0, 1)
Spec = dict[str, Any]


class Sample(NamedTuple):
    """`write()` makes a source in the current directory: samples that are all of one value, VALUES, and CLASSES.

    `file` is one that a broken source names; None where the samples are made by code, three of the first three classes.
    """

    of: tuple[str, str]  # a table and its entry
    write: Callable[[], Spec]
    file: str | None
    shape: Shape = GREY


def write_folder() -> Spec:
    write(
        Path("shown"), {f"{of}/{n}.png": plain(value) for n, (of, value) in enumerate(zip("aab", VALUES, strict=True))}
    )
    return {"images": "shown"}


def write_clips() -> Spec:
    files = {f"{n}.npy": moving(value, value, value) for n, value in enumerate(VALUES)}
    lines(write(Path("clips"), files) / "a.jsonl", [{"video": f"{n}.npy", "class": of} for n, of in enumerate(CLASSES)])
    return {"videos": "clips/a.jsonl"}


def write_table() -> Spec:
    pq.write_table(pa.table({"image": [plain(value) for value in VALUES], "class": list(CLASSES)}), "a.parquet")
    return {"images": "a.parquet"}


def write_saved() -> Spec:
    features = datasets.Features({"image": datasets.Image(), "class": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": plain(value), "path": None} for value in VALUES], "class": list(CLASSES)}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
    return {"hub": "saved"}


def write_fashion() -> Spec:
    pixels = np.stack([np.full((4, 4), value, np.uint8) for value in VALUES])
    files = {"train-images-idx3": pixels, "train-labels-idx1": np.array(CLASSES, np.uint8)}
    write(Path(".data/fashion-mnist"), {f"{name}-ubyte.gz": gzip.compress(idx(of)) for name, of in files.items()})
    return {"package": "fashion-mnist"}


SAMPLES = {
    "folder": Sample(("KINDS", "images"), write_folder, "shown/b/2.png"),
    "table": Sample(("KINDS", "images"), write_table, "a.parquet"),
    "clips": Sample(("KINDS", "videos"), write_clips, "clips/2.npy", CLIP),
    "saved": Sample(("KINDS", "hub"), write_saved, "saved/data-00000-of-00001.arrow"),
    "fashion": Sample(("PACKAGES", "fashion-mnist"), write_fashion, ".data/fashion-mnist/train-images-idx3-ubyte.gz"),
    "digits": Sample(("PACKAGES", "digits"), lambda: {"package": "digits", "limit": 3}, None, Shape(None, 8, 8, 1)),
    "moving": Sample(
        ("PACKAGES", "moving-digits"), lambda: {"package": "moving-digits", "limit": 3}, None, Shape(6, 16, 20, 1)
    ),
}
# Records of each layout, the files that become samples of a row, and whether that is a good one.
LAYOUT_ROWS: dict[str, list[tuple[dict[str, Any], list[str], bool | None]]] = {
    "samples": [({"image": "7.png"}, ["7.png"], None), ({"image": "9.png"}, ["9.png"], None)],
    "pairs": [
        ({"chosen": "7.png", "rejected": "9.png"}, ["7.png", "9.png"], None),
        ({"image_0": "7.png", "image_1": "9.png", "label": 1}, ["9.png", "7.png"], None),
    ],
    "labelled": [
        ({"image": "7.png", "desirable": True}, ["7.png"], True),
        ({"image": "7.png", "desirable": 0}, ["7.png"], False),
    ],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def values(row: PictureRow) -> list[int]:
    """The value of each sample of a row; they are all of one."""
    pixels = [sample() for sample in row.samples]
    assert all(np.ptp(each) == 0 for each in pixels)
    return [int(each.flat[0]) for each in pixels]


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_samples_come_back_as_they_were_written(sample: Sample):
    spec = sample.write()
    rows, skipped, _ = read(spec, shape=sample.shape, classes=10)
    if sample.file:
        assert [values(row) for row in rows] == [[value] for value in VALUES]
    assert [row.shown for row in rows] == list(CLASSES if sample.file else range(3)) and skipped == {}
    assert len({row.row_id for row in rows}) == len({row.where for row in rows}) == 3
    ids = [row.row_id for row in rows]
    assert [row.row_id for row in read(spec, shape=sample.shape, classes=10).rows] == ids
    if sample.file and sample.shape == GREY:  # of pixels and classes, not of names
        assert [row.row_id for row in read(write_folder(), classes=10).rows] == ids


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_all_know_the_keys_of_all(sample: Sample):
    spec = sample.write()
    rows = read({**spec, "weight": 2, "name": "mine"}, shape=sample.shape, classes=10).rows
    assert [row.shown for row in rows] == [of for of in (CLASSES if sample.file else range(3)) for _ in range(2)]
    assert {row.source for row in rows} == {"mine"}
    with pytest.raises(UserError, match=r"unknown key 'weigth'\. Did you mean 'weight'"):
        read({**spec, "weigth": 2}, shape=sample.shape, classes=10)
    with pytest.raises(UserError):  # pictures are no clips
        read(spec, shape=CLIP if sample.shape.frames is None else GREY, classes=10)


@pytest.mark.parametrize("sample", [each for each in SAMPLES.values() if each.file], ids=lambda sample: sample.file)
def test_what_is_broken_is_named(sample: Sample):
    spec, file = sample.write(), Path(sample.file or "")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        read(spec, shape=sample.shape, classes=10)
    assert file.parts[-1] in str(error.value) or file.parts[0] in str(error.value), str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_layout(layout: str):
    write(Path(), {f"{value}.png": plain(value) for value in (7, 9)})
    rows = read(lines(Path("a.jsonl"), [record for record, *_ in LAYOUT_ROWS[layout]]), layout).rows
    for row, (_, names, good) in zip(rows, LAYOUT_ROWS[layout], strict=True):
        assert values(row) == [int(name[0]) for name in names] and row.desirable == good
    assert len({row.row_id for row in rows}) == len(rows)
    if LAYOUTS[layout].flipped:
        wrong = read({"images": "a.jsonl", "flip": 1}, layout).rows
        for row, other in zip(rows, wrong, strict=True):
            assert (values(other)[::-1], other.desirable) == (
                values(row),
                None if row.desirable is None else not row.desirable,
            )
