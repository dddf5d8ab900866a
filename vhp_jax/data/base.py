"""What every data set looks like once it is loaded."""

from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A data set that cannot be used; one line: what, where, seen, wanted."""


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
      examples: float32 [N, *example], finite; images lie in [0, 1].
      targets: [N] labels or angles that the model never sees, for evaluation only.
    """

    examples: np.ndarray
    targets: np.ndarray


class Dataset(NamedTuple):
    """Training, validation and test split.

    Attributes:
      name: as in the configs.
      target_kind: "angle" (radians) or "label".
      source: where the examples come from, for the first line that a program prints.
      train: examples the model is fitted to.
      validation: examples watched during training.
      test: examples reported at the end.
    """

    name: str
    target_kind: str
    source: str
    train: Split
    validation: Split
    test: Split


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
