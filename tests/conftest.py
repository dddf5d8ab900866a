"""Strict settings for every test: shapes, dtypes, ranks; warnings are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# The rooms that compute with JAX arrays; the others take anything array-like.
CHECKED = ("beta", "distributions", "evaluation", "model", "networks", "objectives")
CHECKED += ("priors", "training", "types")

with install_import_hook([f"vhp_jax.{room}" for room in CHECKED], "beartype.beartype"):
    import vhp_jax.training  # noqa: F401

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No implicit dtype promotion, but in tests that step an optimiser.

    optax's bias correction raises a float to an integer power, which strict promotion
    refuses; such tests carry the mark `optax`.
    """
    mode = "standard" if request.node.get_closest_marker("optax") else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield
