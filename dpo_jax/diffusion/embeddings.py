"""The sizes of a diffusion transformer, its patches and their positions, and its embeddings of time and condition.

Dimension key: B samples, F frames, H height, W width, C channels, N patches of a sample, D width of the network, E
width of a text embedding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.diffusion.schedules import STEPS
from dpo_jax.mesh import constrain
from dpo_jax.networks import Linear, matrix, zeros

NORM_EPSILON = 1e-6
_WAVES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """The sizes of a diffusion transformer; all static."""

    channels: int
    patch: int  # pixels along a side
    base: int  # patches along a side of the images that it is trained on; others are seen as if stretched to them
    layers: int
    heads: int
    head_size: int
    mlp_width: int
    frame_patch: int = 1  # frames in a patch; images need 1
    classes: int = 0  # conditioned on one of so many classes
    text_width: int = 0  # conditioned on a text embedding of this width; with neither, on nothing
    learned_sigma: bool = False  # its output has as many channels again, for a variance that our samplers do not use
    mlp_epsilon: float = NORM_EPSILON  # of the norm before the MLP; the other norms have 1e-6

    def __post_init__(self) -> None:
        if self.classes and self.text_width:
            raise ValueError(f"conditioned on {self.classes} classes and on text: choose one")

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.heads * self.head_size

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.learned_sigma else 1)


class Condition(NamedTuple):
    """Conditions of samples: classes, int32 [B], or text embeddings, float [B, E]; and which have no condition."""

    shown_B: jax.Array
    absent_B: jax.Array  # bool


def present(shown_B: jax.Array) -> Condition:
    """Condition of samples that all have one."""
    return Condition(shown_B, jnp.zeros(shown_B.shape[:1], bool))


class TimeEmbedding(nnx.Module):
    """Time as waves, then two linear maps: [B] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.first = Linear(rngs, {None: 2 * _WAVES}, {"mlp": spec.width})
        self.second = Linear(rngs, {"mlp": spec.width}, {"embed": spec.width})

    def __call__(self, time_B: jax.Array, dtype: DTypeLike) -> jax.Array:
        # Published models count their steps from 0.
        steps_B = STEPS * time_B - 1.0
        frequency = np.exp(-np.log(10000.0) * np.arange(_WAVES) / (_WAVES - 1)).astype(np.float32)
        angles = steps_B[:, None] * jnp.asarray(frequency)[None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1).astype(dtype)
        return self.second(jax.nn.silu(self.first(waves)))


class ClassEmbedding(nnx.Module):
    """A row for each class, and one behind them for none: [B] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.classes = spec.classes
        self.table = matrix(rngs, (spec.classes + 1, spec.width), (None, "embed"))

    def __call__(self, condition: Condition, dtype: DTypeLike) -> jax.Array:
        # Gathered over fsdp once; looking up in a split table makes XLA recompute everything.
        table = constrain(self.table[...].astype(dtype), None, None)
        rows_B = jnp.where(condition.absent_B, self.classes, condition.shown_B)
        return jnp.take(table, rows_B, axis=0, mode="fill")  # an unknown class is NaN, never another one


class TextEmbedding(nnx.Module):
    """Two linear maps of an embedding of the whole text; a learned one stands for none: [B, E] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.nothing = zeros((spec.text_width,), (None,))
        self.first = Linear(rngs, {None: spec.text_width}, {"mlp": spec.width})
        self.second = Linear(rngs, {"mlp": spec.width}, {"embed": spec.width})

    def __call__(self, condition: Condition, dtype: DTypeLike) -> jax.Array:
        nothing = self.nothing[...][None]
        text_BE = jnp.where(condition.absent_B[:, None], nothing, condition.shown_B).astype(dtype)
        return self.second(jax.nn.silu(self.first(text_BE)))


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
    place[..., : width // 2] = _sines(columns, width // 2)[None, None]
    place[..., width // 2 :] = _sines(rows, width // 2)[None, :, None]
    frames = _sines(np.arange(grid.frames), width)
    place += (frames - frames[:1])[:, None, None]
    return place.reshape(-1, width).astype(np.float32)


def _sines(places: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines, of waves from 2 pi to 20000 pi long, [places, width]."""
    angles = places[:, None] * 10000.0 ** -(np.arange(width // 2) / (width / 2))[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
