"""OMNIGLOT (Lake, Salakhutdinov and Tenenbaum, 2015) in 28x28 pixels: Sec. 4.3.

Likelihoods are reported on the file chardata.mat of Burda, Grosse and Salakhutdinov
(2016). Where only the drawings of 105x105 pixels are there, its arrays are rebuilt from
them; a rebuild differs from that file in grey levels, in the order of the drawings and
in which nine characters the test split lacks, and the data set's source says so.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vhp_jax.data import files, tfds
from vhp_jax.data.base import DataError, Dataset, Split, bernoulli_dataset, check_images

NAME = "omniglot"
MAT_HOME = "github.com/yburda/iwae, datasets/OMNIGLOT"
ARCHIVE_HOME = "github.com/brendenlake/omniglot, python/"
ARCHIVE_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
IMAGE_SIZE = 28
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 24_345, 1_345, 8_070  # train with validation
NUM_ALPHABETS = 50

MAT_NAME = "chardata.mat"
# Of the published file only this checksum is known.
MAT_MD5 = "21ecaf34373511aa7691cf2e0802aa3d"
# Of a rebuild by this module's own rules.
REBUILD_SHA256 = "f6b4ab8ffc6cf7d181c3bae929cbe6f737f48e66dda7fd57ada8727fda1d496b"

DRAWING_SIZE = 105
NUM_CHARACTERS, NUM_DRAWERS = 1_623, 20
NUM_TRAIN_DRAWERS = 15
NUM_TEST_CHARACTERS = 1_614
ARCHIVES = ("images_background", "images_evaluation")
# Of all drawings as bits, ink is 1, by character, then drawer, then row.
DRAWINGS_SHA256 = "48b48d807b25c6e902ebfe31da7a00ad3614e2a1014e97fe7b5a8d8f0399727b"
MAX_MEMBER_BYTES = 100_000


class Images(NamedTuple):
    """Images of one of the two parts that the data set is published in.

    Attributes:
      images: float32 [N, 28, 28] in [0, 1], ink is 1, upright.
      alphabets: int64 [N], 0 to 49 in the order of the character numbers.
    """

    images: np.ndarray
    alphabets: np.ndarray


class Drawings(NamedTuple):
    """All drawings in their first size.

    Attributes:
      ink: bool [characters, drawers, 105, 105].
      alphabets: int64 [characters], 0 to 49 in the order of the character numbers.
    """

    ink: np.ndarray
    alphabets: np.ndarray


def load(
    directory: files.StrPath | None,
    values: str = "dynamic",
    seed: int = 0,
    verify: bool = True,
) -> Dataset:
    """Reads chardata.mat, or rebuilds its arrays from the two image archives.

    The last 1,345 training images, in the file's order, are the validation split. In a
    rebuild this order is by character, so that these are the last characters of the
    last alphabets.

    Args:
      directory: holds the folder omniglot/ with chardata.mat, or else with
        images_background.zip and images_evaluation.zip; None takes the drawings of
        tensorflow-datasets' cache, or has it download the archives.
      values: see `vhp_jax.data.mnist.load`.
      seed: of the validation and test images drawn here.
      verify: whether content that is not a known one is refused.

    Returns:
      23,000, 1,345 and 8,070 images, float32 [N, 28, 28, 1] in [0, 1], ink is 1, and
      their alphabets, int64 [N], 0 to 49 in the order of the character numbers.

    Raises:
      DataError: a file is missing, damaged, of another shape or not a known one.
      ValueError: `values` is neither of the two, or `seed` is negative.
    """
    if directory is None:
        place, drawings = _from_tfds()
        train, test, source = _rebuild(place, drawings, verify)
    else:
        home = f"{MAT_HOME} ({MAT_NAME}) or {ARCHIVE_HOME} (the two archives)"
        folder = files.find_folder(NAME, directory, home)
        archives = [folder / f"{stem}.zip" for stem in ARCHIVES]
        if (folder / MAT_NAME).is_file():
            train, test, source = _from_mat(folder / MAT_NAME, verify)
        elif all(path.is_file() for path in archives):
            drawings = read_archives(archives)
            train, test, source = _rebuild(str(folder), drawings, verify)
        else:
            wanted = f"{MAT_NAME}, nor both {archives[0].name} and {archives[1].name}"
            raise DataError(f"{folder}: no file {wanted}, to be had from {home}")

    cut = len(train.images) - NUM_VALIDATION
    splits = {
        "train": Split(train.images[:cut, :, :, None], train.alphabets[:cut]),
        "validation": Split(train.images[cut:, :, :, None], train.alphabets[cut:]),
        "test": Split(test.images[:, :, :, None], test.alphabets),
    }
    return bernoulli_dataset(NAME, source, splits, values, seed)


# --- chardata.mat --------------------------------------------------------------------


def decode_mat(place: object, content: bytes) -> tuple[Images, Images]:
    """Decodes chardata.mat.

    Its arrays `data` and `testdata` hold an image a column, pixels column-major;
    `target` and `testtarget` the alphabet of each, one-hot.

    Args:
      place: the file, named in messages.
      content: of a MATLAB file of version 4 to 7.2.

    Returns:
      Training images with the validation images last, and test images.

    Raises:
      DataError: not such a file, cut off, an array missing or of another shape, a
        value out of range.
    """
    import scipy.io  # as slow to import as to use

    counts = {"": NUM_TRAIN, "test": NUM_TEST}
    names = [f"{half}{array}" for half in counts for array in ("data", "target")]
    if not content.startswith(b"MATLAB"):
        raise DataError(
            f"{place}: this is {files.describe(content)}, wanted a MATLAB file"
        )
    try:
        arrays = scipy.io.loadmat(io.BytesIO(content), variable_names=names)
    except MemoryError:
        raise
    except Exception as error:  # which one depends on where the file is cut off
        raise DataError(f"{place}: damaged MATLAB file: {error}") from None
    found = []
    for half, count in counts.items():
        shapes = {
            f"{half}data": (IMAGE_SIZE**2, count),
            f"{half}target": (NUM_ALPHABETS, count),
        }
        for name, shape in shapes.items():
            if name not in arrays:
                raise DataError(f"{place}: no array {name}, wanted one of {shape}")
            if arrays[name].shape != shape:
                seen = arrays[name].shape
                raise DataError(f"{place}: {name} has shape {seen}, wanted {shape}")
            if arrays[name].dtype.kind not in "fiub":
                kind = arrays[name].dtype
                raise DataError(f"{place}: {name} has type {kind}, wanted numbers")
        columns = arrays[f"{half}data"].T.astype(np.float32)
        check_images(f"{place}, {half}data", columns)
        images = columns.reshape(count, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 1)
        target = arrays[f"{half}target"]
        one_hot = ((target == 0) | (target == 1)).all(axis=0) & (
            target.sum(axis=0) == 1
        )
        if not one_hot.all():
            index = int(np.argmin(one_hot))
            raise DataError(
                f"{place}: column {index} of {half}target is not one-hot, wanted one "
                "alphabet an image"
            )
        alphabets = target.argmax(axis=0).astype(np.int64)
        found.append(Images(np.ascontiguousarray(images), alphabets))
    return found[0], found[1]


def _from_mat(path: Path, verify: bool) -> tuple[Images, Images, str]:
    content = files.read(path)
    train, test = decode_mat(path, content)
    seen = hashlib.sha256(content).hexdigest()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if seen == REBUILD_SHA256:
        return train, test, f"{path}, REBUILT from the drawings, checksum verified"
    if md5 == MAT_MD5:
        return train, test, f"{path}, checksum verified"
    if verify:
        raise DataError(
            f"{path}: sha256 {seen} and md5 {md5}, wanted md5 {MAT_MD5} (published) or "
            f"sha256 {REBUILD_SHA256} (rebuilt); verify=False takes it as it is"
        )
    return train, test, f"{path}, checksum NOT verified"


# --- The drawings of 105x105 pixels --------------------------------------------------


def read_archives(paths: list[Path]) -> Drawings:
    """Reads the drawings from the archives, without unpacking them to disk.

    Args:
      paths: the two archives. Each file in them is called
        ARCHIVE/ALPHABET/characterNN/CCCC_DD.png, character CCCC and drawer DD.

    Raises:
      DataError: an archive is damaged or unsafe, or a drawing missing or damaged.
    """
    drawings: dict[tuple[int, int], bytes] = {}
    alphabets: dict[int, str] = {}
    for path in paths:
        pattern = re.compile(
            rf"{path.stem}/([^/]+)/character\d\d/(\d{{4}})_(\d\d)\.png"
        )
        for name, content in _members(path).items():
            match = pattern.fullmatch(name)
            if match is None:
                raise DataError(
                    f"{path}: holds {name}, wanted "
                    f"{path.stem}/ALPHABET/characterNN/CCCC_DD.png"
                )
            character = int(match[2])
            drawings[character, int(match[3])] = content
            alphabets[character] = match[1]
    return decode_drawings(" and ".join(map(str, paths)), drawings, alphabets)


def decode_drawings(
    place: str,
    drawings: Mapping[tuple[int, int], bytes],
    alphabets: Mapping[int, str],
) -> Drawings:
    """Puts the drawings in order.

    Args:
      place: where they are from, named in messages.
      drawings: PNG file by the numbers of character and drawer, both from 1.
      alphabets: name by the number of the character.

    Raises:
      DataError: a drawing is missing, damaged or one too many.
    """
    wanted = [
        (character, drawer)
        for character in range(1, NUM_CHARACTERS + 1)
        for drawer in range(1, NUM_DRAWERS + 1)
    ]
    for what, keys in (
        ("no drawing", [key for key in wanted if key not in drawings]),
        ("unknown drawing", sorted(set(drawings) - set(wanted))),
    ):
        if keys:
            raise DataError(
                f"{place}: {what} {keys[0][0]:04}_{keys[0][1]:02}.png and "
                f"{len(keys) - 1} others; wanted {len(wanted)}, {NUM_CHARACTERS} "
                f"characters by {NUM_DRAWERS} drawers"
            )
    contents = [drawings[key] for key in wanted]
    paper = files.decode_png(place, contents, DRAWING_SIZE, DRAWING_SIZE)
    names = [alphabets[character] for character in range(1, NUM_CHARACTERS + 1)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    ink = np.equal(paper, 0, out=paper.view(bool))  # in place: there are 360 million
    return Drawings(
        ink.reshape(NUM_CHARACTERS, NUM_DRAWERS, DRAWING_SIZE, DRAWING_SIZE),
        np.array([numbers[name] for name in names]),
    )


def _members(path: Path) -> dict[str, bytes]:
    """The files of a zip archive by name; folders are left out."""
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.orig_filename
                files.check_member(path, name)
                if info.file_size > MAX_MEMBER_BYTES:
                    raise DataError(
                        f"{path}: {name} has {info.file_size} bytes, wanted at most "
                        f"{MAX_MEMBER_BYTES}"
                    )
                if not info.is_dir():
                    members[name] = archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: damaged zip archive: {error}") from None
    except RuntimeError as error:  # encrypted
        raise DataError(f"{path}: cannot be read: {error}") from None
    return members


def _from_tfds() -> tuple[str, Drawings]:
    """The drawings from tensorflow-datasets, and where they are from."""
    cache = tfds.Cache(NAME)
    if not cache.prepared:
        names = [f"{stem}.zip" for stem in ARCHIVES]
        paths = cache.download(ARCHIVE_URL, names)
        drawings = read_archives(list(paths.values()))
        return f"downloaded from {ARCHIVE_URL}", drawings
    contents: dict[tuple[int, int], bytes] = {}
    alphabets: dict[int, str] = {}
    names = cache.class_names("alphabet")
    for split in ("train", "test"):
        images, others = cache.read(split)
        columns = (others["alphabet"], others["alphabet_char_id"], others["label"])
        described = list(zip(*(column.tolist() for column in columns), strict=True))
        # The drawer is told by the key alone, and the order by the keys.
        candidates = [
            (character, drawer)
            for character in sorted(set(described))
            for drawer in range(1, NUM_DRAWERS + 1)
        ]
        keys = [
            f"{names[alphabet]}_{place}_{label + 1:04}_{drawer:02}.png"
            for (alphabet, place, label), drawer in candidates
        ]
        order = tfds.stored_order(split, keys)
        stored = [candidates[index] for index in order]
        if [character for character, _ in stored] != described:
            raise DataError(
                f"{cache.place}, {split}: the drawings are not in the order of their "
                "keys, wanted the one that tensorflow-datasets writes"
            )
        for image, ((alphabet, _, label), drawer) in zip(images, stored, strict=True):
            contents[label + 1, drawer] = image
            alphabets[label + 1] = names[alphabet]
    return cache.place, decode_drawings(cache.place, contents, alphabets)


# --- 105x105 to 28x28 ----------------------------------------------------------------


def resampling_weights(size_in: int, size_out: int) -> np.ndarray:
    """Weights of bicubic resampling to fewer pixels.

    Keys' kernel with a = -1/2, widened by the ratio of the sizes against aliasing, as
    MATLAB's imresize does it; weights beyond the border are left out and the others
    scaled to sum to 1.

    Returns:
      float64 [size_out, size_in].
    """
    ratio = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * ratio - 0.5
    x = np.abs(centres[:, None] - np.arange(size_in)) / ratio
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    weights = np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resample(ink: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Resamples square binary drawings.

    Args:
      ink: bool [N, S, S].
      size: pixels a side of the result.

    Returns:
      float32 [N, size, size], multiples of 1/255 in [0, 1].
    """
    weights = resampling_weights(ink.shape[-1], size)
    # In double precision, so that no rounding depends on the order of the sums.
    bright = weights @ (ink.astype(np.float64) @ weights.T)
    grey = np.rint(255.0 * np.clip(bright, 0.0, 1.0))
    return grey.astype(np.float32) / np.float32(255.0)


def rebuild(drawings: Drawings) -> tuple[Images, Images]:
    """Rebuilds the arrays of chardata.mat.

    Drawers 1 to 15 of each character are the training images, which the drawings that
    the literature shows of that file agree with; 16 to 20 of the first 1,614
    characters are the test images. Which nine characters the published file leaves out
    is not known.

    Returns:
      Training images with the validation images last, and test images; both by
      character, then drawer.
    """
    parts = []
    for drawers, count in (
        (slice(None, NUM_TRAIN_DRAWERS), NUM_CHARACTERS),
        (slice(NUM_TRAIN_DRAWERS, None), NUM_TEST_CHARACTERS),
    ):
        characters = drawings.ink[:count, drawers]
        images = np.concatenate([resample(ink) for ink in characters])
        alphabets = np.repeat(drawings.alphabets[:count], characters.shape[1])
        parts.append(Images(images, alphabets))
    return parts[0], parts[1]


def _rebuild(
    place: str, drawings: Drawings, verify: bool
) -> tuple[Images, Images, str]:
    if verify:
        files.check_sha256(
            f"{place}, drawings", np.packbits(drawings.ink).tobytes(), DRAWINGS_SHA256
        )
    train, test = rebuild(drawings)
    checked = "checksum verified" if verify else "checksum NOT verified"
    return train, test, f"{place}, REBUILT from the drawings, {checked}"
