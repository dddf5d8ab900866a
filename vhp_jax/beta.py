"""Schemes that set beta, the weight of the rate, from the reconstruction error.

Each scheme is a pair of pure functions, as in optax: `init() -> state` and
`update(state, constraint) -> (state, info)`. The only thing a scheme is told is the
batch mean of the constraint C, so that any VAE can use it:

    scheme = beta.rewo(kappa=0.02, nu=5.0)
    state = scheme.init()
    ...
    state, info = scheme.update(state, batch_constraint)  # in the training step
    loss = nll + state.beta * rate  # batch means; summed over pixels, over latents

Everything is float32 and runs under jit, vmap and scan.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vhp_jax.types import Counter, Flag, Scalar


class BetaState(NamedTuple):
    """What a scheme carries from step to step.

    Attributes:
      step: int32, number of updates so far.
      beta: float32, the weight of the rate in the Lagrangian.
      constraint_average: float32, C_hat: running average of the batch means of C.
      initial_phase: bool, True while only (theta, phi) are to be optimised (Alg. 1).
      inner: what one scheme alone needs (log gamma of App. B.1), else ().
    """

    step: Counter
    beta: Scalar
    constraint_average: Scalar
    initial_phase: Flag
    inner: Any = ()


class BetaInfo(NamedTuple):
    """What an update is looked at by.

    Attributes:
      violation: float32, C_hat - kappa^2 after the update.
      log_step: float32, log(beta_t / beta_{t-1}); infinite in the first step of a
        warm-up, which begins at 0.
    """

    violation: Scalar
    log_step: Scalar


@runtime_checkable
class UpdateFn(Protocol):
    """Advances a scheme by one training step."""

    def __call__(
        self, state: BetaState, constraint: Scalar
    ) -> tuple[BetaState, BetaInfo]:
        """Takes C_batch, the batch mean of C; returns the new state and its info."""


class BetaScheme(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: () -> BetaState.
      update: (BetaState, C_batch) -> (BetaState, BetaInfo).
    """

    init: Callable[[], BetaState]
    update: UpdateFn


def rewo_slope(
    beta: Float[Array, "*grid"], violation: Float[Array, "*grid"], tau: float
) -> Float[Array, "*grid"]:
    """f(beta, delta; tau) = (1 - H(delta)) tanh(tau (beta - 1)) - H(delta): Eq. 13.

    H(0) = 1: the constraint counts as met only where C_hat < kappa^2, as in Alg. 1.
    """
    met = jnp.tanh(tau * (beta - 1.0))
    return jnp.where(violation < 0.0, met, -jnp.ones_like(met))


def rewo(
    kappa: float,
    nu: float,
    tau: float = 3.0,
    alpha: float = 0.99,
    beta_init: float = 1e-3,
    log_step_limits: tuple[float, float] | None = None,
) -> BetaScheme:
    """REWO: Eqs. 12-13 and Alg. 1.

    Initial phase until C_hat < kappa^2, beta fixed. Then
    beta <- beta exp(nu f(beta, C_hat - kappa^2; tau) (C_hat - kappa^2)): beta falls
    while the constraint is violated and goes to 1 while it is met. Near 1 its distance
    from 1 becomes 1 - nu tau |C_hat - kappa^2| times itself a step: with nu tau kappa^2
    up to 1 beta never passes 1 from below, above 2 it may swing about 1 for ever.

    Args:
      kappa: bound on the reconstruction error, sqrt of the units of C.
      nu: learning rate of the update, in 1/(units of C).
      tau: slope of the tanh; not given in the paper but in Fig. 1 (3).
      alpha: weight of the past in C_hat; not given in the paper, 0.99 elsewhere.
      beta_init: beta of the initial phase, << 1; not given in the paper.
      log_step_limits: (lowest, highest) log(beta_t / beta_{t-1}), below and above 0;
        none in the paper.

    Raises:
      ValueError: an argument is out of range.
    """
    _check_positive(kappa=kappa, nu=nu, tau=tau, beta_init=beta_init)

    def log_step(beta: Scalar, violation: Scalar) -> Scalar:
        return nu * rewo_slope(beta, violation, tau) * violation

    return _multiplicative_scheme(
        log_step, kappa, alpha, beta_init, two_phases=True, limits=log_step_limits
    )


def geco(
    kappa: float,
    nu: float,
    alpha: float = 0.99,
    beta_init: float = 1.0,
    log_step_limits: tuple[float, float] | None = None,
) -> BetaScheme:
    """GECO (Rezende & Viola, 2018): Eq. 5 with beta = 1/lambda.

    beta <- beta exp(-nu (C_hat - kappa^2)), all parameters from the first step; beta
    settles where C_hat = kappa^2 and may pass 1.

    Args:
      kappa: bound on the reconstruction error, sqrt of the units of C.
      nu: learning rate of the update, in 1/(units of C).
      alpha: weight of the past in C_hat.
      beta_init: 1 / lambda_0.
      log_step_limits: (lowest, highest) log(beta_t / beta_{t-1}), below and above 0;
        none in the paper.

    Raises:
      ValueError: an argument is out of range.
    """
    _check_positive(kappa=kappa, nu=nu, beta_init=beta_init)

    def log_step(beta: Scalar, violation: Scalar) -> Scalar:
        del beta
        return -nu * violation

    return _multiplicative_scheme(
        log_step, kappa, alpha, beta_init, two_phases=False, limits=log_step_limits
    )


def rewo_alternative(
    kappa: float,
    nu: float,
    tau: float = 3.0,
    alpha: float = 0.99,
    beta_init: float = 1e-3,
) -> BetaScheme:
    """REWO with the update of App. B.1 (later appendix, Eqs. 14-15).

    gamma <- gamma exp(nu (C_hat - kappa^2)), beta = 1 / (1 + tau gamma) <= 1, with the
    two phases of Alg. 1. gamma_0 is set so that beta_0 = beta_init.

    Args:
      kappa: bound on the reconstruction error, sqrt of the units of C.
      nu: learning rate of the update, in 1/(units of C).
      tau: slope parameter.
      alpha: weight of the past in C_hat.
      beta_init: beta of the initial phase, in (0, 1).

    Raises:
      ValueError: an argument is out of range.
    """
    _check_positive(kappa=kappa, nu=nu, tau=tau, beta_init=beta_init)
    if beta_init >= 1.0:
        raise ValueError(f"beta_init must be below 1, got {beta_init}")
    _check_alpha(alpha)
    log_tau = math.log(tau)
    log_gamma_init = math.log((1.0 / beta_init - 1.0) / tau)

    def init() -> BetaState:
        log_gamma = jnp.asarray(log_gamma_init, jnp.float32)
        return _initial_state(beta_init, two_phases=True)._replace(inner=log_gamma)

    def update(state: BetaState, constraint: Scalar) -> tuple[BetaState, BetaInfo]:
        average = _running_average(state, constraint, alpha)
        violation = average - kappa**2
        initial_phase = state.initial_phase & (violation >= 0.0)
        # log gamma, not gamma: it sinks without end while the constraint is met, and
        # a gamma that has underflowed to 0 could never rise again.
        log_gamma = state.inner + jnp.where(initial_phase, 0.0, nu * violation)
        new_beta = jax.nn.sigmoid(-(log_tau + log_gamma))  # 1 / (1 + tau gamma)
        beta = jnp.where(initial_phase, state.beta, new_beta)
        info = BetaInfo(violation, jnp.log(beta) - jnp.log(state.beta))
        return BetaState(state.step + 1, beta, average, initial_phase, log_gamma), info

    return BetaScheme(init, update)


def warm_up(num_steps: int, kappa: float, alpha: float = 0.99) -> BetaScheme:
    """Linear warm-up (Soenderby et al., 2016): beta_t = min(1, t / num_steps).

    Args:
      num_steps: training steps until beta = 1.
      kappa: only for `BetaInfo.violation`; does not act on beta.
      alpha: weight of the past in C_hat.

    Raises:
      ValueError: an argument is out of range.
    """
    _check_positive(num_steps=num_steps, kappa=kappa)

    def schedule(step: Counter) -> Scalar:
        return jnp.minimum(1.0, step.astype(jnp.float32) / num_steps)

    return _scheduled_scheme(schedule, 0.0, kappa, alpha)


def constant(value: float, kappa: float, alpha: float = 0.99) -> BetaScheme:
    """Beta fixed: 1 for the (IW) bound itself, another value for a beta-VAE.

    Args:
      value: beta.
      kappa: only for `BetaInfo.violation`; does not act on beta.
      alpha: weight of the past in C_hat.

    Raises:
      ValueError: an argument is out of range.
    """
    _check_positive(value=value, kappa=kappa)

    def schedule(step: Counter) -> Scalar:
        del step
        return jnp.asarray(value, jnp.float32)

    return _scheduled_scheme(schedule, value, kappa, alpha)


def _multiplicative_scheme(
    log_step: Callable[[Scalar, Scalar], Scalar],
    kappa: float,
    alpha: float,
    beta_init: float,
    two_phases: bool,
    limits: tuple[float, float] | None,
) -> BetaScheme:
    """Beta <- beta exp(log_step(beta, C_hat - kappa^2)) outside the initial phase."""
    _check_alpha(alpha)
    if limits is not None and not limits[0] < 0.0 < limits[1]:
        raise ValueError(f"log_step_limits must be below and above 0, got {limits}")

    def init() -> BetaState:
        return _initial_state(beta_init, two_phases)

    def update(state: BetaState, constraint: Scalar) -> tuple[BetaState, BetaInfo]:
        average = _running_average(state, constraint, alpha)
        violation = average - kappa**2
        initial_phase = state.initial_phase & (violation >= 0.0)
        exponent = log_step(state.beta, violation)
        if limits is not None:
            exponent = jnp.clip(exponent, *limits)
        exponent = jnp.where(initial_phase, 0.0, exponent)
        beta = state.beta * jnp.exp(exponent)
        info = BetaInfo(violation, exponent)
        return BetaState(state.step + 1, beta, average, initial_phase), info

    return BetaScheme(init, update)


def _scheduled_scheme(
    schedule: Callable[[Counter], Scalar], beta_init: float, kappa: float, alpha: float
) -> BetaScheme:
    """beta_t = schedule(t), t = 1, 2, ...; C_hat is kept for the record."""
    _check_alpha(alpha)

    def init() -> BetaState:
        return _initial_state(beta_init, two_phases=False)

    def update(state: BetaState, constraint: Scalar) -> tuple[BetaState, BetaInfo]:
        average = _running_average(state, constraint, alpha)
        beta = schedule(state.step + 1)
        info = BetaInfo(average - kappa**2, jnp.log(beta) - jnp.log(state.beta))
        return BetaState(state.step + 1, beta, average, state.initial_phase), info

    return BetaScheme(init, update)


def _initial_state(beta_init: float, two_phases: bool) -> BetaState:
    return BetaState(
        step=jnp.asarray(0, jnp.int32),
        beta=jnp.asarray(beta_init, jnp.float32),
        constraint_average=jnp.asarray(jnp.inf, jnp.float32),
        initial_phase=jnp.asarray(two_phases),
    )


def _running_average(state: BetaState, constraint: Scalar, alpha: float) -> Scalar:
    """C_hat_t = (1 - alpha) C_batch + alpha C_hat_{t-1}, C_hat_0 = C_batch: Alg. 1.

    No gradient goes through it: beta is steered, not optimised.
    """
    constraint = lax.stop_gradient(constraint)
    average = (1.0 - alpha) * constraint + alpha * state.constraint_average
    return jnp.where(state.step == 0, constraint, average)


def _check_positive(**arguments: float | int) -> None:
    for name, value in arguments.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}")
