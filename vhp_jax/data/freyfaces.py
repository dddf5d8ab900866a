"""Frey faces: 1,965 frames of one man's face, 28 x 20 pixels.

The file is a pickle of one array, written by Python 2, as the authors of the VampPrior
ship it. Of a pickle only arrays are read here: what it names beside them is refused
before anything of it runs.
"""

import io
import pickle
from typing import Any

import numpy as np

from vhp_jax.data import files
from vhp_jax.data.base import DataError, Dataset, Split

NAME = "freyfaces"
HOME = "github.com/jmtomczak/vae_vampprior"
SHA256 = "3b69410c6a5fd6e03f09012905168be3712373a094a776f7e58fcd0670d2138a"
HEIGHT, WIDTH = 28, 20


class _ArraysOnly(pickle.Unpickler):
    """Knows the names that an array's pickle needs, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _empty, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[name]


def _empty(_: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What NumPy's `_reconstruct` does for arrays, whatever kind it is asked for."""
    return np.ndarray(shape, dtype)


def decode(place: object, content: bytes) -> np.ndarray:
    """Decodes a pickle of one array.

    Args:
      place: the file, named in messages.
      content: unpacked.

    Returns:
      uint8 [N, 28, 20].

    Raises:
      DataError: it is damaged, names anything but arrays, or holds another array.
    """
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # which one depends on where it is damaged
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{place}: {text or type(error).__name__}, wanted a pickle of one array "
            f"and nothing else ({files.describe(content)})"
        ) from None
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
        seen = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise DataError(f"{place}: holds {seen}, wanted an array of uint8")
    if found.ndim != 2 or found.shape[1] != HEIGHT * WIDTH:
        raise DataError(
            f"{place}: an array of shape {found.shape}, wanted (N, {HEIGHT * WIDTH})"
        )
    return found.reshape(-1, HEIGHT, WIDTH)


def load(
    directory: files.StrPath | None,
    seed: int = 0,
    num_validation: int = 200,
    num_test: int = 200,
    verify: bool = True,
) -> Dataset:
    """Reads the frames, shuffled, in splits of the sizes of the VampPrior's.

    Neighbouring frames are all but equal, so that test frames have twins in training.

    Args:
      directory: holds the folder freyfaces/ with freyfaces.pkl.
      seed: of the order in which frames are split.
      num_validation: frames of the validation split.
      num_test: frames of the test split.
      verify: whether content that is not the published one is refused.

    Returns:
      1,565, 200 and 200 images, float32 [N, 28, 20, 1], multiples of 1/255 in [0, 1];
      no targets.

    Raises:
      DataError: the file is missing, damaged or not the published one.
      ValueError: an argument is out of range.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if directory is None:
        raise DataError(
            f"{NAME}: no data directory, wanted one with a folder {NAME}/; the file is "
            f"to be had from {HOME}, not from tensorflow-datasets"
        )
    folder = files.find_folder(NAME, directory, HOME)
    place = files.find_file(folder, (f"{NAME}.pkl",), HOME)
    content = files.read(place)
    if verify:
        files.check_sha256(place, content, SHA256)
    images = decode(place, content)
    num_train = len(images) - num_validation - num_test
    if min(num_train, num_validation, num_test) < 1:
        raise ValueError(
            f"num_validation and num_test must be at least 1 and leave one of "
            f"{len(images)} frames to train on, got {num_validation} and {num_test}"
        )
    order = np.random.default_rng(seed).permutation(len(images))
    examples = (images[order] / np.float32(255.0))[..., None]
    train, validation, test = (
        Split(part, np.zeros(len(part), np.int64))
        for part in np.split(examples, [num_train, num_train + num_validation])
    )
    checked = "checksum verified" if verify else "checksum NOT verified"
    source = f"{place}, {checked}; shuffled with seed {seed}"
    return Dataset(NAME, "none", source, train, validation, test)
