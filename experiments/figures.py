"""From runs to the figures of the paper; the drawing itself is vhp_jax.plotting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import runs
from vhp_jax import beta, evaluation, graph, plotting
from vhp_jax.types import Params

save = plotting.save_figure


def training_figures(
    run: runs.Run, directory: runs.WorkDir, stacked: Params
) -> Iterator[tuple[str, Figure]]:
    """Curves, latent space, regression, samples and reconstructions of one seed."""
    lines = member_lines(directory, run.config.seed)
    validation = validation_lines(directory, run.config.seed)
    yield "history", plotting.plot_history(columns(lines), validation=validation)
    params = next(run.members(stacked))
    planar = run.experiment.model.latent_dim == 2
    if planar and directory.snapshots():
        yield "latent_space", snapshot_figure(directory, run.config.seed)
    if planar and run.experiment.dataset.target_kind == "angle":
        fit = test_regression(run, params)
        curve = (run.experiment.dataset.test.targets, fit.fitted)
        figure = plotting.plot_regression({"test set": curve}, {"test set": fit.error})
        yield "regression", figure
    yield "samples", plotting.plot_image_grid(sample_images(run, params, 64, seed=0))
    yield "reconstructions", reconstruction_figure(run, params)


def member_lines(directory: runs.WorkDir, seed: int) -> list[dict]:
    """Training lines of metrics.jsonl that belong to one seed."""
    return [
        line
        for line in directory.metrics()
        if "split" not in line and line.get("seed", seed) == seed
    ]


def validation_lines(
    directory: runs.WorkDir, seed: int
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


def snapshot_figure(directory: runs.WorkDir, seed: int, title: str = "") -> Figure:
    """Fig. 2 for the first seed of a run."""
    lines = columns(member_lines(directory, seed))
    snapshots = [
        plotting.Snapshot(
            step,
            arrays["posterior_mean"][0],
            arrays["posterior_scale"][0],
            arrays["prior_samples"][0],
            arrays["targets"],
        )
        for step, arrays in directory.snapshots().items()
    ]
    initial = lines["step"][lines["initial_phase"]]
    return plotting.plot_snapshots(
        snapshots,
        (lines["step"], lines["beta"]),
        title,
        phase_end=int(initial[-1]) if len(initial) else None,
    )


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


def sample_images(
    run: runs.Run, params: Params, num_samples: int, seed: int
) -> np.ndarray:
    """Ancestral samples: z ~ p(z), then E[x|z]; [num_samples, *example]."""
    model = run.experiment.model
    with jax.default_matmul_precision("highest"):
        z = model.prior.sample(params, jax.random.key(seed), num_samples)
        images = np.asarray(model.reconstruct(params, z))
    return np.clip(as_images(run, images), 0.0, 1.0)


def as_images(run: runs.Run, flat: np.ndarray) -> np.ndarray:
    """Examples [N, ...] as grey images [N, H, W], without an axis of one channel."""
    height, width, *_ = run.experiment.dataset.train.examples.shape[1:]
    return np.asarray(flat).reshape(-1, height, width)


def reconstruction_figure(
    run: runs.Run, params: Params, rows: int = 4, across: int = 12
) -> Figure:
    """Rows of test images, each above its reconstruction through the posterior mean.

    The images are spread evenly over the test set: some sets are in the order of their
    classes.
    """
    test = run.experiment.dataset.test.examples
    count = min(rows * across, len(test))
    examples = test[np.linspace(0, len(test) - 1, count).astype(int)]
    model = run.experiment.model
    with jax.default_matmul_precision("highest"):
        codes = evaluation.encode_dataset(model, params, examples)
        decoded = model.reconstruct(params, jnp.asarray(codes.mean))
    across = min(across, len(examples))
    pairs = [
        part[start : start + across]
        for start in range(0, len(examples) - across + 1, across)
        for part in (as_images(run, examples), as_images(run, np.asarray(decoded)))
    ]
    images = np.clip(np.concatenate(pairs), 0.0, 1.0)
    title = "test images above their reconstructions"
    return plotting.plot_image_grid(images, title, columns=across)


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
      graph: neighbour graph over prior samples.
      pairs: (start, end) test indices.
      paths: one per pair.
      frames: decoded paths, each [L, H, W].
      jumps: bool [L - 1] each.
    """

    def __init__(
        self, run: runs.Run, params: Params, pairs: Sequence[tuple[int, int]], seed: int
    ):
        config, model = run.config.graph, run.experiment.model
        examples = run.experiment.dataset.test.examples
        for index in np.ravel(pairs):
            if not 0 <= index < len(examples):
                raise ValueError(
                    f"no test example {index}; wanted 0 to {len(examples) - 1}"
                )
        samples = model.prior.sample(params, jax.random.key(seed), config.num_nodes)
        self.pairs = pairs
        self.graph = graph.build_graph(np.asarray(samples), config.num_neighbours)
        starts, ends = (
            evaluation.encode_dataset(model, params, examples[list(side)]).mean
            for side in zip(*pairs, strict=True)
        )
        self.paths = graph.shortest_paths(self.graph, starts, ends)
        self.frames = []
        for path in self.paths:
            decoded = model.reconstruct(params, jnp.asarray(path.points, jnp.float32))
            self.frames.append(as_images(run, np.asarray(decoded)))
        self.jumps = [graph.find_jumps(frames) for frames in self.frames]

    def panel(self, title: str) -> plotting.GraphPanel:
        """The graph with its paths, for Fig. 3."""
        return plotting.GraphPanel(
            title,
            self.graph.nodes,
            self.graph.edges,
            self.graph.edge_lengths,
            [path.points for path in self.paths],
        )


def default_pair(run: runs.Run) -> tuple[int, int]:
    """Test examples whose targets are nearest to the config's end points.

    Without targets, the first and the last.
    """
    targets = run.experiment.dataset.test.targets
    if run.experiment.dataset.target_kind == "none":
        return 0, len(targets) - 1
    if run.experiment.dataset.target_kind == "angle":

        def distance(target: float) -> np.ndarray:
            return np.abs((targets - target + math.pi) % (2.0 * math.pi) - math.pi)
    else:

        def distance(target: float) -> np.ndarray:
            return np.abs(targets - target)

    config = run.config.graph
    start, end = (
        int(np.argmin(distance(t))) for t in (config.start_target, config.end_target)
    )
    return start, end


def strips(interpolations: Mapping[str, Interpolation]) -> Figure:
    """Fig. 4: the first path of each method, jumps boxed."""
    return plotting.plot_strips(
        {name: np.clip(i.frames[0], 0.0, 1.0) for name, i in interpolations.items()},
        {name: i.jumps[0] for name, i in interpolations.items()},
    )


def save_all(figures: Mapping[str, Figure], folder: Path) -> None:
    """Writes each figure as folder/NAME.png and says so."""
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        save(figure, path)
        print(f"wrote {path}")
