"""Acclaim's motion capture formats: a skeleton (.asf) and its motions (.amc).

A skeleton is a tree of bones that hang on a root. Bone b points, in the pose in which
all angles are zero, along a unit direction d_b of the skeleton's own frame, and turns
about axes of its own, which the matrix C_b of its `axis` angles gives. With L_b the
rotation of its angles in a frame, its rotation in the skeleton's frame is
M_b = C_b L_b C_b^-1, and along the tree

    G_b = G_parent M_b        x_b = x_parent + length_b G_b d_b

where x_b is the end of the bone. Several angles turn one after another about fixed
axes, in the order they are named: "rx ry rz" is R_z R_y R_x. The root's own `position`
and `orientation` place the standing body, its channels move it from there:
G_root = L_root C_root and x_root = position + translation.

Angles are in degrees, lengths and translations in units of the skeleton's file; such a
unit is 1 / `Skeleton.length_unit` inches in the files of CMU.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from vhp_jax.data import files
from vhp_jax.data.base import DataError

ROOT = "root"
ROOT_CHANNELS = ("TX", "TY", "TZ", "RX", "RY", "RZ")
DOF = ("rx", "ry", "rz")
# Larger numbers are no angle, length or place of a body; they would overflow later.
LARGEST = 1e6
A_NUMBER = f"a finite number of at most {LARGEST:,.0f}"
UNIT_TOLERANCE = 1e-3  # of the length of a direction; files have six digits

NEEDED_SECTIONS = (":units", ":root", ":bonedata", ":hierarchy")
SECTIONS = (":version", ":name", ":documentation", ":skin", *NEEDED_SECTIONS)
BONE_FIELDS = ("name", "direction", "length", "axis")
BONE_OPTIONS = ("id", "dof", "limits", "bodymass", "cofmass")


class Root(NamedTuple):
    """The point that the bones hang on.

    Attributes:
      order: names of its channels as an .amc file has them, such as "TX" or "RX".
      axis: order of the axes of `orientation`, such as "XYZ".
      position: float64 [3], of the standing body.
      orientation: float64 [3] degrees, of the standing body, in the order of `axis`.
    """

    order: tuple[str, ...]
    axis: str
    position: np.ndarray
    orientation: np.ndarray


class Bone(NamedTuple):
    """One bone.

    Attributes:
      name: unique in the skeleton.
      parent: the point that it hangs on: 0 is the root, i + 1 the end of bone i.
      direction: float64 [3], unit vector.
      length: not negative.
      axis: float64 [3] degrees, in the order of `axis_order`.
      axis_order: such as "XYZ".
      dof: the angles it has in a frame, in the order they turn: of rx, ry and rz.
      limits: lowest and highest angle of each dof, degrees; empty where there are none.
    """

    name: str
    parent: int
    direction: np.ndarray
    length: float
    axis: np.ndarray
    axis_order: str
    dof: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]


class Skeleton(NamedTuple):
    """A body.

    Attributes:
      name: as the file says, else empty.
      mass_unit: as the file says.
      length_unit: as the file says.
      root: what the bones hang on.
      bones: in the order of the file, which need not have parents first.
    """

    name: str
    mass_unit: float
    length_unit: float
    root: Root
    bones: tuple[Bone, ...]

    @property
    def points(self) -> tuple[str, ...]:
        """The root, then the end of each bone, [P]."""
        return (ROOT, *(bone.name for bone in self.bones))

    @property
    def parents(self) -> np.ndarray:
        """int64 [P], the point that each point hangs on; -1 for the root."""
        return np.array([-1, *(bone.parent for bone in self.bones)])

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the numbers of a frame, [C], such as "root.TX" and "lfemur.rx"."""
        return tuple(
            f"{name}.{channel}" for name, own in _parts(self) for channel in own
        )


def _parts(skeleton: Skeleton) -> list[tuple[str, tuple[str, ...]]]:
    """Root and bones that have channels, with their names."""
    bones = [(bone.name, bone.dof) for bone in skeleton.bones if bone.dof]
    return [(ROOT, skeleton.root.order), *bones]


# --- Lines, words and numbers --------------------------------------------------------


class _Line(NamedTuple):
    """One line that is neither empty nor a remark; lines are counted from 1."""

    place: object
    number: int
    words: list[str]

    def refuse(self, seen: str, wanted: str) -> NoReturn:
        raise DataError(f"{self.place}, line {self.number}: {seen}, wanted {wanted}")

    def number_at(self, index: int) -> float:
        value = _number(self.words[index])
        if value is None:
            self.refuse(f"{self.words[0]} has {_short(self.words[index])}", A_NUMBER)
        return value

    def numbers(self, count: int) -> np.ndarray:
        """The `count` numbers after the first word, and no more."""
        self.check_size(count, f"{count} number{'s'[: count - 1]}")
        return np.array([self.number_at(i) for i in range(1, count + 1)])

    def check_size(self, count: int, wanted: str) -> None:
        if len(self.words) != count + 1:
            self.refuse(f"{self.words[0]} has {len(self.words) - 1} values", wanted)


def _short(word: str) -> str:
    """The word in quotes, cut where it is long."""
    return repr(word if len(word) <= 40 else f"{word[:40]}...")


def _number(word: str | bytes) -> float | None:
    """The number that a word stands for, None where it is none or is too large."""
    try:
        value = float(word)
    except ValueError:
        return None
    # Python's own numbers may have underscores; NaN fails the comparison.
    underscore = "_" in word if isinstance(word, str) else b"_" in word
    return value if abs(value) <= LARGEST and not underscore else None


def _split(place: object, content: bytes, what: str) -> list[bytes]:
    """The lines of a text; refuses what is not one or is cut off within a line."""
    if not content.strip():
        raise DataError(f"{place}, line 1: nothing, wanted {what}")
    foreign = re.search(rb"[^\t\n\r -~]", content)
    if foreign:
        number = len(content[: foreign.start() + 1].splitlines())
        raise DataError(
            f"{place}, line {number}: holds the byte {foreign[0].hex()} of "
            f"{files.describe(content)}, wanted {what}, which is ASCII text"
        )
    lines = content.splitlines()
    if not content.endswith((b"\n", b"\r")):
        raise DataError(
            f"{place}, line {len(lines)}: is cut off after "
            f"{_short(lines[-1].decode()[-40:])}, wanted a line end"
        )
    return lines


# --- Skeletons -----------------------------------------------------------------------


def read_asf(path: files.StrPath) -> Skeleton:
    """Reads a skeleton; see `decode_asf`."""
    return decode_asf(path, files.read(Path(path)))


def decode_asf(place: object, content: bytes) -> Skeleton:
    """Decodes an .asf file.

    Args:
      place: the file, named in messages.
      content: unpacked.

    Returns:
      The skeleton; angles that the file has in radians are given in degrees.

    Raises:
      DataError: with file, line, what was seen and what was wanted.
    """
    sections = _sections(place, content)
    mass_unit, length_unit, degrees = _units(*sections[":units"])
    root = _root(*sections[":root"], degrees)
    bones, named_at = _bones(*sections[":bonedata"], degrees)
    parents = _hierarchy(*sections[":hierarchy"], named_at)
    head = sections.get(":name", None)
    return Skeleton(
        " ".join(head[0].words[1:]) if head else "",
        mass_unit,
        length_unit,
        root,
        tuple(bone._replace(parent=parents[bone.name]) for bone in bones),
    )


def _sections(place: object, content: bytes) -> dict[str, tuple[_Line, list[_Line]]]:
    """Head and lines of each section."""
    found: dict[str, tuple[_Line, list[_Line]]] = {}
    body: list[_Line] | None = None
    lines = _split(place, content, "an .asf skeleton")
    for number, text in enumerate(lines, 1):
        words = text.decode().split()
        if not words or words[0].startswith("#"):
            continue
        line = _Line(place, number, words)
        name = words[0]
        if name.startswith(":"):
            if name not in SECTIONS:
                line.refuse(
                    f"unknown section {_short(name)}", f"one of {' '.join(SECTIONS)}"
                )
            if name in found:
                line.refuse(f"a second section {name}", "one")
            body = []
            found[name] = line, body
        elif body is None:
            line.refuse(
                f"{_short(name)} is in no section", f"one of {' '.join(SECTIONS)}"
            )
        else:
            body.append(line)
    for name in NEEDED_SECTIONS:
        if name not in found:
            _Line(place, len(lines), []).refuse(
                f"the file ends without the section {name}", "a whole skeleton"
            )
    return found


def _fields(
    head: _Line, lines: Iterable[_Line], needed: Iterable[str], others: Iterable[str]
) -> dict[str, _Line]:
    """The lines of a section or bone by their first word."""
    found: dict[str, _Line] = {}
    known = (*needed, *others)
    for line in lines:
        name = line.words[0]
        if name not in known:
            line.refuse(
                f"unknown {_short(name)} in {head.words[0]}",
                f"one of {' '.join(known)}",
            )
        if name in found:
            line.refuse(f"a second {name} in {head.words[0]}", "one")
        found[name] = line
    for name in needed:
        if name not in found:
            head.refuse(f"{head.words[0]} has no {name}", " ".join(needed))
    return found


def _units(head: _Line, lines: list[_Line]) -> tuple[float, float, float]:
    """Unit of mass and length, and how many degrees the unit of angles has."""
    found = _fields(head, lines, ("length", "angle"), ("mass",))
    values = {"mass": 1.0, "length": 1.0}
    for name in found.keys() & values.keys():
        values[name] = float(found[name].numbers(1)[0])
        if values[name] <= 0.0:
            found[name].refuse(f"{name} is {values[name]}", "a positive number")
    angle = found["angle"]
    angle.check_size(1, "deg or rad")
    if angle.words[1] not in ("deg", "rad"):
        angle.refuse(f"unknown unit {_short(angle.words[1])} of angle", "deg or rad")
    degrees = 1.0 if angle.words[1] == "deg" else float(np.degrees(1.0))
    return values["mass"], values["length"], degrees


def _root(head: _Line, lines: list[_Line], degrees: float) -> Root:
    names = ("order", "axis", "position", "orientation")
    found = _fields(head, lines, names, ())
    order = tuple(word.upper() for word in found["order"].words[1:])
    if sorted(order) != sorted(ROOT_CHANNELS):
        found["order"].refuse(
            f"order is {_short(' '.join(found['order'].words[1:]))}",
            f"each of {' '.join(ROOT_CHANNELS)} once",
        )
    found["axis"].check_size(1, "an order such as XYZ")
    return Root(
        order,
        _axis_order(found["axis"], 1),
        found["position"].numbers(3),
        degrees * found["orientation"].numbers(3),
    )


def _axis_order(line: _Line, index: int) -> str:
    word = line.words[index].upper()
    if sorted(word) != sorted("XYZ"):
        line.refuse(f"axis has the order {_short(line.words[index])}", "such as XYZ")
    return word


def _bones(
    head: _Line, lines: list[_Line], degrees: float
) -> tuple[list[Bone], dict[str, _Line]]:
    """The bones, still without parents, and the line that names each."""
    bones: list[Bone] = []
    named_at: dict[str, _Line] = {}
    ids: set[str] = set()
    for begin, own in _blocks(head, lines):
        own, limits = _take_limits(own)
        found = _fields(begin, own, BONE_FIELDS, BONE_OPTIONS)
        name = found["name"]
        name.check_size(1, "one word")
        if name.words[1] in (ROOT, *named_at):
            name.refuse(f"a second bone {_short(name.words[1])}", "one of that name")
        named_at[name.words[1]] = name
        if "id" in found:
            found["id"].check_size(1, "one number")
            number = found["id"].words[1]
            if not number.isdigit() or number in ids:
                found["id"].refuse(
                    f"id is {_short(number)}", "a whole number of its own"
                )
            ids.add(number)
        for option in found.keys() & {"bodymass", "cofmass"}:
            found[option].numbers(1)
        bones.append(_bone(name.words[1], found, limits, degrees))
    if not bones:
        head.refuse("no bone", "one or more between begin and end")
    return bones, named_at


def _bone(
    name: str, found: dict[str, _Line], limits: list[_Line], degrees: float
) -> Bone:
    direction = found["direction"].numbers(3)
    size = float(np.linalg.norm(direction))
    if abs(size - 1.0) > UNIT_TOLERANCE:
        found["direction"].refuse(f"direction has length {size:.6g}", "1")
    length = float(found["length"].numbers(1)[0])
    if length < 0.0:
        found["length"].refuse(f"length is {length}", "0 or more")
    axis = found["axis"]
    axis.check_size(4, "3 angles and an order such as XYZ")
    dof = tuple(found["dof"].words[1:]) if "dof" in found else ()
    if "dof" in found and (
        not dof or len(set(dof)) != len(dof) or not set(dof) <= set(DOF)
    ):
        found["dof"].refuse(
            f"dof of {name} is {_short(' '.join(dof))}",
            f"some of {' '.join(DOF)}, each once",
        )
    pairs = _limits(limits, degrees)
    if limits and len(pairs) != len(dof):
        limits[0].refuse(
            f"{len(pairs)} limits of {name}", f"{len(dof)}, one for each dof"
        )
    return Bone(
        name,
        -1,
        direction / size,
        length,
        degrees * np.array([axis.number_at(i) for i in (1, 2, 3)]),
        _axis_order(axis, 4),
        dof,
        pairs,
    )


def _blocks(head: _Line, lines: list[_Line]) -> Iterator[tuple[_Line, list[_Line]]]:
    """The lines between each begin and end, with the line of that begin."""
    begin: _Line | None = None
    own: list[_Line] = []
    for line in lines:
        if begin is None:
            if line.words != ["begin"]:
                line.refuse(
                    f"{_short(' '.join(line.words))} in {head.words[0]}", "begin"
                )
            begin, own = line, []
        elif line.words == ["end"]:
            yield begin._replace(words=["bone"]), own
            begin = None
        elif line.words == ["begin"]:
            line.refuse(f"begin within what begins at line {begin.number}", "end")
        else:
            own.append(line)
    if begin is not None:
        begin.refuse(f"begin without an end in {head.words[0]}", "end")


def _take_limits(lines: list[_Line]) -> tuple[list[_Line], list[_Line]]:
    """Takes the limits, the only field of several lines, from those of a bone."""
    others: list[_Line] = []
    limits: list[_Line] = []
    within = False
    for line in lines:
        if line.words[0] == "limits" and limits:
            line.refuse("a second limits in bone", "one")
        within = line.words[0] == "limits" or (within and line.words[0][0] == "(")
        (limits if within else others).append(line)
    return others, limits


def _limits(lines: list[_Line], degrees: float) -> tuple[tuple[float, float], ...]:
    pairs: list[tuple[float, float]] = []
    for line in lines:
        text = " ".join(line.words).removeprefix("limits").strip()
        if not re.fullmatch(r"(\( ?[^() ]+ [^() ]+ ?\) ?)+", text):
            line.refuse(f"limits are {_short(text)}", "such as (-20.0 45.0)")
        for words in re.findall(r"([^() ]+) ([^() ]+)", text):
            # Without a limit the format has infinities.
            low, high = (
                float(word) if word in ("inf", "-inf") else _number(word)
                for word in words
            )
            if low is None or high is None or low > high:
                line.refuse(
                    f"limits are {_short(' '.join(words))}",
                    "two numbers, the lower one first",
                )
            pairs.append((degrees * low, degrees * high))
    return tuple(pairs)


def _hierarchy(
    head: _Line, lines: list[_Line], named_at: dict[str, _Line]
) -> dict[str, int]:
    """The point that each bone hangs on."""
    points = {name: index for index, name in enumerate((ROOT, *named_at))}
    parents: dict[str, str] = {}
    blocks = list(_blocks(head, lines))
    if len(blocks) != 1:
        head.refuse(f"{len(blocks)} blocks in {head.words[0]}", "one")
    for line in blocks[0][1]:
        for name in line.words:
            if name not in points:
                line.refuse(f"unknown bone {_short(name)}", "one of :bonedata, or root")
        parent, *children = line.words
        if not children:
            line.refuse(f"nothing hangs on {_short(parent)}", "one bone or more")
        for name in children:
            if name == ROOT or name in parents:
                line.refuse(
                    f"{_short(name)} hangs on {_short(parent)}"
                    + (f" and on {_short(parents[name])}" if name in parents else ""),
                    "a tree with the root on top",
                )
            parents[name] = parent
    for name, line in named_at.items():
        if name not in parents:
            line.refuse(f"the bone {_short(name)} hangs on nothing", "it in :hierarchy")
        above = name
        for _ in named_at:
            above = parents.get(above, ROOT)
        if above != ROOT:
            line.refuse(
                f"the bone {_short(name)} hangs on itself by way of others",
                "a tree with the root on top",
            )
    return {name: points[parent] for name, parent in parents.items()}


# --- Motions -------------------------------------------------------------------------


class _Rows(NamedTuple):
    """The lines of a motion that are neither empty nor remarks, as words."""

    place: object
    words: list[list[bytes]]
    numbers: list[int]  # of these lines in the file, and of its last line

    def refuse(self, index: int, seen: str, wanted: str) -> NoReturn:
        """Of line `index` of these; the one after the last is the end of the file."""
        _Line(self.place, self.numbers[index], []).refuse(seen, wanted)


def read_amc(path: files.StrPath, skeleton: Skeleton) -> np.ndarray:
    """Reads a motion; see `decode_amc`."""
    return decode_amc(path, files.read(Path(path)), skeleton)


def decode_amc(place: object, content: bytes, skeleton: Skeleton) -> np.ndarray:
    """Decodes an .amc file.

    The bones of a frame may be in any order, the same in all frames; frames are
    numbered from 1.

    Args:
      place: the file, named in messages.
      content: unpacked.
      skeleton: says which channels there are.

    Returns:
      float64 [T, C], frames by `skeleton.channels`; angles in degrees.

    Raises:
      DataError: with file, line, what was seen and what was wanted.
    """
    lines = _split(place, content, "an .amc motion")
    rows = _Rows(place, [], [])
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith(b"#"):
            rows.words.append(words)
            rows.numbers.append(number)
    rows.numbers.append(len(lines))

    start, radians = _motion_head(rows)
    channels = dict(_parts(skeleton))
    order = _bone_order(rows, start, channels)
    num_frames = _check_frames(rows, start, order, channels)

    flat = _values(rows, start, 1 + len(order))
    found = [f"{name}.{channel}" for name in order for channel in channels[name]]
    columns = {name: index for index, name in enumerate(found)}
    values = flat.reshape(num_frames, len(found))
    values = values[:, [columns[name] for name in skeleton.channels]]  # [T, C]
    if radians:
        turns = [not name.startswith(f"{ROOT}.T") for name in skeleton.channels]
        values[:, turns] = np.degrees(values[:, turns])
    return values


def _motion_head(rows: _Rows) -> tuple[int, bool]:
    """Where the first frame begins, and whether angles are in radians."""
    units: list[bytes] = []
    for index, words in enumerate(rows.words):
        if not words[0].startswith(b":"):
            break
        if words not in ([b":FULLY-SPECIFIED"], [b":DEGREES"], [b":RADIANS"]):
            rows.refuse(
                index,
                f"unknown line {_quoted(b' '.join(words))}",
                ":FULLY-SPECIFIED, :DEGREES or :RADIANS",
            )
        if words != [b":FULLY-SPECIFIED"]:
            units += words
    else:
        rows.refuse(len(rows.words), "the file ends without a frame", "frames")
    if len(units) != 1:
        rows.refuse(
            index,
            f"{_quoted(words[0])} comes after {len(units)} units of angles",
            ":DEGREES or :RADIANS before the first frame",
        )
    return index, units == [b":RADIANS"]


def _bone_order(
    rows: _Rows, start: int, channels: dict[str, tuple[str, ...]]
) -> list[str]:
    """The names of root and bones in the order of the first frame."""
    order: list[str] = []
    for index in range(start + 1, start + 1 + len(channels)):
        missing = next(name for name in channels if name not in order)
        if index == len(rows.words):
            rows.refuse(index, "the file ends within frame 1", f"the bone {missing}")
        name = rows.words[index][0].decode()
        if name.isdigit():
            rows.refuse(index, f"frame 1 ends at {_short(name)}", f"the bone {missing}")
        if name not in channels:
            rows.refuse(
                index,
                f"unknown bone {_short(name)} in frame 1",
                "bones of the skeleton that have dof",
            )
        if name in order:
            rows.refuse(index, f"{name} twice in frame 1", f"the bone {missing}")
        order.append(name)
    return order


def _check_frames(
    rows: _Rows, start: int, order: list[str], channels: dict[str, tuple[str, ...]]
) -> int:
    """The number of frames, each of which has its number and all bones in order."""
    # What each line begins with and how many words it has, of all frames at once.
    names = [words[0] for words in rows.words[start:]]
    sizes = [len(words) for words in rows.words[start:]]
    bones = [name.encode() for name in order]
    num_frames = -(-len(names) // (1 + len(bones)))
    frames = [[str(number).encode(), *bones] for number in range(1, num_frames + 1)]
    wanted_names = [name for frame in frames for name in frame]
    wanted_sizes = [1, *(1 + len(channels[name]) for name in order)] * num_frames
    if names == wanted_names and sizes == wanted_sizes:
        return num_frames
    # One more than the file has, where all of its own lines are right.
    seen = [*zip(names, sizes, strict=True), (b"", 0)]
    wanted = zip(wanted_names, wanted_sizes, strict=True)
    index, have, want = next(
        (index, *pair)
        for index, pair in enumerate(zip(seen, wanted, strict=False))
        if pair[0] != pair[1]
    )
    number = 1 + index // (1 + len(bones))
    name, count = want[0].decode(), want[1] - 1
    wish = f"{name} with {count} value{'s'[: count - 1]}"
    if count == 0:
        wish = f"the frame number {name} alone"
    if index == len(names):
        rows.refuse(
            start + index,
            f"the file ends within frame {number}, after {_quoted(names[-1])}",
            wish,
        )
    line = _quoted(have[0])
    if have[1] > 1:
        line += f" with {have[1] - 1} value{'s'[: have[1] - 2]}"
    rows.refuse(start + index, f"{line} in frame {number}", wish)


def _values(rows: _Rows, start: int, height: int) -> np.ndarray:
    """All numbers of all frames, one after another."""
    words = [word for row in rows.words[start:] for word in row[1:]]
    try:
        values = np.array(list(map(float, words)))
    except ValueError:
        values = np.array([np.nan])
    # NaN fails the comparison; Python's own numbers may have underscores.
    if (np.abs(values) <= LARGEST).all() and not any(b"_" in word for word in words):
        return values
    for index, row in enumerate(rows.words[start:]):
        for word in row[1:]:
            if _number(word) is None:
                rows.refuse(
                    start + index,
                    f"{_quoted(row[0])} in frame {1 + index // height} has "
                    f"{_quoted(word)}",
                    A_NUMBER,
                )
    raise AssertionError("unreachable: one of the words is no number")


def _quoted(word: bytes) -> str:
    return _short(word.decode())


# --- Kinematics ----------------------------------------------------------------------


def rotation_matrices(axes: str, angles: np.ndarray) -> np.ndarray:
    """Rotations about one fixed axis after another.

    Args:
      axes: of x, y and z in the order they are turned about, in either case.
      angles: [..., len(axes)] degrees, in this order.

    Returns:
      float64 [..., 3, 3], for column vectors: the last axis is the left factor.
    """
    radians = np.deg2rad(np.asarray(angles, np.float64))
    product = np.broadcast_to(np.eye(3), (*radians.shape[:-1], 3, 3))
    for index, axis in enumerate(axes):
        cosine, sine = np.cos(radians[..., index]), np.sin(radians[..., index])
        i = "xyz".index(axis.lower())
        j, k = (i + 1) % 3, (i + 2) % 3
        turn = np.zeros_like(product)
        turn[..., i, i] = 1.0
        turn[..., j, j] = turn[..., k, k] = cosine
        turn[..., k, j] = sine
        turn[..., j, k] = -sine
        product = turn @ product
    return product


def forward_kinematics(skeleton: Skeleton, channels: np.ndarray) -> np.ndarray:
    """Where the points of a body are.

    Args:
      skeleton: the body.
      channels: [T, C] as `decode_amc` gives them, angles in degrees.

    Returns:
      float64 [T, P, 3], the root and the end of each bone by `skeleton.points`, in
      units of the skeleton.

    Raises:
      ValueError: `channels` has another shape.
    """
    channels = np.asarray(channels, np.float64)
    names = skeleton.channels
    if channels.ndim != 2 or channels.shape[1] != len(names):
        raise ValueError(f"channels must be [T, {len(names)}], got {channels.shape}")
    columns = {name: index for index, name in enumerate(names)}

    def values(name: str, own: Iterable[str]) -> np.ndarray:
        return channels[:, [columns[f"{name}.{channel}"] for channel in own]]

    root = skeleton.root
    turns = [channel for channel in root.order if channel.startswith("R")]
    moved = values(ROOT, turns)  # [T, 3]
    positions = np.empty((len(channels), 1 + len(skeleton.bones), 3))
    positions[:, 0] = root.position + values(ROOT, ("TX", "TY", "TZ"))
    rotations = {  # G, [T, 3, 3]
        0: rotation_matrices("".join(turn[1] for turn in turns), moved)
        @ rotation_matrices(root.axis, root.orientation)
    }
    for point in _parents_first(skeleton.parents):
        bone = skeleton.bones[point - 1]
        rotation = rotations[bone.parent]
        if bone.dof:
            own = rotation_matrices(bone.axis_order, bone.axis)  # C
            turned = rotation_matrices(
                "".join(dof[1] for dof in bone.dof), values(bone.name, bone.dof)
            )  # L
            rotation = rotation @ (own @ turned @ own.T)
        rotations[point] = rotation
        offset = bone.length * (rotation @ bone.direction)
        positions[:, point] = positions[:, bone.parent] + offset
    return positions


def _parents_first(parents: np.ndarray) -> list[int]:
    """All points but the root, each one after the one that it hangs on."""
    order = [0]
    for point in order:  # grows while it is walked
        order += np.flatnonzero(parents == point).tolist()
    return order[1:]
