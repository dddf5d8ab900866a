"""Finds, unpacks, decodes and verifies the original files of the data sets.

A data directory has a folder for each set, with its files as they were published; a
file that was packed with gzip may be there packed or unpacked. Checksums are of the
unpacked content, since gzip packs the same content in many ways.
"""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from vhp_jax.data.base import DataError

StrPath = str | os.PathLike[str]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What some files begin with that are often met in the wrong place.
KNOWN_BEGINNINGS = {
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x00\x00\x08\x03": "IDX images",
    b"\x00\x00\x08\x01": "IDX labels",
    b"MATLAB": "a MATLAB file",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page",
}


def describe(content: bytes) -> str:
    """Says in words what some content is, as far as its first bytes tell."""
    if not content:
        return "nothing"
    for beginning, kind in KNOWN_BEGINNINGS.items():
        if content.startswith(beginning):
            return kind
    return f"a file that begins with {content[:4].hex(' ')}"


def check_member(archive: StrPath, name: str) -> None:
    """Raises DataError where a member of an archive would lie outside of it."""
    path = PureWindowsPath(name)  # knows both kinds of separator
    if path.drive or path.root or ".." in path.parts:
        raise DataError(
            f"{archive}: holds the unsafe path {name!r}, wanted paths inside the "
            "archive"
        )


def find_folder(name: str, directory: StrPath, home: str) -> Path:
    """The folder of one data set.

    Args:
      name: of the set and of its folder.
      directory: holds one folder a set.
      home: where the set is to be had, in words.

    Raises:
      DataError: the directory or the folder is not there.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(
            f"{name}: no data directory {directory}, wanted one with a folder "
            f"{name}/; the files are to be had from {home}"
        )
    folder = directory / name
    if not folder.is_dir():
        raise DataError(
            f"{name}: no folder {folder}, wanted one with the files from {home}"
        )
    return folder


def find_file(folder: Path, names: tuple[str, ...], home: str) -> Path:
    """The first of some accepted names that is there, packed or unpacked.

    Args:
      folder: where to look.
      names: accepted names, without .gz.
      home: where the file is to be had, in words.

    Raises:
      DataError: none of them is a file in the folder.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    wanted = " or ".join(f"{name}[.gz]" for name in names)
    raise DataError(f"{folder}: no file {wanted}, to be had from {home}")


def read(path: Path) -> bytes:
    """The content of a file, unpacked if it is a gzip file, whatever its name.

    Raises:
      DataError: it cannot be read, or is a gzip file that is cut off or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except EOFError:
        raise DataError(
            f"{path}: the gzip stream ends after {len(content)} bytes, before its end "
            "mark; wanted the whole file"
        ) from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from None


def check_sha256(place: object, content: bytes, wanted: str) -> None:
    """Raises DataError where the content is not the published one.

    Args:
      place: the file, named in the message.
      content: unpacked.
      wanted: sha256 of the published content, hexadecimal.
    """
    seen = hashlib.sha256(content).hexdigest()
    if seen != wanted:
        raise DataError(
            f"{place}: the unpacked content has sha256 {seen}, wanted {wanted} "
            "(verify=False takes it as it is)"
        )


def decode_png(
    place: object, contents: Sequence[bytes], height: int, width: int
) -> np.ndarray:
    """Decodes grey images of one size.

    Args:
      place: where they are from, named in messages.
      contents: [N] PNG files, all of the same mode.
      height: wanted, pixels.
      width: wanted, pixels.

    Returns:
      uint8 [N, height, width], 0 or 1 of files of 1 bit, else 0 to 255.

    Raises:
      DataError: one of them is damaged, or of another kind or size.
    """
    from PIL.PngImagePlugin import PngImageFile  # slow to import, of use to few

    images = np.empty((len(contents), height, width), np.uint8)
    modes: tuple[str, ...] = ("1", "L")  # as Pillow calls grey of 1 bit and of more
    for index, content in enumerate(contents):
        try:
            if not content.startswith(PNG_SIGNATURE):
                raise DataError(f"this is {describe(content)}, wanted a PNG file")
            PngImageFile(io.BytesIO(content)).verify()  # checksums, else not looked at
            image = PngImageFile(io.BytesIO(content))
            if image.mode not in modes or image.size != (width, height):
                raise DataError(
                    f"{image.width}x{image.height} pixels of mode {image.mode}, wanted "
                    f"{width}x{height} of mode {' or '.join(modes)}"
                )
            modes = (image.mode,)
            images[index] = np.asarray(image)
        except MemoryError:
            raise
        except DataError as error:
            raise DataError(f"{place}, image {index}: {error}") from None
        except Exception as error:  # which one depends on where the file is damaged
            raise DataError(
                f"{place}, image {index}: damaged PNG file: {error}"
            ) from None
    return images
