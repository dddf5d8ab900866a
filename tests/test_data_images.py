"""The image data sets: decoding on small files made here, then the published files."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from PIL import Image

from vhp_jax.data import (
    fashion_mnist,
    files,
    freyfaces,
    idx,
    mnist,
    omniglot,
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
    splits = {
        name: grey(n, i) for i, (name, n) in enumerate(zip(SPLITS, counts, strict=True))
    }
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


def test_a_draw_of_exactly_zero_is_below_every_mean_but_zero():
    class Zero:
        def random(self, shape, dtype):
            return np.zeros(shape, dtype)

    drawn = binarise(np.float32([0.0, 1e-30, 1.0]), Zero())
    np.testing.assert_array_equal(drawn, [0.0, 1.0, 1.0])


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
        correlation = np.corrcoef(
            examples.ravel(), getattr(means, name).examples.ravel()
        )
        assert correlation[0, 1] > 0.4  # 1/sqrt(3) for uniform means
    for name in SPLITS:
        np.testing.assert_array_equal(
            getattr(dataset, name).targets, getattr(means, name).targets
        )


def test_training_means_are_measured_by_one_draw_of_them():
    dataset = toy(values="dynamic")
    drawn = dataset.measured("train")
    assert set(np.unique(drawn.examples)) == {0.0, 1.0}
    error = (drawn.examples - dataset.train.examples).mean()
    assert abs(error) < 5 * 0.5 / np.sqrt(drawn.examples.size)
    again = dataset.measured("train")
    np.testing.assert_array_equal(drawn.examples, again.examples)
    np.testing.assert_array_equal(drawn.targets, dataset.train.targets)
    assert dataset.measured("test") is dataset.test
    grey_values = toy(values="grey")
    assert grey_values.measured("train") is grey_values.train


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


@pytest.mark.parametrize("position", [10, 30, -6, -2])
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
    changed_files = {
        part: published.files[part]._replace(
            shape=array.shape, sha256=sha256(idx.encode(array))
        )
        for part, array in arrays.items()
    }
    return published._replace(num_validation=2, files=changed_files)


def write_idx(folder, arrays, published=mnist.MNIST):
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        name = f"{published.files[part].name}.gz"
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
        f"{mnist.MNIST.files['test_images'].sha256} (verify=False takes it as it is)"
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
            files.PNG_SIGNATURE,
            chunk(b"IHDR", header),
            chunk(b"tEXt", b"a remark"),
            chunk(b"IDAT", pixels[:10]),
            chunk(b"IDAT", pixels[10:]),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(("bits", "width", "num_bytes"), [(8, 9, 9), (1, 21, 3)])
def test_png_of_all_row_filters_are_decoded(bits, width, num_bytes):
    contents, wanted = [], []
    for shift in range(12):
        rows = RANDOM.integers(0, 256, (6, num_bytes), np.uint8)
        filters = RANDOM.permutation([0, 1, 2, 3, 4, shift % 5])
        contents.append(make_png(rows, width, bits, filters.tolist()))
        wanted.append(rows if bits == 8 else np.unpackbits(rows, axis=1)[:, :width])
    decoded = files.decode_png("a", contents, 6, width)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, wanted)


def test_png_that_cannot_be_used_are_refused():
    rows = np.zeros((4, 5), np.uint8)
    good = make_png(rows, 5, 8, [0] * 4)
    big = make_png(rows, 4, 8, [0] * 4)
    black = make_png(rows[:, :1], 5, 1, [0] * 4)
    colour = make_png(rows, 5, 8, [0] * 4, colour=3)
    huge = with_height(good, 2**31 - 1)  # by its header
    strange = good.replace(chunk(b"IDAT", zlib.compress(bytes(24))[:10]), b"")
    decode = files.decode_png
    assert message(decode, "a", [good, big], 4, 5) == (
        "a, image 1: 4x4 pixels of mode L, wanted 5x4 of mode L"
    )
    assert message(decode, "a", [good, black], 4, 5) == (
        "a, image 1: 5x4 pixels of mode 1, wanted 5x4 of mode L"
    )
    assert message(decode, "a", [colour], 4, 5) == (
        "a, image 0: 5x4 pixels of mode P, wanted 5x4 of mode 1 or L"
    )
    assert message(decode, "a", [huge], 4, 5) == (
        "a, image 0: 5x2147483647 pixels of mode L, wanted 5x4 of mode 1 or L"
    )
    assert message(decode, "a", [good, b"GIF89a"], 4, 5) == (
        "a, image 1: this is a file that begins with 47 49 46 38, wanted a PNG file"
    )
    for cut in (20, len(good) - 8, len(good) - 20):
        text = message(decode, "a", [good[:cut]], 4, 5)
        assert text.startswith("a, image 0: damaged PNG file: ")
    assert message(decode, "a", [changed(good, 20, b"x")], 4, 5) == (
        "a, image 0: damaged PNG file: broken PNG file (bad header checksum in b'IHDR')"
    )
    position = good.index(b"IDAT") + 6
    assert message(decode, "a", [changed(good, position, b"x")], 4, 5) == (
        "a, image 0: damaged PNG file: broken PNG file (bad header checksum in b'IDAT')"
    )
    assert "damaged PNG file" in message(decode, "a", [strange], 4, 5)
    few = with_height(make_png(rows[:3], 5, 8, [0] * 3), 4)
    assert message(decode, "a", [few], 4, 5).startswith(
        "a, image 0: damaged PNG file: image file is truncated"
    )


def with_height(content, height):
    """The file with another height in its header, whose checksum is right."""
    width, *others = struct.unpack(">II5B", content[16:29])
    header = struct.pack(">II5B", width, height, *others[1:])
    return content[:8] + chunk(b"IHDR", header) + content[33:]


def test_unknown_row_filters_are_refused():
    rows = np.zeros((2, 3), np.uint8)
    good = make_png(rows, 3, 8, [0, 0])
    pixels = zlib.compress(bytes([0, 0, 0, 0, 5, 0, 0, 0]))
    bad = good[:33] + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert message(files.decode_png, "a", [good, bad], 2, 3).startswith(
        "a, image 1: damaged PNG file: "
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
    ink[0] = np.arange(105) < 51  # an edge: undershoots and overshoots
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
        "C:a.png",
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


# Writes a set as tensorflow-datasets would, but without a download; what its own
# builders leave to TensorFlow (listing folders, packing images) is done here.
PREPARE = """
import io, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets
from PIL import Image
from tests import test_data_images as made
from vhp_jax.data import mnist, omniglot, static_mnist
from vhp_jax.data.base import DataError

directory = Path(sys.argv[1])
same = np.testing.assert_array_equal

def pack(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return io.BytesIO(content.getvalue())

def prepare(name, splits):
    class Tiny(tensorflow_datasets.builder_cls(name), skip_registration=True):
        def _split_generators(self, manager):
            if name == "omniglot":
                alphabets = {*made.ALPHABETS, *(f"No{n}" for n in range(47))}
                self.info.features["alphabet"].names = sorted(alphabets)
                labels = [str(number) for number in range(1623)]
                self.info.features["label"].names = labels
            return {split: iter(examples) for split, examples in splits.items()}
    Tiny.name = name
    Tiny(file_format="array_record").download_and_prepare()

def compare(found, wanted):
    for name in made.SPLITS:
        same(getattr(found, name).examples, getattr(wanted, name).examples)
        same(getattr(found, name).targets, getattr(wanted, name).targets)
    assert found._replace(train=0, validation=0, test=0, source="") == wanted._replace(
        train=0, validation=0, test=0, source="")
    print(">", found.source)

def refused(load, *arguments):
    try:
        load(*arguments)
    except DataError as error:
        print(">", error)
    else:
        raise AssertionError("not refused")
"""


# One process for all, as the imports take the time; downloads come first, while nothing
# is prepared.
CODES = {
    "downloads": """
import functools, http.server, threading

class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if "/short/" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")

handler = functools.partial(Handler, directory=str(directory))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"

arrays = made.tiny_arrays()
mnist.MNIST = made.tiny_set(arrays)._replace(url=url + "mnist/")
made.write_idx(directory / "mnist", arrays)
compare(mnist.load(None), mnist.load(directory))
static_mnist.URL, omniglot.ARCHIVE_URL = url + "mnist/", url + "nowhere/"
refused(static_mnist.load, None)
refused(omniglot.load, None)
omniglot.ARCHIVE_URL = url + "short/"
refused(omniglot.load, None)
server.shutdown()
server.server_close()
compare(mnist.load(None), mnist.load(directory))  # downloaded before
refused(omniglot.load, None)
downloads = sorted((directory / "cache" / "downloads").rglob("*"))
print(">", [path.name for path in downloads if path.is_file()])
print(">", url)
""",
    "mnist": """
arrays = made.tiny_arrays(40, 20)
arrays["train_labels"] %= 10
arrays["test_labels"] = arrays["test_labels"] % 10
mnist.MNIST = made.tiny_set(arrays)
made.write_idx(directory / "mnist", arrays)
prepare("mnist", {
    half: [
        (i, {"image": pack(image), "label": label})
        for i, (image, label) in enumerate(
            zip(arrays[f"{half}_images"], arrays[f"{half}_labels"].tolist())
        )
    ]
    for half in ("train", "test")
})
compare(mnist.load(None), mnist.load(directory))
# The stored order is another one, so that the above put it right.
cache = made.tfds.Cache("mnist")
assert cache.prepared
stored, _ = cache.read("train")
keyed, _ = cache.read("train", range(40))
assert stored != keyed and sorted(stored) == sorted(keyed)

mnist.MNIST = made.tiny_set(arrays | {
    "test_images": arrays["test_images"][::-1]})
refused(mnist.load, None)
mnist.MNIST = made.tiny_set(made.tiny_arrays(40, 19))
refused(mnist.load, None)
refused(cache.read, "validation")
for path in Path(cache.place.split(", ")[1]).glob("*test*array_record*"):
    path.write_bytes(path.read_bytes()[:-50])
refused(cache.read, "test")
""",
    "static_mnist": """
(directory / "static_mnist").mkdir()
splits = {}
for (split, file), count in zip(static_mnist.FILES.items(), (30, 20, 10)):
    images, text = made.tiny_amat(count)
    (directory / "static_mnist" / file.name).write_bytes(text)
    static_mnist.FILES[split] = file._replace(
        num_images=count, sha256=made.sha256(text))
    splits[split] = [(i, {"image": pack(a)}) for i, a in enumerate(images)]
prepare("binarized_mnist", splits)
compare(static_mnist.load(None), static_mnist.load(directory))
""",
    "omniglot": """
for name, count in made.DRAWING_COUNTS.items():
    setattr(omniglot, name, count)
ink = made.RANDOM.random((4, 5, 105, 105)) < 0.2
omniglot.DRAWINGS_SHA256 = made.sha256(np.packbits(ink).tobytes())
members = made.archive_members(ink)
made.write_archives(directory, members)
splits = {}
for split, stem in (("train", "images_background"),
                    ("test", "images_evaluation")):
    splits[split] = []
    for name, content in members[stem].items():
        _, alphabet, _, file = name.split("/")
        character = int(file[:4]) - 1
        splits[split].append((f"{alphabet}_0_{file}", {
            "image": io.BytesIO(content),
            "alphabet": alphabet,
            "alphabet_char_id": 0,
            "label": character,
        }))
prepare("omniglot", splits)
compare(omniglot.load(None), omniglot.load(directory))
made.tfds.stored_order = lambda split, keys: range(len(keys))
refused(omniglot.load, None)
""",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Folder of the process, and the lines that each code prints with a > in front.

    It has a cache of its own, and must do without TensorFlow.
    """
    folder = tmp_path_factory.mktemp("tfds")
    code = PREPARE + "".join(f"print('> {name}')\n{CODES[name]}" for name in CODES)
    code += "print('> TensorFlow', 'tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = {"folder": folder}
    for line in done.stdout.splitlines():
        if line.removeprefix("> ") in CODES:
            current = lines[line.removeprefix("> ")] = []
        elif line.startswith("> "):
            current.append(line.removeprefix("> "))
    return lines


@pytest.mark.slow
@needs_tfds
def test_tensorflow_datasets_is_read_without_tensorflow(printed):
    assert printed["omniglot"][-1] == "TensorFlow False"


@pytest.mark.slow
@needs_tfds
def test_a_prepared_mnist_gives_the_published_files_back(printed):
    folder, lines = printed["folder"], printed["mnist"]
    place = f"tensorflow-datasets, {folder}/cache/mnist/3.0.1"
    assert lines[0] == (
        f"{place}, checksums verified; validation and test binarised with seed 0"
    )
    assert lines[1].startswith(f"{place}, test images: the unpacked content has sha")
    assert lines[2:4] == [
        f"{place}, test: 20 examples, wanted 19",
        f"{place}, validation: no such split, wanted one",
    ]
    assert lines[4].startswith(f"{place}, test: cannot be read: ")
    assert len(lines) == 5


@pytest.mark.slow
@needs_tfds
def test_a_prepared_static_mnist_gives_the_published_files_back(printed):
    folder, lines = printed["folder"], printed["static_mnist"]
    assert lines == [
        f"tensorflow-datasets, {folder}/cache/binarized_mnist/1.0.0, checksums verified"
    ]


@pytest.mark.slow
@needs_tfds
def test_prepared_drawings_give_the_archives_back(printed):
    folder, lines = printed["folder"], printed["omniglot"]
    place = f"tensorflow-datasets, {folder}/cache/omniglot/3.0.0"
    assert lines[:-1] == [
        f"{place}, REBUILT from the drawings, checksum verified; validation and test "
        "binarised with seed 0",
        f"{place}, train: the drawings are not in the order of their keys, wanted the "
        "one that tensorflow-datasets writes",
    ]


@pytest.mark.slow
@needs_tfds
def test_what_is_not_prepared_is_downloaded_as_published(printed):
    """From a server on this machine; what is there already is not asked for again."""
    *lines, downloads, url = printed["downloads"]
    source = "checksums verified; validation and test binarised with seed 0"
    assert lines[0] == f"downloaded from {url}mnist/, {source}"
    assert lines[4] == lines[0]
    train = "binarized_mnist_train.amat"
    background = "images_background.zip"
    refusals = {
        1: (
            "binarized_mnist/1.0.0",
            f"mnist/{train}",
            "HTTP Error 404: File not found",
        ),
        2: (
            "omniglot/3.0.0",
            f"nowhere/{background}",
            "HTTP Error 404: File not found",
        ),
        3: (
            "omniglot/3.0.0",
            f"short/{background}",
            "it ended after 4 bytes, wanted 100",
        ),
        5: (
            "omniglot/3.0.0",
            f"short/{background}",
            "<urlopen error [Errno 111] Connection refused>",
        ),
    }
    for number, (place, path, reason) in refusals.items():
        assert lines[number] == (
            f"{place.split('/')[0]}: not prepared as array_record in "
            f"{printed['folder']}/cache/{place}, and the download of {url}{path} "
            f"failed: {reason}; wanted either, or a data directory with the original "
            "files"
        )
    assert len(lines) == 6
    published_files = mnist.MNIST.files.values()
    assert downloads == str(sorted(f"{file.name}.gz" for file in published_files))


# --- The published files -------------------------------------------------------------

CLASSES = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10),
}
MOMENTS = {"mnist": (0.1307, 0.3081, 0.1325), "fashion_mnist": (0.2860, 0.3530, 0.2868)}
# Of the first and last training, validation and test images.
LABELS = {"mnist": (5, 8, 3, 8, 7, 6), "fashion_mnist": (9, 7, 9, 5, 9, 5)}
IDX_MODULES = {"mnist": mnist, "fashion_mnist": fashion_mnist}


def published(name):
    """The data directory, where it has this set; skips the test elsewhere."""
    directory = os.environ.get("VHP_DATA_DIR")
    if not directory or not (Path(directory) / name).is_dir():
        pytest.skip(f"no {name} in VHP_DATA_DIR")
    return Path(directory)


@pytest.fixture(scope="module", params=IDX_MODULES)
def idx_datasets(request):
    """Name, grey and dynamic data set."""
    load = IDX_MODULES[request.param].load
    directory = published(request.param)
    return request.param, load(directory, values="grey"), load(directory)


@pytest.fixture(scope="module")
def chardata():
    return omniglot.load(published("omniglot"), values="grey")


def as_bytes(split):
    return [image.tobytes() for image in split.examples]


def check_splits(dataset, counts):
    for name, count in zip(SPLITS, counts, strict=True):
        split = getattr(dataset, name)
        assert split.examples.shape == (count, 28, 28, 1)
        assert split.examples.dtype == np.float32
        assert split.targets.shape == (count,)
        assert split.targets.dtype == np.int64


@pytest.mark.slow
def test_published_counts_moments_and_classes(idx_datasets):
    name, dataset, _ = idx_datasets
    check_splits(dataset, (50_000, 10_000, 10_000))
    assert dataset.name == name
    assert dataset.source.endswith(f"{name}, checksums verified; grey values")
    fitted = np.concatenate([dataset.train.examples, dataset.validation.examples])
    mean, deviation, test_mean = MOMENTS[name]
    np.testing.assert_allclose(fitted.mean(dtype=np.float64), mean, atol=5e-5)
    np.testing.assert_allclose(fitted.std(dtype=np.float64), deviation, atol=5e-5)
    test = dataset.test.examples
    np.testing.assert_allclose(test.mean(dtype=np.float64), test_mean, atol=7e-5)
    assert (test.min(), test.max()) == (0.0, 1.0)
    labels = np.concatenate([dataset.train.targets, dataset.validation.targets])
    train_classes, test_classes = CLASSES[name]
    assert np.bincount(labels).tolist() == train_classes
    assert np.bincount(dataset.test.targets).tolist() == test_classes
    ends = [getattr(dataset, split).targets[[0, -1]] for split in SPLITS]
    assert tuple(np.concatenate(ends).tolist()) == LABELS[name]


@pytest.mark.slow
def test_published_images_are_binarised_once_near_their_means(idx_datasets):
    name, means, dynamic = idx_datasets
    assert dynamic.dynamic
    assert not means.dynamic
    np.testing.assert_array_equal(dynamic.train.examples, means.train.examples)
    again = IDX_MODULES[name].load(published(name))
    for split in ("validation", "test"):
        drawn = getattr(dynamic, split).examples
        mean = getattr(means, split).examples.astype(np.float64)
        assert ((drawn == 0.0) | (drawn == 1.0)).all()
        np.testing.assert_array_equal(drawn, getattr(again, split).examples)
        error = np.sqrt((mean * (1.0 - mean)).sum())
        assert abs(drawn.sum(dtype=np.float64) - mean.sum()) < 4.0 * error
        assert (drawn[mean == 0.0] == 0.0).all()
        assert (drawn[mean == 1.0] == 1.0).all()


@pytest.mark.slow
def test_published_splits_share_next_to_no_image(idx_datasets):
    """Fashion-MNIST itself has some twins; a split met twice would share all."""
    name, dataset, _ = idx_datasets
    train, validation, test = (set(as_bytes(getattr(dataset, s))) for s in SPLITS)
    shared = [len(train & validation), len(train & test), len(validation & test)]
    assert max(shared) <= {"mnist": 0, "fashion_mnist": 20}[name], shared


@pytest.mark.slow
def test_published_static_mnist():
    dataset = static_mnist.load(published("static_mnist"))
    check_splits(dataset, (50_000, 10_000, 10_000))
    assert dataset.source.endswith("static_mnist, checksums verified")
    for name, mean in zip(SPLITS, (0.13056, 0.13113, 0.13251), strict=True):
        examples = getattr(dataset, name).examples
        np.testing.assert_allclose(examples.mean(dtype=np.float64), mean, atol=5e-6)
        assert ((examples == 0.0) | (examples == 1.0)).all()
        assert not getattr(dataset, name).targets.any()
    train, validation, test = (set(as_bytes(getattr(dataset, s))) for s in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.slow
def test_static_mnist_is_mnist_binarised(idx_datasets):
    """Each static test image agrees with few MNIST images, where those are 0 or 1."""
    name, means, _ = idx_datasets
    if name != "mnist":
        pytest.skip("static MNIST is drawn from MNIST alone")
    directory = published("static_mnist")
    static = static_mnist.load(directory).test.examples.reshape(10_000, -1)[:300]
    grey = means.test.examples.reshape(10_000, -1)
    white, black = (grey == 1.0).astype(np.float32), (grey == 0.0).astype(np.float32)
    wrong = (1.0 - static) @ white.T + static @ black.T
    assert (wrong.min(axis=1) == 0.0).all()
    assert ((wrong == 0.0).sum(axis=1) < 100).all()


@pytest.mark.slow
def test_published_omniglot(chardata):
    check_splits(chardata, (23_000, 1_345, 8_070))
    assert chardata.target_kind == "label"
    assert "checksum verified" in chardata.source
    train = np.concatenate([chardata.train.examples, chardata.validation.examples])
    for examples, mean in ((train, 0.0830), (chardata.test.examples, 0.0822)):
        np.testing.assert_allclose(examples.mean(dtype=np.float64), mean, atol=2e-3)
        assert (examples.min(), examples.max()) == (0.0, 1.0)
        step = examples * 255.0
        np.testing.assert_allclose(step, np.rint(step), atol=1e-4)
    labels = np.concatenate([chardata.train.targets, chardata.validation.targets])
    assert sorted(set(labels.tolist())) == list(range(50))
    assert np.bincount(labels).sum() == 15 * 1_623


@pytest.mark.slow
def test_published_archives_give_the_rebuilt_file(chardata, tmp_path):
    directory = published("omniglot") / "omniglot"
    archives = [directory / f"{stem}.zip" for stem in omniglot.ARCHIVES]
    if "REBUILT" not in chardata.source or not all(a.is_file() for a in archives):
        pytest.skip("no rebuilt chardata.mat with both archives in VHP_DATA_DIR")
    (tmp_path / "omniglot").mkdir()
    for archive in archives:
        (tmp_path / "omniglot" / archive.name).symlink_to(archive)
    rebuilt = omniglot.load(tmp_path, values="grey")
    assert rebuilt.source == (
        f"{tmp_path}/omniglot, REBUILT from the drawings, checksum verified; grey "
        "values"
    )
    for name in SPLITS:
        found, wanted = getattr(rebuilt, name), getattr(chardata, name)
        np.testing.assert_array_equal(found.examples, wanted.examples)
        np.testing.assert_array_equal(found.targets, wanted.targets)


# --- Frey faces ----------------------------------------------------------------------

FRAMES = np.random.default_rng(0).integers(0, 256, (20, 560), np.uint8)


class dtype:  # noqa: N801 (an array's pickle has such a name, of another module)
    """Nothing that an array needs."""


class Command:
    """Runs a command where it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_frames(directory, content):
    (directory / "freyfaces").mkdir(exist_ok=True)
    (directory / "freyfaces" / "freyfaces.pkl").write_bytes(content)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x]])
def test_frames_are_read_shuffled_and_split(wrap, tmp_path):
    write_frames(tmp_path, pickle.dumps(wrap(FRAMES), protocol=3))
    arguments = {"num_validation": 3, "num_test": 5, "verify": False}
    dataset = freyfaces.load(tmp_path, **arguments)
    parts = [getattr(dataset, name).examples for name in SPLITS]
    assert [part.shape for part in parts] == [(n, 28, 20, 1) for n in (12, 3, 5)]
    every = np.concatenate(parts)
    assert every.dtype == np.float32
    seen = {image.tobytes() for image in np.rint(255.0 * every).astype(np.uint8)}
    assert seen == {frame.tobytes() for frame in FRAMES}
    assert not np.array_equal(every[0].ravel(), FRAMES[0] / np.float32(255.0))
    other = freyfaces.load(tmp_path, seed=1, **arguments)
    assert not np.array_equal(other.test.examples, dataset.test.examples)
    with pytest.raises(ValueError, match="leave one of 20 frames"):
        freyfaces.load(tmp_path, num_validation=15, num_test=5, verify=False)
    with pytest.raises(DataError, match="sha256"):
        freyfaces.load(tmp_path)


def test_a_pickle_that_runs_something_is_refused_before_it_does(tmp_path):
    ran = tmp_path / "ran"
    for value in (Command(ran), [FRAMES, Command(ran)]):
        write_frames(tmp_path, pickle.dumps(value, protocol=3))
        with pytest.raises(DataError, match=r"names (posix|nt).system"):
            freyfaces.load(tmp_path, verify=False)
    for value, named in ((np.random.default_rng(0), "numpy"), (dtype(), __name__)):
        write_frames(tmp_path, pickle.dumps(value, protocol=3))
        with pytest.raises(DataError, match=rf"names {named}\."):
            freyfaces.load(tmp_path, verify=False)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (pickle.dumps(FRAMES, protocol=3)[:-40], "wanted a pickle of one array"),
        (b"<html>", "a web page"),
        (b"", "nothing"),
        (pickle.dumps([1, 2], protocol=3), "holds list, wanted an array of uint8"),
        (pickle.dumps(FRAMES.astype("f4"), protocol=3), "holds float32, wanted"),
        (pickle.dumps(FRAMES[:, :9], protocol=3), r"shape \(20, 9\), wanted \(N, 560"),
    ],
)
def test_what_is_no_pickle_of_frames_is_one_line(content, wanted, tmp_path):
    write_frames(tmp_path, content)
    with pytest.raises(DataError, match=wanted) as error:
        freyfaces.load(tmp_path, verify=False)
    assert "\n" not in str(error.value)
    assert "freyfaces.pkl" in str(error.value)


@pytest.mark.slow
@pytest.mark.optax
def test_the_config_trains_on_frames(tmp_path):
    from two_steps import TWO_STEPS

    from experiments import cli, runs, trainer

    write_frames(tmp_path, pickle.dumps(FRAMES, protocol=3))
    small = TWO_STEPS | {
        "data.dir": str(tmp_path),
        "data.verify": "false",
        "data.num_validation": "4",
        "data.num_test": "4",
    }
    config = cli.load_config("freyfaces", list(small.items()))
    assert trainer.train(config, tmp_path / "run")["completed"]
    restored = runs.restore(tmp_path / "run")
    # The linear VAE's optimum, the first latent with scale one.
    start = restored.run.experiment.init_params(jax.random.key(0))
    train = restored.run.experiment.dataset.train.examples
    means = restored.run.experiment.model.encode(start, jnp.asarray(train)).mean
    spread = np.linalg.eigvalsh(np.cov(np.asarray(means).T, ddof=0))
    np.testing.assert_allclose(spread[-1], 1.0, rtol=1e-3)


def test_where_the_frames_are_to_be_had_is_said(tmp_path):
    for directory in (None, tmp_path):
        with pytest.raises(DataError, match="vae_vampprior"):
            freyfaces.load(directory)


def test_the_published_frames():
    dataset = freyfaces.load(published("freyfaces"))
    parts = [getattr(dataset, name).examples for name in SPLITS]
    assert [len(part) for part in parts] == [1_565, 200, 200]
    every = np.rint(255.0 * np.concatenate(parts)).astype(int)
    assert (every.min(), every.max()) == (8, 238)
    np.testing.assert_allclose(every.mean(), 154.46, atol=0.005)
