"""Fashion-MNIST, handwritten digits, and clips of moving ones, by value."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.data.pictures import packages
from dpo_jax.data.pictures.samples import Shape
from dpo_jax.errors import UserError
from tests.data.pictures.conftest import GREY, idx, read, write

CLIPS = Shape(6, 16, 20, 1)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch) -> Path:
    """A folder where Fashion-MNIST is looked for: five pictures of 4 x 4."""
    monkeypatch.setattr(packages, "FASHION_MNIST", (tmp_path / "nowhere", tmp_path / "fashion"))
    pixels = np.arange(80, dtype=np.uint8).reshape(5, 4, 4)
    classes = np.array([9, 0, 3, 3, 1], np.uint8)
    names = {"train-images-idx3-ubyte.gz": gzip.compress(idx(pixels)), "train-labels-idx1-ubyte": idx(classes)}
    return write(tmp_path / "fashion", names)


def test_fashion_mnist(fashion: Path):
    rows = read({"package": "fashion-mnist", "split": "train", "limit": 3}, classes=10).rows
    assert rows[1].samples[0]()[..., 0].tolist() == np.arange(16, 32).reshape(4, 4).tolist()
    assert rows[1].where == "fashion-mnist train row 2"
    assert len(read({"package": "fashion-mnist"}, classes=10).rows) == 5


def test_fashion_mnist_that_is_missing_or_damaged(fashion: Path):
    with pytest.raises(UserError, match=r"looked in .*nowhere and .*fashion. Fetch it: bash launch/fashion_mnist\.sh"):
        read({"package": "fashion-mnist", "split": "test"}, classes=10)
    images = fashion / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for damaged, says in [
        (gzip.compress(gzip.decompress(whole)[:-1]), "is damaged"),
        (gzip.compress(b"text"), "is damaged"),
    ]:
        images.write_bytes(damaged)
        with pytest.raises(UserError, match=says):
            read({"package": "fashion-mnist"}, classes=10)
    (fashion / "train-labels-idx1-ubyte").unlink()
    images.write_bytes(whole)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte, or the same with \.gz, is missing"):
        read({"package": "fashion-mnist"}, classes=10)


def test_digits():
    shape = Shape(None, 8, 8, 1)
    train, test = (
        read({"package": "digits", "split": split}, shape=shape, classes=10).rows for split in ("train", "test")
    )
    assert (len(train), len(test)) == (1400, 397)
    first_row = np.array([0, 0, 5, 13, 9, 1, 0, 0])  # of 16, as scikit-learn has it
    assert train[0].shown == 0 and (train[0].samples[0]()[0, :, 0] == np.rint(first_row * 255 / 16)).all()
    assert [row.shown for row in test[:5]] == [2, 8, 2, 2, 5]
    assert max(row.samples[0]().max() for row in train) == 255
    assert not {row.row_id for row in train} & {row.row_id for row in test}


def moving(layout: str = "samples", **options):
    return read({"package": "moving-digits", **options}, layout, shape=CLIPS, classes=10).rows


def test_moving_digits_are_the_same_everywhere():
    """A digest of pixels: other words, another path or another rounding would change it."""
    pairs = moving("pairs", pairs="smooth", limit=3, seed=5)
    assert [row.row_id for row in pairs] == IDS
    assert [row.shown for row in pairs] == [0, 1, 2]
    assert moving(limit=2, seed=5)[0].samples[0]().tolist() == pairs[0].samples[0]().tolist()
    assert moving(limit=2, seed=5, jitter=2)[1].samples[0]().tolist() == pairs[1].samples[1]().tolist()
    several = [moving(limit=1, seed=6), moving(limit=1, seed=5), moving(limit=1, seed=5, split="test")]
    assert len({rows[0].row_id for rows in several}) == 3
    assert len(moving()) == 1400 and moving(limit=1401)[1400].shown == 0  # the first digit again, on another path


IDS = ["b465cedaceb2311498ae653ea23d2519", "5dfdea6e41b0841a2fea76dac72a59b3", "891e1c03d202f449678c3e9f5cfca27a"]


def centres(clip: np.ndarray) -> np.ndarray:
    """The centre of brightness of each frame, [F, 2] pixels."""
    weights = clip[..., 0] / clip.sum(axis=(1, 2, 3))[:, None, None]
    places = np.indices(clip.shape[1:3])
    return np.einsum("fhw,chw->fc", weights, places)


def test_each_split_has_paths_of_its_own():
    clips = [moving(limit=1, split=split)[0].samples[0]() for split in ("train", "test")]
    steps = [np.diff(centres(clip), axis=0) for clip in clips]
    assert np.abs(steps[0] - steps[1]).max() > 0.1  # pixels


def test_a_smooth_digit_moves_straight_on_and_a_jittered_one_does_not():
    for pair in moving("pairs", pairs="smooth", limit=20, jitter=2.0):
        smooth, jittered = (sample() for sample in pair.samples)
        bright = smooth.astype(int).sum(axis=(1, 2, 3))
        assert np.ptp(bright) < 0.02 * bright[0]  # nothing leaves the frame, nothing flickers
        speed = np.abs(np.diff(centres(smooth), axis=0))
        free = np.abs(np.diff(speed, axis=0)).max(axis=1) < 0.05  # but where it bounces
        assert free.sum() >= 1 and (speed <= 1.6).all()
        apart = np.abs(centres(jittered) - centres(smooth))
        assert apart.max() <= 2.05 and apart.max() > 0.2
        dimmed = jittered.astype(int).sum(axis=(1, 2, 3)) / bright
        assert np.ptp(dimmed) > 0.1 and dimmed.min() > 0.48 and dimmed.max() < 1.02


@pytest.mark.parametrize(
    "spec",
    [
        {"package": "digit"},
        {"package": "digits", "jitter": 1},
        {"package": "digits", "limit": 1401},
        {"package": "digits", "split": "eval"},
        {"package": "digits", "limit": 0},
    ],
)
def test_bad_requests_for_pictures(spec):
    with pytest.raises(UserError, match="Allowed: "):
        read(spec, classes=10)


@pytest.mark.parametrize(
    "options", [{"jitter": -1}, {"jitter": "much"}, {"seed": -1}, {"limit": 0}, {"pairs": "rough"}]
)
def test_bad_requests_for_clips(options):
    with pytest.raises(UserError, match=r"must be|Allowed: "):
        moving(**options)


def test_shapes_that_a_package_cannot_have():
    with pytest.raises(UserError, match="without jitter"):
        moving("pairs", pairs="smooth", jitter=0)
    with pytest.raises(UserError, match="8 x 8 pixels or more, not None frames of 4 x 4"):
        read({"package": "moving-digits"}, shape=GREY, classes=10)
    with pytest.raises(UserError, match="is of pictures, but clips of 6"):
        read({"package": "digits"}, shape=CLIPS, classes=10)
    with pytest.raises(UserError, match="no column 'image'"):
        moving(pairs="smooth")
    tiny = read({"package": "moving-digits", "limit": 1}, shape=Shape(2, 8, 8, 1), classes=10).rows[0].samples[0]()
    assert tiny[0].tolist() == tiny[1].tolist()  # it has no room to move
