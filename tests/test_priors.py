"""Importance weights for p(z) against closed forms and against quadrature."""

import dataclasses
import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from tests.linear_gaussian import (
    Affine,
    affine,
    exact_posterior,
    numpy_affine,
)
from vhp_jax.networks import Flat, NormalMLP
from vhp_jax.objectives import iw_bound
from vhp_jax.priors import (
    HierarchicalPrior,
    MixturePrior,
    Prior,
    StandardNormal,
    VampPrior,
    init_pseudo_inputs,
)
from vhp_jax.types import Params

# --- A prior with a density in closed form -------------------------------------------


# z = zeta W + b + s eps. The rows of W are orthogonal, so that p(zeta|z) is diagonal.
TURN = np.array([[0.8, 0.6], [-0.6, 0.8]])
W = np.diag([1.5, 0.5]) @ TURN
B = np.array([0.3, -0.7])
S = 0.6
COVARIANCE = W.T @ W + S**2 * np.eye(2)
MARGINAL = stats.multivariate_normal(B, COVARIANCE)
LINEAR_PRIOR = HierarchicalPrior(Affine(2), Affine(2), latent_dim=2, inner_dim=2)
POINTS = np.array([[0.1, 0.2], [1.8, -1.0], [-2.0, 0.5], [0.4, 2.2]], np.float32)


def linear_params(exact):
    """Theta of the model above; Phi its exact posterior or a wrong Gaussian."""
    gain, bias, scale = exact_posterior(W, B, S)
    if not exact:
        gain, bias, scale = 0.6 * gain, bias + 0.3, [0.7, 0.9]
    return Params(
        {},
        {},
        {"encoder": affine(gain, bias, scale), "decoder": affine(W, B, [S, S])},
    )


NUM_DRAWS = 64 * 4_000


# --- The real networks, with a density by quadrature ---------------------------------

REAL_PRIOR = HierarchicalPrior(
    NormalMLP((8,), 2, head_scale=0.3, scale_init=1.0),
    NormalMLP((8,), 2, scale_init=0.7),
    latent_dim=2,
    inner_dim=2,
)


REAL_POINTS = np.float32(0.6) * POINTS


def real_params():
    """Random weights, biases and heads: scales and means depend on the input."""
    params = jax.jit(REAL_PRIOR.init)(jax.random.key(0))
    generator = np.random.default_rng(0)
    return Params(
        {},
        {},
        jax.tree.map(
            lambda leaf: jnp.float32(leaf + 0.15 * generator.normal(size=leaf.shape)),
            params,
        ),
    )


def numpy_normal(variables, x):
    """Forward pass of `NormalMLP` in float64: mean and log-scale."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    layers = layers["params"]["MLP_0"]
    for index in range(len(layers)):
        layer = layers[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return np.split(x, 2, axis=-1)


def zeta_grid(size=241, limit=7.0):
    """Nodes [size^2, 2] and the log of their quadrature weights times N(0, I)."""
    axis, step = np.linspace(-limit, limit, size, retstep=True)
    zeta = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return zeta, stats.norm.logpdf(zeta).sum(axis=-1) + 2.0 * np.log(step)


def quadrature_log_prob(params, z):
    """Log p(z) = log int p(z|zeta) N(zeta; 0, I) d zeta on a dense grid."""
    zeta, log_measure = zeta_grid()
    mean, log_scale = numpy_normal(params.prior["decoder"], zeta)
    return np.array(
        [
            logsumexp(
                stats.norm.logpdf(point, mean, np.exp(log_scale)).sum(axis=-1)
                + log_measure
            )
            for point in np.asarray(z, np.float64)
        ]
    )


# --- Shared machinery ----------------------------------------------------------------


def weights(prior, params, z, num_samples, seed=0):
    """Log-weights float64 [K, B] of one call."""
    log_w = jax.jit(prior.log_weights, static_argnums=3)(
        params, jax.random.key(seed), jnp.asarray(z), num_samples
    )
    assert log_w.dtype == jnp.float32
    return np.asarray(log_w, np.float64)


@functools.cache
def linear_draws():
    """Log-weights of the linear prior with the wrong posterior, and log p(z)."""
    params = linear_params(exact=False)
    log_w = weights(LINEAR_PRIOR, params, POINTS, NUM_DRAWS)
    return log_w, MARGINAL.logpdf(POINTS)


@functools.cache
def real_draws():
    """Log-weights of the real networks, and log p(z) by quadrature."""
    params = real_params()
    log_w = weights(REAL_PRIOR, params, REAL_POINTS, NUM_DRAWS)
    return log_w, quadrature_log_prob(params, REAL_POINTS)


def assert_bounds_rise_towards(log_w, log_p, margin=5.0):
    """Bounds of K = 1, 4, 16, 64 from the same draws, `margin` standard errors apart.

    The bound of K draws is averaged over the disjoint groups of K among 64, so that
    the difference of two bounds is paired.

    Args:
      log_w: [64 R, B] log-weights.
      log_p: [B] the true log p(z), averaged over the B points.
      margin: standard errors.
    """
    log_w = jnp.float32(log_w.reshape(-1, 64, log_w.shape[1]))  # [R, 64, B]
    bounds = []
    for k in (1, 4, 16, 64):
        groups = log_w.reshape(log_w.shape[0], 64 // k, k, -1)
        bound = iw_bound(jnp.moveaxis(groups, 2, 0))  # [R, 64 / K, B]
        bounds.append(np.asarray(bound, np.float64).mean(axis=(1, 2)))  # [R]
    bounds.append(np.full_like(bounds[0], log_p.mean()))
    for lower, upper in itertools.pairwise(bounds):
        gap = upper - lower
        assert gap.mean() > margin * gap.std() / np.sqrt(len(gap))
    assert (bounds[-1] - bounds[-2]).mean() < 0.1 * (bounds[-1] - bounds[0]).mean()


def assert_average_is(log_w, log_p, margin=5.0):
    """The average weight is p(z) within `margin` standard errors of under 3 %."""
    ratio = np.exp(log_w - log_p)
    error = ratio.std(axis=0) / np.sqrt(len(ratio))
    assert (error < 0.03).all()
    assert (np.abs(ratio.mean(axis=0) - 1.0) < margin * error).all()


# --- Standard normal -----------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 7])
def test_standard_normal_gives_one_exact_weight(num_samples):
    log_w = weights(StandardNormal(2), Params({}, {}, {}), POINTS, num_samples)
    wanted = stats.multivariate_normal(np.zeros(2)).logpdf(POINTS)
    np.testing.assert_allclose(log_w, wanted[None], rtol=1e-6)


def test_standard_normal_learns_nothing_and_samples_itself():
    prior = StandardNormal(3)
    assert jax.tree.leaves(prior.init(jax.random.key(0))) == []
    z = np.asarray(prior.sample(Params({}, {}, {}), jax.random.key(1), 20_000))
    assert z.shape == (20_000, 3)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=5 / np.sqrt(20_000))
    np.testing.assert_allclose(
        np.cov(z, rowvar=False), np.eye(3), atol=5 * np.sqrt(2 / 20_000)
    )


@pytest.mark.parametrize("prior", [StandardNormal(2), MixturePrior(2), LINEAR_PRIOR])
def test_priors_follow_the_protocol_and_can_be_static_arguments(prior):
    assert isinstance(prior, Prior)
    assert prior.latent_dim == 2
    assert hash(prior) == hash(type(prior)(**vars(prior)))


# --- Linear-Gaussian hierarchical prior ----------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_weights_equal_their_definition_in_float64_on_the_same_draws(
    exact, num_samples
):
    params = linear_params(exact)
    log_w = weights(LINEAR_PRIOR, params, POINTS, num_samples, seed=3)
    noise = jax.random.normal(jax.random.key(3), (num_samples, 4, 2))
    mean, scale = numpy_affine(params.prior["encoder"], POINTS)
    zeta = mean + scale * np.asarray(noise, np.float64)
    log_p_z = stats.norm.logpdf(POINTS, zeta @ W + B, S)
    log_p_zeta = stats.norm.logpdf(zeta)
    log_q = stats.norm.logpdf(zeta, mean, scale)
    wanted = (log_p_z + log_p_zeta - log_q).sum(axis=-1)
    np.testing.assert_allclose(log_w, wanted, rtol=1e-4, atol=1e-5)


def test_with_one_draw_the_bound_is_the_one_sample_elbo():
    """log p(z|zeta) - [log q(zeta|z) - log p(zeta)] of the very same draw."""
    params, key = linear_params(exact=False), jax.random.key(4)
    z = jnp.asarray(POINTS)
    bound = iw_bound(jnp.float32(weights(LINEAR_PRIOR, params, POINTS, 1, seed=4)))
    q_zeta = jax.jit(LINEAR_PRIOR.posterior)(params, z)
    draw = jax.jit(lambda q: q.sample_many(key, 1)[0])
    zeta = np.asarray(draw(q_zeta), np.float64)
    reconstruction = stats.norm.logpdf(POINTS, zeta @ W + B, S).sum(axis=1)
    kl = stats.norm.logpdf(zeta, q_zeta.mean, q_zeta.scale) - stats.norm.logpdf(zeta)
    np.testing.assert_allclose(bound, reconstruction - kl.sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("num_samples", [1, 2, 50])
def test_the_exact_posterior_gives_log_p_z_with_every_draw(num_samples):
    log_w = weights(LINEAR_PRIOR, linear_params(exact=True), POINTS, num_samples)
    wanted = MARGINAL.logpdf(POINTS)
    assert log_w.shape == (num_samples, 4)
    np.testing.assert_allclose(log_w, np.tile(wanted, (num_samples, 1)), atol=2e-5)
    np.testing.assert_allclose(iw_bound(jnp.float32(log_w)), wanted, atol=2e-5)


def test_with_a_wrong_posterior_the_average_weight_is_still_p_z():
    log_w, log_p = linear_draws()
    assert log_w.std(axis=0).min() > 0.3
    assert_average_is(log_w, log_p)


def test_the_bound_rises_with_k_and_stays_under_log_p_z():
    assert_bounds_rise_towards(*linear_draws())


def test_samples_have_the_closed_form_s_moments():
    num_samples = 40_000
    z = jax.jit(LINEAR_PRIOR.sample, static_argnums=2)(
        linear_params(exact=True), jax.random.key(5), num_samples
    )
    whitened = (np.asarray(z, np.float64) - B) @ np.linalg.inv(
        np.linalg.cholesky(COVARIANCE)
    ).T
    for column in whitened.T:
        assert stats.kstest(column, "norm").pvalue > 0.01
    np.testing.assert_allclose(
        np.cov(whitened, rowvar=False), np.eye(2), atol=5 * np.sqrt(2 / num_samples)
    )


def test_through_z_the_exact_weights_have_the_gradient_of_log_p_z():
    def total(z):
        params = linear_params(exact=True)
        return jnp.sum(iw_bound(LINEAR_PRIOR.log_weights(params, key, z, 3)))

    key = jax.random.key(6)
    wanted = -(POINTS - B) @ np.linalg.inv(COVARIANCE)
    gradient = jax.jit(jax.grad(total))(jnp.asarray(POINTS))
    np.testing.assert_allclose(gradient, wanted, atol=1e-4)


# --- The real networks ---------------------------------------------------------------


def test_the_quadrature_finds_the_closed_form_of_the_linear_prior():
    """Checks the checker: the same grid on the linear-Gaussian prior."""
    zeta, log_measure = zeta_grid()
    for point, wanted in zip(POINTS, MARGINAL.logpdf(POINTS), strict=True):
        log_p = stats.norm.logpdf(point, zeta @ W + B, S).sum(axis=-1)
        np.testing.assert_allclose(logsumexp(log_p + log_measure), wanted, atol=1e-9)


def test_importance_average_of_the_real_networks_converges_to_the_quadrature():
    log_w, log_p = real_draws()
    assert np.ptp(log_p) > 0.5
    assert_average_is(log_w, log_p)
    np.testing.assert_allclose(
        logsumexp(log_w, axis=0) - math.log(len(log_w)), log_p, atol=0.05
    )


def test_the_bound_of_the_real_networks_rises_with_k_under_the_quadrature():
    assert_bounds_rise_towards(*real_draws())


@pytest.mark.slow
def test_samples_of_the_real_networks_have_the_moments_of_the_quadrature():
    params, num_samples = real_params(), 40_000
    zeta, log_measure = zeta_grid()
    mean, log_scale = numpy_normal(params.prior["decoder"], zeta)
    measure = np.exp(log_measure)[:, None]
    assert abs(measure.sum() - 1.0) < 1e-9
    first = (measure * mean).sum(axis=0)
    second = (measure * mean).T @ mean + np.diag(
        (measure * np.exp(2.0 * log_scale)).sum(axis=0)
    )
    z = np.asarray(
        jax.jit(REAL_PRIOR.sample, static_argnums=2)(
            params, jax.random.key(7), num_samples
        ),
        np.float64,
    )
    assert z.shape == (num_samples, 2)
    moments = np.column_stack([z, z[:, :1] * z, z[:, 1] ** 2])
    wanted = np.array([*first, *second[0], second[1, 1]])
    error = moments.std(axis=0) / np.sqrt(num_samples)
    assert (np.abs(moments.mean(axis=0) - wanted) < 5.0 * error).all()


@pytest.mark.slow
def test_the_density_of_the_real_networks_integrates_to_one_over_z():
    params = real_params()
    axis, step = np.linspace(-9.0, 9.0, 73, retstep=True)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    log_w = weights(REAL_PRIOR, params, z, 200)
    mass = np.exp(logsumexp(log_w, axis=0) - math.log(200)).sum() * step**2
    np.testing.assert_allclose(mass, 1.0, atol=0.02)


@pytest.mark.slow
def test_log_weights_and_samples_are_the_same_eager_and_jitted():
    params, key, z = real_params(), jax.random.key(8), jnp.asarray(REAL_POINTS)
    eager = REAL_PRIOR.log_weights(params, key, z, 5), REAL_PRIOR.sample(params, key, 6)
    jitted = (
        jax.jit(REAL_PRIOR.log_weights, static_argnums=3)(params, key, z, 5),
        jax.jit(REAL_PRIOR.sample, static_argnums=2)(params, key, 6),
    )
    chex.assert_trees_all_close(eager, jitted, rtol=1e-5, atol=1e-5)


def test_encoder_and_decoder_start_from_different_draws():
    variables = jax.jit(REAL_PRIOR.init)(jax.random.key(0))
    assert set(variables) == {"encoder", "decoder"}
    first, second = (
        variables[name]["params"]["MLP_0"]["Dense_0"]["kernel"]
        for name in ("encoder", "decoder")
    )
    assert first.shape == second.shape == (2, 8)
    assert not np.isclose(first, second).any()


# --- VampPrior -----------------------------------------------------------------------

VAMP = VampPrior(Flat(NormalMLP((8,), 2)), 2, (3, 1), 5, bounds=(0.0, 1.0))


def vamp_params():
    """Scales that depend on the input; pseudo-inputs inside and outside [0, 1]."""
    key_encoder, key_prior = jax.random.split(jax.random.key(3))
    encoder = VAMP.encoder.init(key_encoder, jnp.zeros((1, 3, 1)))
    generator = np.random.default_rng(0)
    encoder = jax.tree.map(
        lambda leaf: jnp.float32(leaf + 0.5 * generator.normal(size=leaf.shape)),
        encoder,
    )
    return Params(encoder, {}, VAMP.init(key_prior))


def vamp_components(params, bounds=(0.0, 1.0)):
    """Means and scales of the mixture in float64."""
    pseudo_inputs = np.asarray(params.prior["pseudo_inputs"], np.float64)
    if bounds is not None:
        pseudo_inputs = np.clip(pseudo_inputs, *bounds)
    network = {"params": params.encoder["params"]["network"]}
    mean, log_scale = numpy_normal(network, pseudo_inputs.reshape(5, 3))
    return mean, np.exp(log_scale)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_vamp_prior_is_the_mixture_of_the_encoders_posteriors(bounds):
    params = vamp_params()
    mean, scale = vamp_components(params, bounds)
    terms = [
        stats.norm.logpdf(POINTS, m, s).sum(1) for m, s in zip(mean, scale, strict=True)
    ]
    wanted = logsumexp(terms, axis=0) - np.log(5)
    prior = dataclasses.replace(VAMP, bounds=bounds)
    log_w = weights(prior, params, POINTS, 7)
    assert log_w.shape == (1, len(POINTS))  # exact: one weight is enough
    np.testing.assert_allclose(log_w[0], wanted, rtol=1e-5)
    assert isinstance(prior, Prior)


def test_vamp_samples_have_the_moments_of_the_mixture():
    params = vamp_params()
    mean, scale = vamp_components(params)
    num = 200_000
    z = np.asarray(VAMP.sample(params, jax.random.key(0), num), np.float64)
    within = np.mean([np.diag(s**2) for s in scale], axis=0)
    covariance = within + np.cov(mean.T, bias=True)
    stderr = np.sqrt(np.diag(covariance) / num)
    assert (np.abs(z.mean(axis=0) - mean.mean(axis=0)) < 5 * stderr).all()
    size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (np.abs(np.cov(z.T) - covariance) < 0.02 * size).all()
    # Not only the moments: the share of draws that are nearest to each component.
    nearest = np.argmin(np.linalg.norm((z[:, None] - mean) / scale, axis=2), axis=1)
    assert (np.bincount(nearest, minlength=5) > 0).all()


@pytest.mark.slow
def test_pseudo_inputs_and_encoder_learn_inside_the_bounds_only():
    params = vamp_params()

    def total(params):
        log_w = VAMP.log_weights(params, jax.random.key(0), jnp.asarray(POINTS), 1)
        return log_w.sum()

    grads = jax.grad(total)(params)
    pseudo_inputs = params.prior["pseudo_inputs"]
    inside = (pseudo_inputs > 0.0) & (pseudo_inputs < 1.0)
    slopes = grads.prior["pseudo_inputs"]
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(slopes != 0.0, inside)
    chex.assert_tree_all_finite(grads)
    assert all((g != 0).any() for g in jax.tree.leaves(grads.encoder))


def test_pseudo_inputs_start_all_but_equal_at_the_mean_of_the_data():
    examples = np.float32([[0.1, 0.2, 0.9], [0.3, 0.1, 0.8]])
    drawn = np.asarray(init_pseudo_inputs(jax.random.key(0), examples, 10_000))
    assert (drawn.shape, drawn.dtype) == ((10_000, 3), np.float32)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.4, atol=4e-4)
    np.testing.assert_allclose(drawn.std(axis=0), 0.03 * examples.std(), rtol=0.03)


# --- Mixture of Gaussians ------------------------------------------------------------

MIXTURE = MixturePrior(2, num_components=3)
SHARES = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.5, 0.5], [1.0, 2.0], [0.5, -1.0]])
SCALES = np.array([[0.5, 0.8], [0.3, 0.6], [1.0, 0.4]])
MIXED = Params(
    {},
    {},
    {
        "logits": jnp.float32(np.log(SHARES) + 3.0),  # only differences count
        "mean": jnp.float32(MEANS),
        "log_scale": jnp.float32(np.log(SCALES)),
    },
)


def mixture_terms(z):
    """log w_c N(z; mu_c, sigma_c) in float64, [B, C]."""
    log_p = stats.norm.logpdf(np.float64(z)[:, None], MEANS, SCALES).sum(axis=-1)
    return np.log(SHARES) + log_p


def test_mixture_is_the_sum_of_its_weighted_normals():
    log_w = weights(MIXTURE, MIXED, POINTS, 7)
    assert log_w.shape == (1, len(POINTS))  # exact: one weight is enough
    np.testing.assert_allclose(
        log_w[0], logsumexp(mixture_terms(POINTS), axis=1), rtol=1e-5
    )


def test_mixture_integrates_to_one():
    axis, step = np.linspace(-7.0, 7.0, 281, retstep=True)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    mass = np.exp(weights(MIXTURE, MIXED, z, 1)).sum() * step**2
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def test_mixture_of_one_unit_normal_is_the_standard_normal():
    zeros = {"logits": jnp.zeros(1), "mean": jnp.zeros((1, 2))}
    params = Params({}, {}, zeros | {"log_scale": jnp.zeros((1, 2))})
    one, normal = MixturePrior(2, 1), StandardNormal(2)
    z = np.float32(40.0) * POINTS  # density 0 in float32, log-density not
    np.testing.assert_allclose(
        weights(one, params, z, 1), weights(normal, params, z, 1), rtol=1e-6
    )


def test_narrow_components_far_from_zero_keep_their_digits():
    """As expanded squares they would lose all but the first or second."""
    scale, apart = 2.0**-10, np.array([[0.0, 1.0], [-2.0, 0.5], [3.0, -3.0]])
    prior = MixturePrior(2, num_components=1)
    mixture = {
        "logits": jnp.zeros(1),
        "mean": jnp.full((1, 2), 4.0),
        "log_scale": jnp.full((1, 2), math.log(scale)),
    }
    found = weights(prior, Params({}, {}, mixture), np.float32(4.0 + scale * apart), 1)
    wanted = stats.norm.logpdf(scale * apart, scale=scale).sum(axis=1)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)


def test_memory_for_gradients_does_not_hold_all_dimensions_at_once():
    points, components, dimensions = 64, 256, 64
    prior = MixturePrior(dimensions, components)
    z = jnp.zeros((points, dimensions))

    def total(prior_params):
        params = Params({}, {}, prior_params)
        return prior.log_weights(params, jax.random.key(0), z, 1).sum()

    compiled = jax.jit(jax.grad(total)).lower(prior.init(jax.random.key(0))).compile()
    found = compiled.memory_analysis().temp_size_in_bytes
    assert found < 4 * points * components * dimensions / 4


def test_mixture_draws_components_by_weight():
    """Moments, and the share of draws that fall to each component."""
    num = 100_000
    z = np.asarray(MIXTURE.sample(MIXED, jax.random.key(0), num), np.float64)
    assert z.shape == (num, 2)
    mean = SHARES @ MEANS
    second = SHARES @ (SCALES**2 + MEANS**2)
    for drawn, wanted in ((z, mean), (z**2, second)):
        error = drawn.std(axis=0) / np.sqrt(num)
        assert (np.abs(drawn.mean(axis=0) - wanted) < 5.0 * error).all()
    terms = mixture_terms(z)
    shares = np.exp(terms - logsumexp(terms, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(shares, SHARES, atol=5 * 0.5 / np.sqrt(num))


def test_mixture_learns_by_the_responsibilities():
    """d log p(z) by logit: r_c - w_c; by mean: r_c (z - mu_c) / sigma_c^2; ..."""

    def total(params):
        key = jax.random.key(0)
        return MIXTURE.log_weights(params, key, jnp.asarray(POINTS), 1).sum()

    found = jax.jit(jax.grad(total))(MIXED).prior
    terms = mixture_terms(POINTS)
    r = np.exp(terms - logsumexp(terms, axis=1, keepdims=True))  # [B, C]
    standardised = (POINTS[:, None] - MEANS) / SCALES  # [B, C, D]
    wanted = {
        "logits": (r - SHARES).sum(axis=0),
        "mean": (r[..., None] * standardised / SCALES).sum(axis=0),
        "log_scale": (r[..., None] * (standardised**2 - 1.0)).sum(axis=0),
    }
    chex.assert_trees_all_close(found, jax.tree.map(jnp.float32, wanted), rtol=1e-3)


def test_mixture_starts_near_the_standard_normal_with_components_apart():
    start = MixturePrior(3, num_components=20_000).init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, start) == {
        "logits": (20_000,),
        "mean": (20_000, 3),
        "log_scale": (20_000, 3),
    }
    np.testing.assert_array_equal(start["logits"], 0.0)
    mean, scale = np.asarray(start["mean"]), np.exp(start["log_scale"])
    np.testing.assert_allclose(mean.mean(axis=0), 0.0, atol=5 * np.sqrt(0.5 / 20_000))
    covariance = np.cov(mean, rowvar=False) + np.diag((scale**2).mean(axis=0))
    np.testing.assert_allclose(
        covariance, np.eye(3), atol=5 * 0.5 * np.sqrt(2 / 20_000)
    )
    np.testing.assert_allclose(scale**2, 0.5, rtol=1e-6)  # and 0.5 is the means'
