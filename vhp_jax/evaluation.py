"""Measures of a trained model: likelihood, rates, angles, neighbours, smoothness.

Everything heavy is one compiled program per batch of examples; everything returned is
NumPy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
from scipy.spatial.distance import cdist, pdist

from vhp_jax import devices, graph
from vhp_jax.distributions import kl_to_standard_normal
from vhp_jax.model import VAE
from vhp_jax.objectives import Objective, joint_log_weights
from vhp_jax.priors import HierarchicalPrior
from vhp_jax.types import Examples, Latents, Params, PerExample, PRNGKey

P = ParamSpec("P")
T = TypeVar("T")


def _in_full_precision(measure: Callable[P, T]) -> Callable[P, T]:
    """No TF32 or bfloat16 in matrix products, whatever the device's default is."""

    @functools.wraps(measure)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return measure(*args, **kwargs)

    return wrapped


class Encodings(NamedTuple):
    """Posterior of z for every example.

    Attributes:
      mean: float32 [N, D].
      scale: float32 [N, D], standard deviations.
    """

    mean: np.ndarray
    scale: np.ndarray


def _batches(x: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one shape (the last one padded) with their counts."""
    for start in range(0, len(x), batch_size):
        batch = np.asarray(x[start : start + batch_size])
        count = len(batch)
        if count < batch_size:
            padding = np.repeat(batch[:1], batch_size - count, axis=0)
            batch = np.concatenate([batch, padding])
        yield batch, count


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VAE, params: Params, x: Examples) -> tuple[Array, Array]:
    q_z = model.encode(params, x)
    return q_z.mean, q_z.scale


@_in_full_precision
def encode_dataset(
    model: VAE, params: Params, x: np.ndarray, batch_size: int = 1000
) -> Encodings:
    """Means and standard deviations of q(z|x), float32 [N, D] each."""
    parts = []
    for batch, count in _batches(x, min(batch_size, len(x))):
        mean, scale = _encode(model, params, batch)
        parts.append((np.asarray(mean)[:count], np.asarray(scale)[:count]))
    return Encodings(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@_in_full_precision
def sample_prior(model: VAE, params: Params, key: PRNGKey, num: int) -> np.ndarray:
    """Draws z ~ p(z), float32 [num, D]; ancestral, zeta first: Eqs. 8, 14."""
    return np.asarray(model.prior.sample(params, key, num))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(model: VAE, params: Params, z: Latents) -> Array:
    return model.reconstruct(params, z)


@_in_full_precision
def decode(
    model: VAE, params: Params, z: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """E[x|z], float32 [N, X], flattened examples as the model sees them.

    Args:
      model: the model.
      params: its parameters.
      z: [N, D].
      batch_size: rows per compiled call, always, so that a point is decoded alike in
        any company and any number of points compiles once.
    """
    z = np.asarray(z, np.float32)
    parts = [
        np.asarray(_reconstruct(model, params, batch))[:count]
        for batch, count in _batches(z, batch_size)
    ]
    return np.concatenate(parts)


def prior_graph(
    model: VAE, params: Params, key: PRNGKey, num_nodes: int, num_neighbours: int
) -> tuple[graph.LatentGraph, int]:
    """The graph over prior samples that interpolations run along: Sec. 2.3.

    Args:
      model: the model.
      params: its parameters.
      key: PRNG key of the samples.
      num_nodes: samples of the prior.
      num_neighbours: that each of them is joined to.

    Returns:
      The graph, and the number of bridges that joined its components.

    Raises:
      ValueError: see `graph.build_graph`.
    """
    nodes = sample_prior(model, params, key, num_nodes)
    built = graph.build_graph(nodes, num_neighbours)
    return graph.bridge_components(built), len(built.component_sizes) - 1


class RateDistortion(NamedTuple):
    """Means over a data set, with the standard errors of those means.

    Attributes:
      distortion: -log p(x|z), nats per example.
      distortion_stderr: its standard error.
      rate: F of Eq. 9, nats per example.
      rate_stderr: its standard error.
      bound_stderr: standard error of distortion + rate, which share their draws.
      constraint: mean of C.
    """

    distortion: float
    distortion_stderr: float
    rate: float
    rate_stderr: float
    bound_stderr: float
    constraint: float


@functools.partial(jax.jit, static_argnums=0)
def _terms(objective: Objective, params: Params, key: PRNGKey, x: Examples) -> Array:
    return jnp.stack(objective(params, key, x))


@_in_full_precision
def rate_distortion(
    objective: Objective,
    params: Params,
    key: PRNGKey,
    x: np.ndarray,
    batch_size: int = 500,
) -> RateDistortion:
    """Rate, distortion and constraint with one z per example.

    Args:
      objective: of the model, without dropout.
      params: its parameters.
      key: PRNG key, folded in with the batch number.
      x: float32 [N, *example].
      batch_size: examples per compiled call.
    """
    parts = [
        np.asarray(_terms(objective, params, jax.random.fold_in(key, index), batch))[
            :, :count
        ]
        for index, (batch, count) in enumerate(_batches(x, min(batch_size, len(x))))
    ]
    terms = np.concatenate(parts, axis=1).astype(np.float64)  # [3, N]
    mean = terms.mean(axis=1)
    terms[2] = terms[0] + terms[1]
    stderr = terms.std(axis=1, ddof=1) / math.sqrt(terms.shape[1])
    return RateDistortion(mean[0], stderr[0], mean[1], stderr[1], stderr[2], mean[2])


class ActiveUnits(NamedTuple):
    """How many latent dimensions carry information.

    Attributes:
      variance: float64 [D], Var_x(E[z_j|x]); a unit is active above `threshold`.
      kl: float64 [D], mean over x and one z ~ q(z|x) each of KL(q(zeta_j|z) || N(0, 1))
        in nats: in expectation an upper bound on that of q(zeta_j|x), which App. D.2
        has. For a prior without zeta E_x KL(q(z_j|x) || N(0, 1)).
      num_active: units of z with a variance above the threshold.
      threshold: 0.01 as in Burda et al. (2015).
    """

    variance: np.ndarray
    kl: np.ndarray
    num_active: int
    threshold: float


@functools.partial(jax.jit, static_argnums=0)
def _inner_kl(
    model: VAE, params: Params, key: PRNGKey, x: Examples
) -> Float[Array, "B D"]:
    q_z = model.encode(params, x)
    if isinstance(model.prior, HierarchicalPrior):
        q_zeta = model.prior.posterior(params, q_z.sample(key))
        return kl_to_standard_normal(q_zeta.mean, jnp.asarray(q_zeta.log_scale))
    return kl_to_standard_normal(q_z.mean, jnp.asarray(q_z.log_scale))


@_in_full_precision
def active_units(
    model: VAE,
    params: Params,
    key: PRNGKey,
    x: np.ndarray,
    batch_size: int = 1000,
    threshold: float = 0.01,
) -> ActiveUnits:
    """Active units of z by variance, and KL of each inner latent: App. D.2."""
    variance = encode_dataset(model, params, x, batch_size).mean.astype(np.float64)
    variance = variance.var(axis=0)
    kl = np.concatenate(
        [
            np.asarray(_inner_kl(model, params, jax.random.fold_in(key, i), batch))[:n]
            for i, (batch, n) in enumerate(_batches(x, min(batch_size, len(x))))
        ]
    ).astype(np.float64)
    return ActiveUnits(
        variance, kl.mean(axis=0), int((variance > threshold).sum()), threshold
    )


# --- The angle of the pendulum -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RingRegression:
    """OLS regression of the true angle on the polar angle of the encodings.

    Attributes:
      error: mean absolute residual in radians over the whole circle (Table 1).
      centre: float64 [D], centre of the least-squares circle.
      radius: its radius.
      slope: radians of true angle per radian of polar angle; +-1 for a closed ring.
      intercept: radians.
      polar: float64 [N], unwrapped polar angle in the order of the input.
      fitted: float64 [N], slope * polar + intercept.
      winding: turns of the encodings about the centre in one turn of the pendulum;
        +-1 for a ring that closes once.
      largest_gap: largest distance between neighbours on the mean curve (the encodings
        averaged in 90 equal intervals of the angle) over the mean distance.
      crossings: number of times that closed curve crosses itself.
    """

    error: float
    centre: np.ndarray
    radius: float
    slope: float
    intercept: float
    polar: np.ndarray
    fitted: np.ndarray
    winding: float
    largest_gap: float
    crossings: int


def fit_circle(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares circle through points [N, 2] (Kasa): |p|^2 = 2 c.p + (r^2 - |c|^2).

    Linear, hence unique. Of points on a circle an uneven density along it does not move
    the centre, as it moves their mean; of an oval it does, a little: by 5 % of the
    radius where the axes are 1.1 and 0.9 and one half has four fifths of the points.
    """
    points = np.asarray(points, np.float64)
    design = np.column_stack([2.0 * points, np.ones(len(points))])
    solution, *_ = np.linalg.lstsq(design, np.square(points).sum(axis=1), rcond=None)
    centre = solution[:2]
    return centre, math.sqrt(max(solution[2] + centre @ centre, 0.0))


def regress_angle(encodings: np.ndarray, angles: np.ndarray) -> RingRegression:
    """Table 1: how well the polar angle of a 2-d encoding predicts the true angle.

    The encodings are put in the order of the true angle, their polar angle about the
    centre of the least-squares circle is unwrapped along that order, and the true angle
    is regressed on it with slope and intercept free, so that the orientation and the
    starting point of the ring do not matter.

    Args:
      encodings: [N, 2] posterior means.
      angles: [N] true joint angles in [0, 2 pi).

    Raises:
      ValueError: shapes do not fit, fewer than 3 examples, or values not finite.
    """
    encodings = np.asarray(encodings, np.float64)
    angles = np.asarray(angles, np.float64)
    if encodings.ndim != 2 or encodings.shape[1] != 2:
        raise ValueError(f"encodings must have shape [N, 2], got {encodings.shape}")
    if angles.shape != encodings.shape[:1]:
        raise ValueError(
            f"angles must have shape {encodings.shape[:1]}, got {angles.shape}"
        )
    if not np.isfinite(encodings).all():
        index = int(np.argmin(np.isfinite(encodings).all(axis=1)))
        raise ValueError(f"encodings must be finite, row {index} is {encodings[index]}")
    if not np.isfinite(angles).all():
        index = int(np.argmin(np.isfinite(angles)))
        raise ValueError(f"angles must be finite, number {index} is {angles[index]}")
    if len(angles) < 3:
        raise ValueError(f"a circle wants at least 3 examples, got {len(angles)}")
    order = np.argsort(angles, kind="stable")
    ring, angle = encodings[order], angles[order]
    centre, radius = fit_circle(ring)
    polar = np.unwrap(np.arctan2(*(ring - centre).T[::-1]))
    design = np.column_stack([polar, np.ones_like(polar)])
    (slope, intercept), *_ = np.linalg.lstsq(design, angle, rcond=None)
    fitted = design @ np.array([slope, intercept])
    closing = (polar[0] - polar[-1] + math.pi) % (2.0 * math.pi) - math.pi
    curve = _mean_curve(ring, angle)
    steps = np.linalg.norm(np.diff(curve, axis=0, append=curve[:1]), axis=1)
    inverse = np.argsort(order, kind="stable")
    return RingRegression(
        error=float(np.abs(angle - fitted).mean()),
        centre=centre,
        radius=radius,
        slope=float(slope),
        intercept=float(intercept),
        polar=polar[inverse],
        fitted=fitted[inverse],
        winding=float((polar[-1] - polar[0] + closing) / (2.0 * math.pi)),
        largest_gap=float(steps.max() / max(steps.mean(), np.finfo(float).tiny)),
        crossings=count_crossings(curve),
    )


def _mean_curve(ring: np.ndarray, angle: np.ndarray, bins: int = 90) -> np.ndarray:
    """Mean encoding in each interval of the angle, so that noise makes no crossings."""
    where = np.minimum((angle / (2.0 * math.pi) * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    sums = np.stack([np.bincount(where, axis, bins) for axis in ring.T], axis=1)
    return sums[count > 0] / count[count > 0, None]


def count_crossings(polygon: np.ndarray) -> int:
    """Times the closed polygon through `polygon` [N, 2] crosses itself."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    side = end - start

    def orientation(points: np.ndarray) -> np.ndarray:
        """Sign of each point against each side, [side, point]."""
        offset = points[None] - start[:, None]
        return np.sign(
            side[:, None, 0] * offset[..., 1] - side[:, None, 1] * offset[..., 0]
        )

    apart = orientation(start) * orientation(end) < 0  # [i, j]: i's line splits j
    crossing = apart & apart.T
    return int(np.triu(crossing, 2).sum())


# --- Neighbourhoods of the latent space ----------------------------------------------


def neighbour_accuracy(
    points: np.ndarray,
    labels: np.ndarray,
    num_neighbours: int = 5,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Accuracy of a vote among the nearest neighbours.

    Args:
      points: [N, D], usually posterior means.
      labels: int [N], from 0.
      num_neighbours: who vote; among labels with as many votes the nearest voter's
        wins.
      reference: points [M, D] and labels [M] that vote; None: all `points` but the one
        in question (leave-one-out).

    Returns:
      Share of points whose label is that of the vote.

    Raises:
      ValueError: shapes do not fit, points are not finite or too few.
    """
    points, labels = np.asarray(points, np.float64), np.asarray(labels)
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"labels must have shape {points.shape[:1]}, got {labels.shape}"
        )
    if reference is None:
        votes = labels[graph.nearest_neighbours(points, num_neighbours)]  # [N, k]
    else:
        nearest = graph.nearest_neighbours(reference[0], num_neighbours, points)
        votes = np.asarray(reference[1])[nearest]
    # A nearer voter counts more than all further ones together, and all of them
    # together less than a vote.
    weights = 1.0 + 0.25 * 0.5 ** np.arange(num_neighbours)
    known = np.unique(votes)
    counts = ((votes[:, :, None] == known) * weights[:, None]).sum(axis=1)
    return float((known[counts.argmax(axis=1)] == labels).mean())


class TwoSampleScore(NamedTuple):
    """How far two samples are from being of one distribution.

    Attributes:
      accuracy: leave-one-out accuracy of a 5-nearest-neighbour classifier that tells
        the samples apart; 1/2 where nothing does, 1 where they lie apart.
      accuracy_stderr: standard error, as of a binomial share.
      discrepancy: squared maximum mean discrepancy, Gaussian kernel, bandwidth at the
        median distance (of 2,000 points at most); unbiased, hence sometimes below 0.
    """

    accuracy: float
    accuracy_stderr: float
    discrepancy: float


def compare_samples(first: np.ndarray, second: np.ndarray) -> TwoSampleScore:
    """Two-sample scores, for a prior against the aggregated posterior.

    The classifier test is that of Lopez-Paz and Oquab (2017), the discrepancy the
    U-statistic of Gretton et al. (2012), Eq. 3. Neither depends on the scale of space.

    Args:
      first: [N, D], finite, N > 5.
      second: [N, D], as many, so that a guess is right half of the time.

    Raises:
      ValueError: shapes differ or values are not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"samples must have one shape [N, D], got {first.shape} and {second.shape}"
        )
    num = len(first)
    pooled = np.concatenate([first, second])
    labels = np.repeat([0, 1], num)
    accuracy = neighbour_accuracy(pooled, labels)
    some = pooled[np.linspace(0, 2 * num - 1, min(2 * num, 2_000)).astype(int)]
    bandwidth = max(np.median(pdist(some, "sqeuclidean")), np.finfo(float).tiny)

    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        """Of all pairs, in blocks of rows."""
        rows = range(0, len(a), 500)
        blocks = (cdist(a[row : row + 500], b, "sqeuclidean") for row in rows)
        return sum(float(np.exp(-block / bandwidth).sum()) for block in blocks)

    # A point's kernel with itself is 1.
    within = kernel_sum(first, first) + kernel_sum(second, second) - 2 * num
    across = kernel_sum(first, second)
    return TwoSampleScore(
        accuracy,
        math.sqrt(accuracy * (1.0 - accuracy) / (2 * num)),
        float(within / (num * (num - 1)) - 2.0 * across / num**2),
    )


# --- Smoothness of interpolations ----------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _second_differences(
    model: VAE,
    params: Params,
    points: Float[Array, "P L D"],
    lengths: Int[Array, "P"],
    units: Float[Array, "features"],
) -> Float[Array, "P features"]:
    """Mean squared second difference of each feature along each decoded path."""
    frames = model.decode(params, points).mean * units[None, None]  # [P, L, features]
    second = frames[:, 2:] - 2.0 * frames[:, 1:-1] + frames[:, :-2]
    inside = jnp.arange(second.shape[1])[None] < lengths[:, None] - 2  # [P, L - 2]
    total = jnp.sum(jnp.where(inside[:, :, None], jnp.square(second), 0.0), axis=1)
    return total / (lengths[:, None] - 2).astype(total.dtype)


@_in_full_precision
def smoothness(
    model: VAE,
    params: Params,
    paths: Sequence[np.ndarray],
    joints: Mapping[str, Sequence[int]],
    units: np.ndarray,
    num_points: int | None = None,
) -> np.ndarray:
    """Movement smoothness factor of interpolations: Sec. 4.2, Fig. 8; less is smoother.

    The RMS of the second-order finite difference along the decoded path, over its inner
    points and the columns of a joint. All paths are decoded by one compiled program.

    Args:
      model: the VAE.
      params: its parameters.
      paths: points in latent space, each [L, D] with L >= 3.
      joints: for each joint its columns in a decoded frame.
      units: [features], factor from the units of the data to those wanted.
      num_points: the paths are first resampled to so many points, evenly by arc length,
        so that a path is not the smoother for passing more nodes; None: as they are,
        which is the paper's measure.

    Returns:
      float64 [paths, joints], in the units wanted per squared step.

    Raises:
      ValueError: a path has fewer than 3 points.
    """
    if num_points is not None:
        paths = [graph.resample_path(path, num_points) for path in paths]
    lengths = np.array([len(path) for path in paths])
    if lengths.min() < 3:
        raise ValueError(f"a path wants at least 3 points, got {lengths.min()}")
    # Padded to a multiple of 32, so that few lengths are compiled for.
    longest = -(-lengths.max() // 32) * 32 if num_points is None else num_points
    points = np.stack(
        [np.pad(path, [(0, longest - len(path)), (0, 0)], "edge") for path in paths]
    )
    squares = _second_differences(
        model,
        params,
        jnp.asarray(points, jnp.float32),
        jnp.asarray(lengths),
        jnp.asarray(units, jnp.float32),
    )
    squares = np.asarray(squares, np.float64)
    columns = [squares[:, list(joint)].mean(axis=1) for joint in joints.values()]
    return np.sqrt(np.stack(columns, axis=1))


class PathQuality(NamedTuple):
    """Figures of merit of decoded paths of images, float64 [P] each.

    Attributes:
      mean_step: mean RMS difference of neighbouring frames, per pixel.
      largest_step: largest of them; on an even path as large as the mean one.
      sharpness: mean length of the frames' brightness gradient, per pixel; blurred
        frames have less than images of the data.
    """

    mean_step: np.ndarray
    largest_step: np.ndarray
    sharpness: np.ndarray


def path_quality(frames: np.ndarray) -> PathQuality:
    """Measures decoded paths: Figs. 9, 10, 22 and 23 in numbers.

    Args:
      frames: [P, L, H, W] or [P, L, H, W, C] in path order, L >= 2.

    Raises:
      ValueError: another number of axes or fewer than 2 frames.
    """
    frames = np.asarray(frames, np.float64)
    if frames.ndim not in (4, 5) or frames.shape[1] < 2:
        raise ValueError(f"frames must be [P, L >= 2, H, W, ...], got {frames.shape}")
    pixels = tuple(range(2, frames.ndim))
    steps = np.sqrt(np.square(np.diff(frames, axis=1)).mean(axis=pixels))  # [P, L - 1]
    down, right = (np.diff(frames, axis=axis) for axis in (2, 3))
    gradient = np.hypot(down[:, :, :, :-1], right[:, :, :-1])
    return PathQuality(
        steps.mean(axis=1), steps.max(axis=1), gradient.mean(axis=(1, *pixels))
    )


# --- Importance-sampled log-likelihood -----------------------------------------------


class LogLikelihood(NamedTuple):
    """Importance-sampled log p(x) of each example, with its diagnostics.

    Attributes:
      log_likelihood: float64 [N], nats; in expectation a lower bound. -inf where no
        sample's weight can be told from 0 in float32.
      effective_sample_size: float64 [N], (sum w)^2 / sum w^2, between 1 and S; nan
        where all weights are 0.
      pareto_k: float64 [N], shape of the tail of the weights (Vehtari et al., 2024);
        above 0.7 the estimate is not to be trusted.
      num_samples: S.
    """

    log_likelihood: np.ndarray
    effective_sample_size: np.ndarray
    pareto_k: np.ndarray
    num_samples: int


class _WeightSums(NamedTuple):
    """Streamed log sum w, log sum w^2 and the largest weights."""

    log_sum: PerExample
    log_sum_squares: PerExample
    largest: Float[Array, "B M"]


def tail_size(num_samples: int) -> int:
    """Number of largest weights in the Pareto fit: min(S / 5, 3 sqrt(S))."""
    return max(1, min(num_samples // 5, math.ceil(3.0 * math.sqrt(num_samples))))


@functools.partial(jax.jit, static_argnames=("model", "num_samples", "chunk_size"))
def _weight_sums(
    model: VAE,
    params: Params,
    keys: Key[Array, "B"],
    x: Examples,
    num_samples: int,
    chunk_size: int,
) -> _WeightSums:
    """Streams `num_samples` joint weights of a batch through a scan."""
    batch = x.shape[0]
    kept = tail_size(num_samples) + 1  # the one below the tail is the cut-off
    pixels = x.reshape(batch, -1)
    q_z = model.encode(params, x)  # once for all samples
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    sound = jnp.stack(finite).all()  # else nan stays, which is a fault to be seen

    def absorb(sums: _WeightSums, samples: Int[Array, "S"]) -> _WeightSums:
        # A key for each pair (example, sample): the draws do not depend on how
        # examples are batched nor on how samples are chunked.
        sample_keys = jax.vmap(
            lambda sample: jax.vmap(lambda key: jax.random.fold_in(key, sample))(keys)
        )(samples)
        log_w = joint_log_weights(model, params, sample_keys, q_z, pixels)
        # Draws so far out that float32 overflows, as of outliers, weigh nothing.
        log_w = jnp.where(jnp.isnan(log_w) & sound, -jnp.inf, log_w)
        candidates = jnp.concatenate([sums.largest, log_w.T], axis=1)
        return _WeightSums(
            jnp.logaddexp(sums.log_sum, jax.nn.logsumexp(log_w, axis=0)),
            jnp.logaddexp(sums.log_sum_squares, jax.nn.logsumexp(2.0 * log_w, axis=0)),
            lax.top_k(candidates, kept)[0],
        )

    empty = jnp.full((batch,), -jnp.inf)
    sums = _WeightSums(empty, empty, jnp.full((batch, kept), -jnp.inf))
    num_chunks, rest = divmod(num_samples, chunk_size)
    chunks = jnp.arange(num_chunks * chunk_size).reshape(num_chunks, chunk_size)
    sums, _ = lax.scan(lambda sums, chunk: (absorb(sums, chunk), None), sums, chunks)
    if rest:
        sums = absorb(sums, jnp.arange(num_chunks * chunk_size, num_samples))
    return sums


@jax.jit
def _example_keys(key: PRNGKey, examples: Int[Array, "B"]) -> Key[Array, "B"]:
    """A key for each example, by its position in the whole set."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, examples)


@_in_full_precision
def log_likelihood(
    model: VAE,
    params: Params,
    key: PRNGKey,
    x: np.ndarray,
    num_samples: int = 5000,
    batch_size: int = 100,
    chunk_size: int = 10,
    first: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    mesh: Mesh | None = None,
) -> LogLikelihood:
    """Log p(x) = log E_q[w] estimated with S joint samples per example (Table 2).

    Each example is encoded once; samples are drawn on the device in chunks, weighed,
    and streamed into a log-sum-exp, in float32 and at the highest matrix-product
    precision. Memory does not grow with S nor with N; one host sync a batch. Each batch
    is shared out over the devices of a mesh.

    Args:
      model: the VAE.
      params: its parameters.
      key: PRNG key; example i of the whole set uses fold_in(key, i), so that the result
        does not depend on how the set is cut.
      x: float32 [N, *example].
      num_samples: S.
      batch_size: examples per compiled call, rounded up to a multiple of the devices.
      chunk_size: samples per example and step of the inner scan.
      first: position of x[0] in the whole set, where x is a part of it.
      progress: called with the number of examples done, after each batch.
      mesh: from `devices.make_mesh`; None for all devices of this process. Where it
        spans processes all of them call this, with the same x; the parameters and the
        key are process 0's.

    Raises:
      ValueError: x holds a value that is not finite (the first example is named).
    """
    finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        index = first + int(np.argmin(finite))
        raise ValueError(f"x must be finite, example {index} is not")
    mesh = devices.local_mesh() if mesh is None else mesh
    batch_size, chunk_size = min(batch_size, len(x)), min(chunk_size, num_samples)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params, key = devices.replicate((params, key), mesh)
    parts = []
    done = 0
    for batch, count in _batches(x, batch_size):
        numbers = np.arange(first + done, first + done + batch_size, dtype=np.int32)
        keys = _example_keys(key, devices.place(numbers, mesh))
        placed = devices.place(batch, mesh)
        sums = _weight_sums(model, params, keys, placed, num_samples, chunk_size)
        if devices.spans_processes(mesh):
            sums = jax.device_put(sums, devices.whole(mesh))
        parts.append([np.asarray(field, np.float64)[:count] for field in sums])
        done += count
        progress(done)
    log_sum, log_sum_squares, largest = (
        np.concatenate(field) for field in zip(*parts, strict=True)
    )
    log_size = np.full_like(log_sum, np.nan)
    np.subtract(2.0 * log_sum, log_sum_squares, log_size, where=np.isfinite(log_sum))
    return LogLikelihood(
        log_sum - math.log(num_samples),
        np.exp(log_size),
        pareto_k(largest),
        num_samples,
    )


def pareto_k(largest: np.ndarray) -> np.ndarray:
    """Shape of the generalised Pareto tail of importance weights.

    The estimator of Zhang & Stephens (2009) on the weights above a cut-off, shrunk to
    0.5 as if by ten more observations, as in PSIS (Vehtari et al., 2024, App. C).

    Args:
      largest: float64 [N, M + 1], largest log-weights in descending order; the last one
        is the cut-off.

    Returns:
      float64 [N]; nan where the tail has fewer than 5 weights or no spread.
    """
    num_tail = largest.shape[1] - 1
    if num_tail < 5:
        return np.full(len(largest), np.nan)
    top = largest[:, :1]
    weights = np.exp(largest - np.where(np.isfinite(top), top, 0.0))
    excess = (weights[:, :-1] - weights[:, -1:])[:, ::-1]  # ascending, [N, M]
    spread = excess[:, -1] > 0.0
    excess = np.where(spread[:, None], excess, np.linspace(0.1, 1.0, num_tail))
    # Profile posterior over b = k / sigma on a grid spread by quantiles of the data.
    grid = 30 + int(math.sqrt(num_tail))
    quartile = excess[:, int(num_tail / 4 + 0.5) - 1, None]
    quartile = np.maximum(quartile, np.finfo(float).tiny)
    spacing = 1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = spacing / (3.0 * quartile) + 1.0 / excess[:, -1:]  # [N, grid]
    k = np.log1p(-b[:, :, None] * excess[:, None, :]).mean(axis=2)
    profile = num_tail * (np.log(-b / k) - k - 1.0)
    posterior = np.exp(profile - profile.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    b_mean = (b * posterior).sum(axis=1)
    shape = np.log1p(-b_mean[:, None] * excess).mean(axis=1)
    shape = (num_tail * shape + 10.0 * 0.5) / (num_tail + 10.0)
    return np.where(spread, shape, np.nan)
