"""MNIST in the fixed binarisation of Larochelle and Murray (2011): Sec. 4.3.

Text, one image a line: 784 digits 0 or 1 in row-major order, single spaces between.
"""

from typing import NamedTuple

import numpy as np

from vhp_jax.data import files, tfds
from vhp_jax.data.base import DataError, Dataset, Split

NAME = "static_mnist"
TFDS_NAME = "binarized_mnist"
HOME = "www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
URL = f"http://{HOME}/"
IMAGE_SIZE = 28


class AmatFile(NamedTuple):
    """One published file.

    Attributes:
      name: without .gz.
      num_images: lines.
      sha256: of its unpacked content.
    """

    name: str
    num_images: int
    sha256: str


FILES = {
    "train": AmatFile(
        "binarized_mnist_train.amat",
        50_000,
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    ),
    "validation": AmatFile(
        "binarized_mnist_valid.amat",
        10_000,
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    ),
    "test": AmatFile(
        "binarized_mnist_test.amat",
        10_000,
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    ),
}


def decode(place: object, content: bytes, num_images: int) -> np.ndarray:
    """Decodes a text of 0 and 1.

    Args:
      place: the file, named in messages.
      content: unpacked.
      num_images: the wanted number of lines.

    Returns:
      uint8 [num_images, 28, 28], 0 or 1.

    Raises:
      DataError: a character that should not be there, or another number of images.
    """
    line = 2 * IMAGE_SIZE**2  # a digit and a separator a pixel
    if not content.startswith((b"0 ", b"1 ")):
        raise DataError(
            f"{place}: this is {files.describe(content)}, wanted lines of 0 and 1"
        )
    whole = len(content) // line
    # A pixel is two bytes, read as one number: the digit low, the separator high.
    pairs = np.frombuffer(content, "<u2", whole * IMAGE_SIZE**2).reshape(whole, -1)
    wrong = (pairs | 1) != (ord(" ") << 8 | ord("1"))
    wrong[:, -1] = (pairs[:, -1] | 1) != (ord("\n") << 8 | ord("1"))
    if wrong.any():
        row, pixel = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        seen = int(pairs[row, pixel]).to_bytes(2, "little")
        raise DataError(
            f"{place}: line {row + 1} holds {seen!r} for value {pixel + 1}, wanted "
            f"{IMAGE_SIZE**2} values 0 or 1, single spaces between"
        )
    if len(content) != whole * line:
        raise DataError(
            f"{place}: {len(content)} bytes unpacked, ends within line {whole + 1}; "
            f"wanted {num_images} lines of {line} bytes"
        )
    if whole != num_images:
        raise DataError(f"{place}: {whole} images, wanted {num_images}")
    pixels = (pairs & 1).astype(np.uint8)
    return pixels.reshape(whole, IMAGE_SIZE, IMAGE_SIZE)


def encode(images: np.ndarray) -> bytes:
    """The text of binary images [N, 28, 28]; the inverse of `decode`."""
    text = np.full((len(images), 2 * IMAGE_SIZE**2), ord(" "), np.uint8)
    text[:, 0::2] = images.reshape(len(images), -1) + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


def load(directory: files.StrPath | None, verify: bool = True) -> Dataset:
    """Reads the three published files. There are no labels: their order is not MNIST's.

    Args:
      directory: holds the folder static_mnist/; None takes binarized_mnist of
        tensorflow-datasets' cache, or has it download the files.
      verify: whether content that is not the published one is refused.

    Returns:
      50,000, 10,000 and 10,000 images, float32 [N, 28, 28, 1], exactly 0 or 1.

    Raises:
      DataError: a file is missing, damaged, of another shape or not the published one.
    """
    if directory is None:
        places, source = _from_tfds()
    else:
        folder = files.find_folder(NAME, directory, HOME)
        places, source = {}, str(folder)
        for split, file in FILES.items():
            path = files.find_file(folder, (file.name,), HOME)
            places[split] = path, files.read(path)
    splits = {}
    for split, (place, content) in places.items():
        images = decode(place, content, FILES[split].num_images)
        if verify:
            files.check_sha256(place, content, FILES[split].sha256)
        splits[split] = Split(
            images[..., None].astype(np.float32), np.zeros(len(images), np.int64)
        )
    checked = "checksums verified" if verify else "checksums NOT verified"
    parts = (splits["train"], splits["validation"], splits["test"])
    return Dataset(NAME, "none", f"{source}, {checked}", *parts)


def _from_tfds() -> tuple[dict[str, tuple[object, bytes]], str]:
    """Place and content of each file from tensorflow-datasets, and where it is from."""
    cache = tfds.Cache(TFDS_NAME)
    found: dict[str, tuple[object, bytes]] = {}
    if cache.prepared:
        for split, file in FILES.items():
            shape = file.num_images, IMAGE_SIZE, IMAGE_SIZE
            images, _ = cache.read_images(split, *shape)
            found[split] = f"{cache.place}, {split}", encode(images)
        return found, cache.place
    paths = cache.download(URL, (file.name for file in FILES.values()))
    for split, file in FILES.items():
        found[split] = paths[file.name], files.read(paths[file.name])
    return found, f"downloaded from {URL}"
