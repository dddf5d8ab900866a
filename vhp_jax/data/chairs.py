"""The rendered chairs of Aubry et al. (2014), "Seeing 3D chairs": Sec. 4.4.

1,393 models in 62 views each, 600x600 colour on white: 31 azimuths at two elevations.
Here they are cropped, scaled to a few grey pixels and kept on disk. The background
stays white. One square crop serves all views of a chair, so that it does not change its
size or place from view to view.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vhp_jax.data import cache, files, views
from vhp_jax.data.base import DataError, Dataset

NAME = "chairs"
HOME = (
    "the project page of Aubry et al., Seeing 3D chairs "
    "(www.di.ens.fr/willow/research/seeing3Dchairs, rendered_chairs.tar)"
)
STEM = "rendered_chairs"
NUM_CHAIRS, NUM_ELEVATIONS, NUM_AZIMUTHS = 1_393, 2, 31
RENDER_SIZE = 600

VERSION = 1  # of crop and scaling: to be raised where images change
BACKGROUND = 250  # grey values from here on are background when cropping
MARGIN = 0.04  # of the larger side of the chair, left free at each side
CHAIRS_PER_PART = 20
MAX_FILE_BYTES = 10_000_000

# image_NNN_pELEVATION_tAZIMUTH_rDISTANCE.png, both angles in degrees. Where the numbers
# start is not relied on.
LAYOUT = re.compile(rf"{STEM}/([^/]+)/renders/image_\d+_p(\d+)_t(\d+)_r\d+\.png")


class Renders(Protocol):
    """The files of a folder or an archive.

    Attributes:
      place: of the folder or the archive, for messages.
      sizes: bytes of each file by name, which begins with rendered_chairs/.
    """

    place: Path
    sizes: dict[str, int]

    def read(self, name: str) -> bytes:
        """The content of a file."""


def load(
    directory: files.StrPath | None = None,
    num_azimuths: int = NUM_AZIMUTHS,
    image_size: int = 64,
    num_validation: int = 70,
    num_test: int = 140,
    cache_dir: files.StrPath | None = None,
    processes: int | None = None,
    verify: bool = True,
) -> Dataset:
    """Scales the published images, or reads them where they were scaled before.

    Args:
      directory: holds the folder chairs/ with the folder rendered_chairs/ or the
        archive rendered_chairs.tar, which is read without unpacking it.
      num_azimuths: of the 31, at nearly equal steps.
      image_size: pixels a side.
      num_validation: chairs of the validation split, the ones before the last, in the
        order of their names.
      num_test: chairs of the test split, the last ones.
      cache_dir: see `vhp_jax.data.cache.load`.
      processes: see `vhp_jax.data.cache.load`.
      verify: whether another number of chairs than the published one is refused.

    Returns:
      Images float32 [N, image_size, image_size, 1], multiples of 1/255 in [0, 1], white
      behind the chair, and azimuths in radians as in the names of the files, float64
      [N]; all views of a chair, by elevation, then by azimuth, then those of the next
      one. No chair is in two splits.

    Raises:
      DataError: the files are missing, damaged, of another size or layout, or unsafe,
        or the images cannot be kept.
      ValueError: a number is out of range.
    """
    views.check_counts(
        {"num_azimuths": 1, "image_size": 1},
        {"num_azimuths": num_azimuths, "image_size": image_size},
    )
    if num_azimuths > NUM_AZIMUTHS:
        raise ValueError(
            f"num_azimuths must be at most {NUM_AZIMUTHS}, got {num_azimuths}"
        )
    renders = open_renders(directory)
    names, azimuths = arrange(renders)
    if verify and len(names) != NUM_CHAIRS:
        raise DataError(
            f"{renders.place}: {len(names):,} chairs, wanted {NUM_CHAIRS:,} "
            "(verify=False takes it as it is)"
        )
    views.check_splits("the number of chairs", len(names), num_validation, num_test)
    listing = "".join(f"{n} {renders.sizes[n]}\n" for chair in names for n in chair)
    recipe = cache.Recipe(
        name=NAME,
        maker=f"{__name__}:start",
        parameters={
            "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
            "image_size": image_size,
            "version": VERSION,
        },
        places={"place": str(renders.place)},
        num_items=len(names),
        item_shape=(NUM_ELEVATIONS * NUM_AZIMUTHS, image_size, image_size),
        items_per_part=CHAIRS_PER_PART,
    )
    images = cache.load(recipe, cache_dir, processes)
    chosen = np.arange(num_azimuths) * NUM_AZIMUTHS // num_azimuths
    chosen = np.concatenate([chosen + i * NUM_AZIMUTHS for i in range(NUM_ELEVATIONS)])
    if num_azimuths < NUM_AZIMUTHS:
        images = images[:, chosen]
    counted = "number of files verified" if verify else "number of files NOT verified"
    source = (
        f"{renders.place}, {counted}; {len(names):,} chairs in {len(chosen)} views, "
        "cropped, on white"
    )
    angles = np.radians(azimuths)[chosen]
    return views.dataset(NAME, source, images, angles, num_validation, num_test)


def start(place: str, listing_sha256: str, image_size: int, version: int) -> cache.Make:
    """Opens the files, to make parts of the cache.

    Returns:
      A function from the first chair and the one after the last to uint8 [N, 62,
      image_size, image_size].
    """
    path = Path(place)
    renders = Folder(path) if path.is_dir() else Archive(path)
    names, _ = arrange(renders)

    def make(first: int, last: int) -> np.ndarray:
        return np.stack(
            [
                scale(f"{place}, {chair[0]}", read_views(renders, chair), image_size)
                for chair in names[first:last]
            ]
        )

    return make


# --- Files ---------------------------------------------------------------------------


def open_renders(directory: files.StrPath | None) -> Renders:
    """Finds the folder or else the archive.

    Raises:
      DataError: there is neither, or the archive is packed or damaged.
    """
    if directory is None:
        raise DataError(
            f"{NAME}: no data directory given, wanted one with a folder {NAME}/; the "
            f"files are to be had from {HOME}"
        )
    folder = files.find_folder(NAME, directory, HOME)
    if (folder / STEM).is_dir():
        return Folder(folder / STEM)
    if (folder / f"{STEM}.tar").is_file():
        return Archive(folder / f"{STEM}.tar")
    for path in sorted(folder.glob(f"{STEM}.t*")):
        raise DataError(
            f"{path}: a packed archive cannot be read at random, wanted it unpacked to "
            f"{STEM}.tar or to the folder {STEM}/"
        )
    raise DataError(
        f"{folder}: no folder {STEM}/ and no file {STEM}.tar, to be had from {HOME}"
    )


class Folder:
    """The unpacked files; see `Renders`."""

    def __init__(self, place: Path):
        self.place = place
        self.sizes = {
            f"{STEM}/{path.relative_to(place).as_posix()}": path.stat().st_size
            for path in place.glob("*/renders/*")
            if path.is_file()
        }

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path = self.place.parent / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


class Archive:
    """The files of a tar archive, read where they are; see `Renders`."""

    def __init__(self, place: Path):
        self.place = place
        self.sizes: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        try:
            with place.open("rb") as file:
                beginning = file.read(6)
            with tarfile.open(place, "r:") as archive:
                for member in archive:
                    self._add(member)
        except tarfile.TarError as error:
            kind = files.describe(beginning)
            known = kind in files.KNOWN_BEGINNINGS.values()
            seen = f"this is {kind}" if known else f"damaged tar archive: {error}"
            raise DataError(
                f"{place}: {seen}, wanted the whole tar archive, not packed"
            ) from None
        except OSError as error:
            raise DataError(f"{place}: cannot be read: {error.strerror}") from error

    def _add(self, member: tarfile.TarInfo) -> None:
        files.check_member(self.place, member.name)
        if not (member.isreg() or member.isdir()):
            raise DataError(
                f"{self.place}: {member.name!r} is a link or a device, wanted files "
                "and folders"
            )
        if member.isreg():
            name = member.name.removeprefix("./")
            self.sizes[name] = member.size
            self._offsets[name] = member.offset_data

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            with self.place.open("rb") as file:
                file.seek(self._offsets[name])
                return file.read(self.sizes[name])
        except OSError as error:
            raise DataError(
                f"{self.place}: cannot be read: {error.strerror}"
            ) from error


def arrange(renders: Renders) -> tuple[list[list[str]], np.ndarray]:
    """Puts the views in order.

    Returns:
      Names of the files, by chair, then by elevation, then by azimuth, and the azimuths
      of each view, [62] degrees.

    Raises:
      DataError: an image has another name, or is missing or one too many.
    """
    chairs: dict[str, dict[tuple[int, int], str]] = {}
    for name in sorted(renders.sizes):
        if not name.endswith(".png") or "/._" in name:
            continue  # the list of names, and what systems leave in folders
        match = LAYOUT.fullmatch(name)
        if match is None:
            raise DataError(
                f"{renders.place}: holds {name}, wanted {STEM}/MODEL/renders/"
                "image_NNN_pELEVATION_tAZIMUTH_rDISTANCE.png"
            )
        if renders.sizes[name] > MAX_FILE_BYTES:
            raise DataError(
                f"{renders.place}: {name} has {renders.sizes[name]} bytes, wanted at "
                f"most {MAX_FILE_BYTES}"
            )
        chair = chairs.setdefault(match[1], {})
        view = int(match[2]), int(match[3])
        if view in chair:
            raise DataError(
                f"{renders.place}: {name} shows the view of {chair[view]} again, "
                "wanted one image a view"
            )
        chair[view] = name
    if not chairs:
        raise DataError(
            f"{renders.place}: no images, wanted {NUM_CHAIRS:,} chairs in "
            f"{NUM_ELEVATIONS * NUM_AZIMUTHS} views; to be had from {HOME}"
        )
    # The views that most chairs have; a chair that lacks one is then the one named.
    every = [tuple(sorted(chair)) for chair in chairs.values()]
    wanted = max(sorted(set(every)), key=every.count)
    elevations = sorted({elevation for elevation, _ in wanted})
    azimuths = sorted({azimuth for _, azimuth in wanted})
    grid = tuple((e, a) for e in elevations for a in azimuths)
    shape = (len(elevations), len(azimuths))
    if wanted != grid or shape != (NUM_ELEVATIONS, NUM_AZIMUTHS):
        model = list(chairs)[every.index(wanted)]
        raise DataError(
            f"{renders.place}: {model} has {len(wanted)} views of {shape[0]} "
            f"elevations and {shape[1]} azimuths, wanted {NUM_ELEVATIONS} x "
            f"{NUM_AZIMUTHS}"
        )
    for model, chair in chairs.items():
        for what, keys in (
            ("lacks", set(wanted) - set(chair)),
            ("has the unknown", set(chair) - set(wanted)),
        ):
            if keys:
                elevation, azimuth = min(keys)
                raise DataError(
                    f"{renders.place}: {model} {what} view p{elevation:03}_"
                    f"t{azimuth:03} and {len(keys) - 1} others, wanted the "
                    f"{len(wanted)} views of the other chairs"
                )
    names = [[chair[view] for view in wanted] for chair in chairs.values()]
    return names, np.array([azimuth for _, azimuth in wanted], np.float64)


# --- Images --------------------------------------------------------------------------


def read_views(renders: Renders, names: Sequence[str]) -> np.ndarray:
    """Decodes images of one chair.

    Args:
      renders: where they are.
      names: [K].

    Returns:
      Luminance, uint8 [K, 600, 600].

    Raises:
      DataError: an image is damaged or of another size.
    """
    from PIL import Image, UnidentifiedImageError  # colour, which `png` does not know

    images = np.empty((len(names), RENDER_SIZE, RENDER_SIZE), np.uint8)
    for image, name in zip(images, names, strict=True):
        place = f"{renders.place}, {name}"
        try:
            with Image.open(io.BytesIO(renders.read(name)), formats=["PNG"]) as picture:
                if picture.size != (RENDER_SIZE, RENDER_SIZE):
                    raise DataError(
                        f"{place}: {picture.width}x{picture.height} pixels, wanted "
                        f"{RENDER_SIZE}x{RENDER_SIZE}"
                    )
                if picture.has_transparency_data:
                    layer = picture.convert("RGBA")
                    paper = Image.new("RGBA", layer.size, "white")
                    grey = Image.alpha_composite(paper, layer).convert("L")
                else:
                    grey = picture.convert("RGB").convert("L")
                image[:] = np.asarray(grey)
        except UnidentifiedImageError:
            raise DataError(f"{place}: not a PNG file, wanted one") from None
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{place}: damaged PNG file: {error}") from None
    return images


def scale(place: object, images: np.ndarray, size: int) -> np.ndarray:
    """Crops all views of a chair alike and scales them by the mean over areas.

    Args:
      place: of the chair, named in messages.
      images: grey values, uint8 [K, S, S], on white.
      size: pixels a side of the result.

    Returns:
      uint8 [K, size, size].

    Raises:
      DataError: there is nothing but background.
    """
    chair = np.any(images < BACKGROUND, axis=0)
    (rows,) = np.nonzero(np.any(chair, axis=1))
    (columns,) = np.nonzero(np.any(chair, axis=0))
    if not len(rows):
        raise DataError(f"{place}: all views are white, wanted a chair")
    ends = [(int(found[0]), int(found[-1]) + 1) for found in (rows, columns)]
    side = (1.0 + 2.0 * MARGIN) * max(last - first for first, last in ends)
    down, across = (
        area_weights(0.5 * (first + last - side), side, images.shape[-1], size)
        for first, last in ends
    )
    # Darkness, so that what is beyond the border is white.
    dark = np.float32(255.0) - images.astype(np.float32)
    dark = down.astype(np.float32) @ dark @ across.T.astype(np.float32)
    return np.rint(np.float32(255.0) - dark).clip(0.0, 255.0).astype(np.uint8)


def area_weights(start: float, side: float, size_in: int, size_out: int) -> np.ndarray:
    """Weights of the mean over the area of each new pixel.

    Args:
      start: of the first new pixel, in old ones; may be beyond the border.
      side: of all new pixels, in old ones.
      size_in: number of old pixels.
      size_out: number of new pixels.

    Returns:
      float64 [size_out, size_in]; a row sums to the share within the border.
    """
    edges = start + side * np.arange(size_out + 1) / size_out
    old = np.arange(size_in)
    first = np.maximum(edges[:-1, None], old)
    last = np.minimum(edges[1:, None], old + 1)
    return np.maximum(last - first, 0.0) * (size_out / side)
