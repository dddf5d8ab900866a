"""How decoded examples are drawn: as images, or as bodies in motion."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from vhp_jax import plotting
from vhp_jax.data import Dataset, Motion


class View(Protocol):
    """What every kind of example can be drawn as."""

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Flattened examples [N, D] in the shape that is drawn, [N, ...]."""

    def grid(
        self, frames: np.ndarray, title: str = "", columns: int | None = None
    ) -> Figure:
        """Frames row by row."""

    def strips(
        self, strips: Mapping[str, np.ndarray], jumps: Mapping[str, np.ndarray]
    ) -> Figure:
        """Paths, a row each, jumps boxed."""


class Images:
    """Images in [0, 1], [N, H, W] grey or [N, H, W, 3] in colour.

    Args:
      shape: of an example.
      gain: of the affine map from the model's values to [0, 1].
      offset: of it; both scalars or of the shape of an example.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        gain: np.ndarray | float = 1.0,
        offset: np.ndarray | float = 0.0,
    ):
        self._shape, self._gain, self._offset = shape, gain, offset

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Further axes that are not red, green and blue as their mean."""
        values = np.asarray(flat).reshape(-1, *self._shape)
        values = values * self._gain + self._offset
        if values.shape[3:] in ((), (3,)):
            return values
        return values.mean(axis=tuple(range(3, values.ndim)))

    def grid(
        self, frames: np.ndarray, title: str = "", columns: int | None = None
    ) -> Figure:
        """Images row by row."""
        return plotting.plot_image_grid(np.clip(frames, 0.0, 1.0), title, columns)

    def strips(
        self, strips: Mapping[str, np.ndarray], jumps: Mapping[str, np.ndarray]
    ) -> Figure:
        """Figs. 4, 9 and 10."""
        clipped = {name: np.clip(frames, 0.0, 1.0) for name, frames in strips.items()}
        return plotting.plot_strips(clipped, jumps)


class Rows(Images):
    """Rows of numbers as bar codes a quarter as high as wide."""

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Each row as often as the bar code is high."""
        rows = super().frames(flat)[:, None]
        return np.repeat(rows, max(1, rows.shape[2] // 4), axis=1)


class Bodies:
    """Stick figures, [N, P, 3]."""

    def __init__(self, motion: Motion):
        self._poses = motion.poses
        self.skeleton = plotting.Skeleton(motion.points, motion.parents)

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Positions of the points of each body."""
        return self._poses(np.asarray(flat))

    def grid(
        self, frames: np.ndarray, title: str = "", columns: int | None = None
    ) -> Figure:
        """Bodies row by row."""
        return plotting.plot_pose_grid(frames, self.skeleton, title, columns)

    def strips(
        self, strips: Mapping[str, np.ndarray], jumps: Mapping[str, np.ndarray]
    ) -> Figure:
        """Figs. 7 and 19."""
        return plotting.plot_pose_strips(strips, jumps, self.skeleton)


def view(dataset: Dataset) -> View:
    """The view that fits a data set."""
    if dataset.motion is not None:
        return Bodies(dataset.motion)
    examples, units = dataset.train.examples, dataset.standardisation
    shape = examples.shape[1:]
    if len(shape) == 1:  # if standardised, 3 deviations below 0 to 3 above
        return Rows(shape) if units is None else Rows(shape, 1.0 / 6.0, 0.5)
    if units is None:
        return Images(shape)
    # Of all training images the darkest pixel is black, the brightest white.
    ends = units.invert(np.stack([examples.min(axis=0), examples.max(axis=0)]))
    low, width = ends.min(), np.ptp(ends)
    return Images(shape, units.scale / width, (units.mean - low) / width)
