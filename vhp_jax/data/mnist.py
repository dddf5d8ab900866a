"""Dynamically binarised MNIST (LeCun, Cortes and Burges): Sec. 4.3."""

from vhp_jax.data import idx
from vhp_jax.data.base import Dataset
from vhp_jax.data.files import StrPath

MNIST = idx.IdxSet(
    name="mnist",
    home="yann.lecun.com/exdb/mnist",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files=idx.published_files(
        train_images="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        train_labels="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        test_images="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        test_labels="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)


def load(
    directory: StrPath | None,
    values: str = "dynamic",
    seed: int = 0,
    verify: bool = True,
) -> Dataset:
    """Reads MNIST from its four published files.

    The last 10,000 images of the training file are the validation split.

    Args:
      directory: holds the folder mnist/; None takes tensorflow-datasets' cache, or has
        it download the files.
      values: "dynamic": training images are Bernoulli means, of which each training
        step draws binary images anew, validation and test are drawn here, once.
        "grey": all splits are means.
      seed: of the validation and test images drawn here.
      verify: whether content that is not the published one is refused.

    Returns:
      50,000, 10,000 and 10,000 images, float32 [N, 28, 28, 1] in [0, 1], ink is 1, and
      their digits, int64 [N].

    Raises:
      DataError: a file is missing, damaged, of another shape or not the published one.
      ValueError: `values` is neither of the two, or `seed` is negative.
    """
    return idx.load(MNIST, directory, values, seed, verify)
