"""Bounds, rate, distortion, constraint and the Lagrangian.

An objective maps (params, key, x) to per-example `Terms`; the loss that is minimised is
`lagrangian(terms, beta)`, averaged over the batch there and nowhere else. A "bound" is
maximised, a "loss" is minimised.
"""

import functools
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vhp_jax.distributions import DiagonalNormal, Likelihood
from vhp_jax.model import VAE
from vhp_jax.types import Examples, Params, PerExample, PRNGKey, Scalar


class Terms(NamedTuple):
    """What a VAE objective is made of, one value per example.

    Attributes:
      distortion: -log p(x|z), nats, summed over pixels.
      rate: F of Eq. 9, an upper bound on KL(q(z|x) || p(z)) in expectation, nats.
      constraint: C(x, z), the error that is held under kappa^2 (see the objective).
    """

    distortion: PerExample
    rate: PerExample
    constraint: PerExample


@runtime_checkable
class Objective(Protocol):
    """A stochastic estimate of the terms for one batch."""

    def __call__(self, params: Params, key: PRNGKey, x: Examples) -> Terms:
        """Returns the terms of each example; differentiable in `params`."""


@runtime_checkable
class Constraint(Protocol):
    """C(x, z) of Eq. 4 for each example."""

    def __call__(
        self, likelihood: Likelihood, x: Float[Array, "*batch pixels"]
    ) -> Float[Array, "*batch"]:
        """Returns the reconstruction error of each example."""


def mse_mean(
    likelihood: Likelihood, x: Float[Array, "*batch pixels"]
) -> Float[Array, "*batch"]:
    """Squared error averaged over pixels, so that kappa is an RMS error per pixel.

    The paper does not define C; its values of kappa (0.02 to 0.31) fit this reading,
    not a sum over pixels nor a cross-entropy.
    """
    return jnp.mean(jnp.square(x - likelihood.mean), axis=-1)


def nll_mean(
    likelihood: Likelihood, x: Float[Array, "*batch pixels"]
) -> Float[Array, "*batch"]:
    """-log p(x|z) averaged over pixels, nats per pixel: C as a likelihood."""
    return -likelihood.log_prob(x) / x.shape[-1]


CONSTRAINTS: dict[str, Constraint] = {"mse_mean": mse_mean, "nll_mean": nll_mean}


def iw_bound(log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
    """Log (1/K) sum_k w_k: Burda et al. (2015), Eq. 8; the inner term of Eq. 9 here.

    In expectation a lower bound on log E[w] that rises with K; at K = 1 it is the
    one-sample ELBO.

    Args:
      log_weights: float32 [K, *batch], nats.

    Returns:
      float32 [*batch], nats.
    """
    log_num_samples = math.log(log_weights.shape[0])
    return jax.nn.logsumexp(log_weights, axis=0) - log_num_samples


def lagrangian(terms: Terms, beta: Scalar | float) -> Scalar:
    """Batch mean of distortion + beta * rate: Eq. 10 times beta, up to a constant.

    At beta = 1 it is minus a lower bound on log p(x). The paper's lambda multiplies C
    while the trained loss weighs the negative log-likelihood: the constraint steers
    beta, the likelihood is what is optimised. Both are summed over pixels or latents.
    """
    return jnp.mean(terms.distortion + beta * terms.rate)


def make_vhp_objective(
    model: VAE,
    num_samples: int,
    constraint: Constraint = mse_mean,
    dropout: bool = False,
) -> Objective:
    """NLL and F of Eq. 9 with one z per example and K draws of zeta per z.

    K = 1 is the ELBO variant of App. B.3. With a standard normal prior the rate is the
    usual single-sample KL estimate, so that the plain VAE is this objective too.

    Args:
      model: the VAE.
      num_samples: K >= 1, importance samples of zeta.
      constraint: C(x, z).
      dropout: whether a decoder with dropout drops units, as in training. Distortion
        and constraint are then those of p(x|z, m), masks m drawn for each example.
    """

    def objective(params: Params, key: PRNGKey, x: Examples) -> Terms:
        key_z, key_zeta, key_dropout = jax.random.split(key, 3)
        pixels = x.reshape(x.shape[0], -1)  # [B, pixels]
        # 1. z ~ q_phi(z|x).
        q_z = model.encode(params, x)
        z = q_z.sample(key_z)  # [B, D]
        # 2. The distortion, and the constraint on it.
        p_x = model.decode(params, z, key_dropout if dropout else None)
        distortion = -p_x.log_prob(pixels)  # [B]
        # 3. F: log q_phi(z|x) less the importance-weighted bound on log p(z).
        log_weights = model.prior.log_weights(params, key_zeta, z, num_samples)
        rate = q_z.log_prob(z) - iw_bound(log_weights)  # [B]
        return Terms(distortion, rate, constraint(p_x, pixels))

    return objective


def joint_log_weight(
    model: VAE,
    params: Params,
    key: PRNGKey,
    q_z: DiagonalNormal,
    pixels: Float[Array, "pixels"],
) -> Scalar:
    """Log importance weight of one example with one (z, zeta) pair: E[w] = p(x).

    What the estimator of log p(x) draws, with a key for each pair.

    log w = log p(x|z) + log [p(z|zeta) p(zeta) / q(zeta|z)] - log q(z|x),
    z ~ q(z|x), zeta ~ q(zeta|z). One joint pair per weight is the convention of the
    peers; nesting K draws of zeta in each z is looser for the same work.

    Args:
      model: the VAE.
      params: its parameters.
      key: PRNG key, used once.
      q_z: q(z|x) of the example, mean and log-scale float32 [D].
      pixels: the flattened example, float32 [pixels].

    Returns:
      float32 scalar, nats.
    """
    key_z, key_zeta = jax.random.split(key)
    z = q_z.sample(key_z)  # [D]
    log_p_x = model.decode(params, z).log_prob(pixels)
    log_p_z = model.prior.log_weights(params, key_zeta, z[None], 1)[0, 0]
    return log_p_x + log_p_z - q_z.log_prob(z)


def joint_log_weights(
    model: VAE,
    params: Params,
    keys: Key[Array, "S B"],
    q_z: DiagonalNormal,
    pixels: Float[Array, "B pixels"],
) -> Float[Array, "S B"]:
    """`joint_log_weight` for S draws of B examples, one key each; float32 [S, B]."""
    over_examples = jax.vmap(functools.partial(joint_log_weight, model, params))
    return jax.vmap(over_examples, in_axes=(0, None, None))(keys, q_z, pixels)


def make_iwae_objective(
    model: VAE,
    num_samples: int,
    constraint: Constraint = mse_mean,
    dropout: bool = False,
) -> Objective:
    """IWAE (Burda et al., 2015) with S joint samples, written as distortion + rate.

    The distortion is the plain mean over q(z|x); the rate is what is left of minus the
    bound, so that `lagrangian(terms, 1)` is exactly minus the IWAE bound. With the
    standard normal prior this is IWAE with one stochastic layer (L = 1), with the
    hierarchical prior the one with two (L = 2).

    Args:
      model: the VAE.
      num_samples: S >= 1 joint importance samples.
      constraint: C(x, z).
      dropout: see `make_vhp_objective`; each draw of z has masks of its own.
    """

    def objective(params: Params, key: PRNGKey, x: Examples) -> Terms:
        key_z, key_zeta, key_dropout = jax.random.split(key, 3)
        pixels = x.reshape(x.shape[0], -1)  # [B, pixels]
        # 1. S draws of z for each example.
        q_z = model.encode(params, x)
        z = q_z.sample_many(key_z, num_samples)  # [S, B, D]
        log_q_z = jax.vmap(q_z.log_prob)(z)  # [S, B]
        # 2. The networks see one axis of rows, the draws of an example side by side:
        # devices share the examples out.
        rows = jnp.swapaxes(z, 0, 1).reshape(-1, z.shape[-1])  # [B * S, D]
        copies = jnp.repeat(pixels, num_samples, axis=0)  # [B * S, pixels]
        shape = (x.shape[0], num_samples)
        # 3. The distortion of each draw, and the constraint on it.
        p_x = model.decode(params, rows, key_dropout if dropout else None)
        distortion = -p_x.log_prob(copies).reshape(shape)  # [B, S]
        errors = constraint(p_x, copies).reshape(shape)  # [B, S]
        # 4. The bound on log p(x), with one zeta for each z, less its part that is
        # named distortion.
        log_p_z = model.prior.log_weights(params, key_zeta, rows, 1).reshape(shape)
        log_weights = (log_p_z - distortion).T - log_q_z  # [S, B]
        mean_distortion = jnp.mean(distortion, axis=1)
        rate = -iw_bound(log_weights) - mean_distortion
        return Terms(mean_distortion, rate, jnp.mean(errors, axis=1))

    return objective
