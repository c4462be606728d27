"""Patches of images and clips in one form, and sine-cosine positions for any size.

Dimension key: B samples, F frames, H height, W width, C channels, N patches of a sample, D width of the network.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np


class Grid(NamedTuple):
    """Numbers of patches of a clip along time, height and width."""

    frames: int
    height: int
    width: int


def grid_of(shape: tuple[int, ...], *, patch: int, frame_patch: int) -> Grid:
    """The patches of clips of this shape, [B, F, H, W, C].

    Raises:
        ValueError: patches do not fill it, which the message states.
    """
    frames, height, width = shape[1:4]
    if frames % frame_patch or height % patch or width % patch:
        raise ValueError(
            f"{frames} frames of {height} x {width} cannot be cut into patches of {frame_patch} x {patch} x {patch}"
        )
    return Grid(frames // frame_patch, height // patch, width // patch)


def to_patches(clips_BFHWC: jax.Array, grid: Grid) -> jax.Array:
    """Patches [B, N, channels times the pixels of a patch] of clips: channels first, as a convolution holds them."""
    samples, frames, height, _, channels = clips_BFHWC.shape
    depth, patch = frames // grid.frames, height // grid.height
    cut = clips_BFHWC.reshape(samples, grid.frames, depth, grid.height, patch, grid.width, patch, channels)
    cut = cut.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return cut.reshape(samples, grid.frames * grid.height * grid.width, channels * depth * patch * patch)


def from_patches(patches_BNX: jax.Array, grid: Grid, *, patch: int, frame_patch: int) -> jax.Array:
    """Clips [B, F, H, W, C] from patches whose channels come last, as the published models give them."""
    samples = patches_BNX.shape[0]
    cut = patches_BNX.reshape(samples, *grid, frame_patch, patch, patch, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    sizes = (grid.frames * frame_patch, grid.height * patch, grid.width * patch)
    return cut.reshape(samples, *sizes, -1)


def positions(grid: Grid, *, width: int, base: int) -> np.ndarray:
    """Embeddings of places, added to the patches, float32 [N, D]: half is the place in the row, half the row.

    Rows and columns are counted as if there were `base` of each, so that an image of another size, or of another shape,
    looks like the one that the network has learned. Frames after the first add to it what tells them from the first:
    an image is a clip of one frame, and what is learned from images is true of clips.

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width is {width}; sine and cosine of rows and columns take a multiple of 4")
    rows, columns = (np.arange(count) * (base / count) for count in (grid.height, grid.width))
    place = np.zeros((*grid, width))
    place[..., : width // 2] = _waves(columns, width // 2)[None, None]
    place[..., width // 2 :] = _waves(rows, width // 2)[None, :, None]
    frames = _waves(np.arange(grid.frames), width)
    place += (frames - frames[:1])[:, None, None]
    return place.reshape(-1, width).astype(np.float32)


def _waves(places: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines, of waves from 2 pi to 20000 pi long, [places, width]."""
    angles = places[:, None] * 10000.0 ** -(np.arange(width // 2) / (width / 2))[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
