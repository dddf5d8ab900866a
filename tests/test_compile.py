"""Programs are traced and compiled once: over chunks, phases, resume and seeds."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vhp_jax import beta, training
from vhp_jax.checkpoints import Checkpointer
from vhp_jax.objectives import Terms
from vhp_jax.types import Params

pytestmark = pytest.mark.optax

KAPPA = 0.5
DATA = np.linspace(0.0, 1.0, 8, dtype=np.float32)[:, None]
OPTIMIZERS = training.OptimizerPair(optax.adam(0.1), optax.adam(0.1))
SCHEMES = {
    "rewo": beta.rewo(KAPPA, 1.0, alpha=0.5),
    "rewo_alternative": beta.rewo_alternative(KAPPA, 1.0, alpha=0.5),
    "geco": beta.geco(KAPPA, 1.0, alpha=0.5),
    "warm_up": beta.warm_up(6, KAPPA),
    "constant": beta.constant(1.0, KAPPA),
}


def objective(params: Params, key: jax.Array, x: jax.Array) -> Terms:
    weight = params.encoder + params.decoder
    squared = jnp.sum(jnp.square(x - weight), axis=-1)
    rate = jnp.square(weight - params.prior) + 0.0 * jax.random.normal(key)
    return Terms(squared, jnp.broadcast_to(rate, squared.shape), squared)


def init_params(key: jax.Array) -> Params:
    return Params(jnp.float32(1.0), jnp.float32(2.0), jax.random.normal(key))


def make_loop(scheme: beta.BetaScheme, num_seeds: int = 1):
    """The jitted loop, and a list that grows by one for each trace of the step."""
    traces = []
    step = training.make_train_step(objective, scheme, OPTIMIZERS)

    def counting(state, key, x):
        traces.append(1)
        return step(state, key, x)

    loop = training.make_train_loop(counting, batch_size=4)
    return training.jit_train_loop(loop, num_seeds), traces


@functools.cache
def initialiser(scheme: beta.BetaScheme):
    """As the runs do it: one compiled program."""
    return jax.jit(
        lambda key: training.init_state(key, init_params, OPTIMIZERS, scheme)
    )


def init(scheme: beta.BetaScheme, seed: int = 0) -> training.TrainState:
    return initialiser(scheme)(jax.random.key(seed))


@contextlib.contextmanager
def no_compilation():
    """Fails where XLA compiles anything inside."""
    seen = []

    def listen(event: str, duration: float, **_: object) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not seen


@pytest.mark.parametrize("name", SCHEMES)
def test_chunks_and_phases_share_one_trace(name):
    loop, traces = make_loop(SCHEMES[name])
    data = jnp.asarray(DATA)
    state, metrics = loop(init(SCHEMES[name]), data, num_steps=5)
    assert len(traces) == 1
    phases = [np.asarray(metrics.initial_phase)]
    with no_compilation():
        for _ in range(8):
            state, metrics = loop(state, data, num_steps=5)
            phases.append(np.asarray(metrics.initial_phase))
    assert len(traces) == 1
    changes = np.diff(np.concatenate(phases).astype(int)).tolist()
    assert changes.count(-1) == (name in ("rewo", "rewo_alternative"))


def test_trace_counter_counts():
    """Another length is another program, so the counts above can fail."""
    loop, traces = make_loop(SCHEMES["rewo"])
    data = jnp.asarray(DATA)
    state, _ = loop(init(SCHEMES["rewo"]), data, num_steps=5)
    with pytest.raises(AssertionError), no_compilation():
        loop(state, data, num_steps=6)
    assert len(traces) == 2


@pytest.mark.parametrize("name", ["rewo", "rewo_alternative"])
def test_resume_needs_no_second_trace(tmp_path, name):
    loop, traces = make_loop(SCHEMES[name])
    data, fresh = jnp.asarray(DATA), init(SCHEMES[name])
    shapes = jax.eval_shape(lambda: init(SCHEMES[name]))
    state, _ = loop(fresh, data, num_steps=5)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, state)
        _, restored = checkpointer.restore_latest(shapes)
    with no_compilation():
        loop(restored, data, num_steps=5)
        loop(state, data, num_steps=5)
    assert len(traces) == 1


def test_seeds_share_one_trace():
    scheme = SCHEMES["rewo"]
    loop, traces = make_loop(scheme, num_seeds=3)
    members = [init(scheme, seed) for seed in range(3)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    for _ in range(4):
        state, _ = loop(state, jnp.asarray(DATA), num_steps=5)
    assert len(traces) == 1


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_alone_is_traced_once(name):
    scheme = SCHEMES[name]
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(scheme.update, n=1))
    state = scheme.init()
    for constraint in (9.0, 0.0, 0.0, 0.0, 0.0, 9.0):
        state, _ = update(state, jnp.float32(constraint))
    assert int(state.step) == 6
