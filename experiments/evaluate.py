"""Measures a trained model; writes one JSON file per metric into WORKDIR/eval.

    python -m experiments.evaluate --workdir=runs/pendulum --metrics=nll,ols

Metrics: nll (importance-sampled negative log-likelihood), rate_distortion,
active_units, ols (regression of the angle, pendulum only).
"""

import hashlib
import math
import time
import zipfile
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
NLL_PART = 500  # examples between two looks at the disk


def key_for(metric: str) -> PRNGKey:
    """A key of its own for each metric, apart from those of training."""
    number = 1_000_000 + list(METRICS).index(metric)
    return jax.random.fold_in(jax.random.key(FLAGS.seed), number)


def nll(run: runs.Run, params: Params, split: Split, folder: Path) -> Result:
    """-log p(x) with S joint importance samples: Table 2. Goes on after a kill."""
    began, num_examples = time.monotonic(), len(split.examples)
    parts = _Parts(folder / "nll.partial.npz", _fingerprint(params, split))
    first = parts.done
    if first:
        print(f"nll: going on after {first} of {num_examples} examples")
    for start in range(first, num_examples, NLL_PART):
        result = evaluation.log_likelihood(
            run.experiment.model,
            params,
            key_for("nll"),
            split.examples[start : start + NLL_PART],
            FLAGS.num_samples,
            first=start,
        )
        parts.add(
            log_likelihood=result.log_likelihood,
            effective_sample_size=result.effective_sample_size,
            pareto_k=result.pareto_k,
        )
        pace = (time.monotonic() - began) / (parts.done - first)
        print(
            f"nll: {parts.done}/{num_examples} examples, {-parts.mean():.3f} nats so "
            f"far, {pace * (num_examples - parts.done):.0f} s left",
            flush=True,
        )
    arrays = parts.arrays
    runs.write_npz(folder / "nll.npz", **arrays, num_samples=FLAGS.num_samples)
    parts.path.unlink(missing_ok=True)
    values, k = -arrays["log_likelihood"], arrays["pareto_k"]
    known = k[np.isfinite(k)]
    return {
        "value": values.mean(),
        "stderr": values.std(ddof=1) / math.sqrt(len(values)),
        "num_samples": FLAGS.num_samples,
        "estimator": "one joint (z, zeta) pair per importance weight, nats per example",
        "mean_effective_sample_size": arrays["effective_sample_size"].mean(),
        "pareto_k_share_above_0.7": (known > 0.7).mean() if len(known) else None,
    }


def _fingerprint(params: Params, split: Split) -> str:
    """Of all that an estimate depends on."""
    digest = hashlib.sha256(f"{FLAGS.num_samples} {FLAGS.seed}".encode())
    for array in (*jax.tree.leaves(params), split.examples):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


class _Parts:
    """Per-example results that are kept on disk while the others are computed.

    Attributes:
      path: of the file.
      arrays: what there is so far.
    """

    def __init__(self, path: Path, fingerprint: str):
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        self._fingerprint = fingerprint
        try:
            with np.load(path) as found:
                arrays = dict(found)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return
        if str(arrays.pop("fingerprint", "")) == fingerprint:
            self.arrays = arrays

    @property
    def done(self) -> int:
        """Number of examples."""
        return len(self.arrays.get("log_likelihood", ()))

    def mean(self) -> float:
        """Mean log-likelihood so far, nats."""
        return float(self.arrays["log_likelihood"].mean())

    def add(self, **arrays: np.ndarray) -> None:
        """Appends the next examples and writes the file anew."""
        for name, new in arrays.items():
            self.arrays[name] = np.append(self.arrays.get(name, new[:0]), new)
        runs.write_npz(
            self.path, **self.arrays, fingerprint=np.array(self._fingerprint)
        )


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
