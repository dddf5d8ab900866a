"""From runs to the figures of the paper; the drawing itself is vhp_jax.plotting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import run_files, runs, views
from vhp_jax import beta, evaluation, graph, plotting
from vhp_jax.data import Dataset
from vhp_jax.types import Params

save = plotting.save_figure


def training_figures(
    run: runs.Run, directory: run_files.WorkDir, stacked: Params
) -> Iterator[tuple[str, Figure]]:
    """Curves, latent space, regression, samples and reconstructions of one seed."""
    lines = member_lines(directory, run.config.seed)
    validation = validation_lines(directory, run.config.seed)
    yield "history", plotting.plot_history(columns(lines), validation=validation)
    params = next(run.members(stacked))
    planar = run.experiment.model.latent_dim == 2
    if planar and directory.snapshots():
        yield "latent_space", snapshot_figure(run, directory)
    if planar and run.experiment.dataset.target_kind == "angle":
        fit = test_regression(run, params)
        curve = (run.experiment.dataset.test.targets, fit.fitted)
        figure = plotting.plot_regression({"test set": curve}, {"test set": fit.error})
        yield "regression", figure
    yield "samples", sample_figure(run, params, 64, seed=0)
    yield "reconstructions", reconstruction_figure(run, params)


def member_lines(directory: run_files.WorkDir, seed: int) -> list[dict]:
    """Training lines of metrics.jsonl that belong to one seed."""
    return [
        line
        for line in directory.metrics()
        if "split" not in line and line.get("seed", seed) == seed
    ]


def validation_lines(
    directory: run_files.WorkDir, seed: int
) -> dict[str, np.ndarray] | None:
    """Validation lines of one seed as columns; None before the first."""
    lines = [
        line
        for line in directory.metrics()
        if line.get("split") == "validation" and line["seed"] == seed
    ]
    names = ("step", "distortion", "rate")
    if not lines:
        return None
    return {name: np.array([line[name] for line in lines]) for name in names}


def columns(lines: Sequence[dict]) -> dict[str, np.ndarray]:
    """A list of lines as one array per name."""
    names = [name for name in lines[0] if name != "seed"]
    return {name: np.array([line[name] for line in lines]) for name in names}


def snapshot_figure(
    run: runs.Run, directory: run_files.WorkDir, title: str = ""
) -> Figure:
    """Fig. 2 for the first seed of a run."""
    lines = columns(member_lines(directory, run.config.seed))
    dataset = run.experiment.dataset
    snapshots = [
        plotting.Snapshot(
            step,
            arrays["posterior_mean"][0],
            arrays["posterior_scale"][0],
            arrays["prior_samples"][0],
            target_colors(dataset, arrays["targets"]),
        )
        for step, arrays in directory.snapshots().items()
    ]
    initial = lines["step"][lines["initial_phase"]]
    return plotting.plot_snapshots(
        snapshots,
        (lines["step"], lines["beta"]),
        title,
        color_by=color_by(dataset),
        phase_end=int(initial[-1]) if len(initial) else None,
    )


def target_colors(dataset: Dataset, targets: np.ndarray) -> np.ndarray:
    """What points are coloured by: radians, or the names of classes."""
    names = np.array(dataset.label_names)
    return names[targets] if len(names) else targets


def color_by(dataset: Dataset) -> Literal["angle", "class"]:
    """How `target_colors` are to be read."""
    return "angle" if dataset.target_kind in ("angle", "view") else "class"


def test_regression(run: runs.Run, params: Params) -> evaluation.RingRegression:
    """OLS regression of the test angles on the polar angles of the encodings."""
    split = run.experiment.dataset.test
    codes = evaluation.encode_dataset(run.experiment.model, params, split.examples)
    return evaluation.regress_angle(codes.mean, split.targets)


def quarter_circle(
    run: runs.Run, params: Params
) -> tuple[np.ndarray, np.ndarray, evaluation.RingRegression]:
    """Fig. 15: angles in [0, pi/2] and arcsin(z2 / r) of the aligned encodings.

    The ring is centred and turned (and mirrored, if it runs the other way) so that the
    joint angle 0 lies at z2 = 0, as the paper's axes suppose.

    Returns:
      angles [M], arcsin(z2 / r) [M], and the regression over the whole circle.
    """
    split = run.experiment.dataset.test
    codes = evaluation.encode_dataset(run.experiment.model, params, split.examples)
    regression = evaluation.regress_angle(codes.mean, split.targets)
    turned = math.copysign(1.0, regression.slope) * regression.polar
    turned = turned + (split.targets - turned).mean()
    distance = np.linalg.norm(codes.mean - regression.centre, axis=1)
    first = split.targets <= math.pi / 2
    sine = np.clip(distance * np.sin(turned) / regression.radius, -1.0, 1.0)
    return split.targets[first], np.arcsin(sine[first]), regression


def ancestral_samples(
    run: runs.Run, params: Params, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws z ~ p(z), float32 [N, D]; E[x|z], float32 [N, X], as the model sees it."""
    model = run.experiment.model
    z = evaluation.sample_prior(model, params, jax.random.key(seed), num_samples)
    return z, evaluation.decode(model, params, z)


def sample_figure(run: runs.Run, params: Params, num_samples: int, seed: int) -> Figure:
    """Ancestral samples, drawn."""
    _, examples = ancestral_samples(run, params, num_samples, seed)
    return example_grid(run.experiment.dataset, examples)


def example_grid(dataset: Dataset, examples: np.ndarray) -> Figure:
    """Flattened examples [N, X] as the model sees them, row by row."""
    view = views.view(dataset)
    return view.grid(view.frames(examples))


def reconstruction_figure(
    run: runs.Run, params: Params, rows: int = 4, across: int = 12
) -> Figure:
    """Rows of test examples, each above its reconstruction through the posterior mean.

    They are spread evenly over the test set: some sets are in the order of their
    classes.
    """
    test = run.experiment.dataset.test.examples
    count = min(rows * across, len(test))
    examples = test[np.linspace(0, len(test) - 1, count).astype(int)]
    model, view = run.experiment.model, views.view(run.experiment.dataset)
    codes = evaluation.encode_dataset(model, params, examples)
    decoded = evaluation.decode(model, params, codes.mean)
    across = min(across, len(examples))
    pairs = [
        part[start : start + across]
        for start in range(0, len(examples) - across + 1, across)
        for part in (view.frames(examples), view.frames(decoded))
    ]
    title = "test examples above their reconstructions"
    return view.grid(np.concatenate(pairs), title, columns=across)


def beta_surfaces(nu: float = 1.0, tau: float = 3.0) -> Figure:
    """Figs. 1 and 11: beta_t - beta_{t-1} of REWO and GECO for nu = 1, tau = 3."""
    betas = np.linspace(0.01, 1.5, 150, dtype=np.float32)
    violations = np.linspace(-1.0, 1.0, 121, dtype=np.float32)
    grid_beta, grid_violation = np.meshgrid(betas, violations)
    slope = beta.rewo_slope(jnp.asarray(grid_beta), jnp.asarray(grid_violation), tau)
    surfaces = {
        "REWO": grid_beta * np.expm1(nu * np.asarray(slope) * grid_violation),
        "GECO": grid_beta * np.expm1(-nu * grid_violation),
    }
    return plotting.plot_beta_surfaces(surfaces, betas, violations)


class Interpolation:
    """Shortest paths between encoded test examples of one trained model.

    Attributes:
      graph: neighbour graph over prior samples, its components bridged.
      num_bridges: how many bridges that took.
      pairs: (start, end) test indices.
      view: how the frames are drawn.
      paths: one per pair.
      frames: decoded paths as they are drawn, each [L, ...].
      jumps: bool [L - 1] each.
    """

    def __init__(
        self, run: runs.Run, params: Params, pairs: Sequence[tuple[int, int]], seed: int
    ):
        model = run.experiment.model
        examples = run.experiment.dataset.test.examples
        for index in np.ravel(pairs):
            if not 0 <= index < len(examples):
                raise ValueError(
                    f"no test example {index}; wanted 0 to {len(examples) - 1}"
                )
        self.pairs = pairs
        self.view = views.view(run.experiment.dataset)
        self.graph, self.num_bridges = run.prior_graph(params, jax.random.key(seed))
        starts, ends = (
            evaluation.encode_dataset(model, params, examples[list(side)]).mean
            for side in zip(*pairs, strict=True)
        )
        self.paths = graph.shortest_paths(self.graph, starts, ends)
        self._run, self._params = run, params
        self.frames = [self._decode(path.points) for path in self.paths]
        self.jumps = [graph.find_jumps(frames) for frames in self.frames]

    def _decode(self, points: np.ndarray) -> np.ndarray:
        model = self._run.experiment.model
        return self.view.frames(evaluation.decode(model, self._params, points))

    def even_frames(self, number: int, num: int) -> np.ndarray:
        """`num` frames of a path, evenly spaced in latent space."""
        return self._decode(graph.resample_path(self.paths[number].points, num))

    def straight_frames(self, number: int, num: int) -> np.ndarray:
        """`num` frames of the straight line between the ends of a path."""
        points = self.paths[number].points
        return self._decode(np.linspace(points[0], points[-1], num))

    def panel(self, title: str) -> plotting.GraphPanel:
        """The graph with its paths, for Figs. 3 and 6; bridges are told."""
        if self.num_bridges:
            title += f" ({self.num_bridges} bridge{'s'[: self.num_bridges - 1]})"
        return plotting.GraphPanel(
            title,
            self.graph.nodes,
            self.graph.edges,
            self.graph.edge_lengths,
            [path.points for path in self.paths],
        )


def default_pairs(run: runs.Run) -> list[tuple[int, int]]:
    """Test examples at the config's end points; the first and last without targets.

    Of the examples whose target is nearest, the one a quarter of the way through the
    set is taken for a start, three quarters for an end.
    """
    dataset, config = run.experiment.dataset, run.config.graph
    targets = dataset.test.targets
    if dataset.target_kind == "none":
        return [(0, len(targets) - 1)]

    def nearest(target: float, share: float) -> int:
        if dataset.target_kind == "label":
            distance = (targets != target).astype(float)
        else:
            turn = (targets - target + math.pi) % (2.0 * math.pi) - math.pi
            distance = np.abs(turn)
        found = np.flatnonzero(distance <= distance.min() + 1e-6)
        if dataset.target_kind == "label" and distance.min() > 0.0:
            raise ValueError(f"no test example has the label {target}")
        return int(found[int(share * len(found))])

    ends = zip(config.start_targets, config.end_targets, strict=True)
    return [(nearest(start, 0.25), nearest(end, 0.75)) for start, end in ends]


def strips(interpolations: Mapping[str, Interpolation], number: int = 0) -> Figure:
    """Figs. 4, 7 and 19: one path of each method, jumps boxed."""
    first, *_ = interpolations.values()
    return first.view.strips(
        {name: found.frames[number] for name, found in interpolations.items()},
        {name: found.jumps[number] for name, found in interpolations.items()},
    )


def latent_space(run: runs.Run, params: Params, step: int) -> plotting.Snapshot:
    """Posterior of the test set and as many prior samples, for Figs. 5 and 18."""
    dataset, model = run.experiment.dataset, run.experiment.model
    split = dataset.test
    codes = evaluation.encode_dataset(model, params, split.examples)
    key, count = jax.random.key(0), len(split.examples)
    drawn = evaluation.sample_prior(model, params, key, count)
    colors = target_colors(dataset, split.targets)
    return plotting.Snapshot(step, codes.mean, codes.scale, drawn, colors)


def save_all(figures: Mapping[str, Figure], folder: Path) -> None:
    """Writes each figure as folder/NAME.png and says so."""
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        save(figure, path)
        print(f"wrote {path}")
