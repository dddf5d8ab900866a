"""Measures a trained model; writes one JSON file per metric into WORKDIR/eval.

    python -m experiments.evaluate --workdir=runs/pendulum --metrics=nll,ols

Metrics: nll (importance-sampled negative log-likelihood), rate_distortion,
active_units, prior_match (two-sample score of prior and aggregated posterior), ols
(regression of the angle, pendulum only), neighbours (nearest-neighbour accuracy, sets
with labels only), smoothness (of interpolations, motions only), interpolation (steps
and sharpness along paths, images only). nll keeps what it has done and goes on after a
kill, and with several processes (docs/devices.md) their devices share its examples.
"""

import json
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from experiments import cli, distributed, metrics, runs
from experiments.processes import Group
from vhp_jax import devices
from vhp_jax.data import Split

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(distributed)
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_list("metrics", ["nll", "rate_distortion", "active_units"], "See above.")
flags.DEFINE_integer("num_samples", 5000, "Importance samples per example (nll).")
flags.DEFINE_integer("num_examples", None, "Only the first so many examples.")
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which split.")
flags.DEFINE_integer("seed", 0, "Seed of the evaluation's own draws.")


def main() -> None:
    """Evaluates as the flags say."""
    unknown = [name for name in FLAGS.metrics if name not in metrics.METRICS]
    if unknown:
        raise cli.UsageError(
            f"no metric is called {unknown[0]!r}; there are: "
            f"{', '.join(metrics.METRICS)}"
        )
    if FLAGS.num_samples < 1:
        raise cli.UsageError(f"--num_samples must be >= 1, got {FLAGS.num_samples}")
    with distributed.join() as group:
        mesh = devices.make_mesh() if group.size > 1 else None
        if group.leads:
            lead(group, mesh)
            return

        def settings(run: runs.Run) -> metrics.Setting:
            params = next(run.members(run.initial_state().params))
            return metrics.Setting(
                run,
                params,
                0,
                chosen_split(run),
                FLAGS.split,
                Path(),  # nothing is written here
                num_samples=FLAGS.num_samples,
                seed=FLAGS.seed,
                mesh=mesh,
            )

        metrics.follow(group, settings)


def lead(group: Group, mesh: Mesh | None) -> None:
    """Measures and writes."""
    run, _, stacked, step = runs.opened(FLAGS.workdir)
    split = chosen_split(run)
    group.tell(config=json.loads(run.config.to_json()))
    several = len(run.seeds) > 1
    for seed, params in zip(run.seeds, run.members(stacked), strict=True):
        folder = Path(FLAGS.workdir) / "eval" / (f"seed_{seed}" if several else "")
        setting = metrics.Setting(
            run,
            params,
            step,
            split,
            FLAGS.split,
            folder,
            num_samples=FLAGS.num_samples,
            seed=FLAGS.seed,
            training_seed=seed,
            mesh=mesh,
            group=group,
        )
        for name in FLAGS.metrics:
            metrics.measure(name, setting)


def chosen_split(run: runs.Run) -> Split:
    """The examples that the flags ask for."""
    split = run.experiment.dataset.measured(FLAGS.split)
    if FLAGS.num_examples is None:
        return split
    if not 2 <= FLAGS.num_examples <= len(split.examples):
        raise cli.UsageError(
            f"--num_examples must be from 2 to {len(split.examples)}, "
            f"got {FLAGS.num_examples}"
        )
    return Split(*(array[: FLAGS.num_examples] for array in split))


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
