"""Measures a trained model; writes one JSON file per metric into WORKDIR/eval.

    python -m experiments.evaluate --workdir=runs/pendulum --metrics=nll,ols

Metrics: nll (importance-sampled negative log-likelihood), rate_distortion,
active_units, ols (regression of the angle, pendulum only).
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, runs
from vhp_jax import evaluation
from vhp_jax.data import Split
from vhp_jax.types import Params, PRNGKey

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_list("metrics", ["nll", "rate_distortion", "active_units"], "See above.")
flags.DEFINE_integer("num_samples", 5000, "Importance samples per example (nll).")
flags.DEFINE_integer("num_examples", None, "Only the first so many examples.")
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which split.")
flags.DEFINE_integer("seed", 0, "Seed of the evaluation's own draws.")

Result = dict[str, Any]


def key_for(metric: str) -> PRNGKey:
    """A key of its own for each metric, apart from those of training."""
    number = 1_000_000 + list(METRICS).index(metric)
    return jax.random.fold_in(jax.random.key(FLAGS.seed), number)


def nll(run: runs.Run, params: Params, split: Split, folder: Path) -> Result:
    """-log p(x) with S joint importance samples: Table 2."""
    began = time.monotonic()

    def progress(done: int) -> None:
        left = (time.monotonic() - began) * (len(split.examples) - done) / done
        print(f"nll: {done}/{len(split.examples)} examples, {left:.0f} s left")

    result = evaluation.log_likelihood(
        run.experiment.model,
        params,
        key_for("nll"),
        split.examples,
        FLAGS.num_samples,
        progress=progress,
    )
    runs.write_npz(folder / "nll.npz", **result._asdict())
    values = -result.log_likelihood
    known = result.pareto_k[np.isfinite(result.pareto_k)]
    return {
        "value": values.mean(),
        "stderr": values.std(ddof=1) / math.sqrt(len(values)),
        "num_samples": result.num_samples,
        "estimator": "one joint (z, zeta) pair per importance weight, nats per example",
        "mean_effective_sample_size": result.effective_sample_size.mean(),
        "pareto_k_share_above_0.7": (known > 0.7).mean() if len(known) else None,
    }


def rate_distortion(
    run: runs.Run, params: Params, split: Split, folder: Path
) -> Result:
    """Rate and distortion of the training objective."""
    del folder
    key = key_for("rate_distortion")
    measured = evaluation.rate_distortion(
        run.experiment.objective, params, key, split.examples
    )
    return {
        "value": measured.distortion + measured.rate,
        "stderr": measured.bound_stderr,
        "num_samples": run.config.objective.num_samples,
        "estimator": "distortion + rate with one z per example, nats per example",
        **measured._asdict(),
    }


def active_units(run: runs.Run, params: Params, split: Split, folder: Path) -> Result:
    """Active units of z and the KL of each inner latent: App. D.2."""
    del folder
    key = key_for("active_units")
    measured = evaluation.active_units(
        run.experiment.model, params, key, split.examples
    )
    return {
        "value": measured.num_active,
        "stderr": None,
        "num_samples": 1,
        "estimator": f"Var_x(E[z_j|x]) > {measured.threshold}",
        "variance": measured.variance,
        "kl_per_unit": np.sort(measured.kl)[::-1],
    }


def ols(run: runs.Run, params: Params, split: Split, folder: Path) -> Result:
    """OLS regression of the true angle on the polar angle: Table 1."""
    del folder
    if run.experiment.dataset.target_kind != "angle":
        raise cli.UserError("ols wants a data set with angles, such as the pendulum")
    codes = evaluation.encode_dataset(run.experiment.model, params, split.examples)
    fit = evaluation.regress_angle(codes.mean, split.targets)
    residual = np.abs(split.targets - fit.fitted)
    return {
        "value": fit.error,
        "stderr": residual.std(ddof=1) / math.sqrt(len(residual)),
        "num_samples": 1,
        "estimator": "mean absolute residual over the whole circle, radians",
        "centre": fit.centre,
        "radius": fit.radius,
        "slope": fit.slope,
        "intercept": fit.intercept,
        "winding": fit.winding,
        "crossings": fit.crossings,
        "largest_gap": fit.largest_gap,
    }


METRICS: dict[str, Callable[[runs.Run, Params, Split, Path], Result]] = {
    "nll": nll,
    "rate_distortion": rate_distortion,
    "active_units": active_units,
    "ols": ols,
}


def main() -> None:
    """Evaluates as the flags say."""
    if not FLAGS.workdir:
        raise cli.UsageError("--workdir=DIR is missing: the directory of a run")
    unknown = [name for name in FLAGS.metrics if name not in METRICS]
    if unknown:
        raise cli.UsageError(
            f"no metric is called {unknown[0]!r}; there are: {', '.join(METRICS)}"
        )
    if FLAGS.num_samples < 1:
        raise cli.UsageError(f"--num_samples must be >= 1, got {FLAGS.num_samples}")
    run, _, stacked, step = runs.restore(FLAGS.workdir)
    dataset = run.experiment.dataset
    print(runs.banner(f"{dataset.name} ({dataset.source})", Path(FLAGS.workdir)))
    split = getattr(dataset, FLAGS.split)
    if FLAGS.num_examples is not None:
        if not 2 <= FLAGS.num_examples <= len(split.examples):
            raise cli.UsageError(
                f"--num_examples must be from 2 to {len(split.examples)}, "
                f"got {FLAGS.num_examples}"
            )
        split = Split(*(array[: FLAGS.num_examples] for array in split))
    several = len(run.seeds) > 1
    for seed, params in zip(run.seeds, run.members(stacked), strict=True):
        folder = Path(FLAGS.workdir) / "eval" / (f"seed_{seed}" if several else "")
        for name in FLAGS.metrics:
            began = time.monotonic()
            result = METRICS[name](run, params, split, folder)
            result |= {
                "num_examples": len(split.examples),
                "split": FLAGS.split,
                "seed": seed,
                "evaluation_seed": FLAGS.seed,
                "step": step,
                "seconds": time.monotonic() - began,
                "device": jax.devices()[0].device_kind,
            }
            runs.write_json(folder / f"{name}.json", result)
            print(f"{name}: {result['value']:.4f} -> {folder / f'{name}.json'}")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
