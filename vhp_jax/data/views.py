"""Makes data sets of images that show several views of each of many shapes."""

import numpy as np

from vhp_jax.data.base import Dataset, Split


def check_counts(least: dict[str, int], counts: dict[str, int]) -> None:
    """Raises ValueError at the first count that is less than it must be.

    Args:
      least: by name.
      counts: by the same names.
    """
    for name, bound in least.items():
        if counts[name] < bound:
            raise ValueError(f"{name} must be at least {bound}, got {counts[name]}")


def check_splits(
    kind: str, num_shapes: int, num_validation: int, num_test: int
) -> None:
    """Raises ValueError where the splits leave no shape to train on.

    Args:
      kind: the name of the number of shapes.
      num_shapes: of all splits.
      num_validation: shapes of the validation split.
      num_test: shapes of the test split.
    """
    least = dict.fromkeys((kind, "num_validation", "num_test"), 1)
    counts = {kind: num_shapes, "num_validation": num_validation, "num_test": num_test}
    check_counts(least, counts)
    if num_validation + num_test >= num_shapes:
        raise ValueError(
            f"num_validation + num_test must be less than {kind}, got {num_validation} "
            f"+ {num_test} and {num_shapes}"
        )


def dataset(
    name: str,
    source: str,
    images: np.ndarray,
    angles: np.ndarray,
    num_validation: int,
    num_test: int,
) -> Dataset:
    """Splits views by shape, in the order that they are in: the last are for the test.

    Args:
      name: as in the configs.
      source: where the images come from.
      images: uint8 [S, K, H, W], K views of S shapes.
      angles: float64 [K] that the views are seen under, radians.
      num_validation: shapes of the validation split.
      num_test: shapes of the test split.

    Returns:
      Examples float32 [N, H, W, 1], multiples of 1/255 in [0, 1], and targets float64
      [N]: all views of a shape, then those of the next one.
    """
    test = len(images) - num_test
    train = test - num_validation

    def split(first: int, last: int) -> Split:
        part = images[first:last]
        examples = part.reshape(-1, *images.shape[2:], 1).astype(np.float32)
        examples /= np.float32(255.0)  # in place: there may be 300 million
        return Split(examples, np.tile(angles, last - first))

    parts = (split(0, train), split(train, test), split(test, len(images)))
    return Dataset(name, "view", source, *parts)
