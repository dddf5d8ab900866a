"""The IDX format of MNIST and Fashion-MNIST: two pairs of images and labels.

Big-endian: two zero bytes, the type (8: uint8), the number of dimensions, each of them
as uint32, then the values in row-major order.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vhp_jax.data import files, tfds
from vhp_jax.data.base import DataError, Dataset, Split, bernoulli_dataset


class IdxFile(NamedTuple):
    """One published file.

    Attributes:
      name: without .gz; in a folder a dot may stand for the hyphen before "idx".
      shape: of its array.
      sha256: of its unpacked content.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str


def published_files(
    *, train_images: str, train_labels: str, test_images: str, test_labels: str
) -> dict[str, IdxFile]:
    """The four files by part, from the sha256 of their unpacked contents.

    Names and shapes are the same in both data sets; images are uint8 [N, 28, 28], ink
    or cloth is bright, and labels uint8 [N].
    """
    train, test = 60_000, 10_000
    return {
        "train_images": IdxFile(
            "train-images-idx3-ubyte", (train, 28, 28), train_images
        ),
        "train_labels": IdxFile("train-labels-idx1-ubyte", (train,), train_labels),
        "test_images": IdxFile("t10k-images-idx3-ubyte", (test, 28, 28), test_images),
        "test_labels": IdxFile("t10k-labels-idx1-ubyte", (test,), test_labels),
    }


class IdxSet(NamedTuple):
    """A data set of four files.

    Attributes:
      name: as in the configs; also of its folder and in tensorflow-datasets.
      home: where it is to be had, in words.
      url: of the folder with the files, packed.
      files: see `published_files`.
      num_validation: the last so many training images are the validation split.
      num_classes: labels are smaller.
    """

    name: str
    home: str
    url: str
    files: Mapping[str, IdxFile]
    num_validation: int = 10_000
    num_classes: int = 10


def decode(place: object, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes an IDX file of bytes.

    Args:
      place: the file, named in messages.
      content: unpacked.
      shape: the wanted one.

    Returns:
      uint8 array of that shape, read-only.

    Raises:
      DataError: magic number, dimensions or length are not those of such a file.
    """
    magic = b"\x00\x00\x08" + bytes([len(shape)])
    if not content.startswith(magic):
        kind = files.describe(magic)
        raise DataError(
            f"{place}: this is {files.describe(content)}, wanted {kind} (a file that "
            f"begins with {magic.hex(' ')})"
        )
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DataError(f"{place}: {len(content)} bytes, wanted a header of {header}")
    seen = struct.unpack(f">{len(shape)}I", content[4:header])
    if seen != shape:
        raise DataError(f"{place}: the header says shape {seen}, wanted {shape}")
    wanted = header + math.prod(shape)
    if len(content) != wanted:
        raise DataError(f"{place}: {len(content)} bytes unpacked, wanted {wanted}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def encode(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array; the inverse of `decode`."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()


def load(
    idx_set: IdxSet,
    directory: files.StrPath | None,
    values: str,
    seed: int,
    verify: bool,
) -> Dataset:
    """Reads the four files; see `vhp_jax.data.mnist.load`."""
    if directory is None:
        places, source = _from_tfds(idx_set)
    else:
        folder = files.find_folder(idx_set.name, directory, idx_set.home)
        places, source = _from_folder(idx_set, folder), str(folder)
    arrays = {}
    for part, (place, content) in places.items():
        file = idx_set.files[part]
        arrays[part] = decode(place, content, file.shape)
        if verify:
            files.check_sha256(place, content, file.sha256)
    for name in ("train_labels", "test_labels"):
        _check_labels(places[name][0], arrays[name], idx_set.num_classes)

    num_train = len(arrays["train_images"]) - idx_set.num_validation
    parts = {
        "train": ("train", slice(None, num_train)),
        "validation": ("train", slice(num_train, None)),
        "test": ("test", slice(None)),
    }
    splits = {
        split: Split(
            arrays[f"{half}_images"][part, :, :, None].astype(np.float32)
            / np.float32(255.0),
            arrays[f"{half}_labels"][part].astype(np.int64),
        )
        for split, (half, part) in parts.items()
    }
    checked = "checksums verified" if verify else "checksums NOT verified"
    return bernoulli_dataset(idx_set.name, f"{source}, {checked}", splits, values, seed)


def _from_folder(idx_set: IdxSet, folder: Path) -> dict[str, tuple[object, bytes]]:
    """Place and unpacked content of each file of a folder."""
    found: dict[str, tuple[object, bytes]] = {}
    for part, file in idx_set.files.items():
        names = (file.name, file.name.replace("-idx", ".idx"))
        path = files.find_file(folder, names, idx_set.home)
        found[part] = path, files.read(path)
    return found


def _from_tfds(idx_set: IdxSet) -> tuple[dict[str, tuple[object, bytes]], str]:
    """The same from tensorflow-datasets, and where it is from."""
    cache = tfds.Cache(idx_set.name)
    found: dict[str, tuple[object, bytes]] = {}
    if cache.prepared:
        for split in ("train", "test"):
            shape = idx_set.files[f"{split}_images"].shape
            images, others = cache.read_images(split, *shape)
            labels = others["label"].astype(np.uint8)
            for part, array in (("images", images), ("labels", labels)):
                place = f"{cache.place}, {split} {part}"
                found[f"{split}_{part}"] = place, encode(array)
        return found, cache.place
    names = {part: f"{file.name}.gz" for part, file in idx_set.files.items()}
    paths = cache.download(idx_set.url, names.values())
    for part, name in names.items():
        found[part] = paths[name], files.read(paths[name])
    return found, f"downloaded from {idx_set.url}"


def _check_labels(place: object, labels: np.ndarray, num_classes: int) -> None:
    if labels.max() >= num_classes:
        index = int(np.argmax(labels >= num_classes))
        raise DataError(
            f"{place}: label {index} is {labels[index]}, wanted 0 to {num_classes - 1}"
        )
