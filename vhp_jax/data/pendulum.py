"""Images of a pendulum: the artificial data set of Sec. 4.1.

16x16 images of a rod with a bob, hung in the centre; the joint angle, uniform in
[0, 2 pi), is the only degree of freedom. A pure function of the seed: no file, no
network. The paper shows such images but gives no formula; here the brightness falls off
as a Gaussian of the distance to the rod and to the bob, which is anti-aliased by
construction.
"""

import numpy as np

from vhp_jax.data.base import Dataset, Split, check_images

IMAGE_SIZE = 16


def render(
    angles: np.ndarray,
    rod_length: float = 4.0,
    rod_width: float = 1.2,
    bob_width: float = 2.5,
    amplitude: float = 0.5,
    image_size: int = IMAGE_SIZE,
) -> np.ndarray:
    """Draws one image per angle.

    Args:
      angles: [N] radians, 0 hangs down, pi/2 points right.
      rod_length: pixels from the pivot to the centre of the bob.
      rod_width: standard deviation of the rod's profile, pixels.
      bob_width: standard deviation of the bob's profile, pixels.
      amplitude: brightness of the axis of the rod, in (0, 1].
      image_size: pixels a side.

    Returns:
      float64 [N, image_size, image_size] in [0, 1]; row 0 is the top.
    """
    rows, columns = np.mgrid[:image_size, :image_size] - (image_size - 1) / 2.0
    x, y = columns[None], -rows[None]  # right, up; [1, H, W]
    bob_x = rod_length * np.sin(angles)[:, None, None]
    bob_y = -rod_length * np.cos(angles)[:, None, None]
    along = np.clip((x * bob_x + y * bob_y) / rod_length**2, 0.0, 1.0)
    rod = np.square(x - along * bob_x) + np.square(y - along * bob_y)
    bob = np.square(x - bob_x) + np.square(y - bob_y)
    profile = np.maximum(
        np.exp(-0.5 * rod / rod_width**2), np.exp(-0.5 * bob / bob_width**2)
    )
    return amplitude * profile


def load(
    seed: int = 0,
    num_train: int = 15_000,
    num_validation: int = 2_000,
    num_test: int = 2_000,
    noise: float = 0.015,
    rod_length: float = 4.0,
    rod_width: float = 1.2,
    bob_width: float = 2.5,
    amplitude: float = 0.5,
) -> Dataset:
    """Generates the data set.

    Args:
      seed: of angles and noise; the same seed gives the same bytes.
      num_train: training images (the paper: 15,000).
      num_validation: validation images.
      num_test: test images.
      noise: standard deviation of the observation noise, drawn once per image; the sum
        is clipped to [0, 1].
      rod_length: see `render`.
      rod_width: see `render`.
      bob_width: see `render`.
      amplitude: see `render`.

    Returns:
      Splits with examples float32 [N, 16, 16] in [0, 1] and targets float64 [N], the
      true joint angles in radians.

    Raises:
      ValueError: a count, width or brightness is out of range.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{name} must be at least 1, got {count}")
    lengths = {
        "rod_length": rod_length,
        "rod_width": rod_width,
        "bob_width": bob_width,
    }
    for name, value in lengths.items():
        if not (value > 0.0 and np.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0.0 < amplitude <= 1.0:
        raise ValueError(f"amplitude must be in (0, 1], got {amplitude}")
    if not (noise >= 0.0 and np.isfinite(noise)):
        raise ValueError(f"noise must be finite and not negative, got {noise}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")

    def draw(generator: np.random.Generator, count: int) -> Split:
        angles = generator.uniform(0.0, 2.0 * np.pi, count)
        images = render(angles, rod_length, rod_width, bob_width, amplitude)
        images = images + noise * generator.standard_normal(images.shape)
        return Split(np.clip(images, 0.0, 1.0).astype(np.float32), angles)

    # One stream per split, so that the size of one does not change the others.
    streams = np.random.default_rng(seed).spawn(len(counts))
    splits = {
        name: draw(stream, count)
        for (name, count), stream in zip(counts.items(), streams, strict=True)
    }
    for name, split in splits.items():
        check_images(f"pendulum {name}", split.examples)
    parts = (splits["train"], splits["validation"], splits["test"])
    return Dataset("pendulum", "angle", f"generated, seed {seed}", *parts)
