"""The benchmark's PyTorch references compute what ours do."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

torch = pytest.importorskip("torch", reason="wants PyTorch, the extra [bench]")

from experiments import references  # noqa: E402

GENERATOR = np.random.default_rng(0)
X = (GENERATOR.random((5, 6)) < 0.5).astype("f4")


def seeded(make, *arguments):
    torch.manual_seed(0)
    return make(*arguments)


def normal(network, x):
    """Mean and scale in float64 of what `draw` draws from."""
    with torch.no_grad():
        mean, log_std = network(torch.tensor(x)).double().chunk(2, -1)
    return mean.numpy(), np.exp(log_std.numpy())


def test_the_vamp_prior_is_a_mixture_of_the_encoder_s_posteriors():
    encoder = seeded(references.gated_mlp, [6, 8, 4])
    prior = references.VampPrior(encoder, 7, 6)
    z = GENERATOR.normal(size=(5, 2)).astype("f4")
    with torch.no_grad():
        found = prior(torch.tensor(z), 1)
    mean, scale = normal(encoder, prior.pseudo_inputs.detach().numpy())
    log_p = stats.norm.logpdf(z[:, None], mean, scale).sum(-1)
    wanted = logsumexp(log_p, axis=1) - np.log(7)
    np.testing.assert_allclose(found.numpy(), wanted[None], rtol=1e-5)


def test_the_hierarchical_prior_s_weights_average_to_a_density_of_mass_one():
    networks = [seeded(references.gated_mlp, [1, 8, 2]) for _ in range(2)]
    prior = references.HierarchicalPrior(*networks)
    axis = torch.linspace(-12.0, 12.0, 241)[:, None]
    with torch.no_grad():
        log_w = prior(axis, 20_000)
    density = torch.logsumexp(log_w, 0).double().numpy() - np.log(20_000)
    assert np.exp(density).sum() * 0.1 == pytest.approx(1.0, abs=0.02)


def test_a_likelihood_is_that_of_a_model_without_latents():
    """With a decoder that does not look at z, and q(z|x) = p(z): no variance."""
    encoder = seeded(references.gated_mlp, [6, 8, 4])
    decoder = seeded(references.gated_mlp, [2, 8, 6])
    with torch.no_grad():
        for network in (encoder, decoder):
            network[-1].weight.zero_()
        encoder[-1].bias.zero_()
    terms = references.BernoulliTerms(decoder)

    class Normal(torch.nn.Module):
        def forward(self, z, num_samples):
            return references.log_standard_normal(z)[None]

    model = references.VAE(encoder, terms, Normal())
    found = references.log_likelihood(model, X, 40, copies=10)
    logits = decoder[-1].bias.detach().double().numpy()
    wanted = (X * logits - np.logaddexp(0.0, logits)).sum(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
