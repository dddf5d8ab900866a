"""TrainState, the training step and the scanned loop.

One compiled program runs many steps: the state is donated, the data stay on the device,
batches and keys are pure functions of (key, step), so that a run cut anywhere and
resumed takes the same steps.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vhp_jax import devices
from vhp_jax.beta import BetaScheme, BetaState
from vhp_jax.objectives import Objective, lagrangian
from vhp_jax.types import Counter, Examples, Flag, Params, PRNGKey, PyTree, Scalar

DrawBatch = Callable[[PRNGKey, Examples], Examples]


class OptimizerPair(NamedTuple):
    """Optimisers of the two halves of the problem.

    Attributes:
      vae: for (theta, phi), updated at every step.
      prior: for (Theta, Phi), updated outside the initial phase.
    """

    vae: optax.GradientTransformation
    prior: optax.GradientTransformation


class OptimizerState(NamedTuple):
    """States of an `OptimizerPair`."""

    vae: PyTree
    prior: PyTree


@no_type_check  # JAX rebuilds states around placeholders and with a seed axis.
class TrainState(flax.struct.PyTreeNode):
    """All that training carries; immutable.

    Attributes:
      step: int32, steps done.
      params: theta, phi, Theta, Phi.
      opt_state: moments of both optimisers.
      beta_state: beta, C_hat and the phase.
      key: base key; the keys of a step are folded in from `step`, so it never changes.
      average: running average of `params`, None where none is kept.
      statistics: what the data were standardised with, None where nothing; never
        changed, kept beside the parameters that it belongs to.
    """

    step: Counter
    params: Params
    opt_state: OptimizerState
    beta_state: BetaState
    key: PRNGKey
    average: Params | None = None
    statistics: PyTree = None

    @property
    def eval_params(self) -> Params:
        """What is evaluated: the average where one is kept, else the parameters."""
        return self.params if self.average is None else self.average


class StepMetrics(NamedTuple):
    """Scalars of one training step (stacked to [T] by the scanned loop).

    With a decoder that drops units, loss, distortion and constraint are those of the
    units that were left.

    Attributes:
      loss: distortion + beta * rate, nats per example.
      distortion: -log p(x|z), nats per example.
      rate: F of Eq. 9, nats per example.
      constraint: C_hat, units of C.
      beta: weight of the rate in this step.
      initial_phase: whether (Theta, Phi) were left untouched in this step.
    """

    loss: Scalar
    distortion: Scalar
    rate: Scalar
    constraint: Scalar
    beta: Scalar
    initial_phase: Flag


def summarise(step: int, kappa: float, metrics: StepMetrics) -> dict[str, Any]:
    """Some steps of one seed in numbers, as in a line of metrics.jsonl.

    Args:
      step: the last of them.
      kappa: bound on the error.
      metrics: of the steps, [T].

    Returns:
      Means of `loss`, `distortion` and `rate`; `constraint`, `beta` and
      `initial_phase` of the last step; `step` and `kappa_squared`.
    """
    return {
        "step": step,
        "loss": float(metrics.loss.mean()),
        "distortion": float(metrics.distortion.mean()),
        "rate": float(metrics.rate.mean()),
        "constraint": float(metrics.constraint[-1]),
        "kappa_squared": kappa**2,
        "beta": float(metrics.beta[-1]),
        "initial_phase": bool(metrics.initial_phase[-1]),
    }


def progress_text(line: Mapping[str, Any]) -> str:
    """What `summarise` gives, in words."""
    return (
        f"loss {line['loss']:.3f}, C_hat {line['constraint']:.3g} "
        f"(kappa^2 {line['kappa_squared']:.3g}), beta {line['beta']:.3g}, "
        f"{'initial' if line['initial_phase'] else 'main'} phase"
    )


TrainStep = Callable[[TrainState, PRNGKey, Examples], tuple[TrainState, StepMetrics]]
TrainLoop = Callable[..., tuple[TrainState, StepMetrics]]


def init_state(
    key: PRNGKey,
    init_params: Callable[[PRNGKey], Params],
    optimizers: OptimizerPair,
    beta_scheme: BetaScheme,
    keep_average: bool = False,
    statistics: PyTree = None,
) -> TrainState:
    """Draws the parameters and starts the optimisers and the beta scheme.

    Args:
      key: PRNG key; one half initialises, the other one drives training.
      init_params: draws the parameters from a key.
      optimizers: see `OptimizerPair`.
      beta_scheme: any of `vhp_jax.beta`.
      keep_average: whether `make_train_step` is to keep a running average.
      statistics: of the data, see `TrainState`.
    """
    key_init, key_train = jax.random.split(key)
    params = init_params(key_init)
    vae_params = (params.encoder, params.decoder)
    return TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        opt_state=OptimizerState(
            optimizers.vae.init(vae_params), optimizers.prior.init(params.prior)
        ),
        beta_state=beta_scheme.init(),
        key=key_train,
        # A copy: a donated state must not hold one buffer twice.
        average=jax.tree.map(jnp.copy, params) if keep_average else None,
        statistics=jax.tree.map(jnp.asarray, statistics),
    )


def make_train_step(
    objective: Objective,
    beta_scheme: BetaScheme,
    optimizers: OptimizerPair,
    average_decay: float = 0.0,
    rate_factor: optax.Schedule | None = None,
) -> TrainStep:
    """One iteration of Alg. 1.

    Args:
      objective: per-example terms of a batch.
      beta_scheme: sets beta from the batch mean of C before the gradient is taken.
      optimizers: of (theta, phi) and of (Theta, Phi).
      average_decay: weight of the past in the running average of the parameters
        (Polyak and Juditsky, 1992), where the state keeps one. The first steps take
        (1 + t) / (10 + t) where that is smaller, so that the start is soon forgotten.
      rate_factor: schedule over the steps of the state: what the updates of both
        optimisers are multiplied by, decoupled weight decay too, such as 1 at first and
        0.1 later. None leaves them. A schedule inside an optimiser would count its own
        updates, and the prior's makes none in the initial phase.

    Returns:
      `train_step(state, key, x) -> (state, metrics)`, to be jitted by the caller.
    """

    def loss_fn(
        params: Params, beta_state: BetaState, key: PRNGKey, x: Examples
    ) -> tuple[Scalar, tuple[BetaState, StepMetrics]]:
        # 1. z ~ q(z|x), the terms of the Lagrangian and C_batch.
        terms = objective(params, key, x)
        constraint = lax.stop_gradient(jnp.mean(terms.constraint))
        # 2. C_hat, the phase and beta; no gradient passes through them.
        beta_state, _ = beta_scheme.update(beta_state, constraint)
        # 3. The Lagrangian at the new beta.
        loss = lagrangian(terms, beta_state.beta)
        metrics = StepMetrics(
            loss=loss,
            distortion=jnp.mean(terms.distortion),
            rate=jnp.mean(terms.rate),
            constraint=beta_state.constraint_average,
            beta=beta_state.beta,
            initial_phase=beta_state.initial_phase,
        )
        return loss, (beta_state, metrics)

    def apply(params: PyTree, updates: PyTree, step: Counter) -> PyTree:
        if rate_factor is not None:
            updates = optax.tree.scale(rate_factor(step), updates)
        return optax.apply_updates(params, updates)

    def train_step(
        state: TrainState, key: PRNGKey, x: Examples
    ) -> tuple[TrainState, StepMetrics]:
        grads, (beta_state, metrics) = jax.grad(loss_fn, has_aux=True)(
            state.params, state.beta_state, key, x
        )
        # 4. (theta, phi) always.
        vae_params = (state.params.encoder, state.params.decoder)
        vae_updates, vae_opt = optimizers.vae.update(
            (grads.encoder, grads.decoder), state.opt_state.vae, vae_params
        )
        encoder, decoder = apply(vae_params, vae_updates, state.step)

        # 5. (Theta, Phi) and their moments in the main phase only.
        def hold(prior: PyTree, opt: PyTree) -> tuple[PyTree, PyTree]:
            return prior, opt

        def move(prior: PyTree, opt: PyTree) -> tuple[PyTree, PyTree]:
            updates, opt = optimizers.prior.update(grads.prior, opt, prior)
            return apply(prior, updates, state.step), opt

        prior, prior_opt = lax.cond(
            beta_state.initial_phase,
            hold,
            move,
            state.params.prior,
            state.opt_state.prior,
        )
        params = Params(encoder, decoder, prior)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=OptimizerState(vae_opt, prior_opt),
            beta_state=beta_state,
            average=update_average(state.average, params, state.step, average_decay),
        )
        return state, metrics

    return train_step


def update_average(
    average: Params | None, params: Params, step: Counter, decay: float
) -> Params | None:
    """One step of the running average A <- d A + (1 - d) params.

    d = min(decay, (1 + t) / (10 + t)) at step t, from 0.
    """
    if average is None:
        return None
    weight = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: new + weight * (old - new), average, params)


def batch_indices(
    key: PRNGKey,
    first_step: Counter,
    num_steps: int,
    batch_size: int,
    num_examples: int,
) -> Int[Array, "T B"]:
    """Indices of the batches of `num_steps` steps: shuffled epochs, laid end to end.

    Each epoch is a permutation of its own, folded in from the epoch's number; a batch
    may straddle two epochs, so no example is left out. A pure function of the step:
    however training is cut into chunks, step t sees the same batch.

    Args:
      key: PRNG key of the order.
      first_step: int32, number of steps done before.
      num_steps: T.
      batch_size: B. The product of all steps and B must stay below 2^31.
      num_examples: examples in the data set.

    Returns:
      int32 [T, B].
    """
    first_position = first_step * batch_size
    first_epoch = first_position // num_examples
    num_epochs = (num_steps * batch_size - 1) // num_examples + 2  # touched at most
    orders = jax.vmap(
        lambda epoch: jax.random.permutation(
            jax.random.fold_in(key, epoch), num_examples
        )
    )(first_epoch + jnp.arange(num_epochs, dtype=jnp.int32))
    offset = first_position - first_epoch * num_examples
    stream = lax.dynamic_slice(orders.reshape(-1), (offset,), (num_steps * batch_size,))
    return stream.reshape(num_steps, batch_size)


def make_train_loop(
    train_step: TrainStep,
    batch_size: int,
    draw_batch: DrawBatch | None = None,
    mesh: Mesh | None = None,
) -> TrainLoop:
    """Compiles `train_step` into a scan over many steps.

    Args:
      train_step: from `make_train_step`.
      batch_size: B.
      draw_batch: makes the training examples of a step from the stored ones and a key
        of that step's own, such as binary draws of Bernoulli means; None leaves them.
      mesh: whose devices share each batch; None for one device. The data are then whole
        on every device, and the state as `devices.replicate` puts it.

    Returns:
      `train_loop(state, data, num_steps) -> (state, metrics)`: `state` is donated,
      `data` is float32 [N, *example] on the device, `num_steps` is static; the metrics
      are stacked to [num_steps]. May be wrapped in vmap over `state` for several seeds.
    """

    def train_loop(
        state: TrainState, data: Float[Array, "N *example"], num_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        keys = _split(state.key)
        indices = batch_indices(
            keys.order, state.step, num_steps, batch_size, data.shape[0]
        )
        step = _with_keys(train_step, draw_batch, keys, mesh)
        return lax.scan(lambda state, batch: step(state, data[batch]), state, indices)

    return train_loop


def make_streamed_loop(
    train_step: TrainStep,
    batch_size: int,
    draw_batch: DrawBatch | None = None,
    mesh: Mesh | None = None,
) -> TrainLoop:
    """The loop of `make_train_loop` for data that stay on the host: the same steps.

    The batches of a call are gathered on the host and sent at once, so that the device
    holds num_steps * B examples and no more; with several processes each gathers and
    sends what its own devices hold. Compiled already; for one seed.

    Args:
      train_step: from `make_train_step`.
      batch_size: B.
      draw_batch: see `make_train_loop`.
      mesh: see `make_train_loop`.

    Returns:
      `train_loop(state, data, num_steps) -> (state, metrics)`: `data` is a NumPy array
      (or a memory map), float32 [N, *example].
    """

    def take(
        state: TrainState, batches: Float[Array, "T B *example"]
    ) -> tuple[TrainState, StepMetrics]:
        step = _with_keys(train_step, draw_batch, _split(state.key), mesh)
        return lax.scan(step, state, batches)

    scan = jax.jit(take, donate_argnums=0, **_outputs(mesh))

    def train_loop(
        state: TrainState, data: np.ndarray, num_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        indices = np.asarray(_next_indices(state, num_steps, batch_size, len(data)))
        if mesh is None:
            return scan(state, data[indices])
        return scan(state, devices.place_batches(data, indices, mesh))

    return train_loop


def make_stepwise_loop(
    train_step: TrainStep,
    batch_size: int,
    draw_batch: DrawBatch | None = None,
    mesh: Mesh | None = None,
) -> TrainLoop:
    """The loop of `make_train_loop` with each step a call of its own: the same steps.

    For convolutions on a CPU, which XLA runs many times slower inside a loop body than
    outside (batch 10 of Table 3's: 6.2 s a step in a scan, 0.5 s alone). Compiled
    already; for one seed.

    Args:
      train_step: from `make_train_step`.
      batch_size: B.
      draw_batch: see `make_train_loop`.
      mesh: see `make_train_loop`.

    Returns:
      `train_loop(state, data, num_steps) -> (state, metrics)` as `jit_train_loop`'s.
    """

    def step(
        state: TrainState, data: Float[Array, "N *example"], batch: Int[Array, "B"]
    ) -> tuple[TrainState, StepMetrics]:
        keyed = _with_keys(train_step, draw_batch, _split(state.key), mesh)
        return keyed(state, data[batch])

    compiled = jax.jit(step, donate_argnums=0, **_outputs(mesh))

    def train_loop(
        state: TrainState, data: Float[Array, "N *example"], num_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        parts = []
        indices = _next_indices(state, num_steps, batch_size, data.shape[0])
        for batch in np.asarray(indices):
            state, metrics = compiled(state, data, batch)
            if mesh is not None:  # steps in flight together wait for each other forever
                jax.block_until_ready(metrics)
            parts.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *parts)

    return train_loop


class _Keys(NamedTuple):
    """What the base key of a run is split into: order of batches, steps, draws."""

    order: PRNGKey
    steps: PRNGKey
    draws: PRNGKey


def _split(key: PRNGKey) -> _Keys:
    return _Keys(*jax.random.split(key, 3))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _next_indices(
    state: TrainState, num_steps: int, batch_size: int, num_examples: int
) -> Int[Array, "T B"]:
    """The batches of the next steps of a run, for loops on the host."""
    order = _split(state.key).order
    return batch_indices(order, state.step, num_steps, batch_size, num_examples)


def _with_keys(
    train_step: TrainStep,
    draw_batch: DrawBatch | None,
    keys: _Keys,
    mesh: Mesh | None,
) -> Callable[[TrainState, Examples], tuple[TrainState, StepMetrics]]:
    """The step of a run with the keys that belong to it, its batch shared out."""

    def step(state: TrainState, x: Examples) -> tuple[TrainState, StepMetrics]:
        x = devices.constrain_batch(x, mesh)
        if draw_batch is not None:
            x = draw_batch(jax.random.fold_in(keys.draws, state.step), x)
        return train_step(state, jax.random.fold_in(keys.steps, state.step), x)

    return step


def _outputs(mesh: Mesh | None) -> dict[str, Any]:
    """For jit: states and metrics come out whole on every device."""
    return {} if mesh is None else {"out_shardings": devices.whole(mesh)}


def jit_train_loop(
    train_loop: TrainLoop, num_seeds: int = 1, mesh: Mesh | None = None
) -> TrainLoop:
    """Jits a loop; with several seeds the state has a leading seed axis.

    Args:
      train_loop: from `make_train_loop`.
      num_seeds: 1 for a plain state, more for a state stacked over seeds. Under vmap
        the phase gate becomes a select: same results, both branches computed.
      mesh: the one that the loop was made with.
    """

    def loop(
        state: TrainState, data: Float[Array, "N *example"], num_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        if num_seeds == 1:
            return train_loop(state, data, num_steps)
        return jax.vmap(lambda member: train_loop(member, data, num_steps))(state)

    return jax.jit(
        loop, static_argnames="num_steps", donate_argnames="state", **_outputs(mesh)
    )
