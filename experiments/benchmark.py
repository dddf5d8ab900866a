"""Measures speed against references, in one process, as ratios.

    python -m experiments.benchmark --suite=train --output=results/benchmark_train.json

Machines are shared and noisy: ours and the references take turns, and what counts is
the median of the rounds' ratios. The references want the extra [bench] (PyTorch);
without it their rows stand as not run.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments import cli, runs

FLAGS = flags.FLAGS
flags.DEFINE_string("suite", "train", "Which suite: train.")
flags.DEFINE_string("output", None, "JSON file to write; none if not given.")
flags.DEFINE_integer("rounds", 7, "Alternating rounds.")

STEPS = 50  # training steps per round


def matmul_gflops(size: int = 2048, repeats: int = 4) -> float:
    """The machine's own float32 matrix-product rate, GFLOP/s, in one reading."""
    matrix = jnp.full((size, size), 1.0 / size)

    @jax.jit
    def chain(a: jax.Array) -> jax.Array:
        return lax.fori_loop(0, repeats, lambda _, product: product @ a, a)

    jax.block_until_ready(chain(matrix))
    start = time.perf_counter()
    jax.block_until_ready(chain(matrix))
    return 2.0 * size**3 * repeats / (time.perf_counter() - start) / 1e9


def step_gflop(batch: int, num_samples: int, pixels: int, hidden: list[int]) -> float:
    """GFLOP of the matrix products of one VHP step on the pendulum networks.

    Forward, gradient of the weights and gradient of the input (which the encoder's
    first layer does not need) cost 2 * rows * inputs * outputs each.
    """
    latent = 2

    def product(rows: int, inputs: int, outputs: int) -> float:
        widths = [inputs, *hidden, outputs]
        return 6.0 * rows * sum(a * b for a, b in itertools.pairwise(widths))

    total = (
        product(batch, pixels, 2 * latent)  # q(z|x)
        - 2.0 * batch * pixels * hidden[0]
        + product(batch, latent, pixels)  # p(x|z)
        + product(batch, latent, 2 * latent)  # q(zeta|z)
        + product(batch * num_samples, latent, 2 * latent)  # p(z|zeta)
    )
    return total / 1e9


def jax_steps(batch: int, num_samples: int) -> Callable[[], None]:
    """STEPS scanned steps of --config=pendulum at another batch size."""
    overrides = [("train.batch_size", batch), ("objective.num_samples", num_samples)]
    config = cli.load_config("pendulum", [(key, str(v)) for key, v in overrides])
    run = runs.Run(config)
    loop = run.train_loop()
    data = jnp.asarray(run.experiment.dataset.train.examples)
    state = run.initial_state()
    # Measure the main phase, where all four networks learn.
    main_phase = state.beta_state._replace(initial_phase=jnp.asarray(False))
    state = state.replace(beta_state=main_phase)

    def steps() -> None:
        nonlocal state
        state, metrics = loop(state, data, num_steps=STEPS)
        jax.block_until_ready((state, metrics))

    return steps


def torch_steps(batch: int, num_samples: int, compiled: bool) -> Callable[[], None]:
    """The same model, loss, REWO update and Adam in PyTorch, data on the device."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    config = cli.load_config("pendulum")
    examples = runs.Run(config).experiment.dataset.train.examples
    data = torch.tensor(examples.reshape(len(examples), -1))
    hidden, pixels = list(config.model.hidden), data.shape[1]
    log_2pi = math.log(2.0 * math.pi)

    def mlp(inputs: int, outputs: int) -> nn.Module:
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    encoder, decoder = mlp(pixels, 4), mlp(2, pixels)
    prior_encoder, prior_decoder = mlp(2, 4), mlp(2, 4)
    log_scale = nn.Parameter(torch.zeros(()))
    networks = [encoder, decoder, prior_encoder, prior_decoder]
    parameters = [p for network in networks for p in network.parameters()]
    optimizer = torch.optim.Adam([*parameters, log_scale], lr=1e-4, fused=True)
    beta, average = torch.tensor(0.01), torch.tensor(0.001)

    def log_normal(x: Any, mean: Any, log_std: Any) -> Any:
        square = ((x - mean) * torch.exp(-log_std)) ** 2
        return -0.5 * (square + 2.0 * log_std + log_2pi).sum(-1)

    def loss_fn(x: Any, beta: Any, average: Any) -> Any:
        mean, log_std = encoder(x).chunk(2, -1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        reconstruction = decoder(z)
        distortion = -log_normal(x, reconstruction, log_scale.clamp_min(-6.0))
        zeta_mean, zeta_log_std = prior_encoder(z).chunk(2, -1)
        noise = torch.randn(num_samples, *zeta_mean.shape)
        zeta = zeta_mean + zeta_log_std.exp() * noise
        z_mean, z_log_std = prior_decoder(zeta).chunk(2, -1)
        log_w = (
            log_normal(z, z_mean, z_log_std)
            + log_normal(zeta, torch.zeros(()), torch.zeros(()))
            - log_normal(zeta, zeta_mean, zeta_log_std)
        )
        bound = torch.logsumexp(log_w, 0) - math.log(num_samples)
        rate = log_normal(z, mean, log_std) - bound
        constraint = (x - reconstruction).detach().square().mean()
        average = 0.01 * constraint + 0.99 * average
        violation = average - 0.02**2
        slope = torch.where(violation < 0, torch.tanh(3.0 * (beta - 1.0)), -1.0)
        beta = beta * torch.exp(5.0 * slope * violation)
        return (distortion + beta * rate).mean(), beta, average

    if compiled:
        loss_fn = torch.compile(loss_fn)

    def steps() -> None:
        nonlocal beta, average
        for _ in range(STEPS):
            x = data[torch.randint(len(data), (batch,))]
            optimizer.zero_grad(set_to_none=True)
            loss, beta, average = loss_fn(x, beta, average)
            beta, average = beta.detach(), average.detach()
            loss.backward()
            optimizer.step()

    return steps


def suite_train() -> dict[str, Any]:
    """One training step of the pendulum at batch 128 and K = 16."""
    batch, num_samples = 128, 16
    contestants = {"vhp_jax": jax_steps(batch, num_samples)}
    try:
        import torch
    except ImportError:
        print(
            "PyTorch is not installed: its rows are not run; pip install -e '.[bench]'"
        )
    else:
        name = f"PyTorch {torch.__version__}"
        contestants[f"{name} eager"] = torch_steps(batch, num_samples, False)
        contestants[f"{name} compiled"] = torch_steps(batch, num_samples, True)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates = []
    for steps in contestants.values():
        steps()  # compile and warm up
    for index in range(FLAGS.rounds):
        rates.append(matmul_gflops())
        for name, steps in contestants.items():
            start = time.perf_counter()
            steps()
            seconds[name].append((time.perf_counter() - start) / STEPS)
        print(
            f"round {index + 1}/{FLAGS.rounds}: "
            + ", ".join(f"{name} {1e3 * s[-1]:.2f} ms" for name, s in seconds.items())
            + f", matmul {rates[-1]:.0f} GFLOP/s"
        )
    gflop = step_gflop(batch, num_samples, 256, [256] * 4)
    ours = seconds.pop("vhp_jax")
    share = statistics.median(
        gflop / s / rate for s, rate in zip(ours, rates, strict=True)
    )
    own = {
        "name": f"pendulum training step, batch {batch}, K {num_samples}",
        "seconds": statistics.median(ours),
        "matmul_share": share,
    }
    references = {
        name: {
            "reference_seconds": statistics.median(theirs),
            "ratio": statistics.median(np.array(theirs) / np.array(ours)),
        }
        for name, theirs in seconds.items()
    } or {"not run": {"reference_seconds": None, "ratio": None}}
    rows = [own | {"reference": name} | row for name, row in references.items()]
    return {"matmul_gflops": statistics.median(rates), "rows": rows}


SUITES: dict[str, Callable[[], dict[str, Any]]] = {"train": suite_train}


def main() -> None:
    """Benchmarks as the flags say."""
    if FLAGS.suite not in SUITES:
        raise cli.UsageError(
            f"--suite must be one of {', '.join(SUITES)}; got {FLAGS.suite!r}"
        )
    if FLAGS.rounds < 1:
        raise cli.UsageError(f"--rounds must be >= 1, got {FLAGS.rounds}")
    device = jax.devices()[0].device_kind
    result = {"suite": FLAGS.suite, "device": device, **SUITES[FLAGS.suite]()}
    result |= {"versions": runs.versions(), "commit": runs.git_revision()}
    print("| what | ours (ms) | reference | its (ms) | ratio | matmul share |")
    print("|---|---|---|---|---|---|")
    for row in result["rows"]:
        theirs, ratio = row["reference_seconds"], row["ratio"]
        print(
            f"| {row['name']} | {1e3 * row['seconds']:.2f} | {row['reference']} | "
            f"{'-' if theirs is None else f'{1e3 * theirs:.2f}'} | "
            f"{'-' if ratio is None else f'{ratio:.2f}'} | {row['matmul_share']:.0%} |"
        )
    if FLAGS.output:
        runs.write_json(Path(FLAGS.output), result)


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
