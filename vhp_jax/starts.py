"""Parameters that start where the data are: centred, or at the linear VAE's optimum.

For the fully connected networks of `networks`. Why the start decides how even a latent
space becomes: docs/pendulum.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike, Float

from vhp_jax.types import Params, PRNGKey

MOST_COMPONENTS = 2048  # columns up to which principal components are computed


def centre(params: Params, mean: Float[ArrayLike, "pixels"]) -> Params:
    """Starts a fully connected encoder and decoder at the data's mean.

    The encoder's first bias becomes -W^T mean, the decoder's last one the mean, so that
    the mean example is encoded at the origin and the origin is decoded to it: the usual
    centring of the inputs, kept inside the parameters where it can go on learning.

    Args:
      params: parameters of a `VAE` made of the networks of `networks`.
      mean: mean example of the training set, flattened.

    Returns:
      The same parameters but for those two biases.
    """
    mean = jnp.asarray(mean, jnp.float32)
    encoder, decoder = flatten_dict(params.encoder), flatten_dict(params.decoder)
    first, last = _dense_layers(encoder)[0], _dense_layers(decoder)[-1]
    encoder[(*first, "bias")] = -(mean @ encoder[(*first, "kernel")])
    decoder[(*last, "bias")] = mean
    return params._replace(
        encoder=unflatten_dict(encoder), decoder=unflatten_dict(decoder)
    )


class PrincipalComponents(NamedTuple):
    """Mean and leading principal directions of a data set.

    Attributes:
      mean: float32 [pixels].
      directions: float32 [pixels, D], orthonormal columns, largest variance first.
    """

    mean: Float[ArrayLike, "pixels"]
    directions: Float[ArrayLike, "pixels D"]


def principal_components(examples: np.ndarray, num: int) -> PrincipalComponents:
    """The `num` leading principal components of examples [N, *example], in float64."""
    flat = examples.reshape(len(examples), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    _, vectors = np.linalg.eigh((flat - mean).T @ (flat - mean))
    directions = vectors[:, ::-1][:, :num]
    return PrincipalComponents(mean.astype(np.float32), directions.astype(np.float32))


def _leading_scale(examples: np.ndarray, components: PrincipalComponents) -> float:
    """Standard deviation of examples [N, *example] along the first direction."""
    flat = examples.reshape(len(examples), -1) - np.asarray(components.mean)
    return max(float((flat @ np.asarray(components.directions)[:, 0]).std()), 1e-6)


def fitting_start(
    examples: np.ndarray, hidden: Sequence[int], latent_dim: int, scale: float = 1.0
) -> Callable[[Params, PRNGKey], Params]:
    """The principal start that examples of any kind can have, or else `centre`.

    Args:
      examples: float32 [N, *example], the training set.
      hidden: widths of the `looks_linear` networks.
      latent_dim: D.
      scale: standard deviation of the first latent.

    Returns:
      (params, key) -> params: of `start_principal`; of `centre` where there are fewer
      columns than latents or more than `MOST_COMPONENTS`, or widths do not allow it.
    """
    columns = math.prod(examples.shape[1:])
    if _width_fault(hidden, latent_dim) or not latent_dim <= columns <= MOST_COMPONENTS:
        mean = examples.reshape(len(examples), -1).mean(axis=0, dtype=np.float64)
        return lambda params, key: centre(params, mean)
    found = principal_components(examples, latent_dim)
    scale = scale / _leading_scale(examples, found)
    return lambda params, key: start_principal(params, key, found, scale)


def _width_fault(hidden: Sequence[int], latent_dim: int) -> str:
    """What `start_principal` wants that these hidden widths are not; empty if none."""
    if any(width % 2 for width in hidden):
        return f"even hidden widths, got {list(hidden)}"
    if latent_dim > hidden[0] // 2:
        return (
            f"half the first width, {hidden[0] // 2}, to be at least the number of "
            f"latents, {latent_dim}"
        )
    if list(hidden) != sorted(hidden):
        return f"hidden widths that do not fall, got {list(hidden)}"
    return ""


def start_principal(
    params: Params, key: PRNGKey, components: PrincipalComponents, scale: float
) -> Params:
    """Starts a `looks_linear` encoder and decoder at the linear VAE's optimum.

    Up to the scale, the optimum of a VAE with a linear encoder and decoder is
    probabilistic PCA, unique up to a rotation R of the latents (Lucas et al., 2019).
    Networks that look linear can start there and bend afterwards:

        mean of q(z|x) = scale R^T U^T (x - mean)
        mean of p(x|z) = mean + U R z / scale

    with U the principal directions. R is drawn from `key`.

    Args:
      params: parameters of a `VAE` whose encoder and decoder are `looks_linear`
        networks of `networks`, the encoder's hidden widths not falling.
      key: PRNG key.
      components: of the training set, as many as there are latent dimensions D.
      scale: standard deviation of the latents per standard deviation of the data.

    Returns:
      The same parameters but for D units of the encoder's first layer, the heads of
      both, and the biases of `centre`.

    Raises:
      ValueError: a hidden width of the encoder is odd, the first is too narrow, or one
        is narrower than the one before.
    """
    mean = jnp.asarray(components.mean, jnp.float32)
    directions = jnp.asarray(components.directions, jnp.float32)  # U, [pixels, D]
    latent_dim = directions.shape[1]
    rotation = jax.random.orthogonal(key, latent_dim)  # R, [D, D]
    encoder, decoder = flatten_dict(params.encoder), flatten_dict(params.decoder)

    # Encoder: U in the first columns of the first layer, carried by the hidden layers,
    # undone by the head up to rotation and scale.
    first, *hidden, head = _dense_layers(encoder)
    drawn = encoder[(*first, "kernel")]
    width = drawn.shape[1] // 2
    widths = [drawn.shape[1], *(encoder[(*path, "kernel")].shape[1] for path in hidden)]
    if fault := _width_fault(widths, latent_dim):
        raise ValueError(f"a principal start wants {fault}")
    columns = drawn[:, :width].at[:, :latent_dim].set(directions)
    encoder[(*first, "kernel")] = jnp.concatenate([columns, -columns], axis=1)
    carried = _linear_map(encoder, hidden, jnp.eye(width))
    means = scale * jnp.linalg.pinv(carried)[:, :latent_dim] @ rotation
    means = jnp.concatenate([means, -means], axis=0)
    encoder[(*head, "kernel")] = (
        encoder[(*head, "kernel")].at[:, :latent_dim].set(means)
    )

    # Decoder: what the hidden layers make of z, sent to U R z / scale; the part of the
    # head that no z reaches yet stays as it was drawn.
    *layers, head = _dense_layers(decoder)
    reached = _linear_map(decoder, layers, jnp.eye(latent_dim))  # [D, width]
    drawn = decoder[(*head, "kernel")]
    drawn = drawn[: drawn.shape[0] // 2]
    wanted = (directions @ rotation).T / scale  # [D, pixels]
    pixels = drawn + jnp.linalg.pinv(reached) @ (wanted - reached @ drawn)
    decoder[(*head, "kernel")] = jnp.concatenate([pixels, -pixels], axis=0)
    started = params._replace(
        encoder=unflatten_dict(encoder), decoder=unflatten_dict(decoder)
    )
    return centre(started, mean)


def _linear_map(
    flat: Mapping[tuple[str, ...], Array],
    layers: Sequence[tuple[str, ...]],
    start: Float[Array, "rows inputs"],
) -> Float[Array, "rows width"]:
    """Multiplies `start` by the unmirrored kernels of layers that look linear."""
    for path in layers:
        kernel = flat[(*path, "kernel")]
        rows = start.shape[1]  # the upper left block: [[W, -W], [-W, W]]
        start = start @ kernel[:rows, : kernel.shape[1] // 2]
    return start


def _dense_layers(flat: Mapping[tuple[str, ...], Array]) -> list[tuple[str, ...]]:
    """Paths of an MLP's layers, first to last (Dense_2 before Dense_10)."""
    paths = [path[:-1] for path in flat if path[-1] == "kernel"]
    return sorted(paths, key=lambda path: int(path[-1].rpartition("_")[2]))
