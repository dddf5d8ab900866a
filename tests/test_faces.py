"""Faces and chairs, the configs: a few steps on a few rendered shapes."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_architecture import OF_RIVALS, unread_keys
from test_experiments import command

from experiments import build, cli, figures, metrics, runs, tables
from vhp_jax import networks

pytestmark = [pytest.mark.slow, pytest.mark.optax]

TINY = {
    "data.num_shapes": "7",
    "data.num_azimuths": "3",
    "data.num_validation": "1",
    "data.num_test": "2",
    "model.channels": "2,2,2,2,3,3,4,4",
    "model.dense": "8",
    "model.prior_hidden": "6",
    "model.latent_dim": "3",
    "model.inner_dim": "2",
    "objective.num_samples": "2",
    "beta.kappa": "0.9",  # reached at once
    "train.num_steps": "4",
    "train.batch_size": "4",
    "train.log_every": "2",
    "train.eval_every": "4",
    "train.checkpoint_every": "4",
    "graph.num_nodes": "30",
    "graph.num_neighbours": "5",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Rendered once for all tests."""
    return tmp_path_factory.mktemp("rendered")


def load(cache, name="chairs_synthetic_small", **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    pairs = TINY | {"data.cache_dir": str(cache)} | dotted
    return cli.load_config(name, list(pairs.items()))


NAME = "chairs_synthetic_small"


@pytest.fixture(scope="module")
def reproduced(cache, tmp_path_factory):
    """Runs and results of both methods, only to be read."""
    folder = tmp_path_factory.mktemp("chairs")
    tiny = TINY | {"data.cache_dir": str(cache)}
    rows = tuple(
        dataclasses.replace(row, overrides=tiny) for row in tables.SHAPES[NAME].rows
    )
    table = dataclasses.replace(tables.SHAPES[NAME], rows=rows)
    where = [f"--workdir={folder / 'runs'}", f"--output={folder / 'results'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "NUM_PAIRS", 3)
        patch.setitem(tables.SHAPES, NAME, table)
        patch.setitem(tables.TABLES, NAME, table)
        for target in (NAME, "fig10_synthetic_small", "fig23_synthetic_small"):
            done = command("reproduce", f"--target={target}", *where)
            assert done.code == 0, done
            # How the rendering goes on.
            assert all(" images" in line for line in done.err.splitlines()), done
    return folder


@pytest.mark.parametrize(("offset", "wanted"), [(0, 0.0), (1, 10.0), (-3, 30.0)])
def test_the_error_of_the_view_is_how_far_frames_are_off(offset, wanted):
    """A shape seen every 10 degrees; the way from 350 to 30 goes over 0."""
    views = np.eye(36, dtype=np.float32).reshape(36, 6, 6)
    angles = np.deg2rad(10.0 * np.arange(36))
    split = SimpleNamespace(examples=views, targets=angles)
    dataset = SimpleNamespace(target_kind="view", train=split)
    setting = SimpleNamespace(
        run=SimpleNamespace(experiment=SimpleNamespace(dataset=dataset)), split=split
    )
    pairs = np.array([[35, 3], [3, 35]])
    way = np.array([35, 0, 1, 2, 3])
    frames = views[(np.stack([way, way[::-1]]) + offset) % 36]
    found = metrics._view_error(setting, frames, pairs)
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("row", tables.SHAPES[NAME].rows, ids=lambda row: row.config)
def test_chairs_are_trained_measured_interpolated_and_explored(
    row, reproduced, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "NUM_PAIRS", 3)
    run = reproduced / "runs" / NAME / tables.slug(row.name) / "seed_1"
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "eval")
    words = "--metrics=interpolation,active_units,prior_match"
    done = command("evaluate", f"--workdir={tmp_path}", words)
    assert (done.code, done.err) == (0, "")
    result = json.loads((tmp_path / "eval" / "interpolation.json").read_text())
    for line in ("graph", "straight"):
        found = result[line]
        assert 0.0 <= found["mean_step"]["mean"] <= found["largest_step"]["mean"]
        assert math.isfinite(found["view_error_degrees"])
    assert result["value"] == result["graph"]["largest_step"]["mean"]
    assert result["sharpness_of_the_data"] > 0.0
    for name in ("interpolate", "sample", "explore"):
        extra = ["--grid=3"] if name == "explore" else []
        done = command(name, f"--workdir={tmp_path}", *extra)
        assert (done.code, done.err) == (0, ""), done
    page = (tmp_path / "explore.html").read_text()
    assert "The other 1 latent dimensions are those of test example 0." in page
    for figure in ("strip", "samples", "reconstructions", "history"):
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 1000


def test_the_table_and_strips_of_chairs_are_reproduced(reproduced):
    results = reproduced / "results"
    record = json.loads((results / f"{NAME}.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["VHP + REWO", "IWAE"]
    for row in record["rows"]:
        assert row["dataset"] == "chairs synthetic small"  # not the real chairs
        assert row["mean"] == row["graph"][0]["largest_step"]["mean"]
        assert "view_error_degrees" in row["straight"][0]
    drawn = {path.stem for path in (results / "figures").iterdir()}
    assert drawn == {
        "fig10_synthetic_small_strips",
        *(f"fig23_synthetic_small_strips_{number}" for number in (1, 2)),
    }


def test_a_straight_line_is_even_and_ends_where_the_path_does(cache):
    run = runs.Run(load(cache))
    params = run.initial_state().params
    found = figures.Interpolation(run, params, figures.default_pairs(run)[:1], seed=0)
    line, path = found.straight_frames(0, 5), found.even_frames(0, 5)
    np.testing.assert_allclose(line[[0, -1]], path[[0, -1]], atol=1e-6)
    points = found.paths[0].points
    centre = jnp.asarray(points[[0, -1]].mean(axis=0), jnp.float32)
    middle = run.experiment.model.reconstruct(params, centre[None])
    np.testing.assert_allclose(line[2].ravel(), np.ravel(middle), atol=1e-6)


def test_every_key_of_the_chairs_config_is_read(cache, tmp_path):
    assert unread_keys(load(cache), tmp_path) == OF_RIVALS


def test_default_pairs_of_views_are_nearest_to_the_wanted_ones(cache):
    run = runs.Run(load(cache))
    targets = run.experiment.dataset.test.targets
    pairs = figures.default_pairs(run)
    ends = zip(
        run.config.graph.start_targets, run.config.graph.end_targets, strict=True
    )
    for pair, wanted in zip(pairs, ends, strict=True):
        for index, target in zip(pair, wanted, strict=True):
            turns = np.abs(np.exp(1j * targets) - np.exp(1j * target))
            assert turns[index] == pytest.approx(turns.min())
    assert pairs[1][0] != pairs[1][1]  # one view, two shapes


@pytest.mark.parametrize("name", ["faces", "chairs", "chairs_synthetic"])
def test_full_configs_have_the_networks_of_table_3(name):
    config = cli.load_config(name)
    networks_of = build.conv(config.model, (64, 64, 1))
    assert networks_of.encoder.layers == networks.FACE_LAYERS
    assert (config.model.latent_dim, config.model.dense) == (32, 256)
    assert tuple(config.model.prior_hidden) == (256, 256)
    assert (config.beta.kappa, config.beta.nu) == (0.2, 1.0)
    assert config.objective.num_samples == 16
    assert config.train.learning_rate == 5e-4
    nodes = {"faces": 10_000, "chairs": 8_637, "chairs_synthetic": 8_637}[name]
    assert (config.graph.num_nodes, config.graph.num_neighbours) == (nodes, 18)
    images = jax.ShapeDtypeStruct((2, 64, 64, 1), np.float32)
    shapes = jax.eval_shape(
        lambda x: networks_of.encoder.init_with_output(jax.random.key(0), x)[0], images
    )
    assert shapes.mean.shape == (2, 32)


def test_channels_of_another_number_are_refused(cache):
    config = load(cache, model__channels="2,3")
    with pytest.raises(cli.UserError, match=r"channels wants 8 numbers, got \(2, 3\)"):
        build.build(config)
