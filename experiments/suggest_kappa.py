"""Recommends kappa for a config from one short run, with what to expect of others.

    python -m experiments.suggest_kappa --config=pendulum
    python -m experiments.suggest_kappa --config=custom --config.data.path=FILE

The run trains on reconstruction alone and measures the error on the validation split,
with dropout if training has it, since kappa bounds the error in training; kappa is a
margin above it: docs of `vhp_jax.kappa`. Prints a table and writes WORKDIR/kappa.json.
"""

from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import build, cli, files, provenance, runs
from vhp_jax import kappa

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "pendulum", "Name of a config, see below.")
flags.DEFINE_string("workdir", None, "Where to write; runs/CONFIG if not given.")
flags.DEFINE_float("minutes", 3.0, "Time of the run, at most.")
flags.DEFINE_integer("num_steps", 30_000, "Steps of the run, at most.")
flags.DEFINE_float("margin", kappa.MARGIN, "kappa over the error that is reached.")


def main(config: ConfigDict) -> None:
    """Measures and prints as the flags say."""
    if not FLAGS.minutes > 0:
        raise cli.UsageError(f"--minutes must be positive, got {FLAGS.minutes}")
    if config.objective.constraint != "mse_mean":
        raise cli.UserError(
            "a suggestion is an RMS error: config.objective.constraint must be "
            f"mse_mean, got {config.objective.constraint!r}"
        )
    given = config.beta.kappa
    config.beta.kappa = given or 1.0  # 0: none is given; nothing depends on it here
    experiment = build.build(config)
    dataset = experiment.dataset
    workdir = Path(FLAGS.workdir or f"runs/{FLAGS.config}")
    print(runs.banner(f"{dataset.name} ({dataset.source})", workdir), flush=True)
    quick = ConfigDict(config.objective.to_dict() | {"num_samples": 1})
    found = kappa.suggest_kappa(
        jax.random.key(config.seed),
        experiment.init_params,
        build.build_objective(quick, experiment.model, dropout=True),
        experiment.optimizers,
        dataset.train.examples,
        dataset.validation.examples,
        batch_size=config.train.batch_size,
        num_steps=FLAGS.num_steps,
        seconds=60.0 * FLAGS.minutes,
        margin=FLAGS.margin,
        draw_batch=experiment.draw_batch,
        measure=experiment.training_objective,
        stepwise=runs.takes_steps_alone(config),
    )
    print(found.table())
    print(f"kappa = {found.kappa:g}: {found.reasoning}")
    has = f"the config has kappa = {given:g}" if given else "the config has none"
    print(f"{found.steps} steps in {found.seconds:.0f} s; {has}")
    written = found.as_dict() | {
        "config": FLAGS.config,
        "config_kappa": given or None,
        "seed": config.seed,
        "versions": provenance.versions(),
        "git_revision": provenance.git_revision(),
        "hardware": provenance.hardware(),
    }
    files.write_json(workdir / "kappa.json", written)
    print(f"wrote {workdir / 'kappa.json'}")


if __name__ == "__main__":
    cli.Command(__doc__, main, takes_config=True).run()
