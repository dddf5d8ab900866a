r"""Trains a VAE with a learned prior; goes on where an earlier run stopped.

    python -m experiments.train --config=pendulum
    python -m experiments.train --config=pendulum --config.beta.scheme=geco \
        --workdir=runs/pendulum_geco --max_minutes=10

Several devices share each batch with --config.mesh=N (0: all). Several processes take
part where each is started by Slurm, Open MPI or Kubernetes or on a TPU slice with
--distributed, or anywhere with --coordinator_address, --num_processes and --process_id:
docs/devices.md.

Writes config.json, starts.json (commit and hardware of each start), metrics.jsonl,
checkpoints/, snapshots/, figures/ and, last of all, summary.json into the work
directory; of examples of one's own a digest too, data.json, so that no other files are
taken for them later.
"""

import math

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, distributed, figures, trainer

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(distributed)
flags.DEFINE_string("config", "pendulum", "Name of a config, see below.")
flags.DEFINE_string("workdir", None, "Directory of the run; runs/CONFIG if not given.")
flags.DEFINE_float(
    "max_minutes", math.inf, "Stop cleanly with a checkpoint after so many minutes."
)
flags.DEFINE_bool(
    "tensorboard", False, "Also write TensorBoard events into DIR/tensorboard."
)


def main(config: ConfigDict) -> None:
    """Trains as the flags say."""
    if not FLAGS.max_minutes > 0:
        raise cli.UsageError(f"--max_minutes must be positive, got {FLAGS.max_minutes}")
    workdir = FLAGS.workdir or f"runs/{FLAGS.config}"
    with distributed.join() as group:
        if not group.leads:
            trainer.follow(config, group)
            return
        draw = figures.training_figures
        trainer.train(
            config, workdir, FLAGS.max_minutes, FLAGS.tensorboard, group, draw
        )


if __name__ == "__main__":
    cli.Command(__doc__, main, takes_config=True).run()
