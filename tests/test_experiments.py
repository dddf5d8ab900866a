"""Every config and every command on tiny data: what they write, in this process."""

import contextlib
import functools
import importlib
import io
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import ConfigDict

import experiments
from experiments import (
    build,
    cli,
    figures,
    files,
    metrics,
    provenance,
    run_files,
    runs,
    tables,
    trainer,
)
from vhp_jax.checkpoints import CheckpointError
from vhp_jax.data import DataError

pytestmark = pytest.mark.optax
DRAW = figures.training_figures

TINY = {
    "data.num_train": "32",
    "data.num_validation": "16",
    "data.num_test": "16",
    "model.hidden": "8",
    "model.initialisation": "he",
    "model.start": "random",
    "objective.num_samples": "2",
    "beta.kappa": "0.2",  # reached at once: a run that ends before is an error
    "train.num_steps": "4",
    "train.batch_size": "8",
    "train.log_every": "1",
    "train.eval_every": "2",
    "train.checkpoint_every": "2",
    "train.snapshot_steps": "2,4",
    "graph.num_nodes": "24",
    "graph.num_neighbours": "23",
}


def tiny(name: str = "pendulum", **overrides: str):
    """A config of a few steps; dots in keys are written as two underscores."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return cli.load_config(name, list((TINY | dotted).items()))


def arguments(**overrides: str) -> list[str]:
    """The same as words of a command line."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"--config.{key}={value}" for key, value in (TINY | dotted).items()]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def forget_commands() -> None:
    """Unloads all commands and their flags: they share names of flags."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments.") and module != cli.__name__:
            for flag in list(defined):
                if flag.name in flags.FLAGS:
                    delattr(flags.FLAGS, flag.name)
            sys.modules.pop(module, None)
            # A room of flags that several commands import: `from experiments import`.
            vars(experiments).pop(module.rpartition(".")[2], None)


def import_command(name: str):
    """experiments.NAME with its own flags only."""
    forget_commands()
    return importlib.import_module(f"experiments.{name}")


def command(name: str, *words: object) -> Done:
    """Runs a command in this process, from its command line to its exit code."""
    module = import_command(name)
    binary = cli.Command(module.__doc__, module.main, takes_config=name == "train")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            binary._guarded(binary._parse_flags([name, *map(str, words)]))
        except SystemExit as stop:
            code = stop.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def read(path: Path):
    """JSON that is JSON: NaN and Infinity are refused."""

    def refuse(name: str):
        raise AssertionError(f"{path}: {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def lines_of(workdir: Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 1000


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run to work on."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- Training ------------------------------------------------------------------------


def test_first_line_names_device_data_and_directory(finished):
    first, *rest = (finished / "stdout.txt").read_text().splitlines()
    assert first.startswith("device: 1 x cpu | data: pendulum (generated, seed 0)")
    assert first.endswith(f"work directory: {finished}")
    progress = [line for line in rest if line.startswith("step ")]
    for words in ("loss", "C_hat", "kappa^2", "beta", "main phase", "s left"):
        assert words in progress[0]


def test_a_milestone_slows_a_run_down_from_there_on():
    run = runs.Run(tiny(train__milestones="2", train__milestone_factor="0.01"))
    loop, data, paces = run.train_loop(), run.training_data(), []
    state = run.initial_state()
    for _ in range(2):
        before = jax.tree.map(jnp.copy, state.params.encoder)
        state, _ = loop(state, data, num_steps=2)
        moved = jax.tree.map(jnp.subtract, state.params.encoder, before)
        paces.append(optax.tree.norm(moved))
    assert 0.0 < paces[1] < 0.1 * paces[0]


def test_a_milestone_that_is_not_reached_changes_nothing():
    found = []
    for steps in ("", "5"):
        run = runs.Run(tiny(train__milestones=steps))
        state = run.train_loop()(run.initial_state(), run.training_data(), num_steps=4)
        found.append(state[0].params)
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-7)  # two programs


@pytest.mark.parametrize("name", ["pendulum", "static_mnist_mlp", "custom"])
def test_rivals_start_where_they_should_by_their_name_alone(name):
    """GECO and the bound itself at 1, REWO at what the config says."""
    config = cli.load_config(name, [("beta.kappa", "0.1")])
    for scheme, wanted in {
        "geco": 1.0,
        "constant": 1.0,
        "warm_up": 0.0,
        "rewo": config.beta.init,
        "rewo_alternative": config.beta.init,
    }.items():
        with config.unlocked():
            config.beta.scheme = scheme
        found = build.build_beta_scheme(config.beta, 10).init().beta
        assert found == np.float32(wanted), scheme


def test_an_older_directory_says_where_its_scheme_started(tmp_path):
    for scheme, wanted in {"geco": 0.3, "constant": 0.3, "rewo": 1.0}.items():
        older = json.loads(cli.load_config("pendulum").to_json())
        older["beta"] |= {"scheme": scheme, "init": 0.3}
        del older["beta"]["value"]
        (tmp_path / "config.json").write_text(json.dumps(older))
        assert run_files.read_config(tmp_path)["beta"]["value"] == wanted


@pytest.mark.parametrize("name", cli.config_names())
def test_an_older_directory_has_the_keys_of_its_config_and_no_others(name, tmp_path):
    config = cli.load_config(name)
    older = json.loads(config.to_json())
    for key in run_files.BEFORE:
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, older).pop(last, None)
    (tmp_path / "config.json").write_text(json.dumps(older))
    found = ConfigDict(run_files.read_config(tmp_path))
    assert dict(cli.flatten(found)).keys() == dict(cli.flatten(config)).keys()
    assert found.model.get("dropout", 0.0) == 0.0


def test_a_directory_that_is_older_than_a_key_goes_on(workdir):
    """As if the key had said what runs did before there was one."""
    config = read(workdir / "config.json")
    config["train"]["weight_decay"] = 0.25
    for key in run_files.BEFORE:
        *parents, name = key.split(".")
        del functools.reduce(dict.__getitem__, parents, config)[name]
    (workdir / "config.json").write_text(json.dumps(config))
    decay = {"train__weight_decay": "0.25", "train__prior_weight_decay": "0.25"}
    run_files.check_config(workdir, tiny(**decay))
    assert runs.restore(workdir).run.config.train.milestones == []
    with pytest.raises(cli.UserError, match=r"milestones is \[\] there and \[2\] here"):
        run_files.check_config(workdir, tiny(train__milestones="2", **decay))


def test_config_json_is_enough_to_repeat_the_run(finished):
    config = ConfigDict(read(finished / "config.json"))
    assert config.to_json() == tiny().to_json()
    again = runs.Run(config)
    restored = runs.restore(finished)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        again.initial_state().params, restored.state.params
    )
    assert restored.step == 4


TRAINING_FIELDS = {
    "step": int,
    "loss": float,
    "distortion": float,
    "rate": float,
    "constraint": float,
    "kappa_squared": float,
    "beta": float,
    "initial_phase": bool,
    "examples_per_second": float,
    "wall_seconds": float,
}


def test_metrics_have_a_line_each_interval(finished):
    lines = [line for line in lines_of(finished) if "split" not in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {key: type(value) for key, value in line.items()} == TRAINING_FIELDS
        assert line["kappa_squared"] == pytest.approx(0.2**2)
        assert line["initial_phase"] is False
        # One step a line, so the means are those of the step.
        wanted = line["distortion"] + line["beta"] * line["rate"]
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)
    seconds = [line["wall_seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_validation_lines_carry_their_split(finished):
    lines = [line for line in lines_of(finished) if "split" in line]
    assert [(line["step"], line["split"]) for line in lines] == [
        (2, "validation"),
        (4, "validation"),
    ]
    for line in lines:
        for key in ("distortion", "rate", "constraint", "ols_error"):
            assert math.isfinite(line[key])


def test_summary_is_complete_and_written_last(finished):
    summary = read(finished / "summary.json")
    assert summary["completed"] is True
    assert summary["step"] == 4
    assert summary["seed"] == 1
    assert {line["step"] for line in summary["final_metrics"]} == {4}
    assert {"split" in line for line in summary["final_metrics"]} == {False, True}
    params = runs.restore(finished).state.params
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "python"} <= set(
        summary["versions"]
    )
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["device"] == "cpu"
    assert summary["wall_seconds"] > 0 < summary["examples_per_second"]
    assert summary["git_revision"] is None or len(summary["git_revision"]) >= 40
    last = (finished / "summary.json").stat().st_mtime_ns
    others = [p for p in finished.rglob("*") if p.is_file() and p.name != "stdout.txt"]
    assert all(path.stat().st_mtime_ns <= last for path in others)


def test_figures_and_snapshots_are_there(finished):
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    wanted = {"history", "latent_space", "regression", "samples", "reconstructions"}
    assert names == wanted
    assert all(is_png(path) for path in (finished / "figures").iterdir())
    snapshots = run_files.WorkDir(finished).snapshots()
    assert list(snapshots) == [2, 4]
    assert snapshots[4]["posterior_mean"].shape == (1, 16, 2)
    assert snapshots[4]["prior_samples"].shape == (1, 16, 2)
    assert (snapshots[2]["posterior_mean"] != snapshots[4]["posterior_mean"]).all()


def test_checkpoints_are_kept_at_their_intervals(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["2", "4"]


def test_complete_run_is_not_trained_again(workdir):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    done = command("train", f"--workdir={workdir}", *arguments())
    assert done.code == 0
    assert "already complete at step 4" in done.out
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {".lock"}


def test_max_minutes_stops_with_a_checkpoint_and_exit_0(tmp_path):
    words = [f"--workdir={tmp_path}", "--max_minutes=1e-9", *arguments()]
    done = command("train", *words)
    assert (done.code, done.err) == (0, "")
    assert "stopped at step 0, checkpoint written" in done.out
    assert (tmp_path / "checkpoints" / "0").is_dir()
    assert not (tmp_path / "summary.json").exists()


def test_every_start_is_kept_with_its_commit(tmp_path, monkeypatch):
    """A run that goes on at another commit is of both; steps taken again are not."""
    config = tiny(train__num_steps="6")

    def start(revision, num_steps=math.inf):
        taken = []

        def advance(self, length, advance=trainer._Trainer._advance):
            if sum(taken) >= num_steps:
                raise KeyboardInterrupt
            taken.append(length)
            return advance(self, length)

        with monkeypatch.context() as patch:
            patch.setattr(provenance, "git_revision", lambda: revision)
            patch.setattr(trainer._Trainer, "_advance", advance)
            return trainer.train(config, tmp_path)

    for revision, num_steps in (("a", 0), ("b", 3), ("c", 1)):
        with pytest.raises(KeyboardInterrupt):
            start(revision, num_steps)
    summary = start("d")
    # "b" is killed after step 3, the checkpoint of 2 is gone on from; so is "c".
    found = [(start["step"], start["git_revision"]) for start in summary["starts"]]
    assert found == [(0, "b"), (2, "d")]
    assert summary["git_revision"] == "d"
    assert all(
        start["hardware"] == provenance.hardware() for start in summary["starts"]
    )
    # Drawing the figures anew takes no step; what began an older run is not known.
    (tmp_path / "summary.json").unlink()
    assert start("e")["starts"] == summary["starts"]
    (tmp_path / "summary.json").unlink()
    (tmp_path / "starts.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    found = [(s["step"], s["git_revision"]) for s in start("f")["starts"]]
    assert found == [(0, None), (4, "f")]


def test_a_run_that_ends_in_the_initial_phase_says_so(tmp_path, capsys):
    words = "kappa^2 = 1e-06 was not reached, the prior was not trained (seed 1, 2)"
    trainer.train(tiny(beta__kappa="1e-3", num_seeds="2"), tmp_path / "far")
    assert words in capsys.readouterr().out
    trainer.train(tiny(), tmp_path / "met")
    assert "was not reached" not in capsys.readouterr().out


def test_a_run_that_gave_up_goes_on_with_more_patience(tmp_path):
    config = tiny(beta__kappa="1e-3", beta__max_initial_steps="2")
    with pytest.raises(cli.UserError, match="not reached in 2 steps"):
        trainer.train(config, tmp_path)
    with config.unlocked():
        config.beta.max_initial_steps = 100
    assert trainer.train(config, tmp_path)["step"] == 4
    trained = [line for line in lines_of(tmp_path) if "split" not in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]


def test_small_configs_end_in_an_error_if_kappa_is_not_reached():
    for name in cli.config_names():
        if name.endswith(("_small", "_small_iwae", "_quick")):
            config = cli.load_config(name, [])
            assert config.beta.max_initial_steps <= config.train.num_steps, name


def test_overrides_keep_types():
    config = tiny(
        train__learning_rate="3e-4",
        train__snapshot_steps="(1, 2,3)",
        model__hidden="16",
        beta__scheme="geco",
        train__num_steps="7",
    )
    assert config.train.learning_rate == 3e-4
    assert config.train.snapshot_steps == (1, 2, 3)
    assert config.model.hidden == (16,)
    assert config.beta.scheme == "geco"
    assert type(config.train.num_steps) is int
    assert config.is_locked


@pytest.mark.slow
def test_no_snapshots_no_validation_still_finishes(tmp_path):
    config = tiny(
        train__snapshot_steps="", train__eval_every="4000", train__num_steps="1"
    )
    assert trainer.train(config, tmp_path, draw=DRAW)["completed"]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {"history"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in cli.config_names() if name.startswith("pendulum")]
)
def test_every_pendulum_config_runs_two_steps(name, tmp_path):
    """With its own networks, K and schemes: only data and intervals are small."""
    own = ("model.hidden", "model.initialisation", "objective.num_samples")
    small = {key: value for key, value in TINY.items() if key not in own}
    small |= {"train.num_steps": "2", "train.eval_every": "1"}
    config = cli.load_config(name, list(small.items()))
    summary = trainer.train(config, tmp_path)
    assert (summary["completed"], summary["step"]) == (True, 2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 1, 2, 2]
    assert read(tmp_path / "config.json")["model"] == json.loads(config.model.to_json())


VARIANTS = [
    {"beta__scheme": "rewo_alternative"},
    {"beta__scheme": "geco", "objective__num_samples": "1"},
    {"beta__scheme": "warm_up"},
    {"beta__scheme": "constant", "objective__constraint": "nll_mean"},
    {"objective__name": "iwae", "model__prior": "standard_normal"},
    {"model__prior": "mixture", "model__num_components": "3"},
    {"objective__name": "iwae"},
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_every_variant_runs_two_steps(variant, tmp_path):
    config = tiny(
        train__num_steps="2",
        train__eval_every="2",
        train__snapshot_steps="2",
        model__latent_dim="3" if variant == VARIANTS[-1] else "2",
        **variant,
    )
    assert trainer.train(config, tmp_path, draw=DRAW)["step"] == 2
    figures_there = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"history", "samples"} <= figures_there
    assert ("latent_space" in figures_there) == (config.model.latent_dim == 2)


@pytest.mark.slow
def test_the_end_is_validated_and_drawn_whatever_the_intervals(tmp_path):
    config = tiny(
        train__num_steps="3", train__eval_every="2", train__snapshot_steps="2,4"
    )
    summary = trainer.train(config, tmp_path)
    validated = [line["step"] for line in lines_of(tmp_path) if "split" in line]
    assert validated == [2, 3]
    assert {line["step"] for line in summary["final_metrics"]} == {3}
    assert list(run_files.WorkDir(tmp_path).snapshots()) == [2, 3]


@pytest.mark.slow
def test_members_of_several_seeds_equal_single_runs(tmp_path):
    """To float tolerance: batched products may sum in another order."""
    both = tmp_path / "both"
    assert trainer.train(tiny(num_seeds="2"), both)["num_seeds"] == 2
    together = runs.restore(both)
    assert together.run.seeds == [1, 2]
    lines = [line for line in lines_of(both) if "split" not in line]
    assert [(line["step"], line["seed"]) for line in lines[:4]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    for seed, state in zip((1, 2), together.run.members(together.state), strict=True):
        alone = tmp_path / f"seed_{seed}"
        trainer.train(tiny(seed=str(seed)), alone)
        wanted = runs.restore(alone).state
        chex.assert_trees_all_close(state.params, wanted.params, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(state.beta_state, wanted.beta_state, rtol=1e-5)
        assert (jax.random.key_data(state.key) == jax.random.key_data(wanted.key)).all()
        member = [line for line in lines if line["seed"] == seed]
        single = [line for line in lines_of(alone) if "split" not in line]
        for one, other in zip(member, single, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    done = command("evaluate", f"--workdir={both}", "--metrics=ols")
    assert done.code == 0, done.err
    values = [read(both / "eval" / f"seed_{s}" / "ols.json")["value"] for s in (1, 2)]
    assert values[0] != values[1]


# --- Evaluation ----------------------------------------------------------------------

EVAL_FIELDS = ("value", "stderr", "num_examples", "num_samples", "split", "seed")
EVAL_FIELDS += ("step", "estimator", "seconds", "device")


def test_evaluate_writes_every_metric(workdir):
    others = {"neighbours", "smoothness"}  # of labels and of motions: test_motion
    names = [name for name in metrics.METRICS if name not in others]
    assert {"nll", "rate_distortion", "active_units", "ols"} <= set(names)
    done = command(
        "evaluate",
        f"--workdir={workdir}",
        f"--metrics={','.join(names)}",
        "--num_samples=20",
        "--num_examples=8",
    )
    assert (done.code, done.err) == (0, "")
    for name in names:
        found = read(workdir / "eval" / f"{name}.json")
        assert set(EVAL_FIELDS) <= set(found)
        assert isinstance(found["value"], int | float)
        assert (found["num_examples"], found["split"]) == (8, "test")
        assert (found["step"], found["device"]) == (4, "cpu")
    found = read(workdir / "eval" / "nll.json")
    assert found["num_samples"] == 20
    assert 1.0 <= found["mean_effective_sample_size"] <= 20.0
    assert "pareto_k_share_above_0.7" in found
    with np.load(workdir / "eval" / "nll.npz") as arrays:
        likelihood = arrays["log_likelihood"]
    assert likelihood.shape == (8,)
    assert found["value"] == pytest.approx(-likelihood.mean(), rel=1e-6)
    wanted = likelihood.std(ddof=1) / math.sqrt(8)
    assert found["stderr"] == pytest.approx(wanted, rel=1e-5)


def test_splits_and_seeds_are_what_was_asked_for(workdir):
    values = {}
    for split, seed in [("test", 0), ("validation", 0), ("test", 1), ("test", 0)]:
        words = ["--metrics=rate_distortion", f"--split={split}", f"--seed={seed}"]
        assert command("evaluate", f"--workdir={workdir}", *words).code == 0
        found = read(workdir / "eval" / "rate_distortion.json")
        assert found["split"] == split
        assert values.setdefault((split, seed), found["value"]) == found["value"]
    assert len(set(values.values())) == 3


def test_evaluation_leaves_the_run_alone(workdir):
    kept = ("checkpoints", "config.json", "metrics.jsonl", "summary.json")
    before = {
        path: path.read_bytes()
        for name in kept
        for path in [workdir / name, *(workdir / name).rglob("*")]
        if path.is_file()
    }
    assert command("evaluate", f"--workdir={workdir}", "--metrics=ols").code == 0
    assert all(path.read_bytes() == content for path, content in before.items())


# --- Interpolation and samples -------------------------------------------------------


def test_interpolate_writes_paths_graph_and_strip(workdir):
    done = command("interpolate", f"--workdir={workdir}")
    assert (done.code, done.err) == (0, "")
    run = runs.restore(workdir).run
    with np.load(workdir / "interpolation.npz") as arrays:
        start, end = arrays["pairs"][0]
        points = arrays["points_0"]
    assert [(start, end)] == figures.default_pairs(run)
    assert points.shape[1] == 2
    assert len(points) >= 3
    assert f"test {start} to {end}: {len(points)} points" in done.out
    for name in ("strip", "graph"):
        assert is_png(workdir / "figures" / f"{name}.png")


def test_default_pair_is_the_nearest_to_0_and_180_degrees(finished):
    run = runs.restore(finished).run
    targets = run.experiment.dataset.test.targets
    ((start, end),) = figures.default_pairs(run)
    cosine = np.cos(targets)
    assert cosine[start] == cosine.max()
    assert cosine[end] == cosine.min()


def test_interpolate_takes_pairs_from_flags_and_file(workdir, tmp_path):
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("0 3\n\n5, 7\n")
    for words, wanted in [
        (["--start=2", "--end=9"], [[2, 9]]),
        ([f"--pairs={pairs}"], [[0, 3], [5, 7]]),
    ]:
        done = command("interpolate", f"--workdir={workdir}", *words)
        assert (done.code, done.err) == (0, "")
        with np.load(workdir / "interpolation.npz") as arrays:
            assert arrays["pairs"].tolist() == wanted
            assert set(arrays) == {
                "pairs",
                *(f"points_{i}" for i in range(len(wanted))),
            }


def test_sample_draws_a_grid_and_keeps_the_numbers(workdir):
    (workdir / "figures" / "samples.png").unlink()
    done = command("sample", f"--workdir={workdir}", "--num_samples=9")
    assert (done.code, done.err) == (0, "")
    assert is_png(workdir / "figures" / "samples.png")
    restored = runs.restore(workdir)
    model, params = restored.run.experiment.model, restored.first()
    with np.load(workdir / "samples.npz") as arrays:
        z, x = arrays["z"], arrays["x"]
    drawn = model.prior.sample(params, jax.random.key(0), 9)
    np.testing.assert_allclose(z, drawn, rtol=1e-6)
    assert x.shape == (9, *restored.run.experiment.dataset.test.examples.shape[1:])
    decoded = np.asarray(model.reconstruct(params, drawn)).reshape(x.shape)
    np.testing.assert_allclose(x, decoded, rtol=1e-5, atol=1e-6)


def test_hardware_is_told_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert provenance.hardware() == "CPU, 5 core(s)"


# --- Reproduction --------------------------------------------------------------------


def reproduce(tmp_path: Path, target: str, *words: str) -> Done:
    return command(
        "reproduce",
        f"--target={target}",
        f"--workdir={tmp_path / 'runs'}",
        f"--output={tmp_path / 'results'}",
        *words,
    )


def test_reproduce_draws_fig1_without_a_run(tmp_path):
    done = reproduce(tmp_path, "fig1")
    assert (done.code, done.err) == (0, "")
    assert is_png(tmp_path / "results" / "figures" / "fig1_beta_update.png")
    record = read(tmp_path / "results" / "fig1.json")
    assert record == {"target": "fig1", "figures": ["fig1_beta_update"], "rows": []}
    assert not (tmp_path / "runs").exists()


ROW_FIELDS = ("name", "dataset", "metric", "mean", "stderr", "seeds", "paper")
ROW_FIELDS += ("command", "commit", "hardware", "minutes")


def test_rows_not_run_stand_as_not_run(tmp_path):
    done = reproduce(tmp_path, "table1", "--budget_minutes=1e-9")
    assert (done.code, done.err) == (0, "")
    table = read(tmp_path / "results" / "table1.json")
    assert table["target"] == "table1"
    names = [row["name"] for row in table["rows"]]
    assert {"VHP + REWO", "VHP + GECO", "VHP", "IWAE (L=1)"} <= set(names)
    for row in table["rows"]:
        assert tuple(row)[: len(ROW_FIELDS)] == ROW_FIELDS
        assert (row["mean"], row["stderr"], row["seeds"]) == (None, None, [])
    paper = {row["name"]: row["paper"] for row in table["rows"]}
    assert (paper["VHP + REWO"], paper["VHP + GECO"], paper["VHP"]) == (
        0.054,
        0.53,
        0.49,
    )
    text = (tmp_path / "results" / "table1.md").read_text()
    assert text.count("not run") == len(names)


def put(finished: Path, tmp_path: Path, table: tables.Table, *rows: tables.Row) -> None:
    """Stands the finished run in for seed 1 of rows, whose configs are others."""
    for row in rows:
        shutil.copytree(finished, table.path(str(tmp_path / "runs"), row, 1))


def test_table1_reports_what_is_complete(finished, tmp_path, monkeypatch):
    name = "VHP + REWO"
    put(finished, tmp_path, tables.TABLE1, tables.TABLE1.named(name))
    done = reproduce(tmp_path, "table1", "--budget_minutes=1e-9")
    assert done.code == 1  # no stale run passes for a row's
    assert "holds a run of another config" in done.err
    monkeypatch.setattr(run_files, "check_config", lambda *_: None)
    done = reproduce(tmp_path, "table1", "--budget_minutes=1e-9")
    assert (done.code, done.err) == (0, "")
    table = read(tmp_path / "results" / "table1.json")
    rows = {row["name"]: row for row in table["rows"]}
    row = rows.pop(name)
    run, state, _, _ = runs.restore(finished)
    error = figures.test_regression(run, state.params).error
    assert row["seeds"] == [row["mean"]] == [pytest.approx(error)]
    assert (row["seed_numbers"], row["steps"]) == ([1], [4])
    assert row["hardware"].startswith("CPU")
    revision = str(provenance.git_revision())
    assert row["commit"] == revision
    path = tables.TABLE1.path(str(tmp_path / "runs"), tables.TABLE1.named(name), 1)
    summary = read(path / "summary.json")
    summary["starts"].append(summary["starts"][0] | {"git_revision": "0"})
    files.write_json(path / "summary.json", summary)
    reproduce(tmp_path, "table1", "--budget_minutes=1e-9")
    rows_again = read(tmp_path / "results" / "table1.json")["rows"]
    commits = [row["commit"] for row in rows_again if row["name"] == name]
    assert commits == [f"0, {revision}"]
    assert all(other["mean"] is None for other in rows.values())
    text = (tmp_path / "results" / "table1.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| VHP + REWO |")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1] == cells[2] == f"{error:.3f}"
    assert cells[-2:] == ["4", "0.054"]


@pytest.mark.parametrize("kind", [cli.UserError, DataError, CheckpointError])
def test_a_row_that_fails_does_not_stop_the_others(kind, tmp_path, monkeypatch):
    tried = []

    def train(config, path, minutes, draw):
        tried.append(Path(path).parent.name)
        if len(tried) == 1:
            raise kind("kappa^2 = 1e-09 not reached")

    monkeypatch.setattr(trainer, "train", train)
    done = reproduce(tmp_path, "table1", "--num_seeds=1")
    assert done.code == 1
    first, *others = tables.TABLE1.rows
    assert tried == [tables.slug(row.name) for row in (first, *others)]
    wanted = f"1 run(s) failed, first {first.name}, pendulum, seed 1: kappa^2 = 1e-09"
    assert wanted in done.err
    assert (tmp_path / "results" / "table1.md").exists()
    tried.clear()
    done = reproduce(tmp_path, "fig15", "--num_seeds=1")  # a figure is not drawn
    assert done.code == 1
    assert "not reached" in done.err
    assert not (tmp_path / "results" / "fig15.json").exists()


def test_rows_that_are_not_chosen_are_neither_measured_nor_in_the_way(
    finished, tmp_path, monkeypatch
):
    put(finished, tmp_path, tables.TABLE1, tables.TABLE1.named("VHP"))
    row = tmp_path / "runs" / "pendulum_rows" / "vhp"
    shutil.copytree(finished, row / "seed_1.bak")
    words = "--rows=VHP + GECO", "--budget_minutes=1e-9"
    published = {"name": "VHP", "dataset": "pendulum", "mean": 0.25, "seeds": [0.25]}
    published |= {"stderr": None, "final_rate": 6.0, "final_beta": 1.0, "steps": [9]}
    rows = [published | {"paper": 0.49}]
    files.write_json(tmp_path / "results" / "table1.json", {"rows": rows})
    done = reproduce(tmp_path, "table1", *words)
    assert (done.code, done.err) == (0, "")
    assert "VHP, pendulum, seed 1: left out, " in done.out  # of another config
    rows = read(tmp_path / "results" / "table1.json")["rows"]
    assert [row["mean"] for row in rows if row["mean"] is not None] == [0.25]
    monkeypatch.setattr(run_files, "check_config", lambda *_: None)
    monkeypatch.setattr(runs, "restore", lambda _: pytest.fail("the run was read"))
    done = reproduce(tmp_path, "table1", *words)
    assert (done.code, done.err) == (0, "")
    assert "VHP, pendulum, seed 1: left out, ols is not measured" in done.out


def test_a_figure_of_nothing_is_refused(tmp_path):
    for target in ("fig15", "fig20"):
        done = reproduce(tmp_path, target, "--budget_minutes=1e-9")
        assert done.code == 1
        assert "nothing is complete to be drawn" in done.err


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_samples": 20},
        {"step": 2},
        {"split": "validation"},
        {"evaluation_seed": 1},
        {"whole_split": False},
    ],
    ids=lambda change: next(iter(change), "same"),
)
def test_a_likelihood_of_another_kind_does_not_stand_in(
    change, finished, tmp_path, monkeypatch
):
    row = tables.TABLE2_MLP.named("VAE")
    put(finished, tmp_path, tables.TABLE2_MLP, row)
    measured = {
        "value": 87.0,
        "step": 4,
        "split": "test",
        "whole_split": True,
        "evaluation_seed": 0,
        "num_samples": 5000,
        "mean_effective_sample_size": 40.0,
        "pareto_k_share_above_0.7": 0.9,
        "seconds": 60.0,
    }
    folder = tables.TABLE2_MLP.path(str(tmp_path / "runs"), row, 1) / "eval"
    files.write_json(folder / "nll.json", measured | change)
    monkeypatch.setattr(run_files, "check_config", lambda *_: None)
    monkeypatch.setattr(runs, "restore", lambda _: pytest.fail("the run was read"))
    done = reproduce(tmp_path, "table2_mlp", "--budget_minutes=1e-9", "--rows=VAE")
    assert (done.code, done.err) == (0, "")
    assert ("nll is not measured" in done.out) == bool(change)
    rows = read(tmp_path / "results" / "table2_mlp.json")["rows"]
    (seeds,) = (line["seeds"] for line in rows if line["name"] == "VAE")
    assert seeds == ([] if change else [87.0])


def test_every_row_has_a_config_and_a_folder_of_its_own_and_a_command():
    rows = [(table, row) for table in tables.TABLES.values() for row in table.rows]
    assert len({table.path("runs", row, 1) for table, row in rows}) == len(rows)
    assert len({repr(row.resolved(1)) for _, row in rows}) == len(rows)
    for _, row in rows:
        assert row.resolved(3).seed == 3
        assert row.command("SEED").startswith("python -m experiments.train --config=")


def test_rows_and_data_sets_are_chosen_by_name(tmp_path):
    done = reproduce(tmp_path, "table2", "--rows=VHP")
    assert done.code == 2
    assert "table2 has no row 'VHP'; there are: VHP + REWO; VHP + GECO" in done.err
    done = reproduce(tmp_path, "table2", "--datasets=MNIST")
    assert done.code == 2
    assert "table2 has no data set 'MNIST'; there are: static MNIST" in done.err


def test_table2_shows_data_sets_and_what_others_published(tmp_path):
    for target, cells in {
        "table2": ["| VampPrior | OMNIGLOT |", "| 101.97 |"],
        "table2_mlp": ["| VampPrior | not run |", "| 85.57 | - |"],
    }.items():
        done = reproduce(tmp_path, target, "--budget_minutes=1e-9")
        assert (done.code, done.err) == (0, "")
        text = (tmp_path / "results" / f"{target}.md").read_text()
        assert any(all(cell in line for cell in cells) for line in text.splitlines())
    table = read(tmp_path / "results" / "table2.json")
    assert len(table["rows"]) == 20
    assert {row["dataset"] for row in table["rows"]} == set(tables.DATASETS)


@pytest.mark.slow
def test_reproduce_draws_every_target(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "check_config", lambda *_: None)
    monkeypatch.setattr(metrics.Setting, "__new__", few_samples(metrics.Setting))
    module = import_command("reproduce")
    for table in tables.TABLES.values():
        put(finished, tmp_path, table, *table.rows)
    for target, made_of in module.TARGETS.items():
        if made_of.table in (tables.MOTION, *tables.SHAPES.values()):
            continue  # see test_motion and test_faces
        done = reproduce(tmp_path, target, "--num_seeds=1")
        assert (done.code, done.err) == (0, ""), target
        drawn = list((tmp_path / "results" / "figures").glob(f"{target}_*.png"))
        drawn += list((tmp_path / "results" / "figures").glob(f"{target}[ab]_*.png"))
        assert all(map(is_png, drawn))
        assert drawn or target in tables.TABLES
        record = read(tmp_path / "results" / f"{target}.json")
        assert {row["name"] for row in record["rows"]} == set(made_of.rows)
        if target in tables.TABLES or made_of.table.metric == "ols":
            assert all(row["mean"] is not None for row in record["rows"])
        assert record.get("figures", []) == sorted(path.stem for path in drawn)


def few_samples(setting):
    """A Setting that takes 20 importance samples where none are given."""
    original = setting.__new__

    def new(cls, *args, **fields):
        return original(cls, *args, **{"num_samples": 20} | fields)

    return new


@pytest.mark.slow
def test_reproduce_trains_what_is_missing_and_resumes(tmp_path, monkeypatch):
    """With the rows' own overrides on top of a tiny config."""
    module = import_command("reproduce")
    original = tables.Row.resolved
    trained = []

    def small(row, seed):
        config = original(row, seed)
        config.update_from_flattened_dict(
            {key: value for key, value in cli.flatten(tiny()) if key in TINY}
        )
        return config

    real = trainer.train

    def train(config, path, minutes, draw):
        trained.append(Path(path).parent.name)
        return real(config, path, minutes)

    monkeypatch.setattr(tables.Row, "resolved", small)
    monkeypatch.setattr(trainer, "train", train)
    words = ["--target=fig10_later", f"--workdir={tmp_path}", f"--output={tmp_path}"]
    flags.FLAGS(["reproduce", *words])
    for _ in range(2):
        module.main()
    assert trained == ["vhp_rewo_app_b_1"]
    assert is_png(tmp_path / "figures" / "fig10_later_rewo_alternative.png")
