"""Renders triangle meshes as small grey images: the faces and chairs of Sec. 4.4.

A perspective camera, a z-buffer, normals interpolated between the vertices, one distant
light and an ambient one; anti-aliased by the mean over several samples a pixel. Images
are pure functions of their arguments.

The rasteriser is made for meshes whose triangles are about as large as a sample, where
a loop over triangles or over samples would be far too slow: all triangles are cut into
spans of one row at once, then all spans into samples, so that each array has as many
elements as there is work to do. An edge's crossing of a row is computed from the edge
alone, in the same order for the triangles at both of its sides, and a span holds its
left end but not its right one; hence no sample between two triangles is missed or
covered twice.

Coordinates are right-handed: x to the right of the picture, y up, z to the viewer.
"""

import math
from typing import NamedTuple

import numpy as np

# Belongs to everything that is kept on disk: to be raised where images change.
VERSION = 1

# Square samples; smaller triangles are seen from the side, but for rounding.
SMALLEST_AREA = 1e-9


class Mesh(NamedTuple):
    """A closed surface.

    Attributes:
      vertices: float [V, 3].
      triangles: int [T, 3], counter-clockwise seen from outside. They are not seen from
        inside.
      albedo: float [V], the share of light given back, in [0, 1].
      normals: float [V, 3], outward, of any length; see `vertex_normals`.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    albedo: np.ndarray
    normals: np.ndarray


class Camera(NamedTuple):
    """A camera that looks along -z at a point, in the middle of the picture.

    Attributes:
      distance: from the point to the eye, in units of the mesh.
      field_of_view: angle between the left and the right border, degrees.
      target: the point, which the mesh is turned about.
    """

    distance: float
    field_of_view: float
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Light(NamedTuple):
    """Brightness is albedo (ambient + diffuse max(0, cos)), cos to the direction.

    Attributes:
      direction: towards the light as the camera sees it, of any length.
      diffuse: at a surface that faces the light.
      ambient: everywhere.
    """

    direction: tuple[float, float, float] = (0.0, 0.5, 1.0)
    diffuse: float = 0.8
    ambient: float = 0.2


class Samples(NamedTuple):
    """What a camera sees, one sample an entry, only where there is a surface.

    Attributes:
      sample: int [N], row times the width plus column; each at most once.
      triangle: int [N], the nearest triangle.
      weights: float64 [N, 3], of its three vertices, summing to 1: barycentric in
        space, not in the picture.
      depth: float64 [N], distance to the eye along z.
    """

    sample: np.ndarray
    triangle: np.ndarray
    weights: np.ndarray
    depth: np.ndarray


def rotation(yaw: float, elevation: float = 0.0) -> np.ndarray:
    """How a turned mesh appears to a raised camera.

    Args:
      yaw: radians; positive turns what faces the camera to the right of the picture.
      elevation: of the camera, radians; positive looks down on the mesh.

    Returns:
      float64 [3, 3], to be multiplied with column vectors.
    """
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    cos, sin = math.cos(elevation), math.sin(elevation)
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return tilt @ turn


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Normals of the triangles at each vertex, weighted by their areas.

    Args:
      vertices: [V, 3].
      triangles: [T, 3].

    Returns:
      float64 [V, 3], of length 1; 0 at a vertex of no triangle.
    """
    a, b, c = vertices.astype(np.float64)[triangles.T]  # [T, 3] each
    areas = np.cross(b - a, c - a)  # twice the area long
    corners = triangles.ravel()
    sums = np.stack(
        [
            np.bincount(corners, np.repeat(component, 3), minlength=len(vertices))
            for component in areas.T
        ],
        axis=1,
    )
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    return sums / np.where(lengths > 0.0, lengths, 1.0)


def project(
    points: np.ndarray, turned: np.ndarray, camera: Camera, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where points are in the picture.

    Args:
      points: [V, 3].
      turned: [3, 3], see `rotation`.
      camera: see `Camera`.
      size: pixels a side.

    Returns:
      Column and row in pixels, 0 at the left and the upper border, and depth: the
      distance to the eye along z. float64 [V] each.
    """
    x, y, z = turned @ (points - np.asarray(camera.target)).T
    depth = camera.distance - z
    scale = 0.5 * size / math.tan(math.radians(0.5 * camera.field_of_view)) / depth
    return 0.5 * size + scale * x, 0.5 * size - scale * y, depth


def rasterise(
    column: np.ndarray,
    row: np.ndarray,
    depth: np.ndarray,
    triangles: np.ndarray,
    size: int,
) -> Samples:
    """Finds the nearest triangle of every sample.

    Samples are at the middles of a grid of size x size. A sample on an edge belongs to
    the triangle at its right; on a horizontal edge, to the one below.

    Args:
      column: float64 [V], in samples from the left border.
      row: float64 [V], in samples from the upper border.
      depth: float64 [V], positive.
      triangles: int [T, 3]; those that are not counter-clockwise in the picture are not
        seen.
      size: samples a side.

    Returns:
      What is seen, in the order of the samples. Of triangles at the same depth, the
      first.
    """
    x, y, near = column - 0.5, row - 0.5, 1.0 / depth  # samples at whole numbers
    corners = triangles.T.astype(np.intp)
    t, begin, count = _covered_rows(x, y, corners, size)
    spans = _spans(x, y, corners[:, t], begin, count, size)
    corners = corners[:, t]

    # 1 / depth and the weights in the picture are linear in column and row.
    x0, y0, near_a = x[corners[0]], y[corners[0]], near[corners[0]]
    across, down = _gradients(x, y, corners)
    near_b, near_c = near[corners[1]] - near_a, near[corners[2]] - near_a
    slope_x = across[0] * near_b + across[1] * near_c
    slope_y = down[0] * near_b + down[1] * near_c
    of = spans.triangle
    near_left = near_a[of] + slope_x[of] * (spans.begin - x0[of])
    near_left += slope_y[of] * (spans.row - y0[of])

    # Spans into samples, each with its span.
    span, offset = _expand(spans.length)
    near_s = near_left[span] + slope_x[of][span] * offset
    index = (spans.row * size + spans.begin)[span] + offset

    nearest = np.zeros(size * size)
    np.maximum.at(nearest, index, near_s)
    (seen,) = np.nonzero(near_s == nearest[index])
    owner = np.full(size * size, -1)
    owner[index[seen[::-1]]] = seen[::-1]  # of equals the first is written last
    seen = owner[owner >= 0]

    of = of[span[seen]]
    dx = index[seen] % size - x0[of]
    dy = index[seen] // size - y0[of]
    weight_b = across[0][of] * dx + down[0][of] * dy
    weight_c = across[1][of] * dx + down[1][of] * dy
    weights = np.stack([1.0 - weight_b - weight_c, weight_b, weight_c], axis=1)
    np.clip(weights, 0.0, 1.0, out=weights)  # rounding in very thin triangles
    weights *= near[triangles[t[of]]]
    total = weights.sum(axis=1)
    return Samples(index[seen], t[of], weights / total[:, None], 1.0 / total)


class _Spans(NamedTuple):
    """Samples in a row of a triangle, [N] each: where they are and how many."""

    triangle: np.ndarray
    row: np.ndarray
    begin: np.ndarray
    length: np.ndarray


def _expand(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index i count[i] times for each i, and 0, ..., count[i] - 1 beside it."""
    index = np.repeat(np.arange(len(count)), count)
    ends = np.cumsum(count)
    return index, np.arange(len(index)) - (ends - count)[index]


def _covered_rows(
    x: np.ndarray, y: np.ndarray, corners: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles that may hold a sample, with the first and the number of their rows."""
    xa, xb, xc = x[corners]
    ya, yb, yc = y[corners]
    # Rows count downwards: this is twice the area of what faces the camera.
    front = (xc - xa) * (yb - ya) - (xb - xa) * (yc - ya) > SMALLEST_AREA
    begin = np.ceil(np.maximum(np.minimum(np.minimum(ya, yb), yc), 0.0))
    end = np.ceil(np.minimum(np.maximum(np.maximum(ya, yb), yc), size))
    begin_x = np.ceil(np.maximum(np.minimum(np.minimum(xa, xb), xc), 0.0))
    end_x = np.ceil(np.minimum(np.maximum(np.maximum(xa, xb), xc), size))
    (kept,) = np.nonzero(front & (end > begin) & (end_x > begin_x))
    begin = begin[kept].astype(np.intp)
    return kept, begin, end[kept].astype(np.intp) - begin


def _spans(
    x: np.ndarray,
    y: np.ndarray,
    corners: np.ndarray,
    begin: np.ndarray,
    count: np.ndarray,
    size: int,
) -> _Spans:
    """Cuts triangles into spans; see the module."""
    a, b, c = corners
    a, b = np.where(y[a] <= y[b], (a, b), (b, a))
    b, c = np.where(y[b] <= y[c], (b, c), (c, b))
    a, b = np.where(y[a] <= y[b], (a, b), (b, a))
    xa, ya, xb, yb, xc, yc = x[a], y[a], x[b], y[b], x[c], y[c]
    with np.errstate(divide="ignore", invalid="ignore"):  # no row crosses a flat edge
        long = (xc - xa) / (yc - ya)
        upper = (xb - xa) / (yb - ya)
        lower = (xc - xb) / (yc - yb)
    of, offset = _expand(count)
    row = begin[of] + offset
    crossing = xa[of] + (row - ya[of]) * long[of]
    above = row < yb[of]
    x0, y0 = np.where(above, xa[of], xb[of]), np.where(above, ya[of], yb[of])
    other = x0 + (row - y0) * np.where(above, upper[of], lower[of])
    left = np.ceil(np.maximum(np.minimum(crossing, other), 0.0)).astype(np.intp)
    right = np.ceil(np.minimum(np.maximum(crossing, other), size)).astype(np.intp)
    (kept,) = np.nonzero(right > left)
    return _Spans(of[kept], row[kept], left[kept], (right - left)[kept])


def _gradients(
    x: np.ndarray, y: np.ndarray, corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the weights of the second and third vertex with column and row.

    Returns:
      Two times float64 [2, T].
    """
    xa, xb, xc = x[corners]
    ya, yb, yc = y[corners]
    xb, yb, xc, yc = xb - xa, yb - ya, xc - xa, yc - ya
    area = xc * yb - xb * yc
    return np.stack([-yc, yb]) / area, np.stack([xc, -xb]) / area


def render(
    mesh: Mesh,
    turned: np.ndarray,
    camera: Camera,
    light: Light,
    size: int,
    samples: int = 4,
    background: float = 0.0,
) -> np.ndarray:
    """Renders one image.

    Args:
      mesh: see `Mesh`.
      turned: [3, 3], see `rotation`.
      camera: see `Camera`.
      light: see `Light`; it stays where it is when the mesh turns.
      size: pixels a side.
      samples: a side of a pixel, for anti-aliasing.
      background: brightness where there is no surface.

    Returns:
      float64 [size, size] in [0, 1]; row 0 is the top.

    Raises:
      ValueError: part of the mesh is behind the eye.
    """
    width = size * samples
    column, row, depth = project(mesh.vertices, turned, camera, width)
    if not depth.min() > 0.0:
        raise ValueError(
            f"the mesh reaches {camera.distance - depth.min():.6g} towards the eye, "
            f"wanted less than its distance, {camera.distance:.6g}"
        )
    seen = rasterise(column, row, depth, mesh.triangles, width)
    corners = mesh.triangles[seen.triangle]  # [N, 3]
    # Of the light as the mesh sees it, so that no normal has to be turned.
    towards = np.asarray(light.direction) @ turned
    towards = towards / np.sqrt(np.square(towards).sum())
    normals = np.einsum("nk,nkd->nd", seen.weights, mesh.normals[corners])
    length = np.sqrt(np.square(normals).sum(axis=1))
    cosine = (normals @ towards) / np.where(length > 0.0, length, 1.0)
    albedo = np.einsum("nk,nk->n", seen.weights, mesh.albedo[corners])
    picture = np.full(width * width, background)
    picture[seen.sample] = albedo * (
        light.ambient + light.diffuse * np.maximum(cosine, 0.0)
    )
    np.clip(picture, 0.0, 1.0, out=picture)
    return picture.reshape(size, samples, size, samples).mean(axis=(1, 3))
