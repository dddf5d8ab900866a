"""The recommendation of kappa: its arithmetic, its honesty, and one made problem."""

import json
import math
import re

import forked
import jax
import numpy as np
import optax
import pytest

from vhp_jax import kappa, networks, objectives, starts, training
from vhp_jax.kappa import Probe
from vhp_jax.model import VAE
from vhp_jax.priors import HierarchicalPrior

NOISE = 0.1
CURVE = [
    Probe(1e-3, 100, 0.12, 0.08, 10.0, 9.0),
    Probe(0.1, 200, 0.13, 0.10, 12.0, 7.0),
    Probe(0.3, 300, 0.14, 0.12, 14.0, 5.0),
    Probe(1.0, 400, 0.2, 0.18, 20.0, 2.0),
]


def made_data(num):
    """A line in 6 dimensions and noise of a known size."""
    generator = np.random.default_rng(0)
    along = generator.uniform(-1.0, 1.0, (num, 1))
    return (
        along * np.linspace(0.5, 1.5, 6) + NOISE * generator.standard_normal((num, 6))
    ).astype(np.float32)


def made_problem(examples):
    def make(features, **scales):
        return networks.NormalMLP((16,), features, "looks_linear", **scales)

    prior = HierarchicalPrior(make(1), make(1, head_scale=0.0, scale_init=0.5), 1, 1)
    decoder = networks.GaussianDecoder((16,), 6, "looks_linear", scale_init=0.5)
    model = VAE(networks.Flat(make(1, scale_init=0.05)), decoder, prior)
    components = starts.principal_components(examples, 1)

    def start(key):
        key_init, key_start = jax.random.split(key)
        params = model.init(key_init, (6,))
        return starts.start_principal(params, key_start, components, 0.4)

    optimizers = training.OptimizerPair(optax.adam(1e-2), optax.adam(1e-2))
    return start, objectives.make_vhp_objective(model, 2), optimizers


# --- Arithmetic ----------------------------------------------------------------------


def test_alternatives_are_read_off_the_measured_curve():
    rows = {row.kappa: row for row in kappa._alternatives(0.12, 0.11, CURVE)}
    assert list(rows) == [0.06, 0.084, 0.12, 0.17, 0.24]
    lowest = rows[0.06]
    assert (lowest.distortion, lowest.rate) == (None, None)
    assert "not reached" in lowest.remark
    seen = rows[0.084]  # reached in training, not on examples held out
    assert 10.0 < seen.distortion < 12.0
    assert 7.0 < seen.rate < 9.0
    assert "only on examples that were trained on" in seen.remark
    assert rows[0.12] == (0.12, 14.0, 5.0, "suggested")  # a point of the curve
    share = math.log(0.17 / 0.12) / math.log(0.18 / 0.12)
    np.testing.assert_allclose(rows[0.17].distortion, 14.0 + 6.0 * share, rtol=1e-9)
    np.testing.assert_allclose(rows[0.17].rate, 5.0 - 3.0 * share, rtol=1e-9)
    assert rows[0.24][1:3] == (20.0, 2.0)
    assert "no constraint acts" in rows[0.24].remark


def test_what_the_constraint_will_do_is_said():
    for value, words in ((0.12, "holds beta under 1"), (0.2, "lets beta grow to 1")):
        text = kappa._reasoning(value, 0.12, 0.9, 1.25, CURVE[:1], CURVE)
        assert words in text
        assert "0.12" in text


def test_kappa_is_a_margin_over_what_is_reached_and_always_asks_for_something():
    assert kappa.choose(0.0144, 0.08) == 0.018
    assert kappa.choose(0.143, 0.26) == 0.18
    assert kappa.choose(0.1, 1.0, margin=2.0) == 0.2
    # Latents that explain a third: 1.25 times would ask for less than the mean gives.
    assert kappa.choose(0.82, 1.0) == 0.92
    assert 1.0 <= kappa.choose(1.0, 0.9) <= 1.1  # nothing was learned


def test_steps_to_reach_follows_a_power_law():
    steps = np.arange(100, 2001, 100)
    constraints = 3.0 / np.sqrt(steps)
    wanted = 0.01  # C = 3 / sqrt(t): t = 90,000
    found = kappa.steps_to_reach(steps, constraints, wanted)
    np.testing.assert_allclose(found, 90_000, rtol=1e-6)
    assert kappa.steps_to_reach(steps, np.full(20, 0.5), wanted) == math.inf
    assert kappa.steps_to_reach(steps, constraints, 1.0) == 2000.0
    assert kappa.steps_to_reach([100, 200], [1.0, 0.5], wanted) == 200.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"held_out": 1}, "2 held out"),
        ({"num_steps": 10}, "num_steps must be at least 20, got 10"),
        ({"margin": -1.0}, "margin must be above 1, got -1.0"),
    ],
)
def test_impossible_requests_are_refused(change, words):
    examples = made_data(30)
    start, objective, optimizers = made_problem(examples)
    arguments = {"held_out": 10} | change
    held_out = examples[: arguments.pop("held_out")]
    with pytest.raises(ValueError, match=re.escape(words)):
        kappa.suggest_kappa(
            jax.random.key(0),
            start,
            objective,
            optimizers,
            examples,
            held_out,
            **arguments,
        )


# --- A problem whose error is known --------------------------------------------------


def suggest(seed=0, num_steps=1_000, draw_batch=None):
    data = made_data(600)
    start, objective, optimizers = made_problem(data[:500])
    return kappa.suggest_kappa(
        jax.random.key(seed),
        start,
        objective,
        optimizers,
        data[:500],
        data[500:],
        batch_size=50,
        num_steps=num_steps,
        draw_batch=draw_batch,
    )


@pytest.mark.slow
@pytest.mark.optax
def test_kappa_of_a_noisy_line_is_a_margin_over_its_noise():
    """One latent explains one direction: sqrt(5 / 6) of the noise is left."""
    found = suggest()
    left = NOISE * math.sqrt(5 / 6)
    np.testing.assert_allclose(found.reached, left, rtol=0.15)
    assert found.blind > 3.0 * found.reached
    np.testing.assert_allclose(found.kappa, kappa.MARGIN * found.reached, rtol=0.05)
    assert [probe.beta for probe in found.probes[-3:]] == list(kappa.BETAS)
    rates = [probe.rate for probe in found.probes[-4:]]
    assert rates[0] > rates[-1]  # a larger weight, less rate
    assert found.steps <= 1_000
    assert found.probes[-1].step <= found.steps
    assert f"{found.kappa:.3g}" in found.table()
    assert json.loads(json.dumps(found.as_dict()))["kappa"] == found.kappa


@pytest.mark.slow
@pytest.mark.optax
def test_the_same_key_gives_the_same_suggestion():
    first, second = suggest(1, 100), suggest(1, 100)
    assert first.probes == second.probes
    assert first.kappa == second.kappa
    assert suggest(2, 100).probes != first.probes


@pytest.mark.slow
@pytest.mark.optax
def test_examples_that_are_drawn_anew_are_measured_as_they_are_drawn():
    """Unit noise in each draw, which no latent knows, is part of the training error."""

    def draw(key, x):
        return x + jax.random.normal(key, x.shape)

    plain, drawn = suggest(num_steps=20), suggest(num_steps=20, draw_batch=draw)
    assert max(probe.training_error for probe in plain.probes) < 0.8
    assert min(probe.training_error for probe in drawn.probes) > 0.9


@pytest.mark.slow
@pytest.mark.optax
def test_a_run_that_does_not_stay_finite_is_said():
    data = made_data(60)
    start, objective, _ = made_problem(data)
    wild = training.OptimizerPair(optax.sgd(1e20), optax.sgd(1e20))
    with pytest.raises(ValueError, match="smaller learning rate"):
        kappa.suggest_kappa(
            jax.random.key(0), start, objective, wild, data, data, num_steps=100
        )


# --- The command ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_its_table(tmp_path):
    np.save(tmp_path / "line.npy", made_data(200))
    words = ["--config=custom", f"--config.data.path={tmp_path / 'line.npy'}"]
    words += ["--config.model.hidden=16", "--config.model.latent_dim=1"]
    words += ["--num_steps=60", f"--workdir={tmp_path / 'run'}", "--minutes=2"]
    code, said, errors = forked.run("experiments.suggest_kappa", *words)
    assert code == 0, errors
    written = json.loads((tmp_path / "run" / "kappa.json").read_text())
    assert f"kappa = {written['kappa']:g}: " in said
    assert "the config has none" in said
    assert len(written["alternatives"]) == len(kappa.FACTORS)
    # Training would drop half of the units and see their noise in C: so does this.
    code, _, errors = forked.run(
        "experiments.suggest_kappa", *words, "--config.model.dropout=0.5"
    )
    assert code == 0, errors
    noisy = json.loads((tmp_path / "run" / "kappa.json").read_text())
    assert noisy["kappa"] > 1.2 * written["kappa"]


@pytest.mark.parametrize(
    ("reached", "blind"), [(0.1023, 0.1065), (0.1023, 0.1023), (0.1028, 0.104)]
)
def test_rounding_never_goes_below_what_is_reached(reached, blind):
    assert kappa.choose(reached, blind) > reached
