"""Motion configs on a small made set: trained, measured, interpolated, drawn."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_architecture import OF_RIVALS, unread_keys
from test_data_mocap import write_tiny
from test_experiments import command, import_command

from experiments import build, cli, figures, metrics, runs, tables, views
from vhp_jax import graph
from vhp_jax.checkpoints import Checkpointer

pytestmark = [pytest.mark.slow, pytest.mark.optax]

TINY = {
    "data.num_train": "400",
    "data.num_validation": "80",
    "data.num_test": "100",
    "model.hidden": "8",
    "model.num_pseudo_inputs": "5",
    "objective.num_samples": "2",
    "beta.kappa": "0.6",  # reached at once
    "train.num_steps": "4",
    "train.batch_size": "8",
    "train.log_every": "2",
    "train.eval_every": "4",
    "train.checkpoint_every": "2",
    "train.snapshot_steps": "4",
    "graph.num_nodes": "40",
    "graph.num_neighbours": "4",
}


def load(name="cmu_vhp", **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return cli.load_config(name, list((TINY | dotted).items()))


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    """The small set is where VHP_DATA_DIR says."""
    with pytest.MonkeyPatch.context() as patch:
        folder = write_tiny(tmp_path_factory.mktemp("data"), patch)
        patch.setenv(build.DATA_DIR, str(folder.parent))
        patch.setattr(metrics, "NUM_GRAPHS", 2)
        patch.setattr(metrics, "PAIRS_PER_GRAPH", 3)
        yield


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """Runs and results of two seeds a method, only to be read."""
    folder = tmp_path_factory.mktemp("motion")
    rows = tuple(dataclasses.replace(row, overrides=TINY) for row in tables.MOTION.rows)
    table = dataclasses.replace(tables.MOTION, rows=rows, num_seeds=2)
    where = [f"--workdir={folder / 'runs'}", f"--output={folder / 'results'}"]
    read = []
    with pytest.MonkeyPatch.context() as patch:
        restore = runs.restore
        patch.setattr(runs, "restore", lambda path: read.append(path) or restore(path))
        patch.setattr(tables, "MOTION", table)
        patch.setitem(tables.TABLES, "motion", table)
        for target in ("motion", "fig5", "fig6", "fig7", "fig8", "fig19"):
            done = command("reproduce", f"--target={target}", *where)
            assert (done.code, done.err) == (0, ""), done
            if target == "motion":
                (folder / "read.txt").write_text("\n".join(map(str, read)))
    return folder


@pytest.fixture
def workdir(reproduced, tmp_path):
    """A copy of VHP's first run to work on."""
    name = tables.slug(tables.MOTION.rows[0].name)
    run = reproduced / "runs" / "motion" / name / "seed_1"
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize("row", tables.MOTION.rows, ids=lambda row: row.config)
def test_each_method_is_trained_measured_and_drawn(row, reproduced):
    workdir = reproduced / "runs" / "motion" / tables.slug(row.name) / "seed_1"
    for figure in ("history", "latent_space", "samples", "reconstructions"):
        assert (workdir / "figures" / f"{figure}.png").stat().st_size > 1000
    for metric in ("neighbours", "prior_match", "smoothness"):
        found = json.loads((workdir / "eval" / f"{metric}.json").read_text())
        assert found["num_examples"] == 100
    run = runs.restore(workdir).run
    assert run.config.to_json() == load(row.config).to_json()
    assert found["num_samples"] == 6
    assert found["joints"] == list(run.experiment.dataset.motion.joints)
    assert len(found["joint_mean"]) == len(found["raw"]["joint_mean"]) == 24
    assert np.mean(found["joint_mean"]) == pytest.approx(found["value"])


def test_a_run_is_read_once_for_all_that_is_measured(reproduced):
    wanted = ("smoothness", "neighbours", "prior_match", "rate_distortion")
    assert tables.MOTION.metrics == wanted
    read = (reproduced / "read.txt").read_text().splitlines()
    assert len(read) == len(set(read)) == 3 * 2


def test_the_table_and_figures_of_motion_are_reproduced(reproduced):
    record = json.loads((reproduced / "results" / "motion.json").read_text())
    assert [row["name"] for row in record["rows"]] == [
        "VHP + REWO",
        "VampPrior",
        "IWAE",
    ]
    for row in record["rows"]:
        assert len(row["seeds"]) == len(row["raw"]) == 2
        for name in tables.MOTION.also:
            assert len(row[name]) == 2
        folder = reproduced / "runs" / "motion" / tables.slug(row["name"]) / "seed_1"
        kept = json.loads((folder / "eval" / "prior_match.json").read_text())
        assert row["prior_match"][0] == kept["value"]
        key = "squared_maximum_mean_discrepancy"
        assert row[f"prior_match.{key}"][0] == kept[key]
    text = (reproduced / "results" / "motion.md").read_text()
    assert "| squared maximum mean discrepancy |" in text
    drawn = {path.stem for path in (reproduced / "results" / "figures").iterdir()}
    assert drawn == {
        *("fig5_latent_spaces", "fig6_graphs", "fig7_strips"),
        *("fig8_smoothness", "fig8_smoothness_raw"),
        *(f"fig19_strips_{number}" for number in (1, 2, 3)),
    }


def test_interpolate_draws_strips_and_films_of_all_default_pairs(workdir):
    done = command("interpolate", f"--workdir={workdir}")
    assert (done.code, done.err) == (0, "")
    assert "(walking to kicking)" in done.out
    run = runs.restore(workdir).run
    with np.load(workdir / "interpolation.npz") as arrays:
        pairs = [tuple(pair) for pair in arrays["pairs"]]
    assert pairs == figures.default_pairs(run)
    targets = run.experiment.dataset.test.targets
    starts, ends = (targets[list(side)].tolist() for side in zip(*pairs, strict=True))
    assert starts == list(run.config.graph.start_targets)
    assert ends == list(run.config.graph.end_targets)
    assert len(set(pairs[1])) == 2  # within one movement, yet two frames
    for number in range(4):
        with Image.open(workdir / "figures" / f"path_{number}.gif") as film:
            assert film.n_frames == 100
    done = command("sample", f"--workdir={workdir}", "--num_samples=5")
    assert (done.code, done.err) == (0, "")
    with np.load(workdir / "samples.npz") as arrays:
        z, x = arrays["z"], arrays["x"]
    restored = runs.restore(workdir)
    decoded = restored.run.experiment.model.reconstruct(
        restored.first(), jnp.asarray(z)
    )
    units = restored.run.experiment.dataset.standardisation
    degrees = np.asarray(decoded) * units.scale + units.mean
    np.testing.assert_allclose(x, degrees, rtol=1e-4, atol=1e-3)


def test_pooled_paths_are_those_of_one_seed():
    generator = np.random.default_rng(0)
    by_joint = generator.normal([1.0, -2.0], [0.5, 3.0], (3, 2_000, 2))
    by_joint += generator.normal(size=(3, 1, 2))  # seeds differ
    results = [
        {"joint_mean": one.mean(axis=0), "joint_deviation": one.std(axis=0, ddof=1)}
        for one in by_joint
    ]
    mean, deviation = import_command("reproduce").pooled(results)
    every = by_joint.reshape(-1, 2)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, every.std(axis=0), rtol=1e-3)


def test_the_statistics_of_the_data_are_kept_and_compared(workdir):
    restored = runs.restore(workdir)
    kept = restored.state.statistics
    dataset = restored.run.experiment.dataset
    for name, array in dataset.standardisation._asdict().items():
        np.testing.assert_allclose(kept[name], array, rtol=1e-6)
    # Other files, or another way to scale them, are not what it was trained on.
    state = restored.state.replace(statistics=kept | {"scale": 2.0 * kept["scale"]})
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        checkpointer.save(5, state)
    with pytest.raises(cli.UserError, match=r"scale of feature \d+ was 720 .* is 360"):
        runs.restore(workdir)


def test_graphs_in_parts_are_bridged_and_it_is_said(workdir, monkeypatch, capsys):
    restored = runs.restore(workdir)

    def two_heaps(self, params, key, num):
        side = np.where(np.arange(num) % 2, 0.0, 50.0)[:, None]
        return side + np.asarray(jax.random.normal(key, (num, 2)))

    monkeypatch.setattr(type(restored.run.experiment.model.prior), "sample", two_heaps)
    found = figures.Interpolation(restored.run, restored.first(), [(0, 1)], seed=0)
    assert found.num_bridges == 1
    assert len(found.graph.component_sizes) == 1
    setting = metrics.Setting(
        restored.run,
        restored.first(),
        restored.step,
        restored.run.experiment.dataset.test,
        "test",
        workdir / "eval",
    )
    result = metrics.measure("smoothness", setting)
    assert result["mean_bridges"] == 1.0
    path = workdir / "eval" / "smoothness.json"
    assert json.loads(path.read_text())["value"] == result["value"]
    assert capsys.readouterr().out.endswith(f" -> {path}\n")


def test_measures_of_other_data_are_refused_in_one_line(workdir):
    done = command("evaluate", f"--workdir={workdir}", "--metrics=ols")
    assert done.code == 1
    assert done.err == "error: ols wants a data set with angles, such as the pendulum\n"
    described = import_command("evaluate").__doc__
    assert all(name in described for name in metrics.METRICS)


def test_every_key_of_the_motion_config_is_read(tmp_path):
    assert unread_keys(load(), tmp_path) == OF_RIVALS


def test_bodies_are_drawn_and_not_images():
    run = runs.Run(load())
    dataset = run.experiment.dataset
    view = views.view(dataset)
    frames = view.frames(dataset.test.examples[:7])
    assert frames.shape == (7, len(dataset.motion.points), 3)
    # Lengths of bones do not depend on the example.
    parents = dataset.motion.parents
    bones = np.linalg.norm(frames[:, 1:] - frames[:, parents[1:]], axis=-1)
    np.testing.assert_allclose(bones, np.broadcast_to(bones[0], bones.shape), rtol=1e-9)
    assert graph.find_jumps(frames).shape == (6,)


def test_default_pairs_want_labels_that_there_are():
    run = runs.Run(load())
    run.config.graph.unlock()
    run.config.graph.start_targets, run.config.graph.end_targets = (9,), (0,)
    with pytest.raises(ValueError, match="no test example has the label 9"):
        figures.default_pairs(run)
    with pytest.raises(cli.UserError, match=r"got \(9,\) and \(0, 1\)"):
        build.build(load(graph__start_targets="9", graph__end_targets="0,1"))
    with pytest.raises(cli.UserError, match=r"and some, got \(\) and \(\)"):
        build.build(load(graph__start_targets="", graph__end_targets=""))
