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
    """Grey images, [N, H, W]."""

    def __init__(self, height: int, width: int):
        self._size = height, width

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Drops an axis of one channel."""
        return np.asarray(flat).reshape(-1, *self._size)

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


class Colours(Images):
    """Colour images, [N, H, W, C] drawn by their brightness, [N, H, W]."""

    def __init__(self, height: int, width: int, channels: int):
        super().__init__(height, width)
        self._channels = channels

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Mean of the channels."""
        pixels = np.asarray(flat).reshape(-1, self._channels)
        return super().frames(pixels.mean(axis=1))


class Rows(Images):
    """Rows of standardised numbers as bar codes, 3 deviations below 0 to 3 above."""

    def __init__(self, width: int):
        super().__init__(max(1, width // 4), width)

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """Each row as high as a quarter of its width."""
        height, width = self._size
        rows = np.asarray(flat).reshape(-1, 1, width) / 6.0 + 0.5
        return np.repeat(rows, height, axis=1)


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
    shape = dataset.train.examples.shape[1:]
    if len(shape) == 1:
        return Rows(*shape)
    height, width, *channels = shape
    if channels and channels[0] > 1:
        return Colours(height, width, channels[0])
    return Images(height, width)
