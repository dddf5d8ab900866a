"""Synthetic chairs: a stand-in for the rendered chairs of Sec. 4.4, of its own name.

As many shapes and views as `vhp_jax.data.chairs`, but the shapes are put together from
boxes and rods with drawn sizes, and rendered here. Results on them are not results on
the chairs of Aubry et al. (2014).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vhp_jax.data import cache, files, render, views
from vhp_jax.data.base import Dataset

NAME = "chairs_synthetic"
VERSION = 1  # of the shapes: to be raised where they change
NUM_SHAPES, NUM_AZIMUTHS = 1_393, 31
ELEVATIONS = (20.0, 30.0)  # of the camera, degrees

LIGHT = render.Light((-0.4, 0.9, 0.8), 0.65, 0.35)
BACKGROUND = 1.0
MARGIN = 0.06  # left free around the chair in its widest view
SHAPES_PER_PART = 20

# What is drawn for each shape, uniform between two bounds. Lengths in m, albedo from
# black to white; kinds are numbers in [0, 1), see `draw`.
BOUNDS = {
    "seat_width": (0.38, 0.64),
    "seat_depth": (0.38, 0.60),
    "seat_thickness": (0.02, 0.11),
    "seat_height": (0.34, 0.54),
    "seat_squareness": (0.0, 1.0),  # from an ellipse to a rectangle
    "seat_albedo": (0.25, 0.95),
    "back_kind": (0.0, 1.0),
    "back_height": (0.24, 0.78),
    "back_thickness": (0.015, 0.06),
    "back_tilt": (0.0, 0.36),  # radians
    "back_curve": (0.0, 0.14),  # its middle is behind its sides
    "back_taper": (0.65, 1.15),  # width at the top over width at the seat
    "back_bars": (2.0, 7.0),
    "base_kind": (0.0, 1.0),
    "leg_thickness": (0.022, 0.065),
    "leg_splay": (0.0, 0.10),
    "leg_taper": (0.45, 1.0),  # thickness at the floor over thickness at the seat
    "leg_roundness": (0.0, 1.0),
    "stretchers": (0.0, 1.0),
    "base_radius": (0.24, 0.36),
    "arms": (0.0, 1.0),
    "arm_height": (0.16, 0.28),
    "arm_thickness": (0.02, 0.055),
    "frame_albedo": (0.12, 0.85),
}
BACKS = ("panel", "slats", "ladder", "frame")
BASES = ("legs", "legs", "swivel", "sled", "pedestal")


class Chair(NamedTuple):
    """Parameters of a shape; see `BOUNDS` for what is not said here.

    Attributes:
      sizes: the drawn numbers by name.
      back: "panel", "slats" (upright), "ladder" (across) or "frame" (open).
      base: "legs", "swivel" (a star of rods), "sled" or "pedestal".
      arms: whether there are arms.
      stretchers: whether rods join the legs.
    """

    sizes: dict[str, float]
    back: str
    base: str
    arms: bool
    stretchers: bool


def load(
    num_shapes: int = NUM_SHAPES,
    num_azimuths: int = NUM_AZIMUTHS,
    image_size: int = 64,
    num_validation: int = 70,
    num_test: int = 140,
    seed: int = 0,
    cache_dir: files.StrPath | None = None,
    processes: int | None = None,
) -> Dataset:
    """Renders the chairs, or reads them where they were rendered before.

    Args:
      num_shapes: drawn; the first ones do not depend on how many there are.
      num_azimuths: equal steps around each shape, at both elevations, 20 and 30
        degrees; 0 shows it from the front.
      image_size: pixels a side.
      num_validation: shapes of the validation split, the ones before the last.
      num_test: shapes of the test split, the last ones.
      seed: of the shapes.
      cache_dir: see `vhp_jax.data.cache.load`.
      processes: see `vhp_jax.data.cache.load`.

    Returns:
      Images float32 [N, image_size, image_size, 1], multiples of 1/255 in [0, 1], white
      behind the chair, and azimuths in [0, 2 pi), float64 [N]; all views of a shape, by
      elevation, then by azimuth, then those of the next one. No shape is in two splits.

    Raises:
      DataError: the images cannot be kept.
      ValueError: a number is out of range.
    """
    views.check_splits("num_shapes", num_shapes, num_validation, num_test)
    views.check_counts(
        {"num_azimuths": 1, "image_size": 1, "seed": 0},
        {"num_azimuths": num_azimuths, "image_size": image_size, "seed": seed},
    )
    recipe = cache.Recipe(
        name=NAME,
        maker=f"{__name__}:start",
        parameters={
            "num_azimuths": num_azimuths,
            "image_size": image_size,
            "seed": seed,
            "version": [render.VERSION, VERSION],
        },
        places={},
        num_items=num_shapes,
        item_shape=(len(ELEVATIONS) * num_azimuths, image_size, image_size),
        items_per_part=SHAPES_PER_PART,
    )
    images = cache.load(recipe, cache_dir, processes)
    source = (
        f"SYNTHETIC, a stand-in for the rendered chairs: {num_shapes:,} shapes in "
        f"{recipe.item_shape[0]} views, generated, seed {seed}"
    )
    angles = np.tile(azimuths(num_azimuths), len(ELEVATIONS))
    return views.dataset(NAME, source, images, angles, num_validation, num_test)


def azimuths(num_azimuths: int) -> np.ndarray:
    """Equal steps around a shape, float64 [num_azimuths], radians, from 0."""
    return 2.0 * np.pi * np.arange(num_azimuths) / num_azimuths


def start(num_azimuths: int, image_size: int, seed: int, version: object) -> cache.Make:
    """Makes parts of the cache.

    Returns:
      A function from the first shape and the one after the last to uint8 [N, 2
      num_azimuths, image_size, image_size].
    """

    def make(first: int, last: int) -> np.ndarray:
        chairs = draw(seed, last)[first:]
        return np.stack([render_views(c, num_azimuths, image_size) for c in chairs])

    return make


def render_views(chair: Chair, num_azimuths: int, image_size: int) -> np.ndarray:
    """Renders one shape, as large as fits into all of its views.

    Returns:
      uint8 [2 num_azimuths, image_size, image_size].
    """
    mesh = build(chair)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    target = 0.5 * (low + high)
    target[0] = target[2] = 0.0  # turned about the middle of the seat
    distance = 2.5 * float(np.linalg.norm(high - low))
    turns = [
        render.rotation(azimuth, math.radians(elevation))
        for elevation in ELEVATIONS
        for azimuth in azimuths(num_azimuths)
    ]
    x, y, z = np.stack(turns, axis=1) @ (mesh.vertices - target).T  # [K, V] each
    reach = float((np.maximum(np.abs(x), np.abs(y)) / (distance - z)).max())
    angle = 2.0 * math.degrees(math.atan(reach / (1.0 - MARGIN)))
    camera = render.Camera(distance, angle, (0.0, float(target[1]), 0.0))
    images = [
        render.render(mesh, turned, camera, LIGHT, image_size, background=BACKGROUND)
        for turned in turns
    ]
    return np.rint(255.0 * np.stack(images)).astype(np.uint8)


# --- Shapes --------------------------------------------------------------------------


def draw(seed: int, num_shapes: int) -> list[Chair]:
    """Draws parameters; the first shapes do not depend on how many there are."""
    drawn = np.random.default_rng(seed).random((num_shapes, len(BOUNDS)))
    return [parameters(row) for row in drawn]


def parameters(drawn: np.ndarray) -> Chair:
    """The chair of some numbers in [0, 1), one for each of `BOUNDS`, in its order."""
    sizes = {
        name: low + (high - low) * number
        for (name, (low, high)), number in zip(
            BOUNDS.items(), drawn.tolist(), strict=True
        )
    }
    base = BASES[int(sizes["base_kind"] * len(BASES))]
    return Chair(
        sizes,
        back=BACKS[int(sizes["back_kind"] * len(BACKS))],
        base=base,
        arms=sizes["arms"] < 0.4,
        stretchers=base == "legs" and sizes["stretchers"] < 0.4,
    )


class Solid(NamedTuple):
    """A convex part: vertices [V, 3], triangles [T, 3] and its albedo."""

    vertices: np.ndarray
    triangles: np.ndarray
    albedo: float


def build(chair: Chair) -> render.Mesh:
    """Puts the parts of a chair together: x to its left, y up, z to its front, in m."""
    solids = parts(chair)
    numbers = np.cumsum([0] + [len(solid.vertices) for solid in solids])
    vertices = np.concatenate([solid.vertices for solid in solids])
    triangles = np.concatenate(
        [n + solid.triangles for n, solid in zip(numbers[:-1], solids, strict=True)]
    )
    albedo = np.concatenate([np.full(len(s.vertices), s.albedo) for s in solids])
    normals = render.vertex_normals(vertices, triangles)
    return render.Mesh(vertices, triangles, albedo, normals)


def parts(chair: Chair) -> list[Solid]:
    """The parts of a chair; each touches another one."""
    solids = [_seat(chair), *_back(chair), *_base(chair)]
    return solids + _arms(chair) if chair.arms else solids


def prism(
    bottom: np.ndarray, top: np.ndarray, albedo: float, smooth: bool = False
) -> Solid:
    """A solid between two convex polygons, which may differ in place, size and tilt.

    Args:
      bottom: [N, 3], counter-clockwise seen from the top.
      top: [N, 3], the corners above those of the bottom.
      albedo: of all sides.
      smooth: whether the normals of the sides are interpolated, as on a rod.
    """
    n = len(bottom)
    i = np.arange(n)
    j = (i + 1) % n
    if smooth:  # [2 N] corners of the sides
        sides = np.concatenate([bottom, top])
        quads = np.stack([i, j, n + j, n + i], axis=1)
    else:  # [4 N]: no two sides share a vertex, and hence no normal
        sides = np.stack([bottom, bottom[j], top[j], top], axis=1).reshape(-1, 3)
        quads = np.arange(4 * n).reshape(n, 4)
    fan = np.stack([np.zeros(n - 2, np.int64), i[1:-1], i[2:]], axis=1)
    triangles = [quads[:, :3], quads[:, [0, 2, 3]]]
    triangles += [len(sides) + fan[:, ::-1], len(sides) + n + fan]
    vertices = np.concatenate([sides, bottom, top])
    return Solid(vertices, np.concatenate(triangles), albedo)


def rod(
    start: Sequence[float] | np.ndarray,
    end: Sequence[float] | np.ndarray,
    thickness: tuple[float, float],
    albedo: float,
    is_round: bool = False,
) -> Solid:
    """A round or square rod between two points.

    Args:
      start: [3].
      end: [3].
      thickness: at the start and at the end.
      albedo: of all sides.
      is_round: else its cross-section is a square.
    """
    a, b = np.asarray(start), np.asarray(end)
    along = (b - a) / np.linalg.norm(b - a)
    across = np.array([0.0, 0.0, 1.0]) if abs(along[2]) < 0.7 else np.array([0, 1.0, 0])
    u = across - (across @ along) * along
    u /= np.linalg.norm(u)
    v = np.cross(along, u)
    count, scale = (12, 0.5) if is_round else (4, math.sqrt(0.5))
    angle = 2.0 * np.pi * (np.arange(count) + 0.5) / count
    ring = scale * (np.outer(np.cos(angle), u) + np.outer(np.sin(angle), v))
    return prism(a + thickness[0] * ring, b + thickness[1] * ring, albedo, is_round)


def _seat(chair: Chair) -> Solid:
    """A plate whose outline is a superellipse or a rectangle."""
    s = chair.sizes
    if s["seat_squareness"] > 0.6:
        z, x = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]])
    else:
        power = 1.0 - 1.2 * s["seat_squareness"]  # 1 is an ellipse, 0 a rectangle
        angle = 2.0 * np.pi * (np.arange(32) + 0.5) / 32
        z, x = (
            np.sign(wave) * np.abs(wave) ** power
            for wave in (np.cos(angle), np.sin(angle))
        )
    x, z = 0.5 * s["seat_width"] * x, 0.5 * s["seat_depth"] * z
    heights = (s["seat_height"] - s["seat_thickness"], s["seat_height"])
    bottom, top = (np.stack([x, np.full(len(x), y), z], axis=1) for y in heights)
    return prism(bottom, top, s["seat_albedo"], smooth=len(x) > 4)


def _inset(chair: Chair) -> float:
    """How far the corners of what is under or over the seat are from its middle."""
    return 0.92 if chair.sizes["seat_squareness"] > 0.4 else 0.74


def _back_point(chair: Chair, across: float, up: float) -> np.ndarray:
    """A point of the middle surface of the back.

    Args:
      chair: see `Chair`.
      across: -1 and 1 at its sides.
      up: 0 at the seat, 1 at its top.
    """
    s = chair.sizes
    width = _inset(chair) * s["seat_width"] * (1.0 + (s["back_taper"] - 1.0) * up)
    height = s["back_height"] * up
    return np.array(
        [
            0.5 * width * across,
            s["seat_height"] + height * math.cos(s["back_tilt"]),
            -0.5 * _inset(chair) * s["seat_depth"]
            - height * math.sin(s["back_tilt"])
            - s["back_curve"] * (1.0 - across**2) * min(max(up, 0.0), 1.0),
        ]
    )


def _back(chair: Chair) -> list[Solid]:
    s = chair.sizes
    half = np.array([0.0, 0.0, 0.5 * s["back_thickness"]])
    low = -0.5 * s["seat_thickness"] / s["back_height"]  # within the seat

    def bend(
        left: float, right: float, bottom: float, top: float, kind: str = "frame_albedo"
    ) -> list[Solid]:
        """A bent plate of the back between two sides and two heights."""
        count = max(1, round(5.0 * (right - left)))
        edges = np.linspace(left, right, count + 1)
        solids = []
        for a, b in itertools.pairwise(edges):
            ends = []
            for up in (bottom, top):
                one, other = _back_point(chair, a, up), _back_point(chair, b, up)
                ends.append(
                    np.stack([one - half, one + half, other + half, other - half])
                )
            solids.append(prism(ends[0], ends[1], s[kind]))
        return solids

    if chair.back == "panel":
        return bend(-1.0, 1.0, low, 1.0, "seat_albedo")
    solids = bend(-1.0, -0.88, low, 1.0) + bend(0.88, 1.0, low, 1.0)
    solids += bend(-1.0, 1.0, 0.86, 1.0)
    number = int(s["back_bars"])
    if chair.back == "slats":
        for i in range(number):
            middle = -0.88 + 1.76 * (i + 1) / (number + 1)
            width = 0.55 / (number + 1)
            solids += bend(middle - width, middle + width, low, 0.9)
    elif chair.back == "ladder":
        for i in range(number - 1):
            middle = 0.1 + 0.8 * i / (number - 1)
            solids += bend(-0.9, 0.9, middle, middle + 0.38 / (number - 1))
    else:
        solids += bend(-0.9, 0.9, 0.2, 0.3)
    return solids


def _base(chair: Chair) -> list[Solid]:
    s = chair.sizes
    albedo, thick = s["frame_albedo"], s["leg_thickness"]
    top = s["seat_height"] - 0.9 * s["seat_thickness"]  # within the seat
    is_round = s["leg_roundness"] > 0.5
    x = 0.5 * _inset(chair) * (s["seat_width"] - thick)
    z = 0.5 * _inset(chair) * (s["seat_depth"] - thick)
    radius = s["base_radius"]
    if chair.base == "legs":
        thickness = (s["leg_taper"] * thick, thick)
        outward = 1.0 + s["leg_splay"] / math.hypot(x, z)
        feet = {
            (i, k): np.array([i * x * outward, 0.0, k * z * outward])
            for i in (-1, 1)
            for k in (-1, 1)
        }
        heads = {(i, k): np.array([i * x, top, k * z]) for i, k in feet}
        solids = [rod(feet[c], heads[c], thickness, albedo, is_round) for c in feet]
        if chair.stretchers:
            at = {c: 0.65 * feet[c] + 0.35 * heads[c] for c in feet}
            thin = (0.6 * s["leg_taper"] * thick,) * 2
            left, right = (0.5 * (at[i, -1] + at[i, 1]) for i in (-1, 1))
            solids += [rod(at[i, -1], at[i, 1], thin, albedo) for i in (-1, 1)]
            solids.append(rod(left, right, thin, albedo))
        return solids
    if chair.base == "sled":
        y = 0.5 * thick
        solids = []
        for i in (-1, 1):
            corners = [(i * x, y, -z), (i * x, y, z)]
            solids.append(
                rod((i * x, y, -z - y), (i * x, y, z + y), (thick,) * 2, albedo)
            )
            solids += [
                rod(corner, (corner[0], top, corner[2]), (thick,) * 2, albedo)
                for corner in corners
            ]
        return solids
    column = (1.2 * thick, 1.2 * thick)
    if chair.base == "pedestal":
        return [
            rod((0.0, 0.0, 0.0), (0.0, 0.03, 0.0), (1.7 * radius,) * 2, albedo, True),
            rod((0.0, 0.02, 0.0), (0.0, top, 0.0), column, albedo, True),
        ]
    solids = [rod((0.0, 0.06, 0.0), (0.0, top, 0.0), column, albedo, True)]
    for angle in 2.0 * np.pi * np.arange(5) / 5:
        x, z = radius * math.sin(angle), radius * math.cos(angle)
        thickness = (thick, 0.7 * thick)
        solids.append(rod((0.0, 0.1, 0.0), (x, 0.06, z), thickness, albedo))
        solids.append(rod((x, 0.0, z), (x, 0.07, z), (0.05, 0.05), albedo, True))
    return solids


def _arms(chair: Chair) -> list[Solid]:
    s = chair.sizes
    thick = s["arm_thickness"]
    up = min(s["arm_height"] / s["back_height"], 0.8)
    solids = []
    for i in (-1, 1):
        rear = _back_point(chair, 0.97 * i, up)
        x = 0.5 * i * _inset(chair) * s["seat_width"]
        front = np.array([x, rear[1], 0.32 * s["seat_depth"] * _inset(chair)])
        foot = np.array([x, s["seat_height"] - 0.5 * s["seat_thickness"], front[2]])
        beyond = front + 0.5 * thick * (front - rear) / np.linalg.norm(front - rear)
        solids.append(rod(rear, beyond, (thick, thick), s["frame_albedo"]))
        solids.append(rod(foot, front, (thick, thick), s["frame_albedo"]))
    return solids
