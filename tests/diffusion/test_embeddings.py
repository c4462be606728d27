"""Patches there and back, and positions by the formula of the published models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.embeddings import Grid, from_patches, grid_of, positions, to_patches

CLIPS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 10, 3)), jnp.float32)
CUT = {"patch": 2, "frame_patch": 2}


def test_a_patch_is_what_a_convolution_sees():
    """A convolution whose stride is its size, in the layout [out, in, frames, height, width]."""
    grid = grid_of(CLIPS.shape, **CUT)
    assert grid == Grid(2, 3, 5)
    kernel = np.random.default_rng(1).normal(size=(7, 3, 2, 2, 2)).astype(np.float32)
    wanted = jax.lax.conv_general_dilated(
        CLIPS, jnp.asarray(kernel), (2, 2, 2), "VALID", dimension_numbers=("NDHWC", "OIDHW", "NDHWC")
    )
    found = to_patches(CLIPS, grid) @ kernel.reshape(7, -1).T
    np.testing.assert_allclose(found, wanted.reshape(2, -1, 7), atol=1e-4)


def test_patches_with_channels_last_become_the_clip():
    grid = grid_of(CLIPS.shape, **CUT)
    patches = to_patches(CLIPS, grid).reshape(2, 30, 3, 8).transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(from_patches(patches, grid, **CUT), CLIPS)


def test_positions_by_hand():
    """Width 4: sine and cosine of the column, then of the row; a wide image is seen as one of the base size."""
    found = positions(Grid(1, 2, 4), width=4, base=2).reshape(2, 4, 4)
    for row in range(2):
        for place in range(4):
            column = place / 2
            wanted = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
            np.testing.assert_allclose(found[row, place], wanted, rtol=1e-6)


def test_slow_waves():
    found = positions(Grid(1, 1, 3), width=16, base=3)[2, :8]  # the second half is of the row
    angles = 2 * 10000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)]), rtol=1e-6)


def test_frames_add_to_the_first_one():
    clip = positions(Grid(3, 2, 2), width=8, base=2).reshape(3, 4, 8)
    np.testing.assert_array_equal(clip[0], positions(Grid(1, 2, 2), width=8, base=2))
    frame = np.sin(2.0) - np.sin(0.0)
    np.testing.assert_allclose(clip[2, :, 0] - clip[0, :, 0], frame, rtol=1e-6)
    different = clip.reshape(12, 8)
    assert min(np.abs(different[i] - different[j]).max() for i in range(12) for j in range(i)) > 0.1


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="4 frames of 6 x 10 cannot be cut into patches of 1 x 4 x 4"):
        grid_of(CLIPS.shape, patch=4, frame_patch=1)
    with pytest.raises(ValueError, match="4 frames of 6 x 10 cannot be cut into patches of 3 x 2 x 2"):
        grid_of(CLIPS.shape, patch=2, frame_patch=3)
    with pytest.raises(ValueError, match="width is 6"):
        positions(Grid(1, 2, 2), width=6, base=2)
