"""Beta schemes against transitions worked out by hand, on both sides of each switch.

kappa^2 = 1/4 and alpha = 3/4 are exact in binary, so that a state can be built exactly
on a switch and one float beside it.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vhp_jax import beta

KAPPA, KAPPA_SQUARED, ALPHA, NU, TAU = 0.5, 0.25, 0.75, 2.0, 3.0
ABOVE = np.nextafter(np.float32(KAPPA_SQUARED), np.float32(1.0))
BELOW = np.nextafter(np.float32(KAPPA_SQUARED), np.float32(0.0))
LIMITS = (-0.01, 0.005)

SCHEMES = {
    "rewo": functools.partial(beta.rewo, KAPPA, NU, TAU, ALPHA, 1e-3),
    "rewo_alternative": functools.partial(
        beta.rewo_alternative, KAPPA, NU, TAU, ALPHA, 1e-3
    ),
    "geco": functools.partial(beta.geco, KAPPA, NU, ALPHA, 0.7),
    "warm_up": functools.partial(beta.warm_up, 5, KAPPA, ALPHA),
    "constant": functools.partial(beta.constant, 0.5, KAPPA, ALPHA),
}
TWO_PHASES = ("rewo", "rewo_alternative")
all_schemes = pytest.mark.parametrize("name", SCHEMES)


def state_at(
    value: float, average: float, initial_phase: bool = False, inner: object = ()
) -> beta.BetaState:
    """A state in the middle of training, built by hand."""
    return beta.BetaState(
        step=jnp.int32(10),
        beta=jnp.float32(value),
        constraint_average=jnp.float32(average),
        initial_phase=jnp.asarray(initial_phase),
        inner=inner,
    )


def step(scheme: beta.BetaScheme, state: beta.BetaState, constraint: float):
    return scheme.update(state, jnp.float32(constraint))


def next_beta(scheme: beta.BetaScheme, value: float, average: float) -> float:
    """Beta after one step of the main phase in which C_hat stays at `average`."""
    state, _ = step(scheme, state_at(value, average), average)
    assert state.constraint_average == np.float32(average)
    return float(state.beta)


def run(scheme: beta.BetaScheme, constraints: list[float], state=None):
    """The state after each batch, stacked over time."""
    body = lambda state, c: (scheme.update(state, c)[0],) * 2  # noqa: E731
    state = scheme.init() if state is None else state
    return jax.lax.scan(body, state, jnp.asarray(constraints, jnp.float32))[1]


def alternative_state(gamma: float, average: float, initial_phase: bool = False):
    inner = jnp.float32(math.log(gamma))  # log gamma is what is carried
    return state_at(1.0 / (1.0 + TAU * gamma), average, initial_phase, inner)


# --- C_hat ---------------------------------------------------------------------------


@all_schemes
def test_c_hat_starts_at_the_first_batch_then_decays(name):
    batches = [0.9, 0.1, 0.7, 0.3]
    wanted = [0.9]
    for batch in batches[1:]:
        wanted.append(0.25 * batch + 0.75 * wanted[-1])
    states = run(SCHEMES[name](), batches)
    np.testing.assert_allclose(states.constraint_average, wanted, rtol=1e-6)
    assert states.constraint_average[0] == np.float32(0.9)  # no trace of C_hat_{-1}
    np.testing.assert_array_equal(states.step, [1, 2, 3, 4])


@all_schemes
def test_first_batch_may_be_zero(name):
    state, _ = step(SCHEMES[name](), SCHEMES[name]().init(), 0.0)
    assert state.constraint_average == 0.0


@all_schemes
def test_info_is_the_violation_and_the_log_step(name):
    scheme = SCHEMES[name]()
    before, _ = step(scheme, scheme.init(), 0.1)  # warm-up starts from beta = 0
    after, info = step(scheme, before, 0.1)
    np.testing.assert_allclose(info.violation, 0.1 - 0.25, rtol=1e-6)
    wanted = math.log(after.beta) - math.log(before.beta)
    np.testing.assert_allclose(info.log_step, wanted, rtol=1e-4, atol=1e-7)


# --- The two phases of Alg. 1 --------------------------------------------------------


@pytest.mark.parametrize("name", TWO_PHASES)
@pytest.mark.parametrize("average", [KAPPA_SQUARED, ABOVE, 0.5, 1e6])
def test_initial_phase_lasts_while_c_hat_is_not_below_kappa_squared(name, average):
    scheme = SCHEMES[name]()
    before = scheme.init()._replace(
        step=jnp.int32(10), constraint_average=jnp.float32(average)
    )
    after, info = step(scheme, before, average)
    assert bool(after.initial_phase)
    assert after.constraint_average == np.float32(average)  # exactly on the switch
    chex.assert_trees_all_equal((after.beta, after.inner), (before.beta, before.inner))
    assert info.log_step == 0.0


@pytest.mark.parametrize("name", TWO_PHASES)
def test_initial_phase_ends_in_the_step_that_meets_the_constraint(name):
    scheme = SCHEMES[name]()
    for average, ends in [(BELOW, True), (0.125, True), (ABOVE, False)]:
        before = scheme.init()._replace(
            step=jnp.int32(10), constraint_average=jnp.float32(average)
        )
        after, _ = step(scheme, before, average)
        assert bool(after.initial_phase) != ends
    # Alg. 1 updates beta in that very step.
    before = before._replace(constraint_average=jnp.float32(0.125))
    after, _ = step(scheme, before, 0.125)
    assert after.beta > before.beta


@pytest.mark.parametrize("name", TWO_PHASES)
def test_initial_phase_goes_by_the_average_not_by_the_batch(name):
    scheme = SCHEMES[name]()
    # A batch at 0 pulls C_hat from 1 to 3/4 only; one at 1 lifts 1/8 to 11/32.
    for average, batch, initial in [(1.0, 0.0, True), (0.125, 1.0, True)]:
        before = scheme.init()._replace(
            step=jnp.int32(3), constraint_average=jnp.float32(average)
        )
        after, _ = step(scheme, before, batch)
        assert bool(after.initial_phase) == initial
        assert after.beta == before.beta


@pytest.mark.parametrize("name", TWO_PHASES)
def test_initial_phase_never_comes_back(name):
    states = run(SCHEMES[name](), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0])
    phases = states.initial_phase.tolist()
    end = phases.index(False)
    assert 0 < end < 7
    assert not any(phases[end:])
    assert states.constraint_average[-1] > 1.0  # violated again, far above
    assert states.beta[-1] < states.beta[-2]  # and acted upon


def test_initial_phase_may_end_at_the_first_batch():
    state, _ = step(SCHEMES["rewo"](), SCHEMES["rewo"]().init(), 0.1)
    assert not state.initial_phase


@pytest.mark.parametrize("name", ["geco", "warm_up", "constant"])
def test_other_schemes_have_no_initial_phase(name):
    assert not run(SCHEMES[name](), [9.0, 9.0, 0.0]).initial_phase.any()
    assert not SCHEMES[name]().init().initial_phase


# --- REWO: Eqs. 12-13 ----------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-3, 0.5, 1.0, 1.5])
def test_rewo_steps_by_hand(value):
    scheme = SCHEMES["rewo"]()
    # Violated: f = -1, whatever beta is.
    wanted = value * math.exp(NU * -1.0 * (0.5 - 0.25))
    np.testing.assert_allclose(next_beta(scheme, value, 0.5), wanted, rtol=1e-6)
    # Met: f = tanh(tau (beta - 1)).
    slope = math.tanh(TAU * (value - 1.0))
    wanted = value * math.exp(NU * slope * (0.125 - 0.25))
    np.testing.assert_allclose(next_beta(scheme, value, 0.125), wanted, rtol=1e-6)
    # On the switch nothing moves.
    assert next_beta(scheme, value, KAPPA_SQUARED) == np.float32(value)


def test_rewo_moves_to_one_while_met_and_down_while_violated():
    scheme = beta.rewo(KAPPA, 100.0, TAU, ALPHA)
    for value, met in [(0.5, 1), (1.0, 0), (1.5, -1)]:
        assert np.sign(next_beta(scheme, value, 0.2) - np.float32(value)) == met
        assert np.sign(next_beta(scheme, value, 0.3) - np.float32(value)) == -1


def test_rewo_switch_is_at_one_float():
    scheme = beta.rewo(KAPPA, 1e6, TAU, ALPHA)
    assert next_beta(scheme, 1.5, BELOW) < 1.5
    assert next_beta(scheme, 0.5, BELOW) > 0.5
    assert next_beta(scheme, 0.5, ABOVE) < 0.5


def test_rewo_slope_is_one_function_of_the_sign():
    betas = jnp.array([0.0, 0.5, 1.0, 1.5])
    for violation in (-1.0, -1e-20):
        slope = beta.rewo_slope(betas, jnp.full(4, violation), TAU)
        wanted = [math.tanh(TAU * (b - 1.0)) for b in (0.0, 0.5, 1.0, 1.5)]
        np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    for violation in (0.0, 1e-20, 1.0):  # H(0) = 1
        slope = beta.rewo_slope(betas, jnp.full(4, violation), TAU)
        np.testing.assert_array_equal(slope, -np.ones(4))


@pytest.mark.parametrize("start", [1e-3, 0.9, 1.4])
def test_rewo_ends_at_one_while_the_constraint_is_met(start):
    states = run(SCHEMES["rewo"](), [0.05] * 200, state_at(start, 0.05))
    np.testing.assert_allclose(states.beta[-1], 1.0, atol=1e-5)
    distance = np.abs(np.append(start, states.beta) - 1.0)
    assert (np.diff(distance) <= 1e-7).all()  # straight to it, never past it


# --- GECO: Eq. 5 ---------------------------------------------------------------------


def test_how_rewo_comes_to_one_depends_on_nu_tau_kappa_squared():
    """With C = 0 throughout; 1 - nu tau kappa^2 multiplies the distance from 1."""

    def path(product, num_steps=400):
        scheme = beta.rewo(KAPPA, product / (TAU * KAPPA_SQUARED), TAU, ALPHA)
        state, betas = state_at(0.5, 0.0), []
        for _ in range(num_steps):
            state, _ = jax.jit(scheme.update)(state, jnp.float32(0.0))
            betas.append(float(state.beta))
        return np.array(betas)

    up_to_one, beyond_one, beyond_two = map(path, (1.0, 1.5, 2.5))
    assert (up_to_one <= 1.0).all()
    assert (np.diff(up_to_one) >= 0.0).all()
    assert beyond_one.max() > 1.01
    np.testing.assert_allclose([up_to_one[-1], beyond_one[-1]], 1.0, atol=1e-5)
    assert np.ptp(beyond_two[-10:]) > 0.1
    distance = 1.0 - path(0.25, 26)[15:]
    np.testing.assert_allclose(distance[1:] / distance[:-1], 0.75, rtol=0.02)


@all_schemes
def test_beta_is_steered_and_not_optimised(name):
    """No gradient of beta by C: C may be computed inside the loss."""
    scheme = SCHEMES[name]()
    state = state_at(0.5, 0.2, inner=jnp.float32(0.0))

    def moved(constraint):
        new, info = scheme.update(state, constraint)
        return new.beta + new.constraint_average + info.violation

    assert jax.grad(moved)(jnp.float32(0.1)) == 0.0


@pytest.mark.parametrize("value", [1e-3, 0.5, 1.0, 1.5])
def test_geco_steps_by_hand(value):
    scheme = SCHEMES["geco"]()
    for average in (0.5, 0.125):
        wanted = value * math.exp(-NU * (average - 0.25))
        np.testing.assert_allclose(next_beta(scheme, value, average), wanted, rtol=1e-6)
    assert next_beta(scheme, value, KAPPA_SQUARED) == np.float32(value)


def test_geco_is_lambda_of_eq_5_inverted():
    """lambda <- lambda exp(nu (C_hat - kappa^2)), lambda = 1 / beta."""
    constraints = [0.9, 0.1, 0.1, 0.4]
    lam, average = 1.0 / 0.7, None
    for batch in constraints:
        average = batch if average is None else 0.25 * batch + 0.75 * average
        lam *= math.exp(NU * (average - 0.25))
    states = run(SCHEMES["geco"](), constraints)
    np.testing.assert_allclose(states.beta[-1], 1.0 / lam, rtol=1e-5)


def test_geco_passes_one_and_moves_from_the_first_step():
    states = run(SCHEMES["geco"](), [0.0] * 10)
    assert states.beta[0] > 0.7
    assert states.beta[-1] > 1.5


# --- REWO of App. B.1: Eqs. 14-15 ----------------------------------------------------


@pytest.mark.parametrize("gamma", [0.01, 0.5, 300.0])
def test_alternative_steps_by_hand(gamma):
    scheme = SCHEMES["rewo_alternative"]()
    for average in (0.5, 0.125, KAPPA_SQUARED):
        after, _ = step(scheme, alternative_state(gamma, average), average)
        wanted = gamma * math.exp(NU * (average - 0.25))
        np.testing.assert_allclose(after.inner, math.log(wanted), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.beta, 1.0 / (1.0 + TAU * wanted), rtol=1e-5)


def test_alternative_falls_while_violated_and_rises_to_one_while_met():
    scheme = beta.rewo_alternative(KAPPA, 1e5, TAU, ALPHA)
    before = alternative_state(0.5, ABOVE)
    assert step(scheme, before, ABOVE)[0].beta < before.beta
    before = alternative_state(0.5, BELOW)
    assert step(scheme, before, BELOW)[0].beta > before.beta
    states = run(SCHEMES["rewo_alternative"](), [0.0] * 100)
    np.testing.assert_allclose(states.beta[-1], 1.0, atol=1e-5)
    assert (states.beta <= 1.0).all()


def test_alternative_keeps_beta_and_gamma_together():
    """Eq. 15: beta = 1 / (1 + tau gamma), from the first state on."""
    scheme = SCHEMES["rewo_alternative"]()
    initial = scheme.init()
    np.testing.assert_allclose(initial.beta, 1e-3, rtol=1e-6)
    constraints = [1.0, 0.3, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.1]
    for state in (initial, run(scheme, constraints)):
        np.testing.assert_allclose(
            state.beta, 1.0 / (1.0 + TAU * np.exp(state.inner)), rtol=1e-5
        )


def test_alternative_comes_down_again_after_a_long_time_at_one():
    """gamma = exp(-200) is no float32, its logarithm is."""
    scheme = SCHEMES["rewo_alternative"]()
    before = state_at(1.0, 0.0, inner=jnp.float32(-200.0))
    states = run(scheme, [30.0] * 10, before)
    assert states.beta[0] == 1.0
    assert states.beta[-1] < 1e-3


def test_alternative_holds_gamma_in_the_initial_phase():
    scheme = SCHEMES["rewo_alternative"]()
    states = run(scheme, [1.0] * 50)
    assert states.initial_phase.all()
    np.testing.assert_array_equal(states.inner, np.full(50, scheme.init().inner))


# --- Schedules -----------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [0.0, 9.0])
def test_warm_up_is_linear_up_to_one_and_deaf(constraint):
    states = run(SCHEMES["warm_up"](), [constraint] * 8)
    wanted = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(states.beta, wanted, rtol=1e-6)
    assert SCHEMES["warm_up"]().init().beta == 0.0


def test_warm_up_over_one_step_is_the_bound_from_the_start():
    assert run(beta.warm_up(1, KAPPA), [1.0]).beta.tolist() == [1.0]


@pytest.mark.parametrize("constraint", [0.0, 9.0])
def test_constant_is_constant(constraint):
    states = run(SCHEMES["constant"](), [constraint] * 5)
    np.testing.assert_array_equal(states.beta, np.full(5, 0.5, np.float32))
    assert SCHEMES["constant"]().init().beta == 0.5


# --- Limits on the step --------------------------------------------------------------


@pytest.mark.parametrize("make", [beta.rewo, beta.geco])
def test_log_step_limits_clamp_on_both_sides(make):
    scheme = make(KAPPA, NU, alpha=ALPHA, log_step_limits=LIMITS)
    free = make(KAPPA, NU, alpha=ALPHA)
    for average, limit in [(4.0, LIMITS[0]), (0.0, LIMITS[1])]:
        wanted = 0.5 * math.exp(limit)
        assert abs(math.log(next_beta(free, 0.5, average) / 0.5)) > abs(limit)
        np.testing.assert_allclose(next_beta(scheme, 0.5, average), wanted, rtol=1e-6)
        _, info = step(scheme, state_at(0.5, average), average)
        np.testing.assert_allclose(info.log_step, limit, rtol=1e-6)
    inside = 0.2505  # |nu delta| = 0.001
    assert next_beta(scheme, 0.5, inside) == next_beta(free, 0.5, inside)


@pytest.mark.parametrize("make", [beta.rewo, beta.geco])
@pytest.mark.parametrize("limits", [(0.5, -0.5), (0.1, 0.5), (-0.5, 0.0)])
def test_limits_that_would_turn_a_step_round_are_refused(make, limits):
    with pytest.raises(ValueError, match="must be below and above 0"):
        make(KAPPA, NU, log_step_limits=limits)


def test_log_step_limits_leave_the_initial_phase_alone():
    scheme = beta.rewo(KAPPA, NU, alpha=ALPHA, log_step_limits=(-0.01, 0.01))
    before = state_at(0.5, 1.0, initial_phase=True)
    assert step(scheme, before, 1.0)[0].beta == before.beta


# --- Arrays --------------------------------------------------------------------------


@all_schemes
def test_states_keep_their_types(name):
    scheme = SCHEMES[name]()
    before = scheme.init()
    after, info = step(scheme, before, 0.1)
    for state in (before, after):
        assert state.step.dtype == jnp.int32
        assert state.beta.dtype == state.constraint_average.dtype == jnp.float32
        assert state.initial_phase.dtype == jnp.bool_
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    chex.assert_tree_shape_prefix((before, after), ())
    assert all(leaf.shape == () for leaf in jax.tree.leaves((before, after, info)))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((before, after)))
    assert info.violation.dtype == info.log_step.dtype == jnp.float32


@all_schemes
def test_jit_equals_eager(name):
    scheme = SCHEMES[name]()
    eager = jitted = scheme.init()
    update = jax.jit(scheme.update)
    for constraint in (1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 3.0):
        eager, _ = step(scheme, eager, constraint)
        jitted, _ = update(jitted, jnp.float32(constraint))
        chex.assert_trees_all_close(eager, jitted, rtol=1e-6)


@all_schemes
def test_vmap_equals_one_by_one(name):
    """Members in different phases do not touch each other."""
    scheme = SCHEMES[name]()
    series = jnp.array([[1.0] * 6, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1] * 6])
    together = jax.vmap(lambda constraints: run(scheme, constraints))(series)
    for index, constraints in enumerate(series):
        alone = run(scheme, constraints)
        member = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        chex.assert_trees_all_close(member, alone, rtol=1e-6)
    if name in TWO_PHASES:
        assert together.initial_phase[:, -1].tolist() == [True, False, False]


# --- Arguments -----------------------------------------------------------------------

BAD = [0.0, -1.0, math.nan, math.inf]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (beta.rewo, ["kappa", "nu", "tau", "beta_init"]),
        (beta.rewo_alternative, ["kappa", "nu", "tau", "beta_init"]),
        (beta.geco, ["kappa", "nu", "beta_init"]),
        (beta.warm_up, ["kappa", "num_steps"]),
        (beta.constant, ["kappa", "value"]),
    ],
)
def test_arguments_must_be_positive_and_finite(make, names, value):
    good = {
        beta.warm_up: {"kappa": KAPPA, "num_steps": 5},
        beta.constant: {"kappa": KAPPA, "value": 1.0},
    }.get(make, {"kappa": KAPPA, "nu": NU})
    make(**good)
    for name in names:
        if name == "num_steps" and not math.isfinite(value):
            continue  # not an int
        value = int(value) if name == "num_steps" else value
        with pytest.raises(ValueError, match=rf"{name} must be positive"):
            make(**good | {name: value})


@all_schemes
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan])
def test_alpha_must_be_a_weight(name, value):
    with pytest.raises(ValueError, match="alpha"):
        SCHEMES[name].func(**{"kappa": KAPPA, "alpha": value} | OTHERS[name])


OTHERS = {
    "rewo": {"nu": NU},
    "rewo_alternative": {"nu": NU},
    "geco": {"nu": NU},
    "warm_up": {"num_steps": 5},
    "constant": {"value": 1.0},
}


def test_alternative_starts_below_one():
    with pytest.raises(ValueError, match="beta_init must be below 1"):
        beta.rewo_alternative(KAPPA, NU, beta_init=1.0)


# --- Somebody else's model -----------------------------------------------------------


def fit_toy(scheme: beta.BetaScheme, num_steps: int = 4000):
    """Minimises (w - 3)^2 + beta w^2 by gradient descent, C = (w - 3)^2.

    At fixed beta the optimum is w = 3 / (1 + beta), so C = 9 beta^2 / (1 + beta)^2.
    """

    def train_step(carry, _):
        w, state = carry
        state, _ = scheme.update(state, jnp.square(w - 3.0))
        grad = 2.0 * (w - 3.0) + state.beta * 2.0 * w
        return (w - 0.05 * grad, state), None

    carry = (jnp.float32(0.0), scheme.init())
    return jax.lax.scan(train_step, carry, length=num_steps)[0]


@pytest.mark.parametrize("name", ["rewo", "rewo_alternative", "geco"])
def test_a_scheme_holds_the_constraint_of_another_model(name):
    """kappa^2 = 1 is reached at beta = 1/2, w = 2."""
    w, state = fit_toy(getattr(beta, name)(kappa=1.0, nu=0.05, beta_init=0.01))
    np.testing.assert_allclose(state.beta, 0.5, rtol=1e-2)
    np.testing.assert_allclose(w, 2.0, rtol=1e-2)
    np.testing.assert_allclose(state.constraint_average, 1.0, rtol=1e-2)


def test_a_loose_constraint_lets_rewo_end_at_the_bound_and_geco_pass_it():
    """At beta = 1 C = 9/4 < kappa^2 = 4."""
    w, state = fit_toy(beta.rewo(kappa=2.0, nu=0.05, beta_init=0.01))
    np.testing.assert_allclose((state.beta, w), (1.0, 1.5), rtol=1e-3)
    # 9 beta^2 / (1 + beta)^2 = 4 at beta = 2.
    w, state = fit_toy(beta.geco(kappa=2.0, nu=0.005, beta_init=0.01))
    np.testing.assert_allclose((state.beta, w), (2.0, 1.0), rtol=1e-2)
