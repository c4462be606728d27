"""Folders, tables and saved data sets to rows: layouts, labels, ties, classes, ids, and paths that lead elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_jax.data import decoding, pictures
from dpo_jax.data.pictures import read_pictures
from dpo_jax.errors import UserError
from tests.data.pictures.conftest import CLIP, COLOUR, GREY, lines, moving, plain, read, write


def values(row) -> list[int]:
    """The value of each sample of a row; they are all of one."""
    return [int(sample().flat[0]) for sample in row.samples]


def test_class_folders_and_flat_ones(tmp_path: Path):
    folder = write(
        tmp_path, {"dog/2.png": plain(2), "cat/1.png": plain(1), "dog/deep/3.PNG": plain(3), ".x/h.png": b""}
    )
    found = read(folder, classes=2).rows
    assert [(values(row), row.shown, row.source) for row in found] == [
        ([1], 0, tmp_path.name),
        ([2], 1, tmp_path.name),
        ([3], 1, tmp_path.name),
    ]
    assert [row.shown for row in read(folder).rows] == [None] * 3
    write(folder, {"top.png": plain(4), "notes.txt": b"read me"})
    assert read(folder, classes=2, on_error="skip").skipped == {"missing column": 1, "unknown suffix": 1}
    with pytest.raises(UserError, match=r"notes\.txt: the file is none of"):
        read(folder)
    with pytest.raises(UserError, match="from 0 to 0"):
        read(folder, classes=1, on_error="stop")


def test_parquet_with_bytes_and_with_bytes_and_path(tmp_path: Path):
    write(tmp_path, {"pictures/3.png": plain(3)})
    held = [{"bytes": plain(1), "path": "/gone/1.png"}, {"bytes": None, "path": "pictures/3.png"}]
    rows = {"chosen": held, "rejected": [{"bytes": plain(2), "path": None}] * 2, "weight": [0.5, None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    pq.write_table(pa.table({"chosen": [plain(5)], "rejected": [plain(6)]}), tmp_path / "b.parquet")
    found = read(tmp_path, "pairs").rows
    assert [values(row) for row in found] == [[1, 2], [3, 2], [5, 6]]
    assert [row.weight for row in found] == [0.5, None, None]
    assert found[1].where == f"{tmp_path / 'a.parquet'} row 2"


def test_a_saved_data_set_keeps_its_pictures_undecoded(tmp_path: Path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "class": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": plain(7), "path": None}, {"bytes": b"no picture", "path": None}], "class": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    for spec in ({"images": str(tmp_path / "saved")}, {"hub": str(tmp_path / "saved"), "split": "train"}):
        found = read(spec, classes=2, on_error="skip")
        assert [(values(row), row.shown) for row in found.rows] == [([7], 1)]
        assert found.skipped == {"not a picture": 1}


@pytest.mark.parametrize("names", [("image_0", "image_1"), ("jpg_0", "jpg_1")])
def test_two_pictures_and_a_label(tmp_path: Path, names: tuple[str, str]):
    write(tmp_path, {"0.png": plain(10), "1.png": plain(11)})
    pair = dict(zip(names, ("0.png", "1.png"), strict=True))
    labels = [{"label": 0}, {"label": 1}, {"label": 0.5}, {"label": "tie"}, {"label_0": 1.0, "label_1": 0.0}]
    labels += [{"label_0": 0}, {"label_0": 0.5}, {"label_0": 0.8}]
    found = read(lines(tmp_path / "a.jsonl", [pair | label for label in labels]), "pairs")
    assert [values(row) for row in found.rows] == [[10, 11], [11, 10], [10, 11], [11, 10], [10, 11]]
    assert found.ties == 3 and found.skipped == {}
    with pytest.raises(UserError, match=r"hold no rows \(1 ties\)"):
        read(lines(tmp_path / "b.jsonl", [pair | {"label": "tie"}]), "pairs")
    for wrong in ({"label": 2}, {"label": True}, {"label": None}, {"label_0": 1.5}, {"label_0": None}, {}):
        with pytest.raises(UserError, match="label"):
            read(lines(tmp_path / "c.jsonl", [pair | wrong]), "pairs")


def test_labelled_samples_and_pairs_taken_apart(tmp_path: Path):
    write(tmp_path, {"1.png": plain(1), "2.png": plain(2)})
    pair = lines(tmp_path / "b.jsonl", [{"chosen": "2.png", "rejected": "1.png"}])
    halves = read({"images": str(pair), "unpair": True}, "labelled").rows
    assert [(values(row), row.desirable) for row in halves] == [([2], True), ([1], False)]
    with pytest.raises(UserError, match="unpair: true"):
        read(pair, "labelled")
    wrong = read({"images": str(pair), "unpair": True, "flip": 1}, "labelled").rows
    assert [(values(row), row.desirable) for row in wrong] == [([2], False), ([1], True)]


def test_clips_of_a_table_and_embeddings(tmp_path: Path):
    write(tmp_path, {"a.npy": moving(1, 2, 3), "b.npy": moving(4, 5, 6)})
    row = {"video_0": "a.npy", "video_1": "b.npy", "label": 1, "text": [0.5, -1]}
    path = lines(tmp_path / "a.jsonl", [row])
    spec = {"videos": str(path), "columns": {"embedding": "text"}, "name": "mine"}
    (found,) = read(spec, "pairs", shape=CLIP, text_width=2).rows
    assert values(found) == [4, 1] and found.source == "mine"
    assert isinstance(found.shown, np.ndarray) and found.shown.dtype == np.float32 and found.shown.tolist() == [0.5, -1]
    for wrong in ([0.5], [0.5, float("nan")], ["a", "b"], [True, False], 3):
        with pytest.raises(UserError, match="not a list of 2 finite numbers"):
            read(
                {**spec, "videos": str(lines(tmp_path / "b.jsonl", [row | {"text": wrong}]))},
                "pairs",
                shape=CLIP,
                text_width=2,
            )


def test_ids_are_of_pixels_and_not_of_names(tmp_path: Path):
    one = read(write(tmp_path / "one", {"a.png": plain(1), "b.png": plain(2)}))
    two = read(write(tmp_path / "two", {"x/c.png": plain(2), "x/d.png": plain(1)}))
    assert [row.row_id for row in one.rows] == [row.row_id for row in two.rows][::-1]
    assert all(len(row.row_id) == 32 for row in one.rows)
    others = [read(tmp_path / "two", classes=1), read(tmp_path / "two", shape=COLOUR)]
    assert (
        len({row.row_id for found in (one, *others) for row in found.rows}) == 6
    )  # what is shown, and the shape, count


def test_what_would_read_files_of_elsewhere_is_refused(tmp_path: Path):
    write(tmp_path, {"secret.png": plain(9), "data/in.png": plain(1), "data/sub/x.png": plain(2)})
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    outside = ["../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png", "link.png", "in.png\0"]
    path = lines(tmp_path / "data" / "a.jsonl", [{"image": name} for name in [*outside, "in.png", "sub/../in.png"]])
    found = read(path, on_error="skip")
    assert found.skipped == {"path outside of the folder": len(outside)}
    assert [values(row) for row in found.rows] == [[1], [1]]
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: column 'image' is the path '\.\./secret\.png', which is not below"
    ):
        read(path)
    allowed = read({"images": str(path), "root": str(tmp_path)}, on_error="skip")  # where the user says so
    assert [values(row) for row in allowed.rows] == [[9]]  # the absolute one
    with pytest.raises(UserError, match=r"gone\.png: it cannot be read: No such file"):
        read(lines(tmp_path / "b.jsonl", [{"image": "gone.png"}]))


def test_a_file_that_changed_after_reading_is_named(tmp_path: Path):
    folder = write(tmp_path, {"a.png": plain(1)})
    (row,) = read(folder).rows
    write(folder, {"a.png": b"overwritten"})
    with pytest.raises(UserError, match=r"a\.png: column 'image', file a\.png"):
        row.samples[0]()


def test_bad_pairs_and_bad_requests(tmp_path: Path):
    write(tmp_path, {"1.png": plain(1), "2.png": plain(1, side=8), "d/1.png": plain(1)})
    same = lines(tmp_path / "a.jsonl", [{"chosen": "1.png", "rejected": "2.png"}])
    with pytest.raises(UserError, match=r"a\.jsonl:1: the two have the same pixels"):
        read(same, "pairs")
    for spec, says in [
        ({"image": "x"}, "Did you mean 'images'"),
        ({"images": str(tmp_path / "d"), "colums": {}}, "Did you mean 'columns'"),
        ({"images": "nowhere"}, "nowhere does not exist"),
        ({"images": 3}, "not the name of a file"),
        ({"videos": str(tmp_path / "d")}, "set the number of frames"),
        ({"images": str(tmp_path / "d"), "split": "train"}, "has no splits"),
        ({"images": str(tmp_path / "d"), "flip": 0.1}, "unknown key 'flip'"),
        ({"images": str(tmp_path / "1.png")}, "is of no known kind"),
    ]:
        with pytest.raises(UserError, match=says):
            read(spec)
    with pytest.raises(UserError, match="clips of 3 frames are wanted"):
        read(tmp_path / "d", shape=CLIP)
    with pytest.raises(ValueError, match=r"layout is 'pair'. Did you mean 'pairs'"):
        read(tmp_path / "d", "pair")
    with pytest.raises(ValueError, match="not both"):
        read(tmp_path / "d", classes=2, text_width=2)


def test_weights_of_sources(tmp_path: Path):
    folder = write(tmp_path, {f"{number}.png": plain(number) for number in range(40)})
    whole = {row.row_id for row in read(folder).rows}
    half = [
        read_pictures([{"images": str(folder), "weight": 0.5}], layout="samples", shape=GREY, classes=0, seed=s)
        for s in (0, 1)
    ]
    assert all(8 < len(found.rows) < 32 and {row.row_id for row in found.rows} < whole for found in half)
    assert half[0].rows != half[1].rows


def test_samples_are_decoded_by_several_threads_while_reading(tmp_path: Path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(pictures, "WORKERS", 2)
    decode = decoding.picture

    def waiting(data: bytes) -> np.ndarray:
        together.wait()  # passes when two are here
        return decode(data)

    monkeypatch.setattr(decoding, "picture", waiting)
    assert len(read(write(tmp_path, {f"{number}.png": plain(number) for number in range(4)})).rows) == 4
