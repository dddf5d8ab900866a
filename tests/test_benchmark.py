"""The benchmark's arithmetic: products that are counted, ratios, errors."""

import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from test_experiments import command, import_command

from experiments import cli
from vhp_jax import evaluation

pytestmark = pytest.mark.optax


@pytest.fixture
def benchmark():
    return import_command("benchmark")


def equations(jaxpr: core.Jaxpr):
    """All of them, those of programs within programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from equations(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from equations(value)


def contractions(function, *arguments):
    """(axes contracted, GFLOP) of all products and convolutions that are written."""
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        outputs = 2 * math.prod(equation.outvars[0].aval.shape) / 1e9
        left, right = ([v.aval.shape for v in equation.invars] + [(), ()])[:2]
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            yield len(axes), outputs * math.prod(left[axis] for axis in axes)
        elif equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            yield 1, outputs * math.prod(right) / right[numbers.rhs_spec[0]]


def products_gflop(function, *arguments) -> float:
    return sum(gflop for _, gflop in contractions(function, *arguments))


def loss_of(config, benchmark):
    """The Lagrangian at beta = 1, and shapes of the parameters."""
    run = benchmark.our_run(config)
    experiment = run.experiment
    shape = experiment.dataset.train.examples.shape[1:]
    x = jnp.zeros((config.train.batch_size, *shape))

    def loss(params):
        terms = experiment.objective(params, jax.random.key(0), x)
        return jnp.mean(terms.distortion + terms.rate)

    return loss, jax.eval_shape(run.initial_state).params


@pytest.mark.parametrize(
    ("name", "costs"),
    [
        ("pendulum", "PENDULUM"),
        ("cmu_vhp", "MOTION"),
        ("static_mnist_mlp", "MLP"),
        ("static_mnist", "CONV"),
    ],
)
def test_the_products_of_a_step_are_those_it_is_said_to_take(name, costs, benchmark):
    """Of convolutions forward only: gradients of strided ones multiply zeros too."""
    config, costs = cli.load_config(name), getattr(benchmark, costs)
    loss, params = loss_of(config, benchmark)
    batch, num_samples = config.train.batch_size, config.objective.num_samples
    said = costs.step_gflop(batch, num_samples)
    forward = (said + 2.0 * batch * costs.first / 1e9) / 3.0
    assert products_gflop(loss, params) == pytest.approx(forward, rel=1e-9)
    if name != "static_mnist":
        assert products_gflop(jax.grad(loss), params) == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize("objective", ["vhp", "iwae"])
@pytest.mark.parametrize("name", ["pendulum", "static_mnist_mlp", "static_mnist"])
def test_gradients_contract_one_axis_of_rows(name, objective, benchmark):
    """Over two of them XLA is at half of its speed on a CPU: docs/speed.md."""
    config = cli.load_config(name, [("objective.name", objective)])
    loss, params = loss_of(config, benchmark)
    axes = [axes for axes, _ in contractions(jax.grad(loss), params)]
    assert len(axes) > 10
    assert set(axes) == {1}


@pytest.mark.parametrize("prior", ["vhp", "vamp"])
def test_the_products_of_a_likelihood_are_those_it_is_said_to_take(prior, benchmark):
    config = cli.load_config("static_mnist_mlp", [("model.prior", prior)])
    run = benchmark.our_run(config)
    model, images = run.experiment.model, jnp.zeros((3, 28, 28, 1))
    params = jax.eval_shape(run.experiment.init_params, jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 3)

    def weights(num_samples):
        return lambda params: evaluation._weight_sums(
            model, params, keys, images, num_samples, num_samples
        )

    # The encoder is run once, however many samples a chunk has.
    two, four = (products_gflop(weights(n), params) for n in (2, 4))
    said = 3 * 2 * benchmark.MLP.sample_gflop(prior)
    assert four - two == pytest.approx(said, rel=1e-9)


def test_ratios_are_of_rounds_and_their_median_counts(benchmark, monkeypatch):
    """Two steps a turn; the first turn warms up."""
    now, ours = [0.0], iter([9.0, 2.0, 8.0, 4.0, 1.0, 1.0])
    theirs = iter([9.0, 6.0, 16.0, 20.0])

    def take(seconds):
        now[0] += next(seconds)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(benchmark, "matmul_gflops", lambda: 10.0)
    case = benchmark.Case(
        "case", lambda: take(ours), {"other": lambda: take(theirs)}, 30.0, 2
    )
    (row,) = benchmark.timed(case, rounds=3)
    assert row["name"] == "case"
    assert (row["seconds"], row["reference_seconds"]) == (2.0, 8.0)
    assert row["ratio"] == 3.0  # of 3, 2 and 5
    assert row["matmul_share"] == 0.75  # 15 GFLOP in 1, 4 and 2 s of 10 a second
    assert benchmark.table([row]).splitlines()[2] == (
        "| case | 2000.00 | other | 8000.00 | 3.00 | 75% |"
    )
    (alone,) = benchmark.timed(case._replace(references={}), rounds=1)
    assert (alone["reference"], alone["ratio"]) == ("not run", None)


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--suite=speed", "--suite must be one of train, nll, graph, scaling; got"),
        ("--cases=mlp,pendulums", "suite train has no case 'pendulums'; there are: p"),
        ("--rounds=0", "--rounds must be >= 1, got 0"),
        ("--output=speed.md", "--output is a JSON file, got 'speed.md'"),
    ],
)
def test_what_cannot_be_measured_is_refused(flag, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("benchmark", flag)
    assert done.code == 2
    assert done.err.startswith(f"error: {wanted}")
    assert done.err.count("\n") == 1
    assert not list(Path(tmp_path).iterdir())
