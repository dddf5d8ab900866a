"""Initialisations as exact linear maps, scales and centring."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import signal, special

from vhp_jax.networks import (
    MLP,
    BernoulliDecoder,
    ConvDecoder,
    ConvEncoder,
    Flat,
    GatedConvDecoder,
    GatedConvEncoder,
    GaussianDecoder,
    NormalMLP,
    transposed_conv,
)

# One set of shapes in the whole file: each new one costs a compilation.
DEPTHS = [(8,), (8, 8, 8)]
INITIALISATIONS = ["he", "looks_linear"]
NHWC = ("NHWC", "HWIO", "NHWC")


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shaken(params, size=0.3):
    """`params` with noise on every leaf, biases included."""
    generator = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.float32(leaf + size * generator.normal(size=leaf.shape)),
        params,
    )


def additivity_gap(network, params):
    """Largest |f(2x - 3y) - 2f(x) + 3f(y)| over 20 random pairs of four inputs."""
    x, y = random((20, 4), 1), random((20, 4), 2)
    f = lambda inputs: network.apply(params, inputs)  # noqa: E731
    return float(jnp.abs(f(2.0 * x - 3.0 * y) - 2.0 * f(x) + 3.0 * f(y)).max())


def numpy_mlp(layers, x):
    """Dense layers with ReLU between them, in float64."""
    for index in range(len(layers)):
        layer = layers[f"Dense_{index}"]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return x


# --- Looks-linear --------------------------------------------------------------------


@pytest.mark.parametrize("hidden", DEPTHS)
def test_looks_linear_is_exactly_linear_at_the_start(hidden):
    network = MLP(hidden, 4, "looks_linear")
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert additivity_gap(network, params) < 1e-5
    assert float(jnp.abs(network.apply(params, random((20, 4)))).max()) > 0.5


@pytest.mark.parametrize("hidden", DEPTHS)
def test_looks_linear_equals_the_product_of_its_unmirrored_kernels(hidden):
    network = MLP(hidden, 4, "looks_linear")
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    layers = params["params"]
    product = np.eye(4)
    for index in range(len(hidden) + 1):
        kernel = np.asarray(layers[f"Dense_{index}"]["kernel"], np.float64)
        rows = len(kernel) // 2 if index > 0 else len(kernel)
        columns = kernel.shape[1] // 2 if index < len(hidden) else kernel.shape[1]
        product = product @ kernel[:rows, :columns]
        if index > 0:
            np.testing.assert_array_equal(kernel[:rows], -kernel[rows:])
        if index < len(hidden):
            np.testing.assert_array_equal(kernel[:, :columns], -kernel[:, columns:])
    x = random((20, 4))
    np.testing.assert_allclose(network.apply(params, x), x @ product, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_looks_linear_is_orthogonal_up_to_the_head_scale(scale):
    network = MLP((8, 8, 8), 4, "looks_linear", head_scale=scale)
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    matrix = network.apply(params, jnp.eye(4))
    singular = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular, scale, rtol=1e-5)


def test_looks_linear_leaves_every_unit_free_to_bend():
    network = MLP((8, 8, 8), 4, "looks_linear")
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert additivity_gap(network, shaken(params)) > 0.1
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(network.apply(p, random((20, 4))))))
    mirrored = gradient(params)["params"]["Dense_0"]["kernel"]
    assert float(jnp.abs(mirrored[:, :4] + mirrored[:, 4:]).max()) > 1e-3


def test_looks_linear_refuses_odd_widths():
    network = NormalMLP((5,), 2, initialisation="looks_linear")
    with pytest.raises(ValueError, match="even hidden widths"):
        network.init(jax.random.key(0), jnp.zeros((1, 3)))


# --- He ------------------------------------------------------------------------------


def test_he_kernels_have_variance_two_over_fan_in_and_the_head_one():
    network = MLP((300,), 200, "he", head_scale=0.5)
    init = jax.jit(network.init)
    layers = init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    wanted = {"Dense_0": 2.0 / 400, "Dense_1": 0.25 / 300}
    for name, variance in wanted.items():
        kernel = np.asarray(layers[name]["kernel"], np.float64)
        # Five standard errors of a variance, no wider than for a normal.
        error = 5.0 * np.sqrt(2.0 / kernel.size)
        np.testing.assert_allclose(kernel.var(), variance, rtol=error)
        assert abs(kernel.mean()) < 5.0 * np.sqrt(variance / kernel.size)
        chex.assert_trees_all_equal(layers[name]["bias"], jnp.zeros(kernel.shape[1]))


def test_he_is_not_linear():
    network = MLP((8, 8, 8), 4, "he")
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert additivity_gap(network, params) > 0.1


@pytest.mark.parametrize("name", ["orthogonal", "He", ""])
def test_an_unknown_initialisation_is_an_error(name):
    with pytest.raises(ValueError, match=f"'he' or 'looks_linear', got '{name}'"):
        MLP((8,), 4, name).init(jax.random.key(0), jnp.zeros((1, 4)))


# --- Forward passes ------------------------------------------------------------------


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("batch", [(20,), (2, 5)])
def test_mlp_equals_numpy_for_any_leading_axes(initialisation, batch):
    network = MLP((8, 8, 8), 4, initialisation)
    params = shaken(network.init(jax.random.key(0), jnp.zeros((1, 4))))
    x = random((*batch, 4))
    wanted = numpy_mlp(params["params"], np.asarray(x, np.float64))
    output = network.apply(params, x)
    assert output.shape == (*batch, 4)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), output, atol=1e-5)


def test_normal_mlp_splits_its_head_into_mean_and_log_scale():
    network = NormalMLP((8, 8), 4)
    params = shaken(network.init(jax.random.key(0), jnp.zeros((1, 4))))
    x = random((20, 4))
    wanted = numpy_mlp(params["params"]["MLP_0"], np.asarray(x, np.float64))
    normal = network.apply(params, x)
    np.testing.assert_allclose(normal.mean, wanted[:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normal.log_scale, wanted[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("scale_init", [0.05, 1.0])
def test_normal_mlp_starts_with_one_scale_for_every_example(initialisation, scale_init):
    network = NormalMLP((8, 8), 4, initialisation, scale_init=scale_init)
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    normal = network.apply(params, 10.0 * random((20, 4)))
    chex.assert_shape(normal, (20, 4))
    np.testing.assert_allclose(normal.scale, scale_init, rtol=1e-6)
    assert (normal.mean.std(axis=0) > 0.1).all()


def test_the_head_scale_multiplies_the_mean_and_not_the_scale():
    def start(head_scale):
        network = NormalMLP((8, 8), 4, "looks_linear", head_scale, scale_init=0.3)
        params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
        return network.apply(params, random((20, 4)))

    one, small = start(1.0), start(0.01)
    np.testing.assert_allclose(small.mean, 0.01 * one.mean, rtol=1e-4, atol=1e-7)
    chex.assert_trees_all_equal(small.log_scale, one.log_scale)


def test_gaussian_decoder_has_one_learned_scale():
    network = GaussianDecoder((8,), 4, scale_init=0.2)
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
    likelihood = network.apply(params, random((2, 5, 4)))
    assert likelihood.mean.shape == (2, 5, 4)
    assert likelihood.log_scale.shape == ()
    np.testing.assert_allclose(likelihood.scale, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("log_scale", "wanted", "slope"), [(-7.0, -4.0, 0.0), (-3.0, -3.0, 1.0)]
)
def test_the_decoder_s_log_scale_is_limited_from_below(log_scale, wanted, slope):
    network = GaussianDecoder((8,), 4, min_log_scale=-4.0)
    params = network.init(jax.random.key(0), jnp.zeros((1, 4)))

    def limited(log_scale):
        variables = {"params": {**params["params"], "log_scale": log_scale}}
        return network.apply(variables, jnp.zeros((1, 4))).log_scale

    value, gradient = jax.value_and_grad(limited)(jnp.float32(log_scale))
    assert (float(value), float(gradient)) == (wanted, slope)


def test_the_default_limit_of_the_log_scale_is_minus_six():
    params = GaussianDecoder((8,), 4, scale_init=1e-6)
    variables = params.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert float(params.apply(variables, jnp.zeros((1, 4))).log_scale) == -6.0


def test_flat_is_its_network_on_flattened_images():
    network = NormalMLP((8, 8), 4)
    images = random((20, 2, 2))
    params = shaken(Flat(network).init(jax.random.key(0), images))
    inner = {"params": params["params"]["network"]}
    chex.assert_trees_all_equal(
        Flat(network).apply(params, images), network.apply(inner, images.reshape(20, 4))
    )


# --- Gated networks ------------------------------------------------------------------


def numpy_gate(both):
    """The first half of the last axis times the sigmoid of the second."""
    value, gate = np.split(both, 2, axis=-1)
    return value * special.expit(gate)


def numpy_conv(x, layer, stride):
    """Convolution [B, H, W, C] with zeros around, in float64, one plane at a time."""
    kernel = np.asarray(layer["kernel"], np.float64)  # [k, k, C, C2]
    pad = kernel.shape[0] // 2
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    planes = [
        [
            sum(
                signal.correlate2d(image[..., i], kernel[..., i, o], mode="valid")
                for i in range(kernel.shape[2])
            )
            for o in range(kernel.shape[3])
        ]
        for image in padded
    ]
    full = np.moveaxis(np.array(planes), 1, -1) + np.asarray(layer["bias"], np.float64)
    return full[:, ::stride, ::stride]


def test_gated_layers_multiply_by_the_sigmoid_of_their_twin():
    decoder = BernoulliDecoder((6, 5), 4)
    z = random((3, 2))
    params = shaken(decoder.init(jax.random.key(0), z))
    layers = params["params"]["MLP_0"]
    x = np.asarray(z, np.float64)
    for index in range(2):
        x = numpy_gate(numpy_mlp(layers[f"GatedDense_{index}"], x))
    wanted = numpy_mlp({"Dense_0": layers["Dense_0"]}, x)
    np.testing.assert_allclose(decoder.apply(params, z).logits, wanted, rtol=2e-5)
    with pytest.raises(ValueError, match="gated layers want 'he'"):
        MLP((4,), 2, "looks_linear", gated=True).init(jax.random.key(0), z)


def test_dropped_units_leave_the_logits_mean_and_add_a_known_variance():
    """One layer h and its head W: mean h W, variance p / (1 - p) * h^2 W^2, a row each.

    Rows that are equal drop units of their own: their logits are not correlated.
    """
    share, draws = 0.3, 20_000
    decoder = BernoulliDecoder((6,), 4, dropout=share)
    z = jnp.tile(random((1, 2)), (2, 1))
    params = shaken(decoder.init(jax.random.key(0), z))
    layers = params["params"]["MLP_0"]
    hidden = numpy_gate(numpy_mlp(layers["GatedDense_0"], np.asarray(z, np.float64)))
    kernel = np.asarray(layers["Dense_0"]["kernel"], np.float64)
    whole = numpy_mlp({"Dense_0": layers["Dense_0"]}, hidden)
    np.testing.assert_allclose(decoder.apply(params, z).logits, whole, rtol=2e-5)
    seen = jax.vmap(lambda key: decoder.apply(params, z, rngs={"dropout": key}).logits)(
        jax.random.split(jax.random.key(1), draws)
    )
    variance = share / (1.0 - share) * np.square(hidden) @ np.square(kernel)
    error = (seen.mean(axis=0) - whole) / np.sqrt(variance / draws)
    assert np.abs(error).max() < 4.0  # standard errors
    np.testing.assert_allclose(seen.std(axis=0), np.sqrt(variance), rtol=0.03)
    for first, second in np.asarray(seen).transpose(2, 1, 0):
        assert np.abs(np.corrcoef(first, second)[0, 1]) < 4.0 / np.sqrt(draws)


def test_every_hidden_layer_drops_its_units():
    """One unit a layer and p = 1/2: the second gone, or only the first, or neither."""
    draws = 4_000
    decoder = BernoulliDecoder((1, 1), 1, dropout=0.5)
    z = random((1, 2))
    params = shaken(decoder.init(jax.random.key(0), z))
    seen = jax.vmap(
        lambda key: decoder.apply(params, z, rngs={"dropout": key}).logits[0, 0]
    )(jax.random.split(jax.random.key(1), draws))
    _, counts = np.unique(np.round(seen, 5), return_counts=True)
    wanted = np.array([0.25, 0.25, 0.5])
    error = (np.sort(counts) / draws - wanted) / np.sqrt(wanted * (1 - wanted) / draws)
    assert np.abs(error).max() < 4.0  # standard errors


def test_gated_convolutions_equal_numpy_and_halve_the_sides():
    """Zeros around, so that a stride of two takes every other pixel from the first."""
    encoder = GatedConvEncoder(2, layers=((3, 5, 1), (2, 3, 2)))
    x = random((2, 6, 6, 1))
    params = shaken(encoder.init(jax.random.key(0), x))
    layers = params["params"]
    y = numpy_gate(numpy_conv(x, layers["GatedConv_0"]["Conv_0"], 1))
    y = numpy_gate(numpy_conv(y, layers["GatedConv_1"]["Conv_0"], 2))
    assert y.shape == (2, 3, 3, 2)
    head = layers["NormalMLP_0"]["MLP_0"]
    mean, log_scale = np.split(numpy_mlp(head, y.reshape(2, -1)), 2, axis=-1)
    q_z = encoder.apply(params, x)
    np.testing.assert_allclose(q_z.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q_z.log_scale, log_scale, rtol=1e-4, atol=1e-5)


def test_gated_conv_decoder_equals_numpy_and_takes_any_batch_axes():
    decoder = GatedConvDecoder((4, 4, 1), channels=(3, 2))
    z = random((2, 3, 2))
    params = shaken(decoder.init(jax.random.key(0), z))
    layers = params["params"]
    x = numpy_gate(numpy_mlp(layers["GatedDense_0"], np.asarray(z, np.float64)))
    x = x.reshape(6, 4, 4, 1)
    for index in range(2):
        x = numpy_gate(numpy_conv(x, layers[f"GatedConv_{index}"]["Conv_0"], 1))
    wanted = numpy_conv(x, layers["Conv_0"], 1).reshape(2, 3, 16)
    logits = decoder.apply(params, z).logits
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_table_3_encoder_has_6_by_7_by_7_features():
    shapes = jax.eval_shape(
        GatedConvEncoder(32).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1))
    )
    assert shapes["params"]["NormalMLP_0"]["MLP_0"]["Dense_0"]["kernel"].shape == (
        6 * 7 * 7,
        64,
    )


def flax_conv(kernel, stride):
    """x -> its convolution, without bias."""
    size, channels = kernel.shape[0], kernel.shape[-1]
    conv = nn.Conv(channels, (size, size), stride, use_bias=False)
    return lambda x: conv.apply({"params": {"kernel": kernel}}, x)


def test_conv_decoder_is_the_reverse_of_its_encoder_layer_by_layer():
    layers = ((3, 5, 2), (2, 3, 1))
    decoder = ConvDecoder((8, 8, 1), layers, dense=5)
    z = random((2, 3, 2))
    params = shaken(decoder.init(jax.random.key(0), z))
    found = params["params"]
    dense = {f"Dense_{i}": found[f"Dense_{i}"] for i in range(2)}
    x = np.maximum(numpy_mlp(dense, np.asarray(z, np.float64)), 0.0)
    y = jnp.asarray(x.reshape(6, 4, 4, 2), jnp.float32)
    # A transposed convolution is the adjoint of a convolution whose kernel is turned
    # by half a turn and has its channels exchanged: <conv(x), y> = <x, transposed(y)>.
    for index, (stride, shape) in enumerate([(1, (6, 4, 4, 3)), (2, (6, 8, 8, 1))]):
        layer = found[f"TransposedConv_{index}"]
        kernel = jnp.swapaxes(layer["kernel"][::-1, ::-1], 2, 3)
        _, adjoint = jax.vjp(flax_conv(kernel, stride), jnp.zeros(shape))
        (y,) = adjoint(y if index == 0 else nn.relu(y))
        y = y + layer["bias"][None, None, None]
    logits = decoder.apply(params, z).logits
    np.testing.assert_allclose(logits, y.reshape(2, 3, 64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_transposed_conv_is_the_one_of_lax(size, stride):
    x, kernel = random((2, 5, 4, 3)), random((size, size, 3, 2), seed=1)

    def lax_conv(x, kernel):
        return lax.conv_transpose(
            x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC
        )

    def ours(x, kernel):
        return transposed_conv(x, kernel, stride)

    found, vjp = jax.vjp(ours, x, kernel)
    wanted, lax_vjp = jax.vjp(lax_conv, x, kernel)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    weights = random(wanted.shape, seed=2)
    for slope, lax_slope in zip(vjp(weights), lax_vjp(weights), strict=True):
        np.testing.assert_allclose(slope, lax_slope, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_conv_decoder_starts_with_logits_as_large_as_its_input():
    decoder, z = ConvDecoder((32, 32, 1)), random((64, 32))
    logits = decoder.apply(decoder.init(jax.random.key(0), z), z).logits
    # He's initialisation keeps the mean square but for the borders; the last layer has
    # no ReLU after it. A stride that is not allowed for would cost a factor 2 each.
    assert 0.15 < float(jnp.sqrt(jnp.mean(jnp.square(logits)) / 2.0)) < 3.0


def test_table_3_face_networks_meet_at_96_by_4_by_4():
    images = jnp.zeros((1, 64, 64, 1))
    encoder = jax.eval_shape(ConvEncoder(32).init, jax.random.key(0), images)
    head = encoder["params"]["NormalMLP_0"]["MLP_0"]
    assert head["Dense_0"]["kernel"].shape == (96 * 4 * 4, 256)
    assert head["Dense_1"]["kernel"].shape == (256, 64)
    decoder, z = ConvDecoder((64, 64, 1)), jnp.zeros((1, 32))
    params = jax.eval_shape(decoder.init, jax.random.key(0), z)
    kernels = [
        params["params"][f"TransposedConv_{i}"]["kernel"].shape for i in range(8)
    ]
    widths = [96, 96, 64, 64, 48, 48, 32, 32, 1]
    sizes = [3, 5, 3, 5, 3, 5, 3, 5]
    assert kernels == [
        (size, size, *pair)
        for size, pair in zip(sizes, itertools.pairwise(widths), strict=True)
    ]
    with pytest.raises(ValueError, match=r"28 x 28 pixels must be multiples of .* 16"):
        ConvDecoder((28, 28, 1)).init(jax.random.key(0), z)


def test_log_scale_range_holds_and_stops_the_gradient():
    network = NormalMLP((8,), 2, scale_init=1e-9, log_scale_range=(-3.0, 1.0))
    x = random((4, 3))
    params = network.init(jax.random.key(0), x)
    np.testing.assert_array_equal(network.apply(params, x).log_scale, -3.0)
    slopes = jax.grad(lambda p: network.apply(p, x).log_scale.sum())(params)
    assert all((slope == 0.0).all() for slope in jax.tree.leaves(slopes))
