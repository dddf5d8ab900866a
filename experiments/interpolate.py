"""Interpolates along shortest paths of a graph over prior samples (Sec. 2.3).

    python -m experiments.interpolate --workdir=runs/pendulum
    python -m experiments.interpolate --workdir=runs/pendulum --start=3 --end=17

Without end points the config's own are taken (pendulum: 0 and 180 degrees). Draws the
graph with its paths and the decoded strip into WORKDIR/figures, and writes the paths to
WORKDIR/interpolation.npz.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments import cli, figures, runs
from vhp_jax import plotting

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
        return [figures.default_pair(run)]
    if None in ends:
        raise cli.UsageError("--start and --end go together")
    return [(FLAGS.start, FLAGS.end)]


def main() -> None:
    """Interpolates as the flags say."""
    if not FLAGS.workdir:
        raise cli.UsageError("--workdir=DIR is missing: the directory of a run")
    run, _, stacked, _ = runs.restore(FLAGS.workdir)
    dataset = run.experiment.dataset
    workdir = Path(FLAGS.workdir)
    print(runs.banner(f"{dataset.name} ({dataset.source})", workdir))
    if len(run.seeds) > 1:
        print(f"seed {run.seeds[0]}, the first of {len(run.seeds)}")
    params = next(run.members(stacked))
    interpolation = figures.Interpolation(run, params, chosen_pairs(run), FLAGS.seed)
    strips, jumps = {}, {}
    for pair, path, frames, jump in zip(
        interpolation.pairs,
        interpolation.paths,
        interpolation.frames,
        interpolation.jumps,
        strict=True,
    ):
        name = f"test {pair[0]} to {pair[1]}"
        strips[name], jumps[name] = np.clip(frames, 0.0, 1.0), jump
        print(
            f"{name}: {len(path.points)} points, length {path.length:.3f}, "
            f"{int(jump.sum())} jumps"
        )
    arrays = {f"points_{i}": path.points for i, path in enumerate(interpolation.paths)}
    arrays["pairs"] = np.array(interpolation.pairs)
    runs.write_npz(workdir / "interpolation.npz", **arrays)
    drawn = {"strip": plotting.plot_strips(strips, jumps)}
    if run.experiment.model.latent_dim == 2:
        panel = interpolation.panel(workdir.name)
        drawn["graph"] = plotting.plot_latent_graphs([panel])
    figures.save_all(drawn, workdir / "figures")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
