"""Bounds, terms and gradients: by hand, in NumPy, and against closed forms."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from tests.linear_gaussian import MODELS as LINEAR
from tests.linear_gaussian import (
    SIGMA,
    C,
    V,
    linear_params,
    log_evidence,
    numpy_affine,
)
from vhp_jax.distributions import DiagonalNormal
from vhp_jax.model import VAE
from vhp_jax.networks import BernoulliDecoder, Flat, GaussianDecoder, NormalMLP
from vhp_jax.objectives import (
    CONSTRAINTS,
    Constraint,
    Objective,
    Terms,
    iw_bound,
    lagrangian,
    make_iwae_objective,
    make_vhp_objective,
    mse_mean,
    nll_mean,
)
from vhp_jax.priors import HierarchicalPrior, StandardNormal

SLOW = pytest.mark.slow
MAKERS = {"vhp": make_vhp_objective, "iwae": make_iwae_objective}

# --- A small model of the real networks ----------------------------------------------

PRIORS = {
    "standard": StandardNormal(2),
    "hierarchical": HierarchicalPrior(NormalMLP((8,), 2), NormalMLP((8,), 2), 2, 2),
}
MODELS = {
    name: VAE(
        Flat(NormalMLP((8,), 2, scale_init=0.5)),
        GaussianDecoder((8,), 4, scale_init=0.5),
        prior,
    )
    for name, prior in PRIORS.items()
}
IMAGES = np.random.default_rng(1).uniform(0.0, 1.0, (3, 2, 2)).astype(np.float32)


def real_params(model):
    """Random weights and biases everywhere, so that no scale is constant."""
    params = jax.jit(lambda key: model.init(key, (2, 2)))(jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.float32(leaf + 0.2 * generator.normal(size=leaf.shape)), params
    )


def numpy_mlp(variables, x):
    """Forward pass of an MLP in float64."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    for index in range(len(layers)):
        layer = layers[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return x


def numpy_normal(variables, x):
    """Mean and standard deviation of a NormalMLP in float64."""
    mean, log_scale = np.split(numpy_mlp(variables["MLP_0"], x), 2, axis=-1)
    return mean, np.exp(log_scale)


def log_normal(value, mean, scale):
    return stats.norm.logpdf(value, mean, scale).sum(axis=-1)


def numpy_parts(params, z_noise, zeta_noise):
    """Log p(x|z), log q(z|x), log prior weights and C, from standard normal draws.

    Args:
      params: of a model in `MODELS`.
      z_noise: [*samples, B, 2].
      zeta_noise: [K, *samples, B, 2].

    Returns:
      Arrays [*samples, B], the third one [K or 1, *samples, B].
    """
    pixels = IMAGES.reshape(3, 4).astype(np.float64)
    mean, scale = numpy_normal(params.encoder["params"]["network"], pixels)
    z = mean + scale * np.asarray(z_noise, np.float64)
    decoder = params.decoder["params"]
    p_x = numpy_mlp(decoder["MLP_0"], z)
    log_p_x = log_normal(pixels, p_x, np.exp(np.float64(decoder["log_scale"])))
    log_w = log_normal(z, 0.0, 1.0)[None]
    if params.prior:
        q_mean, q_scale = numpy_normal(params.prior["encoder"]["params"], z)
        zeta = q_mean + q_scale * np.asarray(zeta_noise, np.float64)
        log_w = log_normal(
            z, *numpy_normal(params.prior["decoder"]["params"], zeta)
        ) + (log_normal(zeta, 0.0, 1.0) - log_normal(zeta, q_mean, q_scale))
    error = np.square(p_x - pixels).mean(axis=-1)
    return log_p_x, log_normal(z, mean, scale), log_w, error


# --- A linear-Gaussian model with known log p(x) -------------------------------------


X = np.array([[0.3, 1.0, -0.5], [-1.0, 0.2, 0.9]], np.float32)


def bounds(objective, params, num_runs, seed=0):
    """-(distortion + rate) of X under `num_runs` keys, float64 [num_runs, 2]."""
    keys = jax.random.split(jax.random.key(seed), num_runs)
    run = jax.jit(jax.vmap(lambda key: objective(params, key, jnp.asarray(X))))
    terms = run(keys)
    return -np.asarray(terms.distortion + terms.rate, np.float64)


def stderr(draws):
    return draws.std(axis=0) / np.sqrt(len(draws))


# --- iw_bound, Lagrangian, constraints -----------------------------------------------


def test_iw_bound_is_the_log_of_the_average_weight():
    log_w = np.random.default_rng(0).normal(-3.0, 2.0, (6, 4)).astype(np.float32)
    bound = iw_bound(jnp.asarray(log_w))
    np.testing.assert_allclose(bound, np.log(np.exp(log_w).mean(axis=0)), rtol=1e-5)


@pytest.mark.parametrize("offset", [-2000.0, 2000.0])
def test_iw_bound_neither_over_nor_underflows(offset):
    log_w = jnp.float32([[1.0], [3.0]]) + offset
    wanted = np.log((np.exp(-1.0) + np.exp(1.0)) / 2.0) + offset + 2.0
    np.testing.assert_allclose(iw_bound(log_w), [wanted], rtol=1e-6)


def test_iw_bound_of_one_weight_or_of_equal_weights_is_that_weight():
    one = jnp.float32([[-3.0, 0.25]])
    chex.assert_trees_all_close(iw_bound(one), one[0])
    chex.assert_trees_all_close(iw_bound(jnp.tile(one, (9, 1))), one[0], atol=1e-6)


def test_the_gradient_of_iw_bound_is_the_normalised_weights():
    log_w = jnp.float32([[1.0], [3.0], [-2.0]])
    weights = np.exp(np.asarray(log_w))
    gradient = jax.grad(lambda log_w: iw_bound(log_w)[0])(log_w)
    np.testing.assert_allclose(gradient, weights / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize(("beta", "wanted"), [(0.0, 2.0), (0.5, 4.0), (1.0, 6.0)])
def test_lagrangian_at_known_beta(beta, wanted):
    terms = Terms(*jnp.float32([[1.0, 3.0], [6.0, 2.0], [100.0, 200.0]]))
    for value in (beta, jnp.float32(beta)):
        loss = lagrangian(terms, value)
        chex.assert_shape(loss, ())
        assert float(loss) == wanted


def test_constraints_are_means_over_pixels():
    generator = np.random.default_rng(0)
    x, mean = generator.normal(size=(2, 3, 4)).astype(np.float32)
    likelihood = DiagonalNormal(jnp.asarray(mean), jnp.float32(np.log(0.3)))
    np.testing.assert_allclose(
        mse_mean(likelihood, jnp.asarray(x)), ((x - mean) ** 2).mean(axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        nll_mean(likelihood, jnp.asarray(x)),
        -stats.norm.logpdf(x, mean, 0.3).mean(axis=1),
        rtol=1e-4,
    )
    assert {"mse_mean": mse_mean, "nll_mean": nll_mean} == CONSTRAINTS
    assert all(
        isinstance(constraint, Constraint) for constraint in (mse_mean, nll_mean)
    )


CASES = [
    ("hierarchical", 5),
    pytest.param("hierarchical", 1, marks=SLOW),
    pytest.param("standard", 5, marks=SLOW),
    pytest.param("standard", 1, marks=SLOW),
]


# --- Terms against NumPy -------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_samples"), CASES)
def test_vhp_terms_equal_numpy_on_the_same_draws(name, num_samples):
    model, key = MODELS[name], jax.random.key(2)
    params = real_params(model)
    objective = jax.jit(make_vhp_objective(model, num_samples))
    terms = objective(params, key, jnp.asarray(IMAGES))
    key_z, key_zeta, _ = jax.random.split(key, 3)
    log_p_x, log_q, log_w, error = numpy_parts(
        params,
        jax.random.normal(key_z, (3, 2)),
        jax.random.normal(key_zeta, (num_samples, 3, 2)),
    )
    bound = logsumexp(log_w, axis=0) - np.log(len(log_w))
    chex.assert_shape(terms, (3,))
    np.testing.assert_allclose(terms.distortion, -log_p_x, rtol=1e-4)
    np.testing.assert_allclose(terms.rate, log_q - bound, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.constraint, error, rtol=1e-4)


def iwae_noise(key, num_samples):
    """The standard normal draws of the IWAE objective: [S, 3, 2] and [1, S, 3, 2]."""
    key_z, key_zeta, _ = jax.random.split(key, 3)
    z_noise = jax.random.normal(key_z, (num_samples, 3, 2))
    zeta_noise = jax.random.normal(key_zeta, (1, 3 * num_samples, 2))
    return z_noise, zeta_noise.reshape(1, 3, num_samples, 2).swapaxes(1, 2)


@SLOW
@pytest.mark.parametrize(("name", "num_samples"), CASES)
def test_iwae_terms_equal_numpy_on_the_same_draws(name, num_samples):
    model, key = MODELS[name], jax.random.key(3)
    params = real_params(model)
    objective = jax.jit(make_iwae_objective(model, num_samples))
    terms = objective(params, key, jnp.asarray(IMAGES))
    log_p_x, log_q, log_p_z, error = numpy_parts(params, *iwae_noise(key, num_samples))
    log_w = log_p_x + log_p_z[0] - log_q  # [S, 3]
    bound = logsumexp(log_w, axis=0) - np.log(num_samples)
    np.testing.assert_allclose(terms.distortion, -log_p_x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(terms.constraint, error.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(lagrangian(terms, 1.0), -bound.mean(), rtol=1e-4)
    np.testing.assert_allclose(
        terms.rate, -bound + log_p_x.mean(axis=0), rtol=1e-3, atol=1e-4
    )


@SLOW
@pytest.mark.parametrize("objective", MAKERS)
def test_the_constraint_is_the_one_asked_for(objective):
    model = MODELS["standard"]
    params = real_params(model)
    make = MAKERS[objective]
    terms = jax.jit(make(model, 2, nll_mean))(
        params, jax.random.key(4), jnp.asarray(IMAGES)
    )
    np.testing.assert_allclose(terms.constraint, terms.distortion / 4.0, rtol=1e-5)


@pytest.mark.parametrize("objective", MAKERS)
def test_dropout_changes_the_distortion_where_it_is_asked_for_and_nothing_else(
    objective,
):
    """The draws of z and zeta stay, and with them the rate."""
    model = MODELS["hierarchical"]
    model = dataclasses.replace(model, decoder=BernoulliDecoder((8,), 4, dropout=0.5))
    bare = dataclasses.replace(model, decoder=BernoulliDecoder((8,), 4))
    params, key = real_params(model), jax.random.key(3)
    x, make = jnp.asarray(IMAGES), MAKERS[objective]
    whole = make(model, 1)(params, key, x)
    chex.assert_trees_all_equal(whole, make(bare, 1)(params, key, x))
    chex.assert_trees_all_equal(whole, make(bare, 1, dropout=True)(params, key, x))
    terms = make(model, 1, dropout=True)(params, key, x)
    np.testing.assert_allclose(terms.rate, whole.rate, rtol=1e-4)
    assert np.abs(terms.distortion - whole.distortion).min() > 1e-3


def test_each_draw_of_the_iwae_drops_units_of_its_own():
    """One unit, p = 1/2, z all but equal: 0 to 3 of 3 draws have lost it."""
    model = dataclasses.replace(
        MODELS["standard"],
        encoder=Flat(NormalMLP((8,), 2, scale_init=1e-6)),
        decoder=BernoulliDecoder((1,), 4, dropout=0.5),
    )
    params = jax.jit(lambda key: model.init(key, (2, 2)))(jax.random.key(1))
    objective = make_iwae_objective(model, 3, dropout=True)
    seen = jax.vmap(lambda key: objective(params, key, jnp.asarray(IMAGES)).distortion)(
        jax.random.split(jax.random.key(0), 200)
    )
    for column in np.asarray(seen).T:
        values, counts = np.unique(np.round(column, 3), return_counts=True)
        assert len(values) == 4
        np.testing.assert_allclose(np.diff(values), np.diff(values).mean(), atol=3e-3)
        assert counts.argmax() in (1, 2)  # binomial: 1/8, 3/8, 3/8, 1/8


@SLOW
@pytest.mark.parametrize("name", MODELS)
def test_iwae_with_one_sample_is_the_one_sample_elbo(name):
    """S = 1 gives the terms of the VHP objective at K = 1, of the same key."""
    model, key = MODELS[name], jax.random.key(5)
    params, images = real_params(model), jnp.asarray(IMAGES)
    iwae = jax.jit(make_iwae_objective(model, 1))(params, key, images)
    vhp = jax.jit(make_vhp_objective(model, 1))(params, key, images)
    chex.assert_trees_all_close(iwae, vhp, rtol=1e-5, atol=1e-5)


@SLOW
@pytest.mark.parametrize("objective", MAKERS)
def test_terms_are_the_same_eager_and_jitted(objective):
    model, key, x = MODELS["hierarchical"], jax.random.key(6), jnp.asarray(IMAGES)
    params, function = real_params(model), MAKERS[objective](model, 3)
    assert isinstance(function, Objective)
    chex.assert_trees_all_close(
        function(params, key, x),
        jax.jit(function)(params, key, x),
        rtol=1e-5,
        atol=1e-5,
    )


# --- Gradients -----------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize("objective", MAKERS)
def test_gradients_equal_finite_differences_in_every_group(objective):
    """In float64, along a random direction of each of phi, theta, Phi, Theta."""
    model, epsilon = MODELS["hierarchical"], 1e-6
    narrow, generator = real_params(model), np.random.default_rng(10)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), narrow)
        x, key = jnp.asarray(IMAGES, jnp.float64), jax.random.key(7)
        function = MAKERS[objective](model, 3)

        def loss(params):
            return lagrangian(function(params, key, x), 0.7)

        value, gradient = jax.jit(loss), jax.jit(jax.grad(loss))(params)
        for group in (".encoder", ".decoder", ".prior['encoder']", ".prior['decoder']"):

            def direction_of(path, leaf, group=group):
                inside = jax.tree_util.keystr(path).startswith(group)
                return jnp.asarray(inside * generator.normal(size=leaf.shape))

            direction = jax.tree_util.tree_map_with_path(direction_of, params)
            ahead, behind = (
                value(jax.tree.map(lambda p, d, e=e: p + e * d, params, direction))
                for e in (epsilon, -epsilon)
            )
            along = jax.tree.map(jnp.vdot, gradient, direction)
            slope = float(sum(jax.tree.leaves(along)))
            assert abs(slope) > 1e-2
            np.testing.assert_allclose(
                slope, (ahead - behind) / (2.0 * epsilon), rtol=1e-6
            )


@SLOW
def test_the_loss_reaches_every_parameter():
    model = MODELS["hierarchical"]
    params, key, x = real_params(model), jax.random.key(8), jnp.asarray(IMAGES)
    objective = make_vhp_objective(model, 4)

    @jax.jit
    def gradients(params):
        return [
            jax.grad(lambda params, name=name: part(params, name))(params)
            for name in Terms._fields
        ]

    def part(params, name):
        return jnp.mean(getattr(objective(params, key, x), name))

    distortion, rate, constraint = gradients(params)

    def size(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    # Through z to phi, in every term; theta by distortion and constraint only; the
    # prior by the rate only.
    for gradient in (distortion, rate, constraint):
        assert size(gradient.encoder) > 1e-3
    assert size(distortion.decoder) > 1e-3
    assert size(constraint.decoder) > 1e-3
    assert size(rate.prior["encoder"]) > 1e-3
    assert size(rate.prior["decoder"]) > 1e-3
    chex.assert_trees_all_equal(
        (rate.decoder, distortion.prior, constraint.prior),
        jax.tree.map(jnp.zeros_like, (rate.decoder, params.prior, params.prior)),
    )


@SLOW
def test_the_iwae_gradient_is_the_sum_of_normalised_weights_times_their_gradients():
    """Grad of the bound = sum_s softmax(log w)_s grad log w_s, averaged over B."""
    model, key, x = MODELS["hierarchical"], jax.random.key(9), jnp.asarray(IMAGES)
    params, objective = real_params(model), make_iwae_objective(model, 4)
    key_z, key_zeta, _ = jax.random.split(key, 3)

    def log_weights(params):
        q_z = model.encode(params, x)
        z = q_z.sample_many(key_z, 4)  # [4, 3, D]
        rows = jnp.swapaxes(z, 0, 1).reshape(12, -1)
        log_p_z = model.prior.log_weights(params, key_zeta, rows, 1).reshape(3, 4).T
        likelihoods = jax.vmap(lambda z: model.decode(params, z))(z)
        log_p_x = jax.vmap(lambda p_x: p_x.log_prob(x.reshape(3, 4)))(likelihoods)
        return log_p_x + log_p_z - jax.vmap(q_z.log_prob)(z)

    def loss(params):
        return lagrangian(objective(params, key, x), 1.0)

    log_w, jacobian = jax.jit(lambda p: (log_weights(p), jax.jacrev(log_weights)(p)))(
        params
    )
    weights = np.exp(np.asarray(log_w, np.float64))
    weights /= weights.sum(axis=0)
    assert weights.max() > 0.4
    wanted = jax.tree.map(
        lambda leaf: -np.einsum("sb,sb...->...", weights, np.float64(leaf)) / 3.0,
        jacobian,
    )
    gradient = jax.jit(jax.grad(loss))(params)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4),
        gradient,
        wanted,
    )


# --- Linear-Gaussian closed forms ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "objective", "num_samples"),
    [
        ("standard", "vhp", 1),
        ("hierarchical", "vhp", 3),
        pytest.param("hierarchical", "vhp", 1, marks=SLOW),
        pytest.param("standard", "iwae", 1, marks=SLOW),
        pytest.param("standard", "iwae", 3, marks=SLOW),
        pytest.param("hierarchical", "iwae", 1, marks=SLOW),
        pytest.param("hierarchical", "iwae", 3, marks=SLOW),
    ],
)
def test_with_exact_posteriors_every_draw_gives_log_p_x(name, objective, num_samples):
    function = MAKERS[objective](LINEAR[name], num_samples)
    draws = bounds(function, linear_params(name, exact=True), 8)
    np.testing.assert_allclose(draws, np.tile(log_evidence(name, X), (8, 1)), atol=3e-5)


def test_the_plain_vae_has_the_elbo_in_closed_form():
    params = linear_params("standard", exact=False)
    mean, scale = numpy_affine(params.encoder, X)
    variance = scale**2
    residual = np.square(X - mean @ V - C).sum(axis=1) + variance @ np.square(V).sum(1)
    reconstruction = -0.5 * (residual / SIGMA**2 + 3 * np.log(2 * np.pi * SIGMA**2))
    kl = 0.5 * (mean**2 + variance - 1.0 - np.log(variance)).sum(axis=1)
    draws = bounds(make_vhp_objective(LINEAR["standard"], 1), params, 40_000)
    error = stderr(draws)
    assert (error < 0.02).all()
    assert (np.abs(draws.mean(axis=0) - (reconstruction - kl)) < 5 * error).all()
    assert (draws.mean(axis=0) + 5 * error < log_evidence("standard", X)).all()


@SLOW
@pytest.mark.parametrize(
    ("objective", "name"),
    [("vhp", "hierarchical"), ("iwae", "standard"), ("iwae", "hierarchical")],
)
def test_bounds_rise_with_the_samples_and_stay_under_log_p_x(objective, name):
    """The VHP bound with K, IWAE of one and of two levels with S; ELBO at 1."""
    params, make = linear_params(name, exact=False), MAKERS[objective]
    means, errors = [], []
    for seed, num_samples in enumerate((1, 4, 16)):
        draws = bounds(make(LINEAR[name], num_samples), params, 20_000, seed)
        means.append(draws.mean())
        errors.append(stderr(draws.mean(axis=1)))
    truth = log_evidence(name, X).mean()
    for lower, upper, error in zip(means, [*means[1:], truth], errors, strict=True):
        assert upper - lower > 5.0 * error
    if objective == "iwae":  # its gap vanishes; VHP keeps the one of q(z|x)
        assert truth - means[2] < 0.15 * (truth - means[0])
