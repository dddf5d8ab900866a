"""Likelihoods against known ones, diagnostics against NumPy, rings of known error."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from tests.linear_gaussian import (
    MODELS,
    SIGMA,
    TRACES,
    Affine,
    B,
    C,
    S,
    V,
    W,
    affine,
    linear_params,
    log_evidence,
    numpy_affine,
)
from vhp_jax import evaluation
from vhp_jax.distributions import DiagonalNormal
from vhp_jax.evaluation import (
    _weight_sums,
    active_units,
    compare_samples,
    count_crossings,
    decode,
    encode_dataset,
    fit_circle,
    log_likelihood,
    neighbour_accuracy,
    pareto_k,
    path_quality,
    rate_distortion,
    regress_angle,
    sample_prior,
    smoothness,
    tail_size,
)
from vhp_jax.model import VAE
from vhp_jax.objectives import Terms
from vhp_jax.priors import StandardNormal
from vhp_jax.types import Params

SLOW = pytest.mark.slow

# --- A linear-Gaussian model with known log p(x) -------------------------------------

X = np.random.default_rng(0).normal(0.0, 1.0, (7, 3)).astype(np.float32)


def numpy_log_weights(params, key, num_samples):
    """Joint log-weights [S, 7] in float64 from the draws of `log_likelihood`."""

    def draw(example, sample):
        key_s = jax.random.fold_in(jax.random.fold_in(key, example), sample)
        key_z, key_zeta = jax.random.split(key_s)
        return jax.random.normal(key_z, (2,)), jax.random.normal(key_zeta, (2,))

    over_examples = jax.vmap(draw, in_axes=(0, None))
    over_samples = jax.jit(jax.vmap(over_examples, in_axes=(None, 0)))
    noise = over_samples(jnp.arange(len(X)), jnp.arange(num_samples))
    z_noise, zeta_noise = (np.asarray(part, np.float64) for part in noise)

    def log_normal(value, mean, scale):
        return stats.norm.logpdf(value, mean, scale).sum(axis=-1)

    mean, scale = numpy_affine(params.encoder, X)
    z = mean + scale * z_noise
    log_w = log_normal(X, *numpy_affine(params.decoder, z)) - log_normal(z, mean, scale)
    if not params.prior:
        return log_w + log_normal(z, 0.0, 1.0)
    mean, scale = numpy_affine(params.prior["encoder"], z)
    zeta = mean + scale * zeta_noise
    log_w += log_normal(z, *numpy_affine(params.prior["decoder"], zeta))
    return log_w + log_normal(zeta, 0.0, 1.0) - log_normal(zeta, mean, scale)


def estimate(name="hierarchical", x=X, exact=False, seed=0, **settings):
    settings = {"num_samples": 230, "batch_size": 3, "chunk_size": 50} | settings
    params = linear_params(name, exact)
    return log_likelihood(MODELS[name], params, jax.random.key(seed), x, **settings)


# --- Importance-sampled log-likelihood -----------------------------------------------

NAMES = ["hierarchical", pytest.param("standard", marks=SLOW)]


@pytest.mark.parametrize("name", NAMES)
def test_likelihood_and_diagnostics_equal_numpy_in_float64_on_the_same_draws(name):
    """Batches of 3 of 7 examples, chunks of 50 of 230 samples: both leave a rest."""
    result = estimate(name)
    log_w = numpy_log_weights(linear_params(name), jax.random.key(0), 230)
    wanted = logsumexp(log_w, axis=0) - math.log(230)
    np.testing.assert_allclose(result.log_likelihood, wanted, atol=1e-4)
    weights = np.exp(log_w - log_w.max(axis=0))
    ess = weights.sum(axis=0) ** 2 / np.square(weights).sum(axis=0)
    np.testing.assert_allclose(result.effective_sample_size, ess, rtol=1e-3)
    largest = np.sort(log_w, axis=0)[::-1][: tail_size(230) + 1].T
    np.testing.assert_allclose(result.pareto_k, pareto_k(largest), atol=1e-3)
    assert result.num_samples == 230
    assert all(field.dtype == np.float64 for field in result[:3])


@SLOW
@pytest.mark.parametrize("name", NAMES)
def test_likelihood_converges_to_the_known_log_p_x(name):
    truth, errors = log_evidence(name, X), []
    for num_samples in (250, 16_000):
        result = estimate(
            name, num_samples=num_samples, chunk_size=250, batch_size=7, seed=1
        )
        # The delta method: the error of log mean w is sqrt((S / ESS - 1) / S).
        stderr = np.sqrt(1.0 / result.effective_sample_size - 1.0 / num_samples)
        gap = np.abs(result.log_likelihood - truth)
        assert (gap < 4.0 * stderr + 1e-4).all()
        errors.append(np.sqrt(np.mean(gap**2)))
    assert (result.pareto_k < 0.7).all()
    assert errors[1] < 0.03
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", NAMES)
def test_exact_posteriors_give_log_p_x_and_a_full_effective_sample_size(name):
    result = estimate(name, exact=True)
    np.testing.assert_allclose(result.log_likelihood, log_evidence(name, X), atol=3e-5)
    np.testing.assert_allclose(result.effective_sample_size, 230.0, rtol=1e-3)


@SLOW
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("chunk_size", 1),
        ("chunk_size", 230),
        ("chunk_size", 1000),
        ("batch_size", 1),
        ("batch_size", 7),
        ("batch_size", 100),
    ],
)
def test_likelihood_depends_on_neither_chunk_size_nor_batch_size(setting, value):
    one, other = estimate(), estimate(**{setting: value})
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, atol=1e-4)
    np.testing.assert_allclose(
        one.effective_sample_size, other.effective_sample_size, rtol=1e-3
    )
    np.testing.assert_allclose(one.pareto_k, other.pareto_k, atol=1e-3)


def test_padding_of_the_last_batch_has_no_effect():
    """Six examples fill two batches; the seventh is padded and changes none of them."""
    one, other = estimate(), estimate(x=X[:6])
    for field, part in zip(one[:3], other[:3], strict=True):
        assert field.shape == (7,)
        np.testing.assert_array_equal(field[:6], part)


@SLOW
def test_likelihood_rises_with_the_samples_in_the_mean_and_stays_under_the_truth():
    params, truth = linear_params("hierarchical"), log_evidence("hierarchical", X)
    x = np.tile(X, (1200, 1))
    means = []
    for num_samples in (1, 8, 64):
        result = log_likelihood(
            MODELS["hierarchical"], params, jax.random.key(2), x, num_samples, 8400, 8
        )
        means.append(result.log_likelihood.reshape(1200, 7).mean(axis=1))
    means.append(np.full(1200, truth.mean()))
    for lower, upper in itertools.pairwise(means):
        gap = upper - lower
        assert gap.mean() > 5.0 * gap.std() / np.sqrt(len(gap))


def test_examples_and_runs_use_different_draws():
    same = np.repeat(X[:1], 3, axis=0)
    one, other = estimate(x=same), estimate(x=same, seed=1)
    values = np.concatenate([one.log_likelihood, other.log_likelihood])
    assert len(np.unique(values)) == 6
    np.testing.assert_array_equal(one.log_likelihood, estimate(x=same).log_likelihood)


@SLOW
def test_a_second_call_traces_nothing_and_progress_counts_examples():
    done = []
    estimate()
    TRACES.clear()
    estimate(seed=3, progress=done.append)
    assert TRACES == []
    assert done == [3, 6, 7]
    estimate(num_samples=231)
    assert TRACES != []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_example_that_is_not_finite_is_named(value):
    x = X.copy()
    x[4, 1] = value
    with pytest.raises(ValueError, match="x must be finite, example 4 is not"):
        estimate(x=x)


# --- Pareto tails --------------------------------------------------------------------


def test_an_outlier_beyond_float32_has_no_likelihood_and_harms_no_other():
    far = X.copy()
    far[2] = 1e30  # its square is infinite, and so is that of z
    found, wanted = estimate(x=far), estimate()
    others = np.arange(len(X)) != 2
    assert found.log_likelihood[2] == -np.inf
    assert np.isnan([found.effective_sample_size[2], found.pareto_k[2]]).all()
    for one, other in zip(found[:3], wanted[:3], strict=True):
        np.testing.assert_array_equal(one[others], other[others])


def test_draws_that_overflow_weigh_nothing(monkeypatch):
    """The others decide, and S counts them all."""
    original = evaluation.joint_log_weights

    def every_other(*arguments):
        log_w = original(*arguments)
        return jnp.where(jnp.arange(len(log_w))[:, None] % 2 == 0, log_w, jnp.nan)

    log_w = numpy_log_weights(linear_params("hierarchical"), jax.random.key(0), 200)
    kept = log_w.reshape(-1, 50, len(X))[:, ::2].reshape(-1, len(X))
    wanted = logsumexp(kept, axis=0) - math.log(200)
    jax.clear_caches()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "joint_log_weights", every_other)
        found = estimate(num_samples=200)
    jax.clear_caches()
    np.testing.assert_allclose(found.log_likelihood, wanted, atol=1e-4)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_finds_the_shape_of_generalised_pareto_weights(shape):
    num_rows, num_samples = 40, 20_000
    tail = tail_size(num_samples)
    weights = stats.genpareto.rvs(
        shape, size=(num_rows, num_samples), random_state=np.random.default_rng(0)
    )
    largest = -np.sort(-np.log(weights), axis=1)[:, : tail + 1]
    k = pareto_k(largest)
    # The estimate is shrunk to 0.5 as if by ten more observations.
    wanted = (tail * shape + 5.0) / (tail + 10.0)
    asymptotic = (1.0 + shape) / np.sqrt(tail)
    assert abs(k.mean() - wanted) < 5.0 * asymptotic / np.sqrt(num_rows)
    assert 0.5 * asymptotic < k.std() < 2.0 * asymptotic
    np.testing.assert_allclose(pareto_k(largest - 1000.0), k, atol=1e-9)


def test_pareto_k_is_nan_where_the_tail_is_too_small_or_has_no_spread():
    descending = -np.arange(6.0)[None]
    assert np.isnan(pareto_k(descending[:, :5])).all()
    assert np.isfinite(pareto_k(descending)).all()
    mixed = np.concatenate([descending, np.zeros((1, 6))])
    np.testing.assert_array_equal(np.isnan(pareto_k(mixed)), [False, True])


@pytest.mark.parametrize(
    ("num_samples", "wanted"), [(1, 1), (24, 4), (100, 20), (225, 45), (10_000, 300)]
)
def test_tail_size_is_a_fifth_or_three_roots_of_s(num_samples, wanted):
    assert tail_size(num_samples) == wanted


# --- Encodings, rate and distortion, active units ------------------------------------


def test_encodings_are_the_posterior_s_whatever_the_batch_size():
    params = linear_params("standard")
    mean, scale = numpy_affine(params.encoder, X.astype(np.float64))
    for batch_size in (3, 1000):
        encodings = encode_dataset(MODELS["standard"], params, X, batch_size)
        assert encodings.mean.dtype == encodings.scale.dtype == np.float32
        np.testing.assert_allclose(encodings.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(encodings.scale, np.tile(scale, (7, 1)), rtol=1e-6)


NOTHING = Params({}, {}, {})


def column_terms(params, key, x):
    """An objective without chance: distortion, rate and constraint are columns of x."""
    del params, key
    return Terms(x[:, 0], x[:, 1], x[:, 2])


def noise_terms(params, key, x):
    """An objective that is nothing but chance."""
    del params
    noise = jax.random.normal(key, (len(x),))
    return Terms(noise, noise, noise)


@pytest.mark.parametrize("batch_size", [2, 7, 500])
def test_rate_and_distortion_are_means_over_the_data_with_their_errors(batch_size):
    result = rate_distortion(column_terms, NOTHING, jax.random.key(0), X, batch_size)
    mean = X.astype(np.float64).mean(axis=0)
    stderr = stats.sem(X.astype(np.float64), axis=0)
    bound = stats.sem(X[:, 0].astype(np.float64) + X[:, 1])
    wanted = [mean[0], stderr[0], mean[1], stderr[1], bound, mean[2]]
    np.testing.assert_allclose(result, wanted, rtol=1e-6)


def test_rate_and_distortion_draw_anew_for_every_batch():
    x = np.zeros((4000, 1), np.float32)
    result = rate_distortion(noise_terms, NOTHING, jax.random.key(1), x, batch_size=2)
    # Were the key the same, the mean of all would be the mean of two.
    assert abs(result.rate) < 5.0 / np.sqrt(4000)
    np.testing.assert_allclose(result.rate_stderr, 1.0 / np.sqrt(4000), rtol=0.1)


def units_params(prior):
    """Posterior means with one still dimension and one that follows x_0."""
    encoder = affine([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.3, -0.4], [0.2, 0.9])
    return Params(encoder, affine(V, C, [SIGMA] * 3), prior)


def test_active_units_of_the_standard_prior_in_closed_form():
    x = np.random.default_rng(3).normal(0.0, 1.0, (23, 3)).astype(np.float32)
    result = active_units(
        MODELS["standard"], units_params({}), jax.random.key(0), x, batch_size=5
    )
    first = np.float64(x[:, 0])
    np.testing.assert_allclose(result.variance, [0.25 * first.var(), 0.0], rtol=1e-5)
    second_moment = [((0.5 * first + 0.3) ** 2).mean() + 0.04, 0.16 + 0.81]
    kl = 0.5 * (np.array(second_moment) - 1.0) - np.log([0.2, 0.9])
    np.testing.assert_allclose(result.kl, kl, rtol=1e-5)
    assert result.num_active == 1
    assert result.threshold == 0.01


@pytest.mark.parametrize(("threshold", "wanted"), [(0.0, 1), (10.0, 0)])
def test_the_threshold_decides_what_is_active(threshold, wanted):
    result = active_units(
        MODELS["standard"], units_params({}), jax.random.key(0), X, 7, threshold
    )
    assert result.num_active == wanted
    assert result.threshold == threshold


def test_kl_of_each_inner_unit_is_its_average_over_z():
    """A dead inner unit has KL 0; a live one its closed form, z being random."""
    inner = affine([[0.7, 0.0], [0.4, 0.0]], [0.1, 0.0], [0.5, 1.0])
    params = units_params({"encoder": inner, "decoder": affine(W, B, [S, S])})
    x = np.tile(X, (600, 1))
    result = active_units(
        MODELS["hierarchical"], params, jax.random.key(0), x, batch_size=1000
    )
    mean = 0.5 * np.float64(X[:, 0]) + 0.3
    inner_mean = 0.7 * mean + 0.4 * -0.4 + 0.1
    inner_variance = (0.7 * 0.2) ** 2 + (0.4 * 0.9) ** 2
    second_moment = (inner_mean**2).mean() + inner_variance + 0.25
    wanted = 0.5 * (second_moment - 1.0) - np.log(0.5)
    # Half the square of a normal: its deviation is at most v / sqrt(2) + |m| sqrt(v).
    deviation = inner_variance / np.sqrt(2.0)
    deviation += np.abs(inner_mean).max() * np.sqrt(inner_variance)
    assert abs(result.kl[0] - wanted) < 5.0 * deviation / np.sqrt(len(x))
    assert result.kl[1] == 0.0


# --- Circles and crossings -----------------------------------------------------------

ANGLES = (np.arange(1080) + 0.5) * 2.0 * np.pi / 1080  # 12 in each of 90 bins


def ring(polar, radius=1.0, centre=(0.0, 0.0)):
    return np.column_stack([np.cos(polar), np.sin(polar)]) * np.reshape(
        radius, (-1, 1)
    ) + np.array(centre)


def test_the_fitted_circle_is_not_biased_by_an_uneven_density():
    generator = np.random.default_rng(0)
    polar = generator.vonmises(1.0, 2.0, 2000)
    points = ring(polar, 1.7, (3.0, -2.0))
    assert np.linalg.norm(points.mean(axis=0) - [3.0, -2.0]) > 1.0
    centre, radius = fit_circle(points)
    np.testing.assert_allclose([*centre, radius], [3.0, -2.0, 1.7], rtol=1e-9)
    noisy = ring(polar, 1.7 + 0.02 * generator.standard_normal(2000), (3.0, -2.0))
    centre, radius = fit_circle(noisy)
    np.testing.assert_allclose([*centre, radius], [3.0, -2.0, 1.7], atol=5e-3)


def test_an_uneven_density_moves_the_centre_of_an_oval_by_what_is_said():
    polar = np.random.default_rng(0).vonmises(0.7, 1.0, 100_000)
    oval = np.column_stack([1.1 * np.cos(polar), 0.9 * np.sin(polar)])
    centre, radius = fit_circle(oval)
    assert np.mean(np.cos(polar - 0.7) > 0) == pytest.approx(0.8, abs=0.03)
    assert np.linalg.norm(centre) / radius == pytest.approx(0.05, abs=0.01)


def test_the_fitted_circle_of_a_short_arc_is_the_whole_circle():
    centre, radius = fit_circle(ring(np.linspace(0.2, 0.9, 50), 2.0, (1.0, 1.0)))
    np.testing.assert_allclose([*centre, radius], [1.0, 1.0, 2.0], rtol=1e-8)


T = (np.arange(300) + 0.37) * 2.0 * np.pi / 300
CURVES = {
    "circle": (np.cos(T), np.sin(T), 0),
    "figure eight": (np.sin(T), np.sin(2.0 * T), 1),
    "limacon": ((0.5 + np.cos(T)) * np.cos(T), (0.5 + np.cos(T)) * np.sin(T), 1),
    "dented": ((1.5 + np.cos(T)) * np.cos(T), (1.5 + np.cos(T)) * np.sin(T), 0),
    "trefoil": (
        np.sin(T) + 2.0 * np.sin(2.0 * T),
        np.cos(T) - 2.0 * np.cos(2.0 * T),
        3,
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_crossings_of_known_curves(name):
    x, y, wanted = CURVES[name]
    points = np.column_stack([x, y])
    assert count_crossings(points) == wanted
    for shift in (1, 77, 150):  # wherever the polygon starts
        assert count_crossings(np.roll(points, shift, axis=0)) == wanted


def test_crossings_of_polygons_with_few_sides():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert count_crossings(square) == 0
    assert count_crossings(square[[0, 2, 1, 3]]) == 1
    pentagram = ring(np.arange(5) * 4.0 * np.pi / 5.0)
    assert count_crossings(pentagram) == 5


# --- Regression of the angle ---------------------------------------------------------


@pytest.mark.parametrize("rotation", [0.0, 1.0, 3.0, 5.5])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize(("radius", "centre"), [(1.0, (0.0, 0.0)), (0.02, (3.0, -7.0))])
def test_a_perfect_ring_has_no_error(rotation, mirror, radius, centre):
    shuffled = np.random.default_rng(0).permutation(ANGLES)
    result = regress_angle(ring(mirror * shuffled + rotation, radius, centre), shuffled)
    assert result.error < 1e-7
    np.testing.assert_allclose(result.centre, centre, atol=1e-9)
    np.testing.assert_allclose(result.radius, radius, rtol=1e-8)
    np.testing.assert_allclose([result.slope, result.winding], mirror, rtol=1e-8)
    np.testing.assert_allclose(result.fitted, shuffled, atol=1e-6)
    np.testing.assert_allclose(
        result.slope * result.polar + result.intercept, result.fitted
    )
    np.testing.assert_allclose(result.largest_gap, 1.0, rtol=1e-6)
    assert result.crossings == 0


def test_a_regression_wants_three_finite_examples():
    points = ring(ANGLES[:5])
    with pytest.raises(ValueError, match="number 1 is nan"):
        regress_angle(points, np.where(np.arange(5) == 1, np.nan, ANGLES[:5]))
    with pytest.raises(ValueError, match="at least 3 examples, got 2"):
        regress_angle(points[:2], ANGLES[:2])


def test_the_error_is_the_mean_absolute_residual_of_a_known_perturbation():
    """Polar angle = angle + a cos(3 angle), uncorrelated with the angle: 2 a / pi."""
    a = 0.05
    encodings = ring(ANGLES + a * np.cos(3.0 * ANGLES), 0.4, (1.0, 2.0))
    result = regress_angle(encodings, ANGLES)
    np.testing.assert_allclose(result.error, 2.0 * a / np.pi, rtol=0.01)
    np.testing.assert_allclose(result.slope, 1.0, atol=1e-3)
    assert 1.1 < result.largest_gap < 1.2


def test_the_error_of_an_ellipse_is_that_of_its_first_harmonic():
    """With n = (a - b) / (a + b), polar = angle - n sin(2 angle) + O(n^2).

    The angle's covariance with sin(2 angle) is -1/2, so that OLS tilts the line by
    3 n / (2 pi^2).
    """
    n = 0.02
    encodings = ring(ANGLES) * [1.0 + n, 1.0 - n]
    residual = np.sin(2.0 * ANGLES) + 1.5 / np.pi**2 * (ANGLES - np.pi)
    wanted = n * np.abs(residual).mean()
    result = regress_angle(encodings, ANGLES)
    np.testing.assert_allclose(result.error, wanted, rtol=0.02)
    np.testing.assert_allclose(result.slope, 1.0 - 1.5 / np.pi**2 * n, atol=n**2)


def test_outliers_count_by_their_size_and_not_their_square():
    noise = np.random.default_rng(0).laplace(0.0, 0.03, len(ANGLES))
    result = regress_angle(ring(ANGLES + noise), ANGLES)
    np.testing.assert_allclose(result.error, np.abs(noise).mean(), rtol=0.05)


@pytest.mark.parametrize(
    ("share", "slope", "winding"),
    [(0.4, 2.5, 0.0), (2.0, 0.5, 2.0), (-3.0, -1 / 3, -3)],
)
def test_a_torn_or_overlapping_ring_shows_in_slope_and_winding(share, slope, winding):
    result = regress_angle(ring(share * ANGLES), ANGLES)
    np.testing.assert_allclose(result.slope, slope, rtol=1e-6)
    np.testing.assert_allclose(result.winding, winding, atol=1e-6)
    assert (result.largest_gap > 30.0) == (share == 0.4)


def test_a_half_circle_has_slope_two_and_a_gap_of_its_diameter():
    result = regress_angle(ring(0.5 * ANGLES), ANGLES)
    np.testing.assert_allclose(result.slope, 2.0, rtol=1e-6)
    np.testing.assert_allclose(result.winding, 0.0, atol=1e-6)
    # 89 steps along the mean curve's half circle, and the one across.
    mean_step = (np.pi * 89 / 90 + 2.0) / 90
    np.testing.assert_allclose(result.largest_gap, 2.0 / mean_step, rtol=2e-3)


@pytest.mark.parametrize("name", ["figure eight", "limacon", "trefoil"])
def test_the_crossings_of_a_ring_do_not_depend_on_the_order_of_the_examples(name):
    x, y, wanted = CURVES[name]
    order = np.random.default_rng(0).permutation(len(T))
    encodings = np.column_stack([x, y])[order]
    assert regress_angle(encodings, T[order]).crossings == wanted


@pytest.mark.parametrize(
    ("encodings", "angles", "message"),
    [
        (np.zeros((5, 3)), np.zeros(5), r"shape \[N, 2\], got \(5, 3\)"),
        (np.zeros(5), np.zeros(5), r"shape \[N, 2\], got \(5,\)"),
        (np.zeros((5, 2)), np.zeros(4), r"shape \(5,\), got \(4,\)"),
        (np.zeros((5, 2)), np.zeros((5, 1)), r"shape \(5,\), got \(5, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(encodings, angles, message):
    with pytest.raises(ValueError, match=message):
        regress_angle(encodings, angles)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_encodings_that_are_not_finite_are_named(value):
    encodings = ring(ANGLES)
    encodings[[17, 20], 1] = value
    with pytest.raises(ValueError, match=r"must be finite, row 17 is \["):
        regress_angle(encodings, ANGLES)


def test_noise_on_a_ring_makes_no_crossings():
    generator = np.random.default_rng(0)
    angle = generator.uniform(0.0, 2.0 * np.pi, 2000)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    noisy = ring + 0.01 * generator.standard_normal(ring.shape)
    assert count_crossings(noisy[np.argsort(angle)]) > 0  # why the curve is averaged
    fit = regress_angle(noisy, angle)
    assert fit.crossings == 0
    assert fit.largest_gap < 1.5


def test_memory_is_flat_in_the_samples():
    """What the compiled program needs beside its arguments, for S = 100 and 10,000."""
    model, params = MODELS["hierarchical"], linear_params("hierarchical")
    keys = jax.random.split(jax.random.key(0), len(X))

    def temporary(num_samples):
        compiled = _weight_sums.lower(
            model, params, keys, X, num_samples, chunk_size=10
        ).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(100), temporary(10_000)
    # Only the largest weights, 3 sqrt(S) an example, are kept.
    kept = 4 * len(X) * (tail_size(10_000) - tail_size(100))
    assert 0 < large < small + 8 * kept
    assert large < 4 * len(X) * 10_000 / 2


def test_a_part_of_a_set_has_the_draws_of_the_whole():
    whole = estimate()
    parts = [estimate(x=X[:5]), estimate(x=X[5:], first=5)]
    for name in ("log_likelihood", "effective_sample_size"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-5)


# --- Neighbourhoods, two samples, smoothness -----------------------------------------


def test_neighbour_accuracy_is_a_vote_that_leaves_the_point_out():
    # On a line; neighbours of a point: the 3 nearest others.
    points = np.array([0.0, 1.0, 2.1, 3.3, 10.0, 11.0, 12.1, 13.3])[:, None]
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    # The point at 3.3 is outvoted by the three zeros; with its own vote it still is.
    assert neighbour_accuracy(points, labels, 3) == 7 / 8
    assert neighbour_accuracy(points, np.zeros(8, int), 3) == 1.0
    # Alternate labels: each point's two nearest others have the other label.
    alternate = np.arange(20)[:, None], np.arange(20) % 2
    assert neighbour_accuracy(*alternate, num_neighbours=2) <= 0.1


def test_neighbour_accuracy_breaks_a_tie_by_the_nearest():
    points = np.array([0.0, 1.0, -1.5, 50.0, 50.5, 51.1])[:, None]
    labels = np.array([1, 1, 0, 2, 2, 2])
    # Of 0: 1.0 (label 1) and -1.5 (label 0), one vote each; the nearer wins.
    with_tie = neighbour_accuracy(points, labels, 2)
    labels[[1, 2]] = 0, 1
    assert with_tie - neighbour_accuracy(points, labels, 2) > 0.0
    # Two votes each of five: the nearest voter's label wins, not the nearer on average.
    voters = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 99.0])[:, None]
    reference = voters, np.array([7, 8, 8, 9, 7, 1])
    point = np.zeros((1, 1)), np.array([7])
    assert neighbour_accuracy(*point, num_neighbours=5, reference=reference) == 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_samples_of_one_distribution_cannot_be_told_apart(scale):
    rng = np.random.default_rng(0)
    first, second = scale * rng.normal(size=(2, 1500, 2))
    score = compare_samples(first, second)
    assert abs(score.accuracy - 0.5) < 4.0 * score.accuracy_stderr
    assert abs(score.discrepancy) < 3e-3
    apart = compare_samples(first, second + 20.0 * scale)
    assert apart.accuracy == 1.0
    near = compare_samples(first, second + 0.5 * scale)
    assert 0.53 < near.accuracy < 0.7
    assert score.discrepancy < near.discrepancy < apart.discrepancy


def test_discrepancy_is_the_u_statistic_summed_pair_by_pair():
    first, second = np.random.default_rng(2).normal(size=(2, 7, 2))
    pooled = [*first, *second]
    pairs = itertools.combinations(pooled, 2)
    width = np.median([np.sum((a - b) ** 2) for a, b in pairs])

    def kernel(a, b):
        return math.exp(-np.sum((a - b) ** 2) / width)

    within = sum(
        kernel(a, b)
        for sample in (first, second)
        for a, b in itertools.permutations(sample, 2)
    )
    across = sum(kernel(a, b) for a in first for b in second)
    expected = within / (7 * 6) - 2.0 * across / 49
    found = compare_samples(first, second).discrepancy
    assert found == pytest.approx(expected, rel=1e-9)


def test_discrepancy_is_that_of_two_normals_in_closed_form():
    rng = np.random.default_rng(1)
    shift, num = 1.0, 3000
    first = rng.normal(size=(num, 1))
    second = rng.normal(size=(num, 1)) + shift
    pooled = np.concatenate([first, second])
    distances = np.square(pooled - pooled.T)[~np.eye(2 * num, dtype=bool)]
    width = np.median(distances)  # exp(-d^2 / width)
    # E exp(-(a - b)^2 / w), a - b ~ N(m, 2): sqrt(w / (w + 4)) exp(-m^2 / (w + 4)).
    within = math.sqrt(width / (width + 4.0))
    expected = 2.0 * within * (1.0 - math.exp(-(shift**2) / (width + 4.0)))
    found = compare_samples(first, second).discrepancy
    assert found == pytest.approx(expected, rel=0.1)


def test_samples_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape \[N, D\], got"):
        compare_samples(np.zeros((9, 2)), np.zeros((8, 2)))
    with pytest.raises(ValueError, match=r"labels must have shape \(9,\)"):
        neighbour_accuracy(np.zeros((9, 2)), np.zeros(8))


class Parabola(nn.Module):
    """z -> (z_0, z_0^2, 3 z_1), for second differences that are known."""

    @nn.compact
    def __call__(self, z):
        mean = jnp.stack([z[..., 0], z[..., 0] ** 2, 3.0 * z[..., 1]], axis=-1)
        return DiagonalNormal(mean, jnp.zeros(()))


def test_smoothness_is_zero_on_lines_and_twice_the_squared_step_on_a_parabola():
    model = VAE(Affine(2), Parabola(), StandardNormal(2))
    params = Params({}, {}, {})
    joints = {"line": (0,), "parabola": (1,), "both": (1, 2)}
    steps = np.arange(6.0)
    line = np.stack([0.5 * steps, steps], axis=1)  # step 0.5
    short = np.stack([2.0 * steps[:3], 0.0 * steps[:3]], axis=1)  # step 2
    units = np.array([1.0, 10.0, 7.0])
    found = smoothness(model, params, [line, short], joints, units)
    # (z + h)^2 - 2 z^2 + (z - h)^2 = 2 h^2.
    expected = np.array([[0.0, 5.0, 5.0 / math.sqrt(2.0)], [0.0, 80.0, 80.0 / 2**0.5]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_resampled_smoothness_does_not_depend_on_the_number_of_nodes():
    model = VAE(Affine(2), Parabola(), StandardNormal(2))
    params, joints = Params({}, {}, {}), {"parabola": (1,)}
    rng = np.random.default_rng(0)
    few = np.stack([[0.0, 1.0, 4.0], [0.0, 0.0, 0.0]], axis=1)
    inner = np.sort(rng.uniform(0.0, 4.0, 30))
    many = np.stack([np.concatenate([[0.0], inner, [4.0]]), np.zeros(32)], axis=1)
    units = np.ones(3)
    raw = smoothness(model, params, [few, many], joints, units)
    assert raw[0] > 10.0 * raw[1]
    even = smoothness(model, params, [few, many], joints, units, num_points=41)
    np.testing.assert_allclose(even, 2.0 * 0.1**2, rtol=2e-3)
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        smoothness(model, params, [few[:2]], joints, units)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_points_are_decoded_alike_in_any_company(count):
    model, params = MODELS["hierarchical"], linear_params("hierarchical")
    z = np.random.default_rng(0).normal(size=(8, 2))
    decoded = decode(model, params, z, batch_size=4)
    np.testing.assert_array_equal(decode(model, params, z[:count], 4), decoded[:count])
    mean, _ = numpy_affine(params.decoder, z)
    np.testing.assert_allclose(decoded, mean, rtol=1e-5, atol=1e-5)


def test_draws_and_decodings_are_in_full_precision(monkeypatch):
    """As the densities and encodings that they are compared with."""
    model, params = MODELS["hierarchical"], linear_params("hierarchical")
    seen = []

    def watched(apply):
        def wrapper(*args, **kwargs):
            seen.append(jax.config.jax_default_matmul_precision)
            return apply(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(Affine, "__call__", watched(Affine.__call__))
    drawn = sample_prior(model, params, jax.random.key(0), 11)
    assert drawn.shape == (11, 2)
    assert drawn.dtype == np.float32
    decode(model, params, drawn, 11)
    assert seen == ["highest"] * 2


def test_path_quality_sees_uneven_steps_and_blur():
    row = np.arange(8.0)
    edge = np.where(row < 4, 0.0, 1.0) * np.ones((8, 1))
    even = np.stack([0.1 * k * np.ones((8, 8)) for k in range(5)])
    jump = even.copy()
    jump[3:] += 0.5
    quality = path_quality(np.stack([even, jump]))
    np.testing.assert_allclose(quality.mean_step, [0.1, (3 * 0.1 + 0.6) / 4])
    np.testing.assert_allclose(quality.largest_step, [0.1, 0.6])
    np.testing.assert_allclose(quality.sharpness, 0.0, atol=1e-12)
    # A slope of one in each direction has a gradient of sqrt(2) everywhere.
    slope = np.broadcast_to(row[:, None] + row, (1, 2, 8, 8))
    np.testing.assert_allclose(path_quality(slope).sharpness, math.sqrt(2.0))
    sharp = path_quality(np.broadcast_to(edge, (1, 2, 8, 8))).sharpness
    np.testing.assert_allclose(sharp, 1.0 / 7.0)
    # Equal channels measure what one does.
    coloured = np.repeat(np.stack([even, jump])[..., None], 3, axis=4)
    for one, three in zip(quality, path_quality(coloured), strict=True):
        np.testing.assert_allclose(three, one, rtol=1e-12, atol=1e-12)
    tilted = np.repeat(slope[..., None], 3, axis=4)
    np.testing.assert_allclose(path_quality(tilted).sharpness, math.sqrt(2.0))
    wanted = r"\[P, L >= 2, H, W, ...\], got \(1, 8, 8\)"
    with pytest.raises(ValueError, match=wanted):
        path_quality(edge[None])
