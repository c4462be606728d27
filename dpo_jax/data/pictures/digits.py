"""Handwritten digits: scikit-learn's 1,797, 8 x 8 grey, and clips of one that bounces inside the frame.

The source of clips is `{package: moving-digits, split: train | test, limit: N, jitter: 0.0, seed: 0}`, or with
`pairs: smooth` pairs of the same digit on the same path, smooth chosen and jittered (2 pixels, unless it says)
rejected. `jitter` displaces each frame by up to so many pixels and dims it by up to a half; 0 does neither. Clip i is
of digit i of the split, over and over, and everything about it is a function of (seed, split, i): the source's own
seed, so that it is the same data for every seed of an experiment, and in every version of numpy.

Dimension key: N digits, F frames, H height, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dpo_jax.data.pictures.samples import Held, Shape
from dpo_jax.data.sources.record import Record, Spec, option
from dpo_jax.errors import UserError

TRAIN = 1400
"""How many of the first digits are split train; the others are test."""

KEYS = ("split", "limit", "jitter", "pairs", "seed")

_SIDE = 8  # of a digit, pixels
_SLOWEST, _FASTEST = 0.5, 1.5  # along each axis, pixels a frame where a digit is as large as it is stored
_DIMMEST = 0.5
_MOST = 1 << 32  # clips of a split


@functools.cache
def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [N, 8, 8], 0 to 255, and classes [N] of split train or test."""
    from sklearn.datasets import load_digits

    flat, classes_N = map(np.asarray, load_digits(return_X_y=True))
    part = slice(None, TRAIN) if split == "train" else slice(TRAIN, None)
    pixels_NHW = np.rint(flat[part].reshape(-1, _SIDE, _SIDE) * (255.0 / 16.0)).astype(np.uint8)
    return pixels_NHW, classes_N[part]


class _Clip(NamedTuple):
    """All that decides a clip: the digit, uint8 [8, 8], the key of its random numbers, and how much it jitters."""

    digit_HW: np.ndarray
    seed: int
    number: int
    jitter: float
    shape: Shape

    def frames(self) -> np.ndarray:
        """The clip, uint8 [F, H, W, 1]."""
        frames, height, width, _ = self.shape
        assert frames is not None
        scale = min(height, width) // (2 * _SIDE) or 1
        digit_HW = np.kron(self.digit_HW, np.ones((scale, scale)))
        room_2 = np.array([height, width]) - _SIDE * scale
        start_2, speed_2, sign_2, *jitter = np.split(_uniform(self.seed, self.number, 6 + 3 * frames), [2, 4, 6])
        steps_2 = (_SLOWEST + (_FASTEST - _SLOWEST) * speed_2) * np.where(sign_2 < 0.5, -scale, scale)
        places_F2 = _bounced(start_2 * room_2 + np.arange(frames)[:, None] * steps_2, room_2)
        jitter_F3 = jitter[0].reshape(frames, 3)
        bright_F = np.ones(frames)
        if self.jitter:
            places_F2 = np.clip(places_F2 + (2.0 * jitter_F3[:, :2] - 1.0) * self.jitter, 0.0, room_2)
            bright_F = 1.0 - (1.0 - _DIMMEST) * jitter_F3[:, 2]
        size, each = (height, width), zip(bright_F, places_F2, strict=True)
        drawn = [_drawn(digit_HW * bright, place_2, size) for bright, place_2 in each]
        return np.rint(np.stack(drawn)).astype(np.uint8)[..., None]


def read(spec: Spec, shape: Shape) -> Iterator[Held]:
    """The records of the source: samples, or with `pairs` pairs.

    Raises:
        UserError: an option is wrong, or frames are smaller than a digit or none are wanted.
    """
    split, pairs = option(spec, "split", ("train", "test")), option(spec, "pairs", (None, "smooth"))
    if shape.frames is None or min(shape.height, shape.width) < _SIDE:
        asked = f"{shape.frames} frames of {shape.height} x {shape.width}"
        raise UserError(f"data source {dict(spec)} makes clips of {_SIDE} x {_SIDE} pixels or more, not {asked}.")
    jitter, digits, classes = _jitter(spec, paired=pairs is not None), *read_digits(split)
    limit, seed = _whole(spec, "limit", len(digits), low=1), _whole(spec, "seed", 0, low=0)
    for index in range(limit):
        number = index + (split == "test") * _MOST
        clip = _Clip(digits[index % len(digits)], seed, number, jitter, shape)
        shown = {"class": int(classes[index % len(digits)])}
        if pairs is None:
            cells = {"image": clip.frames}
        else:
            cells = {"chosen": clip._replace(jitter=0.0).frames, "rejected": clip.frames}
        yield Held(Record(f"moving-digits {split} row {index + 1}", {**cells, **shown}), None)


def _jitter(spec: Spec, *, paired: bool) -> float:
    value = spec.get("jitter", 2.0 if paired else 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"data source {dict(spec)}: jitter is {value!r}; it must be pixels, 0 or more.")
    if paired and not value:
        raise UserError(f"data source {dict(spec)}: without jitter both members of a pair are the same clip.")
    return float(value)


def _whole(spec: Spec, key: str, otherwise: int, *, low: int) -> int:
    value = spec.get(key, otherwise)
    if type(value) is not int or not low <= value <= _MOST:
        raise UserError(f"data source {dict(spec)}: {key} is {value!r}; it must be a whole number, {low} or more.")
    return value


def _uniform(seed: int, number: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [count], from raw words, which no version of numpy changes."""
    words = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def _bounced(places_F2: np.ndarray, room_2: np.ndarray) -> np.ndarray:
    """Places on a straight line, reflected into 0 to `room_2`."""
    span_2 = np.maximum(2.0 * room_2, 1.0)  # without room every place is 0
    turned_F2 = np.mod(places_F2, span_2)
    return np.minimum(np.minimum(turned_F2, span_2 - turned_F2), room_2)


def _drawn(digit_HW: np.ndarray, place_2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The digit at a place between pixels, shared out among the four around it; float64 [H, W]."""
    (top, left), (down, right) = np.floor(place_2).astype(int), np.mod(place_2, 1.0)
    height, width = digit_HW.shape
    canvas_HW = np.zeros((size[0] + 1, size[1] + 1))
    for below, share_y in ((0, 1.0 - down), (1, down)):
        for beside, share_x in ((0, 1.0 - right), (1, right)):
            part = canvas_HW[top + below : top + below + height, left + beside : left + beside + width]
            part += share_y * share_x * digit_HW
    return canvas_HW[:-1, :-1]
