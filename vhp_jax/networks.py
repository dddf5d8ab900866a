"""Linen modules of Table 3. No losses here.

A network is hidden layers ended by a linear head: fully connected ReLU layers, or for
images gated ones, fully connected or convolutional (NHWC), where one of a pair is
multiplied by the sigmoid of the other. ReLU layers have two initialisations by name:

`he`: He et al. (2015), zero biases, the head LeCun-scaled: what most code does.

`looks_linear`: mirrored orthogonal weights (Balduzzi et al., 2017). Units come in pairs
  relu(a), relu(-a) whose next weights are opposite, so that the whole network is an
  exactly linear map at the start while every unit is free to move afterwards. Why this
  decides how even the latent space becomes: docs/pendulum.md.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vhp_jax.distributions import Bernoulli, DiagonalNormal
from vhp_jax.types import PRNGKey

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


class GatedDense(nn.Module):
    """A pair of fully connected layers, h * sigmoid(g), from one matrix product.

    Attributes:
      features: width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch out"]:
        """Returns float32 [*batch, features]."""
        both = nn.Dense(2 * self.features, kernel_init=nn.initializers.he_normal())(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return value * nn.sigmoid(gate)


class GatedConv(nn.Module):
    """A pair of convolutions, h * sigmoid(g), from one convolution.

    Attributes:
      features: channels of the output.
      size: side of the square kernel, odd.
      stride: of both axes; the output has 1 / stride of the input's pixels a side.
    """

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """Returns float32 [B, H / stride, W / stride, features]."""
        both = nn.Conv(
            2 * self.features,
            (self.size, self.size),
            self.stride,
            padding=self.size // 2,
            kernel_init=nn.initializers.he_normal(),
        )(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return value * nn.sigmoid(gate)


class MLP(nn.Module):
    """Fully connected ReLU (or gated) layers and a linear head.

    Attributes:
      hidden: widths of the hidden layers; even for `looks_linear`.
      features: width of the output.
      initialisation: "he" or, for ReLU layers, "looks_linear".
      head_scale: factor on the head's initial weights.
      zero_features: how many of the last outputs start with zero weights.
      bias_init: initial bias of those outputs.
      gated: `GatedDense` hidden layers in place of ReLU ones.
      dropout: share of hidden units that are dropped where a "dropout" key is given.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    zero_features: int = 0
    bias_init: float = 0.0
    gated: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch out"]:
        """Returns the head's output, float32 [*batch, features]."""
        if self.gated and self.initialisation != "he":
            raise ValueError(f"gated layers want 'he', got {self.initialisation!r}")
        # One axis of rows: XLA's gradient of a kernel contracts over several batch axes
        # at half the speed on a CPU.
        rows = x.reshape(-1, x.shape[-1])
        for index, width in enumerate(self.hidden):
            if self.gated:
                rows = GatedDense(width)(rows)
            else:
                kernel_init = _hidden_init(self.initialisation, first=index == 0)
                rows = nn.relu(nn.Dense(width, kernel_init=kernel_init)(rows))
            deterministic = not self.has_rng("dropout")
            rows = nn.Dropout(self.dropout, deterministic=deterministic)(rows)
        output = nn.Dense(
            self.features, kernel_init=self._kernel_init, bias_init=self._bias_init
        )(rows)
        return output.reshape(*x.shape[:-1], self.features)

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
      gated: see `MLP`.
      log_scale_range: limits of the log-scale, None for none. Beyond them it has no
        gradient.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    scale_init: float = 1.0
    gated: bool = False
    log_scale_range: tuple[float, float] | None = None

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
            gated=self.gated,
        )(x)
        mean, log_scale = jnp.split(output, 2, axis=-1)
        if self.log_scale_range is not None:
            log_scale = jnp.clip(log_scale, *self.log_scale_range)
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
      dropout: see `MLP`.
    """

    hidden: Sequence[int]
    features: int
    initialisation: str = "he"
    head_scale: float = 1.0
    scale_init: float = 1.0
    min_log_scale: float = -6.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, z: Float[Array, "*batch D"]) -> DiagonalNormal:
        """Returns p(x|z), mean float32 [*batch, features], log-scale a scalar."""
        mean = MLP(
            self.hidden,
            self.features,
            self.initialisation,
            self.head_scale,
            dropout=self.dropout,
        )(z)
        log_scale = self.param(
            "log_scale", nn.initializers.constant(math.log(self.scale_init)), ()
        )
        return DiagonalNormal(mean, jnp.maximum(log_scale, self.min_log_scale))


class BernoulliDecoder(nn.Module):
    """Gated fully connected layers onto the logits of p(x|z).

    Attributes:
      hidden: widths of the hidden layers.
      features: pixels of a flattened example.
      dropout: see `MLP`.
    """

    hidden: Sequence[int]
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, z: Float[Array, "*batch D"]) -> Bernoulli:
        """Returns p(x|z), logits float32 [*batch, features]."""
        logits = MLP(self.hidden, self.features, gated=True, dropout=self.dropout)(z)
        return Bernoulli(logits)


class GatedConvEncoder(nn.Module):
    """Gated convolutions onto q(z|x): Table 3's images, the ConvHVAE of its peers.

    Attributes:
      layers: (channels, kernel size, stride) of each convolution. The default has the
        strides of the arXiv version and of ConvHVAE; the later appendix prints 1 for
        the fourth.
      features: dimensions D of z.
      log_scale_range: see `NormalMLP`.
    """

    features: int
    layers: Sequence[tuple[int, int, int]] = (
        (32, 7, 1),
        (32, 3, 2),
        (64, 5, 1),
        (64, 3, 2),
        (6, 3, 1),
    )
    log_scale_range: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> DiagonalNormal:
        """Returns a normal over [B, features]."""
        for channels, size, stride in self.layers:
            x = GatedConv(channels, size, stride)(x)
        flat = x.reshape(x.shape[0], -1)
        head = NormalMLP((), self.features, log_scale_range=self.log_scale_range)
        return head(flat)


class GatedConvDecoder(nn.Module):
    """A gated layer as wide as the image, gated convolutions, logits: Table 3.

    Attributes:
      image_shape: (H, W, C) of an example.
      channels: of each 3x3 convolution.
    """

    image_shape: tuple[int, int, int]
    channels: Sequence[int] = (64, 64, 64, 64)

    @nn.compact
    def __call__(self, z: Float[Array, "*batch D"]) -> Bernoulli:
        """Returns p(x|z), logits float32 [*batch, H * W * C]."""
        image = GatedDense(math.prod(self.image_shape))(z)
        image = image.reshape(-1, *self.image_shape)
        for width in self.channels:
            image = GatedConv(width, 3)(image)
        logits = nn.Conv(self.image_shape[-1], (1, 1))(image)
        return Bernoulli(logits.reshape(*z.shape[:-1], -1))


ConvLayers = Sequence[tuple[int, int, int]]
# Faces and chairs: (channels, kernel size, stride) of each convolution.
FACE_LAYERS: ConvLayers = (
    (32, 5, 2),
    (32, 3, 1),
    (48, 5, 2),
    (48, 3, 1),
    (64, 5, 2),
    (64, 3, 1),
    (96, 5, 2),
    (96, 3, 1),
)


class ConvEncoder(nn.Module):
    """ReLU convolutions and a fully connected layer onto q(z|x): faces and chairs.

    Attributes:
      features: dimensions D of z.
      layers: (channels, kernel size, stride) of each convolution.
      dense: width of the fully connected layer.
      log_scale_range: see `NormalMLP`.
    """

    features: int
    layers: ConvLayers = FACE_LAYERS
    dense: int = 256
    log_scale_range: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> DiagonalNormal:
        """Returns a normal over [B, features]."""
        for channels, size, stride in self.layers:
            kernel_init = nn.initializers.he_normal()
            x = nn.relu(
                nn.Conv(channels, (size, size), stride, kernel_init=kernel_init)(x)
            )
        flat = x.reshape(x.shape[0], -1)
        limits = self.log_scale_range
        return NormalMLP((self.dense,), self.features, log_scale_range=limits)(flat)


def transposed_conv(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], stride: int
) -> Float[Array, "B sH sW O"]:
    """Transposed convolution with "SAME" padding, without its multiplications by zero.

    `lax.conv_transpose` puts stride - 1 zeros between the pixels and convolves: all but
    one in stride^2 products are with zeros, which on a CPU cost as much as others. But
    output pixel s m + r meets only the taps t of the kernel with r + t = lead (mod s),
    at input pixel m + (r + t - lead) / s. So that is one convolution of the input with
    s^2 times the channels, one group for each r, which are then interleaved (Shi et
    al., 2016, "Is the deconvolution layer the same as a convolutional layer?").

    Args:
      x: float32.
      kernel: float32, square.
      stride: s >= 1.

    Returns:
      float32, equal to `lax.conv_transpose` up to rounding.
    """
    size, _, channels_in, channels_out = kernel.shape
    lead = size - 1 if stride >= size else -(-(size + stride - 2) // 2)
    taps = [
        (phase, tap, (phase + tap - lead) // stride)
        for phase in range(stride)
        for tap in range(size)
        if (phase + tap - lead) % stride == 0
    ]
    first, last = (of(shift for *_, shift in taps) for of in (min, max))
    width = last - first + 1
    # Which tap each phase has at each shift; `size` where it has none.
    index = np.full((stride, width), size)
    for phase, tap, shift in taps:
        index[phase, shift - first] = tap
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    split = padded[index][:, :, index]  # [s, w, s, w, I, O]
    split = split.transpose(1, 3, 4, 0, 2, 5)
    phases = lax.conv_general_dilated(
        x,
        split.reshape(width, width, channels_in, -1),
        window_strides=(1, 1),
        padding=[(-first, last)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    batch, height, across, _ = phases.shape
    phases = phases.reshape(batch, height, across, stride, stride, channels_out)
    interleaved = phases.transpose(0, 1, 3, 2, 4, 5)
    return interleaved.reshape(batch, height * stride, across * stride, channels_out)


class TransposedConv(nn.Module):
    """`transposed_conv` with a bias; the parameters of `nn.ConvTranspose`.

    Attributes:
      features: channels of the output.
      size: of the kernel, each side.
      stride: by which the sides of the image grow.
      kernel_init: draws the kernel.
    """

    features: int
    size: int
    stride: int
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B sH sW O"]:
        """Returns [B, stride * H, stride * W, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return transposed_conv(x, kernel, self.stride) + bias[None, None, None]


class ConvDecoder(nn.Module):
    """The layers of a `ConvEncoder` in reverse, transposed, onto logits.

    Attributes:
      image_shape: (H, W, C) of an example; sides divisible by the strides' product.
      layers: of the encoder.
      dense: width of the fully connected layer.
    """

    image_shape: tuple[int, int, int]
    layers: ConvLayers = FACE_LAYERS
    dense: int = 256

    @nn.compact
    def __call__(self, z: Float[Array, "*batch D"]) -> Bernoulli:
        """Returns p(x|z), logits float32 [*batch, H * W * C].

        Raises:
          ValueError: the strides do not divide the image's sides.
        """
        height, width, image_channels = self.image_shape
        reduction = math.prod(stride for *_, stride in self.layers)
        if height % reduction or width % reduction:
            raise ValueError(
                f"sides of {height} x {width} pixels must be multiples of the strides' "
                f"product, {reduction}"
            )
        shape = (height // reduction, width // reduction, self.layers[-1][0])
        he = nn.initializers.he_normal()
        x = nn.relu(nn.Dense(self.dense, kernel_init=he)(z))
        x = nn.relu(nn.Dense(math.prod(shape), kernel_init=he)(x)).reshape(-1, *shape)
        # What each layer of the encoder took in is what its twin here gives out.
        taken = [image_channels, *(channels for channels, *_ in self.layers)]
        for index in reversed(range(len(self.layers))):
            _, size, stride = self.layers[index]
            if index < len(self.layers) - 1:
                x = nn.relu(x)
            # He's, but for that an output pixel sees one in stride^2 of the kernel.
            kernel_init = nn.initializers.variance_scaling(
                2.0 * stride**2, "fan_in", "truncated_normal"
            )
            x = TransposedConv(taken[index], size, stride, kernel_init)(x)
        return Bernoulli(x.reshape(*z.shape[:-1], -1))


class Flat(nn.Module):
    """Flattens each example before `network`, so that it takes images as they are.

    Attributes:
      network: module on [B, features].
    """

    network: nn.Module

    def __call__(self, x: Float[Array, "B *example"]) -> DiagonalNormal:
        """Returns network(x reshaped to [B, features])."""
        return self.network(x.reshape(x.shape[0], -1))
