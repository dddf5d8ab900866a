"""The image data sets: decoding on small files made here, then the published files."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from vhp_jax.data import (
    fashion_mnist,
    files,
    idx,
    mnist,
    omniglot,
    png,
    static_mnist,
    tfds,
)
from vhp_jax.data.base import (
    DataError,
    Dataset,
    Split,
    bernoulli_dataset,
    binarise,
)

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")
RANDOM = np.random.default_rng(0)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def message(function, *args, error=DataError, **kwargs):
    """The one line that a call ends with."""
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Binarisation --------------------------------------------------------------------


def grey(count, seed=0):
    shape = (count, 28, 28, 1)
    images = np.random.default_rng(seed).random(shape, np.float32)
    return Split(images, np.arange(count))


def toy(num_train=5, num_validation=4, num_test=3, **options):
    counts = (num_train, num_validation, num_test)
    splits = {name: grey(n, i) for i, (name, n) in enumerate(zip(SPLITS, counts))}
    return bernoulli_dataset("toy", "made here", splits, **options)


def test_binary_draws_have_their_means_and_extreme_means_are_never_missed():
    means = np.repeat(np.float32([0.0, 0.1, 0.5, 1.0]), 100_000).reshape(4, -1)
    drawn = binarise(means, np.random.default_rng(1))
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert (drawn[0] == 0.0).all()
    assert (drawn[3] == 1.0).all()
    deviation = np.sqrt(means[:, 0] * (1.0 - means[:, 0]) / means.shape[1])
    assert (np.abs(drawn.mean(axis=1) - means[:, 0]) <= 4.0 * deviation).all()


def test_dynamic_leaves_training_means_and_draws_the_others_once():
    dataset, means = toy(values="dynamic"), toy(values="grey")
    assert dataset.dynamic
    assert dataset.target_kind == "label"
    assert dataset.source == "made here; validation and test binarised with seed 0"
    np.testing.assert_array_equal(dataset.train.examples, means.train.examples)
    for name in ("validation", "test"):
        examples = getattr(dataset, name).examples
        assert examples.dtype == np.float32
        assert set(np.unique(examples)) == {0.0, 1.0}
        correlation = np.corrcoef(examples.ravel(), getattr(means, name).examples.ravel())
        assert correlation[0, 1] > 0.4  # 1/sqrt(3) for uniform means
    for name in SPLITS:
        np.testing.assert_array_equal(
            getattr(dataset, name).targets, getattr(means, name).targets
        )


def test_grey_leaves_all_means():
    dataset = toy(values="grey")
    assert not dataset.dynamic
    assert dataset.source == "made here; grey values"
    for index, name in enumerate(SPLITS):
        examples = getattr(dataset, name).examples
        np.testing.assert_array_equal(examples, grey(len(examples), index).examples)


def test_the_size_of_one_split_does_not_change_the_draws_of_the_other():
    first, other = toy(), toy(num_train=9, num_validation=2)
    np.testing.assert_array_equal(first.test.examples, other.test.examples)
    other = toy(num_train=2, num_test=9)
    np.testing.assert_array_equal(first.validation.examples, other.validation.examples)


def test_the_seed_decides_and_the_splits_have_streams_of_their_own():
    same = dict.fromkeys(SPLITS, grey(50))
    first, again, other = (
        bernoulli_dataset("toy", "", same, "dynamic", seed) for seed in (1, 1, 2)
    )
    for name in ("validation", "test"):
        drawn = getattr(first, name).examples
        np.testing.assert_array_equal(drawn, getattr(again, name).examples)
        assert (drawn != getattr(other, name).examples).any()
    assert (first.validation.examples != first.test.examples).any()


def test_unknown_values_and_seeds_are_named():
    wanted = "values must be 'dynamic' or 'grey', got 'binary'"
    assert message(toy, values="binary", error=ValueError) == wanted
    assert message(toy, seed=-1, error=ValueError) == (
        "seed must not be negative, got -1"
    )


# --- Files ---------------------------------------------------------------------------

TEXT = bytes(range(256)) * 40


@pytest.mark.parametrize("name", ["thing", "thing.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_are_unpacked_whatever_their_name(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(TEXT))
    path = files.find_file(tmp_path, ("other", "thing"), "home")
    assert path == tmp_path / name
    assert files.read(path) == TEXT


def test_the_first_accepted_name_is_taken(tmp_path):
    for name in ("b", "a.gz"):
        (tmp_path / name).write_bytes(b"")
    assert files.find_file(tmp_path, ("a", "b"), "home").name == "a.gz"


def test_what_is_missing_is_named_with_where_it_is_to_be_had(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert message(files.find_folder, "toy", nowhere, "toys.org") == (
        f"toy: no data directory {nowhere}, wanted one with a folder toy/; the files "
        "are to be had from toys.org"
    )
    assert message(files.find_folder, "toy", tmp_path, "toys.org") == (
        f"toy: no folder {tmp_path}/toy, wanted one with the files from toys.org"
    )
    (tmp_path / "a").mkdir()  # not a file
    assert message(files.find_file, tmp_path, ("a", "b"), "toys.org") == (
        f"{tmp_path}: no file a[.gz] or b[.gz], to be had from toys.org"
    )


@pytest.mark.parametrize("missing", [1, 8, 9, 100, 300])
def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path, missing):
    packed = gzip.compress(TEXT)
    path = tmp_path / "a.gz"
    path.write_bytes(packed[:-missing])
    assert message(files.read, path) == (
        f"{path}: the gzip stream ends after {len(packed) - missing} bytes, before its "
        "end mark; wanted the whole file"
    )


@pytest.mark.parametrize("position", [30, -6, -2])
def test_a_damaged_gzip_file_is_refused(tmp_path, position):
    packed = bytearray(gzip.compress(TEXT))
    packed[position] ^= 0xFF
    path = tmp_path / "a.gz"
    path.write_bytes(packed)
    assert message(files.read, path).startswith(f"{path}: damaged gzip file: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert message(files.read, tmp_path) == (
        f"{tmp_path}: cannot be read: Is a directory"
    )


def test_checksums_are_of_the_content():
    files.check_sha256("a", TEXT, sha256(TEXT))
    assert message(files.check_sha256, "a", TEXT[1:], sha256(TEXT)) == (
        f"a: the unpacked content has sha256 {sha256(TEXT[1:])}, wanted {sha256(TEXT)} "
        "(verify=False takes it as it is)"
    )


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "nothing"),
        (pickle.dumps([1], protocol=4), "a Python pickle"),
        (b"<!doctype html>", "a web page"),
        (b"abcdef", "a file that begins with 61 62 63 64"),
    ],
)
def test_contents_are_described(content, wanted):
    assert files.describe(content) == wanted


# --- IDX -----------------------------------------------------------------------------

CUBE = RANDOM.integers(0, 256, (3, 2, 4), np.uint8)
CUBE_IDX = struct.pack(">4B3I", 0, 0, 8, 3, 3, 2, 4) + bytes(CUBE.ravel().tolist())


def test_idx_is_decoded_in_row_major_order():
    decoded = idx.decode("a", CUBE_IDX, (3, 2, 4))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, CUBE)
    assert idx.encode(CUBE) == CUBE_IDX
    assert idx.encode(CUBE.transpose(2, 0, 1)[:1])[-6:] == bytes(CUBE[..., 0].ravel())


@pytest.mark.parametrize(
    ("content", "shape", "wanted"),
    [
        (
            CUBE_IDX,
            (3,),
            "this is IDX images, wanted IDX labels (a file that begins with 00 00 08 "
            "01)",
        ),
        (
            idx.encode(np.zeros(3, np.uint8)),
            (3, 2, 4),
            "this is IDX labels, wanted IDX images (a file that begins with 00 00 08 "
            "03)",
        ),
        (
            pickle.dumps(CUBE),
            (3, 2, 4),
            "this is a Python pickle, wanted IDX images (a file that begins with 00 00 "
            "08 03)",
        ),
        (CUBE_IDX[:10], (3, 2, 4), "10 bytes, wanted a header of 16"),
        (CUBE_IDX, (4, 2, 4), "the header says shape (3, 2, 4), wanted (4, 2, 4)"),
        (CUBE_IDX, (3, 4, 2), "the header says shape (3, 2, 4), wanted (3, 4, 2)"),
        (CUBE_IDX[:-1], (3, 2, 4), "39 bytes unpacked, wanted 40"),
        (CUBE_IDX + b"0", (3, 2, 4), "41 bytes unpacked, wanted 40"),
    ],
)
def test_what_is_not_the_wanted_idx_file_is_refused(content, shape, wanted):
    assert message(idx.decode, "a", content, shape) == f"a: {wanted}"


def tiny_arrays(num_train=7, num_test=3):
    return {
        "train_images": RANDOM.integers(0, 256, (num_train, 28, 28), np.uint8),
        "train_labels": np.arange(num_train, dtype=np.uint8),
        "test_images": RANDOM.integers(0, 256, (num_test, 28, 28), np.uint8),
        "test_labels": np.arange(num_test, dtype=np.uint8)[::-1],
    }


def tiny_set(arrays, published=mnist.MNIST):
    """A set like MNIST with other contents; the last two are for validation."""
    changes = {
        part: getattr(published, part)._replace(
            shape=array.shape, sha256=sha256(idx.encode(array))
        )
        for part, array in arrays.items()
    }
    return published._replace(num_validation=2, **changes)


def write_idx(folder, arrays, published=mnist.MNIST):
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        name = f"{getattr(published, part).name}.gz"
        (folder / name).write_bytes(gzip.compress(idx.encode(array), 1))


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """Arrays of a tiny MNIST that is in tmp_path."""
    arrays = tiny_arrays()
    monkeypatch.setattr(mnist, "MNIST", tiny_set(arrays))
    write_idx(tmp_path / "mnist", arrays)
    return arrays


def test_mnist_is_split_in_the_order_of_its_files(tiny_mnist, tmp_path):
    dataset = mnist.load(tmp_path, values="grey")
    assert isinstance(dataset, Dataset)
    assert dataset.name == "mnist"
    assert dataset.source == f"{tmp_path}/mnist, checksums verified; grey values"
    parts = {
        "train": (tiny_mnist["train_images"][:5], tiny_mnist["train_labels"][:5]),
        "validation": (tiny_mnist["train_images"][5:], tiny_mnist["train_labels"][5:]),
        "test": (tiny_mnist["test_images"], tiny_mnist["test_labels"]),
    }
    for name, (images, labels) in parts.items():
        split = getattr(dataset, name)
        assert split.examples.dtype == np.float32
        assert split.targets.dtype == np.int64
        wanted = (images / 255.0).astype(np.float32)[..., None]
        np.testing.assert_array_equal(split.examples, wanted)
        np.testing.assert_array_equal(split.targets, labels)


@pytest.mark.parametrize(
    ("module", "published"),
    [(mnist, "MNIST"), (fashion_mnist, "FASHION_MNIST")],
    ids=["mnist", "fashion_mnist"],
)
def test_values_and_seed_are_passed_on(module, published, tmp_path, monkeypatch):
    arrays = tiny_arrays()
    original = getattr(module, published)
    monkeypatch.setattr(module, published, tiny_set(arrays, original))
    write_idx(tmp_path / original.name, arrays)
    dataset = module.load(tmp_path)
    assert dataset.name == original.name == module.__name__.split(".")[-1]
    assert dataset.dynamic
    assert dataset.source.endswith("; validation and test binarised with seed 0")
    other = module.load(tmp_path, seed=5)
    assert other.source.endswith("seed 5")
    assert (other.test.examples != dataset.test.examples).any()
    with pytest.raises(ValueError, match="values must be"):
        module.load(tmp_path, values="binary")


def test_files_may_be_unpacked_and_have_a_dot_for_the_hyphen(tiny_mnist, tmp_path):
    wanted = mnist.load(tmp_path)
    for path in sorted((tmp_path / "mnist").iterdir()):
        name = path.name.removesuffix(".gz").replace("-idx", ".idx")
        path.with_name(name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    found = mnist.load(str(tmp_path))
    np.testing.assert_array_equal(found.test.examples, wanted.test.examples)


def test_other_content_is_refused_unless_asked_for(tiny_mnist, tmp_path):
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    other = tiny_mnist["test_images"].copy()
    other[1, 2, 3] ^= 1
    path.write_bytes(gzip.compress(idx.encode(other)))
    assert message(mnist.load, tmp_path) == (
        f"{path}: the unpacked content has sha256 {sha256(idx.encode(other))}, wanted "
        f"{mnist.MNIST.test_images.sha256} (verify=False takes it as it is)"
    )
    dataset = mnist.load(tmp_path, verify=False)
    assert dataset.source.startswith(f"{tmp_path}/mnist, checksums NOT verified")


def swap(folder, first, second):
    one, two = (folder / f"{name}.gz" for name in (first, second))
    packed = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(packed)
    return one


def test_swapped_files_are_refused(tiny_mnist, tmp_path):
    folder = tmp_path / "mnist"
    path = swap(folder, "train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    assert message(mnist.load, tmp_path, verify=False) == (
        f"{path}: this is IDX labels, wanted IDX images (a file that begins with 00 00 "
        "08 03)"
    )
    swap(folder, "train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    path = swap(folder, "train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    assert message(mnist.load, tmp_path, verify=False) == (
        f"{path}: the header says shape (3, 28, 28), wanted (7, 28, 28)"
    )


def test_a_missing_idx_file_is_named(tiny_mnist, tmp_path):
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert message(mnist.load, tmp_path) == (
        f"{tmp_path}/mnist: no file t10k-labels-idx1-ubyte[.gz] or "
        "t10k-labels.idx1-ubyte[.gz], to be had from yann.lecun.com/exdb/mnist"
    )


def test_labels_out_of_range_are_refused(tiny_mnist, tmp_path):
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    labels = tiny_mnist["train_labels"].copy()
    labels[4] = 10
    path.write_bytes(gzip.compress(idx.encode(labels)))
    assert message(mnist.load, tmp_path, verify=False) == (
        f"{path}: label 4 is 10, wanted 0 to 9"
    )


# --- Static MNIST --------------------------------------------------------------------


def tiny_amat(count):
    images = RANDOM.integers(0, 2, (count, 28, 28), np.uint8)
    lines = [" ".join(str(value) for value in image.ravel()) for image in images]
    return images, "".join(f"{line}\n" for line in lines).encode()


def test_amat_text_is_decoded_in_row_major_order():
    images, text = tiny_amat(3)
    decoded = static_mnist.decode("a", text, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, images)
    assert static_mnist.encode(images) == text


def changed(text, position, byte):
    return text[:position] + byte + text[position + 1 :]


AMAT = tiny_amat(3)[1]
LINE = 1568


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            changed(AMAT, LINE + 40, b"2"),
            "line 2 holds b'2 ' for value 21, wanted 784 values 0 or 1, single spaces "
            "between",
        ),
        (
            changed(AMAT, 41, b","),
            f"line 1 holds {AMAT[40:41] + b','!r} for value 21, wanted 784 values 0 or "
            "1, single spaces between",
        ),
        (
            changed(AMAT, 2 * LINE - 1, b" "),
            f"line 2 holds {AMAT[2 * LINE - 2 : 2 * LINE - 1] + b' '!r} for value 784, "
            "wanted 784 values 0 or 1, single spaces between",
        ),
        (
            AMAT[:-1],
            f"{3 * LINE - 1} bytes unpacked, ends within line 3; wanted 3 lines of "
            "1568 bytes",
        ),
        (AMAT[:-LINE], "2 images, wanted 3"),
        (AMAT + AMAT[:LINE], "4 images, wanted 3"),
        (pickle.dumps(0), "this is a Python pickle, wanted lines of 0 and 1"),
        (b"", "this is nothing, wanted lines of 0 and 1"),
    ],
)
def test_what_is_not_the_wanted_amat_text_is_refused(text, wanted):
    assert message(static_mnist.decode, "a", text, 3) == f"a: {wanted}"


@pytest.fixture
def tiny_static(tmp_path, monkeypatch):
    """Images of a tiny static MNIST that is in tmp_path."""
    folder = tmp_path / "static_mnist"
    folder.mkdir()
    made, wanted = {}, {}
    for (split, file), count in zip(static_mnist.FILES.items(), (4, 3, 2), strict=True):
        made[split], text = tiny_amat(count)
        wanted[split] = file._replace(num_images=count, sha256=sha256(text))
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(text))
    monkeypatch.setattr(static_mnist, "FILES", wanted)
    return made


def test_static_mnist_keeps_its_splits_and_has_no_labels(tiny_static, tmp_path):
    dataset = static_mnist.load(tmp_path)
    assert dataset.name == "static_mnist"
    assert dataset.target_kind == "none"
    assert dataset.source == f"{tmp_path}/static_mnist, checksums verified"
    assert not dataset.dynamic
    for name, images in tiny_static.items():
        split = getattr(dataset, name)
        assert split.examples.dtype == np.float32
        np.testing.assert_array_equal(split.examples, images[..., None])
        assert split.targets.dtype == np.int64
        np.testing.assert_array_equal(split.targets, np.zeros(len(images)))


def test_static_files_that_are_missing_or_other_are_refused(tiny_static, tmp_path):
    path = tmp_path / "static_mnist" / "binarized_mnist_valid.amat.gz"
    other = static_mnist.encode(1 - tiny_static["validation"])
    path.write_bytes(gzip.compress(other))
    assert message(static_mnist.load, tmp_path) == (
        f"{path}: the unpacked content has sha256 {sha256(other)}, wanted "
        f"{static_mnist.FILES['validation'].sha256} (verify=False takes it as it is)"
    )
    dataset = static_mnist.load(tmp_path, verify=False)
    assert dataset.source == f"{tmp_path}/static_mnist, checksums NOT verified"
    path.unlink()
    assert message(static_mnist.load, tmp_path) == (
        f"{tmp_path}/static_mnist: no file binarized_mnist_valid.amat[.gz], to be had "
        "from www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
    )


# --- PNG -----------------------------------------------------------------------------


def chunk(kind, body):
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def make_png(rows, width, bits, filters, colour=0):
    """A file whose packed rows have the given filters applied, as the standard says."""
    lines = []
    above = [0] * rows.shape[1]
    for row, kind in zip(rows.tolist(), filters, strict=True):
        line = [kind]
        for x, value in enumerate(row):
            a, b, c = (
                row[x - 1] if x else 0,
                above[x],
                above[x - 1] if x else 0,
            )
            nearest = min((a, b, c), key=lambda v: abs(a + b - c - v))
            line.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        lines.append(bytes(line))
        above = row
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(lines))
    return b"".join(
        [
            png.SIGNATURE,
            chunk(b"IHDR", header),
            chunk(b"tEXt", b"a remark"),
            chunk(b"IDAT", pixels[:10]),
            chunk(b"IDAT", pixels[10:]),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(("bits", "width", "num_bytes"), [(8, 9, 9), (1, 21, 3)])
def test_png_of_all_row_filters_agree_with_another_decoder(bits, width, num_bytes):
    contents, wanted = [], []
    for shift in range(12):
        rows = RANDOM.integers(0, 256, (6, num_bytes), np.uint8)
        filters = RANDOM.permutation([0, 1, 2, 3, 4, shift % 5])
        contents.append(make_png(rows, width, bits, filters.tolist()))
        wanted.append(np.asarray(Image.open(io.BytesIO(contents[-1]))))
        seen = rows if bits == 8 else np.unpackbits(rows, axis=1)[:, :width]
        np.testing.assert_array_equal(wanted[-1], seen)  # the file is right
    decoded = png.decode("a", contents, 6, width)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, wanted)


def test_png_that_cannot_be_used_are_refused():
    rows = np.zeros((4, 5), np.uint8)
    good = make_png(rows, 5, 8, [0] * 4)
    big = make_png(rows, 4, 8, [0] * 4)
    colour = make_png(rows, 5, 8, [0] * 4, colour=3)
    strange = make_png(rows, 5, 8, [0] * 4).replace(
        chunk(b"IDAT", zlib.compress(bytes(24))[:10]), b""
    )
    wanted = "5x4, 1 or 8 bits like the others, 0, 0"
    assert message(png.decode, "a", [good, big], 4, 5) == (
        f"a, image 1: 4x4 pixels, 8 bits, colour type 0, interlace 0; wanted {wanted}"
    )
    assert message(png.decode, "a", [colour], 4, 5) == (
        f"a, image 0: 5x4 pixels, 8 bits, colour type 3, interlace 0; wanted {wanted}"
    )
    assert message(png.decode, "a", [good, b"GIF89a"], 4, 5) == (
        "a, image 1: begins with 47 49 46 38 39 61, wanted a PNG file"
    )
    for cut in (20, len(good) - 8, len(good) - 20):
        text = message(png.decode, "a", [good[:cut]], 4, 5)
        assert text.startswith("a, image 0: damaged PNG file: ")
    assert message(png.decode, "a", [changed(good, 20, b"x")], 4, 5) == (
        "a, image 0: damaged PNG file: checksum of b'IHDR'"
    )
    assert "damaged PNG file" in message(png.decode, "a", [strange], 4, 5)
    few = make_png(rows[:3], 5, 8, [0] * 3).replace(
        struct.pack(">II", 5, 3), struct.pack(">II", 5, 4)
    )
    header = few[16:29]
    few = few[:29] + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + few[33:]
    assert message(png.decode, "a", [few], 4, 5) == (
        "a, image 0: 18 bytes of pixels, wanted 24"
    )


def test_unknown_row_filters_are_refused():
    rows = np.zeros((2, 3), np.uint8)
    good = make_png(rows, 3, 8, [0, 0])
    pixels = zlib.compress(bytes([0, 0, 0, 0, 5, 0, 0, 0]))
    bad = good[:33] + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert message(png.decode, "a", [good, bad], 2, 3) == (
        "a, image 1: unknown row filter, wanted 0 to 4"
    )


# --- OMNIGLOT: resampling ------------------------------------------------------------


def test_halving_has_the_weights_of_keys_kernel():
    """At distances 1/4, 3/4, 5/4 and 7/4 of the new pixel."""
    half = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375]) / 2.0
    weights = omniglot.resampling_weights(32, 16)
    np.testing.assert_allclose(weights[8, 13:21], [*half[::-1], *half], atol=1e-15)
    assert not weights[8, :13].any()
    assert not weights[8, 21:].any()


def test_resampling_weights_sum_to_one_are_symmetric_and_the_identity_at_ratio_one():
    weights = omniglot.resampling_weights(105, 28)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-15)
    np.testing.assert_array_equal(omniglot.resampling_weights(9, 9), np.eye(9))


def test_resampling_agrees_with_another_implementation():
    ink = RANDOM.random((3, 105, 105)) < 0.3
    found = omniglot.resample(ink)
    assert found.dtype == np.float32
    assert found.min() == 0.0
    np.testing.assert_array_equal(np.rint(found * 255.0) / np.float32(255.0), found)
    for image, drawing in zip(found, ink, strict=True):
        picture = Image.fromarray(drawing.astype(np.float32))
        other = np.asarray(picture.resize((28, 28), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(image, np.clip(other, 0.0, 1.0), atol=0.51 / 255.0)


# --- OMNIGLOT: chardata.mat ----------------------------------------------------------

COUNTS = {"NUM_TRAIN": 6, "NUM_VALIDATION": 2, "NUM_TEST": 4, "NUM_ALPHABETS": 3}


@pytest.fixture
def small_counts(monkeypatch):
    for name, count in COUNTS.items():
        monkeypatch.setattr(omniglot, name, count)


def mat_arrays():
    """Upright images, alphabets, and the arrays as they are in the file."""
    images = RANDOM.integers(0, 256, (10, 28, 28)) / np.float64(255.0)
    alphabets = np.array([0, 1, 2, 2, 1, 0, 1, 2, 0, 0])
    columns = np.stack([image.ravel(order="F") for image in images], axis=1)
    one_hot = np.eye(3)[:, alphabets]
    arrays = {
        "data": columns[:, :6],
        "testdata": columns[:, 6:],
        "target": one_hot[:, :6],
        "testtarget": one_hot[:, 6:],
        "targetchar": np.ones((1, 6)),
    }
    return images, alphabets, arrays


def mat_file(arrays, **changes):
    content = io.BytesIO()
    scipy.io.savemat(content, arrays | changes, do_compression=True)
    return content.getvalue()


def write_mat(tmp_path, content):
    folder = tmp_path / "omniglot"
    folder.mkdir(exist_ok=True)
    (folder / "chardata.mat").write_bytes(content)
    return folder / "chardata.mat"


def test_the_matlab_file_is_read_upright_with_its_last_images_for_validation(
    small_counts, tmp_path
):
    images, alphabets, arrays = mat_arrays()
    path = write_mat(tmp_path, mat_file(arrays))
    dataset = omniglot.load(tmp_path, values="grey", verify=False)
    assert dataset.name == "omniglot"
    assert dataset.target_kind == "label"
    assert dataset.source == f"{path}, checksum NOT verified; grey values"
    parts = {"train": slice(4), "validation": slice(4, 6), "test": slice(6, 10)}
    for name, part in parts.items():
        split = getattr(dataset, name)
        assert split.examples.dtype == np.float32
        wanted = images[part, :, :, None].astype(np.float32)
        np.testing.assert_array_equal(split.examples, wanted)
        assert split.targets.dtype == np.int64
        np.testing.assert_array_equal(split.targets, alphabets[part])
    assert omniglot.load(tmp_path, verify=False).dynamic


def test_the_source_tells_a_rebuild_from_the_published_file(
    small_counts, tmp_path, monkeypatch
):
    content = mat_file(mat_arrays()[2])
    path = write_mat(tmp_path, content)
    md5 = hashlib.md5(content).hexdigest()
    assert message(omniglot.load, tmp_path) == (
        f"{path}: sha256 {sha256(content)} and md5 {md5}, wanted md5 "
        f"{omniglot.MAT_MD5} (published) or sha256 {omniglot.REBUILD_SHA256} "
        "(rebuilt); verify=False takes it as it is"
    )
    monkeypatch.setattr(omniglot, "MAT_MD5", md5)
    source = omniglot.load(tmp_path, values="grey").source
    assert source == f"{path}, checksum verified; grey values"
    monkeypatch.setattr(omniglot, "REBUILD_SHA256", sha256(content))
    source = omniglot.load(tmp_path, values="grey").source
    assert source == (
        f"{path}, REBUILT from the drawings, checksum verified; grey values"
    )


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        (
            "data",
            lambda a: with_value(a, (17, 3), np.nan),
            ", data: example 3 holds nan, wanted finite values in [0, 1]",
        ),
        (
            "testdata",
            lambda a: with_value(a, (0, 2), 1.5),
            ", testdata: example 2 holds 1.5, wanted finite values in [0, 1]",
        ),
        (
            "data",
            lambda a: a * 255.0,
            ", data: example 0 holds ",
        ),
        ("data", lambda a: a.T, ": data has shape (6, 784), wanted (784, 6)"),
        ("testdata", lambda a: a[:, :3], ": testdata has shape (784, 3), wanted (784,"),
        ("target", lambda a: a[:2], ": target has shape (2, 6), wanted (3, 6)"),
        (
            "testtarget",
            lambda a: with_value(a, (slice(None), 1), 1.0),
            ": column 1 of testtarget is not one-hot, wanted one alphabet an image",
        ),
        (
            "target",
            lambda a: with_value(a, (0, 5), 0.5),
            ": column 5 of target is not one-hot, wanted one alphabet an image",
        ),
        (
            "data",
            lambda a: a.astype(complex),
            ": data has type complex128, wanted numbers",
        ),
    ],
)
def test_bad_arrays_are_named(small_counts, name, change, wanted):
    arrays = mat_arrays()[2]
    content = mat_file(arrays, **{name: change(arrays[name])})
    assert message(omniglot.decode_mat, "a", content).startswith(f"a{wanted}")


def test_what_is_not_a_whole_matlab_file_is_refused(small_counts):
    arrays = mat_arrays()[2]
    content = mat_file(arrays)
    for cut in (10, 127, 130, len(content) // 2, len(content) - 100):
        text = message(omniglot.decode_mat, "a", content[:cut])
        assert text.startswith(("a: damaged MATLAB file: ", "a: no array "))
    assert message(omniglot.decode_mat, "a", pickle.dumps(0)) == (
        "a: this is a Python pickle, wanted a MATLAB file"
    )
    del arrays["testdata"]
    assert message(omniglot.decode_mat, "a", mat_file(arrays)) == (
        "a: no array testdata, wanted one of (784, 4)"
    )


# --- OMNIGLOT: archives --------------------------------------------------------------

ALPHABETS = ["Zulu", "Alpha", "Alpha", "Beta"]  # in the order of their characters
DRAWING_COUNTS = {
    "NUM_CHARACTERS": 4,
    "NUM_DRAWERS": 5,
    "NUM_TRAIN_DRAWERS": 3,
    "NUM_TEST_CHARACTERS": 2,
    "NUM_VALIDATION": 4,
}


def drawing_png(ink):
    content = io.BytesIO()
    Image.fromarray(~ink).convert("1").save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def small_drawings(monkeypatch):
    """Ink [4, 5, 105, 105] of a tiny set of drawings."""
    ink = RANDOM.random((4, 5, 105, 105)) < 0.2
    for name, count in DRAWING_COUNTS.items():
        monkeypatch.setattr(omniglot, name, count)
    known = sha256(np.packbits(ink).tobytes())
    monkeypatch.setattr(omniglot, "DRAWINGS_SHA256", known)
    return ink


def archive_members(ink):
    """The first three characters are in the first archive, the others in the second."""
    members = {stem: {} for stem in omniglot.ARCHIVES}
    for character, alphabet in enumerate(ALPHABETS):
        stem = omniglot.ARCHIVES[character > 2]
        for drawer in reversed(range(5)):
            name = f"{character + 1:04}_{drawer + 1:02}.png"
            content = drawing_png(ink[character, drawer])
            members[stem][f"{stem}/{alphabet}/character01/{name}"] = content
    return members


def write_archives(tmp_path, members):
    folder = tmp_path / "omniglot"
    folder.mkdir(exist_ok=True)
    for stem, contents in members.items():
        with zipfile.ZipFile(folder / f"{stem}.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"{stem}/"), b"")
            for name, content in contents.items():
                archive.writestr(name, content)
    return folder


def test_archives_are_split_by_drawer_and_say_that_they_are_a_rebuild(
    small_drawings, tmp_path
):
    folder = write_archives(tmp_path, archive_members(small_drawings))
    dataset = omniglot.load(tmp_path, values="grey")
    assert dataset.source == (
        f"{folder}, REBUILT from the drawings, checksum verified; grey values"
    )
    train = omniglot.resample(small_drawings[:, :3].reshape(-1, 105, 105))
    test = omniglot.resample(small_drawings[:2, 3:].reshape(-1, 105, 105))
    parts = {
        "train": (train[:8], np.repeat([0, 1, 1, 2], 3)[:8]),
        "validation": (train[8:], np.repeat([0, 1, 1, 2], 3)[8:]),
        "test": (test, np.repeat([0, 1], 2)),
    }
    for name, (images, alphabets) in parts.items():
        split = getattr(dataset, name)
        np.testing.assert_array_equal(split.examples, images[..., None])
        np.testing.assert_array_equal(split.targets, alphabets)
        assert split.targets.dtype == np.int64


def test_other_drawings_are_refused_unless_asked_for(small_drawings, tmp_path):
    other = small_drawings.copy()
    other[3, 4, 0, 0] ^= True
    folder = write_archives(tmp_path, archive_members(other))
    seen = sha256(np.packbits(other).tobytes())
    assert message(omniglot.load, tmp_path) == (
        f"{folder}, drawings: the unpacked content has sha256 {seen}, wanted "
        f"{omniglot.DRAWINGS_SHA256} (verify=False takes it as it is)"
    )
    source = omniglot.load(tmp_path, verify=False).source
    assert source.startswith(
        f"{folder}, REBUILT from the drawings, checksum NOT verified"
    )


def test_the_matlab_file_goes_before_the_archives(small_drawings, tmp_path):
    folder = write_archives(tmp_path, archive_members(small_drawings))
    path = write_mat(tmp_path, b"MATLAB")
    assert message(omniglot.load, tmp_path).startswith(f"{path}: damaged MATLAB file")
    path.unlink()
    (folder / "images_evaluation.zip").unlink()
    assert message(omniglot.load, tmp_path) == (
        f"{folder}: no file chardata.mat, nor both images_background.zip and "
        "images_evaluation.zip, to be had from github.com/yburda/iwae, "
        "datasets/OMNIGLOT (chardata.mat) or github.com/brendenlake/omniglot, python/ "
        "(the two archives)"
    )


@pytest.mark.parametrize(
    "name",
    [
        "../images_background/a.png",
        "images_background/../../a.png",
        "/etc/a.png",
        "C:/a.png",
        "images_background\\..\\a.png",
    ],
)
def test_archives_with_unsafe_paths_are_refused(small_drawings, tmp_path, name):
    members = archive_members(small_drawings)
    members["images_background"][name] = b""
    folder = write_archives(tmp_path, members)
    assert message(omniglot.load, tmp_path) == (
        f"{folder}/images_background.zip: holds the unsafe path {name!r}, wanted paths "
        "inside the archive"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"omniglot"}


def test_archives_with_other_drawings_than_wanted_are_refused(
    small_drawings, tmp_path, monkeypatch
):
    first = "images_background/Alpha/character01/0002_0"
    members = archive_members(small_drawings)
    kept = members["images_background"]
    drawings = {number: kept.pop(f"{first}{number}.png") for number in (2, 4)}
    folder = write_archives(tmp_path, members)
    place = f"{folder}/images_background.zip and {folder}/images_evaluation.zip"
    assert message(omniglot.load, tmp_path) == (
        f"{place}: no drawing 0002_02.png and 1 others; wanted 20, 4 characters by 5 "
        "drawers"
    )
    for number, content in drawings.items():
        kept[f"{first}{number}.png"] = content
    kept[f"{first}6.png"] = drawings[2]
    write_archives(tmp_path, members)
    assert message(omniglot.load, tmp_path) == (
        f"{place}: unknown drawing 0002_06.png and 0 others; wanted 20, 4 characters "
        "by 5 drawers"
    )
    members["images_evaluation"]["images_background/b/character01/0001_01.png"] = b""
    write_archives(tmp_path, members)
    assert message(omniglot.load, tmp_path) == (
        f"{folder}/images_evaluation.zip: holds "
        "images_background/b/character01/0001_01.png, wanted "
        "images_evaluation/ALPHABET/characterNN/CCCC_DD.png"
    )
    monkeypatch.setattr(omniglot, "MAX_MEMBER_BYTES", 50)
    assert "wanted at most 50" in message(omniglot.load, tmp_path)


def test_damaged_archives_are_refused(small_drawings, tmp_path):
    folder = write_archives(tmp_path, archive_members(small_drawings))
    path = folder / "images_evaluation.zip"
    whole = path.read_bytes()
    for content in (whole[:-200], b"", pickle.dumps(0), changed(whole, 200, b"\x07")):
        path.write_bytes(content)
        assert message(omniglot.load, tmp_path).startswith(
            f"{path}: damaged zip archive: "
        )


# --- tensorflow-datasets -------------------------------------------------------------

needs_tfds = pytest.mark.skipif(
    find_spec("tensorflow_datasets") is None or find_spec("array_record") is None,
    reason="tensorflow-datasets or array_record is not installed",
)


def test_without_directory_and_tensorflow_datasets_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    wanted = (
        "no data directory given and tensorflow-datasets is not installed; wanted one "
        "of both"
    )
    assert message(mnist.load, None) == f"mnist: {wanted}"
    assert message(static_mnist.load, None) == f"binarized_mnist: {wanted}"
    assert message(omniglot.load, None) == f"omniglot: {wanted}"


def test_the_stored_order_is_that_of_the_hashed_keys():
    keys = ["a", "b", "c", 7]
    hashes = [hashlib.md5(f"train{key}".encode()).hexdigest() for key in keys]
    order = tfds.stored_order("train", keys)
    assert [hashes[index] for index in order] == sorted(hashes)
    assert order != tfds.stored_order("test", keys) or len(keys) < 3


# Writes the sets as tensorflow-datasets would, but without downloads; what its own
# builders leave to TensorFlow (listing, packing images) is done here.
PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets
from tests import test_data_images as made

def write(name, splits):
    class Tiny(tensorflow_datasets.builder_cls(name), skip_registration=True):
        def _split_generators(self, manager):
            if name == "omniglot":
                self.info.features["alphabet"].names = sorted(set(made.ALPHABETS))
                labels = [str(number) for number in range(1623)]
                self.info.features["label"].names = labels
            return {split: iter(examples) for split, examples in splits.items()}
    Tiny.name = name
    Tiny(file_format="array_record").download_and_prepare()
"""


def run(code, cache, **arguments):
    """Runs code with a cache of its own; TensorFlow must not be imported."""
    code = textwrap.dedent(code) + "\nassert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": str(cache)} | arguments,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
