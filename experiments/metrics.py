"""Measures of a trained model, each with its estimator and its diagnostics.

Every metric is a function of a `Setting` alone; `measure` adds what all of them share
and writes EVAL_FOLDER/METRIC.json.
"""

import hashlib
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import cli, files, runs, views
from experiments.processes import ALONE, Group
from vhp_jax import evaluation, graph
from vhp_jax.data import Split
from vhp_jax.types import Params, PRNGKey

Result = dict[str, Any]
NUM_SAMPLES = 5000  # of the paper
NLL_PART = 500  # examples between two looks at the disk and at the clock


class OutOfTimeError(Exception):
    """A measure was not finished before its deadline; what is done is kept."""


class Setting(NamedTuple):
    """What is measured, on what, and how.

    Attributes:
      run: the experiment.
      params: of one seed.
      step: at which they were reached.
      split: the examples.
      split_name: "train", "validation" or "test".
      folder: where results are written.
      num_samples: S, importance samples per example.
      seed: of the measure's own draws.
      training_seed: which member of the run it is.
      deadline: of time.monotonic(), seconds; only nll looks at it.
      mesh: whose devices share the examples of nll; None for all of this process.
      group: the processes that take part in nll; all but this one are in `follow`.
    """

    run: runs.Run
    params: Params
    step: int
    split: Split
    split_name: str
    folder: Path
    num_samples: int = NUM_SAMPLES
    seed: int = 0
    training_seed: int = 1
    deadline: float = math.inf
    mesh: Mesh | None = None
    group: Group = ALONE

    @property
    def whole_split(self) -> bool:
        """Whether no example is left out."""
        dataset = self.run.experiment.dataset
        return len(self.split.examples) == len(
            getattr(dataset, self.split_name).examples
        )

    def key(self, metric: str) -> PRNGKey:
        """A key of its own for each metric, apart from those of training."""
        number = 2_000_000 + list(METRICS).index(metric)
        return jax.random.fold_in(jax.random.key(self.seed), number)

    def log_likelihood(self, first: int) -> evaluation.LogLikelihood:
        """Of the next part of the examples, with all processes."""
        return evaluation.log_likelihood(
            self.run.experiment.model,
            self.params,
            self.key("nll"),
            self.split.examples[first : first + NLL_PART],
            self.num_samples,
            first=first,
            mesh=self.mesh,
        )


def follow(group: Group, settings: Callable[[runs.Run], Setting]) -> None:
    """Takes part in the likelihoods that process 0 measures.

    Args:
      group: the processes.
      settings: what is measured, of a run; its parameters are process 0's.

    Raises:
      UserError: process 0 ended with an error.
    """
    setting: Setting | None = None
    for order in group.orders(cli.StopSignal()):
        if setting is None:
            setting = settings(runs.Run(ConfigDict(order["config"])))
        else:
            setting.log_likelihood(order["first"])


def measure(metric: str, setting: Setting) -> Result:
    """Computes one metric and writes its file.

    Raises:
      UserError: the metric does not fit the data set.
      OutOfTimeError: the deadline came first.
    """
    began = time.monotonic()
    result = METRICS[metric](setting)
    result |= {
        "num_examples": len(setting.split.examples),
        "whole_split": setting.whole_split,
        "split": setting.split_name,
        "seed": setting.training_seed,
        "evaluation_seed": setting.seed,
        "step": setting.step,
        "seconds": result.get("seconds", 0.0) + time.monotonic() - began,
        "device": jax.devices()[0].device_kind,
    }
    path = setting.folder / f"{metric}.json"
    files.write_json(path, result)
    print(f"{metric}: {result['value']:.4f} -> {path}", flush=True)
    return result


def nll(setting: Setting) -> Result:
    """-log p(x) with S joint importance samples: Table 2. Goes on after a kill."""
    examples = setting.split.examples
    parts = _Parts(setting.folder / "nll.partial.npz", _fingerprint(setting))
    began, first, earlier = time.monotonic(), parts.done, parts.seconds
    if first:
        print(f"nll: going on after {first} of {len(examples)} examples")
    for start in range(first, len(examples), NLL_PART):
        if time.monotonic() >= setting.deadline:
            raise OutOfTimeError(
                f"nll: {parts.done} of {len(examples)} examples are done"
            )
        setting.group.tell(first=start)
        result = setting.log_likelihood(start)
        seconds = time.monotonic() - began
        parts.add(
            earlier + seconds,
            log_likelihood=result.log_likelihood,
            effective_sample_size=result.effective_sample_size,
            pareto_k=result.pareto_k,
        )
        left = seconds / (parts.done - first) * (len(examples) - parts.done)
        print(
            f"nll: {parts.done}/{len(examples)} examples, {-parts.mean():.3f} nats so "
            f"far, {left:.0f} s left",
            flush=True,
        )
    arrays = parts.arrays
    files.write_npz(setting.folder / "nll.npz", **arrays)
    parts.path.unlink(missing_ok=True)
    values, k = -arrays["log_likelihood"], arrays["pareto_k"]
    lost = ~np.isfinite(values)
    if lost.any():
        print(f"nll: {lost.sum()} examples, first {lost.argmax()}, have no likelihood")
    known = np.where(lost, np.inf, k)
    known = known[~np.isnan(known)]
    return {
        "value": values.mean(),
        "stderr": None if lost.any() else values.std(ddof=1) / math.sqrt(len(values)),
        "examples_without_likelihood": lost.sum(),
        "num_samples": setting.num_samples,
        "estimator": "one joint (z, zeta) pair per importance weight, nats per example",
        "mean_effective_sample_size": np.where(
            lost, 0.0, arrays["effective_sample_size"]
        ).mean(),
        "pareto_k_share_above_0.7": (known > 0.7).mean() if len(known) else None,
        "seconds": earlier,
    }


def _fingerprint(setting: Setting) -> str:
    """Of all that an estimate depends on."""
    digest = hashlib.sha256(f"{setting.num_samples} {setting.seed}".encode())
    for array in (*jax.tree.leaves(setting.params), setting.split.examples):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


class _Parts:
    """Per-example results that are kept on disk while the others are computed.

    Attributes:
      path: of the file.
      arrays: what there is so far.
      seconds: that it took.
    """

    def __init__(self, path: Path, fingerprint: str):
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        self.seconds = 0.0
        self._fingerprint = fingerprint
        try:
            with path.open("rb") as file, np.load(file) as found:
                arrays = dict(found)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return
        if str(arrays.pop("fingerprint", "")) == fingerprint:
            self.seconds = float(arrays.pop("seconds"))
            self.arrays = arrays

    @property
    def done(self) -> int:
        """Number of examples."""
        return len(self.arrays.get("log_likelihood", ()))

    def mean(self) -> float:
        """Mean log-likelihood so far, nats."""
        return float(self.arrays["log_likelihood"].mean())

    def add(self, seconds: float, **arrays: np.ndarray) -> None:
        """Appends the next examples and writes the file anew."""
        self.seconds = seconds
        for name, new in arrays.items():
            self.arrays[name] = np.append(self.arrays.get(name, new[:0]), new)
        about = {
            "fingerprint": np.array(self._fingerprint),
            "seconds": np.array(seconds),
        }
        files.write_npz(self.path, **self.arrays, **about)


BOUNDS = {
    "vhp": "distortion + rate with one z per example, nats per example",
    "iwae": "minus the bound of num_samples joint samples, nats per example; its rate "
    "is what is left of it without the mean distortion, and no divergence",
}


def rate_distortion(setting: Setting) -> Result:
    """Rate and distortion of the objective that is trained, without dropout."""
    key = setting.key("rate_distortion")
    measured = evaluation.rate_distortion(
        setting.run.experiment.objective, setting.params, key, setting.split.examples
    )
    return {
        "value": measured.distortion + measured.rate,
        "stderr": measured.bound_stderr,
        "num_samples": setting.run.config.objective.num_samples,
        "estimator": BOUNDS[setting.run.config.objective.name],
        **measured._asdict(),
    }


def active_units(setting: Setting) -> Result:
    """Active units of z and the KL of each inner latent: App. D.2."""
    key = setting.key("active_units")
    measured = evaluation.active_units(
        setting.run.experiment.model, setting.params, key, setting.split.examples
    )
    return {
        "value": measured.num_active,
        "stderr": None,
        "num_samples": 1,
        "estimator": f"Var_x(E[z_j|x]) > {measured.threshold}; kl_per_unit: nats, "
        "mean over examples and one z ~ q(z|x) each of KL(q(zeta_j|z) || N(0, 1))",
        "variance": measured.variance,
        "kl_per_unit": np.sort(measured.kl)[::-1],
    }


def ols(setting: Setting) -> Result:
    """OLS regression of the true angle on the polar angle: Table 1."""
    if setting.run.experiment.dataset.target_kind != "angle":
        raise cli.UserError("ols wants a data set with angles, such as the pendulum")
    model, examples = setting.run.experiment.model, setting.split.examples
    codes = evaluation.encode_dataset(model, setting.params, examples)
    fit = evaluation.regress_angle(codes.mean, setting.split.targets)
    residual = np.abs(setting.split.targets - fit.fitted)
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


def neighbours(setting: Setting) -> Result:
    """Whether the labels lie apart in latent space: Sec. 4.2."""
    if setting.run.experiment.dataset.target_kind != "label":
        raise cli.UserError("neighbours wants a data set with labels")
    model, split = setting.run.experiment.model, setting.split
    codes = evaluation.encode_dataset(model, setting.params, split.examples)
    accuracy = evaluation.neighbour_accuracy(codes.mean, split.targets)
    train = setting.run.experiment.dataset.measured("train")
    seen = evaluation.encode_dataset(model, setting.params, train.examples)
    by_training = evaluation.neighbour_accuracy(
        codes.mean, split.targets, reference=(seen.mean, train.targets)
    )
    return {
        "value": accuracy,
        "by_training": by_training,
        "stderr": math.sqrt(accuracy * (1.0 - accuracy) / len(split.targets)),
        "num_samples": 1,
        "estimator": "leave-one-out accuracy of a vote of 5 nearest posterior means; "
        "by_training: of the 5 nearest of the training split",
    }


def prior_match(setting: Setting) -> Result:
    """Whether the prior is the aggregated posterior: Sec. 2.1, Fig. 5."""
    model, examples = setting.run.experiment.model, setting.split.examples
    key_prior, key_posterior = jax.random.split(setting.key("prior_match"))
    codes = evaluation.encode_dataset(model, setting.params, examples)
    noise = jax.random.normal(key_posterior, codes.mean.shape)
    posterior = codes.mean + codes.scale * np.asarray(noise)
    prior = evaluation.sample_prior(model, setting.params, key_prior, len(examples))
    score = evaluation.compare_samples(prior, posterior)
    return {
        "value": score.accuracy,
        "stderr": score.accuracy_stderr,
        "num_samples": len(examples),
        "estimator": "leave-one-out accuracy of a 5-nearest-neighbour classifier of "
        "prior against aggregated posterior; 0.5 where they agree",
        "squared_maximum_mean_discrepancy": score.discrepancy,
    }


NUM_GRAPHS, PAIRS_PER_GRAPH = 10, 100  # of Fig. 8
NUM_POINTS = 100  # that a path is resampled to


def smoothness(setting: Setting) -> Result:
    """Movement smoothness factor of random interpolations: Fig. 8."""
    experiment, params = setting.run.experiment, setting.params
    dataset, model = experiment.dataset, experiment.model
    if dataset.motion is None or dataset.standardisation is None:
        raise cli.UserError("smoothness wants a data set of motions, such as cmu_vhp's")
    codes = evaluation.encode_dataset(model, params, setting.split.examples).mean
    generator = np.random.default_rng(setting.seed)
    paths, bridges = [], []
    for key in jax.random.split(setting.key("smoothness"), NUM_GRAPHS):
        latent_graph, num_bridges = setting.run.prior_graph(params, key)
        pairs = [
            generator.choice(len(codes), 2, replace=False)
            for _ in range(PAIRS_PER_GRAPH)
        ]
        starts, ends = codes[np.transpose(pairs)]
        found = graph.shortest_paths(latent_graph, starts, ends)
        paths += [path.points for path in found]
        bridges.append(num_bridges)
    joints, units = dataset.motion.joints, dataset.standardisation.scale  # degrees

    def factors(num_points: int | None) -> Result:
        """Over paths and joints, with the spread over paths."""
        by_joint = evaluation.smoothness(
            model, params, paths, joints, units, num_points
        )
        by_graph = by_joint.reshape(NUM_GRAPHS, -1).mean(axis=1)
        return {
            "value": by_graph.mean(),
            "stderr": by_graph.std(ddof=1) / math.sqrt(NUM_GRAPHS),
            "joint_mean": by_joint.mean(axis=0),
            "joint_deviation": by_joint.std(axis=0, ddof=1),
        }

    return {
        **factors(NUM_POINTS),
        "num_samples": len(paths),
        "estimator": "RMS second difference of joint angles, degrees per squared step, "
        f"paths resampled to {NUM_POINTS} points; mean over joints and paths",
        "joints": list(joints),
        "raw": factors(None),
        "raw_estimator": "the same of the paths as the graph gives them (the paper's)",
        "mean_path_points": np.mean([len(path) for path in paths]),
        "mean_bridges": np.mean(bridges),
    }


NUM_PAIRS, NUM_FRAMES = 20, 20  # of `interpolation`


def interpolation(setting: Setting) -> Result:
    """Steps and sharpness of images along graph paths and straight lines: Sec. 4.4."""
    dataset, model = setting.run.experiment.dataset, setting.run.experiment.model
    if dataset.motion is not None or dataset.test.examples.ndim < 3:
        raise cli.UserError("interpolation wants images; of motions see smoothness")
    codes = evaluation.encode_dataset(model, setting.params, setting.split.examples)
    latent_graph, num_bridges = setting.run.prior_graph(
        setting.params, setting.key("interpolation")
    )
    generator = np.random.default_rng(setting.seed)
    pairs = np.array(
        [generator.choice(len(codes.mean), 2, replace=False) for _ in range(NUM_PAIRS)]
    )
    ends = codes.mean[pairs]  # [P, 2, D]
    found = graph.shortest_paths(latent_graph, ends[:, 0], ends[:, 1])
    view = views.view(dataset)

    def measured(paths: Sequence[np.ndarray]) -> Result:
        """Of paths resampled to as many points each."""
        points = np.stack([graph.resample_path(path, NUM_FRAMES) for path in paths])
        rows = points.reshape(-1, points.shape[2])
        frames = view.frames(evaluation.decode(model, setting.params, rows))
        frames = frames.reshape(*points.shape[:2], *frames.shape[1:])
        quality = evaluation.path_quality(frames)._asdict()
        return {
            name: {
                "mean": values.mean(),
                "stderr": values.std(ddof=1) / math.sqrt(len(values)),
            }
            for name, values in quality.items()
        } | {"view_error_degrees": _view_error(setting, frames, pairs)}

    along_graph = measured([path.points for path in found])
    some = np.linspace(0, len(codes.mean) - 1, min(len(codes.mean), 1_000)).astype(int)
    images = view.frames(setting.split.examples[some])[None]
    return {
        "value": along_graph["largest_step"]["mean"],
        "stderr": along_graph["largest_step"]["stderr"],
        "num_samples": NUM_PAIRS,
        "estimator": "largest RMS step between neighbouring frames, per pixel, mean "
        f"over pairs; paths of {NUM_FRAMES} points",
        "graph": along_graph,
        "straight": measured(list(ends)),
        "sharpness_of_the_data": evaluation.path_quality(images).sharpness[0],
        "num_bridges": num_bridges,
    }


def _view_error(
    setting: Setting, frames: np.ndarray, pairs: np.ndarray
) -> float | None:
    """How far the view is from turning evenly along a path, degrees; None without.

    The view of a frame is that of the training image nearest to it.
    """
    dataset = setting.run.experiment.dataset
    if dataset.target_kind != "view":
        return None
    train = dataset.train.examples.reshape(len(dataset.train.examples), -1)
    flat = frames.reshape(-1, train.shape[1]).astype(np.float32)
    squares = np.square(train).sum(axis=1)
    nearest = [np.argmin(squares - 2.0 * train @ frame) for frame in flat]
    seen = dataset.train.targets[nearest].reshape(frames.shape[:2])
    start, end = setting.split.targets[pairs].T[:, :, None]
    turn = (end - start + math.pi) % (2.0 * math.pi) - math.pi  # the short way round
    wanted = start + turn * np.linspace(0.0, 1.0, frames.shape[1])
    error = (seen - wanted + math.pi) % (2.0 * math.pi) - math.pi
    return float(np.rad2deg(np.sqrt(np.square(error).mean())))


METRICS: dict[str, Callable[[Setting], Result]] = {
    "nll": nll,
    "rate_distortion": rate_distortion,
    "active_units": active_units,
    "ols": ols,
    "neighbours": neighbours,
    "prior_match": prior_match,
    "smoothness": smoothness,
    "interpolation": interpolation,
}
