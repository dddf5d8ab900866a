"""Files that are whole or not there, and what JSON can hold."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place in one step at the end.

    The folder is made where needed. Where the block fails nothing is left of it, and
    what was at `path` stays as it was.

    Args:
      path: of the file to be written; the temporary one begins with a dot and ends
        otherwise, so that what looks for files of its kind passes it over.

    Raises:
      OSError: the folder cannot be made, or the file not be moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """What a JSON file holds of a value: see `plain`."""
    return json.dumps(plain(value), indent=2) + "\n"


def plain(value: Any) -> Any:
    """For JSON: arrays as lists, floats that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
