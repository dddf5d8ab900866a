"""Draws ancestral samples from the prior of a trained model as an image grid.

python -m experiments.sample --workdir=runs/pendulum --num_samples=64
"""

from pathlib import Path

from absl import flags

from experiments import cli, figures, runs
from vhp_jax import plotting

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_integer("num_samples", 64, "Number of samples.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def main() -> None:
    """Samples as the flags say."""
    if not FLAGS.workdir:
        raise cli.UsageError("--workdir=DIR is missing: the directory of a run")
    if FLAGS.num_samples < 1:
        raise cli.UsageError(f"--num_samples must be >= 1, got {FLAGS.num_samples}")
    run, _, stacked, _ = runs.restore(FLAGS.workdir)
    dataset = run.experiment.dataset
    workdir = Path(FLAGS.workdir)
    print(runs.banner(f"{dataset.name} ({dataset.source})", workdir))
    if len(run.seeds) > 1:
        print(f"seed {run.seeds[0]}, the first of {len(run.seeds)}")
    params = next(run.members(stacked))
    images = figures.sample_images(run, params, FLAGS.num_samples, FLAGS.seed)
    figures.save_all({"samples": plotting.plot_image_grid(images)}, workdir / "figures")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
