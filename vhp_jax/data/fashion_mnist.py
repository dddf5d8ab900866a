"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): Sec. 4.3."""

from vhp_jax.data import idx
from vhp_jax.data.base import Dataset
from vhp_jax.data.files import StrPath

FASHION_MNIST = idx.IdxSet(
    name="fashion_mnist",
    home="github.com/zalandoresearch/fashion-mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=idx.published_files(
        train_images="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        train_labels="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        test_images="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        test_labels="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def load(
    directory: StrPath | None,
    values: str = "dynamic",
    seed: int = 0,
    verify: bool = True,
) -> Dataset:
    """Reads Fashion-MNIST from its four published files.

    The last 10,000 images of the training file are the validation split.

    Args:
      directory: holds the folder fashion_mnist/; None takes tensorflow-datasets' cache,
        or has it download the files.
      values: see `vhp_jax.data.mnist.load`.
      seed: of the validation and test images drawn here.
      verify: whether content that is not the published one is refused.

    Returns:
      50,000, 10,000 and 10,000 images, float32 [N, 28, 28, 1] in [0, 1], cloth is
      bright, and their classes, int64 [N].

    Raises:
      DataError: a file is missing, damaged, of another shape or not the published one.
      ValueError: `values` is neither of the two, or `seed` is negative.
    """
    return idx.load(FASHION_MNIST, directory, values, seed, verify)
