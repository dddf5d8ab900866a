"""Draws ancestral samples from the prior of a trained model: images or stick figures.

python -m experiments.sample --workdir=runs/pendulum --num_samples=64
"""

from pathlib import Path

from absl import flags

from experiments import cli, figures, runs

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_integer("num_samples", 64, "Number of samples.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def main() -> None:
    """Samples as the flags say."""
    if FLAGS.num_samples < 1:
        raise cli.UsageError(f"--num_samples must be >= 1, got {FLAGS.num_samples}")
    restored = runs.opened(FLAGS.workdir)
    drawn = figures.sample_figure(
        restored.run, restored.first(), FLAGS.num_samples, FLAGS.seed
    )
    figures.save_all({"samples": drawn}, Path(FLAGS.workdir) / "figures")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
