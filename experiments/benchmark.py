"""Measures speed against references, in one process, as ratios.

    python -m experiments.benchmark --suite=train --output=results/benchmark_train.json

Suites: train (a step of the pendulum, of human motion, of the MLP on MNIST and of Table
3's gated convolutions, against PyTorch, eager and compiled; the faces' transposed
convolutions, against JAX's own), nll (the likelihood of 100 images with 5,000 samples,
with the VHP and with the peers' VampPrior, against one image at a time in passes of 100
copies), graph (1,000 interpolations on 10 graphs of 2,530 nodes, against a search for
each pair; the faces' graph of 10,000 nodes in 32 dimensions, against scikit-learn, and
a path in it), scaling (a training step over 2, 4 and 8 devices and over 2 processes,
against one device; on a CPU the devices are emulated and share its cores).

Machines are shared and noisy: ours and the references take turns, and what counts is
the median of the rounds' ratios. Only scaling has processes of its own for each layout:
one device is measured anew before each of the others, and medians are compared. The
references want the extra [bench] (PyTorch) and run on a CPU only; elsewhere, or without
it, their rows stand as not run. Images and motions are random ones: they cost as much.
"""

import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from sklearn import neighbors

from experiments import build, cli, distributed, documents, files, provenance, runs
from vhp_jax import devices, evaluation, graph, networks
from vhp_jax.data import Dataset, Split

FLAGS = flags.FLAGS
flags.DEFINE_string("suite", "train", "Which suite: train, nll, graph, scaling.")
flags.DEFINE_list("cases", None, "Only these cases of the suite, by name.")
flags.DEFINE_string(
    "output", None, "JSON file to write, its table beside it (.md); none if not given."
)
flags.DEFINE_integer("rounds", 7, "Alternating rounds.")


class Case(NamedTuple):
    """Something that is timed against references.

    Attributes:
      name: what it is.
      ours: does it once, to the end.
      references: name -> the same by others.
      gflop: of the matrix products of ours, once; 0 where there are none to speak of.
      per: divides the times, such as steps.
      precision: of ours' matrix products, and of the rate they are held against.
    """

    name: str
    ours: Callable[[], object]
    references: dict[str, Callable[[], object]]
    gflop: float
    per: int
    precision: str | None = None


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


def products(*widths: int, gated: bool = False) -> int:
    """Multiplications of one row through fully connected layers of those widths."""
    pairs = list(itertools.pairwise(widths))
    hidden, head = pairs[:-1], pairs[-1]
    return (1 + gated) * sum(a * b for a, b in hidden) + head[0] * head[1]


class Costs(NamedTuple):
    """Multiplications of one row through each network of a VHP.

    Attributes:
      encoder: q(z|x).
      first: its first layer, whose input wants no gradient.
      decoder: p(x|z).
      prior_encoder: q(zeta|z).
      prior_decoder: p(z|zeta).
    """

    encoder: int
    first: int
    decoder: int
    prior_encoder: int
    prior_decoder: int

    def step_gflop(self, batch: int, num_samples: int) -> float:
        """Of a training step: forward, gradients of weights and of inputs."""
        rows = self.encoder + self.decoder + self.prior_encoder
        rows += num_samples * self.prior_decoder
        return batch * (6.0 * rows - 2.0 * self.first) / 1e9

    def sample_gflop(self, prior: str) -> float:
        """Of one sample of z, and with the prior vhp of zeta; x is encoded once."""
        rows = self.decoder
        if prior == "vhp":
            rows += self.prior_encoder + self.prior_decoder
        return 2.0 * rows / 1e9


PENDULUM = Costs(
    encoder=products(256, 256, 256, 256, 256, 4),
    first=256 * 256,
    decoder=products(2, 256, 256, 256, 256, 256),
    prior_encoder=products(2, 256, 256, 256, 256, 4),
    prior_decoder=products(2, 256, 256, 256, 256, 4),
)
MOTION = Costs(
    encoder=products(50, 256, 256, 256, 256, 4),
    first=50 * 256,
    decoder=products(2, 256, 256, 256, 256, 50),
    prior_encoder=PENDULUM.prior_encoder,
    prior_decoder=PENDULUM.prior_decoder,
)
MLP = Costs(
    encoder=products(784, 300, 300, 80, gated=True),
    first=2 * 784 * 300,
    decoder=products(40, 300, 300, 784, gated=True),
    prior_encoder=products(40, 256, 256, 80, gated=True),
    prior_decoder=products(40, 256, 256, 80, gated=True),
)
CONV = Costs(
    encoder=2 * 784 * 49 * 32  # pixels of the output, kernel, channels in and out
    + 2 * 196 * 9 * 32 * 32
    + 2 * 196 * 25 * 32 * 64
    + 2 * 49 * 9 * 64 * 64
    + 2 * 49 * 9 * 64 * 6
    + 294 * 64,
    first=2 * 784 * 49 * 32,
    decoder=2 * 32 * 784 + 784 * (2 * 9 * 64 + 3 * 2 * 9 * 64 * 64 + 64),
    prior_encoder=products(32, 256, 256, 64, gated=True),
    prior_decoder=products(32, 256, 256, 64, gated=True),
)


def random_images(count: int) -> np.ndarray:
    """Binary images [count, 28, 28, 1]."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 2, (count, 28, 28, 1)).astype(np.float32)


def our_run(config: ConfigDict) -> runs.Run:
    """The run of a config, on random images or frames where it wants files."""
    if config.data.name == "pendulum":
        return runs.Run(config)
    if config.data.name == "cmu_mocap":
        frames = np.random.default_rng(0).normal(scale=0.04, size=(12_653, 50))
        split = Split(frames.astype(np.float32), np.zeros(12_653, np.int64))
    else:
        split = Split(random_images(1_000), np.zeros(1_000, np.int64))
    dataset = Dataset("random", "none", "random", split, split, split)
    return runs.Run(config, build.build(config, dataset))


def our_steps(
    run: runs.Run, steps: int, mesh: Mesh | None = None
) -> Callable[[], object]:
    """So many scanned steps of the main phase, where all four networks learn."""
    loop = run.train_loop(mesh)
    data = run.training_data(mesh)
    state = run.initial_state()
    main_phase = state.beta_state._replace(initial_phase=jnp.asarray(False))
    state = state.replace(beta_state=main_phase)
    if mesh is not None:
        state = devices.replicate(state, mesh)

    def take() -> None:
        nonlocal state
        state, metrics = loop(state, data, num_steps=steps)
        jax.block_until_ready((state, metrics))

    return take


def training_case(
    name: str, config: ConfigDict, costs: Costs, steps: int, model: Callable[[], Any]
) -> Case:
    """A training step against PyTorch's; `model` makes the reference's."""
    run = our_run(config)
    batch, num_samples = config.train.batch_size, config.objective.num_samples
    references: dict[str, Callable[[], object]] = {}
    if torch_version():
        from experiments import references as peers

        examples = run.experiment.dataset.train.examples
        settings = (batch, num_samples, config.beta.kappa, config.beta.nu)
        for mode in ("eager", "compiled"):
            take = peers.training_steps(
                model(), examples, *settings, compiled=mode == "compiled"
            )
            references[f"PyTorch {torch_version()} {mode}"] = functools.partial(
                take, steps
            )
    return Case(
        f"{name}, training step, batch {batch}, K {num_samples}",
        our_steps(run, steps),
        references,
        steps * costs.step_gflop(batch, num_samples),
        steps,
    )


def torch_version() -> str | None:
    """PyTorch's version; None without, or where ours are not on a CPU as theirs are."""
    if jax.default_backend() != "cpu":
        return None
    try:
        import torch
    except ImportError:
        return None
    return str(torch.__version__)


def torch_relu(width: int) -> Any:
    """Table 3's fully connected networks for examples of that width."""
    from experiments import references as peers

    hidden = [256] * 4
    encoder = peers.relu_mlp([width, *hidden, 4])
    terms = peers.GaussianTerms(peers.relu_mlp([2, *hidden, width]))
    prior = [peers.relu_mlp([2, *hidden, 4]) for _ in range(2)]
    return peers.VAE(encoder, terms, peers.HierarchicalPrior(*prior))


def train_pendulum() -> Case:
    """The pendulum at batch 128 and K = 16."""
    overrides = [("train.batch_size", "128"), ("objective.num_samples", "16")]
    config = cli.load_config("pendulum", overrides)
    model = functools.partial(torch_relu, 256)
    return training_case("pendulum", config, PENDULUM, 50, model)


def train_motion() -> Case:
    """Human motion as its config has it."""
    config = cli.load_config("cmu_vhp")
    model = functools.partial(torch_relu, 50)
    return training_case("human motion", config, MOTION, 50, model)


PRIORS = {"vhp": "VHP", "vamp": "VampPrior"}


def torch_mlp(prior: str = "vhp") -> Any:
    """The gated MLP of `static_mnist_mlp`, with 500 pseudo-inputs if with any."""
    from experiments import references as peers

    encoder = peers.gated_mlp([784, 300, 300, 80])
    terms = peers.BernoulliTerms(peers.gated_mlp([40, 300, 300, 784]))
    if prior == "vamp":
        return peers.VAE(encoder, terms, peers.VampPrior(encoder, 500, 784))
    networks = [peers.gated_mlp([40, 256, 256, 80]) for _ in range(2)]
    return peers.VAE(encoder, terms, peers.HierarchicalPrior(*networks))


# Adam alone, as the references have it.
BARE = [("train.average_decay", "0.0"), ("train.weight_decay", "0.0")]
BARE_MLP = [*BARE, ("train.milestones", ""), ("model.dropout", "0.0")]


def train_mlp() -> Case:
    """The gated MLP at batch 100 and K = 16."""
    config = cli.load_config("static_mnist_mlp", BARE_MLP)
    return training_case("gated MLP on MNIST", config, MLP, 50, torch_mlp)


def train_conv() -> Case:
    """Table 3's gated convolutions at batch 100 and K = 16."""

    def model() -> Any:
        from experiments import references as peers

        encoder = peers.gated_conv_encoder(32)
        terms = peers.BernoulliTerms(peers.gated_conv_decoder(32))
        prior = [peers.gated_mlp([32, 256, 256, 64]) for _ in range(2)]
        return peers.VAE(encoder, terms, peers.HierarchicalPrior(*prior))

    config = cli.load_config("static_mnist", BARE)
    return training_case("gated convolutions on MNIST", config, CONV, 2, model)


def transposed_layers() -> Case:
    """The four layers that enlarge the images of faces, Table 3, with gradients."""
    num_images, side, layers = 32, 64, []
    generator = np.random.default_rng(0)
    taken = 1
    for channels, size, stride in networks.FACE_LAYERS:
        side //= stride
        if stride > 1:
            shapes = (num_images, side, side, channels), (size, size, channels, taken)
            layers.append([generator.normal(size=s).astype("f4") for s in shapes])
        taken = channels
    gflop = sum(
        3 * 2 * x.size * kernel[..., 0, :].size / 1e9 for x, kernel in layers
    )  # forward, and the gradients of images and kernel

    def gradients(transposed: Callable[..., jax.Array]) -> Callable[[], object]:
        def loss(layers: Sequence[Sequence[jax.Array]]) -> jax.Array:
            each = [jnp.sum(jnp.tanh(transposed(x, kernel))) for x, kernel in layers]
            return jnp.sum(jnp.stack(each))

        compiled = jax.jit(jax.grad(loss))
        return lambda: jax.block_until_ready(compiled(layers))

    def by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    return Case(
        f"faces, transposed convolutions of stride 2, {num_images} images, gradients",
        gradients(functools.partial(networks.transposed_conv, stride=2)),
        {"lax.conv_transpose": gradients(by_lax)},
        gflop,
        1,
    )


def likelihood_case(prior: str) -> Case:
    """100 images, 5,000 samples, the gated MLP with that prior."""
    num_images, num_samples = 100, 5_000
    run = our_run(cli.load_config("static_mnist_mlp", [("model.prior", prior)]))
    images, model = random_images(num_images), run.experiment.model
    params = jax.jit(run.experiment.init_params)(jax.random.key(0))

    def ours() -> None:
        evaluation.log_likelihood(model, params, jax.random.key(0), images, num_samples)

    references: dict[str, Callable[[], object]] = {}
    if torch_version():
        from experiments import references as peers

        theirs = torch_mlp(prior)
        references[f"PyTorch {torch_version()}, an image at a time"] = lambda: (
            peers.log_likelihood(theirs, images, num_samples)
        )
    return Case(
        f"gated MLP, {PRIORS[prior]}, log-likelihood of {num_images} images, "
        f"S {num_samples:,}",
        ours,
        references,
        num_images * num_samples * MLP.sample_gflop(prior),
        1,
        "highest",
    )


def interpolations() -> Case:
    """1,000 shortest paths on 10 graphs over samples that lie on a spiral."""
    generator = np.random.default_rng(0)
    turn = generator.uniform(0.0, 4.0 * np.pi, (10, 2_730))
    nodes = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=-1)  # [10, N, 2]
    nodes += generator.normal(scale=0.2, size=nodes.shape)

    def paths(search: Callable[..., object]) -> None:
        for points in nodes:
            built = graph.bridge_components(graph.build_graph(points[:2_530], 15))
            search(built, points[2_530:2_630], points[2_630:])

    def one_by_one(built: graph.LatentGraph, *ends: np.ndarray) -> None:
        for start, end in zip(*ends, strict=True):
            graph.shortest_path(built, start, end)

    return Case(
        "1,000 interpolations on 10 graphs of 2,530 nodes",
        functools.partial(paths, graph.shortest_paths),
        {"a search for each pair": functools.partial(paths, one_by_one)},
        0.0,
        1,
    )


def face_nodes() -> np.ndarray:
    """As many nodes as in the graph of faces, in as many dimensions, [10,000, 32].

    On a curved sheet of five dimensions: samples of a learned prior are not isotropic.
    """
    generator = np.random.default_rng(0)
    inner = generator.normal(size=(10_000, 5)) @ generator.normal(size=(5, 32))
    return np.sin(inner) + generator.normal(scale=0.1, size=inner.shape)


def face_graph() -> Case:
    """Nodes, neighbours and all edges of the graph of faces."""
    nodes = face_nodes()
    return Case(
        "graph of 10,000 nodes in 32 dimensions, 18 neighbours",
        lambda: graph.build_graph(nodes, 18),
        {
            "scikit-learn kneighbors_graph": lambda: neighbors.kneighbors_graph(
                nodes, 18, mode="distance", n_jobs=-1
            )
        },
        0.0,
        1,
    )


def face_paths() -> Case:
    """Paths in the graph of faces, from one of 20 nodes to another."""
    built = graph.bridge_components(graph.build_graph(face_nodes(), 18))
    starts, ends = np.split(built.nodes[:40] + 0.01, 2)

    def one_by_one() -> None:
        for start, end in zip(starts, ends, strict=True):
            graph.shortest_path(built, start, end)

    return Case(
        "a path in a graph of 10,000 nodes, of 20 at once",
        lambda: graph.shortest_paths(built, starts, ends),
        {"a search for each pair": one_by_one},
        0.0,
        len(starts),
    )


class Layout(NamedTuple):
    """Devices of a training step.

    Attributes:
      devices: of each process.
      processes: on this machine.
    """

    devices: int
    processes: int = 1

    def __str__(self) -> str:
        return f"{self.processes} process(es) x {self.devices} device(s)"


LAYOUTS = (Layout(2), Layout(4), Layout(8), Layout(1, 2))


class Scaled(NamedTuple):
    """A training step that devices share.

    Attributes:
      config: its name.
      costs: of its networks.
      steps: that are timed together.
      overrides: of the config, besides a batch that eight devices can share.
    """

    config: str
    costs: Costs
    steps: int
    overrides: Sequence[tuple[str, str]] = ()

    def load(self) -> ConfigDict:
        """The config."""
        pairs = [("train.batch_size", "128"), *self.overrides]
        return cli.load_config(self.config, pairs)


SCALED = {
    "pendulum": Scaled("pendulum", PENDULUM, 20),
    "mlp": Scaled("static_mnist_mlp", MLP, 20, BARE_MLP),
    "conv": Scaled("static_mnist", CONV, 2, BARE),
}
WORKER_MINUTES = 15
flags.DEFINE_enum("worker", None, list(SCALED), "A process of --suite=scaling's own.")


def scaling_worker(case: str, rounds: int) -> None:
    """Times a training step in this process, with all devices of all processes."""
    scaled = SCALED[case]
    with distributed.join() as group:
        mesh = devices.make_mesh()
        take = our_steps(our_run(scaled.load()), scaled.steps, mesh)
        take()  # compile and warm up
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            take()
            seconds.append((time.perf_counter() - start) / scaled.steps)
        if group.leads:
            found = {"seconds": seconds, "matmul_gflops": matmul_gflops()}
            print(json.dumps(found), flush=True)


def start_workers(case: str, layout: Layout, rounds: int) -> dict[str, Any]:
    """Runs the processes of a layout and returns what the first one measured.

    Raises:
      UserError: one of them failed.
    """
    command = [sys.executable, "-m", "experiments.benchmark", f"--worker={case}"]
    command.append(f"--rounds={rounds}")
    if layout.processes > 1:
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        command.append(f"--coordinator_address=localhost:{port}")
        command.append(f"--num_processes={layout.processes}")
    emulated = f"--xla_force_host_platform_device_count={layout.devices}"
    settings = {"XLA_FLAGS": emulated, "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            command + [f"--process_id={index}"] * (layout.processes > 1),
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(layout.processes)
    ]
    try:
        said = [worker.communicate(timeout=60 * WORKER_MINUTES) for worker in workers]
    except subprocess.TimeoutExpired:
        raise cli.UserError(
            f"{case}, {layout}: not done in {WORKER_MINUTES} minutes"
        ) from None
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, said, strict=True):
        if worker.returncode:
            last = errors.strip().splitlines()[-1:] or ["no word"]
            raise cli.UserError(f"{case}, {layout}: {last[0]}")
    found: dict[str, Any] = json.loads(said[0][0].splitlines()[-1])
    return found


def scaling_rows(chosen: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each case and layout; the reference is the same on one device."""
    rows = []
    for case in chosen:
        config = SCALED[case].load()
        batch = config.train.batch_size
        gflop = SCALED[case].costs.step_gflop(batch, config.objective.num_samples)
        for layout in LAYOUTS:
            reference = start_workers(case, Layout(1), rounds)
            found = start_workers(case, layout, rounds)
            alone, seconds = (
                statistics.median(worker["seconds"]) for worker in (reference, found)
            )
            rows.append(
                {
                    "name": f"{case}, batch {batch}, {layout}",
                    "seconds": seconds,
                    "examples_per_second": batch / seconds,
                    "reference": str(Layout(1)),
                    "reference_seconds": alone,
                    "ratio": alone / seconds,
                    "matmul_gflops": found["matmul_gflops"],
                    "matmul_share": gflop / seconds / found["matmul_gflops"],
                    **layout._asdict(),
                }
            )
            print(f"{rows[-1]['name']}: {batch / seconds:.0f} examples/s", flush=True)
    return rows


SUITES: dict[str, dict[str, Callable[[], Case]]] = {
    "train": {
        "pendulum": train_pendulum,
        "motion": train_motion,
        "mlp": train_mlp,
        "conv": train_conv,
        "transposed": transposed_layers,
    },
    "nll": {
        "mlp": functools.partial(likelihood_case, "vhp"),
        "vamp": functools.partial(likelihood_case, "vamp"),
    },
    "graph": {
        "motion": interpolations,
        "faces": face_graph,
        "paths": face_paths,
    },
}


def timed(case: Case, rounds: int) -> list[dict[str, Any]]:
    """A row of results for each reference of a case; they take turns."""
    contestants = {"vhp_jax": case.ours, **case.references}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates = []
    for contestant in contestants.values():
        contestant()  # compile and warm up
    for index in range(rounds):
        with jax.default_matmul_precision(case.precision):
            rates.append(matmul_gflops())
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append((time.perf_counter() - start) / case.per)
        print(
            f"{case.name}, round {index + 1}/{rounds}: "
            + ", ".join(f"{name} {1e3 * s[-1]:.2f} ms" for name, s in seconds.items())
            + f", matmul {rates[-1]:.0f} GFLOP/s",
            flush=True,
        )
    ours = seconds.pop("vhp_jax")
    rate = statistics.median(rates)
    shares = [case.gflop / case.per / s / r for s, r in zip(ours, rates, strict=True)]
    own = {
        "name": case.name,
        "seconds": statistics.median(ours),
        "matmul_gflops": rate,
        "matmul_share": statistics.median(shares) if case.gflop else None,
    }
    references = {
        name: {
            "reference_seconds": statistics.median(theirs),
            "ratio": statistics.median(np.array(theirs) / np.array(ours)),
        }
        for name, theirs in seconds.items()
    } or {"not run": {"reference_seconds": None, "ratio": None}}
    return [own | {"reference": name} | row for name, row in references.items()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| what | ours (ms) | reference | its (ms) | ratio | matmul share |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs, ratio = row["reference_seconds"], row["ratio"]
        share = row["matmul_share"]
        lines.append(
            f"| {row['name']} | {1e3 * row['seconds']:.2f} | {row['reference']} | "
            f"{'-' if theirs is None else f'{1e3 * theirs:.2f}'} | "
            f"{'-' if ratio is None else f'{ratio:.2f}'} | "
            f"{'-' if share is None else f'{share:.0%}'} |"
        )
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Benchmarks as the flags say."""
    names = {suite: list(cases) for suite, cases in SUITES.items()}
    names["scaling"] = list(SCALED)
    if FLAGS.suite not in names:
        raise cli.UsageError(
            f"--suite must be one of {', '.join(names)}; got {FLAGS.suite!r}"
        )
    cases = names[FLAGS.suite]
    chosen = cases if FLAGS.cases is None else FLAGS.cases
    for name in chosen:
        if name not in cases:
            raise cli.UsageError(
                f"suite {FLAGS.suite} has no case {name!r}; there are: "
                f"{', '.join(cases)}"
            )
    if FLAGS.output and FLAGS.output.endswith(".md"):
        raise cli.UsageError(f"--output is a JSON file, got {FLAGS.output!r}")
    if FLAGS.rounds < 1:
        raise cli.UsageError(f"--rounds must be >= 1, got {FLAGS.rounds}")
    if FLAGS.worker is not None:
        scaling_worker(FLAGS.worker, FLAGS.rounds)
        return
    scales = FLAGS.suite == "scaling"
    if torch_version() is None and not scales:
        print(
            "no PyTorch, or no CPU to compare on: its rows are not run; "
            "pip install -e '.[bench]'"
        )
    if scales:
        rows = scaling_rows(chosen, FLAGS.rounds)
    else:
        made = (SUITES[FLAGS.suite][name]() for name in chosen)
        rows = [row for case in made for row in timed(case, FLAGS.rounds)]
    text = table(rows)
    print(text)
    rate = statistics.median(row["matmul_gflops"] for row in rows)
    result = {
        "suite": FLAGS.suite,
        "rounds": FLAGS.rounds,
        "device": jax.devices()[0].device_kind,
        "hardware": provenance.hardware(),
        "matmul_gflops": rate,
        "rows": rows,
        "versions": provenance.versions() | {"torch": torch_version()},
        "commit": provenance.git_revision(),
    }
    if FLAGS.output:
        path = Path(FLAGS.output)
        files.write_json(path, result)
        documents.write_table(path.with_suffix(".md"), text)


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
