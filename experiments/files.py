"""Files that commands write and read.

They are replaced in one step: whatever kills the process, each is whole or not there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli
from vhp_jax import storage


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    with storage.replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file in one step; floats that are not finite become null."""
    write_text(path, storage.json_text(value))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Replaces an .npz file in one step."""
    with storage.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; UserError names a file that is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise cli.UserError(f"{path} does not exist") from None
    except ValueError as error:  # not JSON, or not even text
        raise cli.UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise cli.UserError(f"{path} holds {type(value).__name__}; wanted an object")
    return value
