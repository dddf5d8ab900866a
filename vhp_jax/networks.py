"""Linen modules of Table 3. No losses here.

Every network takes [..., features] and is made of fully connected ReLU layers ended by
a linear head. Two initialisations are offered by name:

`he`: He et al. (2015), zero biases, the head LeCun-scaled: what most code does.

`looks_linear`: mirrored orthogonal weights (Balduzzi et al., 2017). Units come in pairs
  relu(a), relu(-a) whose next weights are opposite, so that the whole network is an
  exactly linear map at the start while every unit is free to move afterwards. Why this
  decides how even the latent space becomes: docs/pendulum.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike, Float

from vhp_jax.distributions import DiagonalNormal
from vhp_jax.types import Params, PRNGKey

Initializer = Callable[..., Array]


def _hidden_init(name: str, first: bool) -> Initializer:
    """Kernel of a hidden layer; `first` has no mirrored pairs in its input."""
    if name == "he":
        return nn.initializers.he_normal()
    if name == "looks_linear":
        return _looks_linear(nn.initializers.orthogonal(), mirror_input=not first)
    raise ValueError(f"initialisation must be 'he' or 'looks_linear', got {name!r}")


def _head_init(name: str, scale: float) -> Initializer:
    """Kernel of the linear head, `scale` times its usual size."""
    if name == "he":
        return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
    return _looks_linear(nn.initializers.orthogonal(scale), mirror_output=False)


def _looks_linear(
    base: Initializer, mirror_input: bool = True, mirror_output: bool = True
) -> Initializer:
    """[[W, -W], [-W, W]], or its left or upper half where one side has no pairs."""

    def init(key: PRNGKey, shape: Sequence[int], dtype: Any) -> Array:
        if (mirror_input and shape[0] % 2) or (mirror_output and shape[1] % 2):
            raise ValueError(f"looks_linear wants even hidden widths, got {shape}")
        rows = shape[0] // 2 if mirror_input else shape[0]
        columns = shape[1] // 2 if mirror_output else shape[1]
        kernel = base(key, (rows, columns), dtype)
        if mirror_output:
            kernel = jnp.concatenate([kernel, -kernel], axis=1)
        if mirror_input:
            kernel = jnp.concatenate([kernel, -kernel], axis=0)
        return kernel

    return init


class MLP(nn.Module):
    """Fully connected ReLU layers and a linear head.

    Attributes:
      hidden: widths of the hidden layers; even for `looks_linear`.
      features: width of the output.
      initialisation: "he" or "looks_linear".
      head_scale: factor on the head's initial weights.
      zero_features: how many of the last outputs start with zero weights.
      bias_init: initial bias of those outputs.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    zero_features: int = 0
    bias_init: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch out"]:
        """Returns the head's output, float32 [*batch, features]."""
        for index, width in enumerate(self.hidden):
            kernel_init = _hidden_init(self.initialisation, first=index == 0)
            x = nn.relu(nn.Dense(width, kernel_init=kernel_init)(x))
        return nn.Dense(
            self.features, kernel_init=self._kernel_init, bias_init=self._bias_init
        )(x)

    def _kernel_init(self, key: PRNGKey, shape: Sequence[int], dtype: Any) -> Array:
        init = _head_init(self.initialisation, self.head_scale)
        free = init(key, (shape[0], shape[1] - self.zero_features), dtype)
        return jnp.pad(free, [(0, 0), (0, self.zero_features)])

    def _bias_init(self, key: PRNGKey, shape: Sequence[int], dtype: Any) -> Array:
        del key
        started = jnp.arange(shape[0]) >= shape[0] - self.zero_features
        return jnp.where(started, self.bias_init, 0.0).astype(dtype)


class NormalMLP(nn.Module):
    """MLP onto the mean and log-scale of a normal: q(z|x), q(zeta|z), p(z|zeta).

    The log-scale starts as a constant, so that no example is favoured at the start.

    Attributes:
      hidden: widths of the hidden layers.
      features: dimensions of the normal.
      initialisation: see `MLP`.
      head_scale: factor on the initial weights of the mean.
      scale_init: initial standard deviation.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    scale_init: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> DiagonalNormal:
        """Returns a normal over [*batch, features]."""
        output = MLP(
            self.hidden,
            2 * self.features,
            self.initialisation,
            self.head_scale,
            zero_features=self.features,
            bias_init=math.log(self.scale_init),
        )(x)
        mean, log_scale = jnp.split(output, 2, axis=-1)
        return DiagonalNormal(mean, log_scale)


class GaussianDecoder(nn.Module):
    """MLP onto the mean of p(x|z), with one learned log-scale for all pixels.

    Attributes:
      hidden: widths of the hidden layers.
      features: pixels of a flattened example.
      initialisation: see `MLP`.
      head_scale: factor on the head's initial weights.
      scale_init: initial standard deviation, in the units of the data.
      min_log_scale: lower limit of the log-scale; keeps the likelihood bounded. Below
        it the log-scale has no gradient and stays.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    scale_init: float = 1.0
    min_log_scale: float = -6.0

    @nn.compact
    def __call__(self, z: Float[Array, "*batch D"]) -> DiagonalNormal:
        """Returns p(x|z), mean float32 [*batch, features], log-scale a scalar."""
        mean = MLP(self.hidden, self.features, self.initialisation, self.head_scale)(z)
        log_scale = self.param(
            "log_scale", nn.initializers.constant(math.log(self.scale_init)), ()
        )
        return DiagonalNormal(mean, jnp.maximum(log_scale, self.min_log_scale))


class Flat(nn.Module):
    """Flattens each example before `network`, so that it takes images as they are.

    Attributes:
      network: module on [B, features].
    """

    network: nn.Module

    def __call__(self, x: Float[Array, "B *example"]) -> DiagonalNormal:
        """Returns network(x reshaped to [B, features])."""
        return self.network(x.reshape(x.shape[0], -1))


def centre(params: Params, mean: Float[ArrayLike, "pixels"]) -> Params:
    """Starts a fully connected encoder and decoder at the data's mean.

    The encoder's first bias becomes -W^T mean, the decoder's last one the mean, so that
    the mean example is encoded at the origin and the origin is decoded to it: the usual
    centring of the inputs, kept inside the parameters where it can go on learning.

    Args:
      params: parameters of a `VAE` made of the networks of this module.
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


def _dense_layers(flat: Mapping[tuple[str, ...], Array]) -> list[tuple[str, ...]]:
    """Paths of an MLP's layers, first to last (Dense_2 before Dense_10)."""
    paths = [path[:-1] for path in flat if path[-1] == "kernel"]
    return sorted(paths, key=lambda path: int(path[-1].rpartition("_")[2]))
