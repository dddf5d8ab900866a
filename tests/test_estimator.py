"""VHP as an estimator: scikit-learn's checks, the same bits, and what is refused."""

import math
import pickle
import re
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vhp_jax import VHP, evaluation
from vhp_jax.sharing import ExportError

pytestmark = pytest.mark.optax

TINY = {
    "hidden": (8,),
    "num_samples": 2,
    "batch_size": 8,
    "max_steps": 6,
    "kappa": 5.0,  # met by the second step, so that the prior is trained too
    "random_state": 0,
    "verbose": 0,
}
ROWS = np.random.default_rng(0).normal([1.0, -20.0, 300.0], [0.1, 1.0, 50.0], (60, 3))
IMAGES = np.random.default_rng(1).integers(0, 256, (30, 4, 5, 1), np.uint8)


@pytest.fixture(scope="module")
def fitted():
    return VHP(**TINY).fit(ROWS)


@pytest.fixture(scope="module")
def of_images():
    return VHP(**TINY).fit(IMAGES)


# --- scikit-learn's own checks -------------------------------------------------------

# Checks that may fail, with the reason; none does. Checks of sample weights, of
# classifiers, regressors and clusterers do not apply and are not generated.
EXPECTED: dict[str, str] = {}


@pytest.mark.slow
@parametrize_with_checks(
    [VHP(**TINY | {"max_steps": 2})], expected_failed_checks=lambda _: EXPECTED
)
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the checks raise what matters themselves
        check(estimator)


# --- Fitting -------------------------------------------------------------------------


def test_the_constructor_only_stores():
    model = VHP(latent_dim=-3, hidden="nonsense")
    assert model.latent_dim == -3
    assert model.get_params()["hidden"] == "nonsense"
    assert clone(model).set_params(kappa=2.0).kappa == 2.0


def test_what_is_fitted_is_there(fitted):
    assert fitted.likelihood_ == "gaussian"
    assert (fitted.kappa_, fitted.kappa_suggestion_) == (5.0, None)
    assert (fitted.n_iter_, fitted.n_features_in_) == (6, 3)
    assert fitted.example_shape_ == (3,)
    np.testing.assert_allclose(fitted.mean_, ROWS.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.scale_, ROWS.std(axis=0), rtol=1e-6)
    assert set(fitted.history_) == {
        "step",
        "loss",
        "distortion",
        "rate",
        "constraint",
        "kappa_squared",
        "beta",
        "initial_phase",
    }
    assert list(fitted.history_["kappa_squared"]) == [25.0]
    assert list(fitted.history_["step"]) == [6]
    assert not fitted.history_["initial_phase"][-1]


def test_the_same_seed_gives_the_same_bits_and_another_one_others(fitted):
    again = VHP(**TINY).fit(ROWS)
    jax.tree.map(np.testing.assert_array_equal, again.params_, fitted.params_)
    np.testing.assert_array_equal(again.transform(ROWS), fitted.transform(ROWS))
    other = VHP(**TINY | {"random_state": 1}).fit(ROWS)
    assert not np.array_equal(other.transform(ROWS), fitted.transform(ROWS))


def test_a_generator_of_batches_is_the_array_they_make(fitted):
    batches = (ROWS[start : start + 25] for start in range(0, 60, 25))
    again = VHP(**TINY).fit(batches)
    jax.tree.map(np.testing.assert_array_equal, again.params_, fitted.params_)


def test_the_training_is_that_of_the_core(fitted):
    """By hand, out of the rooms that the estimator is a face of."""
    from vhp_jax import estimator, training

    examples = ((ROWS - fitted.mean_) / fitted.scale_).astype(np.float32)
    model = VHP(**TINY)
    model.likelihood_ = "gaussian"
    model.model_ = fitted.model_
    start = model._make_start(examples)
    scheme, loop = estimator._compiled(fitted._recipe())
    key = jax.random.split(jax.random.key(fitted.seed_), 3)[2]
    optimizers = estimator._optimizers(fitted.learning_rate)
    state = training.init_state(key, start, optimizers, scheme)
    state, metrics = loop(state, examples, num_steps=6)
    jax.tree.map(np.testing.assert_array_equal, state.params, fitted.params_)
    np.testing.assert_array_equal(metrics.constraint[-1], fitted.history_["constraint"])


def test_images_of_bytes_are_bernoulli_and_keep_their_shape(of_images):
    assert of_images.likelihood_ == "bernoulli"
    z = of_images.transform(IMAGES[:7])
    assert (z.shape, z.dtype) == ((7, 2), np.float32)
    decoded = of_images.inverse_transform(z)
    assert decoded.shape == (7, 4, 5, 1)
    assert 0.0 <= decoded.min() < decoded.max() <= 255.0
    assert of_images.sample(3).shape == (3, 4, 5, 1)
    with pytest.raises(ValueError, match=re.escape("shape (5, 4, 1), but VHP")):
        of_images.transform(IMAGES.reshape(30, 5, 4, 1))


def test_what_was_chosen_is_said(capsys):
    VHP(**TINY | {"verbose": 1, "max_steps": 2}).fit(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Gaussian likelihood: each column has mean 0")
    assert lines[-1].startswith("2 steps: distortion")
    VHP(**TINY).fit(ROWS)
    assert capsys.readouterr().out == ""


def test_it_works_in_a_pipeline_with_column_names():
    pipeline = make_pipeline(StandardScaler(), VHP(**TINY)).set_output(
        transform="default"
    )
    z = pipeline.fit_transform(ROWS)
    assert z.shape == (60, 2)
    assert list(pipeline[-1].get_feature_names_out()) == ["vhp0", "vhp1"]
    assert math.isfinite(pipeline.score(ROWS))


# --- kappa ---------------------------------------------------------------------------


@pytest.mark.slow
def test_kappa_is_measured_and_trained_with(capsys):
    generator = np.random.default_rng(0)
    line = generator.uniform(-1, 1, (300, 1)) * [1.0, 2.0, 3.0]
    line = line + 0.1 * generator.standard_normal(line.shape)
    arguments = TINY | {"kappa": "auto", "max_steps": 600, "verbose": 1}
    arguments |= {"latent_dim": 1, "learning_rate": 1e-2, "scaling": "common"}
    model = VHP(**arguments).fit(line)
    suggestion = model.kappa_suggestion_
    assert model.kappa_ == suggestion.kappa
    left = 0.1 * math.sqrt(2 / 3) / model.scale_[0]
    np.testing.assert_allclose(suggestion.reached, left, rtol=0.25)
    assert f"kappa = {suggestion.kappa:g}: " in capsys.readouterr().out
    assert not model.history_["initial_phase"][-1]
    with pytest.raises(ValueError, match="at least 10 examples, got 9"):
        VHP(**arguments).fit(line[:9])


def test_a_kappa_out_of_reach_is_said_early_and_given_up():
    model = VHP(**TINY | {"kappa": 1e-3, "max_steps": 1_600})
    with (
        pytest.warns(ConvergenceWarning, match=r"kappa = 0.001 looks out of reach"),
        pytest.raises(ValueError, match=r"not reached in 800 steps: .* try kappa="),
    ):
        model.fit(ROWS)


# --- Use -----------------------------------------------------------------------------


def test_a_row_is_coded_alike_in_any_company(fitted):
    whole = fitted.transform(ROWS)
    np.testing.assert_array_equal(fitted.transform(ROWS[13:14])[0], whole[13])
    np.testing.assert_array_equal(fitted.transform(ROWS[::-1]), whole[::-1])
    many = np.concatenate([ROWS] * 6)  # more than one compiled call
    np.testing.assert_array_equal(fitted.transform(many), np.tile(whole, (6, 1)))


@pytest.mark.slow
def test_the_automatic_nu_does_not_overshoot_in_a_short_run():
    model = VHP(**TINY | {"max_steps": 30, "kappa": 2.0}).fit(ROWS)
    assert 0.5 < model.history_["beta"][-1] <= 1.0


def test_the_likelihood_is_in_the_units_of_the_data(fitted):
    """Density of the data, not of what they were standardised to."""
    found = fitted.log_likelihood(ROWS[:5], 20)
    scaled = ((ROWS[:5] - fitted.mean_) / fitted.scale_).astype(np.float32)
    inner = evaluation.log_likelihood(
        fitted.model_, fitted.params_, fitted._key("likelihood"), scaled, 20
    ).log_likelihood
    wanted = inner - np.log(ROWS.std(axis=0)).sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(found, fitted.log_likelihood(ROWS[:5], 20))
    other = fitted.log_likelihood(ROWS[:5], 20, random_state=5)
    assert not np.isclose(other, found).any()
    again = fitted.log_likelihood(ROWS[:5], 20, random_state=5)
    np.testing.assert_array_equal(other, again)
    assert isinstance(fitted.score(ROWS[:5]), float)


def test_reconstructions_are_in_the_units_of_the_data(fitted):
    z = fitted.transform(ROWS)
    decoded = fitted.inverse_transform(z)
    # Principal components at the start: far better than the mean, after few steps.
    errors = np.square((decoded - ROWS) / fitted.scale_).mean(axis=0)
    assert errors.mean() < 0.7


def test_samples_repeat_and_follow_their_own_seed(fitted):
    first = fitted.sample(4)
    assert first.shape == (4, 3)
    np.testing.assert_array_equal(fitted.sample(4), first)
    other = fitted.sample(4, random_state=5)
    assert not np.array_equal(other, first)
    np.testing.assert_array_equal(fitted.sample(4, random_state=5), other)


def test_samples_are_decoded_draws_of_the_prior(fitted):
    drawn = fitted.sample_latent(300)
    assert (drawn.shape, drawn.dtype) == ((300, 2), np.float32)
    np.testing.assert_array_equal(fitted.sample(300), fitted.inverse_transform(drawn))
    other = fitted.sample_latent(3, random_state=5)
    np.testing.assert_array_equal(
        fitted.sample(3, random_state=5), fitted.inverse_transform(other)
    )


def test_encode_has_mean_and_scale_of_the_posterior(fitted):
    codes = fitted.encode(ROWS)
    np.testing.assert_array_equal(codes.mean, fitted.transform(ROWS))
    scaled = ((ROWS - fitted.mean_) / fitted.scale_).astype(np.float32)
    wanted = jax.jit(fitted.model_.encode)(fitted.params_, scaled)
    np.testing.assert_allclose(codes.scale, wanted.scale, rtol=1e-5)
    assert codes.scale.shape == (60, 2)


def test_an_interpolation_joins_the_reconstructions_of_its_ends(fitted):
    path = fitted.interpolate(ROWS[0], ROWS[1], num=7, num_nodes=50, num_neighbours=5)
    assert path.shape == (7, 3)
    ends = fitted.inverse_transform(fitted.transform(ROWS[:2]))
    np.testing.assert_allclose(path[[0, -1]], ends, rtol=1e-5)


# --- Keeping -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fitted", "of_images"])
def test_saved_and_loaded_it_gives_the_same_bits(name, request, tmp_path):
    model = request.getfixturevalue(name)
    x = ROWS if name == "fitted" else IMAGES
    model.save(tmp_path / "model")
    loaded = VHP.load(tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    for use in (
        lambda m: m.transform(x),
        lambda m: m.sample(5),
        lambda m: m.log_likelihood(x[:4], 10),
        lambda m: m.interpolate(x[0], x[1], 4, num_nodes=30, num_neighbours=5),
    ):
        np.testing.assert_array_equal(use(loaded), use(model))
    assert (loaded.kappa_, loaded.n_iter_) == (model.kappa_, model.n_iter_)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"config\.json: changed since"):
        VHP.load(tmp_path / "model")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(x), model.transform(x))


def test_column_names_are_kept(fitted, tmp_path):
    named = pickle.loads(pickle.dumps(fitted))
    named.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    named.save(tmp_path / "model")
    loaded = VHP.load(tmp_path / "model")
    assert list(loaded.feature_names_in_) == ["a", "b", "c"]
    fitted.save(tmp_path / "other")
    assert not hasattr(VHP.load(tmp_path / "other"), "feature_names_in_")


# --- What is refused -----------------------------------------------------------------


def test_nothing_is_used_before_it_is_fitted(tmp_path):
    model = VHP()
    for use in (
        lambda: model.transform(ROWS),
        lambda: model.encode(ROWS),
        lambda: model.sample_latent(2),
        lambda: model.inverse_transform(ROWS),
        lambda: model.sample(2),
        lambda: model.log_likelihood(ROWS),
        lambda: model.interpolate(ROWS[0], ROWS[1]),
        lambda: model.save(tmp_path / "model"),
    ):
        with pytest.raises(NotFittedError):
            use()


def test_a_fit_that_fails_leaves_what_was_there(fitted, monkeypatch):
    model = VHP(**TINY | {"kappa": 1e-9})
    with pytest.raises(ValueError, match="not reached"):
        model.fit(ROWS)
    with pytest.raises(NotFittedError):
        model.transform(ROWS)
    model = pickle.loads(pickle.dumps(fitted))
    before = vars(model).copy()
    for x in (np.ones((30, 3)), ROWS[:, :2] * 100.0):
        monkeypatch.setattr(VHP, "_train", lambda *_: 1 / 0)
        with pytest.raises((ValueError, ZeroDivisionError)):
            model.fit(x)
        assert vars(model) == before
    np.testing.assert_array_equal(model.transform(ROWS), fitted.transform(ROWS))


def test_values_that_a_bernoulli_model_cannot_have_are_refused(of_images):
    for x in (-1.0 * IMAGES, 2.0 * IMAGES):
        for use in (of_images.transform, of_images.log_likelihood):
            with pytest.raises(ValueError, match="fitted with values from 0 to 255"):
                use(x)


def test_larger_whole_numbers_than_those_of_the_fit_are_no_means():
    levels = np.random.default_rng(0).integers(0, 17, (40, 4, 5))
    model = VHP(**TINY).fit(levels)
    assert np.unique(model.scale_).tolist() == [16.0]
    with pytest.raises(ValueError, match=r"from 0 to 160, but .* from 0 to 16"):
        model.log_likelihood(10 * levels)


def test_the_start_has_not_seen_what_kappa_is_measured_on():
    """Of noise in 100 dimensions, 10 that are chosen elsewhere keep a tenth."""
    noise = np.random.default_rng(0).normal(size=(40, 100))
    more = {"kappa": "auto", "latent_dim": 10, "hidden": (32,), "kappa_steps": 20}
    found = VHP(**TINY | more).fit(noise).kappa_suggestion_
    assert found.reached > 0.97 * math.sqrt(1.0 - 10 / 100) * found.blind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1, got 0"),
        ({"max_steps": 1.5}, "max_steps must be a whole number >= 1, got 1.5"),
        ({"kappa": -1.0}, 'kappa must be positive or "auto", got -1.0'),
        ({"kappa": "automatic"}, 'kappa must be positive or "auto"'),
        ({"learning_rate": math.inf}, "learning_rate must be positive, got inf"),
        ({"hidden": ()}, "hidden must be widths >= 1, got ()"),
        ({"hidden": 16}, "hidden must be widths >= 1, got 16"),
        ({"likelihood": "poisson"}, "likelihood must be one of auto"),
        ({"max_steps": 2**30}, "must stay below 2^31"),
    ],
)
def test_impossible_parameters_are_refused(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        VHP(**TINY | arguments).fit(ROWS)


def spoilt(value, dtype=float):
    rows = ROWS.astype(dtype)
    rows[3, 1] = value
    return rows


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (spoilt(np.nan), "example 3, column 1 is nan"),
        (spoilt(np.inf), "example 3, column 1 is inf"),
        (spoilt(1e200), "example 3, column 1 is 1e+200"),
        (spoilt({}, object), "dict"),
        (spoilt("word", object), "could not convert string to float: 'word'"),
        (ROWS.astype(str), "string"),
        (ROWS[:1], "1 sample"),
        (ROWS[0], "Reshape your data"),
        (np.zeros((9, 0)), "0 feature(s)"),
        (np.ones((9, 3)), "all values are 1, wanted columns that vary"),
        ([[1, 2], [3]], "example 1 has shape (1,), example 0 (2,)"),
        ([np.zeros((3, 3)), np.zeros((3, 4))], "example 1 has shape (3, 4)"),
        ((b for b in [ROWS[:3], ROWS[:3, :2]]), "(2,) and (3,)"),
        ((b for b in []), "no batch"),
        (1j * ROWS, "omplex"),
        (IMAGES[:1], "1 sample"),
    ],
)
def test_hostile_input_is_refused_in_one_line(x, words):
    with pytest.raises((TypeError, ValueError)) as error:
        VHP(**TINY).fit(x)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_importing_the_package_leaves_scikit_learn_alone():
    code = "import sys, vhp_jax; print('sklearn' in sys.modules); vhp_jax.VHP;"
    code += "print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
    import vhp_jax

    assert "VHP" in vhp_jax.__all__
    with pytest.raises(AttributeError, match="no attribute 'VPH'"):
        _ = vhp_jax.VPH
