"""Log-densities against scipy, draws against moments, KL against quadrature."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, special, stats

from vhp_jax.distributions import (
    Bernoulli,
    DiagonalNormal,
    Likelihood,
    kl_to_standard_normal,
    standard_normal_log_prob,
)

SHAPES = [(3,), (2, 4, 3)]


def random_normal(shape, seed=0):
    """A normal with mean and log-scale of `shape`."""
    generator = np.random.default_rng(seed)
    mean, log_scale = generator.normal(0.0, 0.7, (2, *shape)).astype(np.float32)
    return DiagonalNormal(jnp.asarray(mean), jnp.asarray(log_scale))


def float64(array):
    return np.asarray(array, np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_equals_scipy_summed_over_the_last_axis(shape):
    normal = random_normal(shape)
    value = np.random.default_rng(1).normal(0.0, 2.0, shape).astype(np.float32)
    wanted = stats.norm.logpdf(
        float64(value), float64(normal.mean), np.exp(float64(normal.log_scale))
    ).sum(axis=-1)
    log_prob = normal.log_prob(jnp.asarray(value))
    assert log_prob.dtype == jnp.float32
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_standard_normal_log_prob_equals_scipy(shape):
    value = np.random.default_rng(2).normal(0.0, 2.0, shape).astype(np.float32)
    wanted = stats.norm.logpdf(float64(value)).sum(axis=-1)
    np.testing.assert_allclose(
        standard_normal_log_prob(jnp.asarray(value)), wanted, rtol=1e-5
    )


def test_one_scalar_scale_is_that_scale_for_every_entry():
    shape = (2, 4, 3)
    mean = random_normal(shape).mean
    scalar = DiagonalNormal(mean, jnp.float32(-0.4))
    full = DiagonalNormal(mean, jnp.full(shape, -0.4))
    value, key = mean + 1.0, jax.random.key(3)
    assert scalar.scale.shape == ()

    @jax.jit
    def results(normal):
        draws = normal.sample(key), normal.sample_many(key, 5)
        return normal.log_prob(value), *draws

    wanted = stats.norm.logpdf(1.0, 0.0, np.exp(-0.4)) * 3
    np.testing.assert_allclose(
        results(scalar)[0], np.full(shape[:-1], wanted), rtol=1e-4
    )
    chex.assert_trees_all_close(results(scalar), results(full), rtol=1e-6)


def test_draws_have_the_moments_of_the_distribution():
    normal, num_samples = random_normal((2, 3)), 40_000
    draws = float64(normal.sample_many(jax.random.key(4), num_samples))
    assert draws.shape == (num_samples, 2, 3)
    scale = np.exp(float64(normal.log_scale))
    standardised = (draws - float64(normal.mean)) / scale
    # Five standard errors of mean, variance and correlation of standard normals.
    tolerance = 5.0 / np.sqrt(num_samples)
    np.testing.assert_allclose(standardised.mean(axis=0), 0.0, atol=tolerance)
    covariance = np.cov(standardised.reshape(num_samples, 6), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(6), atol=np.sqrt(2.0) * tolerance)
    lag = (standardised[1:] * standardised[:-1]).mean(axis=0)
    np.testing.assert_allclose(lag, 0.0, atol=tolerance)


def test_one_draw_per_entry_has_the_moments_of_the_distribution():
    num_samples = 40_000
    normal = DiagonalNormal(
        jnp.full((num_samples, 2), 1.5), jnp.full((num_samples, 2), -1.0)
    )
    draws = float64(normal.sample(jax.random.key(5)))
    standardised = (draws - 1.5) * np.exp(1.0)
    for column in standardised.T:
        assert stats.kstest(column, "norm").pvalue > 0.01
    assert abs(np.corrcoef(standardised.T)[0, 1]) < 5.0 / np.sqrt(num_samples)


def test_draws_change_with_the_key_and_only_with_the_key():
    normal = random_normal((4, 3))
    first, second = (normal.sample(jax.random.key(seed)) for seed in (6, 7))
    assert not np.isclose(first, second).any()
    chex.assert_trees_all_equal(first, normal.sample(jax.random.key(6)))


def test_draws_are_reparameterised():
    """d z / d mean = 1 and d z / d log_scale = z - mean, for both ways of drawing."""
    normal, key = random_normal((4, 3)), jax.random.key(8)
    for draw in (lambda q: q.sample(key), lambda q: q.sample_many(key, 1)[0]):
        draw = jax.jit(draw)
        gradient = jax.jit(jax.grad(lambda q, draw=draw: jnp.sum(draw(q))))(normal)
        np.testing.assert_allclose(gradient.mean, 1.0, rtol=1e-6)
        np.testing.assert_allclose(
            gradient.log_scale, draw(normal) - normal.mean, rtol=1e-4, atol=1e-6
        )


def test_log_prob_gradients_equal_finite_differences():
    normal = random_normal((4, 3))
    value = jnp.full((4, 3), 0.3)
    log_prob = jax.jit(lambda q, x: q.log_prob(x))
    check_grads(log_prob, (normal, value), order=1, modes=("rev",), eps=1e-2)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.2), (-1.3, 0.7), (0.8, 2.5)])
def test_kl_equals_quadrature(mean, scale):
    def integrand(x):
        q, p = stats.norm(mean, scale), stats.norm()
        return q.pdf(x) * (q.logpdf(x) - p.logpdf(x))

    wanted, _ = integrate.quad(integrand, mean - 12 * scale, mean + 12 * scale)
    kl = kl_to_standard_normal(jnp.float32([mean]), jnp.float32([np.log(scale)]))
    np.testing.assert_allclose(kl, [wanted], rtol=1e-5)


def test_kl_equals_monte_carlo_with_the_library_s_own_densities():
    normal, num_samples = random_normal((4, 3)), 20_000
    draws = normal.sample_many(jax.random.key(9), num_samples)
    log_q = jax.vmap(normal.log_prob)(draws)
    log_ratio = float64(log_q - standard_normal_log_prob(draws))  # [K, 4]
    standard_error = log_ratio.std(axis=0) / np.sqrt(num_samples)
    kl = kl_to_standard_normal(normal.mean, normal.log_scale)
    assert kl.shape == (4, 3)
    assert (np.abs(log_ratio.mean(axis=0) - kl.sum(axis=1)) < 5 * standard_error).all()


def test_kl_is_zero_at_the_standard_normal_and_nowhere_else():
    kl = kl_to_standard_normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    chex.assert_trees_all_equal(kl, jnp.zeros((1, 2)))
    normal = random_normal((50, 3))
    assert (kl_to_standard_normal(normal.mean, normal.log_scale) > 0.0).all()


def test_a_diagonal_normal_is_a_likelihood():
    normal = random_normal((4, 3))
    assert isinstance(normal, Likelihood)
    assert not isinstance(normal.mean, Likelihood)


# --- Bernoulli -----------------------------------------------------------------------


def test_bernoulli_log_prob_against_scipy_and_sums_to_one():
    logits = np.array([[-3.0, 0.2, 1.7], [30.0, -40.0, 0.0]], np.float32)
    likelihood = Bernoulli(jnp.asarray(logits))
    outcomes = np.float32(list(itertools.product([0, 1], repeat=3)))
    log_prob = np.stack(
        [likelihood.log_prob(jnp.tile(jnp.asarray(x), (2, 1))) for x in outcomes]
    )
    log_odds = logits.astype(np.float64)
    one, zero = special.log_expit(log_odds), special.log_expit(-log_odds)
    wanted = np.where(outcomes[:, None], one, zero).sum(axis=-1)
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(special.logsumexp(log_prob, axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(likelihood.mean, special.expit(log_odds), rtol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_gradient_of_a_bernoulli_is_the_value_less_its_mean(logit, value):
    slope = jax.grad(lambda x: Bernoulli(x[None]).log_prob(jnp.float32(value)[None]))
    wanted = value - special.expit(np.float64(logit))
    np.testing.assert_allclose(slope(jnp.float32(logit)), wanted, atol=1e-6)


def test_bernoulli_of_grey_values_is_the_mean_over_binary_ones():
    logits = jnp.asarray([[0.4, -1.3]])
    grey = np.array([0.3, 0.8], np.float32)
    wanted = 0.0
    for x in itertools.product([0.0, 1.0], repeat=2):
        chance = np.prod(np.where(x, grey, 1.0 - grey))
        wanted += chance * float(Bernoulli(logits).log_prob(jnp.asarray([x]))[0])
    np.testing.assert_allclose(
        Bernoulli(logits).log_prob(jnp.asarray(grey)[None])[0], wanted, rtol=1e-6
    )
