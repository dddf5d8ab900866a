"""What every data set looks like once it is loaded."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A data set that cannot be used; one line: what, where, seen, wanted."""


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
      examples: float32 [N, *example], finite; images lie in [0, 1].
      targets: [N] labels or angles that the model never sees, for evaluation only;
        int64 zeros where the data set has neither.
    """

    examples: np.ndarray
    targets: np.ndarray


class Standardisation(NamedTuple):
    """x -> (x - mean) / scale, from the units of the data to those of the model.

    Attributes:
      mean: float64, of the shape of an example.
      scale: float64, of the shape of an example, above 0.
    """

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, examples: np.ndarray) -> np.ndarray:
        """Examples [N, *example] in the units of the model, float32."""
        scaled = (np.asarray(examples, np.float64) - self.mean) / self.scale
        return scaled.astype(np.float32)

    def invert(self, examples: np.ndarray) -> np.ndarray:
        """Examples [N, *example] in the units of the data, float32."""
        own = np.asarray(examples, np.float64) * self.scale + self.mean
        return own.astype(np.float32)


class Motion(NamedTuple):
    """How the examples of a motion data set are read as bodies.

    Attributes:
      joints: for each joint that moves, the columns of its angles in an example.
      points: names of the points of a body, [P].
      parents: int [P], the point that each one hangs on; -1 for the root.
      poses: examples [N, D] -> positions of the points, float64 [N, P, 3] in units of
        the skeleton, y up, the root at a fixed place and turned one fixed way.
    """

    joints: Mapping[str, tuple[int, ...]]
    points: tuple[str, ...]
    parents: np.ndarray
    poses: Callable[[np.ndarray], np.ndarray]


class Dataset(NamedTuple):
    """Training, validation and test split.

    Attributes:
      name: as in the configs.
      target_kind: "angle" (radians, of a full circle), "view" (radians, of the camera
        or the turned shape, among other degrees of freedom), "label" (int64 from 0) or
        "none".
      source: where the examples come from, for the first line that a program prints.
      train: examples the model is fitted to.
      validation: examples watched during training.
      test: examples reported at the end.
      dynamic: train holds Bernoulli means of which each training step draws binary
        images anew; validation and test were drawn once with a fixed seed.
      label_names: what the labels 0, 1, ... stand for; empty where they are digits or
        there are none.
      standardisation: of the examples, by the training split alone; None where they are
        as the files have them. Kept in checkpoints.
      motion: how to draw examples that are frames of a motion; None for images.
      digest: SHA-256 of all examples and labels as the files have them, where these
        are the user's own; None where they are known by their checksums or made here.
    """

    name: str
    target_kind: str
    source: str
    train: Split
    validation: Split
    test: Split
    dynamic: bool = False
    label_names: tuple[str, ...] = ()
    standardisation: Standardisation | None = None
    motion: Motion | None = None
    digest: str | None = None

    def own_units(self, examples: np.ndarray) -> np.ndarray:
        """Examples [N, *example] before they were standardised; images in [0, 1]."""
        units = self.standardisation
        return examples if units is None else units.invert(examples)

    def measured(self, name: str) -> Split:
        """A split as it is measured: images, also where it holds Bernoulli means.

        Args:
          name: "train", "validation" or "test".

        Returns:
          The split; of the training split of a dynamic set one draw with a fixed seed.
        """
        split: Split = getattr(self, name)
        if name != "train" or not self.dynamic:
            return split
        # The first two streams are those of `bernoulli_dataset`.
        *_, generator = np.random.default_rng(0).spawn(3)
        return split._replace(examples=binarise(split.examples, generator))


def check_images(name: str, examples: np.ndarray) -> None:
    """Raises DataError at the first value that is not finite or not in [0, 1]."""
    flat = examples.reshape(len(examples), -1)
    # NaN fails every comparison, so that one test finds all three faults.
    bad = ~((flat >= 0.0) & (flat <= 1.0))
    if bad.any():
        index = int(np.argmax(bad.any(axis=1)))
        value = flat[index][bad[index]][0]
        raise DataError(
            f"{name}: example {index} holds {value}, wanted finite values in [0, 1]"
        )


def binarise(means: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draws one binary image per image of Bernoulli means.

    Args:
      means: float [N, *example] in [0, 1]; a mean of 0 or 1 is never missed.
      generator: is moved on by one float32 a pixel.

    Returns:
      float32 [N, *example], each value exactly 0 or 1.
    """
    uniform = generator.random(means.shape, np.float32)  # [0, 1)
    return (uniform < means).astype(np.float32)


def bernoulli_dataset(
    name: str,
    source: str,
    splits: dict[str, Split],
    values: str = "dynamic",
    seed: int = 0,
) -> Dataset:
    """Makes a data set of grey images, read as Bernoulli means.

    Args:
      name: as in the configs.
      source: where the images come from.
      splits: train, validation and test, each with grey images in [0, 1].
      values: "dynamic" leaves the means of the training images to be drawn anew in
        each step and draws validation and test here, once; "grey" leaves all means.
      seed: of these draws; each split has its own stream, so that the size of one does
        not change the others.

    Returns:
      The data set; its targets are labels.

    Raises:
      ValueError: `values` is neither of the two, or `seed` is negative.
    """
    if values not in ("dynamic", "grey"):
        raise ValueError(f"values must be 'dynamic' or 'grey', got {values!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if values == "grey":
        parts = (splits["train"], splits["validation"], splits["test"])
        return Dataset(name, "label", f"{source}; grey values", *parts)
    for_validation, for_test = np.random.default_rng(seed).spawn(2)

    def draw(split: Split, stream: np.random.Generator) -> Split:
        return Split(binarise(split.examples, stream), split.targets)

    return Dataset(
        name,
        "label",
        f"{source}; validation and test binarised with seed {seed}",
        splits["train"],
        draw(splits["validation"], for_validation),
        draw(splits["test"], for_test),
        dynamic=True,
    )
