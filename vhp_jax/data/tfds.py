"""Original files out of tensorflow-datasets, without TensorFlow.

Two ways, tried only when asked for: a set that is already prepared in the cache
as array_record is read record by record and put back into the order, and into the file
format, that it was published in; otherwise the published files are downloaded, next to
it in the cache. Either way the loaders see the same bytes and verify them with the same
checksums.

The cache is the environment variable TFDS_DATA_DIR, else tensorflow-datasets' default.
"""

import hashlib
import http.client
import shutil
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vhp_jax import storage
from vhp_jax.data import files
from vhp_jax.data.base import DataError


class Cache:
    """One data set of tensorflow-datasets.

    Attributes:
      place: folder of the cache and the set, for messages and sources.
      prepared: whether it can be read from the cache; else `download`.
    """

    def __init__(self, name: str):
        try:
            # Slow to import, and of no use where the original files are there.
            import tensorflow_datasets
        except ImportError as error:
            raise DataError(
                f"{name}: no data directory given and tensorflow-datasets is not "
                "installed; wanted one of both"
            ) from error
        self._name = name
        self._tfds = tensorflow_datasets
        self._builder = tensorflow_datasets.builder(name, file_format="array_record")
        self.place = f"tensorflow-datasets, {self._builder.data_dir}"
        info = self._builder.info
        formats = {kind.value for kind in info.available_file_formats()}
        self.prepared = bool(info.splits) and "array_record" in formats

    def read(
        self, split: str, keys: Sequence[int | str] | None = None
    ) -> tuple[list[bytes], dict[str, np.ndarray]]:
        """Reads a split that is prepared.

        Args:
          split: as tensorflow-datasets calls it.
          keys: of all examples, in the order wanted; tensorflow-datasets keeps them in
            the order of a hash of their keys. None leaves that order.

        Returns:
          The PNG file of each image, and all other features, [N] each.

        Raises:
          DataError: the split is missing, or has another number of examples.
        """
        place = f"{self.place}, {split}"
        if split not in self._builder.info.splits:
            raise DataError(f"{place}: no such split, wanted one")
        try:
            skip = {"image": self._tfds.decode.SkipDecoding()}
            source = self._builder.as_data_source(split=split, decoders=skip)
            records: Sequence[dict[str, Any]] = source.__getitems__(range(len(source)))
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{place}: cannot be read: {reason}") from error
        if keys is not None:
            if len(keys) != len(records):
                raise DataError(f"{place}: {len(records)} examples, wanted {len(keys)}")
            position = np.empty(len(keys), np.int64)
            position[stored_order(split, keys)] = np.arange(len(keys))
            records = [records[index] for index in position.tolist()]
        images = [record["image"] for record in records]
        others = [name for name in self._builder.info.features if name != "image"]
        return images, {
            name: np.array([record[name] for record in records]) for name in others
        }

    def class_names(self, feature: str) -> list[str]:
        """The names that a class label stands for."""
        return list(self._builder.info.features[feature].names)

    def read_images(
        self, split: str, num_examples: int, height: int, width: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads a prepared split of grey images that are keyed by their number.

        Returns:
          uint8 [num_examples, height, width], and all other features, [N] each.
        """
        images, others = self.read(split, range(num_examples))
        place = f"{self.place}, {split}"
        return files.decode_png(place, images, height, width), others

    def download(self, url: str, names: Iterable[str]) -> dict[str, Path]:
        """Downloads published files, or finds them downloaded before.

        Args:
          url: of the folder that they are in, with a slash at the end.
          names: of the files.

        Returns:
          The path of each.

        Raises:
          DataError: a file cannot be had.
        """
        folder = Path(self._builder.data_dir_root) / "downloads" / self._name
        paths = {name: folder / name for name in names}
        for name, path in paths.items():
            if path.is_file():
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _fetch(url + name, path)
            except (OSError, http.client.HTTPException) as error:
                raise DataError(
                    f"{self._name}: not prepared as array_record in "
                    f"{self._builder.data_dir}, and the download of {url}{name} "
                    f"failed: {error}; wanted either, or a data directory with the "
                    "original files"
                ) from error
        return paths


def _fetch(url: str, path: Path) -> None:
    """Downloads a file, which gets its name once it is whole.

    Not by tensorflow-datasets' own manager, which tries for minutes where there is no
    network.
    """
    with storage.replacing(path) as partial:
        with urllib.request.urlopen(url, timeout=30) as response:
            with partial.open("wb") as file:
                shutil.copyfileobj(response, file)
            wanted = response.headers.get("Content-Length")
        seen = partial.stat().st_size
        if wanted is not None and seen != int(wanted):
            raise OSError(f"it ended after {seen} bytes, wanted {wanted}")


def stored_order(split: str, keys: Sequence[int | str]) -> list[int]:
    """The order in which tensorflow-datasets stores examples.

    It sorts them by the MD5 of the name of the split and the key.

    Returns:
      Index into `keys` of each stored example.
    """
    salt = hashlib.md5(split.encode(), usedforsecurity=False)

    def digest(index: int) -> bytes:
        copy = salt.copy()
        copy.update(str(keys[index]).encode())
        return copy.digest()

    return sorted(range(len(keys)), key=digest)
