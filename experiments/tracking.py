"""Metrics and figures of a run also as TensorBoard events, where they are asked for.

The lines of metrics.jsonl stay the record; the events say the same once more.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli

NOT_METRICS = ("step", "split", "seed")


class Events:
    """Event files of one run.

    Args:
      folder: where they are written, beside those of earlier parts of the run.
      step: steps done before; what TensorBoard has of later ones is dropped.

    Raises:
      UserError: the package that writes them is not installed.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise cli.UserError(
                "--tensorboard wants the package tensorboardX: "
                "pip install 'vhp_jax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl, each number of them a scalar."""
        for line in lines:
            group = str(line.get("split", "train"))
            if "seed" in line and "split" not in line:
                group += f"_seed_{line['seed']}"
            for name, value in line.items():
                if name not in NOT_METRICS and value is not None:
                    tag = f"{group}/{name}"
                    self._writer.add_scalar(tag, float(value), line["step"])
        self._writer.flush()

    def add_figures(self, folder: Path, step: int) -> None:
        """Every picture of a folder."""
        from PIL import Image

        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(path.stem, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
