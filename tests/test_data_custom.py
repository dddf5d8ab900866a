"""Data of one's own: read as they are, chosen by what they are, refused in one line."""

import re

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from two_steps import TWO_STEPS

from vhp_jax.data import DataError, custom


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    return generator.normal(3.0, [1.0, 10.0, 100.0], (40, 3))


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def write_images(folder, sizes, mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        shape = (height, width) if mode == "L" else (height, width, 3)
        pixels = generator.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")


def write_parquet(path, columns):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)


# --- Files ---------------------------------------------------------------------------


def write(path, rows):
    kind = path.suffix
    if kind == ".npy":
        np.save(path, rows)
    elif kind == ".npz":
        np.savez(path, x=rows, y=np.arange(len(rows)))
    elif kind == ".csv":
        np.savetxt(path, rows, delimiter=",", header="a,b,c", comments="", fmt="%.17g")
    else:
        write_parquet(path, {name: rows[:, i] for i, name in enumerate("abc")})


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_standardised_rows(kind, rows, tmp_path):
    path = tmp_path / f"rows{kind}"
    write(path, rows)
    dataset = custom.load(str(path))
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part.examples) for part in parts] == [32, 4, 4]
    train = dataset.train.examples
    assert train.dtype == np.float32
    np.testing.assert_allclose(train.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1.0, rtol=1e-5)
    # Undone, all rows of the file are there once.
    units = dataset.standardisation
    back = np.concatenate([part.examples for part in parts])
    back = back * units.scale + units.mean
    order = np.lexsort(back.T[:1])
    np.testing.assert_allclose(back[order], rows[np.lexsort(rows.T[:1])], rtol=1e-4)


def test_the_split_depends_on_the_seed_alone(rows, tmp_path):
    np.save(tmp_path / "x.npy", rows)
    first, same, other = (
        custom.load(str(tmp_path / "x.npy"), seed=seed).test.examples
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_an_array_of_an_npz_is_named(rows, tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, left=rows, right=rows + 1.0)
    assert len(custom.load(str(path), key="right").train.examples) == 32
    with pytest.raises(DataError) as error:
        custom.load(str(path))
    one_line(error, "left, right", "data.key")
    with pytest.raises(DataError) as error:
        custom.load(str(path), key="middle")
    one_line(error, "'middle'", "left, right")


def test_a_folder_of_images_is_grey_and_bernoulli(tmp_path):
    write_images(tmp_path / "pictures", [(6, 5)] * 10)
    (tmp_path / "pictures" / ".hidden").write_text("of the system")
    dataset = custom.load(str(tmp_path / "pictures"))
    assert dataset.train.examples.shape == (6, 6, 5, 1)
    assert dataset.standardisation is None
    assert 0.0 <= dataset.train.examples.min() < dataset.train.examples.max() <= 1.0
    assert "bytes" in dataset.source
    whole = custom.read_images(tmp_path / "pictures")[0]
    with Image.open(tmp_path / "pictures" / "03.png") as image:
        np.testing.assert_array_equal(whole[3, ..., 0], np.asarray(image))


def test_sub_folders_are_labels_and_colours_stay_where_wanted(tmp_path):
    for label in ("cat", "dog"):
        write_images(tmp_path / label, [(4, 4)] * 6, "RGB")
    dataset = custom.load(str(tmp_path), colour=True)
    assert dataset.train.examples.shape[1:] == (4, 4, 3)
    assert dataset.target_kind == "label"
    assert dataset.label_names == ("cat", "dog")
    counts = sum(
        np.bincount(part.targets, minlength=2)
        for part in (dataset.train, dataset.validation, dataset.test)
    )
    np.testing.assert_array_equal(counts, [6, 6])


def test_images_of_many_sizes_can_be_resized(tmp_path):
    write_images(tmp_path, [(6, 5), (8, 8)] * 4)
    assert custom.read_images(tmp_path, (4, 3))[0].shape == (8, 4, 3, 1)


# --- Likelihood and scale ------------------------------------------------------------

GENERATOR = np.random.default_rng(1)
BINARY = GENERATOR.integers(0, 2, (50, 7))
FLAT_IMAGES = np.clip(GENERATOR.normal(0.3, 0.5, (50, 9)), 0.0, 1.0)
SHARES = GENERATOR.uniform(0.0, 1.0, (50, 4))
COUNTS = np.concatenate([GENERATOR.integers(0, 17, (50, 8)), [[0] * 8, [16] * 8]])


@pytest.mark.parametrize(
    ("examples", "likelihood", "scale"),
    [
        (BINARY, "bernoulli", 1.0),
        (BINARY.astype(bool), "bernoulli", 1.0),
        (FLAT_IMAGES, "bernoulli", 1.0),
        (FLAT_IMAGES.reshape(50, 3, 3), "bernoulli", 1.0),
        (SHARES.reshape(50, 2, 2), "bernoulli", 1.0),  # images at all
        ((255 * SHARES).astype(np.uint8).reshape(50, 2, 2, 1), "bernoulli", 255.0),
        # Whole numbers: bytes as others store them, or a smaller scale of greys.
        ((255 * SHARES).round().reshape(50, 2, 2), "bernoulli", 255.0),
        (COUNTS.reshape(-1, 2, 4).astype(float), "bernoulli", 16.0),
        (SHARES, "gaussian", None),
        (-BINARY, "gaussian", None),
        (COUNTS, "gaussian", None),
    ],
)
def test_the_likelihood_is_chosen_by_the_data(examples, likelihood, scale):
    units = custom.choose_units(examples)
    assert units.likelihood == likelihood
    assert units.reason.lower().startswith(likelihood)
    if scale is not None:
        np.testing.assert_array_equal(units.standardisation.scale, scale)
        np.testing.assert_array_equal(units.standardisation.mean, 0.0)


def test_columns_of_one_unit_share_a_scale_and_others_do_not(rows):
    together = custom.choose_units(COUNTS).standardisation
    assert np.ptp(together.scale) == 0.0
    np.testing.assert_allclose(np.square(together.apply(COUNTS)).mean(), 1.0, rtol=1e-5)
    apart = custom.choose_units(rows).standardisation
    np.testing.assert_allclose(apart.apply(rows).std(axis=0), 1.0, rtol=1e-5)
    common = custom.choose_units(rows, scaling="common").standardisation
    assert np.ptp(common.scale) == 0.0
    kept = custom.choose_units(rows, scaling="none").standardisation
    np.testing.assert_array_equal(kept.apply(rows), rows.astype(np.float32))


def test_constant_columns_are_named_and_kept():
    rows = np.random.default_rng(0).normal(size=(20, 4))
    rows[:, 2] = 7.0
    units = custom.choose_units(rows)
    assert "1 of 4 columns are constant (2)" in units.reason
    np.testing.assert_array_equal(units.standardisation.apply(rows)[:, 2], 0.0)


@pytest.mark.parametrize("value", [0.1, 36.6, 3e-12, 1e6 + 0.3])
def test_constant_columns_are_known_among_many_rows(value):
    """The mean of so many is rounded more than any one of them."""
    rows = np.random.default_rng(0).normal(size=(20_000, 2))
    rows[:, 1] = value
    units = custom.choose_units(rows)
    assert "1 of 2 columns are constant (1)" in units.reason
    assert units.standardisation.scale[1] == 1.0


def test_columns_far_from_zero_are_standardised_without_loss():
    rows = np.random.default_rng(0).normal(1e9, 1.0, (500, 2))
    scaled = custom.choose_units(rows).standardisation.apply(rows)
    np.testing.assert_allclose(scaled.std(axis=0), 1.0, rtol=1e-4)


# --- What is refused -----------------------------------------------------------------

NAN = np.ones((9, 4))
NAN[3, 1] = np.nan
INFINITE = np.ones((9, 2, 2))
INFINITE[5, 1, 0] = -np.inf
HUGE = np.ones((9, 4))
HUGE[8, 0] = 1e200
HALF = np.ones((9, 4), np.float16)  # in which 1e30 is infinite too
HALF[5, 2] = np.inf


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (NAN, ("example 3, column 1", "nan")),
        (INFINITE, ("example 5", "(1, 0)", "-inf")),
        (HUGE, ("example 8, column 0", "1e+200", "1e+30")),
        (HALF, ("example 5, column 2", "is inf")),
        (np.array([["a", "b"], ["c", "d"]]), ("strings",)),
        (np.array([[1j, 2], [3, 4]]), ("complex",)),
        (np.array([[1, {}], [3, 4]], object), ("(0, 1)", "dict")),
        (np.array([[1, "b"], [3, 4]], object), ("(0, 1)", "str")),
        ([[1, 2], [3, 4, 5]], ("example 1", "(3,)", "(2,)")),
        ([np.zeros((4, 4)), np.zeros((4, 5))], ("example 1", "(4, 5)", "(4, 4)")),
        (np.array(["2020-01-01"], "M8[D]").reshape(1, 1), ("dates",)),
        (np.ones(5), ("(5,)",)),
        (np.ones((1, 5)), ("1 example", "at least 2")),
        (np.ones((5, 0)), ("at least one column",)),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(values, words):
    with pytest.raises(DataError) as error:
        custom.checked("THIS", values)
    one_line(error, "THIS", *words)


def test_numbers_kept_as_objects_are_numbers():
    array = custom.checked("x", np.array([[1, 2.5], [True, np.float32(3)]], object))
    np.testing.assert_array_equal(array, [[1.0, 2.5], [1.0, 3.0]])


def test_values_that_do_not_vary_or_do_not_fit_are_refused():
    for values in (np.ones((9, 3)), np.tile([1.0, 2.0, 3.0], (9, 1))):
        with pytest.raises(DataError, match="vary"):
            custom.choose_units(values)
    with pytest.raises(DataError, match=r"bernoulli wants .* got -1 to 0"):
        custom.choose_units(-BINARY, likelihood="bernoulli")
    for arguments in ({"likelihood": "poisson"}, {"scaling": "log"}):
        with pytest.raises(ValueError, match="must be one of auto"):
            custom.choose_units(BINARY, **arguments)


def save_objects(path):
    np.save(path, np.array([[1, {}]], object), allow_pickle=True)


def save_pickle(path):
    path.write_bytes(b"\x80\x04K\x01.")


FILES = {
    "objects.npy": (save_objects, ("pickle", "never loaded")),
    "pickle.npy": (save_pickle, ("a Python pickle",)),
    "page.npy": (lambda p: p.write_text("<html>"), ("a web page",)),
    "cut.npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01"), ("damaged",)),
    "strings.npy": (lambda p: np.save(p, np.array([["a"]] * 9)), ("strings",)),
    "few.npy": (lambda p: np.save(p, np.eye(3)), ("3 example", "at least 6")),
    "same.npy": (lambda p: np.save(p, np.ones((9, 3))), ("vary",)),
    "cut.npz": (lambda p: p.write_bytes(b"PK\x03\x04abc"), ("damaged",)),
    "words.csv": (lambda p: p.write_text("a,b\n1,2\n3,x\n"), ("'x'", "row 1")),
    "ragged.csv": (lambda p: p.write_text("1,2\n3,4,5\n"), ("from 2 to 3", "row")),
    "index.csv": (lambda p: p.write_text(",a\n0,1\n1,2\n"), ("no name", "index")),
    "hole.csv": (lambda p: p.write_text(",1.5,2\n3,1,2\n"), ("row 0, column 0",)),
    "gap.csv": (lambda p: p.write_text("1.5,,2\n3,1,2\n"), ("row 0, column 1",)),
    "holes.csv": (lambda p: p.write_text("1,2\n3,\n"), ("''", "column 2")),
    "empty.csv": (lambda p: p.write_text(""), ("empty",)),
    "bytes.csv": (lambda p: p.write_bytes(b"\xff\xfe\x00"), ("not a text file",)),
    "cut.parquet": (lambda p: p.write_bytes(b"PAR1"), ("damaged",)),
    "table.xlsx": (lambda p: p.write_bytes(b"PK"), (".csv, .npy, .npz, .parquet",)),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_named_in_one_line(name, tmp_path):
    make, words = FILES[name]
    make(tmp_path / name)
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path / name))
    one_line(error, name, *words)


def test_parquet_columns_that_are_no_numbers_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    for column, words in ((["a", "b"], ("'c'", "string")), ([1.0, None], ("missing",))):
        write_parquet(path, {"c": column})
        with pytest.raises(DataError) as error:
            custom.load(str(path))
        one_line(error, *words)


def test_folders_with_something_else_in_them_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file in it"):
        custom.load(str(tmp_path))
    write_images(tmp_path, [(4, 4)] * 8)
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path))
    one_line(error, "notes.txt", "wanted only images")
    (tmp_path / "notes.txt").rename(tmp_path / "notes.png")
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path))
    one_line(error, "notes.png", "begins with", "wanted an image")
    whole = (tmp_path / "00.png").read_bytes()
    (tmp_path / "notes.png").write_bytes(whole[:40])
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path))
    one_line(error, "notes.png")
    (tmp_path / "notes.png").unlink()
    write_images(tmp_path, [(4, 4), (4, 5)])
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path))
    one_line(error, "01.png", "4 x 5", "4 x 4", "image_size")
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="lies beside folders"):
        custom.load(str(tmp_path))


@pytest.mark.parametrize("path", ["", "nowhere.npy"])
def test_a_path_that_is_not_there_is_said(path):
    with pytest.raises(DataError, match=re.escape(path or "--config.data.path")):
        custom.load(path)


@pytest.mark.parametrize("share", [0.0, 0.5, float("nan")])
def test_shares_out_of_range_are_refused(share, rows, tmp_path):
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ValueError, match="test_share must be between 0 and"):
        custom.load(str(tmp_path / "x.npy"), test_share=share)


# --- tensorflow-datasets -------------------------------------------------------------


def test_images_of_tensorflow_datasets(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)

    def source(name, split):
        if name == "absent":
            raise ValueError("no such\ndata set")
        return [{"text" if name == "words" else "image": image} for image in images]

    monkeypatch.setattr(tfds, "data_source", source)
    np.testing.assert_array_equal(custom.read_tfds("made"), images)
    with pytest.raises(DataError) as error:
        custom.read_tfds("absent")
    one_line(error, "absent, train", "no such data set")
    with pytest.raises(DataError, match="words: its examples have no image"):
        custom.read_tfds("words")


# --- The config ----------------------------------------------------------------------

TINY = TWO_STEPS | {
    "model.prior_hidden": "8",
    "beta.kappa": "5.0",
    "graph.num_nodes": "24",
    "graph.num_neighbours": "5",
}


def config_of(path, **more):
    from experiments import cli

    overrides = TINY | {"data.path": str(path)} | more
    return cli.load_config("custom", list(overrides.items()))


@pytest.mark.slow
@pytest.mark.optax
@pytest.mark.parametrize("kind", ["rows", "grey", "colour", "labels"])
def test_the_config_trains_on_rows_and_images(kind, rows, tmp_path):
    from experiments import cli, figures, run_files, runs, trainer
    from vhp_jax import networks

    more = {}
    path = tmp_path / "rows.npy"
    if kind == "rows":
        np.save(path, rows)
    else:
        path = tmp_path / "pictures"
        mode = "RGB" if kind == "colour" else "L"
        more = {"data.colour": str(kind == "colour").lower()}
        for folder in ("a", "b") if kind == "labels" else (".",):
            write_images(path / folder, [(4, 5)] * 20, mode)
    config = config_of(path, **more)
    draw = figures.training_figures
    assert trainer.train(config, tmp_path / "run", draw=draw)["completed"]
    restored = runs.restore(tmp_path / "run")
    run = restored.run
    decoder = run.experiment.model.decoder
    wanted = networks.GaussianDecoder if kind == "rows" else networks.BernoulliDecoder
    assert isinstance(decoder, wanted)
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    pairs = [(0, 1)] if kind == "labels" else figures.default_pairs(run)
    figures.Interpolation(run, restored.first(), pairs, seed=0)
    words = f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'shared'}"
    assert forked.run("experiments.export", *words)[0] == 0
    assert runs.restore(tmp_path / "shared").step == runs.restore(tmp_path / "run").step
    # One more example splits them otherwise: test examples would be trained on.
    if kind == "rows":
        np.save(path, np.concatenate([rows, rows[:1]]))
    else:
        write_images(path / ("b" if kind == "labels" else "."), [(4, 5)] * 21, mode)
    for again in (
        lambda: runs.restore(tmp_path / "run"),
        lambda: runs.restore(tmp_path / "shared"),
        lambda: trainer.train(config, tmp_path / "run"),
    ):
        with pytest.raises(cli.UserError) as error:
            again()
        one_line(error, "other examples than", str(path), "same files")
    # A directory that is older than its digest adopts none.
    (tmp_path / "run" / run_files.DATA).unlink()
    assert trainer.train(config, tmp_path / "run")["completed"]
    assert not (tmp_path / "run" / run_files.DATA).exists()


HEADERS = {"": False, "a,b,c\n": True, "0,1,2\n": True, '"0","1","2"\n': True}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_header_is_no_example(header, quote, tmp_path):
    path = tmp_path / "rows.csv"
    values = np.random.default_rng(0).normal(size=(20, 3)).round(3)
    lines = [",".join(f"{quote}{a}{quote}" for a in row) + "\n" for row in values]
    path.write_text(header + "".join(lines))
    dataset = custom.load(str(path), scaling="none")
    parts = (dataset.train, dataset.validation, dataset.test)
    seen = np.concatenate([part.examples for part in parts])
    np.testing.assert_array_equal(np.sort(seen, 0), np.sort(values, 0).astype("f"))
    assert ("first line taken as names" in dataset.source) == HEADERS[header]


def test_a_row_of_bits_is_no_header(tmp_path):
    path = tmp_path / "bits.csv"
    path.write_text("0,1\n" + "1,0\n1,1\n" * 10)
    assert "21 examples" in custom.load(str(path)).source


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_values_beyond_the_full_scale_of_training_are_refused(split, tmp_path):
    levels = np.random.default_rng(0).integers(0, 17, (40, 4, 5))
    np.save(tmp_path / "x.npy", np.arange(40)[:, None] + np.zeros((40, 3)))
    rows = custom.load(str(tmp_path / "x.npy"), scaling="none")
    levels[int(getattr(rows, split).examples[0, 0])] = 100
    np.save(tmp_path / "levels.npy", levels)
    if split == "train":  # then it is the full scale
        assert "from 0 to 100" in custom.load(str(tmp_path / "levels.npy")).source
        return
    with pytest.raises(DataError) as error:
        custom.load(str(tmp_path / "levels.npy"))
    one_line(error, "from 0 to 100", "from 0 to 16", "likelihood=gaussian")
    assert custom.load(str(tmp_path / "levels.npy"), likelihood="gaussian")


def test_examples_are_drawn_in_their_own_units(tmp_path):
    from experiments import views

    generator = np.random.default_rng(0)
    colours = generator.uniform(-1.0, 3.0, (40, 4, 6, 3))
    kinds = {
        "colour": colours,
        "grey": colours[..., :1],
        "two": colours[..., :2],
        "deep": generator.uniform(-1.0, 3.0, (40, 4, 6, 3, 3)),
        "bits": (generator.random((40, 8)) < 0.5).astype(np.uint8),
        "rows": 7.0 + 2.0 * generator.standard_normal((40, 8)),
    }
    for name, examples in kinds.items():
        np.save(tmp_path / f"{name}.npy", examples)
        dataset = custom.load(str(tmp_path / f"{name}.npy"))
        view, train = views.view(dataset), dataset.train.examples
        frames = view.frames(train.reshape(len(train), -1))
        if name in ("bits", "rows"):
            assert frames.shape == (len(train), 2, 8)
            wanted = train if name == "bits" else 0.5 + train / 6.0
            np.testing.assert_allclose(frames[:, 1], wanted, atol=1e-6)
            continue
        # Of all training images the darkest pixel is black, the brightest white.
        own = train * dataset.standardisation.scale + dataset.standardisation.mean
        own = (own - own.min()) / np.ptp(own)
        rest = tuple(range(3, own.ndim))
        wanted = own if name == "colour" else own.mean(axis=rest)
        np.testing.assert_allclose(frames, wanted, atol=1e-5)


@pytest.mark.slow
def test_falling_widths_start_at_the_mean(rows, tmp_path):
    """They cannot hold a principal start."""
    from experiments import build

    np.save(tmp_path / "x.npy", rows)
    config = config_of(
        tmp_path / "x.npy", **{"model.hidden": "16,8", "model.latent_dim": "2"}
    )
    experiment = build.build(config)
    params = experiment.init_params(jax.random.key(0))
    shape = experiment.dataset.train.examples.shape[1:]
    mean = experiment.model.decode(params, jnp.zeros((1, 2))).mean
    wanted = experiment.dataset.train.examples.mean(axis=0)
    np.testing.assert_allclose(mean.reshape(shape), wanted, atol=1e-4)


def test_a_kappa_that_is_not_given_is_asked_for(rows, tmp_path):
    from experiments import build, cli

    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(cli.UserError) as error:
        build.build(config_of(tmp_path / "x.npy", **{"beta.kappa": "0"}))
    one_line(error, "config.beta.kappa is not given", "experiments.suggest_kappa")


def test_labels_belong_to_the_digest(tmp_path):
    for folder in ("a", "b"):
        write_images(tmp_path / folder, [(4, 5)] * 6)
    before = custom.load(str(tmp_path)).digest
    assert custom.load(str(tmp_path)).digest == before
    last = max((tmp_path / "a").iterdir())
    last.rename(tmp_path / "b" / f"!{last.name}")  # the first of b: the same order
    assert custom.load(str(tmp_path)).digest != before
