"""Figures, judged by what their Figure objects hold."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vhp_jax import plotting

RED = plotting._MARK


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


def red_lines(ax):
    """Places of the red vertical lines."""
    return [
        float(line.get_xdata()[0])
        for line in ax.lines
        if line.get_color() == RED and len(set(line.get_xdata())) == 1
    ]


def scatters(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)]


def shaded(ax):
    """(begin, end) of each grey span."""
    return [
        (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in ax.patches
        if to_hex(patch.get_facecolor()) == plotting._PHASE_1.lower()
    ]


def boxes(ax):
    """(left, right) of each box of a strip."""
    return [
        (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in ax.patches
        if isinstance(patch, Rectangle)
    ]


def make_snapshot(step, *, num=50, color=None, scale=None):
    rng = np.random.default_rng(step)
    angle = rng.uniform(0, 2 * np.pi, num)
    return plotting.Snapshot(
        step=step,
        posterior_mean=np.stack([np.cos(angle), np.sin(angle)], axis=1),
        posterior_scale=rng.uniform(0.1, 0.2, (num, 2)) if scale is None else scale,
        prior_samples=rng.normal(size=(30, 2)),
        color=angle if color is None else color,
    )


def curve(last=1000):
    steps = np.arange(10, last + 1, 10)
    return steps, steps / last


def make_figures():
    """One of each kind."""
    angle = np.linspace(0.01, 1.5, 40)
    grid = np.linspace(-1.0, 1.0, 9)
    surface = -np.outer(grid, np.linspace(0.1, 1.0, 5))
    panel = plotting.GraphPanel("g", np.eye(2), [[0, 1]], [2**0.5], [np.eye(2)])
    history = {"step": [1, 2, 3], "beta": [0.1, 0.2, 0.3]}
    return {
        "beta": plotting.plot_beta_surfaces(
            {"REWO": surface}, np.linspace(0.1, 1.0, 5), grid
        ),
        "snapshots": plotting.plot_snapshots([make_snapshot(100)], curve()),
        "graphs": plotting.plot_latent_graphs([panel]),
        "strips": plotting.plot_strips({"a": np.zeros((4, 5, 5))}, {}),
        "regression": plotting.plot_regression({"a": (angle, angle)}),
        "quarter": plotting.plot_quarter_circle({"a": (angle, angle)}),
        "history": plotting.plot_history(history),
        "images": plotting.plot_image_grid(np.zeros((3, 4, 4))),
    }


@pytest.mark.slow
def test_every_figure_is_drawn_the_same_twice_without_pyplot(tmp_path):
    figures = [make_figures(), make_figures()]
    for name, figure in figures[0].items():
        assert isinstance(figure, Figure)
        first, second = tmp_path / f"{name}_1.png", tmp_path / f"{name}_2.png"
        plotting.save_figure(figure, first)
        with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
            plotting.save_figure(figures[1][name], second)
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_importing_and_drawing_never_loads_pyplot():
    code = (
        "import sys; import numpy as np; from vhp_jax import plotting;"
        "plotting.plot_image_grid(np.zeros((1, 2, 2)));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_of_the_user_neither_matter_nor_change():
    with matplotlib.rc_context({"axes.titlesize": 31.0, "axes.facecolor": "r"}):
        figure = plotting.plot_image_grid(np.zeros((1, 2, 2)), "title")
        assert matplotlib.rcParams["axes.titlesize"] == 31.0
    assert figure.axes[0].title.get_fontsize() == 10.0
    assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


def test_save_creates_the_folder_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "figure.png"
    plotting.save_figure(plotting.plot_image_grid(np.zeros((1, 2, 2))), path)
    assert os.listdir(path.parent) == ["figure.png"]


@pytest.mark.parametrize("failing", ["savefig", "replace"])
def test_save_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch, failing):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = plotting.plot_image_grid(np.zeros((1, 2, 2)))

    def write_half(file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    def refuse(*_):
        raise OSError("disk full")

    if failing == "savefig":
        monkeypatch.setattr(figure, "savefig", write_half)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        plotting.save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["figure.png"]


def test_beta_surfaces_share_one_scale_centred_at_zero():
    beta, delta = np.linspace(0.1, 1.0, 7), np.linspace(-1.0, 1.0, 11)
    small = -np.outer(delta, beta)
    figure = plotting.plot_beta_surfaces(
        {"REWO": small, "GECO": 3.0 * small}, beta, delta
    )
    assert titles(figure)[:2] == ["REWO", "GECO"]
    for ax, surface in zip(figure.axes, (small, 3.0 * small), strict=False):
        (mesh,) = (c for c in ax.collections if isinstance(c, QuadMesh))
        assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((-3.0, 3.0))
        np.testing.assert_allclose(mesh.get_array().reshape(11, 7), surface)
        zero_line = ax.collections[-1].get_paths()[0].vertices
        np.testing.assert_allclose(zero_line[:, 1], 0.0, atol=1e-12)


def test_beta_surfaces_without_a_sign_change_or_without_any_change(tmp_path):
    beta, delta = np.linspace(0.1, 1.0, 3), np.linspace(-1.0, 1.0, 4)
    figure = plotting.plot_beta_surfaces(
        {"up": np.ones((4, 3)), "still": np.zeros((4, 3))}, beta, delta
    )
    plotting.save_figure(figure, tmp_path / "x.png")  # warnings are errors


def test_beta_surfaces_want_shapes_that_fit():
    with pytest.raises(ValueError, match=r"GECO has shape \(3, 4\).*\(4, 3\)"):
        plotting.plot_beta_surfaces(
            {"GECO": np.zeros((3, 4))}, np.arange(3), np.arange(4)
        )


def test_snapshots_mark_their_steps_and_the_first_phase():
    snapshots = [make_snapshot(step) for step in (100, 400, 900)]
    figure = plotting.plot_snapshots(snapshots, curve(), "VHP + REWO", phase_end=250)
    # 3 rows of 3, the curve, the wheel, the grey scale.
    assert len(figure.axes) == 12
    assert figure.get_suptitle() == "VHP + REWO"
    beta_ax = figure.axes[9]
    np.testing.assert_array_equal(beta_ax.lines[0].get_data(), curve())
    assert red_lines(beta_ax) == [100, 400, 900]
    assert [end for _, end in shaded(beta_ax)] == [250]
    assert [titles(figure)[i] for i in (0, 3, 6)] == [
        "step 100",
        "step 400",
        "step 900",
    ]
    assert shaded(plotting.plot_snapshots(snapshots, curve()).axes[9]) == []


def test_snapshots_draw_means_twice_and_the_prior_below_with_equal_limits():
    snapshot = make_snapshot(100)
    mean, grey, prior = plotting.plot_snapshots([snapshot], curve()).axes[:3]
    expected = (
        snapshot.posterior_mean,
        snapshot.posterior_mean,
        snapshot.prior_samples,
    )
    for ax, points in zip((mean, grey, prior), expected, strict=True):
        np.testing.assert_array_equal(scatters(ax)[0].get_offsets(), points)
        assert ax.get_xlim() == mean.get_xlim()
        assert ax.get_ylim() == mean.get_ylim()
        assert ax.get_aspect() == 1.0
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert ((points > [left, bottom]) & (points < [right, top])).all()


def test_snapshot_angles_are_coloured_by_the_cyclic_map():
    angle = np.array([0.0, np.pi, 2 * np.pi, -np.pi, 1.0])
    figure = plotting.plot_snapshots([make_snapshot(1, num=5, color=angle)], curve())
    colors = scatters(figure.axes[0])[0].get_facecolors()
    np.testing.assert_array_equal(colors[0], colors[2])
    np.testing.assert_array_equal(colors[1], colors[3])
    np.testing.assert_array_equal(colors[4], plotting._cyclic_map()(1 / (2 * np.pi)))


def test_snapshot_greys_show_the_scale_relative_to_its_mean():
    scale = np.repeat([[0.1], [0.2], [0.3]], 2, axis=1)
    figure = plotting.plot_snapshots([make_snapshot(1, num=3, scale=scale)], curve())
    grey = scatters(figure.axes[1])[0]
    np.testing.assert_allclose(grey.get_array(), [0.5, 1.0, 1.5])
    assert "0.2, var 6.7e-03" in figure.axes[1].get_title()


def test_snapshot_classes_have_a_legend_and_a_colour_each():
    labels = np.array(["walk", "jog", "walk"])
    figure = plotting.plot_snapshots(
        [make_snapshot(1, num=3, color=labels)], curve(), color_by="class"
    )
    colors = scatters(figure.axes[0])[0].get_facecolors()
    np.testing.assert_array_equal(colors[0], colors[2])
    assert (colors[0] != colors[1]).any()
    key = figure.axes[4].get_legend()
    assert [text.get_text() for text in key.get_texts()] == ["jog", "walk"]
    np.testing.assert_allclose(
        matplotlib.colors.to_rgba(key.legend_handles[1].get_color()), colors[0]
    )


def test_beta_curve_is_logarithmic_where_snapshots_lie_far_apart():
    near = plotting.plot_snapshots([make_snapshot(100)], curve())
    assert near.axes[3].get_xscale() == "linear"
    snapshots = [make_snapshot(10), make_snapshot(1000)]
    far = plotting.plot_snapshots(snapshots, curve(), phase_end=20)
    assert far.axes[6].get_xscale() == "log"


def test_snapshots_are_checked():
    with pytest.raises(ValueError, match="snapshots is empty"):
        plotting.plot_snapshots([], curve())
    with pytest.raises(ValueError, match="step 7 has 50 means, 50 scales, 2 colours"):
        plotting.plot_snapshots([make_snapshot(7, color=[0.0, 1.0])], curve())
    bad = make_snapshot(7)._replace(prior_samples=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"prior_samples has shape \(5, 3\)"):
        plotting.plot_snapshots([bad], curve())


def test_cyclic_map_closes_and_stays_off_white_and_black():
    colors = plotting._cyclic_map()(np.arange(256))[:, :3]
    steps = np.linalg.norm(np.roll(colors, -1, axis=0) - colors, axis=1)
    assert steps[-1] < 2 * np.median(steps)  # last to first is as any other
    half_turn = np.linalg.norm(np.roll(colors, 128, axis=0) - colors, axis=1)
    assert half_turn.min() > 0.25
    luminance = colors @ [0.2126, 0.7152, 0.0722]
    assert 0.3 < luminance.min() < luminance.max() < 0.8


def test_latent_graphs_draw_edges_by_weight_and_the_path_in_red():
    nodes = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])
    path = np.array([[-9.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    panel = plotting.GraphPanel("IWAE", nodes, [[0, 1], [1, 2]], [1.0, 3.0], [path])
    figure = plotting.plot_latent_graphs([panel, panel._replace(title="VHP")])
    assert titles(figure)[:2] == ["IWAE", "VHP"]
    ax = figure.axes[0]
    (edges,) = (c for c in ax.collections if isinstance(c, LineCollection))
    drawn = dict(zip(edges.get_array(), edges.get_segments(), strict=True))
    np.testing.assert_array_equal(drawn[1.0], nodes[[0, 1]])
    np.testing.assert_array_equal(drawn[3.0], nodes[[1, 2]])
    assert ax.lines[0].get_color() == RED
    np.testing.assert_array_equal(np.transpose(ax.lines[0].get_data()), path)
    np.testing.assert_array_equal(scatters(ax)[0].get_offsets(), nodes)
    assert ax.get_xlim()[0] < -9.0
    assert ax.get_aspect() == 1.0


def test_strips_box_both_sides_of_a_jump():
    frames = np.zeros((5, 8, 8))
    figure = plotting.plot_strips(
        {"VHP": frames, "IWAE": frames}, {"IWAE": [False, True, False, False]}
    )
    vhp, iwae = figure.axes
    assert boxes(vhp) == []
    assert len(iwae.images) == 5
    ((left, right),) = boxes(iwae)
    # Around frames 1 and 2, not touching 0 and 3.
    assert iwae.images[0].get_extent()[1] < left < iwae.images[1].get_extent()[0]
    assert iwae.images[2].get_extent()[1] < right < iwae.images[3].get_extent()[0]
    assert to_hex(iwae.patches[0].get_edgecolor()) == plotting._BLUE.lower()


def test_jumps_in_a_row_share_a_box():
    jumps = [True, True, False, False, True]
    figure = plotting.plot_strips({"a": np.zeros((6, 4, 4))}, {"a": jumps})
    ax = figure.axes[0]
    lefts = [image.get_extent()[0] for image in ax.images]
    inside = [[a < x < b for x in lefts].count(True) for a, b in boxes(ax)]
    assert inside == [3, 2]


def test_long_strips_are_thinned_out_but_keep_their_jumps():
    frames = np.arange(100.0)[:, None, None] / 100 * np.ones((100, 3, 3))
    jumps = np.zeros(99, bool)
    jumps[[36, 71]] = True
    figure = plotting.plot_strips({"a": frames}, {"a": jumps}, max_frames=12)
    ax = figure.axes[0]
    shown = [round(100 * float(image.get_array()[0, 0])) for image in ax.images]
    assert len(shown) <= 12
    assert {0, 36, 37, 71, 72, 99} <= set(shown)
    assert shown == sorted(shown)
    assert max(np.diff(shown)) <= 20
    places = [shown.index(36), shown.index(71)]
    lefts = [ax.images[place].get_extent()[0] for place in places]
    for (box_left, _), left in zip(boxes(ax), lefts, strict=True):
        assert 0 < left - box_left < 1
    assert ax.get_title("right") == f"{len(shown)} of 100 frames"


def test_jumps_are_kept_beyond_the_maximum():
    figure = plotting.plot_strips(
        {"a": np.zeros((20, 3, 3))}, {"a": np.ones(19, bool)}, max_frames=5
    )
    assert len(figure.axes[0].images) == 20


def test_strips_are_checked():
    frames = np.zeros((4, 3, 3))
    with pytest.raises(ValueError, match=r"jumps has \['b'\]; strips has only \['a'\]"):
        plotting.plot_strips({"a": frames}, {"b": [False] * 3})
    with pytest.raises(ValueError, match=r"shape \(4,\); wanted \(3,\)"):
        plotting.plot_strips({"a": frames}, {"a": [False] * 4})
    with pytest.raises(ValueError, match="a has shape"):
        plotting.plot_strips({"a": np.zeros((4, 9))}, {})


def test_regression_draws_predictions_in_the_turn_next_to_the_truth():
    angle = np.array([0.1, 3.0, 6.2])
    fitted = np.array([5.25, 3.1 - 4 * np.pi, 0.05])
    figure = plotting.plot_regression(
        {"REWO": (angle, fitted), "IWAE": (angle, angle)}, {"REWO": 0.0541}
    )
    assert titles(figure) == ["REWO (0.054 rad)", "IWAE"]
    points = scatters(figure.axes[0])[0].get_offsets()
    np.testing.assert_array_equal(points[:, 0], angle)
    expected = [5.25 - 2 * np.pi, 3.1, 0.05 + 2 * np.pi]
    np.testing.assert_allclose(points[:, 1], expected)
    low, high = figure.axes[0].get_ylim()
    assert low < min(expected) < max(expected) < high
    truth = figure.axes[0].lines[0]
    np.testing.assert_array_equal(truth.get_xdata(), truth.get_ydata())
    assert truth.get_linestyle() == "--"


def test_quarter_circle_draws_means_of_intervals_and_the_truth():
    angle = np.repeat((np.arange(30) + 0.5) * np.pi / 60, 2)
    fitted = 0.9 * angle + np.tile([-0.1, 0.1], 30)
    figure = plotting.plot_quarter_circle({"GECO": (angle, fitted)}, {"GECO": 0.53})
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), angle[::2])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0.9 * angle[::2])
    np.testing.assert_array_equal(scatters(ax)[0].get_offsets()[:, 1], fitted)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["GECO (0.530 rad)", "ground truth"]
    assert ax.lines[1].get_linestyle() == "--"
    np.testing.assert_array_equal(*ax.lines[1].get_data())


def test_quarter_circle_leaves_empty_intervals_out():
    angle = np.array([0.0, np.pi / 2])  # both limits included
    figure = plotting.plot_quarter_circle({"a": (angle, angle)})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), angle)


def test_angles_must_match():
    with pytest.raises(ValueError, match="a has 3 true but 2 fitted"):
        plotting.plot_regression({"a": (np.zeros(3), np.zeros(2))})
    with pytest.raises(ValueError, match="curves is empty"):
        plotting.plot_quarter_circle({})


def make_metrics():
    step = np.arange(0, 1000, 10)
    return {
        "step": step,
        "distortion": -300.0 + 50.0 * np.exp(-step / 300),
        "rate": 3.0 + step / 1000,
        "constraint": 0.01 * np.exp(-step / 100) + 3e-4,
        "kappa_squared": np.full(100, 4e-4),
        "beta": step / 1000,
        "initial_phase": step < 250,
        "wall_seconds": step,
    }


def test_history_draws_four_curves_and_shades_the_first_phase():
    metrics = make_metrics()
    figure = plotting.plot_history(metrics, "run")
    assert figure.get_suptitle() == "run"
    assert len(figure.axes) == 4
    names = ("distortion", "rate", "constraint", "beta")
    for ax, name in zip(figure.axes, names, strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), metrics["step"])
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), metrics[name])
        assert shaded(ax) == [(0.0, 250.0)]
    constraint = figure.axes[2]
    assert constraint.get_yscale() == "log"
    assert constraint.lines[1].get_linestyle() == "--"
    np.testing.assert_array_equal(constraint.lines[1].get_ydata(), 4e-4)


def test_history_shades_all_while_phase_1_lasts_and_nothing_without_it():
    metrics = make_metrics()
    metrics["initial_phase"] = np.ones(100, bool)
    assert shaded(plotting.plot_history(metrics).axes[0]) == [(0.0, 990.0)]
    metrics["initial_phase"] = np.zeros(100, bool)
    assert shaded(plotting.plot_history(metrics).axes[0]) == []


def test_history_draws_what_is_there():
    metrics = {name: make_metrics()[name] for name in ("step", "rate", "beta")}
    figure = plotting.plot_history(metrics)
    assert [title.split()[0] for title in titles(figure)] == ["rate", r"$\beta$"]


def test_history_is_not_flattened_by_a_burst_at_the_start():
    metrics = make_metrics()
    calm = plotting.plot_history(metrics).axes[0].get_ylim()
    assert calm[0] < -300.0 < -250.0 < calm[1]
    metrics["distortion"][0] = 1e6
    assert plotting.plot_history(metrics).axes[0].get_ylim()[1] < -200.0


def test_history_is_checked():
    with pytest.raises(ValueError, match=r"metrics has \['beta'\]; wanted step"):
        plotting.plot_history({"beta": [1.0]})
    with pytest.raises(ValueError, match="beta has 1 values; wanted 2"):
        plotting.plot_history({"step": [1, 2], "beta": [1.0]})


@pytest.mark.parametrize(("num", "rows", "columns"), [(1, 1, 1), (7, 3, 3), (64, 8, 8)])
def test_image_grid_is_near_square_and_row_by_row(num, rows, columns):
    images = np.arange(1, num + 1)[:, None, None] / (num + 1) * np.ones((num, 4, 6))
    tiles = plotting.plot_image_grid(images).axes[0].images[0].get_array()
    assert tiles.shape == (5 * rows - 1, 7 * columns - 1)
    for index, image in enumerate(images):
        top, left = 5 * (index // columns), 7 * (index % columns)
        np.testing.assert_array_equal(tiles[top : top + 4, left : left + 6], image)
    with pytest.raises(ValueError, match="images is empty"):
        plotting.plot_image_grid(images[:0])


def test_images_keep_their_colours():
    red = np.zeros((5, 4, 6, 3))
    red[..., 0] = np.arange(1, 6)[:, None, None] / 5
    tiles = plotting.plot_image_grid(red).axes[0].images[0].get_array()
    assert tiles.shape == (9, 20, 3)
    np.testing.assert_array_equal(tiles[5:9, 7:13], red[4])
    axes = plotting.plot_strips({"a": red, "b": red[..., 0]}, {}).axes
    np.testing.assert_array_equal(axes[0].images[2].get_array(), red[2])
    grey = plotting.plot_image_grid(red[..., :1]).axes[0].images[0].get_array()
    np.testing.assert_array_equal(grey, tiles[..., 0])
    with pytest.raises(ValueError, match=r"\(5, 4, 6, 2\); wanted \[N, H, W\] or"):
        plotting.plot_image_grid(red[..., :2])


def test_validation_is_drawn_over_training_and_within_the_axes():
    step = np.arange(1.0, 101.0)
    metrics = {"step": step, "rate": np.full(100, 30.0), "beta": np.ones(100)}
    validation = {"step": step[::10], "rate": np.linspace(26.0, 24.0, 10)}
    figure = plotting.plot_history(metrics, validation=validation)
    rate, beta = figure.axes
    low, high = rate.get_ylim()
    assert low <= 24.2
    assert high >= 30.0
    curves = {line.get_label(): line for line in rate.get_lines()}
    np.testing.assert_array_equal(curves["validation"].get_ydata(), validation["rate"])
    assert "validation" not in {line.get_label() for line in beta.get_lines()}


def test_rate_and_distortion_share_a_plane_with_lines_of_equal_bound():
    step = np.array([1.0, 2.0, 3.0])
    curves = {
        "one": {"step": step, "rate": [10.0, 20.0, 25.0], "distortion": [90, 70, 62]},
        "two": {"step": step, "rate": [5.0, 9.0, 12.0], "distortion": [120, 100, 90]},
    }
    plane, over_time = plotting.plot_rate_distortion(curves).axes
    drawn = {line.get_label(): line for line in over_time.get_lines()}
    np.testing.assert_array_equal(drawn["one"].get_ydata(), [100.0, 90.0, 87.0])
    ways = {line.get_label(): line for line in plane.get_lines()}
    for name, curve in curves.items():
        way = ways[name].get_xydata()
        np.testing.assert_array_equal(way.T, [curve["rate"], curve["distortion"]])
    levels = []
    for line in plane.get_lines():
        if line.get_linestyle() == ":":
            (level,) = set(np.round(line.get_xdata() + line.get_ydata(), 6))
            levels.append(level)
    assert {80.0, 90.0, 100.0} <= set(levels)  # the ends are at 87 and 102
    ends = [
        line.get_xydata()[0] for line in plane.get_lines() if line.get_marker() == "o"
    ]
    np.testing.assert_array_equal(ends, [[25.0, 62.0], [12.0, 90.0]])


def test_active_units_are_bars_on_one_logarithmic_scale():
    kl = {"REWO": [3.0, 1.0, 0.0], "WU": [2.0, 1e-3, 1e-9]}
    figure = plotting.plot_active_units(kl)
    for ax, values in zip(figure.axes, kl.values(), strict=True):
        assert ax.get_yscale() == "log"
        heights = [bar.get_height() for bar in ax.patches]
        np.testing.assert_allclose(heights, np.maximum(values, 1e-4))
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


# --- Bodies --------------------------------------------------------------------------

# A root at the hip, a head above, a left and a right foot below.
BODY = np.array([[0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.2, 0.0, 0.3], [-0.2, 0.0, -0.3]])
SKELETON = plotting.Skeleton(("root", "lowerneck", "lfoot", "rfoot"), [-1, 0, 0, 0])


def sticks(ax):
    return [c for c in ax.collections if isinstance(c, LineCollection)]


def test_pose_strips_draw_bodies_upright_left_blue_and_right_red():
    figure = plotting.plot_pose_strips(
        {"VHP": np.stack([BODY, BODY, BODY])}, {"VHP": [False, True]}, SKELETON
    )
    (ax,) = figure.axes
    bodies = sticks(ax)
    assert len(bodies) == 3
    trunk, left, right = bodies[0].get_segments()
    # The axis points down, as in images: the head lies above the root on the paper.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert trunk[1, 1] < trunk[0, 1] < left[1, 1] == right[1, 1]
    assert trunk[0, 1] - trunk[1, 1] == pytest.approx(1.0)
    # Forward (z) is to the right; what is left of the body lies further forward here.
    assert left[1, 0] > trunk[0, 0] > right[1, 0]
    colors = [to_hex(color) for color in bodies[0].get_colors()]
    assert colors[1:] == [plotting._BLUE.lower(), plotting._RED.lower()]
    assert colors[0] not in colors[1:]  # lowerneck is no left limb
    ((first, last),) = boxes(ax)
    places = [body.get_segments()[0][0, 0] for body in bodies]
    assert [first < place < last for place in places] == [False, True, True]
    assert ax.get_aspect() == 1.0


def test_pose_grid_has_a_cell_for_each_body():
    poses = np.stack([BODY] * 5) + np.arange(5.0)[:, None, None] * 0.01
    figure = plotting.plot_pose_grid(poses, SKELETON, "five", columns=3)
    (ax,) = figure.axes
    roots = np.array([body.get_segments()[0][0] for body in sticks(ax)])
    assert len(roots) == 5
    assert roots[0, 0] < roots[1, 0] < roots[2, 0]
    assert roots[3, 0] == pytest.approx(roots[0, 0], abs=0.1)
    assert roots[3, 1] > roots[0, 1] + 2.0  # a row below, a body's height apart
    for body in sticks(ax):
        ends = np.concatenate(body.get_segments())
        assert (ends >= 0.0).all()
        assert (ends <= [ax.get_xlim()[1], ax.get_ylim()[0]]).all()
    with pytest.raises(ValueError, match="poses is empty"):
        plotting.plot_pose_grid(np.zeros((0, 4, 3)), SKELETON)


def test_animation_is_a_gif_of_as_many_frames_that_move(tmp_path):
    poses = BODY + np.linspace(0.0, 1.0, 3)[:, None, None] * np.array([0.0, 1.0, 0.0])
    path = tmp_path / "new" / "walk.gif"
    plotting.save_animation(poses, SKELETON, path, "walk")
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == 3
        frames = []
        for index in range(3):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("L")).copy())
    assert (frames[0] != frames[1]).any()
    assert (frames[1] != frames[2]).any()
    assert [file.name for file in path.parent.iterdir()] == ["walk.gif"]


def test_smoothness_bars_stand_side_by_side_with_their_deviations():
    factors = {"VHP": ([1.0, 2.0], [0.1, 0.2]), "IWAE": ([3.0, 4.0], [0.3, 0.4])}
    figure = plotting.plot_smoothness(factors, ["lfemur", "head"], "degrees")
    (ax,) = figure.axes
    heights = [
        [bar.get_height() for bar in bars.patches] for bars in ax.containers[1::2]
    ]
    assert heights == [[1.0, 2.0], [3.0, 4.0]]
    vhp, iwae = ax.containers[1::2]
    for ours, theirs in zip(vhp.patches, iwae.patches, strict=True):
        assert ours.get_x() + ours.get_width() == pytest.approx(theirs.get_x())
    whiskers = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(
        [line[:, 1] for line in whiskers], [[0.9, 1.1], [1.8, 2.2]]
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["lfemur", "head"]
    assert "degrees" in ax.get_ylabel()
    with pytest.raises(ValueError, match="wanted 2, one a joint"):
        plotting.plot_smoothness({"VHP": ([1.0], [0.1])}, ["lfemur", "head"])
