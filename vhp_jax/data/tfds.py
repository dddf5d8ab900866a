"""Original files out of tensorflow-datasets, without TensorFlow.

Two ways, both imported only when asked for: a set that is already prepared in the cache
as array_record is read record by record and put back into the order, and into the file
format, that it was published in; otherwise the published files are downloaded. Either
way the loaders see the same bytes and verify them with the same checksums.

The cache is the environment variable TFDS_DATA_DIR, else tensorflow-datasets' default.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vhp_jax.data import png
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
        formats = self._builder.info.available_file_formats()
        self.prepared = "array_record" in {kind.value for kind in formats}

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
        return png.decode(place, images, height, width), others

    def download(self, names: Iterable[str]) -> dict[str, Path]:
        """Downloads published files, or finds them downloaded before.

        Args:
          names: file names as published.

        Returns:
          The path of each.

        Raises:
          DataError: a file cannot be had.
        """
        infos = self._builder.url_infos
        urls = {name: url for url in infos for name in names if url.endswith(name)}
        try:
            manager = self._tfds.download.DownloadManager(
                download_dir=Path(self._builder.data_dir_root) / "downloads",
                url_infos=infos,
                dataset_name=self._name,
                force_checksums_validation=True,
            )
            paths = manager.download(urls)
        except Exception as error:  # whatever the network stack raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self._name}: not prepared as array_record in "
                f"{self._builder.data_dir}, and the download failed: {reason}; wanted "
                "either, or a data directory with the original files"
            ) from error
        return {name: Path(path) for name, path in paths.items()}


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
