"""Draws ancestral samples from the prior of a trained model: images or stick figures.

    python -m experiments.sample --workdir=runs/pendulum --num_samples=64

Writes the picture, WORKDIR/figures/samples.png, and the numbers, WORKDIR/samples.npz: z
[N, latent_dim] from the prior, and x [N, ...], the decoder's mean there: rows in the
units of the data, images in [0, 1].
"""

from pathlib import Path

from absl import flags

from experiments import cli, figures, files, runs

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_integer("num_samples", 64, "Number of samples.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def main() -> None:
    """Samples as the flags say."""
    if FLAGS.num_samples < 1:
        raise cli.UsageError(f"--num_samples must be >= 1, got {FLAGS.num_samples}")
    restored = runs.opened(FLAGS.workdir)
    workdir, dataset = Path(FLAGS.workdir), restored.run.experiment.dataset
    z, examples = figures.ancestral_samples(
        restored.run, restored.first(), FLAGS.num_samples, FLAGS.seed
    )
    shaped = examples.reshape(-1, *dataset.train.examples.shape[1:])
    files.write_npz(workdir / "samples.npz", z=z, x=dataset.own_units(shaped))
    print(f"wrote {workdir / 'samples.npz'}")
    drawn = figures.example_grid(dataset, examples)
    figures.save_all({"samples": drawn}, workdir / "figures")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
