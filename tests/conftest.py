"""Strict settings for every test: shapes, dtypes, ranks; warnings are errors."""

import fcntl
import os
from pathlib import Path

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


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run of `tiny`, only to be read; one for all files and processes."""
    from test_experiments import arguments, cached_programs, command

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    workdir = shared / "finished" / "run"
    workdir.parent.mkdir(exist_ok=True)
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not (workdir / "stdout.txt").exists():
            with cached_programs(own / "programs"):
                done = command("train", f"--workdir={workdir}", *arguments())
            assert (done.code, done.err) == (0, ""), done
            (workdir / "stdout.txt").write_text(done.out)
    return workdir
