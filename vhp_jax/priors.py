"""Priors p(z) behind one interface.

A prior answers with importance weights w_k such that E[w_k] = p(z). A prior with a
density in closed form gives one exact weight; the hierarchical prior gives one weight
per draw zeta_k ~ q(zeta|z). Every objective and estimator is written once, in terms of
these weights.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vhp_jax.distributions import (
    DiagonalNormal,
    mixture_log_prob,
    standard_normal_log_prob,
)
from vhp_jax.types import Latents, LogWeights, Params, PRNGKey, PyTree


@runtime_checkable
class Prior(Protocol):
    """A (possibly learned) distribution over z."""

    @property
    def latent_dim(self) -> int:
        """Dimensions D of z."""

    def init(self, key: PRNGKey) -> PyTree:
        """Returns the prior's own parameters (Theta, Phi)."""

    def log_weights(
        self, params: Params, key: PRNGKey, z: Latents, num_samples: int
    ) -> LogWeights:
        """Unbiased weights for p(z): E[exp(log_weights[k])] = p(z).

        Args:
          params: all parameters of the model (a prior may share the encoder).
          key: PRNG key, used once.
          z: float32 [B, D].
          num_samples: K. A prior with an exact density may return fewer rows.

        Returns:
          float32 [K, B], nats.
        """

    def sample(
        self, params: Params, key: PRNGKey, num_samples: int
    ) -> Float[Array, "N D"]:
        """Ancestral samples z ~ p(z), float32 [num_samples, D]."""


@dataclasses.dataclass(frozen=True)
class StandardNormal:
    """p(z) = N(0, I); nothing is learned, the single weight is exact."""

    latent_dim: int

    def init(self, key: PRNGKey) -> PyTree:
        """No parameters."""
        del key
        return {}

    def log_weights(
        self, params: Params, key: PRNGKey, z: Latents, num_samples: int
    ) -> LogWeights:
        """Exact log p(z), float32 [1, B]."""
        del params, key, num_samples
        return standard_normal_log_prob(z)[None]

    def sample(
        self, params: Params, key: PRNGKey, num_samples: int
    ) -> Float[Array, "N D"]:
        """Draws from N(0, I)."""
        del params
        return jax.random.normal(key, (num_samples, self.latent_dim))


@dataclasses.dataclass(frozen=True)
class HierarchicalPrior:
    """VHP: p(z) = int p_Theta(z|zeta) N(zeta; 0, I) dzeta, Eq. 8.

    Attributes:
      encoder: module of q_Phi(zeta|z), [B, D] -> DiagonalNormal.
      decoder: module of p_Theta(z|zeta), [B, D_zeta] -> DiagonalNormal.
      latent_dim: dimensions D of z.
      inner_dim: dimensions of zeta.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    inner_dim: int

    def init(self, key: PRNGKey) -> PyTree:
        """Returns {"encoder": Phi, "decoder": Theta}."""
        key_encoder, key_decoder = jax.random.split(key)
        return {
            "encoder": self.encoder.init(key_encoder, jnp.zeros((1, self.latent_dim))),
            "decoder": self.decoder.init(key_decoder, jnp.zeros((1, self.inner_dim))),
        }

    def posterior(self, params: Params, z: Latents) -> DiagonalNormal:
        """q_Phi(zeta|z)."""
        return self.encoder.apply(params.prior["encoder"], z)

    def conditional(
        self, params: Params, zeta: Float[Array, "*batch D"]
    ) -> DiagonalNormal:
        """p_Theta(z|zeta)."""
        return self.decoder.apply(params.prior["decoder"], zeta)

    def log_weights(
        self, params: Params, key: PRNGKey, z: Latents, num_samples: int
    ) -> LogWeights:
        """Log [p_Theta(z|zeta_k) p(zeta_k) / q_Phi(zeta_k|z)], zeta_k ~ q_Phi: Eq. 9.

        Differentiable through z and through the reparameterised draws.
        """
        q_zeta = self.posterior(params, z)
        zeta = q_zeta.sample_many(key, num_samples)  # [K, B, D_zeta]
        # The network sees the examples first, as devices share them out.
        p_z = self.conditional(params, jnp.swapaxes(zeta, 0, 1))  # [B, K, D]
        log_p_z = p_z.log_prob(jnp.broadcast_to(z[:, None], p_z.mean.shape))  # [B, K]
        log_q_zeta = jax.vmap(q_zeta.log_prob)(zeta)  # [K, B]
        return log_p_z.T + standard_normal_log_prob(zeta) - log_q_zeta

    def sample(
        self, params: Params, key: PRNGKey, num_samples: int
    ) -> Float[Array, "N D"]:
        """Zeta ~ N(0, I), then z ~ p_Theta(z|zeta): Eq. 14."""
        key_zeta, key_z = jax.random.split(key)
        zeta = jax.random.normal(key_zeta, (num_samples, self.inner_dim))
        return self.conditional(params, zeta).sample(key_z)


@dataclasses.dataclass(frozen=True)
class VampPrior:
    """p(z) = (1/C) sum_c q_phi(z|u_c): Tomczak & Welling (2018), Eq. 9.

    The pseudo-inputs u_c are learned; the components are the encoder's own posteriors,
    so that the prior moves with phi too.

    Attributes:
      encoder: the model's module of q_phi(z|x).
      latent_dim: dimensions D of z.
      example_shape: shape of one pseudo-input.
      num_components: C.
      bounds: least and largest value of a pseudo-input, (0, 1) for images. Beyond them
        it has no gradient, as in the original's hard limits. None: any value, for
        data that know no limits.
    """

    encoder: nn.Module
    latent_dim: int
    example_shape: tuple[int, ...]
    num_components: int = 500
    bounds: tuple[float, float] | None = None

    def init(self, key: PRNGKey) -> PyTree:
        """Standard normal pseudo-inputs, for want of data; see `init_pseudo_inputs`."""
        shape = (self.num_components, *self.example_shape)
        return {"pseudo_inputs": jax.random.normal(key, shape)}

    def components(self, params: Params) -> DiagonalNormal:
        """The C posteriors q_phi(z|u_c), mean and log-scale float32 [C, D]."""
        pseudo_inputs = params.prior["pseudo_inputs"]
        if self.bounds is not None:
            pseudo_inputs = jnp.clip(pseudo_inputs, *self.bounds)
        return self.encoder.apply(params.encoder, pseudo_inputs)

    def log_weights(
        self, params: Params, key: PRNGKey, z: Latents, num_samples: int
    ) -> LogWeights:
        """Exact log p(z), float32 [1, B]."""
        del key, num_samples
        log_w = jnp.full(self.num_components, -math.log(self.num_components))
        return mixture_log_prob(log_w, self.components(params), z)[None]

    def sample(
        self, params: Params, key: PRNGKey, num_samples: int
    ) -> Float[Array, "N D"]:
        """A component at random, then a draw from it."""
        key_component, key_z = jax.random.split(key)
        q_z = self.components(params)
        chosen = jax.random.randint(
            key_component, (num_samples,), 0, self.num_components
        )
        return jax.tree.map(lambda field: field[chosen], q_z).sample(key_z)


@dataclasses.dataclass(frozen=True)
class MixturePrior:
    """p(z) = sum_c w_c N(z; mu_c, diag(sigma_c^2)): a mixture of Gaussians.

    Weights, means and scales are learned directly; no network is involved.

    Attributes:
      latent_dim: dimensions D of z.
      num_components: C.
    """

    latent_dim: int
    num_components: int = 500

    def init(self, key: PRNGKey) -> PyTree:
        """Equal weights; means and scales make half of a variance of 1 each."""
        shape = (self.num_components, self.latent_dim)
        return {
            "logits": jnp.zeros(self.num_components),
            "mean": math.sqrt(0.5) * jax.random.normal(key, shape),
            "log_scale": jnp.full(shape, 0.5 * math.log(0.5)),
        }

    def components(self, params: Params) -> DiagonalNormal:
        """The C normals, mean and log-scale float32 [C, D]."""
        return DiagonalNormal(params.prior["mean"], params.prior["log_scale"])

    def log_weights(
        self, params: Params, key: PRNGKey, z: Latents, num_samples: int
    ) -> LogWeights:
        """Exact log p(z), float32 [1, B]."""
        del key, num_samples
        log_w = jax.nn.log_softmax(params.prior["logits"])
        return mixture_log_prob(log_w, self.components(params), z)[None]

    def sample(
        self, params: Params, key: PRNGKey, num_samples: int
    ) -> Float[Array, "N D"]:
        """A component by its weight, then a draw from it."""
        key_component, key_z = jax.random.split(key)
        chosen = jax.random.categorical(
            key_component, params.prior["logits"], shape=(num_samples,)
        )
        normals = self.components(params)
        return jax.tree.map(lambda field: field[chosen], normals).sample(key_z)


def init_pseudo_inputs(
    key: PRNGKey, examples: Float[ArrayLike, "N *example"], num_components: int
) -> Float[Array, "C *example"]:
    """Pseudo-inputs from the statistics of the training set, all but equal to start.

    Each is the mean of all entries of all examples, give or take 0.03 of their standard
    deviation: the prior begins as nearly one Gaussian, and parts as it learns.
    docs/likelihood.md compares other starts.

    Args:
      key: PRNG key, used once.
      examples: training set, float32 [N, *example].
      num_components: C.

    Returns:
      float32 [C, *example].
    """
    examples = np.asarray(examples)
    mean, scale = examples.mean(dtype="f8"), examples.std(dtype="f8")
    noise = jax.random.normal(key, (num_components, *examples.shape[1:]))
    return jnp.float32(mean) + jnp.float32(0.03 * scale) * noise
