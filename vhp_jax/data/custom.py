"""Any array, table or folder of images: read, checked, scaled, split.

`checked` and `choose_units` are for examples that are in memory already, `load` reads
them from a file or a folder first.
"""

import csv
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vhp_jax.data.base import DataError, Dataset, Split, Standardisation
from vhp_jax.data.files import describe

NAME = "custom"
LIKELIHOODS = ("auto", "gaussian", "bernoulli")
SCALINGS = ("auto", "columns", "common", "none")
KEYS = ("x", "X", "data", "examples", "images", "x_train", "X_train", "arr_0")
HUGE = 1e30  # squares of more do not fit into float32 arithmetic
EXTREME = 0.1  # share of values at both ends of [0, 1] that makes rows flat images
SPREAD = 16  # roundings of its largest value, under which a column is constant
IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Units(NamedTuple):
    """How a model is to see examples.

    Attributes:
      likelihood: "gaussian" or "bernoulli".
      standardisation: of the examples; for Bernoulli means it divides by their full
        scale, 255 of bytes.
      reason: what was chosen and why, in words.
    """

    likelihood: str
    standardisation: Standardisation
    reason: str


def checked(place: object, values: Any, least: int = 2) -> np.ndarray:
    """Numbers as an array [N, ...] that can be trained on; their dtype is kept.

    Args:
      place: where they are from, named in messages.
      values: an array, or nested sequences of numbers.
      least: examples wanted.

    Raises:
      DataError: strings, objects, ragged rows, complex numbers, NaN, infinity, huge
        values, no columns, or too few examples.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(f"{place}: {_raggedness(values)}") from None
    if array.dtype == object:
        array = _from_objects(place, array)
    if array.dtype.kind not in "biuf":
        kinds = {"U": "strings", "S": "strings", "c": "complex numbers", "M": "dates"}
        seen = kinds.get(array.dtype.kind, f"values of type {array.dtype}")
        raise DataError(f"{place}: holds {seen}, wanted numbers")
    if array.ndim < 2:
        raise DataError(
            f"{place}: shape {array.shape}, wanted examples by columns or images"
        )
    if len(array) < least:
        raise DataError(
            f"{place}: {len(array)} example(s) of shape {array.shape[1:]}, wanted at "
            f"least {least}"
        )
    if array[0].size == 0:
        raise DataError(f"{place}: shape {array.shape}, wanted at least one column")
    if array.dtype.kind == "f":
        # NaN fails every comparison, so that one test finds all faults.
        bad = ~(np.abs(array) <= min(HUGE, float(np.finfo(array.dtype).max)))
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            column = at[1] if len(at) == 2 else at[1:]
            raise DataError(
                f"{place}: example {at[0]}, column {column} is {array[at]}, wanted no "
                f"NaN, no infinity and nothing beyond {HUGE:g}"
            )
    return array


def _from_objects(place: object, array: np.ndarray) -> np.ndarray:
    """Numbers that are kept as Python objects."""
    for index, value in enumerate(array.reshape(-1)):
        if not isinstance(value, int | float | np.number | np.bool_):
            if np.ndim(value) > 0 and not isinstance(value, Mapping | str):
                raise DataError(f"{place}: {_raggedness(list(array))}")
            at = tuple(int(i) for i in np.unravel_index(index, array.shape))
            raise DataError(
                f"{place}: value {at} is of type {type(value).__name__}, "
                "wanted a number"
            )
    return array.astype(np.float64)


def _raggedness(values: Iterable[Any]) -> str:
    """Which example has another shape than the first."""
    first: tuple[int, ...] | None = None
    for index, value in enumerate(values):
        try:
            shape = np.shape(value)
        except ValueError:
            return f"example {index} is ragged itself, wanted one shape"
        if first is None:
            first = shape
        elif shape != first:
            return f"example {index} has shape {shape}, example 0 {first}: wanted one"
    return "ragged, wanted examples of one shape"


def _full_scale(
    examples: np.ndarray, least: float, largest: float
) -> tuple[float, str]:
    """The value that is a Bernoulli mean of 1, and what to call the values."""
    is_byte, is_image = examples.dtype == np.uint8, examples.ndim > 2
    whole = examples.dtype.kind in "biu" or bool((examples == np.rint(examples)).all())
    if not (
        whole and least >= 0.0 and 1.0 < largest <= 255.0 and (is_byte or is_image)
    ):
        return 1.0, "in [0, 1]"
    if is_byte or largest > 127.0:
        return 255.0, "bytes"
    return largest, f"whole numbers from 0 to {largest:g}"


def choose_units(
    examples: np.ndarray, likelihood: str = "auto", scaling: str = "auto"
) -> Units:
    """Chooses likelihood and scaling by the data where they are "auto".

    Bernoulli where all values lie in [0, 1] and are binary, images, or at least a
    tenth 0 or 1 as in flattened images; bytes count as 255ths, and so do whole numbers
    of images, or as parts of the largest where that is below 128. Else Gaussian, each
    column with mean 0 and standard deviation 1; but one scale for all columns of images
    and of rows most of whose columns have the same least and largest value.

    Args:
      examples: of `checked`, [N, *example].
      likelihood: "auto", "gaussian" or "bernoulli".
      scaling: of Gaussian examples: "auto", "columns", "common" or "none".

    Raises:
      DataError: all columns are constant, or values that the likelihood cannot have.
      ValueError: another name.
    """
    for name, value, known in (
        ("likelihood", likelihood, LIKELIHOODS),
        ("scaling", scaling, SCALINGS),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    shape = examples.shape[1:]
    least, largest = float(examples.min()), float(examples.max())
    if least == largest:
        raise DataError(f"all values are {least:g}, wanted columns that vary")
    is_image = len(shape) > 1
    top, values = _full_scale(examples, least, largest)
    extreme = float(((examples == 0) | (examples == top)).mean())
    fits = least >= 0.0 and largest <= top
    if likelihood == "bernoulli" and not fits:
        raise DataError(
            f"bernoulli wants values in [0, 1] or bytes, got {least:g} to {largest:g}"
        )
    if likelihood == "bernoulli" or (
        likelihood == "auto" and fits and (is_image or extreme >= EXTREME)
    ):
        values = "binary" if top == extreme == 1.0 else values
        return Units(
            "bernoulli",
            Standardisation(np.zeros(shape), np.full(shape, top)),
            f"Bernoulli likelihood: the values are {values}",
        )
    mean = examples.mean(axis=0, dtype=np.float64)
    scale = examples.std(axis=0, dtype=np.float64)
    is_float = examples.dtype.kind == "f"
    rounding = float(np.finfo(examples.dtype).eps) if is_float else 0.0
    size = np.abs(mean) + scale
    # By its ends too: the rounding of a mean grows with the number of examples.
    lowest, highest = examples.min(axis=0), examples.max(axis=0)
    constant = (lowest == highest) | (scale <= SPREAD * rounding * size)
    notes = []
    if constant.any():
        found = np.flatnonzero(constant.reshape(-1)).tolist()
        some = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        notes.append(f"{len(found)} of {constant.size} columns are constant ({some})")
    if constant.all():
        raise DataError("all columns are constant, wanted some that vary")
    if scaling == "auto":
        ends = (lowest == least) & (highest == largest)
        scaling = "common" if is_image or ends.mean() > 0.5 else "columns"
    if scaling == "columns":
        scale = np.where(constant, 1.0, scale)
        words = "each column has mean 0 and standard deviation 1"
    elif scaling == "common":
        scale = np.full(shape, np.sqrt(np.square(scale).mean()))
        words = "columns have mean 0, and one scale in common"
    else:
        mean, scale = np.zeros(shape), np.ones(shape)
        words = "the values are taken as they are"
    reason = "; ".join([f"Gaussian likelihood: {words}", *notes])
    return Units("gaussian", Standardisation(mean, scale), reason)


def load(
    path: str,
    key: str = "",
    likelihood: str = "auto",
    scaling: str = "auto",
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    image_size: tuple[int, ...] = (),
    colour: bool = False,
) -> Dataset:
    """Reads examples of one's own.

    Args:
      path: .npy, .npz, .csv or .parquet, or a folder of images, whose sub-folders, if
        it has any, are labels.
      key: of the array in an .npz with several.
      likelihood: see `choose_units`.
      scaling: see `choose_units`.
      seed: of the order in which examples are split.
      validation_share: of the examples.
      test_share: of the examples.
      image_size: (height, width) that images are resized to; empty: as they are, which
        must be one size.
      colour: whether images keep three channels; else they are made grey.

    Returns:
      Images in [0, 1] or standardised examples, and the digest of examples and labels
      in their order in the file or folder.

    Raises:
      DataError: the file is missing, damaged, or holds what cannot be trained on.
      ValueError: a share is out of range.
    """
    for name, share in (("validation", validation_share), ("test", test_share)):
        if not 0.0 < share < 0.5:
            raise ValueError(f"{name}_share must be between 0 and 0.5, got {share}")
    if not path:
        raise DataError("custom: no file given (--config.data.path=FILE_OR_FOLDER)")
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    note = ""
    if place.is_dir():
        values, labels, names = read_images(place, tuple(image_size), colour)
    else:
        readers = {
            ".csv": lambda: _read_csv(place),
            ".npy": lambda: (_read_npy(place), ""),
            ".npz": lambda: (_read_npz(place, key), ""),
            ".parquet": lambda: (_read_parquet(place), ""),
        }
        read = readers.get(place.suffix.lower())
        if read is None:
            wanted = ", ".join(readers)
            raise DataError(f"{place}: wanted a folder of images or {wanted}")
        values, note = read()
    examples = checked(place, values, least=6)
    count = len(examples)
    num_test = max(2, round(test_share * count))
    num_validation = max(2, round(validation_share * count))
    order = np.random.default_rng(seed).permutation(count)
    places = {
        "test": order[:num_test],
        "validation": order[num_test : num_test + num_validation],
        "train": order[num_test + num_validation :],
    }
    try:
        units = choose_units(examples[places["train"]], likelihood, scaling)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    largest = float(np.max(units.standardisation.scale))
    if units.likelihood == "bernoulli" and not (
        0.0 <= examples.min() <= examples.max() <= largest
    ):
        raise DataError(
            f"{place}: values from {examples.min():g} to {examples.max():g}, but those "
            f"of the training split are from 0 to {largest:g}; wanted one scale "
            "(--config.data.likelihood=gaussian takes any)"
        )
    targets = np.zeros(count, np.int64) if labels is None else labels

    digest = hashlib.sha256(np.ascontiguousarray(examples).data)
    digest.update(targets.data)

    def take(split: str) -> Split:
        chosen = examples[places[split]]
        return Split(units.standardisation.apply(chosen), targets[places[split]])

    return Dataset(
        NAME,
        "none" if labels is None else "label",
        "; ".join(
            [
                f"{place}, {count} examples of shape {examples.shape[1:]}",
                *([note] if note else []),
                units.reason,
            ]
        ),
        take("train"),
        take("validation"),
        take("test"),
        label_names=names,
        standardisation=None
        if units.likelihood == "bernoulli"
        else units.standardisation,
        digest=digest.hexdigest(),
    )


def read_tfds(name: str, split: str = "train") -> np.ndarray:
    """The images of a data set of tensorflow-datasets, prepared or to be downloaded.

    Args:
      name: as `tensorflow_datasets.data_source` takes it.
      split: as well.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      DataError: it is not there, or its examples are no images of one size.
    """
    try:
        import tensorflow_datasets  # slow to import
    except ImportError:
        raise DataError(f"{name}: wants the package tensorflow-datasets") from None
    try:
        records = tensorflow_datasets.data_source(name, split=split)
        images = [record["image"] for record in records]
    except KeyError:
        raise DataError(f"{name}: its examples have no image") from None
    except Exception as error:  # what a registry and a download do has no one type
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{name}, {split}: not to be had: {text}") from None
    return checked(f"{name}, {split}", images)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {_numpy_fault(path, error)}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: this is a zip archive, wanted a NumPy array (.npz?)")
    return array


def _read_npz(path: Path, key: str) -> np.ndarray:
    import zipfile
    import zlib

    try:
        # Opened here: where np.load fails it does not close what it has opened.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise DataError(f"{path}: this is one NumPy array, wanted .npz")
            names = list(arrays.files)
            chosen = [key] if key else [n for n in KEYS if n in names][:1] or names
            if len(chosen) != 1 or chosen[0] not in names:
                raise DataError(
                    f"{path}: no array {key!r}; it holds {', '.join(names) or 'none'}"
                    if key
                    else f"{path}: holds {', '.join(names) or 'no array'}; "
                    "say which (--config.data.key=NAME)"
                )
            return arrays[chosen[0]]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {_numpy_fault(path, error)}") from None


def _numpy_fault(path: Path, error: Exception) -> str:
    """Why NumPy does not read a file, in words."""
    text = " ".join(str(error).split())
    if "allow_pickle" in text or "pickled" in text.lower():
        with path.open("rb") as file:
            beginning = file.read(8)
        kind = describe(beginning)
        if kind in ("a NumPy array", "a zip archive"):
            return "an array of Python objects (a pickle, never loaded), wanted numbers"
        return f"this is {kind}, wanted a NumPy file"
    return f"damaged NumPy file: {text}"


def _are_names(words: list[str]) -> bool:
    """Whether a line is of columns' names: words, or 0, 1, 2, ... up to 2 at least.

    So pandas calls columns that have no names; 0, 1 may be a row of bits.
    """
    if len(words) > 2 and words == [str(i) for i in range(len(words))]:
        return True
    return "" not in words and not all(_is_number(word) for word in words)


def _read_csv(path: Path) -> tuple[np.ndarray, str]:
    """The numbers, and what is to be said of the first line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a text file: {error}") from None
    if not first:
        raise DataError(f"{path}: empty, wanted lines of numbers")
    words = [word.strip() for word in first]
    has_names = _are_names(words)
    if not has_names and "" in words:
        if _are_names(words[1:]) and not words[0]:
            raise DataError(
                f"{path}: the first column has no name, as an index of rows has none; "
                "wanted a table without it, or a name"
            )
        raise DataError(
            f"{path}: row 0, column {words.index('')} is empty, wanted numbers"
        )
    try:
        # Opened here: where np.loadtxt fails it does not close what it has opened.
        with path.open(encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file with a header and no more
            values = np.loadtxt(
                file, delimiter=",", skiprows=int(has_names), ndmin=2, quotechar='"'
            )
            return values, "first line taken as names" if has_names else ""
    except ValueError as error:
        text = str(error).split("; use `usecols`")[0]
        start = "rows counted from 0 below the names" if has_names else "rows from 0"
        raise DataError(
            f"{path}: {text.rstrip('.')} ({start}), wanted numbers"
        ) from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> np.ndarray:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: .parquet wants the package pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged Parquet file: {text}") from None
    if not table.num_columns:
        raise DataError(f"{path}: no columns")
    columns = []
    for name in table.column_names:
        column = table[name]
        kind = column.type
        is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
        if not (is_number or pyarrow.types.is_boolean(kind)):
            raise DataError(
                f"{path}: column {name!r} is of type {kind}, wanted numbers"
            )
        if column.null_count:
            raise DataError(
                f"{path}: column {name!r} has {column.null_count} missing values, "
                "wanted none"
            )
        columns.append(column.to_numpy())
    return np.stack(columns, axis=1)


def read_images(
    folder: Path, size: tuple[int, ...] = (), colour: bool = False
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Reads a folder of images, or of one folder of images per label.

    Args:
      folder: hidden files in it are passed over, other files must be images.
      size: (height, width) to resize to; empty: as they are.
      colour: three channels instead of one.

    Returns:
      uint8 [N, H, W, C], labels int64 [N] or None, and their names.

    Raises:
      DataError: a file is no image, or the images are not of one size.
    """
    if size and (len(size) != 2 or min(size) < 1):
        raise DataError(f"image_size wants HEIGHT,WIDTH, got {size}")
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    names = tuple(path.name for path in folders)
    if not folders:
        files = [(path, 0) for path in inside]
    else:
        loose = [path for path in inside if not path.is_dir()]
        if loose:
            raise DataError(
                f"{folder}: {loose[0].name} lies beside folders of images, wanted "
                "either images or one folder a label"
            )
        files = [
            (path, label)
            for label, sub in enumerate(folders)
            for path in sorted(sub.iterdir())
            if not path.name.startswith(".")
        ]
    if not files:
        raise DataError(f"{folder}: no file in it, wanted images")
    for path, _ in files:
        if path.suffix.lower() not in IMAGE_NAMES or path.is_dir():
            raise DataError(
                f"{path}: not an image by its name, wanted only images in {folder} "
                f"({', '.join(IMAGE_NAMES)})"
            )
    images: list[np.ndarray] = []
    for path, _ in files:
        image = _read_image(path, size, colour)
        if images and image.shape != images[0].shape:
            (height, width), (first_height, first_width) = (
                image.shape[:2],
                images[0].shape[:2],
            )
            raise DataError(
                f"{path}: {height} x {width} pixels, {files[0][0].name} has "
                f"{first_height} x {first_width}: wanted one size "
                "(--config.data.image_size=HEIGHT,WIDTH resizes)"
            )
        images.append(image)
    labels = np.array([label for _, label in files], np.int64) if folders else None
    return np.stack(images), labels, names


def _read_image(path: Path, size: tuple[int, ...], colour: bool) -> np.ndarray:
    """One image, uint8 [H, W, C]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a size fit to exhaust the memory
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{path}: pixels of mode {image.mode}, wanted 8 bits"
                    )
                picture = image.convert("RGB" if colour else "L")
                if size:
                    picture = picture.resize((size[1], size[0]))
                pixels = np.asarray(picture, np.uint8)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        with path.open("rb") as file:
            kind = describe(file.read(8))
        raise DataError(f"{path}: this is {kind}, wanted an image") from None
    except Exception as error:  # which one depends on where the file is damaged
        text = " ".join(str(error).split())
        raise DataError(f"{path}: damaged image: {text}") from None
    return pixels if colour else pixels[..., None]
