"""Starts from the data: the mean at the origin, and principal components."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import INITIALISATIONS, random

from vhp_jax.model import VAE
from vhp_jax.networks import Flat, GaussianDecoder, NormalMLP
from vhp_jax.priors import StandardNormal
from vhp_jax.starts import (
    centre,
    fitting_start,
    principal_components,
    start_principal,
)

# --- Centring ------------------------------------------------------------------------


def centred_model(initialisation, hidden):
    model = VAE(
        Flat(NormalMLP(hidden, 4, initialisation)),
        GaussianDecoder(hidden, 4, initialisation),
        StandardNormal(4),
    )
    params = model.init(jax.random.key(0), (2, 2))
    mean = np.random.default_rng(0).uniform(0.1, 0.9, 4)
    return model, params, mean


# Twelve hidden layers: the last one is Dense_12, which sorts before Dense_2 as text.
@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("hidden", [(8, 8), (8,) * 12])
def test_centre_maps_the_mean_image_to_the_origin_and_back(initialisation, hidden):
    model, params, mean = centred_model(initialisation, hidden)
    image = jnp.asarray(mean, jnp.float32).reshape(1, 2, 2)
    params = centre(params, mean)
    assert float(model.encode(params, random((20, 2, 2))).mean.std()) > 1e-3
    np.testing.assert_allclose(model.encode(params, image).mean, 0.0, atol=1e-5)
    np.testing.assert_allclose(
        model.reconstruct(params, jnp.zeros((1, 4)))[0], mean, rtol=1e-6
    )


def test_centre_leaves_the_head_s_bias_where_it_was():
    model, params, mean = centred_model("looks_linear", (8, 8))
    head = params.encoder["params"]["network"]["MLP_0"]["Dense_2"]
    head["bias"] = jnp.asarray([0.5, -0.25, 0.0, 0.0, 0.1, 0.2, 0.0, 0.0])
    image = jnp.asarray(mean, jnp.float32).reshape(1, 2, 2)
    q_z = model.encode(centre(params, mean), image)
    np.testing.assert_allclose(q_z.mean, [[0.5, -0.25, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(q_z.log_scale, [[0.1, 0.2, 0.0, 0.0]], atol=1e-6)


def test_centre_changes_two_biases_and_no_more():
    _, params, mean = centred_model("he", (8, 8))
    before = jax.tree_util.tree_leaves_with_path(params)
    after = jax.tree_util.tree_leaves_with_path(centre(params, mean))
    changed = [
        jax.tree_util.keystr(path)
        for (path, old), (new_path, new) in zip(before, after, strict=True)
        if path != new_path or not np.array_equal(old, new)
    ]
    assert changed == [
        ".encoder['params']['network']['MLP_0']['Dense_0']['bias']",
        ".decoder['params']['MLP_0']['Dense_2']['bias']",
    ]


def test_centre_subtracts_the_mean_from_every_input():
    model, params, mean = centred_model("looks_linear", (8, 8))
    images = random((20, 2, 2))
    shift = jnp.asarray(mean, jnp.float32).reshape(1, 2, 2)
    np.testing.assert_allclose(
        model.encode(centre(params, mean), images + jnp.tile(shift, (20, 1, 1))).mean,
        model.encode(params, images).mean,
        atol=1e-5,
    )


# --- The principal start ------------------------------------------------------------


def principal_start(seed=0, scale=0.3, width=8, last=None):
    """Examples with an anisotropic covariance, a model, and its started parameters."""
    generator = np.random.default_rng(0)
    spread = np.diag([3.0, 2.0, 1.0, 0.5, 0.25, 0.1])
    mixing = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    examples = (generator.standard_normal((200, 6)) @ spread @ mixing + 1.0).astype(
        "f4"
    )
    hidden = (width, width, last or width + 2)
    network = NormalMLP(hidden, 2, initialisation="looks_linear")
    decoder = GaussianDecoder(hidden, 6, initialisation="looks_linear")
    model = VAE(Flat(network), decoder, StandardNormal(2))
    components = principal_components(examples, 2)
    params = model.init(jax.random.key(1), (6,))
    key = jax.random.key(seed)
    return examples, model, start_principal(params, key, components, scale), components


@pytest.mark.slow
def test_principal_components_are_those_of_the_svd():
    examples, _, _, components = principal_start()
    _, _, rows = np.linalg.svd(examples.astype("f8") - examples.mean(axis=0))
    overlap = np.abs(np.sum(components.directions * rows[:2].T, axis=0))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-5)
    np.testing.assert_allclose(components.mean, examples.mean(axis=0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("width", [4, 8, 30])  # half of it below, above 6 inputs
def test_principal_start_encodes_and_decodes_as_pca(width):
    examples, model, params, components = principal_start(width=width)
    centred = examples - components.mean
    mean = np.asarray(model.encode(params, jnp.asarray(examples)).mean)
    projected = centred @ components.directions
    # A rotation of the principal coordinates, times the scale.
    rotation = np.linalg.lstsq(0.3 * projected, mean, rcond=None)[0]
    np.testing.assert_allclose(0.3 * projected @ rotation, mean, atol=1e-5)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-5)
    decoded = model.reconstruct(params, jnp.asarray(mean))
    wanted = components.mean + projected @ components.directions.T
    np.testing.assert_allclose(decoded, wanted, atol=1e-5)


@pytest.mark.slow
def test_principal_start_draws_its_rotation_from_the_key():
    examples, model, params, _ = principal_start(seed=0)
    other = principal_start(seed=1)[2]
    first, second = (
        np.asarray(model.encode(p, jnp.asarray(examples)).mean) for p in (params, other)
    )
    assert np.abs(first - second).max() > 0.05
    np.testing.assert_allclose(
        np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1), atol=1e-5
    )


def test_a_principal_start_wants_room_for_the_latents():
    with pytest.raises(ValueError, match="at least the number of latents, 2"):
        principal_start(width=2)
    with pytest.raises(ValueError, match=r"do not fall, got \[8, 8, 6\]"):
        principal_start(width=8, last=6)


@pytest.mark.parametrize(
    ("hidden", "latent_dim", "principal"),
    [
        ((4, 4, 6), 2, True),
        ((2, 2, 4), 2, False),
        ((8, 8, 6), 2, False),
        ((8, 9), 2, False),
        ((14,), 7, False),  # there are six columns
    ],
)
def test_a_fitting_start_is_principal_where_it_can_be(hidden, latent_dim, principal):
    examples, *_ = principal_start()
    flat = examples.reshape(len(examples), -1)
    style = "looks_linear" if all(width % 2 == 0 for width in hidden) else "he"
    model = VAE(
        Flat(NormalMLP(hidden, latent_dim, initialisation=style)),
        GaussianDecoder(hidden, flat.shape[1], initialisation=style),
        StandardNormal(latent_dim),
    )
    drawn = model.init(jax.random.key(0), examples.shape[1:])
    start = fitting_start(examples, hidden, latent_dim, scale=3.0)
    params = start(drawn, jax.random.key(1))
    if principal:
        means = np.asarray(model.encode(params, jnp.asarray(examples)).mean)
        spread = np.linalg.eigvalsh(np.cov(means.T, ddof=0))
        np.testing.assert_allclose(spread[-1], 9.0, rtol=1e-4)
    else:
        wanted = centre(drawn, flat.mean(axis=0, dtype=np.float64))
        chex.assert_trees_all_close(params, wanted, atol=1e-6)
