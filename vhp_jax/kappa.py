"""kappa, measured: the one choice that REWO leaves.

A short run with a tiny beta, on reconstruction alone, shows the error that the networks
reach on examples held out. Below that error more rate describes the examples that were
seen and not the data, so that kappa belongs a little above it: far enough for the
constraint to be met by the running average of noisy batches, and not further, since
every factor in kappa is paid in detail. Further short runs at growing beta then show
what rate and distortion go with which error.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vhp_jax import beta, evaluation, training
from vhp_jax.objectives import Objective
from vhp_jax.types import Params, PRNGKey, Scalar

MARGIN = 1.25  # of kappa over the error that is reached
RECONSTRUCTION = 1e-3  # beta of a run on reconstruction alone
BETAS = (0.1, 0.3, 1.0)  # of the further runs
SHARE = 0.7  # of the steps, or of the time, that the first run may take
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the alternatives to kappa
INTERVAL = 100  # steps between two looks at the error, at most
NUM_EXAMPLES = 1_000  # seen and held out, at most so many of each are measured


class Probe(NamedTuple):
    """What was measured after so many steps at one beta.

    Attributes:
      beta: weight of the rate.
      step: steps of the run so far.
      error: on examples held out, the square root of the mean of C: for `mse_mean` the
        RMS error per feature.
      training_error: the same of examples that were trained on.
      distortion: nats per example held out.
      rate: nats per example held out.
    """

    beta: float
    step: int
    error: float
    training_error: float
    distortion: float
    rate: float


class Alternative(NamedTuple):
    """A kappa and what to expect of it.

    Attributes:
      kappa: the bound on the error.
      distortion: nats per example held out, where the error in training is kappa; None
        where none was measured.
      rate: as well.
      remark: in words.
    """

    kappa: float
    distortion: float | None
    rate: float | None
    remark: str


@dataclasses.dataclass(frozen=True)
class KappaSuggestion:
    """A recommendation and what it rests on.

    Attributes:
      kappa: recommended, two significant digits.
      reached: least error on the examples held out.
      blind: their error about the mean example, which needs no latents.
      margin: of kappa over `reached`.
      reasoning: in words, a sentence or two.
      alternatives: smaller and larger kappas.
      probes: all measurements, in order.
      steps: training steps taken, of all runs.
      seconds: wall-clock time taken.
    """

    kappa: float
    reached: float
    blind: float
    margin: float
    reasoning: str
    alternatives: tuple[Alternative, ...]
    probes: tuple[Probe, ...]
    steps: int
    seconds: float

    def table(self) -> str:
        """The alternatives as lines of text."""
        rows = [f"{'kappa':>8} {'distortion':>11} {'rate':>8}  (nats per example)"]
        for kappa, *nats, remark in self.alternatives:
            numbers = ["-" if value is None else f"{value:.1f}" for value in nats]
            rows.append(f"{kappa:>8.3g} {numbers[0]:>11} {numbers[1]:>8}  {remark}")
        return "\n".join(line.rstrip() for line in rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {
            "alternatives": [row._asdict() for row in self.alternatives],
            "probes": [probe._asdict() for probe in self.probes],
        }


def suggest_kappa(
    key: PRNGKey,
    init_params: Callable[[PRNGKey], Params],
    objective: Objective,
    optimizers: training.OptimizerPair,
    examples: np.ndarray,
    held_out: np.ndarray,
    *,
    batch_size: int = 64,
    num_steps: int = 6_000,
    seconds: float = math.inf,
    margin: float = MARGIN,
    draw_batch: training.DrawBatch | None = None,
    measure: Objective | None = None,
    stepwise: bool = False,
) -> KappaSuggestion:
    """Recommends kappa from one short run.

    A pure function of its arguments while `seconds` does not run out.

    Args:
      key: PRNG key.
      init_params: draws the parameters from a key.
      objective: what is optimised; the ELBO variant, K = 1, is the quickest.
      optimizers: of both halves.
      examples: float32 [N, *example], to train on.
      held_out: float32 [M, *example], others, to measure on.
      batch_size: B.
      num_steps: at most, of all runs together.
      seconds: at most, of all runs together, but for one interval and compilation.
      margin: of kappa over the least error.
      draw_batch: see `training.make_train_loop`; one draw of the examples is measured.
      measure: what is measured; `objective` where it is not given.
      stepwise: see `training.make_stepwise_loop`.

    Raises:
      ValueError: too few examples or steps, or the run did not stay finite.
    """
    if len(examples) < 1 or len(held_out) < 2:
        raise ValueError(
            "kappa: wanted an example to train on and 2 held out, got "
            f"{len(examples)} and {len(held_out)}"
        )
    if num_steps < 20:
        raise ValueError(f"num_steps must be at least 20, got {num_steps}")
    if not margin > 1.0:
        raise ValueError(f"margin must be above 1, got {margin}")
    began = time.monotonic()

    def late(share: float) -> bool:
        return time.monotonic() - began >= share * seconds

    length = min(INTERVAL, num_steps // 20)
    key_start, key_measure, key_seen = jax.random.split(key, 3)
    seen = jnp.asarray(_some(examples))
    if draw_batch is not None:
        seen = draw_batch(key_seen, seen)
    step = training.make_train_step(objective, HELD, optimizers)
    make_loop = training.make_stepwise_loop if stepwise else training.make_train_loop
    loop = make_loop(step, batch_size, draw_batch)
    run = _Run(
        loop if stepwise else training.jit_train_loop(loop),
        jnp.asarray(examples),
        (_some(held_out), np.asarray(seen)),
        key_measure,
    )
    state = jax.jit(
        lambda key: training.init_state(key, init_params, optimizers, HELD)
    )(key_start)

    # 1. Reconstruction alone, until nothing is gained or time is up.
    state = _at_beta(state, RECONSTRUCTION)
    best, least, probes = state, math.inf, []
    for taken in range(length, int(SHARE * num_steps) + 1, length):
        state = run.advance(state, length)
        probes.append(run.probe(objective, state))
        if probes[-1].error < 0.99 * least:
            best, least = jax.tree.map(jnp.copy, state), probes[-1].error
        if late(SHARE) or taken >= 1.5 * int(best.step) + 10 * length:
            break
    # 2. From where the error was least, at growing beta.
    curve = [run.probe(measure or objective, best)]
    state = best
    for number, value in enumerate(BETAS, start=1):
        share = SHARE + (1.0 - SHARE) * number / len(BETAS)
        state = _at_beta(state, value)
        for _ in range(max(1, int((1.0 - SHARE) / len(BETAS) * num_steps) // length)):
            state = run.advance(state, length)
            taken += length
            if late(share):
                break
        curve.append(run.probe(measure or objective, state))

    reached = min(probe.error for probe in [*probes, *curve])
    middle = np.asarray(np.mean(examples, axis=0, dtype=np.float64))
    blind = math.sqrt(np.mean(np.square(held_out - middle[None])))
    kappa = choose(reached, blind, margin)
    return KappaSuggestion(
        kappa,
        reached,
        blind,
        margin,
        _reasoning(kappa, reached, blind, margin, probes, curve),
        tuple(_alternatives(kappa, reached, curve)),
        tuple(probes + curve),
        taken,
        time.monotonic() - began,
    )


def steps_to_reach(
    steps: Sequence[float], constraints: Sequence[float], kappa_squared: float
) -> float:
    """Steps after which C_hat will be kappa^2, should it go on falling as it does.

    A power law through the second half of what was seen.

    Args:
      steps: of the initial phase, growing, above 0.
      constraints: C_hat at each.
      kappa_squared: to be reached.

    Returns:
      The number of steps; infinity where C_hat does not fall. The last step where there
      are fewer than four to judge by.
    """
    recent = len(steps) // 2
    x, y = np.log(steps[recent:]), np.log(np.maximum(constraints[recent:], 1e-30))
    if len(steps) < 4 or y[-1] <= math.log(kappa_squared):
        return float(steps[-1])
    slope, level = np.polyfit(x, y, 1)
    if slope >= 0.0:
        return math.inf
    exponent = (math.log(kappa_squared) - level) / slope
    return math.exp(exponent) if exponent < 100.0 else math.inf


def _held() -> beta.BetaScheme:
    """Beta stays what the state says, so that one compiled loop serves all of them."""
    constant = beta.constant(RECONSTRUCTION, kappa=1.0)

    def update(
        state: beta.BetaState, constraint: Scalar
    ) -> tuple[beta.BetaState, beta.BetaInfo]:
        updated, info = constant.update(state, constraint)
        return updated._replace(beta=state.beta), info

    return beta.BetaScheme(constant.init, update)


HELD = _held()


def _at_beta(state: training.TrainState, value: float) -> training.TrainState:
    """A copy of the state, which may be donated, with another beta."""
    state = jax.tree.map(jnp.copy, state)
    held = state.beta_state._replace(beta=jnp.asarray(value, jnp.float32))
    return state.replace(beta_state=held)


def _some(examples: np.ndarray) -> np.ndarray:
    """Examples spread evenly over all, no more than `NUM_EXAMPLES`."""
    count = min(len(examples), NUM_EXAMPLES)
    return examples[np.linspace(0, len(examples) - 1, count).astype(int)]


class _Run(NamedTuple):
    """A compiled loop and what it is run and measured on."""

    loop: training.TrainLoop
    data: jax.Array
    measured: tuple[np.ndarray, ...]  # held out, trained on
    key: PRNGKey

    def advance(self, state: training.TrainState, length: int) -> training.TrainState:
        state, metrics = self.loop(state, self.data, num_steps=length)
        if not np.isfinite(np.asarray(metrics.loss)).all():
            raise ValueError(
                f"kappa: the loss is not finite within {int(state.step)} steps; "
                "try a smaller learning rate"
            )
        return state

    def probe(self, measure: Objective, state: training.TrainState) -> Probe:
        held_out, seen = (
            evaluation.rate_distortion(measure, state.params, self.key, part)
            for part in self.measured
        )
        return Probe(
            float(f"{float(state.beta_state.beta):.6g}"),  # a float32
            int(state.step),
            math.sqrt(max(held_out.constraint, 0.0)),
            math.sqrt(max(seen.constraint, 0.0)),
            float(held_out.distortion),
            float(held_out.rate),
        )


def choose(reached: float, blind: float, margin: float = MARGIN) -> float:
    """Kappa from the error that is reached and the one about the mean example.

    `margin` times the error that is reached; but where that would ask for little of
    what the latents can explain, the value that asks for half of it in squared error.

    Args:
      reached: least error on examples held out.
      blind: their error about the mean example.
      margin: of kappa over `reached`.

    Returns:
      Kappa, two significant digits, rounded up: never below what is reached.
    """
    half = math.sqrt((reached**2 + max(blind, reached) ** 2) / 2.0)
    wanted = max(min(margin * reached, half), 1.02 * reached)
    if wanted <= 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(wanted)) - 1)
    return float(f"{math.ceil(wanted / unit - 1e-9) * unit:.2g}")


def _reasoning(
    kappa: float,
    reached: float,
    blind: float,
    margin: float,
    probes: Sequence[Probe],
    curve: Sequence[Probe],
) -> str:
    """Why this kappa, in words."""
    at_one = curve[-1].training_error
    pressed = "holds beta under 1" if at_one > kappa else "lets beta grow to 1"
    settled = min(p.step for p in [*probes, *curve] if p.error <= 1.05 * reached)
    going_on = (
        f"to 5 % after {settled} steps"
        if settled < 0.8 * probes[-1].step
        else "and was still falling: a longer run may want a smaller kappa"
    )
    rule = f"{margin:g} times that, so that the constraint can be met"
    if kappa < 0.97 * margin * reached:
        rule = "where half of what the latents can explain is explained"
    return (
        f"reconstruction alone reached an error of {reached:.3g} on examples held out "
        f"(the mean example has {blind:.3g}), {going_on}; kappa is {rule}; at beta = 1 "
        f"the error in training was {at_one:.3g}, so that this kappa {pressed}"
    )


def _alternatives(
    kappa: float, reached: float, curve: Sequence[Probe]
) -> Iterator[Alternative]:
    """Smaller and larger kappas, read off the measured curve."""
    points = sorted(curve, key=lambda probe: probe.training_error)
    errors = np.log([max(probe.training_error, 1e-30) for probe in points])
    for factor in FACTORS:
        value = float(f"{factor * kappa:.2g}")
        where = math.log(value)
        if where < errors[0]:
            remark = "not reached by these networks in this run"
            yield Alternative(value, None, None, remark)
            continue
        distortion, rate = (
            float(np.interp(where, errors, [getattr(p, name) for p in points]))
            for name in ("distortion", "rate")
        )
        remark = "suggested" if factor == 1.0 else ""
        if value < reached:
            remark = "only on examples that were trained on"
        elif where > errors[-1]:
            remark = ", ".join(filter(None, [remark, "beta = 1: no constraint acts"]))
        yield Alternative(value, distortion, rate, remark)
