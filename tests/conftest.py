"""Strict settings for every test: shapes, dtypes, ranks; warnings are errors."""

import fcntl
import gc
import os
import sys
from pathlib import Path

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the time; commands, notebooks and benchmarks run optimised.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if jaxlib.version.__version_info__[:2] == (0, 10):  # half of it; 0.12 has no such flag
    XLA_FLAGS = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = XLA_FLAGS.strip()

from jaxtyping import install_import_hook

# The rooms that compute with JAX arrays; the others take anything array-like.
CHECKED = ("beta", "distributions", "evaluation", "model", "networks", "objectives")
CHECKED += ("priors", "starts", "training", "types")

with install_import_hook([f"vhp_jax.{room}" for room in CHECKED], "beartype.beartype"):
    import vhp_jax.training  # noqa: F401

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing leaves much alive, which each full collection looks at again.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No implicit dtype promotion, but in tests that step an optimiser.

    optax's bias correction raises a float to an integer power, which strict promotion
    refuses; such tests carry the mark `optax`.
    """
    mode = "standard" if request.node.get_closest_marker("optax") else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """Keeps compiled programs, in which most of the time goes: runs make their own.

    For this process and those that it starts.
    """
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compilation_cache.reset_cache()


@pytest.fixture
def undrawn(monkeypatch):
    """Runs end without their figures, which take half of the time of a small one."""
    monkeypatch.setattr("experiments.figures.training_figures", lambda *_: ())


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """Commands share names of flags; programs of another file take gigabytes."""
    yield
    if "test_experiments" in sys.modules:
        sys.modules["test_experiments"].forget_commands()
    jax.clear_caches()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, programs) -> Path:
    """A finished run of `tiny`, only to be read; one for all files and processes."""
    from test_experiments import arguments, command

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    workdir = shared / "finished" / "run"
    workdir.parent.mkdir(exist_ok=True)
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not (workdir / "stdout.txt").exists():
            done = command("train", f"--workdir={workdir}", *arguments())
            assert (done.code, done.err) == (0, ""), done
            (workdir / "stdout.txt").write_text(done.out)
    return workdir
