"""Log-densities and reparameterised draws.

Every distribution is a NamedTuple of arrays whose last axis is the event axis. A
log-density sums over that axis and keeps the others; nothing here averages.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vhp_jax.types import PRNGKey

_LOG_2PI = math.log(2.0 * math.pi)


@runtime_checkable
class Likelihood(Protocol):
    """What a decoder returns: p(x|z) for a batch of z."""

    @property
    def mean(self) -> Float[Array, "*batch D"]:
        """Expected value of x, in the units of the data."""

    def log_prob(self, value: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-density in nats, summed over the last axis."""


class DiagonalNormal(NamedTuple):
    """Normal distribution with a diagonal covariance.

    Attributes:
      mean: float32 [*batch, D].
      log_scale: float32 [*batch, D], or a scalar for one scale shared by all entries
        (the Gaussian decoder with a learned global scale).
    """

    mean: Float[Array, "*batch D"]
    log_scale: Float[Array, "*batch D"] | Float[Array, ""]

    @property
    def scale(self) -> Float[Array, "*batch D"] | Float[Array, ""]:
        """Standard deviation, float32, shaped as `log_scale`."""
        return jnp.exp(self.log_scale)

    def log_prob(self, value: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-density of `value` in nats, summed over the last axis."""
        standardised = (value - self.mean) * jnp.exp(-self.log_scale)
        constant = _LOG_2PI + 2.0 * self.log_scale
        return -0.5 * jnp.sum(jnp.square(standardised) + constant, axis=-1)

    def sample(self, key: PRNGKey) -> Float[Array, "*batch D"]:
        """One reparameterised draw per batch entry."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + self.scale * noise

    def sample_many(self, key: PRNGKey, num_samples: int) -> Float[Array, "K *batch D"]:
        """`num_samples` independent reparameterised draws on a new leading axis."""
        shape = (num_samples, *self.mean.shape)
        noise = jax.random.normal(key, shape, self.mean.dtype)
        return jax.vmap(lambda eps: self.mean + self.scale * eps)(noise)


class Bernoulli(NamedTuple):
    """Independent binary pixels.

    Attributes:
      logits: float32 [*batch, D], log-odds of a one.
    """

    logits: Float[Array, "*batch D"]

    @property
    def mean(self) -> Float[Array, "*batch D"]:
        """Probability of a one."""
        return jax.nn.sigmoid(self.logits)

    def log_prob(self, value: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Log-probability in nats, summed over the last axis.

        For grey values in [0, 1] it is minus the cross-entropy: the mean of the
        log-probability over binary pixels with those means.
        """
        return jnp.sum(value * self.logits - _softplus(self.logits), axis=-1)


def _softplus(x: Array) -> Array:
    """log(1 + e^x), as exact in absolute terms as the float32 sums it goes into.

    `jax.nn.softplus` keeps relative precision where e^x is tiny too, which a sum over
    pixels loses anyway, and is slower on a CPU.
    """
    return jnp.maximum(x, 0.0) + jnp.log(1.0 + jnp.exp(jnp.minimum(x, -x)))


def draw_binary(key: PRNGKey, means: Float[Array, "*batch D"]) -> Array:
    """One draw of independent binary pixels, float32 0 or 1, shaped as their means."""
    return jax.random.bernoulli(key, means).astype(means.dtype)


def mixture_log_prob(
    log_w: Float[Array, "C"], normals: DiagonalNormal, value: Float[Array, "B D"]
) -> Float[Array, "B"]:
    """Log sum_c w_c N(value; mu_c, diag(sigma_c^2)) in nats.

    Sums up one dimension after the other, so that nothing of size [B, C, D] is ever
    made: on a CPU that is several times as fast, gradients included. As a product of
    matrices it would lose the digits of narrow components far from 0.

    Args:
      log_w: logarithms of the weights, float32 [C].
      normals: the components, mean and log-scale float32 [C, D].
      value: float32 [B, D].
    """

    @jax.checkpoint  # made once more for the gradient, not kept
    def square(
        x: Float[Array, "B"], mean: Float[Array, "C"], log_scale: Float[Array, "C"]
    ) -> Float[Array, "B C"]:
        return jnp.square((x[:, None] - mean[None]) * jnp.exp(-log_scale)[None])

    zero = jnp.zeros((value.shape[0], log_w.shape[0]))
    squares, _ = lax.scan(
        lambda total, dimension: (total + square(*dimension), None),
        zero,
        (value.T, normals.mean.T, normals.log_scale.T),
    )
    peaks = log_w + normals.log_prob(normals.mean)  # [C]
    return jax.nn.logsumexp(peaks[None] - 0.5 * squares, axis=1)


def standard_normal_log_prob(value: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """Log-density of N(0, I) in nats, summed over the last axis."""
    return -0.5 * jnp.sum(jnp.square(value) + _LOG_2PI, axis=-1)


def kl_to_standard_normal(
    mean: Float[Array, "*batch D"], log_scale: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """KL(N(mean, scale^2) || N(0, 1)) in nats, one value per dimension (not summed)."""
    second_moment = jnp.square(mean) + jnp.exp(2.0 * log_scale)
    return 0.5 * (second_moment - 1.0) - log_scale
