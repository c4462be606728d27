"""Scikit-learn's 1,797 handwritten digits, 8 x 8 grey; they come with the library.

Dimension key: N digits, H height, W width.
"""

from __future__ import annotations

import functools

import numpy as np

TRAIN = 1400
"""How many of the first are split train; the others are test."""


@functools.cache
def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [N, 8, 8], 0 to 255, and classes [N] of split train or test."""
    from sklearn.datasets import load_digits

    flat, classes_N = map(np.asarray, load_digits(return_X_y=True))
    part = slice(None, TRAIN) if split == "train" else slice(TRAIN, None)
    pixels_NHW = np.rint(flat[part].reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    return pixels_NHW, classes_N[part]
