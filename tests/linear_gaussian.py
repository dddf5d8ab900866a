"""Linear-Gaussian models, whose posteriors and densities are known in closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vhp_jax.distributions import DiagonalNormal
from vhp_jax.model import VAE
from vhp_jax.priors import HierarchicalPrior, StandardNormal
from vhp_jax.types import Params

TRACES = []


class Affine(nn.Module):
    """N(x W + b, diag(scale^2)), one scale for every input; notes each trace."""

    features: int

    @nn.compact
    def __call__(self, x):
        TRACES.append(x.shape)
        mean = nn.Dense(self.features)(x)
        log_scale = self.param("log_scale", nn.initializers.zeros, (self.features,))
        return DiagonalNormal(mean, jnp.broadcast_to(log_scale, mean.shape))


def affine(weight, bias, scale):
    """Variables of an `Affine`."""
    dense = {"kernel": jnp.float32(weight), "bias": jnp.float32(bias)}
    return {"params": {"Dense_0": dense, "log_scale": jnp.float32(np.log(scale))}}


def numpy_affine(variables, x):
    """Mean and standard deviation of an `Affine` in float64."""
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    dense = leaves["params"]["Dense_0"]
    mean = x @ dense["kernel"] + dense["bias"]
    return mean, np.exp(leaves["params"]["log_scale"])


def exact_posterior(weight, bias, scale, prior_mean=0.0, prior_variance=1.0):
    """Of u, where x = u W + b + scale eps and u ~ N(mean, diag(variance)).

    The rows of W must be orthogonal, so that the posterior is diagonal.

    Returns:
      Weight, bias and scale of the `Affine` of x that it is.
    """
    variance = 1.0 / (1.0 / prior_variance + np.diag(weight @ weight.T) / scale**2)
    gain = weight.T / scale**2 * variance
    return gain, prior_mean / prior_variance * variance - bias @ gain, np.sqrt(variance)


# x = z V + c + sigma eps; z = zeta W + b + s eps or z = eps. W is diagonal and the rows
# of V are orthogonal, so that p(zeta|z) and p(z|x) are diagonal.
V = np.diag([1.2, 0.7]) @ np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
C = np.array([0.1, -0.2, 0.4])
SIGMA = 0.5
W, B, S = np.diag([1.4, 0.8]), np.array([0.5, -0.3]), 0.6
PRIORS = {
    "standard": StandardNormal(2),
    "hierarchical": HierarchicalPrior(Affine(2), Affine(2), 2, 2),
}
MODELS = {name: VAE(Affine(2), Affine(3), prior) for name, prior in PRIORS.items()}


def marginal(name):
    """Mean and covariance of z."""
    if name == "hierarchical":
        return B, W.T @ W + S**2 * np.eye(2)
    return np.zeros(2), np.eye(2)


def linear_params(name, exact=False):
    """The model above; phi and Phi are the exact posteriors or wrong Gaussians."""
    mean, covariance = marginal(name)
    gain, bias, scale = exact_posterior(V, C, SIGMA, mean, np.diag(covariance))
    inner_gain, inner_bias, inner_scale = exact_posterior(W, B, S)
    if not exact:
        gain, bias, scale = 0.8 * gain, bias + 0.1, 1.3 * scale
        inner_gain, inner_bias = 0.7 * inner_gain, inner_bias + 0.2
        inner_scale = [0.5, 0.7]
    prior = {
        "encoder": affine(inner_gain, inner_bias, inner_scale),
        "decoder": affine(W, B, [S, S]),
    }
    return Params(
        affine(gain, bias, scale),
        affine(V, C, [SIGMA] * 3),
        prior if name == "hierarchical" else {},
    )


def log_evidence(name, x):
    """Log p(x), float64 [B]."""
    mean, covariance = marginal(name)
    return stats.multivariate_normal(
        mean @ V + C, V.T @ covariance @ V + SIGMA**2 * np.eye(3)
    ).logpdf(x)
