"""The same models in PyTorch, written as their authors' peers write them.

Only `experiments.benchmark` imports this, and only where PyTorch is there.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LOG_2PI = math.log(2.0 * math.pi)


class Gated(nn.Module):
    """h * sigmoid(g) of two layers of one kind, as in the VampPrior's code."""

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.h, self.g = make(), make()

    def forward(self, x: Any) -> Any:
        """Gates the one by the other."""
        return self.h(x) * torch.sigmoid(self.g(x))


def relu_mlp(widths: list[int]) -> nn.Module:
    """Linear layers, ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def gated_mlp(widths: list[int]) -> nn.Module:
    """Gated linear layers and a linear head."""
    gated = [
        Gated(functools.partial(nn.Linear, inputs, outputs))
        for inputs, outputs in itertools.pairwise(widths[:-1])
    ]
    return nn.Sequential(*gated, nn.Linear(widths[-2], widths[-1]))


def gated_conv_encoder(latent_dim: int) -> nn.Module:
    """Table 3's encoder of images, NCHW."""
    layers = [(1, 32, 7, 1), (32, 32, 3, 2), (32, 64, 5, 1), (64, 64, 3, 2)]
    layers += [(64, 6, 3, 1)]
    gated = [
        Gated(functools.partial(nn.Conv2d, i, o, k, s, k // 2)) for i, o, k, s in layers
    ]
    head = nn.Linear(6 * 7 * 7, 2 * latent_dim)
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *gated, nn.Flatten(), head)


def gated_conv_decoder(latent_dim: int) -> nn.Module:
    """Table 3's decoder of images, NCHW, onto logits."""
    channels = [1, 64, 64, 64, 64]
    gated = [
        Gated(functools.partial(nn.Conv2d, a, b, 3, 1, 1))
        for a, b in itertools.pairwise(channels)
    ]
    first = Gated(functools.partial(nn.Linear, latent_dim, 784))
    image = nn.Unflatten(1, (1, 28, 28))
    return nn.Sequential(first, image, *gated, nn.Conv2d(64, 1, 1), nn.Flatten())


def log_normal(x: Any, mean: Any, log_std: Any) -> Any:
    """Log-density, summed over the last axis."""
    square = ((x - mean) * torch.exp(-log_std)) ** 2
    return -0.5 * (square + 2.0 * log_std + LOG_2PI).sum(-1)


def log_standard_normal(x: Any) -> Any:
    """Log-density of N(0, I), summed over the last axis."""
    return -0.5 * (x**2 + LOG_2PI).sum(-1)


def draw(network: nn.Module, x: Any, *samples: int) -> tuple[Any, Any, Any]:
    """A reparameterised draw from network(x), with mean and log-scale."""
    mean, log_std = network(x).chunk(2, -1)
    noise = torch.randn(*samples, *mean.shape)
    return mean + log_std.exp() * noise, mean, log_std


class HierarchicalPrior(nn.Module):
    """q(zeta|z) and p(z|zeta)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, z: Any, num_samples: int) -> Any:
        """Log [p(z|zeta) p(zeta) / q(zeta|z)], [K, B]."""
        zeta, mean, log_std = draw(self.encoder, z, num_samples)
        z_mean, z_log_std = self.decoder(zeta).chunk(2, -1)
        log_p_z = log_normal(z, z_mean, z_log_std)
        return log_p_z + log_standard_normal(zeta) - log_normal(zeta, mean, log_std)


class VampPrior(nn.Module):
    """The encoder's posteriors of C learned inputs, as many examples of that width."""

    def __init__(self, encoder: nn.Module, num_components: int, width: int):
        super().__init__()
        self.encoder = encoder
        self.pseudo_inputs = nn.Parameter(torch.rand(num_components, width))

    def forward(self, z: Any, num_samples: int) -> Any:
        """Log p(z), [1, B]; the inputs are encoded in each call, as the peers do."""
        mean, log_std = self.encoder(self.pseudo_inputs.clamp(0.0, 1.0)).chunk(2, -1)
        log_p_z = log_normal(z[:, None], mean, log_std).logsumexp(1)
        return (log_p_z - math.log(len(mean)))[None]


class GaussianTerms(nn.Module):
    """-log p(x|z) of a Gaussian decoder with one learned log-scale, and its mean."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Any, z: Any) -> tuple[Any, Any]:
        """-log p(x|z), one an example, and the mean of x, made if it is asked for."""
        mean = self.decoder(z)
        return -log_normal(x, mean, self.log_scale.clamp_min(-6.0)), lambda: mean


class BernoulliTerms(nn.Module):
    """-log p(x|z) of a decoder onto logits, and its mean."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Any, z: Any) -> tuple[Any, Any]:
        """-log p(x|z), one an example, and the mean of x, made if it is asked for."""
        logits = self.decoder(z)
        nll = functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return nll.sum(-1), lambda: torch.sigmoid(logits)


class VAE(nn.Module):
    """q(z|x), p(x|z) and a prior."""

    def __init__(self, encoder: nn.Module, terms: nn.Module, prior: nn.Module):
        super().__init__()
        self.encoder, self.terms, self.prior = encoder, terms, prior


def training_steps(
    model: VAE,
    examples: np.ndarray,
    batch: int,
    num_samples: int,
    kappa: float,
    nu: float,
    compiled: bool,
) -> Callable[[int], None]:
    """A function that takes so many steps of VHP + REWO, data on the device."""
    data = torch.tensor(examples.reshape(len(examples), -1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    beta, average = torch.tensor(0.01), torch.tensor(kappa**2)

    def loss_fn(x: Any, beta: Any, average: Any) -> Any:
        z, mean, log_std = draw(model.encoder, x)
        distortion, mean_x = model.terms(x, z)
        error = (x - mean_x()).square().mean(-1)
        log_w = model.prior(z, num_samples)
        bound = torch.logsumexp(log_w, 0) - math.log(num_samples)
        rate = log_normal(z, mean, log_std) - bound
        average = 0.01 * error.detach().mean() + 0.99 * average
        violation = average - kappa**2
        slope = torch.where(violation < 0, torch.tanh(3.0 * (beta - 1.0)), -1.0)
        beta = beta * torch.exp(nu * slope * violation)
        return (distortion + beta * rate).mean(), beta, average

    if compiled:
        loss_fn = torch.compile(loss_fn)

    def steps(count: int) -> None:
        nonlocal beta, average
        for _ in range(count):
            x = data[torch.randint(len(data), (batch,))]
            optimizer.zero_grad(set_to_none=True)
            loss, beta, average = loss_fn(x, beta, average)
            beta, average = beta.detach(), average.detach()
            loss.backward()
            optimizer.step()

    return steps


def log_likelihood(
    model: VAE, examples: np.ndarray, num_samples: int, copies: int = 100
) -> list[float]:
    """One image at a time, in passes of so many copies, each encoded anew."""
    data = torch.tensor(examples.reshape(len(examples), -1))
    estimates = []
    with torch.no_grad():
        for image in data:
            log_weights = []
            for _ in range(num_samples // copies):
                x = image.expand(copies, -1)
                z, mean, log_std = draw(model.encoder, x)
                distortion, _ = model.terms(x, z)
                log_p_z = model.prior(z, 1)[0]
                log_w = log_p_z - distortion - log_normal(z, mean, log_std)
                log_weights.append(log_w.numpy())  # a sync a pass, as the peers do
            weights = np.concatenate(log_weights)
            top = weights.max()
            estimates.append(top + math.log(np.exp(weights - top).mean()))
    return estimates
