"""The VAE: encoder, decoder and prior, tied together without state."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vhp_jax.distributions import DiagonalNormal, Likelihood
from vhp_jax.priors import Prior
from vhp_jax.types import Examples, Latents, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class VAE:
    """q_phi(z|x), p_theta(x|z) and p(z). Static and hashable; parameters live outside.

    Attributes:
      encoder: module of q_phi(z|x), [B, *example] -> DiagonalNormal over [B, D].
      decoder: module of p_theta(x|z), [..., D] -> Likelihood over flat examples.
      prior: p(z).
    """

    encoder: nn.Module
    decoder: nn.Module
    prior: Prior

    @property
    def latent_dim(self) -> int:
        """Dimensions D of z."""
        return self.prior.latent_dim

    def init(self, key: PRNGKey, example_shape: tuple[int, ...]) -> Params:
        """Draws all parameters.

        Args:
          key: PRNG key, used once.
          example_shape: shape of one example, without the batch axis.
        """
        key_encoder, key_decoder, key_prior = jax.random.split(key, 3)
        return Params(
            encoder=self.encoder.init(key_encoder, jnp.zeros((1, *example_shape))),
            decoder=self.decoder.init(key_decoder, jnp.zeros((1, self.latent_dim))),
            prior=self.prior.init(key_prior),
        )

    def encode(self, params: Params, x: Examples) -> DiagonalNormal:
        """q_phi(z|x), mean and log-scale float32 [B, D]."""
        return self.encoder.apply(params.encoder, x)

    def decode(
        self, params: Params, z: Float[Array, "*batch D"], key: PRNGKey | None = None
    ) -> Likelihood:
        """p_theta(x|z) over flattened examples.

        Args:
          params: the parameters.
          z: float32 [*batch, D].
          key: PRNG key of the units that a decoder with dropout drops, in training;
            None drops none.
        """
        rngs = None if key is None else {"dropout": key}
        return self.decoder.apply(params.decoder, z, rngs=rngs)

    def reconstruct(self, params: Params, z: Latents) -> Float[Array, "B pixels"]:
        """E[x|z], float32, flattened examples in the units of the data."""
        return self.decode(params, z).mean
