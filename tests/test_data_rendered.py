"""The renderer against closed forms and rays; faces, chairs and their cache."""

import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
from PIL import Image

from vhp_jax import storage
from vhp_jax.data import cache, chairs, chairs_synthetic, faces, render, views
from vhp_jax.data.base import DataError

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")


def message(function, *args, error=DataError, **kwargs):
    """The one line that a call ends with."""
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


# --- Meshes --------------------------------------------------------------------------


def mesh(vertices, triangles, albedo=1.0, normals=None):
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    if normals is None:
        normals = render.vertex_normals(vertices, triangles)
    return render.Mesh(vertices, triangles, np.full(len(vertices), albedo), normals)


def sphere(refinements, radius=1.0):
    """An octahedron whose triangles are halved at each side, pushed to the sphere."""
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]])
    points = [tuple(p) for p in [*points.astype(float), np.array([0.0, 0.0, -1.0])]]
    triangles = [
        (a, b, c) if np.linalg.det([points[a], points[b], points[c]]) > 0 else (a, c, b)
        for a, b, c in itertools.product((0, 1), (2, 3), (4, 5))
    ]
    numbers = {p: i for i, p in enumerate(points)}

    def middle(a, b):
        point = np.add(points[a], points[b])
        point = tuple(point / np.linalg.norm(point))
        if point not in numbers:
            numbers[point] = len(points)
            points.append(point)
        return numbers[point]

    for _ in range(refinements):
        finer = []
        for a, b, c in triangles:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        triangles = finer
    return radius * np.array(points), np.array(triangles)


def soup(generator, count, extent, size):
    """Random triangles around z = 0; half of them face the camera."""
    middle = generator.uniform(-extent, extent, (count, 1, 3))
    corners = middle + size * generator.standard_normal((count, 3, 3))
    return corners.reshape(-1, 3), np.arange(3 * count).reshape(count, 3)


def rays(camera, size):
    """Directions from the eye through the samples, [size * size, 3]; z is -1."""
    middles = (2.0 * np.arange(size) + 1.0) / size - 1.0
    tangent = math.tan(math.radians(camera.field_of_view / 2.0))
    x, y = np.meshgrid(tangent * middles, -tangent * middles)
    return np.stack([x, y, np.full_like(x, -1.0)], axis=-1).reshape(-1, 3)


def cast(vertices, triangles, camera, size):
    """Rays from the eye against every triangle: the slow reference.

    Returns the nearest triangle of each sample that faces the eye, or -1, its weights
    and its depth.
    """
    eye = np.array([0.0, 0.0, camera.distance])
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    owner = np.full(size * size, -1)
    weights, depth = np.zeros((size * size, 3)), np.full(size * size, np.inf)
    for index, ray in enumerate(rays(camera, size)):
        # eye + t ray = a + v (b - a) + w (c - a), by Cramer's rule.
        normal = np.cross(b - a, c - a)
        facing = -normal @ ray
        t = ((eye - a) * normal).sum(axis=1) / facing
        across = np.cross(eye - a, ray)
        v = ((c - a) * across).sum(axis=1) / facing
        w = ((b - a) * -across).sum(axis=1) / facing
        hit = (facing > 0.0) & (t > 0.0) & (v >= 0.0) & (w >= 0.0) & (v + w <= 1.0)
        if hit.any():
            best = int(np.argmin(np.where(hit, t, np.inf)))
            owner[index], depth[index] = best, t[best]
            weights[index] = 1.0 - v[best] - w[best], v[best], w[best]
    return owner, weights, depth


def rasterised(vertices, triangles, camera, size):
    projected = render.project(vertices, np.eye(3), camera, size)
    seen = render.rasterise(*projected, triangles, size)
    assert (np.diff(seen.sample) > 0).all()  # in order, each once
    owner = np.full(size * size, -1)
    weights, depth = np.zeros((size * size, 3)), np.full(size * size, np.inf)
    owner[seen.sample] = seen.triangle
    weights[seen.sample], depth[seen.sample] = seen.weights, seen.depth
    return owner, weights, depth


# --- Projection ----------------------------------------------------------------------


def test_known_points_are_projected_to_known_places():
    camera = render.Camera(distance=4.0, field_of_view=90.0, target=(1.0, 2.0, 3.0))
    points = np.array(
        [
            [0.0, 0.0, 0.0],  # the target itself
            [4.0, 0.0, 0.0],  # as far to the side as from the eye: the border
            [0.0, 4.0, 0.0],
            [2.0, 0.0, 2.0],  # nearer: again the border
            [2.0, -2.0, 0.0],
            [2.0, -2.0, -4.0],  # twice as far: half as far from the middle
        ]
    )
    column, row, depth = render.project(
        points + camera.target, np.eye(3), camera, size=100
    )
    np.testing.assert_allclose(column, [50, 100, 50, 100, 75, 62.5], rtol=1e-14)
    np.testing.assert_allclose(row, [50, 50, 0, 50, 75, 62.5], rtol=1e-14, atol=1e-13)
    np.testing.assert_allclose(depth, [4, 4, 4, 2, 4, 8], rtol=1e-14)


def test_a_narrower_field_shows_less_in_the_ratio_of_tangents():
    point = np.array([[0.1, 0.2, 0.3]])
    wide, narrow = (
        render.project(point, np.eye(3), render.Camera(5.0, degrees), 64)
        for degrees in (60.0, 20.0)
    )
    ratio = math.tan(math.radians(30.0)) / math.tan(math.radians(10.0))
    for one, other in zip(wide[:2], narrow[:2], strict=True):
        np.testing.assert_allclose(other - 32.0, ratio * (one - 32.0), rtol=1e-13)


def test_yaw_turns_to_the_right_and_elevation_looks_down():
    front, top = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    angle = 0.3
    cos, sin = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(render.rotation(angle) @ front, [sin, 0.0, cos])
    np.testing.assert_allclose(render.rotation(angle) @ top, top)
    np.testing.assert_allclose(render.rotation(0.0, angle) @ top, [0.0, cos, sin])
    # The mesh turns about its own axis, then the camera rises.
    both = render.rotation(0.7, angle)
    wanted = render.rotation(0.0, angle) @ render.rotation(0.7)
    np.testing.assert_allclose(both, wanted, rtol=1e-15)
    np.testing.assert_allclose(both @ both.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(both) > 0.0


# --- Visibility ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "spread"),
    [(60, 0.5), (400, 0.12), (3_000, 0.04)],
    ids=["large", "medium", "small"],
)
def test_the_rasteriser_agrees_with_rays_against_every_triangle(count, spread):
    """For triangles from half the picture down to less than a sample."""
    generator = np.random.default_rng(count)
    camera, size = render.Camera(4.0, 35.0), 24
    vertices, triangles = soup(generator, count, 1.5, spread)
    wanted = cast(vertices, triangles, camera, size)
    found = rasterised(vertices, triangles, camera, size)
    assert (wanted[0] >= 0).mean() > 0.15
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-9)
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-9)


def test_a_triangle_in_space_is_weighted_in_space_and_not_in_the_picture():
    """Half way in the picture is not half way along an edge that leads away."""
    vertices = np.array([[-1.0, -3.0, 1.0], [5.0, -3.0, -7.0], [-1.0, 9.0, 1.0]])
    camera, size = render.Camera(4.0, 90.0), 12
    _, weights, depth = rasterised(vertices, np.array([[0, 1, 2]]), camera, size)
    index = 5 * size + 6
    point = weights[index] @ vertices
    direction = rays(camera, size)[index]
    np.testing.assert_allclose(point, [0.0, 0.0, 4.0] + depth[index] * direction)
    in_the_picture = 1.0 / (1.0 / 3.0 + (1.0 / 11.0 - 1.0 / 3.0) * 0.5)
    assert abs(depth[index] - 7.0) > 0.5  # what linear depths would give half way
    assert abs(depth[index] - in_the_picture) < 0.6


def test_the_nearest_triangle_is_seen_in_whatever_order_they_come():
    corners = np.array([[-9.0, -9.0, 0.0], [9.0, -9.0, 0.0], [0.0, 18.0, 0.0]])
    depths = [0.3, -0.2, 0.9, 0.1]
    vertices = np.concatenate([corners + np.array([0.0, 0.0, z]) for z in depths])
    triangles = np.arange(12).reshape(4, 3)
    camera = render.Camera(3.0, 40.0)
    for order in itertools.permutations(range(4)):
        owner, _, depth = rasterised(vertices, triangles[list(order)], camera, 8)
        assert (owner == order.index(2)).all()
        np.testing.assert_allclose(depth, 2.1)


def test_triangles_that_cross_hide_each_other_on_one_side_each():
    """Planes z = x and z = -x: the nearer one is on the right and on the left."""
    vertices = np.array(
        [[-5, -5, -1], [5, -5, 1], [0, 9, 0], [-5, -5, 1], [5, -5, -1], [0, 9, 0]],
        np.float64,
    )
    owner, _, _ = rasterised(
        vertices, np.arange(6).reshape(2, 3), render.Camera(4.0, 30.0), 10
    )
    owner = owner.reshape(10, 10)
    assert (owner[:, 5:] == 0).all()
    assert (owner[:, :5] == 1).all()


def test_of_equal_triangles_the_first_is_seen():
    vertices = np.array([[-9.0, -9.0, 0.0], [9.0, -9.0, 0.0], [0.0, 18.0, 0.0]])
    owner, _, _ = rasterised(
        vertices, np.array([[0, 1, 2]] * 3), render.Camera(4.0, 40.0), 8
    )
    assert (owner == 0).all()


def test_what_turns_its_back_is_not_seen():
    vertices = np.array([[-9.0, -9.0, 0.0], [9.0, -9.0, 0.0], [0.0, 18.0, 0.0]])
    owner, _, _ = rasterised(
        vertices, np.array([[0, 2, 1]]), render.Camera(4.0, 40.0), 8
    )
    assert (owner == -1).all()


@pytest.mark.parametrize("jitter", [0.0, 0.3], ids=["on samples", "anywhere"])
def test_a_plane_of_triangles_covers_every_sample_once(jitter):
    """Also where vertices and edges go right through samples."""
    size = 24
    generator = np.random.default_rng(1)
    column, row = np.meshgrid(np.arange(-1.5, size + 2), np.arange(-1.5, size + 2))
    points = np.stack([column.ravel(), row.ravel()], axis=1)
    points += jitter * generator.uniform(-1.0, 1.0, points.shape)
    triangles = scipy.spatial.Delaunay(points).simplices.astype(np.int64)
    (ax, ay), (bx, by), (cx, cy) = points[triangles.T].transpose(0, 2, 1)
    turned = (bx - ax) * (cy - ay) > (cx - ax) * (by - ay)  # rows count downwards
    triangles[turned] = triangles[turned][:, ::-1]
    depth = np.ones(len(points))
    times = np.zeros(size * size, int)
    for triangle in triangles:
        seen = render.rasterise(*points.T, depth, triangle[None], size)
        times[seen.sample] += 1
    assert (times == 1).all()
    together = render.rasterise(*points.T, depth, triangles, size)
    assert len(together.sample) == size * size


def test_what_is_beyond_the_border_changes_nothing_within():
    generator = np.random.default_rng(5)
    solid = mesh(*soup(generator, 200, 2.0, 0.3))
    narrow = render.Camera(6.0, 20.0)
    tangent = math.tan(math.radians(10.0))
    wide = render.Camera(6.0, 2.0 * math.degrees(math.atan(2.0 * tangent)))
    light = render.Light()
    small = render.render(solid, np.eye(3), narrow, light, 16, 2)
    large = render.render(solid, np.eye(3), wide, light, 32, 2)
    np.testing.assert_allclose(small, large[8:24, 8:24], atol=1e-9)
    assert small[0].any()  # something crosses the border
    assert large[:8].any()


# --- Shading -------------------------------------------------------------------------


def test_normals_are_weighted_by_area():
    """Of a triangle in the plane z = 0 and one of three times the area in x = 0."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3.0], [7, 7, 7]])
    normals = render.vertex_normals(vertices, np.array([[0, 1, 2], [0, 2, 3]]))
    shared = np.array([3.0, 0.0, 1.0]) / math.sqrt(10.0)
    wanted = [shared, [0, 0, 1], shared, [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(normals, wanted, atol=1e-15)


def test_normals_of_a_sphere_point_away_from_its_middle():
    vertices, triangles = sphere(4)
    normals = render.vertex_normals(vertices, triangles)
    assert ((normals * vertices).sum(axis=1) > 0.999).all()


@pytest.mark.parametrize("degrees", [0.0, 35.0, -60.0])
def test_a_plane_has_the_brightness_of_lamberts_law(degrees):
    square = mesh(
        [[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    square = square._replace(albedo=np.full(4, 0.9))
    light = render.Light((1.0, 2.0, 2.0), diffuse=0.6, ambient=0.3)
    camera = render.Camera(30.0, 5.0)
    angle = math.radians(degrees)
    image = render.render(square, render.rotation(angle), camera, light, 8)
    cosine = (math.sin(angle) * 1.0 + math.cos(angle) * 2.0) / 3.0
    wanted = 0.9 * (0.3 + 0.6 * max(cosine, 0.0))
    np.testing.assert_allclose(image, wanted, rtol=1e-12)


def test_what_faces_away_from_the_light_has_the_ambient_one_alone():
    square = mesh(
        [[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    light = render.Light((0.0, 1.0, -0.1), diffuse=0.6, ambient=0.3)
    image = render.render(square, np.eye(3), render.Camera(30.0, 5.0), light, 4)
    np.testing.assert_allclose(image, 0.3, rtol=1e-12)


def test_a_sphere_is_shaded_as_the_closed_form():
    """Each sample's ray meets the sphere where a quadratic equation says."""
    radius, size = 1.0, 96
    camera = render.Camera(4.0, 32.0, (0.2, -0.1, 0.4))
    light = render.Light((0.5, 0.7, 1.0), diffuse=0.7, ambient=0.2)
    vertices, triangles = sphere(6, radius)
    solid = mesh(vertices + camera.target, triangles, albedo=0.8)
    # Turned, so that a light that turned along would be seen.
    turned = render.rotation(0.8, 0.4)
    image = render.render(solid, turned, camera, light, size, samples=1)

    direction = rays(camera, size)
    eye = np.array([0.0, 0.0, camera.distance])
    square, along = (direction**2).sum(axis=1), direction @ eye
    below = along**2 - square * (eye @ eye - radius**2)
    hit = below > 0.0
    t = (-along - np.sqrt(np.maximum(below, 0.0))) / square
    normals = (eye + t[:, None] * direction) / radius
    towards = np.array(light.direction) / np.linalg.norm(light.direction)
    cosine = np.maximum(normals @ towards, 0.0)
    wanted = np.where(hit, 0.8 * (0.2 + 0.7 * cosine), 0.0)
    inside = below > 0.02  # a few samples at the rim are on chords of the sphere
    assert 0.3 < inside.mean() < hit.mean() < 0.7
    difference = np.abs(image.ravel() - wanted)
    assert difference[inside].max() < 3e-3
    assert (difference > 3e-3).mean() < 0.01
    assert (image.ravel()[below < 0.0] == 0.0).all()  # the mesh is within


def test_albedo_is_interpolated_and_the_background_is_left():
    """Red to blue along x would be a ramp in space."""
    square = mesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    square = square._replace(albedo=np.array([0.0, 1.0, 1.0, 0.0]))
    light = render.Light((0.0, 0.0, 1.0), diffuse=0.0, ambient=1.0)
    degrees = 2.0 * math.degrees(math.atan(2.0 / 5.0))  # 4 wide: half is the square
    camera = render.Camera(5.0, degrees)
    image = render.render(square, np.eye(3), camera, light, 16, 1, background=0.25)
    ramp = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(image[4:12, 4:12], np.tile(ramp, (8, 1)), atol=1e-12)
    image[4:12, 4:12] = 0.25
    assert (image == 0.25).all()


def test_interpolated_normals_have_length_one():
    """Half way between normals at 60 degrees to either side they face the light."""
    normals = np.array([[-1, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0]]) * math.sqrt(0.75)
    normals[:, 2] = 0.5
    square = mesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        normals=normals,
    )
    light = render.Light((0.0, 0.0, 2.0), diffuse=1.0, ambient=0.0)
    degrees = 2.0 * math.degrees(math.atan(1.0 / 5.0))
    image = render.render(square, np.eye(3), render.Camera(5.0, degrees), light, 9, 1)
    sideways = np.linspace(-8 / 9, 8 / 9, 9) * math.sqrt(0.75)
    wanted = 0.5 / np.sqrt(0.25 + sideways**2)
    np.testing.assert_allclose(image, np.tile(wanted, (9, 1)), rtol=1e-12)


def test_pixels_are_means_of_samples():
    solid = mesh(*soup(np.random.default_rng(2), 80, 1.0, 0.3))
    arguments = (solid, render.rotation(0.2), render.Camera(5.0, 30.0), render.Light())
    image = render.render(*arguments, 10, samples=4)
    fine = render.render(*arguments, 40, samples=1)
    wanted = fine.reshape(10, 4, 10, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(image, wanted, rtol=1e-14)
    assert len(np.unique(image)) > len(np.unique(wanted > 0.0))


def test_the_brightest_is_one():
    solid = mesh(*sphere(2))
    light = render.Light((0.0, 0.0, 1.0), diffuse=3.0)
    image = render.render(solid, np.eye(3), render.Camera(5.0, 30.0), light, 8)
    assert image.max() == 1.0


def test_a_mirrored_mesh_is_a_mirrored_image():
    """Mirrored mesh, mirrored yaw and mirrored light."""
    generator = np.random.default_rng(3)
    vertices, triangles = sphere(4)
    vertices = vertices * generator.uniform(0.7, 1.2, (len(vertices), 1))
    mirror = np.array([-1.0, 1.0, 1.0])
    camera = render.Camera(5.0, 32.0, (0.1, 0.2, 0.0))
    other_camera = camera._replace(target=(-0.1, 0.2, 0.0))
    light = render.Light((0.6, 0.5, 1.0))
    one = render.render(
        mesh(vertices, triangles), render.rotation(0.5), camera, light, 32
    )
    other = render.render(
        mesh(vertices * mirror, triangles[:, ::-1]),
        render.rotation(-0.5),
        other_camera,
        light._replace(direction=(-0.6, 0.5, 1.0)),
        32,
    )
    np.testing.assert_allclose(other[:, ::-1], one, atol=1e-9)
    assert np.abs(other - one).max() > 0.1


def test_a_camera_within_the_mesh_is_refused():
    solid = mesh(*sphere(1))
    arguments = (np.eye(3), render.Camera(0.75, 30.0), render.Light(), 8)
    assert message(render.render, solid, *arguments, error=ValueError) == (
        "the mesh reaches 1 towards the eye, wanted less than its distance, 0.75"
    )


def test_images_are_the_same_bytes_each_time():
    solid = mesh(*soup(np.random.default_rng(4), 500, 1.0, 0.1))
    arguments = (solid, render.rotation(0.3), render.Camera(5.0, 30.0), render.Light())
    first, again = (render.render(*arguments, 32).tobytes() for _ in range(2))
    assert first == again


# --- Cache ---------------------------------------------------------------------------

# Makers live in a module of their own, which the processes of the cache can import.
MAKERS = """
import os, time
import numpy as np
from vhp_jax.data.base import DataError

def images(first, last):
    return np.arange(first, last, dtype=np.uint8).repeat(2 * 3 * 4).reshape(-1, 2, 3, 4)

def start(log, offset=0, fault="", seconds=0.0):
    def make(first, last):
        with open(log, "a") as file:
            file.write(f"{first} {os.getpid()}\\n")
        time.sleep(seconds)
        if fault == "error" and first == 4:
            raise DataError("item 4 is bad, wanted a good one")
        if fault == "death" and first == 4:
            os._exit(3)
        if fault == "shape":
            return images(first, last)[:, :1]
        return images(first + offset, last + offset)
    return make
"""


@pytest.fixture
def makers(tmp_path, monkeypatch):
    """A recipe of 9 items in parts of 2, and which were made by which process."""
    (tmp_path / "made_makers.py").write_text(MAKERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "made_makers", raising=False)
    log = tmp_path / "log"

    def recipe(**parameters):
        return cache.Recipe(
            name="toy",
            maker="made_makers:start",
            parameters=parameters,
            places={"log": str(log)},
            num_items=9,
            item_shape=(2, 3, 4),
            items_per_part=2,
        )

    def made():
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        log.unlink(missing_ok=True)
        return [tuple(map(int, line.split())) for line in lines]

    return recipe, made


def toy_images(offset=0):
    numbers = np.arange(offset, offset + 9, dtype=np.uint8)
    return np.broadcast_to(numbers[:, None, None, None], (9, 2, 3, 4))


def test_images_are_made_once_and_read_from_then_on(makers, tmp_path, capsys):
    recipe, made = makers
    first = cache.load(recipe(), tmp_path / "c", processes=1)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, toy_images())
    assert [number for number, _ in made()] == [0, 2, 4, 6, 8]
    place = cache.folder(recipe(), tmp_path / "c")
    assert place.parent == tmp_path / "c"
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert told.out == ""
    assert lines[0] == f"toy: 0 of 18 images are in {place}; the others are made now"
    assert lines[-1].startswith("toy: 18 of 18 images, ")
    assert lines[-1].endswith(" a second, 0.0 minutes left")
    again = cache.load(recipe(), tmp_path / "c", processes=1)
    np.testing.assert_array_equal(again, first)
    assert made() == []
    assert capsys.readouterr().err == ""
    described = json.loads((place / "parameters.json").read_text())
    assert described["maker"] == "made_makers:start"


def test_other_parameters_have_another_folder_and_other_places_do_not(makers, tmp_path):
    recipe, made = makers
    cache.load(recipe(), tmp_path, processes=1)
    np.testing.assert_array_equal(
        cache.load(recipe(offset=5), tmp_path, processes=1), toy_images(5)
    )
    made()
    moved = recipe()._replace(places={"log": str(tmp_path / "elsewhere")})
    np.testing.assert_array_equal(cache.load(moved, tmp_path, 1), toy_images())
    assert not (tmp_path / "elsewhere").exists()
    names = {cache.folder(recipe(offset=i)) for i in range(4)}
    names |= {cache.folder(recipe()._replace(num_items=8))}
    names |= {cache.folder(recipe()._replace(item_shape=(2, 4, 3)))}
    names |= {cache.folder(recipe()._replace(items_per_part=3))}
    assert len(names) == 7


def test_the_default_place_follows_the_environment(makers, tmp_path, monkeypatch):
    recipe, _ = makers
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.folder(recipe()).parent == tmp_path / "x" / "vhp_jax"
    cache.load(recipe(), processes=1)
    assert len(list((tmp_path / "x" / "vhp_jax").glob("toy-*/part-*.npy"))) == 5
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder(recipe()).parent == tmp_path / ".cache" / "vhp_jax"


def test_only_missing_parts_are_made(makers, tmp_path, capsys):
    recipe, made = makers
    cache.load(recipe(), tmp_path, processes=1)
    made(), capsys.readouterr()
    place = cache.folder(recipe(), tmp_path)
    for number in (1, 4):
        next(place.glob(f"part-0000{number}-*")).unlink()
    np.testing.assert_array_equal(cache.load(recipe(), tmp_path, 1), toy_images())
    assert [number for number, _ in made()] == [2, 8]
    assert capsys.readouterr().err.startswith("toy: 12 of 18 images are in ")


@pytest.mark.parametrize(
    "damage", ["changed", "cut off", "emptied", "swapped", "renamed"]
)
def test_damaged_parts_are_found_and_made_again(makers, tmp_path, capsys, damage):
    recipe, made = makers
    cache.load(recipe(), tmp_path, processes=1)
    made(), capsys.readouterr()
    place = cache.folder(recipe(), tmp_path)
    path, other = (next(place.glob(f"part-0000{i}-*")) for i in (2, 3))
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    elif damage == "swapped":
        content = bytearray(other.read_bytes())
    else:
        content = content[: {"cut off": -5, "emptied": 0}.get(damage)]
    path.write_bytes(content)
    if damage == "renamed":
        path = path.rename(path.with_name(f"part-00002-{'0' * 16}.npy"))
    np.testing.assert_array_equal(cache.load(recipe(), tmp_path, 1), toy_images())
    assert [number for number, _ in made()] == [4]
    assert len(list(place.glob("part-*"))) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"toy: {path} is damaged and is made again"
    assert cache.load(recipe(), tmp_path, 1).shape == (9, 2, 3, 4)
    assert made() == []


def test_what_a_killed_run_left_is_removed_when_it_is_old(makers, tmp_path):
    recipe, _ = makers
    place = cache.folder(recipe(), tmp_path)
    place.mkdir()
    left = []
    for number in (0, 1):
        with storage.replacing(place / f"part-0000{number}-x.npy") as path:
            path.write_bytes(b"half")
            os.link(path, place / "kept")  # as if the process were killed here
        (place / path.name.removeprefix(".").rpartition(".")[0]).unlink()
        left.append((place / "kept").rename(path))
    old, new = left
    ago = time.time() - 2.0 * cache.LEFTOVER_SECONDS
    os.utime(old, (ago, ago))
    np.testing.assert_array_equal(cache.load(recipe(), tmp_path, 1), toy_images())
    assert not old.exists()
    assert new.exists()  # may be another run's


def test_progress_is_told_every_few_seconds(makers, tmp_path, capsys, monkeypatch):
    recipe, _ = makers
    monkeypatch.setattr(cache, "PROGRESS_SECONDS", 0.0)
    cache.load(recipe(), tmp_path / "a", 1)
    counts = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["0", "4", "8", "12", "16", "18"]
    monkeypatch.setattr(cache, "PROGRESS_SECONDS", 60.0)
    cache.load(recipe(), tmp_path / "b", 1)
    counts = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["0", "18"]


def test_a_full_disk_is_one_line_and_keeps_what_is_whole(makers, tmp_path, monkeypatch):
    recipe, made = makers
    place = cache.folder(recipe(), tmp_path)
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 3:  # after the parameters and two parts
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    assert message(cache.load, recipe(), tmp_path, 1) == (
        f"{place}: cannot be written: No space left on device; wanted 0 MB for the "
        "images of toy (cache_dir names another place)"
    )
    names = sorted(path.name.split("-")[0] for path in place.iterdir())
    assert names == ["parameters.json", "part", "part"]
    monkeypatch.undo()
    made()


def test_a_place_that_is_a_file_is_one_line(makers, tmp_path):
    recipe, _ = makers
    (tmp_path / "file").write_text("")
    text = message(cache.load, recipe(), tmp_path / "file", 1)
    assert text.startswith(f"{cache.folder(recipe(), tmp_path / 'file')}: cannot be ")
    assert "Not a directory" in text


def test_numbers_of_processes_are_checked(makers, tmp_path):
    recipe, _ = makers
    text = message(cache.load, recipe(), tmp_path, 0, error=ValueError)
    assert text == "processes must be at least 1, got 0"


def test_a_maker_of_other_images_is_refused(makers, tmp_path):
    recipe, _ = makers
    text = message(cache.load, recipe(fault="shape"), tmp_path, 1, error=ValueError)
    assert text == (
        "made_makers:start made uint8 (2, 1, 3, 4), wanted uint8 (2, 2, 3, 4)"
    )


@pytest.mark.slow
def test_several_processes_share_the_parts(makers, tmp_path):
    recipe, made = makers
    found = cache.load(recipe(seconds=0.2), tmp_path, processes=2)
    np.testing.assert_array_equal(found, toy_images())
    done = made()
    assert sorted(number for number, _ in done) == [0, 2, 4, 6, 8]
    processes = {process for _, process in done}
    assert len(processes) == 2
    assert os.getpid() not in processes
    for process in processes:  # and they are gone
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("error", "item 4 is bad, wanted a good one"),
        (
            "death",
            "toy: the process that made part 2 ended with exit code 3, wanted the "
            "part; another start goes on from here",
        ),
    ],
)
def test_what_goes_wrong_in_a_process_is_one_line_here(makers, tmp_path, fault, wanted):
    recipe, made = makers
    assert message(cache.load, recipe(fault=fault), tmp_path, 2) == wanted
    done = {number for number, _ in made()} - {4}
    assert message(cache.load, recipe(fault=fault), tmp_path, 2) == wanted
    again = {number for number, _ in made()} - {4}
    assert 0 in done
    assert not done & again  # the others were kept


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_where_it_was(makers, tmp_path, ending):
    """Whose processes end too, each with the part that it was making."""
    recipe, made = makers
    code = f"""
import signal
import jax.numpy as jnp
from vhp_jax.data import cache
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
print(jnp.ones(3).sum())  # threads and a device
cache.load(cache.Recipe(*{tuple(recipe(seconds=1.0))!r}), {str(tmp_path)!r}, 2)
"""
    place = cache.folder(recipe(seconds=1.0), tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 60.0
    while not list(place.glob("part-*")) and time.monotonic() < give_up:
        time.sleep(0.05)
    run.send_signal(ending)
    _, errors = run.communicate(timeout=30)
    assert run.returncode != 0
    assert ending == signal.SIGKILL or errors.rstrip().endswith("KeyboardInterrupt")
    done = made()
    assert 0 < len(done) < 5
    for process in {process for _, process in done}:
        while time.monotonic() < give_up:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {process} goes on")
    kept = {int(path.name.split("-")[1]) for path in place.glob("part-*")}
    assert kept
    found = cache.load(recipe(seconds=1.0), tmp_path, 1)
    np.testing.assert_array_equal(found, toy_images())
    assert {number for number, _ in made()} == {0, 2, 4, 6, 8} - {2 * k for k in kept}


# --- Views of shapes -----------------------------------------------------------------


def test_shapes_are_split_in_order_with_all_of_their_views():
    images = np.arange(6 * 2 * 3 * 3, dtype=np.uint8).reshape(6, 2, 3, 3)
    angles = np.array([-0.5, 0.5])
    dataset = views.dataset("toy", "made here", images, angles, 1, 2)
    assert dataset.name == "toy"
    assert dataset.target_kind == "view"
    assert dataset.source == "made here"
    parts = {"train": slice(0, 3), "validation": slice(3, 4), "test": slice(4, 6)}
    for name, part in parts.items():
        split = getattr(dataset, name)
        assert split.examples.dtype == np.float32
        wanted = images[part].reshape(-1, 3, 3, 1).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(split.examples, wanted)
        assert split.targets.dtype == np.float64
        np.testing.assert_array_equal(split.targets, np.tile(angles, len(images[part])))


def test_splits_must_leave_something_to_train_on():
    check = views.check_splits
    views.check_splits("num_faces", 3, 1, 1)
    assert message(check, "num_faces", 3, 1, 2, error=ValueError) == (
        "num_validation + num_test must be less than num_faces, got 1 + 2 and 3"
    )
    assert message(check, "num_faces", 3, 0, 1, error=ValueError) == (
        "num_validation must be at least 1, got 0"
    )
    assert message(check, "num_faces", 0, 1, 1, error=ValueError) == (
        "num_faces must be at least 1, got 0"
    )


# --- Chairs: the published renders ---------------------------------------------------

RENDER_SIZE = 40
VIEWS = [(e, t) for e in (20, 30) for t in (11, 131, 251)]


@pytest.fixture
def small_chairs(monkeypatch):
    for name, number in {
        "NUM_CHAIRS": 3,
        "NUM_AZIMUTHS": 3,
        "RENDER_SIZE": RENDER_SIZE,
        "CHAIRS_PER_PART": 2,
    }.items():
        monkeypatch.setattr(chairs, name, number)


def chair_png(model, view, size=RENDER_SIZE, mode="RGB", kind="PNG"):
    """A rectangle whose grey value tells the model and the view."""
    picture = Image.new("RGB", (size, size), "white")
    grey = 10 * view + 60 * model
    picture.paste((grey, grey, grey), (10, 10, 30, 20 + 5 * model))
    if mode == "RGBA":
        picture = picture.convert("RGBA")
        alpha = Image.new("L", (size, size), 0)
        alpha.paste(255, (10, 10, 30, 20 + 5 * model))
        picture.putalpha(alpha)
        picture.paste((0, 0, 0, 0), (0, 0, 10, 10))  # black where nothing is seen
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


def chair_files(num_chairs=3, **options):
    """By name, in the layout of the archive, whose numbers begin at 0."""
    names = {
        f"rendered_chairs/{'cab'[model]}{model}/renders/image_{view:03}_p{e:03}_t{t:03}"
        "_r096.png": chair_png(model, view, **options)
        for model in range(num_chairs)
        for view, (e, t) in enumerate(VIEWS)
    }
    return names | {"rendered_chairs/all_chair_names.mat": b"MATLAB"}


def write_folder(tmp_path, contents):
    for name, content in contents.items():
        path = tmp_path / "chairs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "chairs" / "rendered_chairs"


def write_archive(tmp_path, contents, *others, prefix=""):
    """In the order of the files, others, whatever they are, at the end."""
    (tmp_path / "chairs").mkdir(exist_ok=True)
    path = tmp_path / "chairs" / "rendered_chairs.tar"
    with tarfile.open(path, "w:") as archive:
        folder = tarfile.TarInfo(f"{prefix}rendered_chairs")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return path


def load_chairs(tmp_path, **options):
    options = {"num_azimuths": 3, "num_validation": 1, "num_test": 1} | options
    options = {"image_size": 10} | options
    return chairs.load(tmp_path, cache_dir=tmp_path / "c", processes=1, **options)


def test_chairs_are_ordered_by_name_and_view_and_scaled(small_chairs, tmp_path):
    place = write_folder(tmp_path, chair_files())
    dataset = load_chairs(tmp_path)
    assert dataset.name == "chairs"
    assert dataset.target_kind == "view"
    assert dataset.source == (
        f"{place}, number of files verified; 3 chairs in 6 views, cropped, on white"
    )
    # By name: a1, b2, c0. Of each the six views.
    for name, model in zip(SPLITS, (1, 2, 0), strict=True):
        split = getattr(dataset, name)
        assert split.examples.shape == (6, 10, 10, 1)
        assert split.examples.dtype == np.float32
        wanted = np.radians([11.0, 131.0, 251.0] * 2)
        np.testing.assert_allclose(split.targets, wanted, rtol=1e-15)
        middles = 255.0 * split.examples[:, 5, 5, 0]
        np.testing.assert_allclose(middles, 60 * model + 10 * np.arange(6), atol=1e-4)
        assert (split.examples[:, 0, 0] > 0.5).all()  # white, but for a part of a pixel


def test_folder_and_archive_give_the_same_from_the_same_cache(
    small_chairs, tmp_path, capsys
):
    contents = chair_files()
    path = write_archive(tmp_path, dict(reversed(contents.items())), prefix="./")
    packed = load_chairs(tmp_path)
    assert packed.source.startswith(f"{path}, ")
    assert "of 18 images" in capsys.readouterr().err
    write_folder(tmp_path, contents)
    unpacked = load_chairs(tmp_path)
    assert unpacked.source.startswith(f"{tmp_path}/chairs/rendered_chairs, ")
    assert capsys.readouterr().err == ""
    for name in SPLITS:
        one, other = getattr(packed, name), getattr(unpacked, name)
        np.testing.assert_array_equal(one.examples, other.examples)


def test_another_listing_has_another_cache(small_chairs, tmp_path, capsys):
    contents = chair_files()
    write_folder(tmp_path, contents)
    load_chairs(tmp_path)
    capsys.readouterr()
    name = min(contents)
    write_folder(tmp_path, {name: chair_png(2, 5)})
    load_chairs(tmp_path)
    assert "0 of 18 images" in capsys.readouterr().err


def test_fewer_azimuths_may_be_asked_for(small_chairs, tmp_path):
    write_folder(tmp_path, chair_files())
    every, fewer = load_chairs(tmp_path), load_chairs(tmp_path, num_azimuths=2)
    assert "3 chairs in 4 views" in fewer.source
    chosen = [0, 1, 3, 4]
    for name in SPLITS:
        one, other = getattr(every, name), getattr(fewer, name)
        np.testing.assert_array_equal(one.examples[chosen], other.examples)
        np.testing.assert_array_equal(one.targets[chosen], other.targets)
    text = message(load_chairs, tmp_path, num_azimuths=4, error=ValueError)
    assert text == "num_azimuths must be at most 3, got 4"


def test_what_is_transparent_is_white(small_chairs, tmp_path):
    write_folder(tmp_path, chair_files(mode="RGBA"))
    seen = load_chairs(tmp_path)
    for path in (tmp_path / "chairs").rglob("*.png"):
        path.unlink()
    write_folder(tmp_path, chair_files())
    wanted = load_chairs(tmp_path)
    np.testing.assert_array_equal(seen.train.examples, wanted.train.examples)


def test_a_chair_is_cropped_to_a_square_with_a_margin_around_it():
    """20 wide and 10 high: a side of 21.6 around (20, 15), new pixels of 2.16."""
    images = np.full((2, 40, 40), 255, np.uint8)
    images[0, 10:15, 10:30] = 55
    images[1, 15:20, 10:20] = 155  # another view reaches further
    found = chairs.scale("a", images, 10)
    edges = 20.0 - 10.8 + 2.16 * np.arange(11), 15.0 - 10.8 + 2.16 * np.arange(11)

    def share(edges, first, last):
        inside = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
        return np.maximum(inside, 0.0) / 2.16

    across, down = share(edges[0], 10, 30), share(edges[1], 10, 15)
    wanted = 255.0 - 200.0 * np.outer(down, across)
    np.testing.assert_allclose(found[0], wanted, atol=0.51)
    across, down = share(edges[0], 10, 20), share(edges[1], 15, 20)
    wanted = 255.0 - 100.0 * np.outer(down, across)
    np.testing.assert_allclose(found[1], wanted, atol=0.51)


def test_a_crop_beyond_the_border_is_white():
    images = np.full((1, 40, 40), 255, np.uint8)
    images[0, :2, :] = 0
    found = chairs.scale("a", images, 8)
    assert found.shape == (1, 8, 8)
    assert (found[0, [0, 1, 2, 5, 6, 7]] == 255).all()
    assert (found[0, 3:5, 1:7] < 255).all()


def test_area_weights_are_shares_of_old_pixels():
    np.testing.assert_array_equal(chairs.area_weights(0, 7, 7, 7), np.eye(7))
    halves = chairs.area_weights(1.0, 4.0, 6, 2)
    np.testing.assert_allclose(halves, [[0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]])
    odd = chairs.area_weights(-1.0, 4.5, 3, 3)  # new pixels of 1.5 from -1
    wanted = [[1 / 3, 0, 0], [1 / 3, 2 / 3, 0], [0, 0, 2 / 3]]
    wanted = [[0.5 / 1.5, 0, 0], [0.5 / 1.5, 1 / 1.5, 0], [0, 0, 1 / 1.5]]
    np.testing.assert_allclose(odd, wanted)
    inside = chairs.area_weights(2.3, 31.7, 40, 8)
    np.testing.assert_allclose(inside.sum(axis=1), 1.0, rtol=1e-12)
    # A ramp stays a ramp: each new pixel has the value at its middle.
    middles = 2.3 + 31.7 * (np.arange(8) + 0.5) / 8
    ramp = inside[1:-1] @ (np.arange(40) + 0.5)
    assert np.abs(ramp - middles[1:-1]).max() < 0.13


def test_missing_chairs_are_told_with_where_they_are_to_be_had(tmp_path):
    assert message(chairs.load) == (
        "chairs: no data directory given, wanted one with a folder chairs/; the files "
        f"are to be had from {chairs.HOME}"
    )
    assert "Seeing 3D chairs" in chairs.HOME
    (tmp_path / "chairs").mkdir()
    assert message(chairs.load, tmp_path) == (
        f"{tmp_path}/chairs: no folder rendered_chairs/ and no file "
        f"rendered_chairs.tar, to be had from {chairs.HOME}"
    )
    packed = tmp_path / "chairs" / "rendered_chairs.tar.gz"
    packed.write_bytes(b"\x1f\x8b")
    assert message(chairs.load, tmp_path) == (
        f"{packed}: a packed archive cannot be read at random, wanted it unpacked to "
        "rendered_chairs.tar or to the folder rendered_chairs/"
    )
    (tmp_path / "chairs" / "rendered_chairs").mkdir()
    assert message(chairs.load, tmp_path) == (
        f"{tmp_path}/chairs/rendered_chairs: no images, wanted 1,393 chairs in 62 "
        f"views; to be had from {chairs.HOME}"
    )


def test_another_number_of_chairs_is_refused_unless_asked_for(small_chairs, tmp_path):
    contents = chair_files()
    fourth = {
        name.replace("/a1/", "/d1/"): content
        for name, content in contents.items()
        if "/a1/" in name
    }
    place = write_folder(tmp_path, contents | fourth)
    assert message(load_chairs, tmp_path) == (
        f"{place}: 4 chairs, wanted 3 (verify=False takes it as it is)"
    )
    dataset = load_chairs(tmp_path, verify=False)
    assert "number of files NOT verified; 4 chairs" in dataset.source
    assert len(dataset.train.examples) == 12


def a1(view, suffix=".png"):
    e, t = VIEWS[view]
    return f"rendered_chairs/a1/renders/image_{view:03}_p{e:03}_t{t:03}_r096{suffix}"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {a1(1): None},
            "a1 lacks view p020_t131 and 0 others, wanted the 6 views of the other "
            "chairs",
        ),
        (
            {a1(1).replace("t131", "t132"): b"", a1(1): None},
            "a1 lacks view p020_t131 and 0 others, wanted the 6 views of the other "
            "chairs",
        ),
        (
            {a1(1).replace("t131", "t132"): b""},
            "a1 has the unknown view p020_t132 and 0 others, wanted the 6 views of the "
            "other chairs",
        ),
        (
            {a1(1).replace("image_001", "image_007"): b""},
            f"{a1(1).replace('image_001', 'image_007')} shows the view of {a1(1)} "
            "again, wanted one image a view",
        ),
        (
            {"rendered_chairs/a1/renders/picture.png": b""},
            "holds rendered_chairs/a1/renders/picture.png, wanted rendered_chairs/MODEL"
            "/renders/image_NNN_pELEVATION_tAZIMUTH_rDISTANCE.png",
        ),
        (
            {name: None for name in chair_files() if "_t251_" in name},
            "a1 has 4 views of 2 elevations and 2 azimuths, wanted 2 x 3",
        ),
    ],
    ids=["missing", "renamed", "one more", "doubled", "unknown", "fewer azimuths"],
)
def test_another_layout_is_named(small_chairs, tmp_path, change, wanted):
    contents = {k: v for k, v in (chair_files() | change).items() if v is not None}
    place = write_folder(tmp_path, contents)
    assert message(load_chairs, tmp_path) == f"{place}: {wanted}"


def test_what_systems_leave_in_folders_is_no_image(small_chairs, tmp_path):
    write_folder(tmp_path, chair_files() | {a1(0).replace("image", "._image"): b"x"})
    assert len(load_chairs(tmp_path).train.examples) == 6


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (chair_png(1, 2, size=39), "39x39 pixels, wanted 40x40"),
        (chair_png(1, 2, kind="GIF"), "not a PNG file, wanted one"),
        (b"", "not a PNG file, wanted one"),
        (chair_png(1, 2)[:70], "damaged PNG file: "),
    ],
    ids=["odd size", "another kind", "empty", "cut off"],
)
def test_a_bad_image_is_named(small_chairs, tmp_path, content, wanted):
    place = write_folder(tmp_path, chair_files() | {a1(2): content})
    text = message(load_chairs, tmp_path)
    assert text.startswith(f"{place}, {a1(2)}: {wanted}")


def test_a_chair_that_is_not_there_is_named(small_chairs, tmp_path):
    paper = io.BytesIO()
    Image.new("RGB", (40, 40), "white").save(paper, "PNG")
    change = {a1(view): paper.getvalue() for view in range(6)}
    place = write_folder(tmp_path, chair_files() | change)
    text = message(load_chairs, tmp_path)
    assert text == f"{place}, {a1(0)}: all views are white, wanted a chair"


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (member("/etc/passwd"), "unsafe path '/etc/passwd'"),
        (member("rendered_chairs/../../x"), "unsafe path 'rendered_chairs/../../x'"),
        (member("..\\x"), "unsafe path '..\\\\x'"),
        (member("C:/x"), "unsafe path 'C:/x'"),
        (
            member("rendered_chairs/x", tarfile.SYMTYPE, "/etc/passwd"),
            "'rendered_chairs/x' is a link or a device",
        ),
        (
            member("rendered_chairs/x", tarfile.LNKTYPE, a1(0)),
            "'rendered_chairs/x' is a link or a device",
        ),
        (
            member("rendered_chairs/x", tarfile.FIFOTYPE),
            "'rendered_chairs/x' is a link or a device",
        ),
    ],
    ids=["absolute", "above", "backslash", "drive", "link", "hard link", "device"],
)
def test_unsafe_archives_are_refused(small_chairs, tmp_path, other, wanted):
    path = write_archive(tmp_path, chair_files(), other)
    text = message(load_chairs, tmp_path)
    assert text.startswith(f"{path}: ")
    assert wanted in text


def test_damaged_archives_are_refused(small_chairs, tmp_path):
    path = write_archive(tmp_path, chair_files())
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 100])
    text = message(load_chairs, tmp_path)
    assert text.startswith(f"{path}: damaged tar archive: ")
    path.write_bytes(b"\x1f\x8b" + whole)
    assert message(load_chairs, tmp_path) == (
        f"{path}: this is a gzip file, wanted the whole tar archive, not packed"
    )
    path.write_bytes(whole[: 11 * 512])  # after the folder and five files
    text = message(load_chairs, tmp_path)
    assert text == (
        f"{path}: c0 has 5 views of 2 elevations and 3 azimuths, wanted 2 x 3"
    )


@pytest.mark.slow
def test_chairs_of_the_published_size_are_scaled_by_several_processes(
    tmp_path, monkeypatch
):
    """And what is wrong in one of them is one line here."""
    monkeypatch.setattr(chairs, "CHAIRS_PER_PART", 1)
    names = [(e, t) for e in (20, 30) for t in (11 + 360 * i // 31 for i in range(31))]
    contents = {}
    for model in range(3):
        picture = Image.new("RGB", (600, 600), "white")
        picture.paste((200, 0, model), (150, 100 + model, 450, 500))
        content = io.BytesIO()
        picture.save(content, "PNG", compress_level=1)
        for number, (e, t) in enumerate(names):
            name = f"m{model:02}/renders/image_{number:03}_p{e:03}_t{t:03}_r096.png"
            contents[f"rendered_chairs/{name}"] = content.getvalue()
    path = write_archive(tmp_path, contents)
    options = {"num_validation": 1, "num_test": 1, "cache_dir": tmp_path / "c"}
    dataset = chairs.load(tmp_path, processes=2, verify=False, **options)
    assert dataset.train.examples.shape == (62, 64, 64, 1)
    red = round(0.299 * 200) / 255.0
    np.testing.assert_allclose(dataset.train.examples[0, 32, 32, 0], red, atol=1e-6)
    bad = max(contents)
    path = write_archive(
        tmp_path, contents | {bad: contents[bad][: len(contents[bad]) // 2]}
    )
    text = message(chairs.load, tmp_path, processes=2, verify=False, **options)
    assert text.startswith(f"{path}, {bad}: damaged PNG file: ")


# --- Chairs: synthetic ---------------------------------------------------------------


def signed_volume(vertices, triangles):
    a, b, c = vertices[triangles.T]
    return (np.cross(a, b) * c).sum() / 6.0


def is_closed(vertices, triangles):
    """Whether each edge is there as often in one direction as in the other."""
    _, place = np.unique(np.round(vertices, 9), axis=0, return_inverse=True)
    corners = place.ravel()[triangles]
    edges = [
        tuple(edge) for t in corners for edge in zip(t, np.roll(t, -1), strict=True)
    ]
    count = {edge: edges.count(edge) for edge in set(edges) if edge[0] != edge[1]}
    return all(count.get((b, a)) == number for (a, b), number in count.items())


@pytest.mark.parametrize("smooth", [False, True])
def test_a_prism_is_closed_with_its_outside_outside(smooth):
    square = np.array([[0, 0, 0], [0, 0, 2], [3, 0, 2], [3, 0, 0]], np.float64)
    top = 0.5 * square + [0.0, 4.0, 0.0]
    solid = chairs_synthetic.prism(square, top, 0.5, smooth)
    assert is_closed(solid.vertices, solid.triangles)
    wanted = 4.0 / 3.0 * (6.0 + 1.5 + 3.0)  # a frustum
    np.testing.assert_allclose(signed_volume(*solid[:2]), wanted)


def test_a_round_rod_has_the_volume_of_its_polygon_and_smooth_sides():
    start, end = np.array([1.0, 2.0, 3.0]), np.array([1.5, 4.0, 2.0])
    length = np.linalg.norm(end - start)
    solid = chairs_synthetic.rod(start, end, (0.2, 0.2), 0.5, is_round=True)
    area = 12 / 2 * 0.1**2 * math.sin(2.0 * math.pi / 12)
    np.testing.assert_allclose(signed_volume(*solid[:2]), area * length)
    normals = render.vertex_normals(*solid[:2])
    along = (end - start) / length
    sides = solid.vertices[:24] - start
    sides -= np.outer(sides @ along, along)
    np.testing.assert_allclose(normals[:24], sides / 0.1, atol=0.1)


def test_a_square_rod_is_a_box_with_flat_sides():
    solid = chairs_synthetic.rod((0, 1, 0), (0, 3, 0), (0.2, 0.2), 0.5)
    low, high = solid.vertices.min(axis=0), solid.vertices.max(axis=0)
    np.testing.assert_allclose(low, [-0.1, 1.0, -0.1])
    np.testing.assert_allclose(high, [0.1, 3.0, 0.1])
    normals = render.vertex_normals(*solid[:2])
    np.testing.assert_allclose(
        np.sort(np.abs(normals), axis=1), [[0, 0, 1]] * 24, atol=1e-12
    )


def test_chairs_are_drawn_one_after_the_other_from_the_seed():
    few, many = chairs_synthetic.draw(1, 5), chairs_synthetic.draw(1, 50)
    assert many[:5] == few
    assert chairs_synthetic.draw(2, 5)[0] != few[0]
    for name, (low, high) in chairs_synthetic.BOUNDS.items():
        drawn = [chair.sizes[name] for chair in many]
        assert low <= min(drawn) < max(drawn) <= high
    assert {chair.back for chair in many} == set(chairs_synthetic.BACKS)
    assert {chair.base for chair in many} == set(chairs_synthetic.BASES)
    assert {(chair.arms, chair.stretchers) for chair in many} == set(
        itertools.product((False, True), repeat=2)
    )


@pytest.mark.parametrize("name", list(chairs_synthetic.BOUNDS))
def test_every_parameter_changes_some_chair(name):
    assert len(chairs_synthetic.BOUNDS) >= 12
    column = list(chairs_synthetic.BOUNDS).index(name)

    def changes(drawn):
        other = with_value(drawn, column, 1.0 - drawn[column])
        one, two = (
            chairs_synthetic.build(chairs_synthetic.parameters(row))
            for row in (drawn, other)
        )
        return any(
            a.shape != b.shape or (a != b).any() for a, b in zip(one, two, strict=True)
        )

    assert any(map(changes, np.random.default_rng(0).random((25, 24))))


@pytest.mark.slow
def test_chairs_stand_on_the_floor_in_one_piece():
    """Two convex parts touch where a mean of the corners of both is the same point."""

    def touch(one, other):
        if (one.min(axis=0) > other.max(axis=0)).any():
            return False
        if (other.min(axis=0) > one.max(axis=0)).any():
            return False
        corners = np.concatenate([one, -other]).T
        sums = np.zeros((2, corners.shape[1]))
        sums[0, : len(one)] = sums[1, len(one) :] = 1.0
        found = scipy.optimize.linprog(
            np.zeros(corners.shape[1]),
            A_eq=np.concatenate([corners, sums]),
            b_eq=[0.0, 0.0, 0.0, 1.0, 1.0],
        )
        return found.status == 0

    for number, chair in enumerate(chairs_synthetic.draw(0, 30)):
        parts = [solid.vertices for solid in chairs_synthetic.parts(chair)]
        lowest = min(part[:, 1].min() for part in parts)
        assert abs(lowest) < 0.01, number
        joined, waiting = {0}, [0]
        while waiting:
            part = waiting.pop()
            for other in range(len(parts)):
                if other not in joined and touch(parts[part], parts[other]):
                    joined.add(other)
                    waiting.append(other)
        assert len(joined) == len(parts), f"{number}: {chair}"


def test_parts_of_chairs_are_closed():
    for chair in chairs_synthetic.draw(0, 12):
        for solid in chairs_synthetic.parts(chair):
            assert is_closed(solid.vertices, solid.triangles)
            middle = solid.vertices.mean(axis=0)
            assert signed_volume(solid.vertices - middle, solid.triangles) > 0.0


def test_a_chair_fills_its_pictures_and_is_whole_in_each():
    for chair in chairs_synthetic.draw(0, 4):
        images = chairs_synthetic.render_views(chair, 8, 64)
        assert images.shape == (16, 64, 64)
        dark = (images < 255).any(axis=0)
        assert not dark[[0, -1]].any()
        assert not dark[:, [0, -1]].any()
        assert dark[:4].any() or dark[-4:].any() or dark[:, :4].any()
        for image in images:
            assert 0.02 < (image < 255).mean() < 0.7


def test_azimuths_turn_the_chair_and_elevations_raise_the_camera():
    chair = chairs_synthetic.draw(0, 1)[0]
    images = chairs_synthetic.render_views(chair, 4, 48).astype(np.float64)
    for image in (images[0], images[2], images[4], images[6]):  # from front and back
        outline = image < 255.0
        assert (outline == outline[:, ::-1]).mean() > 0.99
    # From the sides the light differs, but not the outline.
    left, right = images[1] < 255.0, images[3] < 255.0
    assert (left == right[:, ::-1]).mean() > 0.99
    assert (left == left[:, ::-1]).mean() < 0.95
    # At 90 degrees what faced the camera, the seat, is on the right of the back.
    upper = np.nonzero(left[:20])[1].mean()
    assert upper < np.nonzero(left[20:36])[1].mean()


def test_synthetic_chairs_say_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(chairs_synthetic, "SHAPES_PER_PART", 2)
    dataset = chairs_synthetic.load(
        num_shapes=5,
        num_azimuths=3,
        image_size=16,
        num_validation=1,
        num_test=2,
        seed=3,
        cache_dir=tmp_path,
        processes=1,
    )
    assert dataset.name == "chairs_synthetic"
    assert dataset.target_kind == "view"
    assert dataset.source == (
        "SYNTHETIC, a stand-in for the rendered chairs: 5 shapes in 6 views, "
        "generated, seed 3"
    )
    shapes = chairs_synthetic.draw(3, 5)
    parts = {"train": shapes[:2], "validation": shapes[2:3], "test": shapes[3:]}
    for name, wanted in parts.items():
        split = getattr(dataset, name)
        images = [chairs_synthetic.render_views(chair, 3, 16) for chair in wanted]
        images = np.concatenate(images)[..., None].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(split.examples, images)
        turns = np.array([0.0, 2.0, 4.0] * 2 * len(wanted)) * math.pi / 3.0
        np.testing.assert_allclose(split.targets, turns, rtol=1e-15)


def test_numbers_of_synthetic_chairs_are_checked(tmp_path):
    for options, wanted in (
        ({"num_shapes": 3}, "num_validation + num_test must be less than num_shapes, "),
        ({"num_azimuths": 0}, "num_azimuths must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ):
        options = {"cache_dir": tmp_path} | options
        text = message(chairs_synthetic.load, **options, error=ValueError)
        assert text.startswith(wanted)
    assert not list(tmp_path.iterdir())


# --- Faces: made models --------------------------------------------------------------

NUM_MODES = 4


@pytest.fixture
def small_ict(monkeypatch):
    """Arrays of a model in the layout of the ICT one: a head that is a ball."""
    vertices, triangles = sphere(3, 10.0)
    generator = np.random.default_rng(0)
    modes = generator.integers(-32_767, 32_768, (NUM_MODES, *vertices.shape))
    # The right of the head; no eyes in the half in front of them.
    part = np.where(vertices[:, 2] < -5.0, 1, 0)
    for name, number in {
        "ICT_VERTICES": len(vertices),
        "ICT_TRIANGLES": len(triangles),
        "ICT_MODES": NUM_MODES,
        "IDENTITIES_PER_PART": 2,
    }.items():
        monkeypatch.setattr(faces, name, number)
    return {
        "neutral": vertices.astype(np.float32),
        "modes_q": modes.astype(np.int16),
        "modes_scale": np.full(NUM_MODES, 0.2 / 32_767, np.float32),
        "triangles": triangles.astype(np.uint16),
        "part": part.astype(np.uint8),
    }


def npz(arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def write_ict(tmp_path, content):
    path = tmp_path / "ict_face" / "ict_face_model.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def load_faces(tmp_path, **options):
    options = {
        "num_faces": 5,
        "num_views": 3,
        "image_size": 12,
        "num_validation": 1,
        "num_test": 2,
        "cache_dir": tmp_path / "c",
        "processes": 1,
        "verify": False,
    } | options
    return faces.load(tmp_path, **options)


def test_faces_are_rendered_by_identity_and_yaw(small_ict, tmp_path):
    path = write_ict(tmp_path, npz(small_ict))
    dataset = load_faces(tmp_path, seed=7, num_views=5)
    assert dataset.name == "faces"
    assert dataset.target_kind == "view"
    assert dataset.source == (
        f"rendered from {path}, checksum NOT verified; 5 faces in 5 views from -90 to "
        "90 degrees, seed 7"
    )
    model = faces.read_ict("a", path.read_bytes())
    yaws = np.array([-0.5, -0.25, 0.0, 0.25, 0.5]) * math.pi
    coefficients = np.random.default_rng(7).standard_normal((5, NUM_MODES))
    images = [faces.render_views(model, c, yaws, 12) for c in coefficients]
    parts = {"train": slice(0, 2), "validation": slice(2, 3), "test": slice(3, 5)}
    for name, part in parts.items():
        split = getattr(dataset, name)
        wanted = np.concatenate(images[part])[..., None].astype(np.float32)
        np.testing.assert_array_equal(split.examples, wanted / np.float32(255.0))
        np.testing.assert_array_equal(split.targets, np.tile(yaws, len(images[part])))


def test_an_identity_is_the_neutral_face_plus_its_modes(small_ict):
    model = faces.read_ict("a", npz(small_ict))
    np.testing.assert_array_equal(model.mean, small_ict["neutral"])
    wanted = small_ict["modes_q"] * small_ict["modes_scale"][:, None, None]
    found = model.modes.reshape(NUM_MODES, -1, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    coefficients = np.array([0.5, -1.0, 2.0, 0.0])
    other = model._replace(
        mean=(model.mean + np.tensordot(coefficients, wanted, 1)).astype(np.float32)
    )
    angles = np.array([0.3])
    one = faces.render_views(model, coefficients, angles, 16).astype(int)
    two = faces.render_views(other, np.zeros(NUM_MODES), angles, 16).astype(int)
    assert np.abs(one - two).max() <= 1
    assert (one != faces.render_views(model, np.zeros(NUM_MODES), angles, 16)).any()


def test_a_mirrored_identity_at_the_mirrored_yaw_is_the_mirrored_image(small_ict):
    model = faces.read_ict("a", npz(small_ict))
    mirror = np.float32([-1.0, 1.0, 1.0])
    mirrored = model._replace(
        mean=model.mean * mirror,
        modes=(model.modes.reshape(NUM_MODES, -1, 3) * mirror).reshape(NUM_MODES, -1),
        triangles=model.triangles[:, ::-1],
    )
    x, y, z = faces.LIGHT.direction
    light = faces.LIGHT._replace(direction=(-x, y, z))
    coefficients, yaws = np.array([1.0, -1.0, 0.5, 2.0]), faces.yaws(5, 80.0)
    one = faces.render_views(model, coefficients, yaws, 32)
    two = faces.render_views(mirrored, coefficients, -yaws, 32, light)
    np.testing.assert_array_equal(two[:, :, ::-1], one)
    assert (two != one).any()


def test_the_seed_decides_and_the_first_faces_do_not_depend_on_their_number(
    small_ict, tmp_path
):
    write_ict(tmp_path, npz(small_ict))
    first = load_faces(tmp_path)
    more = load_faces(tmp_path, num_faces=7)
    np.testing.assert_array_equal(more.train.examples[:6], first.train.examples)
    other = load_faces(tmp_path, seed=1)
    assert (other.train.examples != first.train.examples).any()
    again = load_faces(tmp_path, cache_dir=tmp_path / "d")
    for name in SPLITS:
        one, two = getattr(first, name).examples, getattr(again, name).examples
        assert one.tobytes() == two.tobytes()


def test_yaws_are_equal_steps_and_symmetric():
    degrees = np.degrees(faces.yaws(37, 90.0))
    np.testing.assert_allclose(degrees, np.arange(-90.0, 91.0, 5.0), atol=1e-12)
    np.testing.assert_array_equal(degrees, -degrees[::-1])
    np.testing.assert_array_equal(faces.yaws(1, 90.0), [0.0])
    np.testing.assert_allclose(np.degrees(faces.yaws(2, 30.0)), [-30.0, 30.0])


def test_another_model_has_another_cache_and_another_folder_does_not(
    small_ict, tmp_path, capsys
):
    write_ict(tmp_path, npz(small_ict))
    first = load_faces(tmp_path)
    capsys.readouterr()
    (tmp_path / "ict_face").rename(tmp_path / "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "x").rename(tmp_path / "other" / "ict_face")
    moved = load_faces(tmp_path / "other", cache_dir=tmp_path / "c")
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(moved.test.examples, first.test.examples)
    small_ict["modes_scale"] = 2.0 * small_ict["modes_scale"]
    write_ict(tmp_path, npz(small_ict))
    changed = load_faces(tmp_path)
    assert "0 of 15 images" in capsys.readouterr().err
    assert (changed.test.examples != first.test.examples).any()


def test_irises_are_painted_and_those_behind_left_out(small_ict):
    vertices = small_ict["neutral"]
    front = np.argmax(vertices[:, 2])
    eye = np.linalg.norm(vertices - vertices[front], axis=1) < 4.0
    near = np.argsort(vertices[:, 2])[-5:-1]
    vertices[near, :2] = [[0.2, 0.0], [0.0, -0.3], [-0.6, 0.0], [0.0, 0.65]]
    behind = np.argmin(vertices[:, 2])
    small_ict["part"][eye], small_ict["part"][behind] = 2, 3
    model = faces.read_ict("a", npz(small_ict))
    assert len(model.mean) == len(vertices) - 1
    assert len(model.triangles) == len(small_ict["triangles"]) - 4
    assert model.modes.shape == (NUM_MODES, 3 * len(model.mean))
    kept = np.delete(np.arange(len(vertices)), behind)
    np.testing.assert_array_equal(model.mean, vertices[kept])
    radius = np.hypot(*vertices[kept][:, :2].T)
    wanted = np.where(radius < 0.25, 0.05, np.where(radius < 0.62, 0.25, 1.0))
    assert (np.bincount(np.searchsorted([0.05, 0.25], wanted))[:2] == 2).all()
    np.testing.assert_array_equal(model.albedo[eye[kept]], wanted[eye[kept]])
    assert (model.albedo[~eye[kept]] == 0.9).all()
    # The triangles are the same ones with the vertices numbered anew.
    place = model.mean[model.triangles]
    there = vertices[small_ict["triangles"]]
    there = there[~(small_ict["triangles"] == behind).any(axis=1)]
    np.testing.assert_array_equal(place, there)


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("neutral", None, "no array neutral, wanted one of (258, 3)"),
        (
            "neutral",
            lambda a: a[1:],
            "neutral has shape (257, 3) of float32, wanted floating-point numbers of "
            "shape (258, 3)",
        ),
        (
            "modes_q",
            lambda a: a.astype(np.float32),
            "modes_q has shape (4, 258, 3) of float32, wanted whole numbers of shape "
            "(4, 258, 3)",
        ),
        (
            "neutral",
            lambda a: with_value(a, (1, 2), np.nan),
            "neutral holds nan at 5, wanted finite numbers",
        ),
        (
            "modes_scale",
            lambda a: with_value(a, 3, np.inf),
            "modes_scale holds inf at 3, wanted finite numbers",
        ),
        (
            "triangles",
            lambda a: with_value(a, (0, 0), 258),
            "triangles of the vertices 0 to 258, wanted 0 to 257",
        ),
        (
            "part",
            lambda a: np.array([None] * 258),
            "damaged npz file: Object arrays cannot be loaded when allow_pickle=False",
        ),
    ],
)
def test_bad_arrays_of_a_face_model_are_named(small_ict, name, change, wanted):
    if change is None:
        del small_ict[name]
    else:
        small_ict[name] = change(small_ict[name])
    assert message(faces.read_ict, "a", npz(small_ict)) == f"a: {wanted}"


def test_what_is_not_the_whole_model_is_refused(small_ict, tmp_path):
    content = npz(small_ict)
    for cut in (10, 1_000, len(content) // 2, len(content) - 10):
        text = message(faces.read_ict, "a", content[:cut])
        assert text.startswith("a: damaged npz file: ")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    text = message(faces.read_ict, "a", bytes(flipped))
    assert text.startswith("a: damaged npz file: ")
    assert message(faces.read_ict, "a", b"\x89HDF\r\n") == (
        "a: this is an HDF5 file, wanted an npz file (a zip archive of NumPy arrays)"
    )
    path = write_ict(tmp_path, content)
    text = message(load_faces, tmp_path, verify=True)
    assert text.startswith(f"{path}: the unpacked content has sha256 ")
    assert not (tmp_path / "c").exists()


def test_a_missing_model_is_told_with_where_it_is_to_be_had(tmp_path):
    assert message(faces.load) == (
        "faces: no data directory given, wanted one with a folder ict_face/; the model "
        f"is to be had from {faces.ICT_HOME}"
    )
    assert message(faces.load, tmp_path) == (
        f"ict_face: no folder {tmp_path}/ict_face, wanted one with the files from "
        f"{faces.ICT_HOME}"
    )
    for name in ("ict_face", "basel_face"):
        (tmp_path / name).mkdir()
    assert message(faces.load, tmp_path) == (
        f"{tmp_path}/ict_face: no file ict_face_model.npz, to be had from "
        f"{faces.ICT_HOME}"
    )
    wanted = f"{tmp_path}/basel_face: wanted one file *.h5, to be had from "
    assert message(faces.load, tmp_path, "basel") == (
        f"{wanted}{faces.BASEL_HOME}; seen none"
    )
    for name in ("b.h5", "a.h5"):
        (tmp_path / "basel_face" / name).write_bytes(b"")
    assert message(faces.load, tmp_path, "basel").endswith("; seen a.h5, b.h5")


def test_numbers_of_faces_are_checked(tmp_path):
    for options, wanted in (
        ({"model": "bfm"}, "model must be 'ict' or 'basel', got 'bfm'"),
        ({"num_faces": 400}, "num_validation + num_test must be less than num_faces, "),
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"yaw_degrees": 181.0}, "yaw_degrees must be in [0, 180], got 181.0"),
        ({"yaw_degrees": math.nan}, "yaw_degrees must be in [0, 180], got nan"),
    ):
        text = message(faces.load, tmp_path, **options, error=ValueError)
        assert text.startswith(wanted)


# --- Faces: a made Basel file --------------------------------------------------------


def basel_file(**changes):
    """A ball in the layout of a Basel face model, in mm and with 3 modes."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    vertices, triangles = sphere(2, 100.0)
    generator = np.random.default_rng(0)
    arrays = {
        "model/mean": (vertices + np.array([0.0, 5.0, 0.0])).ravel().astype(np.float32),
        "model/pcaBasis": np.linalg.qr(generator.normal(size=(vertices.size, 3)))[0],
        "model/pcaVariance": np.array([900.0, 400.0, 100.0]),
        "representer/cells": triangles.T.astype(np.int32),
    } | changes
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[f"shape/{name}"] = array
    return content.getvalue(), arrays


def test_a_basel_model_is_its_mean_plus_scaled_modes():
    content, arrays = basel_file()
    model = faces.read_basel("a", content)
    np.testing.assert_array_equal(model.mean.ravel(), arrays["model/mean"])
    wanted = arrays["model/pcaBasis"].T * np.array([[30.0], [20.0], [10.0]])
    np.testing.assert_allclose(model.modes, wanted, rtol=1e-6)
    np.testing.assert_array_equal(model.triangles, arrays["representer/cells"].T)
    image = faces.render_views(model, np.zeros(3), np.array([0.0]), 32)[0]
    dark = image == 0
    assert dark[[0, -1]].all()
    assert dark[:, [0, -1]].all()
    assert 0.3 < (~dark).mean() < 0.9  # the head fills the picture


def test_a_basel_model_that_is_inside_out_is_turned():
    cells = basel_file()[1]["representer/cells"]
    content, _ = basel_file(**{"representer/cells": cells[::-1]})
    triangles = faces.read_basel("a", content).triangles
    np.testing.assert_array_equal(triangles, cells.T)


def test_a_basel_model_is_found_and_said(tmp_path):
    (tmp_path / "basel_face").mkdir()
    path = tmp_path / "basel_face" / "model2019_bfm.h5"
    path.write_bytes(basel_file()[0])
    dataset = load_faces(tmp_path, model="basel", verify=True)
    assert dataset.source.startswith(f"rendered from {path}, checksum NOT verified; 5 ")
    assert dataset.train.examples.shape == (6, 12, 12, 1)
    assert dataset.train.examples.max() > 0.5


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model/mean": None}, "no array /shape/model/mean, wanted one"),
        (
            {"model/pcaVariance": np.ones(2)},
            "/shape/model/pcaBasis has shape (198, 3) of float64, wanted "
            "floating-point numbers of shape (198, 2)",
        ),
        (
            {"model/pcaVariance": np.array([1.0, -2.0, 1.0])},
            "/shape/model/pcaVariance holds -2.0, wanted none below 0",
        ),
        (
            {"model/pcaVariance": np.array([1.0, np.nan, 1.0])},
            "/shape/model/pcaVariance holds nan at 1, wanted finite numbers",
        ),
        (
            {"representer/cells": np.zeros((5, 3), np.int32)},
            "/shape/representer/cells has shape (5, 3) of int32, wanted whole numbers "
            "of shape (3, -1)",
        ),
        (
            {"representer/cells": np.full((3, 5), 66)},
            "triangles of the vertices 66 to 66, wanted 0 to 65",
        ),
    ],
)
def test_bad_arrays_of_a_basel_model_are_named(changes, wanted):
    content, _ = basel_file(**changes)
    assert message(faces.read_basel, "a", content) == f"a: {wanted}"


def test_what_is_not_a_whole_basel_model_is_refused(small_ict):
    content, _ = basel_file()
    text = message(faces.read_basel, "a", content[:3_000])
    assert text.startswith("a: damaged HDF5 file: ")
    assert message(faces.read_basel, "a", npz(small_ict)) == (
        "a: this is a zip archive, wanted an HDF5 file"
    )


def test_without_h5py_a_basel_model_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert message(faces.read_basel, "a", b"\x89HDF\r\n\x1a\n") == (
        "a: cannot be read without h5py, wanted it installed (pip install "
        "'vhp_jax[faces]')"
    )


# --- Faces: the real model -----------------------------------------------------------

DATA = os.environ.get("VHP_DATA_DIR", "")
ICT = Path(DATA) / "ict_face" / "ict_face_model.npz"
needs_ict = pytest.mark.skipif(
    not (DATA and ICT.is_file()),
    reason="no ict_face/ict_face_model.npz in VHP_DATA_DIR",
)


@pytest.fixture(scope="module")
def ict():
    return faces.read_ict(ICT, ICT.read_bytes())


@needs_ict
def test_the_real_model_is_a_head_that_looks_at_the_camera(ict):
    assert ict.mean.shape == (14_388 - 1_600, 3)
    assert len(ict.triangles) == 28_552 - 2 * 1_596
    nose = ict.mean[np.argmax(ict.mean[:, 2])]
    assert abs(nose[0]) < 0.1
    # Its triangles face outwards: those in front of the nose's root look to the front.
    normals = render.vertex_normals(ict.mean, ict.triangles)
    assert normals[np.argmax(ict.mean[:, 2])][2] > 0.9
    assert normals[np.argmax(ict.mean[:, 1])][1] > 0.9
    # Two eyes, each with a dark iris in its middle.
    for side in (-1.0, 1.0):
        pupil = ict.mean[(ict.albedo == 0.05) & (side * ict.mean[:, 0] > 0.0)]
        assert 0 < len(pupil) < 300
        np.testing.assert_allclose(
            pupil.mean(axis=0), [side * 3.24, 3.61, 9.6], atol=0.1
        )


@needs_ict
def test_the_neutral_face_is_symmetric_under_a_light_from_the_front(ict):
    """But for how its quadrilaterals are split into triangles."""
    light = faces.LIGHT._replace(direction=(0.0, 0.5, 1.0))
    yaws = np.radians([-50.0, 0.0, 50.0])
    left, front, right = faces.render_views(ict, np.zeros(100), yaws, 64, light) / 255.0
    assert np.abs(front - front[:, ::-1]).mean() < 2e-3
    assert np.abs(left - right[:, ::-1]).mean() < 2e-3
    assert np.abs(left - right).mean() > 0.02
    assert 0.2 < (front > 0.0).mean() < 0.6
    # At positive yaws the nose is on the right, where its tip is projected to.
    yaw = math.radians(90.0)
    profile = faces.render_views(ict, np.zeros(100), np.array([yaw]), 64)[0]
    tip = ict.mean[[np.argmax(ict.mean[:, 2])]]
    column, row, _ = render.project(tip, render.rotation(yaw), ict.camera, 64)
    assert column[0] > 50.0
    assert profile[int(row[0]), int(column[0]) - 1] > 0
    assert not profile[int(row[0]), int(column[0]) + 1 :].any()


@needs_ict
@pytest.mark.slow
def test_real_faces_are_whole_and_differ(tmp_path):
    """Rendered by two processes while JAX has a device here."""
    import jax.numpy as jnp

    assert float(jnp.ones(3).sum()) == 3.0
    options = {"num_faces": 42, "num_views": 3, "num_validation": 1, "num_test": 1}
    dataset = faces.load(DATA, **options, cache_dir=tmp_path, processes=2)
    assert dataset.source.startswith(
        f"rendered from {ICT}, checksum verified; 42 faces"
    )
    images = dataset.train.examples.reshape(40, 3, 64, 64)
    assert not images[:, :, 0].any()  # there is air above each head
    assert ((images > 0.0).mean(axis=(2, 3)) > 0.25).all()
    assert ((images > 0.0).mean(axis=(2, 3)) < 0.75).all()
    front = images[:, 1].reshape(40, -1)
    distances = np.linalg.norm(front[:, None] - front[None], axis=-1)
    assert distances[~np.eye(40, dtype=bool)].min() > 1.0
    for name in SPLITS:
        assert len(getattr(dataset, name).examples) % 3 == 0
    assert dataset.train.examples.max() <= 1.0
    again = faces.load(DATA, **options, cache_dir=tmp_path / "x", processes=1)
    assert again.train.examples.tobytes() == dataset.train.examples.tobytes()
