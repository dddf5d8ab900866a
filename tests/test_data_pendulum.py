"""The pendulum as a pure function of its seed, and its geometry."""

import numpy as np
import pytest
from scipy import stats

from vhp_jax.data.base import DataError, Split, check_images
from vhp_jax.data.pendulum import IMAGE_SIZE, load, render

SPLITS = ("train", "validation", "test")
ANGLES = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False) + 0.05


@pytest.fixture(scope="module")
def dataset():
    return load()


def small(**changes):
    settings = {"num_train": 30, "num_validation": 20, "num_test": 10} | changes
    return load(**settings)


def as_bytes(split):
    return split.examples.tobytes(), split.targets.tobytes()


# --- The data set --------------------------------------------------------------------


def test_defaults_give_the_paper_s_15000_training_images(dataset):
    assert [len(getattr(dataset, name).examples) for name in SPLITS] == [
        15_000,
        2_000,
        2_000,
    ]
    assert dataset.name == "pendulum"
    assert dataset.target_kind == "angle"
    assert dataset.source == "generated, seed 0"


@pytest.mark.parametrize("name", SPLITS)
def test_examples_are_float32_images_in_0_1_and_targets_radians(dataset, name):
    split = getattr(dataset, name)
    assert isinstance(split, Split)
    assert split.examples.dtype == np.float32
    assert split.examples.shape[1:] == (16, 16) == (IMAGE_SIZE, IMAGE_SIZE)
    check_images("pendulum", split.examples)
    assert split.examples.max() > 0.4
    assert split.targets.dtype == np.float64
    assert split.targets.shape == split.examples.shape[:1]
    assert ((split.targets >= 0.0) & (split.targets < 2.0 * np.pi)).all()


@pytest.mark.parametrize("name", SPLITS)
def test_angles_are_uniform(dataset, name):
    turns = getattr(dataset, name).targets / (2.0 * np.pi)
    assert stats.kstest(turns, "uniform").pvalue > 0.01


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = small(seed=3), small(seed=3), small(seed=4)
    for name in SPLITS:
        assert as_bytes(getattr(first, name)) == as_bytes(getattr(again, name))
        assert not np.isin(
            getattr(first, name).targets, getattr(other, name).targets
        ).any()
    assert other.source == "generated, seed 4"


def test_the_global_random_state_is_neither_read_nor_moved():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = small()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert as_bytes(first.train) == as_bytes(small().train)


@pytest.mark.parametrize("resized", SPLITS)
def test_the_size_of_one_split_does_not_change_the_others(resized):
    first, other = small(), small(**{f"num_{resized}": 25})
    for name in SPLITS:
        same = as_bytes(getattr(first, name)) == as_bytes(getattr(other, name))
        assert same == (name != resized)


def test_the_splits_share_no_angle_and_no_noise(dataset):
    targets = np.concatenate([getattr(dataset, name).targets for name in SPLITS])
    assert len(np.unique(targets)) == len(targets)
    black = small(amplitude=1e-6, noise=0.1)
    noise = [getattr(black, name).examples[:10].ravel() for name in SPLITS]
    correlation = np.corrcoef(noise)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 5.0 / np.sqrt(noise[0].size)).all()


def test_without_noise_an_example_is_its_rendered_angle():
    split = small(noise=0.0, rod_length=3.0, amplitude=0.9).test
    wanted = render(split.targets, rod_length=3.0, amplitude=0.9)
    np.testing.assert_array_equal(split.examples, wanted.astype(np.float32))


def test_noise_has_the_moments_asked_for():
    split = load(num_train=1_000, num_validation=1, num_test=1, noise=0.02).train
    clean = render(split.targets)
    inside = (clean > 0.15) & (clean < 0.45)  # seven deviations from the limits
    noise = (split.examples - clean)[inside]
    np.testing.assert_allclose(noise.mean(), 0.0, atol=5 * 0.02 / np.sqrt(noise.size))
    np.testing.assert_allclose(noise.std(), 0.02, rtol=5 / np.sqrt(2 * noise.size))
    assert stats.kstest(noise[:5_000] / 0.02, "norm").pvalue > 0.01


def test_noise_is_clipped_to_the_range_of_images():
    examples = small(amplitude=1.0, noise=0.5).train.examples
    assert examples.min() == 0.0
    assert examples.max() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"num_validation": -1}, "num_validation must be at least 1, got -1"),
        ({"num_test": 0}, "num_test must be at least 1, got 0"),
        ({"rod_length": 0.0}, "rod_length must be positive and finite, got 0.0"),
        ({"rod_width": -1.0}, "rod_width must be positive and finite, got -1.0"),
        ({"bob_width": float("nan")}, "bob_width must be positive and finite, got nan"),
        ({"amplitude": 0.0}, "amplitude must be in (0, 1], got 0.0"),
        ({"amplitude": 1.5}, "amplitude must be in (0, 1], got 1.5"),
        ({"noise": -0.1}, "noise must be finite and not negative, got -0.1"),
        ({"noise": float("nan")}, "noise must be finite and not negative, got nan"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match="must") as error:
        small(**changes)
    assert str(error.value) == message


# --- Geometry ------------------------------------------------------------------------


def centre_of_mass(images):
    """[N, 2], right and up of the middle of the image, in pixels."""
    half = (images.shape[1] - 1) / 2.0
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    mass = images.sum(axis=(1, 2))
    right = ((columns - half) * images).sum(axis=(1, 2)) / mass
    up = ((half - rows) * images).sum(axis=(1, 2)) / mass
    return np.column_stack([right, up])


def test_a_quarter_turn_of_the_angle_turns_the_image():
    turned = render(ANGLES + np.pi / 2.0)
    np.testing.assert_allclose(
        turned, np.rot90(render(ANGLES), axes=(1, 2)), atol=1e-12
    )


def test_a_mirrored_angle_mirrors_the_image():
    np.testing.assert_allclose(render(-ANGLES), render(ANGLES)[:, :, ::-1], atol=1e-12)


def test_the_pendulum_lies_along_its_angle():
    """Zero hangs down and pi/2 points right: the mass is along (sin, -cos)."""
    direction = np.column_stack([np.sin(ANGLES), -np.cos(ANGLES)])
    # On a wide image nothing is cut off, so that the mass lies exactly on the axis.
    centre = centre_of_mass(render(ANGLES, image_size=41))
    length = np.linalg.norm(centre, axis=1, keepdims=True)
    assert (length > 2.0).all()
    np.testing.assert_allclose(centre / length, direction, atol=5e-3)
    centre = centre_of_mass(render(ANGLES))
    cosine = (centre * direction).sum(axis=1) / np.linalg.norm(centre, axis=1)
    assert (cosine > np.cos(0.1)).all()


def test_the_profile_falls_off_as_a_gaussian_of_the_distance_to_rod_and_bob():
    image = render(
        np.zeros(1), 8.0, rod_width=1.0, bob_width=2.0, amplitude=0.8, image_size=33
    )[0]
    middle = 16
    np.testing.assert_allclose(image[middle : middle + 9, middle], 0.8)  # the rod
    across = 0.8 * np.exp(-0.5 * np.arange(4) ** 2)  # beside the pivot
    np.testing.assert_allclose(image[middle, middle : middle + 4], across)
    np.testing.assert_allclose(image[middle, middle - 3 : middle + 1], across[::-1])
    np.testing.assert_allclose(image[middle - 3, middle], across[3])  # above the pivot
    below = 0.8 * np.exp(-0.5 * (np.arange(5) / 2.0) ** 2)  # under the bob
    np.testing.assert_allclose(image[middle + 8 : middle + 13, middle], below)


def test_the_amplitude_is_the_brightness_and_nothing_else():
    np.testing.assert_allclose(
        render(ANGLES, amplitude=0.5), 0.5 * render(ANGLES, amplitude=1.0)
    )


def test_images_are_a_smooth_closed_function_of_the_angle():
    np.testing.assert_allclose(render(ANGLES + 2.0 * np.pi), render(ANGLES), atol=1e-12)
    step = np.abs(render(ANGLES + 1e-3) - render(ANGLES)).max()
    assert 1e-5 < step < 2e-3


# --- check_images --------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.25, 1.5])
def test_check_images_names_the_first_bad_example_and_its_value(value):
    images = np.full((5, 4, 4), 0.5, np.float32)
    images[3, 1, 2] = value
    images[4, 0, 0] = 9.0
    with pytest.raises(DataError, match="wanted finite") as error:
        check_images("toy", images)
    assert str(error.value) == (
        f"toy: example 3 holds {np.float32(value)}, wanted finite values in [0, 1]"
    )


def test_check_images_accepts_the_closed_range():
    check_images("toy", np.linspace(0.0, 1.0, 32).reshape(2, 4, 4))
    with pytest.raises(DataError):
        check_images("toy", np.full((1, 4), np.nextafter(1.0, 2.0)))
