"""The training step and the scanned loop, on a toy objective and on the real VAE.

The toy has no compiled network, so that exact claims are cheap to check; the claims
that depend on the model are made again for a small VHP.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vhp_jax import beta, distributions, networks, objectives, training
from vhp_jax.model import VAE
from vhp_jax.objectives import Terms
from vhp_jax.priors import HierarchicalPrior
from vhp_jax.types import Params

pytestmark = pytest.mark.optax

NUM_EXAMPLES, BATCH_SIZE = 10, 4
BOTH = ["toy", pytest.param("real", marks=pytest.mark.slow)]
OFFSET = {"toy": 0.0, "real": 1.0}  # of the data, so that the start is far from fitted
DATA = np.random.default_rng(0).uniform(0.0, 1.0, (NUM_EXAMPLES, 3)).astype(np.float32)


def toy_objective(params: Params, key: jax.Array, x: jax.Array) -> Terms:
    """Noisy squared errors in which every part of the parameters has a gradient."""
    noise = 0.01 * jax.random.normal(key, x.shape)
    encoder, decoder, prior = (part["w"][None] for part in params)  # [1, 3]
    squared = jnp.sum(jnp.square(x + noise - encoder - decoder), axis=-1)
    rate = jnp.square(encoder - prior) + x * prior
    return Terms(squared, jnp.sum(rate, axis=-1), squared / 3.0)


def toy_params(key: jax.Array) -> Params:
    keys = jax.random.split(key, 3)
    return Params(*({"w": 2.0 + jax.random.normal(k, (3,))} for k in keys))


def real_model() -> VAE:
    network = functools.partial(networks.NormalMLP, (8,), 2)
    return VAE(
        encoder=networks.Flat(network()),
        decoder=networks.GaussianDecoder((8,), 3),
        prior=HierarchicalPrior(network(), network(), 2, 2),
    )


ADAM = training.OptimizerPair(optax.adam(0.05), optax.adam(0.05))
SGD = training.OptimizerPair(optax.sgd(0.01), optax.sgd(0.01))
# C_hat of the toy and of the VAE falls below kappa^2 within 80 steps.
REWO = beta.rewo(kappa=0.6, nu=2.0, alpha=0.5, beta_init=0.01)


def make(name: str, scheme=REWO, optimizers=ADAM):
    """A fresh state and a training step."""
    if name == "toy":
        objective, init_params = toy_objective, toy_params
    else:
        objective = objectives.make_vhp_objective(real_model(), num_samples=3)
        init_params = lambda key: real_model().init(key, (3,))  # noqa: E731
    step = training.make_train_step(objective, scheme, optimizers)
    init = functools.partial(
        training.init_state,
        init_params=init_params,
        optimizers=optimizers,
        beta_scheme=scheme,
    )
    return init, step


@functools.cache
def compiled(name: str):
    """`make`, jitted once for all tests that need no more: init, step and loop."""
    init, step = make(name)
    loop = training.jit_train_loop(training.make_train_loop(step, BATCH_SIZE))
    return jax.jit(init), jax.jit(step), loop


def as_data(tree):
    """Keys as plain integers, for comparisons."""

    def convert(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(convert, tree)


def toy_state(seed: int = 0, scheme=REWO, optimizers=ADAM) -> training.TrainState:
    return make("toy", scheme, optimizers)[0](jax.random.key(seed))


def toy_loop(num_seeds: int = 1, scheme=REWO, optimizers=ADAM) -> training.TrainLoop:
    step = make("toy", scheme, optimizers)[1]
    loop = training.make_train_loop(step, BATCH_SIZE)
    return training.jit_train_loop(loop, num_seeds)


def copy(tree):
    """A copy that a donation leaves alone."""
    return jax.tree.map(jnp.copy, tree)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree, index: int):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def moved(before, after) -> bool:
    """Whether every leaf changed."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(bool(jnp.any(one != other)) for one, other in pairs)


# --- The phase gate ------------------------------------------------------------------


def run_over_the_switch(name: str):
    """States before and after each step, and its metrics, from phase 1 into phase 2."""
    init, step, _ = compiled(name)
    state, x = init(jax.random.key(3)), jnp.asarray(OFFSET[name] + DATA)
    for number in range(80):
        after, metrics = step(state, jax.random.key(number), x)
        yield state, after, metrics
        state = after


@pytest.mark.parametrize("name", ["toy", "real"])
def test_initial_phase_leaves_prior_and_its_moments_bit_for_bit(name):
    phases = []
    for before, after, metrics in run_over_the_switch(name):
        phases.append(bool(metrics.initial_phase))
        old, new = before.opt_state.prior, after.opt_state.prior
        assert moved(before.params.encoder, after.params.encoder)
        assert moved(before.params.decoder, after.params.decoder)
        assert after.opt_state.vae[0].count == len(phases)
        if phases[-1]:
            chex.assert_trees_all_equal(before.params.prior, after.params.prior)
            chex.assert_trees_all_equal(old, new)
            assert new[0].count == 0
        else:
            assert moved((before.params.prior, old), (after.params.prior, new))
            # Adam starts at the switch, as if the first phase had never been.
            assert new[0].count == phases.count(False)
    assert phases == sorted(phases, reverse=True)  # once over, it is over
    assert 3 < sum(phases) < len(phases) - 3  # both sides were seen


def test_gate_holds_back_gradients_that_are_not_finite():
    """A hold is no multiplication by zero."""

    def broken(params, key, x):
        terms = toy_objective(params, key, x)
        return terms._replace(rate=terms.rate + jnp.sqrt(0.0 * params.prior["w"][0]))

    step = training.make_train_step(broken, REWO, ADAM)
    state = toy_state()
    after, metrics = jax.jit(step)(state, jax.random.key(0), jnp.asarray(DATA))
    assert metrics.initial_phase
    chex.assert_trees_all_equal(state.params.prior, after.params.prior)
    chex.assert_trees_all_equal(state.opt_state.prior, after.opt_state.prior)
    chex.assert_tree_all_finite(after.params)


def test_schemes_without_phases_move_everything_from_the_first_step():
    scheme = beta.constant(1.0, kappa=0.1)
    state = toy_state(scheme=scheme)
    step = jax.jit(make("toy", scheme)[1])
    after, _ = step(state, jax.random.key(0), jnp.asarray(DATA))
    assert moved(state.params, after.params)
    assert after.opt_state.prior[0].count == 1


# --- Beta in the loss ----------------------------------------------------------------


def in_main_phase(value: float, average: float) -> training.TrainState:
    state = toy_state(optimizers=SGD)
    scheme_state = state.beta_state._replace(
        step=jnp.int32(5),
        beta=jnp.float32(value),
        constraint_average=jnp.float32(average),
        initial_phase=jnp.asarray(False),
    )
    return state.replace(beta_state=scheme_state)


def test_loss_uses_the_updated_beta_and_no_gradient_flows_through_it():
    """Whatever the scheme: this one of its own would let a gradient through."""
    rewo = beta.rewo(kappa=0.6, nu=0.5, alpha=0.5)

    def leaky(state, constraint):
        new, info = rewo.update(state, constraint)
        return new._replace(beta=state.beta * (1.0 + constraint)), info

    scheme = beta.BetaScheme(rewo.init, leaky)
    state, key, x = in_main_phase(0.5, 0.1), jax.random.key(7), jnp.asarray(DATA)
    after, metrics = make("toy", scheme, SGD)[1](state, key, x)

    # By hand: the scheme is told the batch mean of C, then the Lagrangian is formed.
    def update(params):
        constraint = jnp.mean(toy_objective(params, key, x).constraint)
        return scheme.update(state.beta_state, constraint)[0]

    def loss(params, value):
        terms = toy_objective(params, key, x)
        return jnp.mean(terms.distortion) + value * jnp.mean(terms.rate)

    wanted = update(state.params)
    old, new = state.beta_state.beta, wanted.beta
    assert abs(new / old - 1.0) > 0.1  # they can be told apart
    chex.assert_trees_all_close(after.beta_state, wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics.beta, new, rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, loss(state.params, new), rtol=1e-5)

    def descend(objective):
        grads = jax.grad(objective)(state.params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, state.params, grads)

    chex.assert_trees_all_close(
        after.params, descend(lambda p: loss(p, new)), rtol=1e-5
    )
    for other in (lambda p: loss(p, old), lambda p: loss(p, update(p).beta)):
        difference = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b)), after.params, descend(other)
        )
        assert max(jax.tree.leaves(difference)) > 1e-3


def test_metrics_are_the_means_of_the_terms():
    scheme = beta.constant(0.3, kappa=1.0)
    state, key, x = toy_state(scheme=scheme), jax.random.key(7), jnp.asarray(DATA)
    terms = toy_objective(state.params, key, x)
    after, metrics = make("toy", scheme)[1](state, key, x)
    wanted = training.StepMetrics(
        loss=jnp.mean(terms.distortion) + 0.3 * jnp.mean(terms.rate),
        distortion=jnp.mean(terms.distortion),
        rate=jnp.mean(terms.rate),
        constraint=jnp.mean(terms.constraint),  # C_hat_0 = first batch
        beta=jnp.float32(0.3),
        initial_phase=jnp.asarray(False),
    )
    chex.assert_trees_all_close(metrics, wanted, rtol=1e-5)
    chex.assert_trees_all_equal_dtypes(metrics, wanted)
    assert after.step == 1
    assert jnp.all(after.key == state.key)


@pytest.mark.parametrize("name", ["toy", "real"])
def test_step_keeps_structure_and_types(name):
    init, step, _ = compiled(name)
    state = init(jax.random.key(0))
    after, _ = jax.eval_shape(step, state, jax.random.key(0), jnp.asarray(DATA))
    chex.assert_trees_all_equal_structs(state, after)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert not any(getattr(leaf, "weak_type", False) for leaf in (one, other))
    for params in (state.params, after.params):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
            jnp.dtype(jnp.float32)
        }
    assert state.step.dtype == jnp.int32


# --- Batches -------------------------------------------------------------------------


batch_indices = jax.jit(training.batch_indices, static_argnums=(2, 3, 4))


def indices(first: int, steps: int, batch_size=BATCH_SIZE, num=NUM_EXAMPLES, seed=0):
    key = jax.random.key(seed)
    found = batch_indices(key, jnp.int32(first), steps, batch_size, num)
    assert found.dtype == jnp.int32
    assert found.shape == (steps, batch_size)
    return np.asarray(found)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_every_epoch_is_a_permutation_of_its_own(batch_size):
    """Also where batches straddle epochs (4) or are larger than the data set (25)."""
    stream = indices(0, 100, batch_size).reshape(-1)
    epochs = stream[: len(stream) // 10 * 10].reshape(-1, NUM_EXAMPLES)
    assert (np.sort(epochs, axis=1) == np.arange(NUM_EXAMPLES)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("batch_size", [4, 25])
def test_batches_do_not_depend_on_how_steps_are_cut(batch_size):
    for first in (0, 7, (2**31 - 1) // 25 - 20):
        whole = indices(first, 12, batch_size)
        for cut in (5, 7):
            head = indices(first, cut, batch_size)
            tail = indices(first + cut, 12 - cut, batch_size)
            np.testing.assert_array_equal(np.concatenate([head, tail]), whole)


def test_order_is_a_function_of_the_key():
    assert (indices(3, 5) == indices(3, 5)).all()
    assert (indices(3, 5, seed=1) != indices(3, 5, seed=0)).any()


def test_one_example_is_drawn_again_and_again():
    assert (indices(2, 3, batch_size=2, num=1) == 0).all()


def spy_loop(num_steps: int, cuts=(), seed: int = 0):
    """The batches and the keys that the loop hands to the step."""

    def spy(state, key, x):
        key_data = jax.random.key_data(key)
        seen = training.StepMetrics(x, key_data, *(jnp.zeros(()),) * 4)
        return state.replace(step=state.step + 1), seen

    loop = training.make_train_loop(spy, BATCH_SIZE)
    state, parts = toy_state(seed), []
    edges = [0, *cuts, num_steps]
    for start, stop in itertools.pairwise(edges):
        state, seen = loop(state, jnp.asarray(DATA), stop - start)
        parts.append((np.asarray(seen.loss), np.asarray(seen.distortion)))
    batches, keys = (np.concatenate(part) for part in zip(*parts, strict=True))
    return batches, keys, state


def test_loop_feeds_every_example_once_an_epoch():
    batches, _, _ = spy_loop(10)
    rows = batches.reshape(4, NUM_EXAMPLES, 3)
    for epoch in rows:
        np.testing.assert_array_equal(
            epoch[np.argsort(epoch[:, 0])], DATA[np.argsort(DATA[:, 0])]
        )


def test_keys_differ_from_step_to_step_and_from_seed_to_seed():
    _, keys, state = spy_loop(30)
    others = spy_loop(30, seed=1)[1]
    base = np.asarray(jax.random.key_data(state.key))[None]
    every = np.concatenate([keys, others, base])
    assert len({tuple(key) for key in every}) == 61


def test_keys_of_steps_and_of_epochs_are_apart(monkeypatch):
    """Both are folded in from counters, so their bases must differ."""
    bases = []

    def spy(key, *arguments):
        bases.append(key)
        return batch_indices(key, *arguments)

    monkeypatch.setattr(training, "batch_indices", spy)
    _, keys, _ = spy_loop(30)
    epochs = [jax.random.fold_in(bases[0], epoch) for epoch in range(30)]
    epochs = {tuple(jax.random.key_data(key).tolist()) for key in epochs}
    assert len(epochs) == 30
    assert not epochs & {tuple(key) for key in keys.tolist()}


@pytest.mark.slow
def test_keys_and_batches_do_not_depend_on_the_chunks():
    whole, parts = spy_loop(12), spy_loop(12, cuts=(1, 5, 6))
    chex.assert_trees_all_equal(whole[:2], parts[:2])


@pytest.mark.parametrize("name", BOTH)
def test_no_key_is_used_twice(name):
    init, step = make(name)
    loop = training.make_train_loop(step, BATCH_SIZE)
    with jax.debug_key_reuse(True):
        state = jax.jit(init)(jax.random.key(0))
        jax.jit(loop, static_argnums=2)(state, jnp.asarray(DATA), 2)


def test_reuse_of_a_key_would_be_noticed():
    def careless(params, key, x):
        terms = toy_objective(params, key, x)
        return terms._replace(rate=terms.rate + jax.random.normal(key, (x.shape[0],)))

    step = training.make_train_step(careless, REWO, ADAM)
    with (
        jax.debug_key_reuse(True),
        pytest.raises(jax.errors.KeyReuseError),
    ):
        jax.jit(step)(toy_state(), jax.random.key(0), jnp.asarray(DATA))


def test_initialisation_and_training_have_keys_of_their_own():
    seen = []

    def init_params(key):
        seen.append(key)
        return toy_params(key)

    key = jax.random.key(0)
    state = training.init_state(key, init_params, ADAM, REWO)
    data = [tuple(jax.random.key_data(k).tolist()) for k in (key, *seen, state.key)]
    assert len(set(data)) == len(data) == 3


# --- The loop ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_scanned_loop_equals_single_steps(name):
    """To float tolerance: XLA may fuse the body of a scan in another way."""
    init, single, loop = compiled(name)
    state, data, rows = init(jax.random.key(0)), jnp.asarray(DATA), []
    scanned, metrics = loop(copy(state), data, num_steps=10)
    key_order, key_steps = jax.random.split(state.key)
    order = batch_indices(key_order, jnp.int32(0), 10, BATCH_SIZE, NUM_EXAMPLES)
    for number, batch in enumerate(order):
        key = jax.random.fold_in(key_steps, number)
        state, row = single(state, key, data[batch])
        rows.append(row)
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(scanned.beta_state, state.beta_state, rtol=1e-5)
    chex.assert_trees_all_close(metrics, stack(rows), rtol=1e-5, atol=1e-6)
    assert scanned.step == 10


@pytest.mark.parametrize("name", BOTH)
def test_chunks_of_five_equal_chunks_of_ten_bit_for_bit(name):
    init, _, loop = compiled(name)
    data = jnp.asarray(DATA)
    whole, metrics = loop(init(jax.random.key(0)), data, num_steps=10)
    state, parts = init(jax.random.key(0)), []
    for _ in range(2):
        state, part = loop(state, data, num_steps=5)
        parts.append(part)
    chex.assert_trees_all_equal(as_data(whole), as_data(state))
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    chex.assert_trees_all_equal(metrics, joined)


@pytest.mark.parametrize("name", BOTH)
def test_jit_equals_eager(name):
    init, jitted, _ = compiled(name)
    state, key, x = init(jax.random.key(0)), jax.random.key(1), jnp.asarray(DATA)
    eager = make(name)[1](state, key, x)
    chex.assert_trees_all_close(
        as_data(eager), as_data(jitted(state, key, x)), rtol=1e-5, atol=1e-6
    )


def test_toy_learns():
    """Alg. 1 as a whole: C is met, beta follows, the loss falls."""
    _, _, loop = compiled("toy")
    state, data, parts = toy_state(), jnp.asarray(DATA), []
    for _ in range(40):
        state, part = loop(state, data, num_steps=10)
        parts.append(part)
    metrics = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert metrics.initial_phase[0]
    assert not metrics.initial_phase[-1]
    assert metrics.constraint[-1] < 0.6**2 < metrics.constraint[0]
    assert metrics.beta[-1] > 0.9
    assert metrics.loss[-50:].mean() < metrics.loss[0]
    assert metrics.beta[0] == np.float32(0.01)


def test_state_is_donated_and_data_are_not():
    state, data = toy_state(), jnp.asarray(DATA)
    after, _ = compiled("toy")[2](state, data, num_steps=5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.opt_state))
    assert not data.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


# --- Several seeds at once -----------------------------------------------------------


@pytest.mark.slow
def test_vmapped_seeds_equal_single_runs():
    """To float tolerance; the gate is a select there, and holds bit for bit too."""
    seeds, data = (0, 1, 5), jnp.asarray(DATA)
    together, metrics = toy_loop(3)(
        stack([toy_state(seed) for seed in seeds]), data, num_steps=60
    )
    single = toy_loop()
    for index, seed in enumerate(seeds):
        alone, rows = single(toy_state(seed), data, num_steps=60)
        for one, other in (
            (member(together, index).params, alone.params),
            (member(together, index).opt_state, alone.opt_state),
            (member(together, index).beta_state, alone.beta_state),
            (member(metrics, index), rows),
        ):
            chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)
    lengths = metrics.initial_phase.sum(axis=1)
    assert len(set(lengths.tolist())) > 1  # the switches fall on different steps


def test_vmapped_gate_holds_each_seed_on_its_own():
    """One member in its initial phase beside one that has left it."""
    states = stack([toy_state(0), toy_state(1)])
    phases = jnp.array([True, False])
    beta_state = states.beta_state._replace(
        step=jnp.full(2, 5, jnp.int32),
        constraint_average=jnp.full(2, 2.0),
        initial_phase=phases,
    )
    states = states.replace(beta_state=beta_state)
    before = copy((states.params.prior, states.opt_state.prior))
    after, _ = toy_loop(2)(states, jnp.asarray(DATA), num_steps=2)
    after_prior = (after.params.prior, after.opt_state.prior)
    assert after.beta_state.initial_phase.tolist() == [True, False]
    chex.assert_trees_all_equal(member(before, 0), member(after_prior, 0))
    assert moved(member(before, 1), member(after_prior, 1))


@pytest.mark.slow
def test_vmapped_seeds_equal_single_runs_for_the_real_model():
    """To float tolerance: batched matrix products may sum in another order."""
    init, step = make("real", optimizers=SGD)  # Adam blows tiny gradients up
    loop = training.make_train_loop(step, BATCH_SIZE)
    data = jnp.asarray(DATA)
    keys = [jax.random.key(seed) for seed in (0, 1)]
    together, _ = training.jit_train_loop(loop, 2)(
        stack([init(key) for key in keys]), data, num_steps=10
    )
    single = training.jit_train_loop(loop)
    for index, key in enumerate(keys):
        alone, _ = single(init(key), data, num_steps=10)
        chex.assert_trees_all_close(
            member(together, index).params, alone.params, rtol=1e-4, atol=1e-5
        )


# --- Learning rates ---------------------------------------------------------------

FALLING = optax.piecewise_constant_schedule(1.0, {3: 0.1, 6: 0.5})


def test_falling_rates_are_those_of_an_optimiser_with_that_schedule():
    scheme = beta.constant(1.0, kappa=0.6)  # all parameters move from the first step
    scheduled = optax.adam(lambda count: 0.05 * FALLING(count))
    ends = []
    for optimizers, factor in (
        (ADAM, FALLING),
        (training.OptimizerPair(scheduled, scheduled), None),
        (ADAM, None),
    ):
        step = training.make_train_step(
            toy_objective, scheme, optimizers, rate_factor=factor
        )
        loop = training.jit_train_loop(training.make_train_loop(step, BATCH_SIZE))
        state = training.init_state(jax.random.key(0), toy_params, optimizers, scheme)
        ends.append(loop(state, jnp.asarray(DATA), num_steps=9)[0].params)
    chex.assert_trees_all_close(ends[0], ends[1], rtol=1e-6)
    assert moved(ends[0], ends[2])


@pytest.mark.parametrize(("done", "factor"), [(2, 1.0), (3, 0.1), (6, 0.05)])
def test_rates_fall_by_the_steps_of_the_run(done, factor):
    """Not by the updates of an optimiser: here each has made none before."""
    scheme = beta.constant(1.0, kappa=0.6)
    state = toy_state(scheme=scheme, optimizers=SGD)
    state = state.replace(step=jnp.asarray(done, jnp.int32))
    moves = []
    for rate_factor in (FALLING, None):
        step = training.make_train_step(
            toy_objective, scheme, SGD, rate_factor=rate_factor
        )
        after, _ = step(state, jax.random.key(1), jnp.asarray(DATA[:BATCH_SIZE]))
        moves.append(jax.tree.map(jnp.subtract, after.params, state.params))
    slow, full = moves
    for name, part in named(slow):
        wanted = factor * getattr(full, name)["w"]
        assert np.abs(wanted).max() > 1e-5
        np.testing.assert_allclose(part["w"], wanted, atol=1e-6)


# --- Averages and draws --------------------------------------------------------------


def test_the_average_is_the_recursion_by_hand():
    decay, steps = 0.3, 12  # reached at t = 3: 4 / 13
    scheme = beta.constant(1.0, kappa=0.6)  # all parameters move from the first step
    step = training.make_train_step(toy_objective, scheme, ADAM, average_decay=decay)
    state = training.init_state(
        jax.random.key(0), toy_params, ADAM, scheme, keep_average=True
    )
    wanted = {name: np.float64(part["w"]) for name, part in named(state.params)}
    for t in range(steps):
        state, _ = step(state, jax.random.key(100 + t), jnp.asarray(DATA[:BATCH_SIZE]))
        d = min(decay, (1 + t) / (10 + t))
        for name, part in named(state.params):
            wanted[name] = d * wanted[name] + (1.0 - d) * np.float64(part["w"])
        # At each step: the first ones, where d rises, are soon forgotten.
        for name, part in named(state.eval_params):
            np.testing.assert_allclose(part["w"], wanted[name], rtol=1e-5)
    assert 1 / 10 < decay < steps / (9 + steps)
    for name, part in named(state.eval_params):
        assert not np.allclose(part["w"], getattr(state.params, name)["w"], rtol=1e-3)


def named(params: Params):
    """The three parts with their names."""
    return params._asdict().items()


def test_without_an_average_the_parameters_are_evaluated():
    state = toy_state()
    assert state.average is None
    assert state.eval_params is state.params


def test_draws_are_made_anew_in_each_step_and_do_not_depend_on_the_chunks():
    """The step is replaced by one that tells what it was given."""

    def spy(state, key, x):
        binary = jnp.all((x == 0.0) | (x == 1.0))
        weights = jnp.arange(1.0, 1.0 + x[0].size)
        seen = training.StepMetrics(
            loss=jnp.sum(x @ weights),
            distortion=jnp.mean(x),
            rate=jax.random.uniform(key),
            constraint=jnp.mean(x == distributions.draw_binary(key, means)),
            beta=jnp.float32(0.0),
            initial_phase=binary,
        )
        return state.replace(step=state.step + 1), seen

    means = jnp.full((BATCH_SIZE, 200), 0.5)
    draws = training.make_train_loop(spy, BATCH_SIZE, distributions.draw_binary)
    loop = training.jit_train_loop(draws)
    _, whole = loop(toy_state(), means, num_steps=4)
    state, first = loop(toy_state(), means, num_steps=2)
    _, second = loop(state, means, num_steps=2)
    parts = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    chex.assert_trees_all_equal(whole, parts)
    assert whole.initial_phase.all()  # all pixels are 0 or 1
    assert len(set(whole.loss.tolist())) == 4
    # The standard error of a mean of 800 such pixels is 0.018.
    np.testing.assert_allclose(whole.distortion, 0.5, atol=0.08)
    # Nor do the pixels agree with those that the key of the step would draw.
    np.testing.assert_allclose(whole.constraint, 0.5, atol=0.08)
    # The keys of the steps are those of a loop that draws nothing.
    plain_loop = training.jit_train_loop(training.make_train_loop(spy, BATCH_SIZE))
    _, plain = plain_loop(toy_state(), means, num_steps=4)
    np.testing.assert_array_equal(whole.rate, plain.rate)
    np.testing.assert_array_equal(plain.distortion, 0.5)


@functools.cache
def drawn(name: str):
    """What a loop with draws is made of, and eight steps of the scanned one."""
    arguments = make(name)[1], BATCH_SIZE, distributions.draw_binary
    scanned = training.jit_train_loop(training.make_train_loop(*arguments))
    state = compiled(name)[0](jax.random.key(3))
    return arguments, scanned(state, jnp.asarray(DATA), num_steps=8)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("kind", ["streamed", "stepwise"])
def test_other_loops_take_the_same_steps(name, kind):
    """Data that stay on the host, and steps that are calls of their own."""
    arguments, wanted = drawn(name)
    other = getattr(training, f"make_{kind}_loop")(*arguments)
    data = DATA if kind == "streamed" else jnp.asarray(DATA)
    state, first = other(compiled(name)[0](jax.random.key(3)), data, 4)
    state, second = other(state, data, 4)
    seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    assert int(state.step) == 8
    chex.assert_trees_all_close(
        (as_data(state), seen), (as_data(wanted[0]), wanted[1]), rtol=1e-6, atol=1e-7
    )
