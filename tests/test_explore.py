"""The page that decodes a point as it is dragged: its numbers, and a browser."""

import base64
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import command, workdir  # noqa: F401, a fixture
from two_steps import TWO_STEPS

from experiments import cli, runs, trainer
from vhp_jax import evaluation, plotting

pytestmark = pytest.mark.optax
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def page_data(path):
    text = path.read_text()
    found = re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_page_holds_what_the_model_decodes(workdir):  # noqa: F811
    done = command("explore", f"--workdir={workdir}", "--grid=5", "--num_points=40")
    assert (done.code, done.err) == (0, "")
    data = page_data(workdir / "explore.html")
    restored = runs.restore(workdir)
    run, params = restored.run, restored.first()
    low, high = np.array(data["limits"])
    cells = np.frombuffer(base64.b64decode(data["cells"]), np.uint8)
    cells = cells.reshape(5, 5, 16, 16)
    ticks = np.linspace(low, high, 5)
    z = np.stack(np.meshgrid(*ticks.T, indexing="ij"), axis=-1).reshape(-1, 2)
    with jax.default_matmul_precision("highest"):
        images = run.experiment.model.reconstruct(params, jnp.float32(z))
    wanted = 255.0 * np.clip(np.asarray(images), 0.0, 1.0).reshape(5, 5, 16, 16)
    np.testing.assert_allclose(cells, wanted, atol=0.51)
    test = run.experiment.dataset.test
    codes = evaluation.encode_dataset(run.experiment.model, params, test.examples).mean
    shown = floats(data["codes"]).reshape(-1, 2)
    assert len(shown) == len(data["color"]) <= 40
    for code in shown:
        assert np.abs(codes - code).max(axis=1).min() == 0.0
    assert len(floats(data["prior"])) == 80
    np.testing.assert_allclose(data["start"], np.clip(codes[0], low, high), rtol=1e-6)


def test_page_shows_colours_and_no_key_of_a_single_class(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), np.uint8)
    np.save(tmp_path / "x.npy", pictures)
    words = TWO_STEPS | {"data.path": str(tmp_path / "x.npy"), "beta.kappa": "0.9"}
    config = cli.load_config("custom", list(words.items()))
    trainer.train(config, tmp_path / "run")
    done = command("explore", f"--workdir={tmp_path / 'run'}", "--grid=3")
    assert (done.code, done.err) == (0, "")
    data = page_data(tmp_path / "run" / "explore.html")
    assert (data["shape"], data["names"]) == ([4, 5, 3], [])
    restored = runs.restore(tmp_path / "run")
    corner = np.array([data["limits"][0]])
    model = restored.run.experiment.model
    wanted = 255.0 * evaluation.decode(model, restored.first(), corner)[0]
    cells = np.frombuffer(base64.b64decode(data["cells"]), np.uint8)
    np.testing.assert_allclose(cells[: 4 * 5 * 3], wanted, atol=0.51)


def test_page_wants_nothing_from_elsewhere(workdir):  # noqa: F811
    command("explore", f"--workdir={workdir}", "--grid=2")
    text = (workdir / "explore.html").read_text()
    assert not re.search(r"https?://|src=|href=|@import|fetch\(", text)


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--axes=0,0", "--axes wants two different numbers from 0 to 1, got 0,0"),
        ("--axes=0,2", "--axes wants two different numbers from 0 to 1, got 0,2"),
        ("--axes=a,b", "--axes wants two numbers, got ['a', 'b']"),
        ("--axes=1", "--axes wants two numbers, got ['1']"),
        ("--example=-1", "--example must be from 0 to"),
        ("--grid=1", "--grid must be from 2 to"),
        ("--grid=99999", "--grid must be from 2 to"),
        ("--num_points=0", "--num_points must be >= 1, got 0"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_one_line(finished, flag, wanted):
    done = command("explore", f"--workdir={finished}", flag)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert wanted in done.err
    assert done.err.count("\n") == 1


def test_palette_is_that_of_the_figures():
    angles = np.array([0.0, np.pi, 2.0 * np.pi, 3.0])
    colors, index, names = plotting.palette(angles, "angle")
    assert names == []
    assert index[0] == index[2] == 0
    assert index[1] == len(colors) / 2
    labels = np.array(["walk", "jog", "walk"])
    colors, index, names = plotting.palette(labels, "class")
    assert names == ["jog", "walk"]
    assert index == [1, 0, 1]
    assert len(set(colors)) == 2


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")
def test_a_browser_draws_the_page(workdir, tmp_path):  # noqa: F811
    """Without an error, and another picture where the point is another one."""
    command("explore", f"--workdir={workdir}", "--grid=5")
    path = workdir / "explore.html"
    # What a person would do, at the end of the page; the outcome goes into its title.
    script = """<script>
    const pixels = () => decoded.toDataURL(), before = pixels();
    const box = map.getBoundingClientRect();
    for (const kind of ["pointerdown", "pointermove"])
      map.dispatchEvent(new PointerEvent(kind, {buttons: 1, pointerId: 1,
        clientX: box.left + 0.9 * box.width, clientY: box.top + 0.1 * box.height}));
    const place = document.getElementById("place").textContent;
    document.title = `moved ${before !== pixels()} ${place}`;
    </script></body>"""
    text = path.read_text().replace(
        "map.setPointerCapture(event.pointerId)",
        "undefined",  # of a real pointer only
    )
    path.write_text(text.replace("</body>", script))
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
    assert title.startswith("moved true z0 = "), done.stderr[-2000:]
    low, high = np.array(page_data(workdir / "explore.html")["limits"])
    place = [float(value) for value in re.findall(r"= (-?[\d.]+)", title)]
    np.testing.assert_allclose(place, low + [0.9, 0.9] * (high - low), atol=0.02)
