"""Image configs on a tiny static MNIST: what they train, keep, stop and evaluate."""

import json
import shutil
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_architecture import OF_RIVALS, Spy
from test_experiments import command

from experiments import build, cli, figures, metrics, run_files, runs, tables, trainer
from vhp_jax import distributions, evaluation, priors, training
from vhp_jax.checkpoints import Checkpointer, CheckpointError
from vhp_jax.data import static_mnist
from vhp_jax.data.base import DataError, Dataset, Split, Standardisation

pytestmark = pytest.mark.optax

TINY = {
    "data.verify": "false",
    "model.prior_hidden": "6",
    "model.latent_dim": "3",
    "model.inner_dim": "2",
    "model.num_pseudo_inputs": "5",
    "objective.num_samples": "2",
    "beta.kappa": "0.6",  # reached at once
    "train.num_steps": "6",
    "train.batch_size": "4",
    "train.log_every": "1",
    "train.eval_every": "2",
    "train.checkpoint_every": "2",
    "graph.num_nodes": "12",
    "graph.num_neighbours": "11",
}
MLP = {"model.hidden": "8"}


def tiny(name: str = "static_mnist_mlp", **overrides: str):
    """An image config of a few steps."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    network = MLP if name == "static_mnist_mlp" else {}
    return cli.load_config(name, list((TINY | network | dotted).items()))


@pytest.fixture(autouse=True)
def tiny_files(tmp_path, monkeypatch):
    """Files of 12, 6 and 8 images where VHP_DATA_DIR says, in the published format."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "static_mnist"
    folder.mkdir(parents=True)
    wanted = {}
    for (split, file), count in zip(
        static_mnist.FILES.items(), (12, 6, 8), strict=True
    ):
        images = generator.integers(0, 2, (count, 28, 28)).astype(np.uint8)
        (folder / file.name).write_bytes(static_mnist.encode(images))
        wanted[split] = file._replace(num_images=count)
    monkeypatch.setattr(static_mnist, "FILES", wanted)
    monkeypatch.setenv(build.DATA_DIR, str(tmp_path / "data"))


def lines_of(workdir: Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def bounds(workdir: Path) -> dict[int, float]:
    """Validation bound of each step."""
    found = [line for line in lines_of(workdir) if "split" in line]
    return {line["step"]: -line["distortion"] - line["rate"] for line in found}


# --- What a config builds ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", tables.MLP_METHODS)
def test_every_method_of_table_2_moves_all_its_parameters(name):
    """In its main phase, towards finite values, with a likelihood at the end."""
    overrides = {k.replace(".", "__"): v for k, v in tables.MLP_METHODS[name].items()}
    run = runs.Run(tiny(**overrides | {"objective__num_samples": "2"}))
    state, data = run.initial_state(), run.experiment.dataset
    before = jax.tree.map(np.asarray, state.params)
    state, seen = run.train_loop()(state, jnp.asarray(data.train.examples), num_steps=2)
    chex.assert_tree_all_finite((state.params, seen))
    assert not seen.initial_phase.any()
    moved = jax.tree.map(
        lambda new, old: not np.array_equal(new, old), state.params, before
    )
    assert all(jax.tree.leaves(moved)), moved
    found = evaluation.log_likelihood(
        run.experiment.model, state.params, jax.random.key(0), data.test.examples, 8
    )
    assert (found.log_likelihood < 0.0).all()


@pytest.mark.slow
def test_units_are_dropped_in_training():
    """The same first parameters and draws, with and without dropout."""
    found = {}
    for share in ("0.0", "0.5"):
        run = runs.Run(tiny(model__dropout=share))
        examples = jnp.asarray(run.experiment.dataset.train.examples)
        _, found[share] = run.train_loop()(run.initial_state(), examples, num_steps=1)
    assert found["0.0"].distortion != found["0.5"].distortion
    np.testing.assert_allclose(found["0.0"].rate, found["0.5"].rate, rtol=1e-5)


@pytest.mark.slow
def test_units_are_dropped_in_no_measurement(tmp_path):
    """Where training moves nothing, validation and metrics do not know of dropout."""
    found = {}
    for share in ("0.0", "0.5"):
        still = {f"train__{half}learning_rate": "1e-30" for half in ("", "prior_")}
        config = tiny(model__dropout=share, train__weight_decay="0.0", **still)
        workdir = tmp_path / share
        trainer.train(config, workdir)
        opened = runs.restore(workdir)
        setting = metrics.Setting(
            *(opened.run, opened.params, opened.step),
            *(opened.run.experiment.dataset.test, "test", workdir / "eval"),
            num_samples=16,
        )
        measured = [
            metrics.measure(name, setting)["value"]
            for name in ("rate_distortion", "nll")
        ]
        found[share] = bounds(workdir), measured
        assert len(bounds(workdir)) == 3
    assert found["0.0"] == found["0.5"]


@pytest.mark.slow
def test_a_run_is_trained_measured_and_drawn(tmp_path):
    draw = figures.training_figures
    assert trainer.train(tiny(), tmp_path, draw=draw)["completed"]
    run, _, params, step = runs.restore(tmp_path)
    test = run.experiment.dataset.test
    setting = metrics.Setting(
        run, params, step, test, "test", tmp_path / "eval", num_samples=8
    )
    for name in ("nll", "rate_distortion", "active_units"):
        assert metrics.measure(name, setting)["num_examples"] == 8
    for figure in ("history", "samples", "reconstructions"):
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 1000
    interpolation = figures.Interpolation(run, params, figures.default_pairs(run), 0)
    assert interpolation.frames[0].shape[1:] == (28, 28)


@pytest.mark.slow
@pytest.mark.parametrize("strides", ["1,2,1,2,1", "1,2,1,1,1"])
def test_the_gated_convolutions_train_in_both_versions_of_table_3(strides, tmp_path):
    config = tiny("static_mnist", model__strides=strides, train__num_steps="2")
    assert trainer.train(config, tmp_path)["completed"]
    params = runs.restore(tmp_path).params.encoder
    rows = {"1,2,1,2,1": 6 * 7 * 7, "1,2,1,1,1": 6 * 14 * 14}[strides]
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert (rows, 2 * 3) in shapes


def test_strides_are_as_many_as_the_layers():
    with pytest.raises(cli.UserError, match=r"model\.strides wants 5 numbers"):
        build.build(tiny("static_mnist", model__strides="1,2"))


def test_pseudo_inputs_start_from_the_mean_of_the_training_set():
    config = tiny(model__prior="vamp", model__num_pseudo_inputs="40")
    experiment = build.build(config)
    drawn = experiment.init_params(jax.random.key(0)).prior["pseudo_inputs"]
    assert isinstance(experiment.model.prior, priors.VampPrior)
    chex.assert_shape(drawn, (40, 28, 28, 1))
    # Standard error: 0.03 * 0.5 / sqrt(40 * 784) = 8e-5.
    wanted = experiment.dataset.train.examples.mean()
    np.testing.assert_allclose(drawn.mean(), wanted, atol=4e-4)


def test_pseudo_inputs_are_limited_where_the_data_are():
    config = tiny(model__prior="vamp")
    dataset = build.build(config).dataset
    assert build.build(config, dataset).model.prior.bounds == (0.0, 1.0)
    moved = dataset._replace(standardisation=Standardisation(np.zeros(1), np.ones(1)))
    assert build.build(config, moved).model.prior.bounds is None


def test_training_images_are_drawn_only_where_the_data_set_is_dynamic():
    config = tiny()
    assert build.build(config).draw_batch is None
    grey = Split(np.full((4, 28, 28, 1), 0.5, np.float32), np.zeros(4, np.int64))
    dynamic = Dataset("grey", "label", "made", grey, grey, grey, dynamic=True)
    assert build.build(config, dynamic).draw_batch is distributions.draw_binary
    assert build.build(config, dynamic._replace(dynamic=False)).draw_batch is None


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["vhp", "vamp"])
def test_weights_decay_and_nothing_else_does(prior):
    """At a gradient of zero AdamW moves weights by -lr * wd * w and leaves the rest."""
    config = tiny(
        model__prior=prior,
        train__learning_rate="0.5",
        train__weight_decay="0.1",
        train__prior_learning_rate="0.25",
        train__prior_weight_decay="0.3",
    )
    experiment = build.build(config)
    params = experiment.init_params(jax.random.key(0))
    halves = {
        "vae": (params.encoder, params.decoder),
        "prior": params.prior,
    }
    for name, half in halves.items():
        optimizer = getattr(experiment.optimizers, name)
        zeros = jax.tree.map(jnp.zeros_like, half)
        updates, _ = optimizer.update(zeros, optimizer.init(half), half)
        pace = {"vae": 0.5 * 0.1, "prior": 0.25 * 0.3}[name]
        for (path, update), value in zip(
            jax.tree_util.tree_leaves_with_path(updates),
            jax.tree.leaves(half),
            strict=True,
        ):
            is_weight = jax.tree_util.keystr(path).endswith("['kernel']")
            wanted = -pace * value if is_weight else 0.0 * value
            np.testing.assert_allclose(update, wanted, rtol=1e-6, atol=1e-9)


# --- Early stopping and the best parameters ------------------------------------------


STILL = {  # no validation is better than the first
    "train__learning_rate": "1e-30",
    "train__prior_learning_rate": "1e-30",
    "train__weight_decay": "0.0",
}


@pytest.mark.slow
def test_a_run_stops_when_patience_is_out_and_keeps_the_best(tmp_path):
    """At a learning rate of nearly zero no validation is better than the first."""
    config = tiny(
        **STILL,
        train__num_steps="20",
        train__patience="3",
    )
    summary = trainer.train(config, tmp_path)
    assert (summary["completed"], summary["step"]) == (True, 8)
    assert summary["best_step"] == runs.restore(tmp_path).step == 2
    assert list(bounds(tmp_path)) == [2, 4, 6, 8]


@pytest.mark.slow
def test_what_is_evaluated_is_the_best_average_not_the_newest(tmp_path):
    """A learning rate that ruins the networks: the first validation stays the best."""
    config = tiny(train__learning_rate="1.0", train__patience="10")
    trainer.train(config, tmp_path)
    found = bounds(tmp_path)
    best = max(found, key=found.get)
    restored = runs.restore(tmp_path)
    assert best == restored.step < 6
    assert int(restored.state.step) == 6
    key = jax.random.fold_in(jax.random.key(1), 1_000_000)
    measured = evaluation.rate_distortion(
        restored.run.experiment.objective,
        restored.params,
        key,
        restored.run.experiment.dataset.validation.examples,
    )
    assert -measured.distortion - measured.rate == pytest.approx(found[best], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(6,), (4, 6), (2, 4, 6)])
def test_a_resumed_run_has_the_best_of_an_uninterrupted_one(lost, tmp_path):
    """Whichever checkpoints are lost: best/ may then be ahead of what is resumed."""
    config = tiny(train__patience="10")
    trainer.train(config, tmp_path / "whole")
    trainer.train(config, tmp_path / "cut")
    for step in lost:
        folder = tmp_path / "cut" / "checkpoints" / str(step)
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
    (tmp_path / "cut" / "summary.json").unlink()
    trainer.train(config, tmp_path / "cut")
    whole, cut = (runs.restore(tmp_path / name) for name in ("whole", "cut"))
    assert cut.step == whole.step
    chex.assert_trees_all_equal(cut.params, whole.params)
    assert bounds(tmp_path / "cut") == bounds(tmp_path / "whole")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.slow
def test_a_kill_before_the_best_is_written_loses_nothing(tmp_path, monkeypatch):
    config = tiny(train__patience="10")
    trainer.train(config, tmp_path / "whole")
    original = Checkpointer.save

    def save(self, step, state):
        if self._directory.name == run_files.BEST and step == 2:  # the best of this run
            raise Killed
        original(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save)
        with pytest.raises(Killed):
            trainer.train(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / run_files.BEST).exists()
    trainer.train(config, tmp_path / "cut")
    whole, cut = (runs.restore(tmp_path / name) for name in ("whole", "cut"))
    assert cut.step == whole.step == 2
    chex.assert_trees_all_equal(cut.params, whole.params)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vhp_jax.checkpoints.CheckpointWarning")
def test_best_parameters_that_are_damaged_are_said_and_sought_anew(tmp_path, capsys):
    config = tiny(train__patience="10")
    trainer.train(config, tmp_path)
    assert runs.restore(tmp_path).step == 2
    manifest = tmp_path / run_files.BEST / "2" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(CheckpointError, match="best"):
        runs.restore(tmp_path)
    for step in ("4", "6"):
        shutil.rmtree(tmp_path / "checkpoints" / step)
    (tmp_path / "summary.json").unlink()
    trainer.train(config, tmp_path)
    assert "best: no whole parameters of step 2" in capsys.readouterr().out
    assert runs.restore(tmp_path).step in (4, 6)
    shutil.rmtree(tmp_path / run_files.BEST)
    with pytest.raises(cli.UserError, match="best is missing"):
        runs.restore(tmp_path)


@pytest.mark.slow
def test_patience_waits_for_the_end_of_a_warm_up(tmp_path):
    """12 images in batches of 4: two epochs are 6 steps."""
    config = tiny(
        beta__scheme="warm_up",
        beta__warm_up_epochs="2",
        **STILL,
        train__num_steps="20",
        train__patience="1",
    )
    summary = trainer.train(config, tmp_path)
    assert (summary["step"], summary["best_step"]) == (8, 2)


@pytest.mark.slow
def test_patience_waits_for_the_end_of_the_initial_phase(tmp_path):
    """kappa is out of reach: no step of a prior is taken, and none is waited for."""
    config = tiny(
        beta__kappa="1e-3",
        **STILL,
        train__num_steps="12",
        train__patience="1",
    )
    summary = trainer.train(config, tmp_path)
    assert (summary["step"], summary["best_step"]) == (12, 2)


def test_patience_is_for_one_seed():
    with pytest.raises(cli.UserError, match=r"num_seeds must be 1, got 2"):
        build.build(tiny(num_seeds="2", train__patience="1"))


# --- The keys of the configs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value", "wanted"),
    [
        ("static_mnist", "model.network", "gated_mlp", "wants config.model.hidden"),
        ("static_mnist", "model.network", "relu_mlp", "wants config.model.hidden"),
        ("pendulum", "model.network", "gated_mlp", "wants config.model.prior_hidden"),
        ("static_mnist_mlp", "model.network", "gated_conv", "config.model.strides"),
        ("static_mnist_mlp", "data.name", "pendulum", "has no config.data.dir"),
        ("pendulum", "data.name", "mnist", "has no config.data.amplitude"),
        ("static_mnist_mlp", "model.log_scale_range", "1.0", "wants LOW,HIGH"),
        ("static_mnist_mlp", "model.log_scale_range", "1.0,-3.0", "wants LOW,HIGH"),
        ("static_mnist_mlp", "train.average_decay", "1.0", r"in \[0, 1\), got 1.0"),
        ("static_mnist_mlp", "train.weight_decay", "-1", ">= 0, got -1.0"),
        ("static_mnist_mlp", "train.prior_weight_decay", "inf", ">= 0, got inf"),
        ("static_mnist_mlp", "train.patience", "-1", ">= 0, got -1"),
        ("static_mnist_mlp", "train.milestones", "9,3", r"from 1, got \[9, 3\]"),
        ("static_mnist_mlp", "train.milestones", "0,3", r"from 1, got \[0, 3\]"),
        ("static_mnist_mlp", "model.dropout", "1", r"in \[0, 1\), got 1.0"),
        ("static_mnist_mlp", "train.milestone_factor", "1", "0 and 1, got 1.0"),
        ("static_mnist_mlp", "model.num_pseudo_inputs", "0", "positive, got 0"),
        ("static_mnist_mlp", "model.num_components", "0", "positive, got 0"),
    ],
)
def test_what_does_not_fit_a_config_is_one_line(name, key, value, wanted):
    with pytest.raises(cli.UserError, match=wanted):
        build.build(cli.load_config(name, [(key, value)]))


OTHERS = ("pendulum", "cmu", "custom", "freyfaces")
IMAGE_CONFIGS = [n for n in cli.config_names() if not n.startswith(OTHERS)]


@pytest.mark.parametrize("name", IMAGE_CONFIGS)
def test_every_image_config_builds_as_it_stands(name):
    config = cli.load_config(name)
    side = 64 if config.model.network == "conv" else 28
    examples = np.zeros((200, side, side, 1), np.float32)
    images = Split(examples, np.zeros(200, np.int64))
    dataset = Dataset("made", "label", "made", images, images, images, dynamic=True)
    experiment = build.build(config, dataset)
    params = jax.eval_shape(experiment.init_params, jax.random.key(0))
    wanted = {"static_mnist_mlp": 40}.get(name, 32)
    z = jax.ShapeDtypeStruct((7, wanted), jnp.float32)
    decoded = jax.eval_shape(experiment.model.decode, params, z)
    assert decoded.logits.shape == (7, side**2)
    assert experiment.model.latent_dim == wanted
    kappa = {"fashion_mnist": 0.31}.get(name, 0.18 if side == 28 else 0.2)
    assert (config.beta.kappa, config.beta.nu) == (kappa, 1.0)
    small_iwae = name.endswith("_small_iwae")  # each sample is a decoded image
    assert config.objective.num_samples == (4 if small_iwae else 16)


@pytest.mark.parametrize("name", tables.METHODS)
def test_the_state_of_a_row_of_table_2_is_below_16_mib(name):
    """So that checkpoints are quick to copy between machines."""
    row = next(row for row in tables.TABLE2.rows if row.name == name)
    config = row.resolved(1)
    config.data.verify = False
    state = jax.eval_shape(runs.Run(config).initial_state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size < 16 * 2**20


def test_where_to_name_a_data_directory_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(build.DATA_DIR)

    def refuse(*_):
        raise DataError("no cache")

    monkeypatch.setattr(static_mnist, "_from_tfds", refuse)
    wanted = r"no cache \(--config.data.dir=DIR or VHP_DATA_DIR\)"
    with pytest.raises(DataError, match=wanted):
        build.build(tiny())
    with pytest.raises(DataError, match=f"no data directory {tmp_path}/none") as info:
        build.build(tiny(data__dir=str(tmp_path / "none")))
    assert "VHP_DATA_DIR" not in str(info.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["static_mnist", "static_mnist_mlp"])
def test_every_key_of_an_image_config_is_read(name, tmp_path):
    config, seen = tiny(name, train__num_steps="2"), set()
    spy = Spy(config, seen)
    trainer.train(spy, tmp_path)
    run = runs.Run(spy)
    params = run.initial_state().params
    figures.Interpolation(run, params, figures.default_pairs(run), seed=0)
    # Without targets there are no ends to seek.
    unread = OF_RIVALS | {"graph.start_targets", "graph.end_targets"}
    assert {key for key, _ in cli.flatten(config)} - seen <= unread


@pytest.mark.parametrize("stream", ["false", "true"])
def test_training_sees_fresh_binary_images_of_grey_ones(stream, monkeypatch):
    """Through `Run.train_loop`, resident and streamed."""
    grey = Split(np.full((12, 28, 28, 1), 0.5, np.float32), np.zeros(12, np.int64))
    dataset = Dataset("grey", "label", "made", grey, grey, grey, dynamic=True)
    config = tiny(train__stream_data=stream)
    run = runs.Run(config, build.build(config, dataset))

    def make_spy(*_):
        def step(state, key, x):
            zero = jnp.float32(0.0)
            binary = jnp.all((x == 0.0) | (x == 1.0))
            loss = jnp.sum(x.reshape(-1) * jnp.arange(1.0, 1.0 + x.size))
            seen = training.StepMetrics(loss, zero, zero, zero, zero, binary)
            return state.replace(step=state.step + 1), seen

        return step

    monkeypatch.setattr(training, "make_train_step", make_spy)
    data = grey.examples if stream == "true" else jnp.asarray(grey.examples)
    _, seen = run.train_loop()(run.initial_state(), data, num_steps=3)
    assert seen.initial_phase.all()
    assert len(set(seen.loss.tolist())) == 3


def test_help_lists_the_keys_of_the_config():
    done = command("train", "--config=dynamic_mnist", "--help")
    assert done.code == 0
    for key in (
        "data.dir=",
        "data.values=dynamic",
        "model.strides=",
        "train.patience=",
        "train.milestones=",
    ):
        assert f"--config.{key}" in done.out


# --- Likelihoods in parts ------------------------------------------------------------


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """An untrained model, 8 test images in parts of 3."""
    monkeypatch.setattr(metrics, "NLL_PART", 3)
    run = runs.Run(tiny())
    params = run.initial_state().params
    test = run.experiment.dataset.test
    folder = tmp_path / "eval"
    return metrics.Setting(run, params, 0, test, "test", folder, num_samples=16)


def per_example(setting) -> np.ndarray:
    with np.load(setting.folder / "nll.npz") as arrays:
        return arrays["log_likelihood"]


def interrupted(setting, monkeypatch, after: int) -> None:
    """Kills the measure after so many parts."""
    original, calls = evaluation.log_likelihood, []

    def stop(*args, **options):
        calls.append(None)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "log_likelihood", stop)
        with pytest.raises(KeyboardInterrupt):
            metrics.measure("nll", setting)


@pytest.mark.slow
def test_examples_without_a_likelihood_are_counted_and_said(setting, capsys):
    examples = setting.split.examples.copy()
    examples[4] = -3e38  # no image: a float32 overflows on the way
    setting = setting._replace(split=setting.split._replace(examples=examples))
    result = metrics.measure("nll", setting)
    assert "nll: 1 examples, first 4, have no likelihood" in capsys.readouterr().out
    assert (result["value"], result["stderr"]) == (np.inf, None)
    assert result["examples_without_likelihood"] == 1
    assert np.isfinite(result["mean_effective_sample_size"])
    assert result["pareto_k_share_above_0.7"] > 0.0
    written = json.loads((setting.folder / "nll.json").read_text())
    assert written["value"] is None


@pytest.mark.slow
def test_a_killed_likelihood_goes_on_to_the_same_numbers(
    setting, tmp_path, monkeypatch
):
    other = setting._replace(folder=tmp_path / "other")
    whole = metrics.measure("nll", setting)
    interrupted(other, monkeypatch, after=2)
    seen = []
    original = evaluation.log_likelihood
    monkeypatch.setattr(
        evaluation,
        "log_likelihood",
        lambda *args, **options: (
            seen.append(options["first"]) or original(*args, **options)
        ),
    )
    again = metrics.measure("nll", other)
    assert seen == [6]  # the third part alone
    np.testing.assert_array_equal(per_example(other), per_example(setting))
    assert again["value"] == whole["value"]
    assert again["seconds"] > 0.0
    assert not list(other.folder.glob("*.partial.npz"))


CHANGES = ["file"]
CHANGES += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("params", "num_samples", "seed", "examples")
]


@pytest.mark.parametrize("change", CHANGES)
def test_parts_of_another_measure_are_not_mixed_in(setting, change, monkeypatch):
    interrupted(setting, monkeypatch, after=1)
    partial = setting.folder / "nll.partial.npz"
    if change == "params":
        params = jax.tree.map(lambda leaf: 1.1 * leaf, setting.params)
        setting = setting._replace(params=params)
    elif change == "examples":
        split = setting.split._replace(examples=1.0 - setting.split.examples)
        setting = setting._replace(split=split)
    elif change == "file":
        partial.write_bytes(partial.read_bytes()[:100])
    else:
        setting = setting._replace(**{change: 7})
    metrics.measure("nll", setting)
    found = per_example(setting)
    fresh = setting._replace(folder=setting.folder / "fresh")
    metrics.measure("nll", fresh)
    np.testing.assert_array_equal(found, per_example(fresh))


def test_a_deadline_keeps_what_is_done(setting):
    late = setting._replace(deadline=time.monotonic())
    with pytest.raises(metrics.OutOfTimeError, match="0 of 8 examples are done"):
        metrics.measure("nll", late)
    assert not (setting.folder / "nll.json").exists()
    assert metrics.measure("nll", setting)["num_examples"] == 8
