"""Writes a page on which a point is dragged over the latent space, decoded as it moves.

    python -m experiments.explore --workdir=runs/pendulum

The page, WORKDIR/explore.html, is one file that works offline in any browser. Of a
latent space of more than two dimensions it shows two, --axes; the others stay at the
encoding of one test example.
"""

import base64
import html
import json
import string
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, figures, files, runs, views
from vhp_jax import evaluation, plotting
from vhp_jax.types import Params

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_list("axes", ["0", "1"], "Two latent dimensions, from 0.")
flags.DEFINE_integer("example", 0, "Test example whose other dimensions are kept.")
flags.DEFINE_integer("grid", 40, "Decoded points a side.")
flags.DEFINE_integer("num_points", 2_000, "Encodings and prior samples shown, at most.")

PAGE = Path(__file__).with_name("explore_page.html")
MAX_CELL_BYTES = 32 * 2**20  # of all decoded points


def base64_of(array: np.ndarray) -> str:
    """Little-endian bytes as text: float32, or uint8 as it is."""
    kind = np.uint8 if array.dtype == np.uint8 else "<f4"
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def decoded_grid(
    run: runs.Run,
    params: Params,
    centre: np.ndarray,
    axes: list[int],
    ticks: np.ndarray,
) -> np.ndarray:
    """Frames decoded at all pairs of ticks.

    Args:
      run: the experiment.
      params: of one seed.
      centre: [D], what the other dimensions are.
      axes: the two dimensions that move.
      ticks: [2, G], values of each.

    Returns:
      [G, G, ...], the first axis for the first dimension.
    """
    model, view = run.experiment.model, views.view(run.experiment.dataset)
    size = ticks.shape[1]
    points = np.tile(centre, (size, size, 1))
    points[..., axes[0]] = ticks[0][:, None]
    points[..., axes[1]] = ticks[1]
    flat = evaluation.decode(model, params, points.reshape(size * size, -1))
    frames = view.frames(flat)
    return frames.reshape(size, size, *frames.shape[1:])


def payload(
    run: runs.Run, params: Params, axes: list[int], example: int, grid: int, shown: int
) -> dict[str, Any]:
    """What the page shows, ready for JSON."""
    dataset, model = run.experiment.dataset, run.experiment.model
    test = dataset.test
    codes = evaluation.encode_dataset(model, params, test.examples).mean
    prior = evaluation.sample_prior(model, params, jax.random.key(0), shown)
    chosen = np.unique(np.linspace(0, len(codes) - 1, shown).astype(int))
    planar = np.concatenate([codes[:, axes], prior[:, axes]])
    low, high = np.quantile(planar, [0.002, 0.998], axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    low, high = low - margin, high + margin
    frames = decoded_grid(
        run, params, codes[example], axes, np.linspace(low, high, grid).T
    )
    view = views.view(dataset)
    colors, index, names = plotting.palette(
        figures.target_colors(dataset, test.targets[chosen]), figures.color_by(dataset)
    )
    about: dict[str, Any] = {
        "axes": axes,
        "grid": grid,
        "limits": [low.tolist(), high.tolist()],
        "start": np.clip(codes[example, axes], low, high).tolist(),
        "prior": base64_of(prior[:, axes]),
        "codes": base64_of(codes[chosen][:, axes]),
        "color": index,
        "colors": colors,
        "names": names if len(names) > 1 else [],
    }
    if isinstance(view, views.Bodies):
        projected = plotting.side_view(frames.reshape(-1, *frames.shape[2:]))
        low, high = projected.min(axis=(0, 1)), projected.max(axis=(0, 1))
        margin = 0.04 * np.max(high - low)
        return about | {
            "kind": "body",
            "cells": base64_of(projected),
            "box": [*(low - margin).tolist(), *(high - low + 2 * margin).tolist()],
            "bones": plotting.bones(view.skeleton),
        }
    pixels = np.round(255.0 * np.clip(frames, 0.0, 1.0)).astype(np.uint8)
    about |= {"kind": "image", "cells": base64_of(pixels), "shape": frames.shape[2:]}
    return about


def chosen_axes(latent_dim: int) -> list[int]:
    """Two different dimensions from --axes."""
    try:
        first, second = (int(axis) for axis in FLAGS.axes)
    except ValueError:
        raise cli.UsageError(f"--axes wants two numbers, got {FLAGS.axes}") from None
    if first == second or not all(0 <= a < latent_dim for a in (first, second)):
        raise cli.UsageError(
            f"--axes wants two different numbers from 0 to {latent_dim - 1}, got "
            f"{first},{second}"
        )
    return [first, second]


def main() -> None:
    """Writes the page as the flags say."""
    restored = runs.opened(FLAGS.workdir)
    run, workdir = restored.run, Path(FLAGS.workdir)
    dataset, latent_dim = run.experiment.dataset, run.experiment.model.latent_dim
    axes = chosen_axes(latent_dim)
    if not 0 <= FLAGS.example < len(dataset.test.examples):
        raise cli.UsageError(
            f"--example must be from 0 to {len(dataset.test.examples) - 1}, got "
            f"{FLAGS.example}"
        )
    cell = dataset.test.examples[0].size * (4 if dataset.motion else 1)
    largest = int((MAX_CELL_BYTES / cell) ** 0.5)
    if not 2 <= FLAGS.grid <= largest:
        raise cli.UsageError(f"--grid must be from 2 to {largest}, got {FLAGS.grid}")
    if FLAGS.num_points < 1:
        raise cli.UsageError(f"--num_points must be >= 1, got {FLAGS.num_points}")
    data = payload(
        run, restored.first(), axes, FLAGS.example, FLAGS.grid, FLAGS.num_points
    )
    note = (
        f"The other {latent_dim - 2} latent dimensions are those of test example "
        f"{FLAGS.example}."
        if latent_dim > 2
        else ""
    )
    page = string.Template(PAGE.read_text()).substitute(
        title=html.escape(f"{dataset.name}: {workdir.resolve().name}"),
        grid=FLAGS.grid,
        note=note,
        data=json.dumps(data).replace("<", "\\u003c"),
    )
    path = workdir / "explore.html"
    files.write_text(path, page)
    print(f"wrote {path}, {len(page) / 2**20:.1f} MiB")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
