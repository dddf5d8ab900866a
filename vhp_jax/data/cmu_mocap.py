"""Human motion: five movements of CMU's motion capture database (Sec. 4.2).

The data used in this project was obtained from mocap.cs.cmu.edu. The database was
created with funding from NSF EIA-0196217.

An example is one frame: the 50 joint angles that Taylor, Hinton and Roweis (2006) keep
of the 62 channels. Left out are where the body is and how it is turned (6 channels of
the root) and the angles that never change (clavicles and fingers, 6). The angles of
hands and thumbs, which jump by half turns, are folded into [-90, 90] degrees as they do
it, with asin(sin(x)); the others are as the files have them, unwrapped along time.

Which trials the paper used is not published; labels.csv lists the 46 taken here. The
paper's split puts frames at random on both sides, 1/120 s from each other; asked for
by name it is here too, beside one of blocks of frames with gaps between.
"""

import csv
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vhp_jax.data import files
from vhp_jax.data.asf_amc import (
    ROOT,
    Skeleton,
    decode_amc,
    decode_asf,
    forward_kinematics,
)
from vhp_jax.data.base import DataError, Dataset, Motion, Split, Standardisation

NAME = "cmu_mocap"
HOME = "mocap.cs.cmu.edu (labels.csv lists the trials)"
ARCHIVE = "cmu_mocap.tar.gz"
LABELS = "labels.csv"
LABELS_HEADER = ["file", "motion", "frames", "frame_rate_hz"]  # others may follow
SKELETON = "35.asf"  # of the subject of most trials; poses are of this body
MOTIONS = ("walking", "jogging", "balancing", "punching", "kicking")
UNITS = {"turns": 360.0, "radians": float(np.degrees(1.0))}  # degrees
SCALINGS = (*UNITS, "standard", "range")
FRAME_RATE = 120  # frames a second, of all trials
MAX_MEMBER_BYTES = 16_000_000

# Degrees; the same in all frames of all trials, and so no part of an example.
CONSTANT = {
    "lclavicle.ry": 0.0,
    "lclavicle.rz": 0.0,
    "lfingers.rx": 7.125,
    "rclavicle.ry": 0.0,
    "rclavicle.rz": 0.0,
    "rfingers.rx": 7.125,
}
CONSTANT_TOLERANCE = 1e-3
NUM_FEATURES = 50
FOLDED = ("lhand", "rhand", "lthumb", "rthumb")
# A spread, in degrees, below which a feature of the training split is not scaled.
SMALLEST_SCALE = 1e-6

# Between blocks of different splits at least so much time is left out: a frame of a
# walk is then an eighth of a stride away from the nearest one of another split.
GUARD_SECONDS = 0.15
# Long trials give several blocks a split, one for about so much time.
SEGMENT_SECONDS = 5.0

# The first half of the sha256 of each file.
CHECKSUMS = """
35.asf 2a8e2eda3c0d7d828566b2a9a8ab36b2  labels.csv 15cea0033c5853458c01be0400d1f770
02_01.amc e196f67e5cee0bb575e2ed1050822311  02_02.amc 931d07e2dc383f5cc0ce93074e4d8371
02_03.amc 9d6874b434aa84cbe5e2c552de87c7ca  02_05.amc 4588748dd7d6598f38cf2b4cc1a31b65
10_01.amc fb360fde1a3d96d113160e63a7ba5545  10_02.amc 92bdf970ca378df308dd77bffa7a2938
10_03.amc 393d4cd2a7c5f86f3469962607cd3941  10_05.amc d0e6589928ab345ca260831b1b2038ad
10_06.amc 016cc73e359a975c0eb7a49837da8f9e  11_01.amc 1c4a0e6de841c849305908e04596830b
35_01.amc 0743f4ea48e7e199cd56b2810b5ce81f  35_02.amc 5356b838a3267b7304358251cded50e6
35_03.amc 38125e44e6ec91a0ca81ecd93e77d66a  35_04.amc e569c86dadbe16a504203fd562792a0e
35_05.amc 00772f66d3037c0de59c69afd1379455  35_06.amc e75ef882dac4bd7b61648ea5ef776d42
35_07.amc 680b372fa6f49284372fde0449b73b26  35_08.amc 849f521e806f0474757bc91e39f365ff
35_09.amc 98dcd8a7280f8af0de20108436a092fa  35_10.amc 135ae36b59acc3b962ac972e7e47c42c
35_11.amc f194474b468ace99eb9033fe1af4d412  35_12.amc ec62a67dfac027bcf31e9a6ddc213970
35_13.amc 1a26955b777ed1ef47313e9e48d3cb31  35_14.amc 6eacd07c32943ce8a11f368b2464a523
35_15.amc 15691f6effd3bb8781de8b932a13f121  35_16.amc 682968e7529f2d1d75fd13eac3193490
35_17.amc bf8ce5c446e4e3b3b86f878dc4b0d4fb  35_18.amc 8ebad90aa92a44bf50b34c526499d3f6
35_19.amc 8024d7492e1094eeb9e7e0c9572c7d71  35_20.amc d18d87463c9345555820d8669b4db155
35_21.amc b996b542984ebb0c33d566e2cf013f2f  35_22.amc d09230f11ce1f107e01bb0ed6508ec8a
35_23.amc 9f6a61faf496f5c6b051470a0c85c81c  35_24.amc 776f0d5ac3e5285248fa0410197da4c6
35_25.amc e9c1dc9dff5092f63b025917182a4449  35_26.amc 4ed26da54b182fddeb853689d336a1c0
35_28.amc 32f8fbb22955178c2c0a7350d944d8cd  35_29.amc 1bba11dd6751a420906a94adb4d0e8ee
35_30.amc 9ee4b1c252cd2b89c7152c977f0fbc67  35_31.amc 315db2e3bfc079b949c6008be1e77459
35_32.amc 5c342472d353b7d13e76f98a83a43a48  35_33.amc 64df2d4faf97fa5c5b46759d061b2475
35_34.amc 5488e0529336fa1d682d1da94887f014  49_18.amc 92270c489224b4b16b8de8d2f167ba0a
49_19.amc d0b1e62eda3b4ba61e2fcf78864ca44d  49_20.amc 6558836baed3f4d0904c7c36fe85a6bd
"""


class Trial(NamedTuple):
    """One line of labels.csv.

    Attributes:
      file: name of the .amc file.
      motion: index in MOTIONS.
      num_frames: in the file.
    """

    file: str
    motion: int
    num_frames: int


class Frames(NamedTuple):
    """The frames of all trials, one trial after another.

    Attributes:
      angles: float64 [N, 50] degrees, folded.
      motions: int64 [N], index in MOTIONS.
      lengths: number of frames of each trial.
    """

    angles: np.ndarray
    motions: np.ndarray
    lengths: tuple[int, ...]


def load(
    directory: files.StrPath | None = None,
    split: str = "blocks",
    seed: int = 0,
    num_train: int = 12_653,
    num_validation: int = 2_531,
    num_test: int = 2_531,
    frame_rate: int = FRAME_RATE,
    scaling: str = "turns",
    verify: bool = True,
) -> Dataset:
    """Reads the trials and splits their frames.

    Args:
      directory: holds the folder cmu_mocap/ with cmu_mocap.tar.gz, or with its files,
        directly or in a folder cmu_mocap/ of its own.
      split: "blocks" cuts each trial into contiguous blocks for the three splits, in
        an order drawn for each trial, with `GUARD_SECONDS` left out between them, so
        that no frame has its neighbour in time in another split; "random" draws the
        frames singly, as the paper does: nearly all then have their neighbours in the
        training split.
      seed: of either.
      num_train: training frames (the paper: 12,653).
      num_validation: validation frames (the paper: 2,531).
      num_test: test frames (the paper has none).
      frame_rate: frames a second that are kept; divides 120.
      scaling: of the examples, by statistics of the training split: "turns" and
        "radians" only to mean 0, in those units, so that a degree is as much in each
        feature; "standard" each to mean 0 and variance 1; "range" each to [0, 1]. The
        scale of the decoder and kappa refer to it.
      verify: whether content that is not the known one is refused.

    Returns:
      Splits with examples float32 [N, 50] and targets int64 [N], 0 to 4 in the order of
      MOTIONS, both by trial and time. `standardisation` is of angles in degrees, [50].

    Raises:
      DataError: a file is missing, damaged, unsafe or not the known one.
      ValueError: an argument is out of range, or there are too few frames.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{name} must be at least 1, got {count}")
    if split not in ("blocks", "random"):
        raise ValueError(f"split must be 'blocks' or 'random', got {split!r}")
    if scaling not in SCALINGS:
        raise ValueError(
            f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if frame_rate < 1 or FRAME_RATE % frame_rate:
        raise ValueError(f"frame_rate must divide {FRAME_RATE}, got {frame_rate}")
    if directory is None:
        raise DataError(
            f"{NAME}: no data directory, wanted one with a folder {NAME}/; the files "
            f"are to be had from {HOME}, not from tensorflow-datasets"
        )

    place, contents = read_folder(files.find_folder(NAME, directory, HOME))
    skeleton, frames = decode(place, contents, FRAME_RATE // frame_rate, verify)
    if split == "blocks":
        parts = split_blocks(frames.lengths, tuple(counts.values()), frame_rate, seed)
    else:
        parts = split_random(sum(frames.lengths), tuple(counts.values()), seed)
    standardisation = fit_scaling(frames.angles[parts[0]], scaling)
    examples = standardisation.apply(frames.angles)
    train, validation, test = (
        Split(examples[part], frames.motions[part]) for part in parts
    )
    checked = "checksums verified" if verify else "checksums NOT verified"
    return Dataset(
        NAME,
        "label",
        f"{place}, {checked}; {split} split with seed {seed}, {frame_rate} frames a "
        f"second, {scaling} scaling",
        train,
        validation,
        test,
        label_names=MOTIONS,
        standardisation=standardisation,
        motion=bodies(skeleton, standardisation),
    )


# --- Files ---------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """The files of the set, packed or not.

    Returns:
      Where they are from, and the content of each by its name.

    Raises:
      DataError: there are none, or the archive is damaged or unsafe.
    """
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE, read_archive(folder / ARCHIVE)
    for place in (folder / NAME, folder):
        if (place / LABELS).is_file():
            found = sorted(path for path in place.iterdir() if _belongs(path.name))
            return place, {path.name: files.read(path) for path in found}
    raise DataError(f"{folder}: no file {ARCHIVE} or {LABELS}, to be had from {HOME}")


def _belongs(name: str) -> bool:
    return name == LABELS or re.fullmatch(r"\w+\.(asf|amc)", name) is not None


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of a tar archive that belong to the set, without unpacking it to disk.

    They are at its top or in a folder cmu_mocap/; others are left out.

    Raises:
      DataError: the archive is damaged; a member has an unsafe path, is neither a file
        nor a folder, is too large or is there twice.
    """
    content = files.read(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            return _members(path, archive)
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        seen = files.describe(content)
        raise DataError(f"{path}: damaged tar archive: {error} ({seen})") from None


def _members(path: Path, archive: tarfile.TarFile) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for member in archive.getmembers():
        files.check_member(path, member.name)
        if not (member.isreg() or member.isdir()):
            kind = "a link" if member.issym() or member.islnk() else "a device"
            raise DataError(
                f"{path}: {member.name!r} is {kind}, wanted files and folders alone"
            )
        if member.size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{path}: {member.name!r} has {member.size} bytes, wanted at most "
                f"{MAX_MEMBER_BYTES}"
            )
        *folders, name = PurePosixPath(member.name).parts or ("",)
        if member.isdir() or folders not in ([], [NAME]) or not _belongs(name):
            continue
        if name in contents:
            raise DataError(f"{path}: holds {name} twice, wanted each file once")
        file = archive.extractfile(member)
        contents[name] = file.read() if file else b""
    return contents


def decode(
    place: Path, contents: Mapping[str, bytes], step: int, verify: bool
) -> tuple[Skeleton, Frames]:
    """Decodes the files of the set.

    Args:
      place: the folder or archive, named in messages.
      contents: by the name of the file.
      step: every such frame of a trial is kept, from the first one on.
      verify: whether content that is not the known one is refused.

    Raises:
      DataError: a file is missing, not the known one or not as it should be.
    """
    checksums = dict(re.findall(r"(\S+) (\S+)", CHECKSUMS))

    def where(name: str) -> str:
        return str(place / name) if place.is_dir() else f"{place}, {name}"

    def content_of(name: str, why: str) -> tuple[str, bytes]:
        if name not in contents:
            raise DataError(f"{place}: no file {name}, {why}; to be had from {HOME}")
        seen = sha256(contents[name]).hexdigest()
        if verify and not seen.startswith(checksums.get(name, "unknown")):
            wanted = checksums.get(name)
            raise DataError(
                f"{where(name)}: the content has sha256 {seen}, wanted "
                + (f"{wanted}..." if wanted else "a file that is known here")
                + " (verify=False takes it as it is)"
            )
        return where(name), contents[name]

    trials = decode_labels(*content_of(LABELS, "which lists the trials"))
    skeleton = decode_asf(*content_of(SKELETON, "the skeleton of the poses"))
    names = feature_names(where(SKELETON), skeleton)
    columns = [skeleton.channels.index(name) for name in names]
    angles, motions = [], []
    for trial in trials:
        found, content = content_of(
            trial.file, f"a trial of {MOTIONS[trial.motion]} that {LABELS} lists"
        )
        channels = decode_amc(found, content, skeleton)
        if len(channels) != trial.num_frames:
            raise DataError(
                f"{found}: {len(channels)} frames, wanted {trial.num_frames} as in "
                f"{LABELS}"
            )
        check_constant(found, skeleton, channels)
        angles.append(channels[::step, columns])
        motions.append(np.full(len(angles[-1]), trial.motion, np.int64))
    joined = np.concatenate(angles)
    folded = [name.split(".")[0] in FOLDED for name in names]
    joined[:, folded] = fold(joined[:, folded])
    lengths = tuple(map(len, angles))
    return skeleton, Frames(joined, np.concatenate(motions), lengths)


def decode_labels(place: object, content: bytes) -> list[Trial]:
    """Decodes labels.csv.

    Raises:
      DataError: with file, line, what was seen and what was wanted.
    """
    try:
        lines = content.decode("ascii").splitlines()
        rows = list(csv.reader(lines, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place}: {error}, wanted comma-separated text") from None
    if not rows or rows[0][: len(LABELS_HEADER)] != LABELS_HEADER:
        seen = repr(lines[0][:60]) if lines else "nothing"
        raise DataError(
            f"{place}, line 1: {seen}, wanted columns {','.join(LABELS_HEADER)}"
        )
    trials: list[Trial] = []
    for number, row in enumerate(rows[1:], 2):

        def refuse(seen: str, wanted: str, number: int = number) -> DataError:
            return DataError(f"{place}, line {number}: {seen}, wanted {wanted}")

        if len(row) < len(LABELS_HEADER):
            raise refuse(f"{len(row)} values", f"{len(LABELS_HEADER)} or more")
        file, motion, frames, rate = row[: len(LABELS_HEADER)]
        if not (_belongs(file) and file.endswith(".amc")):
            raise refuse(f"the file {file[:60]!r}", "a name such as 35_01.amc")
        if file in (trial.file for trial in trials):
            raise refuse(f"{file} a second time", "each file once")
        if motion not in MOTIONS:
            raise refuse(f"the motion {motion[:60]!r}", f"one of {', '.join(MOTIONS)}")
        if not re.fullmatch("[1-9][0-9]{0,8}", frames):
            raise refuse(f"{frames[:60]!r} frames", "a number from 1 on")
        if rate != str(FRAME_RATE):
            raise refuse(f"{rate[:60]!r} frames a second", str(FRAME_RATE))
        trials.append(Trial(file, MOTIONS.index(motion), int(frames)))
    if not trials:
        raise DataError(f"{place}: no trial, wanted one or more below the header")
    return trials


# --- Features ------------------------------------------------------------------------


def feature_names(place: object, skeleton: Skeleton) -> tuple[str, ...]:
    """The channels that are features, [50]: all but the root's and the constant ones.

    Raises:
      DataError: the skeleton has others than the bodies of CMU.
    """
    missing = set(CONSTANT) - set(skeleton.channels)
    names = tuple(
        name
        for name in skeleton.channels
        if not name.startswith(f"{ROOT}.") and name not in CONSTANT
    )
    if missing or len(names) != NUM_FEATURES:
        raise DataError(
            f"{place}: {len(names)} angles besides {', '.join(sorted(CONSTANT))}, "
            f"wanted {NUM_FEATURES} besides all of these"
        )
    return names


def check_constant(place: object, skeleton: Skeleton, channels: np.ndarray) -> None:
    """Raises DataError where a channel changes that is left out as a constant one."""
    for name, value in CONSTANT.items():
        seen = channels[:, skeleton.channels.index(name)]
        wrong = np.abs(seen - value) > CONSTANT_TOLERANCE
        if wrong.any():
            frame = int(np.argmax(wrong))
            raise DataError(
                f"{place}: {name} is {seen[frame]:g} in frame {frame + 1}, wanted "
                f"{value:g} in all frames of all trials"
            )


def fold(degrees: np.ndarray) -> np.ndarray:
    """asin(sin(x)): the same for all angles whose sines are equal, in [-90, 90]."""
    return np.degrees(np.arcsin(np.sin(np.radians(degrees))))


def fit_scaling(angles: np.ndarray, scaling: str) -> Standardisation:
    """What makes examples of angles.

    Args:
      angles: of the training split, [N, 50] degrees.
      scaling: see `load`.

    Returns:
      Of [50] features. Those that do not change at all are only centred.
    """
    if scaling in UNITS:
        scale = np.full(angles.shape[1], UNITS[scaling])
        return Standardisation(angles.mean(axis=0), scale)
    if scaling == "range":
        mean = angles.min(axis=0)
        scale = angles.max(axis=0) - mean
    else:
        mean, scale = angles.mean(axis=0), angles.std(axis=0)
    return Standardisation(mean, np.where(scale > SMALLEST_SCALE, scale, 1.0))


def bodies(skeleton: Skeleton, standardisation: Standardisation) -> Motion:
    """How examples are read as bodies, all of them of this skeleton."""
    names = feature_names(NAME, skeleton)
    columns = [skeleton.channels.index(name) for name in names]
    standing = np.array([CONSTANT.get(name, 0.0) for name in skeleton.channels])
    mean, scale = standardisation

    def poses(examples: np.ndarray) -> np.ndarray:
        channels = np.tile(standing, (len(examples), 1))
        channels[:, columns] = np.asarray(examples, np.float64) * scale + mean
        return forward_kinematics(skeleton, channels)

    joints: dict[str, tuple[int, ...]] = {}
    for column, name in enumerate(names):
        bone = name.split(".")[0]
        joints[bone] = (*joints.get(bone, ()), column)
    return Motion(joints, skeleton.points, skeleton.parents, poses)


# --- Splits --------------------------------------------------------------------------


def split_random(num_frames: int, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draws the frames of each split singly.

    Args:
      num_frames: that there are.
      counts: frames of each split.
      seed: of the draw.

    Returns:
      int64 [count] for each split, increasing; no frame is in two of them.

    Raises:
      ValueError: there are too few frames.
    """
    if sum(counts) > num_frames:
        raise ValueError(
            f"{_sum(counts)} frames wanted, but there are {num_frames} at this "
            "frame_rate"
        )
    drawn = np.random.default_rng(seed).permutation(num_frames)
    ends = np.cumsum(counts)
    return [
        np.sort(drawn[end - count : end])
        for end, count in zip(ends, counts, strict=True)
    ]


def split_blocks(
    lengths: Sequence[int], counts: Sequence[int], frame_rate: int, seed: int
) -> list[np.ndarray]:
    """Gives each split contiguous blocks of frames of every trial.

    A trial is cut into segments of about `SEGMENT_SECONDS`, and each of these into a
    block for each split, in an order that is drawn. Between two blocks `GUARD_SECONDS`
    are left out. The lengths of the blocks are in the proportions of `counts` and of
    the segments, so that each split has all trials in proportion; where there are more
    frames than wanted, those of a block are taken evenly spaced.

    Args:
      lengths: number of frames of each trial.
      counts: frames of each split.
      frame_rate: frames a second.
      seed: of the order of the blocks.

    Returns:
      int64 [count] for each split, increasing, indices in the trials' frames one after
      another; no frame is in two of them.

    Raises:
      ValueError: there are too few frames.
    """
    guard = int(np.ceil(GUARD_SECONDS * frame_rate))
    room: list[int] = []  # frames of each segment but for the guards
    origins: list[int] = []  # where each segment begins
    first = 0
    for length in lengths:
        num_segments = max(1, round(length / (SEGMENT_SECONDS * frame_rate)))
        num_guards = len(counts) * num_segments - 1
        own = _apportion(max(0, length - guard * num_guards), [1] * num_segments)
        taken = np.cumsum([0, *(own + guard * len(counts))])
        origins += (first + taken[:-1]).tolist()
        room += own.tolist()
        first += length
    available = sum(room)
    if sum(counts) > available:
        raise ValueError(
            f"{_sum(counts)} frames wanted, but of the {sum(lengths)} at this "
            f"frame_rate {available} are left after {GUARD_SECONDS} s between blocks; "
            "ask for fewer, or for split='random'"
        )

    # The last splits first: what rounding leaves falls to the first, the largest.
    blocks = np.zeros((len(counts), len(room)), np.int64)
    rest = np.array(room)
    for index in range(1, len(counts)):
        share = available * counts[index] // sum(counts)
        blocks[index] = _apportion(share, rest)
        rest -= blocks[index]
    blocks[0] = rest
    picks = [
        _apportion(count, block) for count, block in zip(counts, blocks, strict=True)
    ]

    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for segment, begin in enumerate(origins):
        for index in generator.permutation(len(counts)):
            length, count = blocks[index, segment], picks[index][segment]
            spaced = (2 * np.arange(count) + 1) * length // (2 * max(count, 1))
            parts[index].append(begin + spaced)
            begin += length + guard
    return [np.concatenate(part) for part in parts]


def _apportion(total: int, weights: Sequence[int] | np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total` in proportion to whole weights.

    Their running sum is rounded, so that the sum of any that follow each other, such as
    those of one motion, is off by less than one too. No number exceeds its weight where
    `total` is at most the sum of the weights.
    """
    ends = np.cumsum(np.asarray(weights, np.int64))
    whole = max(1, int(ends[-1]))
    return np.diff((2 * total * ends + whole) // (2 * whole), prepend=0)


def _sum(counts: Sequence[int]) -> str:
    return f"{' + '.join(map(str, counts))} = {sum(counts)}"
