"""What a result comes from: hardware, versions, commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

import vhp_jax
from vhp_jax.data import cache


def hardware() -> str:
    """What a run had to itself: the accelerators, or the usable CPU cores."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"CPU, {cache.processors()} core(s)"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy"]
    packages.append("scikit-learn")
    found = {name: metadata.version(name) for name in packages}
    return found | {"python": platform.python_version(), "vhp_jax": vhp_jax.__version__}


def git_revision() -> str | None:
    """Commit of the working tree, with "+changes" if it is not clean; None without."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
