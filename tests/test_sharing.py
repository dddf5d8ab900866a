"""Exports: the same bits back, functions that run elsewhere, damage in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from two_steps import TWO_STEPS

from experiments import build, cli
from vhp_jax import networks, priors, sharing
from vhp_jax.data import Dataset, Split, Standardisation
from vhp_jax.model import VAE
from vhp_jax.sharing import ExportError

SHAPE = (4, 4, 1)


def normal(features, **arguments):
    return networks.NormalMLP((6,), features, **arguments)


def gaussian_with(prior):
    decoder = networks.GaussianDecoder((6,), 16, "looks_linear", scale_init=0.5)
    return VAE(networks.Flat(normal(2, scale_init=0.1)), decoder, prior)


def gaussian():
    return gaussian_with(
        priors.HierarchicalPrior(normal(3), normal(2, head_scale=0.5), 2, 3)
    )


def gated():
    encoder = networks.Flat(normal(2, gated=True, log_scale_range=(-3.0, 1.0)))
    prior = priors.VampPrior(encoder, 2, SHAPE, 5, None)
    return VAE(encoder, networks.BernoulliDecoder((6,), 16), prior)


def convolutional():
    encoder = networks.GatedConvEncoder(2, ((3, 3, 2), (2, 3, 1)))
    decoder = networks.GatedConvDecoder(SHAPE, (3,))
    return VAE(encoder, decoder, priors.StandardNormal(2))


def strided():
    layers = ((3, 3, 2), (2, 3, 1))
    encoder = networks.ConvEncoder(2, layers, dense=5)
    decoder = networks.ConvDecoder(SHAPE, layers, dense=5)
    return VAE(encoder, decoder, priors.StandardNormal(2))


def mixture():
    return gaussian_with(priors.MixturePrior(2, 5))


MODELS = {
    "gaussian": gaussian,
    "gated": gated,
    "convolutional": convolutional,
    "strided": strided,
    "mixture": mixture,
}


def shared(name="gaussian", standardised=True):
    model = MODELS[name]()
    generator = np.random.default_rng(0)
    units = Standardisation(
        generator.normal(size=SHAPE), generator.uniform(0.5, 2.0, SHAPE)
    )
    return sharing.SharedModel(
        model,
        jax.tree.map(np.asarray, model.init(jax.random.key(0), SHAPE)),
        SHAPE,
        units if standardised else None,
        {"seed": 1, "nested": {"widths": [6]}},
        {"kappa": 0.02, "steps": 7, "seed": 1},
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return sharing.write(shared(), tmp_path_factory.mktemp("export") / "model")


# --- What is written is what is read -------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_described_whole(name):
    model = MODELS[name]()
    described = json.loads(json.dumps(sharing.describe(model)))
    rebuilt = sharing.rebuild(described)
    assert rebuilt == model
    assert hash(rebuilt) == hash(model)


EXAMPLE_SHAPES = {"pendulum": (16, 16), "cmu_mocap": (50,), "custom": (7,)}
EXAMPLE_SHAPES |= dict.fromkeys(("faces", "chairs", "chairs_synthetic"), (64, 64, 1))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", cli.config_names())
def test_every_config_makes_a_model_that_can_be_exported(name, scaled):
    config = cli.load_config(name)
    shape = EXAMPLE_SHAPES.get(config.data.name, (28, 28, 1))
    split = Split(np.zeros((2, *shape), np.float32), np.zeros(2, np.int64))
    dataset = Dataset(config.data.name, "none", "made", split, split, split)
    if scaled:
        units = Standardisation(np.zeros(shape), np.ones(shape))
        dataset = dataset._replace(standardisation=units)
    model = build.build_model(config.model, dataset)
    assert sharing.rebuild(json.loads(json.dumps(sharing.describe(model)))) == model


def test_an_export_is_read_back_bit_for_bit(export):
    wanted, found = shared(), sharing.read(export)
    assert found.model == wanted.model
    assert jax.tree.structure(found.params) == jax.tree.structure(wanted.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    for name in ("mean", "scale"):
        kept = getattr(found.standardisation, name)
        assert kept.dtype == np.float64
        np.testing.assert_array_equal(kept, getattr(wanted.standardisation, name))
    assert found.config == wanted.config
    assert found.facts == wanted.facts
    assert found.example_shape == SHAPE


def test_there_is_no_pickle_and_a_card(export):
    names = {path.name for path in export.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "decoder.jax_export",
        "encoder.jax_export",
        "model.json",
        "model.safetensors",
    }
    for path in export.iterdir():
        assert not path.read_bytes().startswith(b"\x80")
    card = (export / "README.md").read_text()
    for word in ("kappa: 0.02", "VHP.load", "export.deserialize", "HierarchicalPrior"):
        assert word in card
    assert not any("pickle" in name for name in names)


@pytest.mark.slow
def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    sharing.write(shared("convolutional"), folder)
    sharing.write(shared("gated", standardised=False), folder)
    assert sharing.read(folder).standardisation is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="something else is there"):
        sharing.write(shared(), other)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_what_was_measured_of_an_export_is_not_deleted_by_the_next(tmp_path):
    folder = sharing.write(shared(), tmp_path / "model")
    (folder / "eval").mkdir()
    (folder / "eval" / "nll.json").write_text("{}")
    with pytest.raises(ExportError, match=r"would be lost \(eval\)"):
        sharing.write(shared("mixture"), folder)
    assert (folder / "eval" / "nll.json").exists()
    assert sharing.read(folder).model == shared().model


@pytest.mark.parametrize("failing", [1, 2])
def test_an_export_stays_if_the_next_cannot_take_its_place(
    failing, tmp_path, monkeypatch
):
    folder = sharing.write(shared(), tmp_path / "model")
    rename, calls = Path.rename, []

    def interrupted(path, target):
        calls.append(path)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sharing.write(shared("mixture"), folder)
    assert sharing.read(folder).model == shared().model
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_parameters_that_are_not_finite_are_not_written(tmp_path):
    broken = shared()
    broken.params.decoder["params"]["log_scale"] = np.float32(np.nan)
    with pytest.raises(ExportError, match=r"decoder/params/log_scale is not finite"):
        sharing.write(broken, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_network_of_elsewhere_is_refused():
    import flax.linen as nn

    with pytest.raises(ExportError, match="a network of class Dense"):
        sharing.describe(VAE(nn.Dense(2), nn.Dense(16), priors.StandardNormal(2)))


# --- Damage --------------------------------------------------------------------------


def damaged(export, tmp_path):
    return shutil.copytree(export, tmp_path / "copy")


def message(folder):
    with pytest.raises(ExportError) as error:
        sharing.read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [sharing.WEIGHTS, sharing.MODEL, sharing.CONFIG])
def test_files_that_are_cut_or_gone_are_named(name, export, tmp_path):
    folder = damaged(export, tmp_path)
    whole = (folder / name).read_bytes()
    for length in (0, 5, len(whole) // 2):
        (folder / name).write_bytes(whole[:length])
        assert name in message(folder)
        assert "damaged" in message(folder)
    (folder / name).unlink()
    assert "No such file" in message(folder)


@pytest.mark.parametrize("name", [sharing.WEIGHTS, sharing.ENCODER, sharing.DECODER])
def test_a_flipped_bit_is_noticed(name, export, tmp_path):
    folder = damaged(export, tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    assert f"{name}: changed since it was written" in message(folder)


KERNEL = "decoder/params/MLP_0/Dense_0/kernel"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {KERNEL: t[KERNEL].T.copy()}, f"{KERNEL} is float32 [6, 2], "),
        (
            lambda t: t | {KERNEL: t[KERNEL].astype(np.float64)},
            f"{KERNEL} is float64 [2, 6], wanted float32 [2, 6]",
        ),
        (lambda t: {k: v for k, v in t.items() if k != KERNEL}, f"{KERNEL} is missing"),
        (lambda t: t | {"more": np.ones(2)}, "more belongs to no network"),
        (lambda t: t | {KERNEL: t[KERNEL] * np.inf}, f"{KERNEL} is not finite"),
        (
            lambda t: t | {"statistics/x_mean": np.ones(3)},
            "statistics/x_mean has shape [3], wanted [4, 4, 1]",
        ),
    ],
)
def test_a_changed_shape_is_named(change, words, export, tmp_path):
    folder = damaged(export, tmp_path)
    tensors = safetensors.numpy.load_file(folder / sharing.WEIGHTS)
    with np.errstate(invalid="ignore"):
        safetensors.numpy.save_file(change(tensors), folder / sharing.WEIGHTS)
    assert words in message(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "vhp_jax model 9"}, "format 'vhp_jax model 9', wanted"),
        ({"networks": {"class": "Popen", "args": ["sh"]}}, "not the networks"),
        ({"networks": {"class": "VAE"}}, "not the networks"),
        ({"example_shape": "large"}, "not the networks"),
        ({"facts": None}, "not the networks"),
    ],
)
def test_a_description_that_is_wrong_is_refused(change, words, export, tmp_path):
    folder = damaged(export, tmp_path)
    described = json.loads((folder / sharing.MODEL).read_text())
    (folder / sharing.MODEL).write_text(json.dumps(described | change))
    assert words in message(folder)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    assert not sharing.is_export(tmp_path)
    assert message(tmp_path).startswith(f"{tmp_path / 'model.json'}: cannot be read")


# --- Elsewhere -----------------------------------------------------------------------

ELSEWHERE = """
import sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vhp_jax", "flax", "optax"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Block())
import numpy as np
from jax import export

for folder in map(Path, sys.argv[1:]):
    encoder, decoder = (
        export.deserialize(bytearray((folder / f"{name}.jax_export").read_bytes()))
        for name in ("encoder", "decoder")
    )
    assert encoder.platforms == ("cpu", "cuda", "tpu")
    x = np.load(folder.parent / "x.npy")
    mean, scale = encoder.call(x)
    np.savez(folder / "out.npz", mean=mean, scale=scale, decoded=decoder.call(mean))
    one, _ = encoder.call(x[:1])
    assert one.shape == (1, 2)
try:
    import vhp_jax
except ImportError:
    print("alone")
"""


@pytest.mark.slow
def test_the_functions_run_without_this_package_and_flax(tmp_path):
    models = {name: shared(name) for name in ("gaussian", "gated", "convolutional")}
    for name, wanted in models.items():
        sharing.write(wanted, tmp_path / name)
    x = np.random.default_rng(1).normal(size=(5, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", ELSEWHERE, *models]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr
    for name, wanted in models.items():
        units = wanted.standardisation
        scaled = ((x - units.mean) / units.scale).astype(np.float32)
        q_z = wanted.model.encode(wanted.params, jnp.asarray(scaled))
        decoded = wanted.model.reconstruct(wanted.params, q_z.mean)
        decoded = np.asarray(decoded).reshape(5, *SHAPE) * units.scale + units.mean
        expected = {"mean": q_z.mean, "scale": q_z.scale, "decoded": decoded}
        with np.load(tmp_path / name / "out.npz") as found:
            for key, value in expected.items():
                np.testing.assert_allclose(
                    found[key], value, rtol=1e-6, atol=1e-6, err_msg=f"{name}, {key}"
                )


# --- Runs ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.optax
def test_a_run_is_exported_read_and_evaluated(tmp_path):
    from experiments import cli, runs, trainer
    from vhp_jax import VHP

    tiny = TWO_STEPS | {
        "data.num_train": "32",
        "data.num_validation": "16",
        "data.num_test": "16",
        "beta.kappa": "0.5",
    }
    config = cli.load_config("pendulum", list(tiny.items()))
    trainer.train(config, tmp_path / "run")

    def command(name, *words):
        code, said, errors = forked.run(f"experiments.{name}", *words)
        return code, errors.strip(), said

    folder = tmp_path / "exported"
    where = f"--workdir={folder}"
    code, error, said = command(
        "export", f"--workdir={tmp_path / 'run'}", f"--output={folder}"
    )
    assert (code, error) == (0, ""), error
    assert f"wrote {folder}" in said

    trained, found = runs.restore(tmp_path / "run"), runs.restore(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, trained.params)
    assert found.step == 2
    x = trained.run.experiment.dataset.test.examples
    loaded = VHP.load(folder)
    assert (loaded.likelihood_, loaded.kappa_) == ("gaussian", 0.5)
    q_z = trained.run.experiment.model.encode(trained.params, jnp.asarray(x))
    np.testing.assert_allclose(loaded.transform(x), q_z.mean, rtol=1e-5, atol=1e-6)

    metrics = "--metrics=rate_distortion"
    of_run = command("evaluate", f"--workdir={tmp_path / 'run'}", metrics)
    of_export = command("evaluate", where, metrics)
    assert of_run[:2] == of_export[:2] == (0, "")
    values = [
        json.loads((path / "eval" / "rate_distortion.json").read_text())["value"]
        for path in (tmp_path / "run", folder)
    ]
    assert values[0] == values[1]

    (folder / sharing.WEIGHTS).write_bytes(b"cut")
    code, error, _ = command("sample", where)
    assert (code, error.count("\n")) == (1, 0)
    assert "model.safetensors: damaged" in error
    loaded.save(tmp_path / "saved")
    code, error, _ = command("sample", f"--workdir={tmp_path / 'saved'}")
    assert code == 1
    assert "VHP.load reads it" in error


@pytest.mark.slow
@pytest.mark.optax
def test_an_exported_run_takes_rows_in_their_own_units(tmp_path):
    """And its card has what was measured of these parameters, no others."""
    from experiments import files, runs, trainer
    from vhp_jax import VHP

    rows = np.random.default_rng(0).normal(
        [5.0, -300.0, 0.0], [0.1, 40.0, 1.0], (60, 3)
    )
    np.save(tmp_path / "rows.npy", rows)
    tiny = TWO_STEPS | {
        "data.path": str(tmp_path / "rows.npy"),
        "beta.kappa": "5",
    }
    run = tmp_path / "run"
    trainer.train(cli.load_config("custom", list(tiny.items())), run)
    for name, step in (("ols", 1), ("nll", 2)):
        measured = {"value": 1.5, "step": step, "num_examples": 6, "split": "test"}
        files.write_json(run / "eval" / f"{name}.json", measured)
    words = f"--workdir={run}", f"--output={tmp_path / 'exported'}"
    code, _, errors = forked.run("experiments.export", *words)
    assert (code, errors) == (0, "")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "nll: 1.5 (6 examples of the test split)" in card
    assert "ols" not in card
    restored, loaded = runs.restore(run), VHP.load(tmp_path / "exported")
    scaled = restored.run.experiment.dataset.standardisation.apply(rows)
    q_z = restored.run.experiment.model.encode(restored.params, jnp.asarray(scaled))
    np.testing.assert_allclose(loaded.transform(rows), q_z.mean, rtol=1e-5, atol=1e-6)
    decoded = loaded.inverse_transform(np.zeros((1, 2), np.float32))
    assert (np.abs(decoded - rows.mean(axis=0)) < 3.0 * rows.std(axis=0)).all()
    assert runs.restore(tmp_path / "exported").step == 2
