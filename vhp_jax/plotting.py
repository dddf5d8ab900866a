"""Figures of the paper, drawn from plain numpy arrays.

Each `plot_*` function returns a new `matplotlib.figure.Figure`; `save_figure` writes
it. No display, no pyplot, no state between calls: the same arrays give the same
picture whatever the user's matplotlib settings are. Colours stay apart under the
common colour-vision deficiencies.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import (
    CenteredNorm,
    Colormap,
    LinearSegmentedColormap,
    ListedColormap,
    LogNorm,
    to_hex,
)
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vhp_jax import storage

_P = ParamSpec("_P")
_Floats = NDArray[np.float64]

# Okabe and Ito's palette, its yellow (too pale on white) left out.
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PALETTE = (_BLUE, _RED, _GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#7A4B9A", "#555555")
_PATHS = ("#D7191C", "#111111", "#E69F00", "#7A1F3D")  # Fig. 6: red, black, ...
_MARK = "#D7191C"
_PHASE_1 = "#E8E8E8"

_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": True,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.titlesize": 12.0,
    "image.interpolation": "nearest",
    "savefig.dpi": 160,
}


class Snapshot(NamedTuple):
    """The latent space at one training step, for `plot_snapshots`.

    Attributes:
      step: training step.
      posterior_mean: [N, 2], means of q(z|x_n).
      posterior_scale: [N, 2], standard deviations of q(z|x_n).
      prior_samples: [M, 2], z ~ p(z).
      color: [N], angles in radians or class labels.
    """

    step: int
    posterior_mean: ArrayLike
    posterior_scale: ArrayLike
    prior_samples: ArrayLike
    color: ArrayLike


class Skeleton(NamedTuple):
    """Which points of a pose are joined.

    Attributes:
      points: names, [P]; left and right limbs are those whose names differ in a first
        letter l or r only, as lfemur and rfemur do.
      parents: int [P], the point that each one hangs on; -1 for the root.
    """

    points: Sequence[str]
    parents: ArrayLike


class GraphPanel(NamedTuple):
    """One neighbour graph, for `plot_latent_graphs`.

    Attributes:
      title: usually the method.
      nodes: [N, 2].
      edges: int [E, 2], pairs of nodes.
      weights: [E], the edges' lengths.
      paths: interpolations to draw on top, each [L, 2].
    """

    title: str
    nodes: ArrayLike
    edges: ArrayLike
    weights: ArrayLike
    paths: Sequence[ArrayLike]


@contextmanager
def _style() -> Iterator[None]:
    """Replaces the user's settings by this module's for a while."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def _styled(plot: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Runs a plot function under `_style`."""

    @functools.wraps(plot)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with _style():
            return plot(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG whole or not at all, creating its folder where needed.

    Args:
      figure: to be written.
      path: file name; a file of that name is replaced at once when the new one is
        complete.

    Raises:
      OSError: the folder or file cannot be written; an old file stays as it was.
    """
    with storage.replacing(Path(path)) as temporary, _style():
        # No version of matplotlib in the file: equal pictures are equal bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None})


@_styled
def plot_beta_surfaces(
    surfaces: Mapping[str, ArrayLike], beta: ArrayLike, delta: ArrayLike
) -> Figure:
    """Draws beta updates as functions of beta and C_hat - kappa^2 (Figs. 1, 11).

    The paper draws 3-d surfaces; heat maps with contour lines show the sign and the
    zero line, which are what the schemes differ in, without hiding any part.

    Args:
      surfaces: for each scheme (a panel each) beta_t - beta_{t-1}, [P, Q].
      beta: beta_{t-1}, [Q], increasing.
      delta: C_hat_t - kappa^2, [P], increasing.

    Returns:
      The figure. Colours are centred at zero and shared by the panels; the zero
      line is thick.

    Raises:
      ValueError: there is no surface or its shape is not [P, Q].
    """
    beta, delta = _array("beta", beta, 1), _array("delta", delta, 1)
    updates = {name: _array(name, surface, 2) for name, surface in surfaces.items()}
    _want_some("surfaces", updates)
    for name, update in updates.items():
        if update.shape != (len(delta), len(beta)):
            raise ValueError(
                f"{name} has shape {update.shape}; wanted [P, Q] = "
                f"{(len(delta), len(beta))}"
            )
    largest = max(np.abs(update).max() for update in updates.values())
    levels = MaxNLocator(16, symmetric=True).tick_values(-largest, largest)

    figure = Figure(figsize=(3.7 * len(updates) + 0.8, 3.7), layout="constrained")
    panels = figure.subplots(1, len(updates), sharex=True, sharey=True, squeeze=False)
    for ax, (name, update) in zip(panels[0], updates.items(), strict=True):
        mesh = ax.pcolormesh(
            beta,
            delta,
            update,
            cmap="RdBu_r",
            norm=CenteredNorm(0.0, largest or 1.0),
            shading="gouraud",
        )
        # Only levels that occur: matplotlib warns of others.
        inside = (levels > update.min()) & (levels < update.max()) & (levels != 0)
        if inside.any():
            lines = ax.contour(
                beta,
                delta,
                update,
                levels=levels[inside],
                colors="#333333",
                linewidths=0.6,
            )
            ax.clabel(lines, fontsize=7, fmt="%g")
        if update.min() < 0 < update.max():
            ax.contour(beta, delta, update, levels=[0.0], colors="k", linewidths=1.8)
        ax.set(title=name, xlabel=r"$\beta_{t-1}$")
    panels[0, 0].set_ylabel(r"$\hat{C}_t - \kappa^2$")
    bar = figure.colorbar(mesh, ax=panels, pad=0.02, aspect=25)
    bar.set_label(r"$\Delta\beta_t = \beta_t - \beta_{t-1}$")
    bar.outline.set_visible(False)
    return figure


@_styled
def plot_snapshots(
    snapshots: Sequence[Snapshot],
    curve: tuple[ArrayLike, ArrayLike],
    title: str = "",
    *,
    color_by: Literal["angle", "class"] = "angle",
    phase_end: int | None = None,
) -> Figure:
    """Draws the latent space over training beside the beta curve (Figs. 2, 12-18).

    Columns are training steps. Rows: posterior means coloured by `Snapshot.color`;
    the same in grey by the posterior's scale sigma (mean over the two latents),
    relative to its mean over the data, so that a shade other than the middle one
    tells of an uneven share in the ELBO; samples of the prior. A column's rows share
    their limits.

    Args:
      snapshots: in the order of the columns.
      curve: (steps [T], beta [T]), drawn at the right; red lines mark the
        snapshots' steps.
      title: of the whole figure.
      color_by: "angle" (radians; cyclic colours and a wheel as key) or "class".
      phase_end: step at which the initial phase ended (Alg. 1), shaded up to there.

    Returns:
      The figure.

    Raises:
      ValueError: no snapshots, or arrays of the wrong shape.
    """
    _want_some("snapshots", snapshots)
    steps, beta = _array("steps", curve[0], 1), _array("beta", curve[1], 1)
    columns = len(snapshots)
    # Set out in inches: equal panels, whatever stands around them.
    width, height = 1.75 * columns + 4.1, 5.7
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    rows = {"bottom": 0.5 / height, "top": 1 - 0.65 / height}
    panels_end = (0.65 + 1.75 * columns) / width
    panels = figure.add_gridspec(
        3, columns, left=0.65 / width, right=panels_end, **rows, wspace=0.3, hspace=0.2
    )
    beside = {"left": panels_end + 0.6 / width, "right": 1 - 0.15 / width}
    side = figure.add_gridspec(3, 1, **beside, **rows, hspace=0.6)

    labels = np.unique(np.concatenate([np.asarray(s.color) for s in snapshots]))
    grey_norm = LogNorm(0.5, 2.0, clip=True)
    for column, snapshot in enumerate(snapshots):
        mean = _points("posterior_mean", snapshot.posterior_mean)
        prior = _points("prior_samples", snapshot.prior_samples)
        scale = _points("posterior_scale", snapshot.posterior_scale).mean(axis=1)
        color = np.asarray(snapshot.color)
        if not len(mean) == len(scale) == len(color):
            raise ValueError(
                f"snapshot of step {snapshot.step} has {len(mean)} means, "
                f"{len(scale)} scales, {len(color)} colours; wanted as many of each"
            )
        colors = _point_colors(color, color_by, labels)
        axes = [figure.add_subplot(panels[row, column]) for row in range(3)]
        x, y = mean.T
        grey = scale / scale.mean()
        axes[0].scatter(x, y, 2.5, colors, linewidths=0)
        axes[1].scatter(x, y, 2.5, grey, cmap=_greys(), norm=grey_norm, linewidths=0)
        x, y = prior.T
        axes[2].scatter(x, y, 2.5, "#3A3A3A", linewidths=0, alpha=0.6)

        axes[0].set_title(f"step {snapshot.step:,}")
        axes[1].set_title(
            rf"$\bar{{\sigma}}$ {scale.mean():.2g}, var {scale.var():.1e}", fontsize=7
        )
        for ax in axes:
            _square(ax, np.concatenate([mean, prior]))
            ax.tick_params(labelsize=6, length=2, pad=1.5, labelbottom=ax is axes[2])
        if column == 0:
            names = ("posterior mean", "posterior scale", "prior samples")
            for ax, name in zip(axes, names, strict=True):
                ax.set_ylabel(name)
                ax.yaxis.set_label_coords(-0.24, 0.5)

    _draw_beta(figure, side[:2], steps, beta, snapshots, phase_end)
    keys = side[2].subgridspec(1, 3, width_ratios=[1.0, 0.07, 0.15], wspace=0.2)
    if color_by == "angle":
        _draw_wheel(figure, keys[0])
    else:
        _draw_class_key(figure, keys[0], labels)
    bar_ax = figure.add_subplot(keys[1])
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(grey_norm, _greys()), cax=bar_ax, extend="both"
    )
    bar.set_label(r"$\sigma\,/\,\bar{\sigma}$", fontsize=8)
    bar_ax.yaxis.set_major_locator(FixedLocator([0.5, 1.0, 2.0]))
    bar_ax.yaxis.set_major_formatter(FixedFormatter(["½", "1", "2"]))
    bar_ax.yaxis.set_minor_locator(FixedLocator([]))
    return figure


@_styled
def plot_latent_spaces(
    spaces: Mapping[str, Snapshot], *, color_by: Literal["angle", "class"] = "angle"
) -> Figure:
    """Draws trained latent spaces side by side, posterior above prior (Figs. 5, 18).

    Args:
      spaces: for each method (a column each) its latent space.
      color_by: "angle" (radians; cyclic colours and a wheel as key) or "class".

    Returns:
      The figure. The two rows of a column share their limits.

    Raises:
      ValueError: no spaces, or arrays of the wrong shape.
    """
    _want_some("spaces", spaces)
    columns = len(spaces)
    figure = Figure(figsize=(2.5 * columns + 1.4, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[1.0] * columns + [0.5])
    labels = np.unique(np.concatenate([np.asarray(s.color) for s in spaces.values()]))
    for column, (name, space) in enumerate(spaces.items()):
        mean = _points("posterior_mean", space.posterior_mean)
        prior = _points("prior_samples", space.prior_samples)
        colors = _point_colors(np.asarray(space.color), color_by, labels)
        upper, lower = (figure.add_subplot(grid[row, column]) for row in range(2))
        upper.scatter(mean[:, 0], mean[:, 1], 2.5, colors, linewidths=0)
        lower.scatter(prior[:, 0], prior[:, 1], 2.5, "#3A3A3A", linewidths=0, alpha=0.6)
        upper.set_title(name)
        for ax in (upper, lower):
            _square(ax, np.concatenate([mean, prior]))
        if column == 0:
            upper.set_ylabel("posterior mean")
            lower.set_ylabel("prior samples")
    if color_by == "angle":
        _draw_wheel(figure, grid[0, columns])
    else:
        _draw_class_key(figure, grid[0, columns], labels)
    return figure


@_styled
def plot_latent_graphs(panels: Sequence[GraphPanel]) -> Figure:
    """Draws neighbour graphs with the shortest paths (Figs. 3, 6).

    Args:
      panels: one graph each. Each has a colour scale of its own, as latent spaces
        have no common unit.

    Returns:
      The figure: edges in blue, the longer the darker; paths on top, red first.

    Raises:
      ValueError: no panels, or arrays of the wrong shape.
    """
    _want_some("panels", panels)
    blues = _part_of("Blues", 0.25, 1.0)
    figure = Figure(figsize=(3.3 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        nodes = _points("nodes", panel.nodes)
        weights = _array("weights", panel.weights, 1)
        order = np.argsort(weights, kind="stable")[::-1]  # short edges on top
        edges = np.asarray(panel.edges)[order]  # [E, 2]
        lines = LineCollection(
            list(nodes[edges]), array=weights[order], cmap=blues, linewidths=0.5
        )
        ax.add_collection(lines)
        x, y = nodes.T
        ax.scatter(x, y, 2, "#08306B", linewidths=0, zorder=2)
        for index, path in enumerate(panel.paths):
            points = _points("path", path)
            color = _PATHS[index % len(_PATHS)]
            ax.plot(*points.T, color=color, linewidth=1.8, zorder=3)
            ax.plot(*points[[0, -1]].T, "o", color=color, markersize=5, zorder=4)
        _square(ax, np.concatenate([nodes, *map(np.asarray, panel.paths)]))
        ax.set_title(panel.title)
        bar = figure.colorbar(
            lines, ax=ax, orientation="horizontal", pad=0.03, aspect=30, shrink=0.8
        )
        bar.set_label("edge length")
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4)
    return figure


@_styled
def plot_strips(
    strips: Mapping[str, ArrayLike],
    jumps: Mapping[str, ArrayLike],
    *,
    max_frames: int = 16,
) -> Figure:
    """Draws decoded interpolations, discontinuities boxed in blue (Figs. 4, 7, 19).

    Args:
      strips: for each method (a row each) its images in path order, in [0, 1]:
        [L, H, W] or [L, H, W, 1] grey, or [L, H, W, 3] red, green and blue.
      jumps: for each method bool [L - 1], True where frame l + 1 is a jump away
        from frame l; a method left out has none.
      max_frames: a longer path is thinned out evenly to that many, yet both sides
        of every jump are kept, beyond `max_frames` if there are so many. The
        row's heading says how many are shown.

    Returns:
      The figure. A box encloses both sides of a jump; jumps that follow each other
      share one.

    Raises:
      ValueError: no strips, arrays of the wrong shape, or jumps of an unknown
        method.
    """
    images = {name: _images(name, frames) for name, frames in strips.items()}

    def draw(ax: Axes, image: _Floats, left: float) -> None:
        height, width = image.shape[:2]
        extent = (left, left + width, height, 0)
        ax.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, extent=extent)

    shapes = [frames.shape[1:3] for frames in images.values()]
    height, width = np.max(shapes, axis=0) if shapes else (1, 1)
    return _draw_strips(images, jumps, max_frames, (width, height), draw)


@_styled
def plot_pose_strips(
    strips: Mapping[str, ArrayLike],
    jumps: Mapping[str, ArrayLike],
    skeleton: Skeleton,
    *,
    max_frames: int = 16,
) -> Figure:
    """Draws interpolated movements as stick figures, jumps boxed (Figs. 7, 19).

    Args:
      strips: for each method (a row each) its poses in path order, [L, P, 3], y up.
      jumps: as for `plot_strips`.
      skeleton: of the poses.
      max_frames: as for `plot_strips`.

    Returns:
      The figure: bodies seen from the side and a little from the front, all in one
      scale, left limbs blue, right limbs red.

    Raises:
      ValueError: as for `plot_strips`.
    """
    poses = {name: _array(name, frames, 3) for name, frames in strips.items()}
    _want_some("strips", poses)
    views = {name: side_view(frames) for name, frames in poses.items()}
    box = _Box.around(np.concatenate([*views.values()]))

    def draw(ax: Axes, view: _Floats, left: float) -> None:
        ax.add_collection(_sticks(box.place(view, left), skeleton, linewidth=1.2))

    return _draw_strips(views, jumps, max_frames, (box.width, box.height), draw)


def _draw_strips(
    strips: Mapping[str, _Floats],
    jumps: Mapping[str, ArrayLike],
    max_frames: int,
    size: tuple[float, float],
    draw: Callable[[Axes, _Floats, float], None],
) -> Figure:
    """A row of frames a strip, each drawn at its left edge, jumps boxed."""
    _want_some("strips", strips)
    if unknown := sorted(set(jumps) - set(strips)):
        raise ValueError(f"jumps has {unknown}; strips has only {sorted(strips)}")
    rows = []
    for name, frames in strips.items():
        marked = np.asarray(jumps.get(name, np.zeros(len(frames) - 1)), bool)
        if marked.shape != (len(frames) - 1,):
            raise ValueError(
                f"jumps of {name} has shape {marked.shape}; wanted "
                f"({len(frames) - 1},), one less than its frames"
            )
        rows.append((name, frames, marked, _choose_frames(marked, max_frames)))
    widest = max(len(chosen) for *_, chosen in rows)
    width, height = size
    gap = max(1.0, width // 8)
    pitch = width + gap

    figure = Figure(
        figsize=(0.55 * widest + 0.3, (0.3 + 0.55 * height / width) * len(rows))
    )
    figure.set_layout_engine("constrained", h_pad=0.04, hspace=0.04)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, (name, frames, marked, chosen) in zip(axes, rows, strict=True):
        for place, frame in enumerate(frames[chosen]):
            draw(ax, frame, place * pitch)
        for first, last in _runs(marked):
            left, right = np.searchsorted(chosen, [first, last + 1]) * pitch
            ax.add_patch(
                Rectangle(
                    (left - gap / 2, -gap / 2),
                    right - left + width + gap,
                    height + gap,
                    fill=False,
                    edgecolor=_BLUE,
                    linewidth=2.0,
                )
            )
        ax.set(xlim=(-gap, widest * pitch), ylim=(height + gap, -gap), aspect="equal")
        ax.set_axis_off()
        shown = f"{len(chosen)} of {len(frames)} frames"
        ax.set_title(name, loc="left", pad=2)
        ax.set_title(shown, loc="right", pad=2, fontsize=7, color="#666666")
    return figure


@_styled
def plot_regression(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    errors: Mapping[str, float] | None = None,
) -> Figure:
    """Draws the true joint angle against the fitted one, whole circle (App. B.2).

    Args:
      curves: for each method (a panel each) the true angle [N] in radians and the
        regression's prediction from the polar angle of the posterior mean [N].
        A prediction is known up to whole turns and drawn in the turn next to the
        truth.
      errors: mean absolute errors in radians, for the titles.

    Returns:
      The figure; the dashed line is the ground truth.

    Raises:
      ValueError: no curves, or arrays of the wrong shape.
    """
    _want_some("curves", curves)
    turn = 2 * np.pi
    fits = {}
    for name, curve in curves.items():
        angle, fitted = _pair(name, curve)
        fits[name] = angle, fitted + turn * np.round((angle - fitted) / turn)
    low = min(0.0, *(fitted.min() for _, fitted in fits.values())) - 0.2
    high = max(turn, *(fitted.max() for _, fitted in fits.values())) + 0.2

    columns = min(len(fits), 3)
    rows = -(-len(fits) // columns)
    figure = Figure(
        figsize=(2.3 * columns + 0.5, (2.1 * (high - low) / turn + 0.5) * rows + 0.3),
        layout="constrained",
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in panels.flat[len(fits) :]:
        ax.remove()
    for index, (ax, (name, (angle, fitted))) in enumerate(
        zip(panels.flat, fits.items(), strict=False)
    ):
        ax.scatter(angle, fitted, s=2.5, color=_BLUE, linewidths=0, alpha=0.5)
        ax.plot([0, turn], [0, turn], "--", color="k", linewidth=1.0)
        ax.set(xlim=(-0.2, turn + 0.2), ylim=(low, high), aspect="equal")
        _ticks_in_pi(ax, [0, 0.5, 1, 1.5, 2])
        error = f" ({errors[name]:.3f} rad)" if errors and name in errors else ""
        ax.set_title(name + error, fontsize=9)
        ax.tick_params(labelbottom=index + columns >= len(fits))
        if index + columns >= len(fits):
            ax.set_xlabel("true angle")
        if index % columns == 0:
            ax.set_ylabel("fitted angle")
    return figure


@_styled
def plot_quarter_circle(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    errors: Mapping[str, float] | None = None,
) -> Figure:
    """Draws the joint angle against arcsin(z_2 / r) on a quarter circle (Fig. 15).

    Args:
      curves: for each method the joint angle [N] in [0, pi / 2] and arcsin(z_2 / r)
        [N], both in radians. The dots are the data, the line their mean in each
        of 30 equal intervals of the angle.
      errors: mean absolute errors in radians, for the legend.

    Returns:
      The figure; the dashed line is the ground truth.

    Raises:
      ValueError: no curves, or arrays of the wrong shape.
    """
    _want_some("curves", curves)
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    ax = figure.add_subplot()
    quarter = np.pi / 2
    bins = 30
    for index, (name, curve) in enumerate(curves.items()):
        angle, fitted = _pair(name, curve)
        color = _PALETTE[index % len(_PALETTE)]
        where = np.clip((angle / quarter * bins).astype(int), 0, bins - 1)  # [N]
        count = np.bincount(where, minlength=bins)
        filled = count > 0
        x, y = (
            np.bincount(where, values, bins)[filled] / count[filled]
            for values in (angle, fitted)
        )
        error = f" ({errors[name]:.3f} rad)" if errors and name in errors else ""
        ax.scatter(angle, fitted, s=3, color=color, linewidths=0, alpha=0.25)
        ax.plot(x, y, color=color, label=name + error)
    ax.plot([0, quarter], [0, quarter], "--", color="k", lw=1.2, label="ground truth")
    ax.set(xlim=(0, quarter), aspect="equal", xlabel="joint angle")
    ax.set_ylabel(r"$\arcsin(z_2\,/\,r)$")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -quarter), min(high, 1.02 * quarter))
    _ticks_in_pi(ax, [0, 0.125, 0.25, 0.375, 0.5])
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


@_styled
def plot_history(
    metrics: Mapping[str, ArrayLike],
    title: str = "",
    validation: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draws the course of training: distortion, rate, constraint, beta.

    Args:
      metrics: columns of `metrics.jsonl`, each [T]: `step` and at least one of
        `distortion`, `rate` (nats per example), `constraint` (with
        `kappa_squared`), `beta`; `initial_phase` (bool) shades the first phase.
        A panel for each that is there; other names are left alone.
      title: of the whole figure.
      validation: `step`, `distortion` and `rate` of the validation split, drawn over
        those of training.

    Returns:
      The figure. Axes of distortion and rate show the bulk of the values: a burst
      at the start may leave them.

    Raises:
      ValueError: `step` or all of the curves are missing, or lengths differ.
    """
    columns = {
        name: _array(name, metrics[name], 1)
        for name in ("step", "kappa_squared", "initial_phase", *_HISTORY)
        if name in metrics
    }
    names = [name for name in _HISTORY if name in columns]
    if "step" not in columns or not names:
        raise ValueError(
            f"metrics has {sorted(metrics)}; wanted step and some of {list(_HISTORY)}"
        )
    step = columns["step"]
    for name, values in columns.items():
        if len(values) != len(step):
            raise ValueError(
                f"{name} has {len(values)} values; wanted {len(step)} as step has"
            )

    width = 2 if len(names) == 4 else len(names)
    height = -(-len(names) // width)
    figure = Figure(figsize=(3.6 * width, 2.4 * height + 0.3), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(height, width, sharex=True, squeeze=False)
    for ax in panels.flat[len(names) :]:
        ax.remove()
    for index, (ax, name) in enumerate(zip(panels.flat, names, strict=False)):
        ax.plot(step, columns[name], color=_BLUE, linewidth=1.2)
        ax.set_title(_HISTORY[name])
        if name in ("distortion", "rate"):
            ranges = [_bulk(columns[name])]
            if validation is not None:
                at, values = _pair(name, (validation["step"], validation[name]))
                ax.plot(at, values, color=_RED, linewidth=1.2, label="validation")
                ax.legend()
                ranges.append(_bulk(values))
            ax.set_ylim(np.min(ranges), np.max(ranges))
        elif name == "constraint":
            ax.set_yscale("log")
            if "kappa_squared" in columns:
                kappa = columns["kappa_squared"]
                ax.plot(step, kappa, "--", color=_MARK, lw=1.2, label=r"$\kappa^2$")
                ax.legend()
        elif name == "beta":
            ax.set_ylim(0.0, 1.05 * max(1.0, columns[name].max()))
        _shade_phase(ax, step[0], _phase_end(columns))
        ax.tick_params(labelbottom=True)
        _count_axis(ax)
        if index + width >= len(names):
            ax.set_xlabel("step")
    return figure


@_styled
def plot_image_grid(
    images: ArrayLike, title: str = "", columns: int | None = None
) -> Figure:
    """Draws images in a grid, row by row.

    Args:
      images: in [0, 1], [N, H, W] or [N, H, W, 1] grey, or [N, H, W, 3] red, green and
        blue.
      title: of the whole figure.
      columns: images in a row; as many as rows where not given.

    Returns:
      The figure; its single image has the tiles, a white line between them.

    Raises:
      ValueError: no images or of another shape.
    """
    images = _images("images", images)
    _want_some("images", images)
    num, height, width, *channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(num)))
    rows = -(-num // columns)
    gap = max(1, width // 16)
    size = rows * (height + gap) - gap, columns * (width + gap) - gap
    tiles = np.ones((*size, *channels))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        tiles[top : top + height, left : left + width] = image
    figure = Figure(
        figsize=(5.0, 5.0 * size[0] / size[1] + 0.3 * bool(title)),
        layout="constrained",
    )
    ax = figure.add_subplot()
    ax.imshow(tiles, cmap="gray", vmin=0.0, vmax=1.0)
    ax.set_axis_off()
    ax.set_title(title)
    return figure


@_styled
def plot_pose_grid(
    poses: ArrayLike, skeleton: Skeleton, title: str = "", columns: int | None = None
) -> Figure:
    """Draws poses in a grid, row by row, all in one scale.

    Args:
      poses: [N, P, 3], y up.
      skeleton: of the poses.
      title: of the whole figure.
      columns: poses in a row; as many as rows where not given.

    Returns:
      The figure; the bodies are seen as in `plot_pose_strips`.

    Raises:
      ValueError: no poses or not [N, P, 3].
    """
    poses = _array("poses", poses, 3)
    _want_some("poses", poses)
    view = side_view(poses)
    box = _Box.around(view)
    columns = columns or int(np.ceil(np.sqrt(len(view))))
    rows = -(-len(view) // columns)
    across, down = columns * box.width, rows * box.height
    figure = Figure(
        figsize=(0.62 * columns, 0.62 * columns * down / across + 0.3 * bool(title)),
        layout="constrained",
    )
    ax = figure.add_subplot()
    for index, body in enumerate(view):
        row, column = divmod(index, columns)
        placed = box.place(body, column * box.width, row * box.height)
        ax.add_collection(_sticks(placed, skeleton, linewidth=1.0))
    ax.set(xlim=(0.0, across), ylim=(down, 0.0), aspect="equal")
    ax.set_axis_off()
    ax.set_title(title)
    return figure


def save_animation(
    poses: ArrayLike,
    skeleton: Skeleton,
    path: str | os.PathLike[str],
    title: str = "",
    frames_per_second: int = 25,
) -> None:
    """Writes a movement as a GIF that plays in any browser, whole or not at all.

    Args:
      poses: [T, P, 3] in the order of time, y up.
      skeleton: of the poses.
      path: file name, ending in .gif.
      title: above the body.
      frames_per_second: at most 50, the format's limit.

    Raises:
      ValueError: no poses or not [T, P, 3].
      OSError: the file cannot be written; an old file stays as it was.
    """
    poses = _array("poses", poses, 3)
    _want_some("poses", poses)
    view = side_view(poses)
    box = _Box.around(view)
    with _style():
        figure = Figure(figsize=(2.4, 0.3 + 2.4 * box.height / box.width), dpi=100)
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0 - 0.25 / figure.get_figheight()))
        ax.set(xlim=(0.0, box.width), ylim=(box.height, 0.0), aspect="equal")
        ax.set_axis_off()
        ax.set_title(title, pad=2)
        ax.plot([0.0, box.width], [box.foot, box.foot], color="#BBBBBB", linewidth=0.8)
        sticks = _sticks(box.place(view[0], 0.0), skeleton, linewidth=2.2)
        ax.add_collection(sticks)

        canvas = FigureCanvasAgg(figure)
        frames = []
        for body in view:
            sticks.set_segments(_segments(box.place(body, 0.0), skeleton))
            canvas.draw()
            frames.append(
                Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("P")
            )
    first, *others = frames
    pause = round(1000 / frames_per_second)  # milliseconds
    with storage.replacing(Path(path)) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=pause,
            loop=0,
        )


@_styled
def plot_smoothness(
    factors: Mapping[str, tuple[ArrayLike, ArrayLike]],
    joints: Sequence[str],
    unit: str = "",
) -> Figure:
    """Draws the movement smoothness factor of each joint: Fig. 8; less is smoother.

    Args:
      factors: for each method the mean [J] and the standard deviation [J].
      joints: their names, [J].
      unit: of the factors.

    Returns:
      The figure: bars side by side, standard deviations as whiskers.

    Raises:
      ValueError: no methods, or other numbers of factors than of joints.
    """
    _want_some("factors", factors)
    figure = Figure(figsize=(0.42 * len(joints) + 1.6, 3.4), layout="constrained")
    ax = figure.add_subplot()
    place = np.arange(len(joints))
    width = 0.8 / len(factors)
    for index, (name, (mean, spread)) in enumerate(factors.items()):
        mean, spread = _array(name, mean, 1), _array(name, spread, 1)
        if not len(mean) == len(spread) == len(joints):
            raise ValueError(
                f"{name} has {len(mean)} means and {len(spread)} deviations; wanted "
                f"{len(joints)}, one a joint"
            )
        ax.bar(
            place + (index - (len(factors) - 1) / 2) * width,
            mean,
            width,
            yerr=spread,
            color=_PALETTE[index % len(_PALETTE)],
            error_kw={"linewidth": 0.7, "ecolor": "#444444"},
            label=name,
        )
    ax.set_xticks(place, joints, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_ylim(bottom=0.0)
    ax.set_xlim(-0.6, len(joints) - 0.4)
    ax.set_ylabel("smoothness factor" + f" [{unit}]" * bool(unit))
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(factors))
    return figure


@_styled
def plot_rate_distortion(curves: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draws rate and distortion over training, one colour a method: Fig. 20.

    Args:
      curves: method -> `step`, `distortion` and `rate` (nats per example), each [T].

    Returns:
      The figure: the way through the plane of rate and distortion (a mark at its end,
      lines of equal sum), and minus the bound, their sum, over the steps.

    Raises:
      ValueError: no curves, or lengths differ.
    """
    _want_some("curves", curves)
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    plane, over_time = figure.subplots(1, 2)
    ends = []
    for color, (name, curve) in zip(_PALETTE, curves.items(), strict=False):
        rate, distortion = _pair(name, (curve["rate"], curve["distortion"]))
        step, total = _pair(name, (curve["step"], rate + distortion))
        plane.plot(rate, distortion, color=color, linewidth=1.0, label=name)
        plane.plot(rate[-1], distortion[-1], "o", color=color)
        over_time.plot(step, total, color=color, label=name)
        ends.append((rate[-1], distortion[-1]))
    rates, distortions = np.array(ends).T
    margin = 0.5 * max(np.ptp(rates), np.ptp(distortions), 20.0)
    plane.set_xlim(max(0.0, rates.min() - margin), rates.max() + margin)
    plane.set_ylim(max(0.0, distortions.min() - margin), distortions.max() + margin)
    low, high = plane.get_xlim()
    for level in np.arange(0.0, 2_000.0, 10.0):
        ends_of_line = [level - low, level - high]
        plane.plot([low, high], ends_of_line, ":", color="#BBBBBB", linewidth=0.7)
    plane.set_xlabel("rate [nats]")
    plane.set_ylabel("distortion [nats]")
    plane.legend()
    best = (rates + distortions).min()
    over_time.set_ylim(best - 1.0, best + 25.0)
    over_time.set_xlabel("step")
    over_time.set_ylabel("rate + distortion [nats]")
    _count_axis(over_time)
    return figure


@_styled
def plot_active_units(kl: Mapping[str, ArrayLike]) -> Figure:
    """Draws the KL of each latent dimension, sorted, on a logarithmic scale: Fig. 21.

    Args:
      kl: method -> [D], nats, in descending order.

    Returns:
      The figure: one panel a method, alike in both axes.

    Raises:
      ValueError: no methods.
    """
    _want_some("kl", kl)
    values = {name: _array(name, value, 1) for name, value in kl.items()}
    figure = Figure(figsize=(3.6 * len(values), 2.8), layout="constrained")
    panels = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)
    floor = 1e-4
    for ax, (name, value) in zip(panels.flat, values.items(), strict=True):
        ax.bar(np.arange(1, len(value) + 1), np.maximum(value, floor), color=_BLUE)
        ax.set_yscale("log")
        ax.set_title(name)
        ax.set_xlabel("latent dimension, sorted")
    panels.flat[0].set_ylim(floor, 2.0 * max(map(np.max, values.values())))
    panels.flat[0].set_ylabel(r"KL$(q(\zeta_j|x)\,||\,p(\zeta_j))$ [nats]")
    return figure


_HISTORY = {
    "distortion": "distortion [nats]",
    "rate": "rate [nats]",
    "constraint": r"constraint $\hat{C}$",
    "beta": r"$\beta$",
}


def _draw_beta(
    figure: Figure,
    place: SubplotSpec,
    steps: _Floats,
    beta: _Floats,
    snapshots: Sequence[Snapshot],
    phase_end: int | None,
) -> None:
    """Draws the curve at the right of Fig. 2."""
    ax = figure.add_subplot(place)
    ax.plot(steps, beta, color=_BLUE)
    for snapshot in snapshots:
        ax.axvline(snapshot.step, color=_MARK, linewidth=1.0, zorder=1)
    marks = [snapshot.step for snapshot in snapshots if snapshot.step > 0]
    positive = steps > 0
    if marks and positive.any() and max(marks) > 50 * min(marks):
        ax.set_xscale("log")
        first, last = min(*marks, steps[positive].min()), max(*marks, steps.max())
        ax.set_xlim(0.9 * first, 1.1 * last)
    else:
        _count_axis(ax)
    ax.set_ylim(0.0, 1.05 * max(1.0, beta.max()))
    ax.set_title(r"$\beta$", loc="left")
    ax.set_xlabel("step")
    handles = [Line2D([], [], color=_MARK, linewidth=1.0, label="snapshots")]
    if phase_end is not None:
        _shade_phase(ax, ax.get_xlim()[0], phase_end)
        handles += [Line2D([], [], color=_PHASE_1, linewidth=6.0, label="phase 1")]
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        ncols=2,
        fontsize=7,
        handlelength=1.2,
        columnspacing=1.0,
    )


def _draw_wheel(figure: Figure, place: SubplotSpec) -> None:
    """Draws the key of the cyclic colours."""
    ax = figure.add_subplot(place, projection="polar")
    angle = np.linspace(0, 2 * np.pi, 181)
    middle = (angle[:-1] + angle[1:]) / 2
    ax.pcolormesh(
        angle, [0.6, 1.0], middle[None], cmap=_cyclic_map(), vmin=0, vmax=2 * np.pi
    )
    ax.set(ylim=(0, 1), yticks=[], xticks=np.arange(4) * np.pi / 2)
    ax.set_xticklabels(["0", "π/2", "π", "3π/2"])
    ax.tick_params(pad=-2, labelsize=7)
    ax.grid(visible=False)
    ax.spines["polar"].set_visible(False)
    ax.text(0, 0, "angle", ha="center", va="center", fontsize=8)


def palette(
    color: NDArray, color_by: Literal["angle", "class"]
) -> tuple[list[str], list[int], list[str]]:
    """The colours of points for a page outside matplotlib.

    Args:
      color: [N], angles in radians or class labels.
      color_by: which of them.

    Returns:
      Colours as #rrggbb, the colour's index of each point, and the names of classes,
      as many as colours; no names for angles.
    """
    if color_by == "angle":
        hues = 64
        shares = np.mod(color, 2 * np.pi) / (2 * np.pi)
        colors = [to_hex(c) for c in _cyclic_map()(np.arange(hues) / hues)]
        return colors, (np.round(shares * hues).astype(int) % hues).tolist(), []
    labels, index = np.unique(color, return_inverse=True)
    colors = [to_hex(c) for c in _class_map(len(labels))(np.arange(len(labels)))]
    return colors, index.tolist(), [str(label) for label in labels]


def _point_colors(color: NDArray, color_by: str, labels: NDArray) -> NDArray:
    """RGBA of each point, [N, 4]."""
    if color_by == "angle":
        return _cyclic_map()(np.mod(color, 2 * np.pi) / (2 * np.pi))
    return _class_map(len(labels))(np.searchsorted(labels, color))


def _draw_class_key(figure: Figure, place: SubplotSpec, labels: NDArray) -> None:
    """Draws the key of the classes' colours, where there are several."""
    if len(labels) < 2:
        return
    ax = figure.add_subplot(place)
    ax.set_axis_off()
    colors = _class_map(len(labels))(np.arange(len(labels)))
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=str(label))
        for color, label in zip(colors, labels, strict=True)
    ]
    ax.legend(handles=handles, loc="center", ncols=-(-len(labels) // 6), fontsize=7)


@functools.cache
def _cyclic_map() -> ListedColormap:
    """A colour circle in Oklab, for angles.

    The hue goes round once. Its red-green component, which most colour-vision
    deficiencies take away, is told by lightness as well (red dark, green light): the
    circle stays a circle for them. No colour is near white or black.
    """
    hue = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    lightness = 0.66 - 0.13 * np.cos(hue)
    a, b = 0.125 * np.cos(hue), 0.125 * np.sin(hue)
    # Oklab to linear sRGB (B. Ottosson, 2020), then its transfer curve.
    to_lms = [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
    to_rgb = [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
    lms = (np.array(to_lms) @ [lightness, a, b]) ** 3
    rgb = np.clip(np.array(to_rgb) @ lms, 0.0, 1.0).T  # [256, 3]
    rgb = np.where(rgb > 0.0031308, 1.055 * rgb ** (1 / 2.4) - 0.055, 12.92 * rgb)
    return ListedColormap(rgb, name="angle")


def _class_map(num_classes: int) -> ListedColormap:
    if num_classes <= len(_PALETTE):
        return ListedColormap(_PALETTE[:num_classes])
    spread = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, num_classes))
    return ListedColormap(spread)


def _greys() -> Colormap:
    return _part_of("Greys", 0.2, 1.0)


def _part_of(name: str, low: float, high: float) -> Colormap:
    """The part of a colour map that is seen on white."""
    colors = matplotlib.colormaps[name](np.linspace(low, high, 256))
    return LinearSegmentedColormap.from_list(f"{name} {low}-{high}", colors)


def _square(ax: Axes, points: _Floats) -> None:
    """Square limits around all points, equal aspect."""
    low, high = points.min(axis=0), points.max(axis=0)
    reach = 0.54 * max(*(high - low), 1e-12)
    x, y = (low + high) / 2
    ax.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect="equal")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def side_view(poses: _Floats) -> _Floats:
    """Poses [N, P, 3] as seen from the side and a third from the front.

    Returns:
      float64 [N, P, 2]: to the right, and down as in images.
    """
    turn = np.deg2rad(60.0)
    across = np.cos(turn) * poses[..., 0] + np.sin(turn) * poses[..., 2]
    return np.stack([across, -poses[..., 1]], axis=-1)  # down, as in images


class _Box(NamedTuple):
    """Room for one body: all bodies fit, with a margin around them."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def around(cls, views: _Floats) -> _Box:
        low, high = views.min(axis=(0, 1)), views.max(axis=(0, 1))
        margin = 0.04 * max(*(high - low), 1e-12)
        width, height = high - low + 2.0 * margin
        return cls(low[0] - margin, low[1] - margin, width, height)

    @property
    def foot(self) -> float:
        """Where the lowest point of all bodies lies."""
        margin = 0.04 / 1.08 * max(self.width, self.height)
        return self.height - margin

    def place(self, view: _Floats, left: float, top: float = 0.0) -> _Floats:
        """A body moved so that its box begins at (left, top)."""
        return view + np.array([left - self.left, top - self.top])


def bones(skeleton: Skeleton) -> list[tuple[int, int, str]]:
    """The lines of a stick figure: parent, point, colour.

    Left limbs are blue, right limbs red, the trunk dark.
    """
    names = set(skeleton.points)
    limbs = {"l": (_BLUE, "r"), "r": (_RED, "l")}
    lines = []
    for point, parent in enumerate(np.asarray(skeleton.parents).tolist()):
        if parent < 0:
            continue
        name = skeleton.points[point]
        color, other = limbs.get(name[:1], ("", ""))
        paired = color and other + name[1:] in names
        lines.append((parent, point, color if paired else "#333333"))
    return lines


def _segments(view: _Floats, skeleton: Skeleton) -> list[_Floats]:
    """The lines of a body, in the order of `bones`."""
    return [view[[parent, point]] for parent, point, _ in bones(skeleton)]


def _sticks(view: _Floats, skeleton: Skeleton, linewidth: float) -> LineCollection:
    """A stick figure."""
    colors = [color for *_, color in bones(skeleton)]
    return LineCollection(
        _segments(view, skeleton), colors=colors, linewidths=linewidth, capstyle="round"
    )


def _choose_frames(jumps: NDArray[np.bool_], max_frames: int) -> NDArray[np.intp]:
    """Picks frames to show: both sides of jumps, the rest evenly spaced."""
    num_frames = len(jumps) + 1
    if num_frames <= max_frames:
        return np.arange(num_frames)
    before = np.flatnonzero(jumps)
    kept = set(before) | set(before + 1) | {0, num_frames - 1}
    # The finest even spacing whose union with the kept frames is not too long.
    for num in range(max_frames, 1, -1):
        even = np.linspace(0, num_frames - 1, num).round().astype(int)
        if len(kept | set(even)) <= max_frames:
            kept |= set(even)
            break
    return np.array(sorted(kept), np.intp)


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _ticks_in_pi(ax: Axes, multiples: Sequence[float]) -> None:
    names = {0: "0", 0.125: "π/8", 0.25: "π/4", 0.375: "3π/8", 0.5: "π/2"}
    names |= {1: "π", 1.5: "3π/2", 2: "2π"}
    places = [multiple * np.pi for multiple in multiples]
    labels = [names[multiple] for multiple in multiples]
    ax.set_xticks(places, labels)
    ax.set_yticks(places, labels)


def _count_axis(ax: Axes) -> None:
    """Few ticks along the steps, with thousands marked."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def _shade_phase(ax: Axes, begin: float, end: float | None) -> None:
    if end is not None:
        ax.axvspan(begin, end, color=_PHASE_1, linewidth=0, zorder=0)


def _phase_end(columns: Mapping[str, _Floats]) -> float | None:
    """The first step outside phase 1, the last one if there is none."""
    if "initial_phase" not in columns or not columns["initial_phase"].any():
        return None
    later = columns["step"][columns["initial_phase"] == 0]
    return float(later[0] if len(later) else columns["step"][-1])


def _bulk(values: _Floats) -> tuple[float, float]:
    """Limits around all values, or around 98 % of them if far fewer would do."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.01, 0.99], method="nearest")
    if np.ptp(finite) < 3 * (high - low):
        low, high = finite.min(), finite.max()
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _pair(name: str, curve: tuple[ArrayLike, ArrayLike]) -> tuple[_Floats, _Floats]:
    angle, fitted = _array(name, curve[0], 1), _array(name, curve[1], 1)
    if len(angle) != len(fitted):
        raise ValueError(
            f"{name} has {len(angle)} true but {len(fitted)} fitted angles; wanted "
            "as many"
        )
    return angle, fitted


def _array(name: str, values: ArrayLike, ndim: int) -> _Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; wanted {ndim} dimensions")
    return array


def _images(name: str, values: ArrayLike) -> _Floats:
    """[N, H, W] grey or [N, H, W, 3] in colour; a single channel is dropped."""
    array = np.asarray(values, np.float64)
    if array.ndim == 4 and array.shape[3] == 1:
        return array[..., 0]
    if array.ndim != 3 and (array.ndim != 4 or array.shape[3] != 3):
        raise ValueError(
            f"{name} has shape {array.shape}; wanted [N, H, W] or [N, H, W, 1 or 3]"
        )
    return array


def _points(name: str, values: ArrayLike) -> _Floats:
    points = np.asarray(values, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} has shape {points.shape}; wanted [N, 2]")
    return points


def _want_some(name: str, things: object) -> None:
    if not len(things):  # type: ignore[arg-type]
        raise ValueError(f"{name} is empty; wanted at least one")
