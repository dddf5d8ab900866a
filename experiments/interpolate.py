"""Interpolates along shortest paths of a graph over prior samples (Sec. 2.3).

    python -m experiments.interpolate --workdir=runs/pendulum
    python -m experiments.interpolate --workdir=runs/pendulum --start=3 --end=17

Without end points the config's own are taken (pendulum: 0 and 180 degrees). Draws the
graph with its paths and the decoded strip into WORKDIR/figures, and writes the paths to
WORKDIR/interpolation.npz. Of motions each path is also a GIF that plays in any browser.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments import cli, figures, files, runs, views
from vhp_jax import plotting
from vhp_jax.data import Dataset

NUM_FRAMES = 100  # of an animation: four seconds

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_integer("start", None, "Test example at the start.")
flags.DEFINE_integer("end", None, "Test example at the end.")
flags.DEFINE_string("pairs", None, "Text file, two test examples a line.")
flags.DEFINE_integer("seed", 0, "Seed of the prior samples.")


def read_pairs(path: str) -> list[tuple[int, int]]:
    """Reads "START END" lines; UserError names the first line that is not one."""
    pairs = []
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise cli.UserError(f"cannot read --pairs={path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        try:
            start, end = (int(word) for word in words)
        except ValueError:
            raise cli.UserError(
                f"{path} line {number}: wanted two test indices, got {line!r}"
            ) from None
        pairs.append((start, end))
    if not pairs:
        raise cli.UserError(f"{path} holds no pair of test indices")
    return pairs


def chosen_pairs(run: runs.Run) -> list[tuple[int, int]]:
    """End points from the flags."""
    ends = (FLAGS.start, FLAGS.end)
    if FLAGS.pairs is not None:
        if ends != (None, None):
            raise cli.UsageError("--pairs and --start/--end exclude each other")
        return read_pairs(FLAGS.pairs)
    if ends == (None, None):
        return figures.default_pairs(run)
    if None in ends:
        raise cli.UsageError("--start and --end go together")
    return [(FLAGS.start, FLAGS.end)]


def described(dataset: Dataset, pair: tuple[int, int]) -> str:
    """A pair of test examples in words."""
    name = f"test {pair[0]} to {pair[1]}"
    if dataset.label_names:
        start, end = (dataset.label_names[dataset.test.targets[i]] for i in pair)
        name += f" ({start} to {end})"
    return name


def main() -> None:
    """Interpolates as the flags say."""
    restored = runs.opened(FLAGS.workdir)
    run, workdir = restored.run, Path(FLAGS.workdir)
    dataset = run.experiment.dataset
    interpolation = figures.Interpolation(
        run, restored.first(), chosen_pairs(run), FLAGS.seed
    )
    if interpolation.num_bridges:
        print(
            f"the graph had {interpolation.num_bridges + 1} components, now joined by "
            "their shortest bridges"
        )
    strips, jumps = {}, {}
    for number, pair in enumerate(interpolation.pairs):
        path, jump = interpolation.paths[number], interpolation.jumps[number]
        name = described(dataset, pair)
        strips[name], jumps[name] = interpolation.frames[number], jump
        print(
            f"{name}: {len(path.points)} points, length {path.length:.3f}, "
            f"{int(jump.sum())} jumps"
        )
    arrays = {f"points_{i}": path.points for i, path in enumerate(interpolation.paths)}
    arrays["pairs"] = np.array(interpolation.pairs)
    files.write_npz(workdir / "interpolation.npz", **arrays)
    view = interpolation.view
    drawn = {"strip": view.strips(strips, jumps)}
    if run.experiment.model.latent_dim == 2:
        panel = interpolation.panel(workdir.name)
        drawn["graph"] = plotting.plot_latent_graphs([panel])
    figures.save_all(drawn, workdir / "figures")
    if isinstance(view, views.Bodies):
        for number, name in enumerate(strips):
            file = workdir / "figures" / f"path_{number}.gif"
            frames = interpolation.even_frames(number, NUM_FRAMES)
            plotting.save_animation(frames, view.skeleton, file, name)
            print(f"wrote {file}")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
