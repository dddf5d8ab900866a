"""Rendered faces: Sec. 4.4.

The paper renders 2,000 faces of the Basel face model (Paysan et al., 2009) in 37 views
each. Here they are rendered from the neutral face and the 100 identity modes of the ICT
Face Model Light, which may be passed on, or from a Basel face model of 2017 or 2019,
which may not: each user has to ask for it. Either model gives shapes alone; the light,
the views and the eyes' irises, which are painted on, are ours.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vhp_jax.data import cache, files, render, views
from vhp_jax.data.base import DataError, Dataset

NAME = "faces"

ICT_FOLDER, ICT_NAME = "ict_face", "ict_face_model.npz"
ICT_HOME = (
    "github.com/ICT-VGL/ICT-FaceKit (the Light model; neutral mesh and identity modes "
    f"repacked as {ICT_NAME})"
)
# Of the npz file, which is packed as a zip archive.
ICT_SHA256 = "8cbf53ab74fe8336c62a394b582df75c37bcab42464501c7c687d0b2e7537cba"
ICT_VERTICES, ICT_MODES, ICT_TRIANGLES = 14_388, 100, 28_552
SCLERAS, IRISES = (2, 4), (3, 5)  # numbers of parts; each iris is behind a sclera

BASEL_FOLDER = "basel_face"
BASEL_HOME = "faces.dmi.unibas.ch/bfm (2017 or 2019, on request)"

LIGHT = render.Light((0.3, 0.5, 1.0), 0.85, 0.15)
DISTANCE = 90.0  # of the camera, cm
IDENTITIES_PER_PART = 20


class FaceModel(NamedTuple):
    """A linear model of shapes; coefficients are independent and normal.

    Attributes:
      mean: float32 [V, 3], x to the right of the picture, y up, z to the viewer.
      modes: float32 [K, 3 V], what a coefficient of 1 adds.
      triangles: int64 [T, 3], counter-clockwise seen from outside.
      albedo: float64 [V] in [0, 1].
      camera: that shows the head.
    """

    mean: np.ndarray
    modes: np.ndarray
    triangles: np.ndarray
    albedo: np.ndarray
    camera: render.Camera


def load(
    directory: files.StrPath | None = None,
    model: str = "ict",
    num_faces: int = 2_000,
    num_views: int = 37,
    yaw_degrees: float = 90.0,
    image_size: int = 64,
    num_validation: int = 100,
    num_test: int = 300,
    seed: int = 0,
    cache_dir: files.StrPath | None = None,
    processes: int | None = None,
    verify: bool = True,
) -> Dataset:
    """Renders the faces, or reads them where they were rendered before.

    Args:
      directory: holds the folder ict_face/ with ict_face_model.npz, or basel_face/ with
        one HDF5 file.
      model: "ict" or "basel".
      num_faces: identities, drawn from the model's normal distribution; the first ones
        do not depend on how many there are.
      num_views: of each face, at equal steps of yaw.
      yaw_degrees: from minus this to this one; positive looks to the right of the
        picture. 37 views from -90 to 90 are 5 degrees apart.
      image_size: pixels a side.
      num_validation: identities of the validation split, the ones before the last.
      num_test: identities of the test split, the last ones.
      seed: of the identities.
      cache_dir: see `vhp_jax.data.cache.load`.
      processes: see `vhp_jax.data.cache.load`.
      verify: whether an ICT model that is not the known one is refused. Of Basel models
        no checksum is known.

    Returns:
      Images float32 [N, image_size, image_size, 1], multiples of 1/255 in [0, 1], black
      behind the head, and yaws in radians, float64 [N]; all views of an identity, by
      yaw, then those of the next one. No identity is in two splits.

    Raises:
      DataError: the model is missing, damaged, of other shapes or not the known one, or
        the images cannot be kept.
      ValueError: a number is out of range, or `model` is neither of the two.
    """
    if model not in READERS:
        raise ValueError(f"model must be 'ict' or 'basel', got {model!r}")
    views.check_splits("num_faces", num_faces, num_validation, num_test)
    views.check_counts(
        {"num_views": 1, "image_size": 1, "seed": 0},
        {"num_views": num_views, "image_size": image_size, "seed": seed},
    )
    if not 0.0 <= yaw_degrees <= 180.0:
        raise ValueError(f"yaw_degrees must be in [0, 180], got {yaw_degrees}")
    path = find_model(directory, model)
    content = _read_bytes(path)
    if model == "ict" and verify:
        files.check_sha256(path, content, ICT_SHA256)
    READERS[model](path, content)  # so that what is wrong is said first, and here
    recipe = cache.Recipe(
        name=NAME,
        maker=f"{__name__}:start",
        parameters={
            "model": model,
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_views": num_views,
            "yaw_degrees": float(yaw_degrees),
            "image_size": image_size,
            "seed": seed,
            "version": render.VERSION,
        },
        places={"path": str(path)},
        num_items=num_faces,
        item_shape=(num_views, image_size, image_size),
        items_per_part=IDENTITIES_PER_PART,
    )
    del content
    images = cache.load(recipe, cache_dir, processes)
    checked = "verified" if model == "ict" and verify else "NOT verified"
    source = (
        f"rendered from {path}, checksum {checked}; {num_faces:,} faces in {num_views} "
        f"views from {-yaw_degrees:g} to {yaw_degrees:g} degrees, seed {seed}"
    )
    angles = yaws(num_views, yaw_degrees)
    return views.dataset(NAME, source, images, angles, num_validation, num_test)


# --- Rendering -----------------------------------------------------------------------


def yaws(num_views: int, yaw_degrees: float) -> np.ndarray:
    """Angles of the views: equal steps, or from the front if there is but one.

    Returns:
      float64 [num_views], radians, exactly symmetric.
    """
    steps = np.arange(1 - num_views, num_views, 2)  # -K + 1, -K + 3, ..., K - 1
    return np.radians(yaw_degrees * steps / max(num_views - 1, 1))


def start(
    path: str,
    model: str,
    sha256: str,
    num_views: int,
    yaw_degrees: float,
    image_size: int,
    seed: int,
    version: int,
) -> cache.Make:
    """Reads a model, to make parts of the cache.

    Returns:
      A function from the first identity and the one after the last to uint8 [N,
      num_views, image_size, image_size].
    """
    content = _read_bytes(Path(path))
    files.check_sha256(path, content, sha256)
    shapes = READERS[model](Path(path), content)
    angles = yaws(num_views, yaw_degrees)

    def make(first: int, last: int) -> np.ndarray:
        # Drawn in order, so that the first ones are the same however many there are.
        drawn = np.random.default_rng(seed).standard_normal((last, len(shapes.modes)))
        return np.stack(
            [
                render_views(shapes, coefficients, angles, image_size)
                for coefficients in drawn[first:]
            ]
        )

    return make


def render_views(
    model: FaceModel,
    coefficients: np.ndarray,
    angles: np.ndarray,
    image_size: int,
    light: render.Light = LIGHT,
) -> np.ndarray:
    """Renders one identity.

    Args:
      model: see `FaceModel`.
      coefficients: [K], of the modes.
      angles: [N] yaws, radians.
      image_size: pixels a side.
      light: see `vhp_jax.data.render.Light`.

    Returns:
      uint8 [N, image_size, image_size].
    """
    change = coefficients.astype(np.float32) @ model.modes
    vertices = (model.mean + change.reshape(-1, 3)).astype(np.float64)
    normals = render.vertex_normals(vertices, model.triangles)
    mesh = render.Mesh(vertices, model.triangles, model.albedo, normals)
    images = [
        render.render(mesh, render.rotation(yaw), model.camera, light, image_size)
        for yaw in angles
    ]
    return np.rint(255.0 * np.stack(images)).astype(np.uint8)


# --- Models --------------------------------------------------------------------------


def find_model(directory: files.StrPath | None, model: str) -> Path:
    """The file of a model.

    Args:
      directory: see `load`.
      model: "ict" or "basel".

    Raises:
      DataError: no directory, no such folder, no such file, or more than one.
    """
    name, home = FOLDERS[model]
    if directory is None:
        raise DataError(
            f"{NAME}: no data directory given, wanted one with a folder {name}/; the "
            f"model is to be had from {home}"
        )
    folder = files.find_folder(name, directory, home)
    if model == "ict":
        path = folder / ICT_NAME
        if not path.is_file():
            raise DataError(f"{folder}: no file {ICT_NAME}, to be had from {home}")
        return path
    found = sorted(folder.glob("*.h5"))
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: wanted one file *.h5, to be had from {home}; seen {seen}"
        )
    return found[0]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _check(
    place: object, name: str, array: np.ndarray, kinds: str, shape: tuple[int, ...]
) -> None:
    """Raises DataError at another type or shape, or at what is not finite.

    Args:
      place: the file.
      name: of the array.
      array: to be checked.
      kinds: letters of NumPy's kinds of types.
      shape: wanted; -1 for any.
    """
    fits = array.ndim == len(shape) and all(
        wanted in (-1, seen) for seen, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        words = {"f": "floating-point", "iu": "whole"}[kinds]
        raise DataError(
            f"{place}: {name} has shape {array.shape} of {array.dtype}, wanted "
            f"{words} numbers of shape {shape}"
        )
    finite = np.isfinite(array.ravel())
    if not finite.all():
        index = int(np.argmin(finite))
        raise DataError(
            f"{place}: {name} holds {array.flat[index]} at {index}, wanted finite "
            "numbers"
        )


def _check_triangles(place: object, triangles: np.ndarray, num_vertices: int) -> None:
    if triangles.size and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        seen = f"{triangles.min()} to {triangles.max()}"
        raise DataError(
            f"{place}: triangles of the vertices {seen}, wanted 0 to {num_vertices - 1}"
        )


def read_ict(place: object, content: bytes) -> FaceModel:
    """Reads the repacked ICT Face Model Light.

    The irises, which are behind the scleras in the model, are left out and painted.

    Args:
      place: the file, named in messages.
      content: of the npz file.

    Raises:
      DataError: not such a file, damaged, an array missing, of another type or shape
        or with values out of range.
    """
    num = ICT_VERTICES
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "neutral": ("f", (num, 3)),
        "modes_q": ("iu", (ICT_MODES, num, 3)),
        "modes_scale": ("f", (ICT_MODES,)),
        "triangles": ("iu", (ICT_TRIANGLES, 3)),
        "part": ("iu", (num,)),
    }
    if not content.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{place}: this is {files.describe(content)}, wanted an npz file (a zip "
            "archive of NumPy arrays)"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in shapes if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place}: damaged npz file: {error}") from None
    for name, (kinds, shape) in shapes.items():
        if name not in arrays:
            raise DataError(f"{place}: no array {name}, wanted one of {shape}")
        _check(place, name, arrays[name], kinds, shape)
    _check_triangles(place, arrays["triangles"], num)

    neutral, part = arrays["neutral"].astype(np.float32), arrays["part"]
    kept = ~np.isin(part, IRISES)
    number = np.cumsum(kept) - 1
    triangles = arrays["triangles"].astype(np.int64)
    triangles = number[triangles[kept[triangles].all(axis=1)]]
    modes = (
        arrays["modes_q"][:, kept]
        * arrays["modes_scale"].astype(np.float32)[:, None, None]
    )
    camera = render.Camera(DISTANCE, 19.5, (0.0, 1.8, 1.8))
    return FaceModel(
        neutral[kept],
        modes.astype(np.float32).reshape(len(modes), -1),
        triangles,
        _paint(neutral, part)[kept],
        camera,
    )


def _paint(neutral: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Albedo of skin, scleras, irises and pupils, float64 [V]."""
    albedo = np.full(len(neutral), 0.9)
    for number in SCLERAS:
        (eye,) = np.nonzero(part == number)
        if not len(eye):
            continue
        x, y, z = neutral[eye].T
        front = np.argmax(z)
        radius = np.hypot(x - x[front], y - y[front])  # cm
        painted = np.where(radius < 0.25, 0.05, np.where(radius < 0.62, 0.25, 1.0))
        albedo[eye] = np.where(z > z.mean(), painted, 1.0)
    return albedo


def read_basel(place: object, content: bytes) -> FaceModel:
    """Reads the shapes of a Basel face model of 2017 or 2019.

    Args:
      place: the file, named in messages.
      content: of the HDF5 file: in /shape, model/mean [3 V], model/pcaBasis [3 V, K],
        model/pcaVariance [K] and representer/cells [3, T].

    Raises:
      DataError: not such a file, damaged, an array missing, of another type or shape
        or with values out of range, or h5py is not installed.
    """
    if not content.startswith(b"\x89HDF"):
        raise DataError(
            f"{place}: this is {files.describe(content)}, wanted an HDF5 file"
        )
    try:
        import h5py  # of use for this alone
    except ImportError as error:
        raise DataError(
            f"{place}: cannot be read without h5py, wanted it installed (pip install "
            "'vhp_jax[faces]')"
        ) from error
    names = ("model/mean", "model/pcaBasis", "model/pcaVariance", "representer/cells")
    arrays: dict[str, Any] = {}
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            for name in names:
                if isinstance(file.get(f"shape/{name}"), h5py.Dataset):
                    arrays[name] = np.asarray(file[f"shape/{name}"][()])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{place}: damaged HDF5 file: {error}") from None
    for name in names:
        if name not in arrays:
            raise DataError(f"{place}: no array /shape/{name}, wanted one")
    mean, basis, variance, cells = (arrays[name] for name in names)
    _check(place, "/shape/model/mean", mean, "f", (-1,))
    _check(place, "/shape/model/pcaVariance", variance, "f", (-1,))
    wanted = (len(mean), len(variance))
    _check(place, "/shape/model/pcaBasis", basis, "f", wanted)
    _check(place, "/shape/representer/cells", cells, "iu", (3, -1))
    if len(mean) % 3 or not len(mean) or not cells.size:
        raise DataError(
            f"{place}: /shape/model/mean has {len(mean)} values and /shape/representer/"
            f"cells {cells.shape[1]} triangles, wanted three values a vertex and both"
        )
    if variance.min() < 0.0:
        raise DataError(
            f"{place}: /shape/model/pcaVariance holds {variance.min()}, wanted none "
            "below 0"
        )
    vertices = mean.reshape(-1, 3).astype(np.float32)
    triangles = cells.T.astype(np.int64)
    _check_triangles(place, triangles, len(vertices))
    # Either orientation is met; seen from the middle, a face is inside out.
    a, b, c = vertices[triangles.T].astype(np.float64)
    middle = vertices.mean(axis=0)
    if (np.cross(b - a, c - a) * (a - middle)).sum() < 0.0:
        triangles = triangles[:, ::-1]
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    extent = float((high - low).max())
    x, y, z = (0.5 * (low + high)).tolist()
    return FaceModel(
        vertices,
        (basis * np.sqrt(variance)).T.astype(np.float32, order="C"),
        triangles,
        np.full(len(vertices), 0.9),
        render.Camera(3.2 * extent, 20.0, (x, y, z)),
    )


FOLDERS = {"ict": (ICT_FOLDER, ICT_HOME), "basel": (BASEL_FOLDER, BASEL_HOME)}
READERS: dict[str, Callable[[Path, bytes], FaceModel]] = {
    "ict": read_ict,
    "basel": read_basel,
}
