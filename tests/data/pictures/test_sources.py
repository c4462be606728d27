"""Sources of pictures and clips: what they hold, what is refused, and by which name."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dpo_jax.data.pictures import Pictures, Shape, read_pictures
from dpo_jax.errors import UserError

SMALL = Shape(None, 4, 4, 3)
GREY = Shape(None, 4, 4, 1)
CLIP = Shape(3, 4, 4, 3)


def picture(value: int | tuple[int, ...], *, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png(value: int) -> bytes:
    return as_bytes(picture((value, value, value)))


def array(value: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, value)
    return sink.getvalue()


def table(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return {"images": str(path)}


def read(spec: dict[str, Any], **options: Any) -> Pictures:
    return read_pictures([spec], **{"layout": "pairs", "shape": SMALL, "classes": 0, **options})


def one(data: bytes, tmp_path: Path, shape: Shape = SMALL, key: str = "images") -> np.ndarray:
    source = table(tmp_path / "one.parquet", [{"image": data}])
    found = read({key: source["images"]}, layout="samples", shape=shape)
    return found.rows[0].samples[0]()


def test_folders_are_classes(tmp_path: Path) -> None:
    for label, value in (("shirt", 10), ("boot", 200), ("coat", 90)):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(png(value))
    (tmp_path / "coat" / ".hidden.png").write_bytes(b"")
    rows = read({"images": str(tmp_path)}, layout="samples", classes=3).rows
    assert [(row.shown, int(row.samples[0]()[0, 0, 0])) for row in rows] == [(0, 200), (1, 90), (2, 10)]
    with pytest.raises(UserError, match="whole number from 0 to 1"):
        read({"images": str(tmp_path)}, layout="samples", classes=2)


def test_pairs_of_bytes_and_of_dictionaries(tmp_path: Path) -> None:
    rows = [{"chosen": {"bytes": png(9), "path": None}, "rejected": {"bytes": png(8), "path": "x.png"}, "weight": 0.5}]
    (row,) = read(table(tmp_path / "p.parquet", rows)).rows
    assert [int(sample().mean()) for sample in row.samples] == [9, 8] and row.weight == 0.5


def test_label_is_the_number_of_the_preferred_one(tmp_path: Path) -> None:
    labels = [0, 1, 0.5, 1.0]
    rows = [{"image_0": png(10 + n), "image_1": png(20 + n), "label": float(label)} for n, label in enumerate(labels)]
    found = read(table(tmp_path / "p.parquet", rows))
    assert [int(row.samples[0]().mean()) for row in found.rows] == [10, 21, 23] and found.ties == 1


def test_label_0_is_the_share_for_the_first_as_in_pick_a_pic(tmp_path: Path) -> None:
    rows = [
        {"jpg_0": png(10 + n), "jpg_1": png(20 + n), "label_0": share} for n, share in enumerate([1.0, 0.0, 0.5, 0.7])
    ]
    found = read(table(tmp_path / "p.parquet", rows))
    assert [int(row.samples[0]().mean()) for row in found.rows] == [10, 21, 13] and found.ties == 1


def test_unpaired_and_labelled(tmp_path: Path) -> None:
    pairs = table(tmp_path / "p.parquet", [{"chosen": png(9), "rejected": png(8)}])
    rows = read({**pairs, "unpair": True}, layout="labelled").rows
    assert [(int(row.samples[0]().mean()), row.desirable) for row in rows] == [(9, True), (8, False)]
    with pytest.raises(UserError, match="write unpair: true"):
        read(pairs, layout="labelled")
    labelled = table(tmp_path / "l.parquet", [{"image": png(9), "desirable": False}])
    assert read(labelled, layout="labelled").rows[0].desirable is False
    flipped = read({**labelled, "flip": 1.0}, layout="labelled").rows
    assert flipped[0].desirable is True


def test_embeddings(tmp_path: Path) -> None:
    source = table(tmp_path / "p.parquet", [{"image": png(9), "embedding": [0.5, -1.0]}])
    (row,) = read(source, layout="samples", text_width=2).rows
    np.testing.assert_array_equal(np.asarray(row.shown), [0.5, -1.0])
    with pytest.raises(UserError, match="not a list of 3 finite numbers"):
        read(source, layout="samples", text_width=3)


def test_ids_are_of_pixels_not_of_names(tmp_path: Path) -> None:
    for folder, name in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").write_bytes(png(7))
    first, second = (read({"images": str(tmp_path / each)}, layout="samples").rows[0].row_id for each in "ab")
    assert first == second and len(first) == 32
    (tmp_path / "b/y.png").write_bytes(png(8))
    assert read({"images": str(tmp_path / "b")}, layout="samples").rows[0].row_id != first
    source = table(tmp_path / "p.parquet", [{"image": png(7), "class": 1}])
    assert read(source, layout="samples", classes=2).rows[0].row_id != first


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (picture(77, mode="L"), (77, 77, 77)),
        (picture((0, 0, 0, 0), mode="RGBA"), (255, 255, 255)),
        (picture((200, 0, 0, 255), mode="RGBA"), (200, 0, 0)),
        (picture((200, 100, 50)).quantize(2), (200, 100, 50)),
        (picture(1, mode="1"), (255, 255, 255)),
    ],
)
def test_modes_become_colours(image: Image.Image, wanted: tuple[int, ...], tmp_path: Path) -> None:
    found = one(as_bytes(image), tmp_path)
    assert found.shape == (4, 4, 3) and found.dtype == np.uint8 and tuple(found[1, 2]) == wanted


def test_colours_become_grey(tmp_path: Path) -> None:
    found = one(as_bytes(picture((255, 0, 0))), tmp_path, GREY)
    assert found.shape == (4, 4, 1) and found[0, 0, 0] == 76  # 0.299 of 255


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    image = picture(0, size=(4, 4), mode="L")
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    found = one(as_bytes(image, "PNG", exif=exif), tmp_path, GREY)
    assert np.argwhere(found[..., 0] > 128).tolist() == [[0, 3]]


def test_the_middle_is_kept_and_resized(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 200  # the middle square
    assert (one(as_bytes(Image.fromarray(pixels)), tmp_path, GREY) == 200).all()


BAD = {
    "renamed": b"this is text, whatever its name says",
    "truncated": png(3)[:40],
    "empty": b"",
    "cut": as_bytes(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:3000],
}


def claims(side: int) -> bytes:
    """A PNG whose head claims to be a square of this side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0" * 40


@pytest.mark.parametrize("name", [*BAD, "bomb"])
def test_what_cannot_be_decoded_is_named_or_counted(name: str, tmp_path: Path) -> None:
    bad = claims(100_000) if name == "bomb" else BAD[name]
    rows = [{"chosen": png(1), "rejected": png(2)}, {"chosen": png(1), "rejected": bad}]
    source = table(tmp_path / "p.parquet", rows)
    with pytest.raises(UserError, match=r"p\.parquet.*row 2.*column 'rejected'"):
        read(source)
    found = read(source, on_error="skip")
    assert len(found.rows) == 1 and sum(found.skipped.values()) == 1


def test_equal_members_prefer_nothing(tmp_path: Path) -> None:
    source = table(tmp_path / "p.parquet", [{"chosen": png(1), "rejected": png(1)}])
    with pytest.raises(UserError, match="same pixels"):
        read(source)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "secret\0.png"])
def test_no_path_leaves_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(5))
    inside = tmp_path / "data"
    (inside / "a").mkdir(parents=True)
    (inside / "rows.jsonl").write_text(json.dumps({"image": name}))
    with pytest.raises(UserError, match="not below"):
        read({"images": str(inside / "rows.jsonl")}, layout="samples")


def test_a_file_that_changes_later_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    (row,) = read({"images": str(tmp_path)}, layout="samples").rows
    (tmp_path / "a.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"a\.png"):
        row.samples[0]()


def frames(count: int = 4) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), 40 * number, np.uint8) for number in range(count)])


def mp4(pixels: np.ndarray) -> bytes:
    av = pytest.importorskip("av")
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def gif(pixels: np.ndarray) -> bytes:
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    return as_bytes(first, "GIF", save_all=True, append_images=rest)


def npz(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, pixels)
    return sink.getvalue()


@pytest.mark.parametrize("encode", [array, npz, gif])
def test_clips(encode: Any, tmp_path: Path) -> None:
    found = one(encode(frames()), tmp_path, CLIP, "videos")
    np.testing.assert_array_equal(found, frames()[:3])
    np.testing.assert_array_equal(one(array(frames()[..., 0]), tmp_path, CLIP, "videos"), frames()[:3])
    with pytest.raises(UserError, match="2 frames; 3 are wanted"):
        one(encode(frames(2)), tmp_path, CLIP, "videos")


def test_films(tmp_path: Path) -> None:
    pixels = np.stack([np.full((32, 32, 3), 60 * number, np.uint8) for number in range(4)])
    found = one(mp4(pixels), tmp_path, CLIP, "videos")
    assert found.shape == (3, 4, 4, 3)
    assert np.abs(found.astype(int) - pixels[:3, :4, :4]).max() < 8  # the codec loses a little
    with pytest.raises(UserError, match=r"cannot be decoded|no pictures"):
        one(mp4(pixels)[:200], tmp_path, CLIP, "videos")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (array(np.array([{"a": 1}], object)), "never a pickle"),
        (array(np.zeros((3, 4, 4, 3), np.float32)), "only uint8"),
        (array(np.zeros((3, 4), np.uint8)), "its shape is"),
        (array(np.zeros((3, 4, 4, 3), np.uint8))[:-7], "does not fit"),
        (b"\x93NUMPY\x01\x00", "head of the array"),
        (png(4), "is none of"),
    ],
)
def test_arrays_that_are_refused(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        one(data, tmp_path, CLIP, "videos")


def test_pictures_are_no_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="read it as videos"):
        one(gif(frames()), tmp_path)
    source = table(tmp_path / "p.parquet", [{"image": png(1)}])
    with pytest.raises(UserError, match="clips of 3 frames are wanted"):
        read(source, layout="samples", shape=CLIP)
    with pytest.raises(UserError, match="set the number of frames"):
        read({"videos": source["images"]}, layout="samples")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"images": "nowhere"}, "does not exist"),
        ({"pictures": "x"}, "unknown key 'pictures'"),
        ({"package": "fashion"}, "unknown package 'fashion'"),
        ({"package": "digits", "limit": 0}, "limit is 0"),
        ({"package": "digits", "split": "valid"}, "valid"),
        ({"package": "digits", "weigth": 2}, "weigth"),
    ],
)
def test_sources_that_cannot_be(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(spec, layout="samples", shape=GREY)


def test_digits_by_value() -> None:
    from sklearn.datasets import load_digits

    rows = read({"package": "digits", "split": "test"}, layout="samples", shape=Shape(None, 8, 8, 1), classes=10).rows
    images, labels = load_digits(return_X_y=True)
    assert len(rows) == 397 and [row.shown for row in rows[:9]] == labels[1400:1409].tolist()
    np.testing.assert_array_equal(rows[3].samples[0]()[..., 0], np.rint(images[1403].reshape(8, 8) * 255 / 16))


def test_moving_digits_are_smooth_or_jitter(tmp_path: Path) -> None:
    shape = Shape(6, 16, 16, 1)
    found = read({"package": "moving-digits", "pairs": "smooth", "limit": 20}, shape=shape, classes=10)
    light = [[sample().astype(float).sum(axis=(1, 2, 3)) for sample in row.samples] for row in found.rows]
    spread = np.array([[(each.std() / each.mean()) for each in pair] for pair in light])
    assert (spread[:, 0] < 0.02).all() and (spread[:, 1] > 0.05).all()
    again = read({"package": "moving-digits", "pairs": "smooth", "limit": 20}, shape=shape, classes=10, seed=5)
    assert [row.row_id for row in again.rows] == [row.row_id for row in found.rows]
    other = read({"package": "moving-digits", "pairs": "smooth", "limit": 20, "seed": 1}, shape=shape, classes=10)
    assert not {row.row_id for row in other.rows} & {row.row_id for row in found.rows}


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.chdir(tmp_path)
    spec = {"package": "fashion-mnist", "split": "test"}
    folder = tmp_path / ".data/fashion-mnist"
    monkeypatch.setattr("dpo_jax.data.pictures.packages.FASHION_MNIST", (folder,))
    with pytest.raises(UserError, match=r"bash launch/fashion_mnist\.sh"):
        read(spec, layout="samples", shape=Shape(None, 28, 28, 1), classes=10)
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, 5, 28, 28) + pixels.tobytes()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes([3, 1, 4, 1, 5]))
    rows = read(spec, layout="samples", shape=Shape(None, 28, 28, 1), classes=10).rows
    assert [row.shown for row in rows] == [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(rows[2].samples[0]()[..., 0], pixels[2])
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images[:-1]))
    with pytest.raises(UserError, match="is damaged"):
        read(spec, layout="samples", shape=Shape(None, 28, 28, 1), classes=10)
