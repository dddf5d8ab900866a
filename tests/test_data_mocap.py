"""Motions: the formats and kinematics on bodies made here, then CMU's own files."""

import gzip
import io
import itertools
import os
import re
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial
from scipy.spatial.transform import Rotation

from vhp_jax.data import asf_amc, cmu_mocap
from vhp_jax.data.asf_amc import (
    decode_amc,
    decode_asf,
    forward_kinematics,
    rotation_matrices,
)
from vhp_jax.data.base import DataError, Dataset

SPLITS = ("train", "validation", "test")


def message(function, *args, error=DataError, **kwargs):
    """The one line that a call ends with."""
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Files made here -----------------------------------------------------------------

ASF = """\
# made here
:version 1.10
:name tiny body
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
   of a hip, a leg and a foot
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name hip
     direction 1 0 0
     length 2
     axis 0 0 0 XYZ
  end
  begin
     id 2
     name leg
     direction 0.6 -0.8 0
     length 5
     axis 0 0 30 XYZ
    dof rx ry rz
    limits (-160.0 20.0)
           (-70.0 70.0)
           (-60.0 70.0)
  end
  begin
     id 3
     name foot
     direction 0 0 1
     length 1.5
     axis -90 0 20 XYZ
    dof rx rz
    limits (-45.0 90.0) (-70.0 20.0)
  end
:hierarchy
  begin
    root hip
    hip leg
    leg foot
  end
"""
AMC = """\
# made here
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 10 20 30
leg 1 2 3
foot 1 1
2
root 1.5 2.5 3.5 11 21 31
leg 4 5 6
foot 2 2
3
root 2 3 4 12 22 32
leg 7 8 9
foot 3 3
"""
VALUES = np.array(
    [
        [1, 2, 3, 10, 20, 30, 1, 2, 3, 1, 1],
        [1.5, 2.5, 3.5, 11, 21, 31, 4, 5, 6, 2, 2],
        [2, 3, 4, 12, 22, 32, 7, 8, 9, 3, 3],
    ]
)


def decode_tiny(asf=ASF):
    return decode_asf("a", asf.encode())


def body(*bones, **options):
    """The skeleton of `body_text`."""
    return decode_asf("made", body_text(*bones, **options).encode())


def body_text(*bones, root="order TX TY TZ RX RY RZ", orientation="0 0 0", axis="XYZ"):
    """A chain of bones, each (name, direction, length, axis, dof)."""
    lines = [":units", "length 1", "angle deg", ":root", root, f"axis {axis}"]
    lines += ["position 0 0 0", f"orientation {orientation}", ":bonedata"]
    for name, direction, length, own_axis, dof in bones:
        lines += ["begin", f"name {name}", f"direction {direction}"]
        lines += [
            f"length {length}",
            f"axis {own_axis}",
            *([f"dof {dof}"] if dof else []),
        ]
        lines += ["end"]
    names = ["root", *(bone[0] for bone in bones)]
    chain = [f"{above} {below}" for above, below in itertools.pairwise(names)]
    return "\n".join([*lines, ":hierarchy", "begin", *chain, "end", ""])


def ends(skeleton, *angles, place=(0, 0, 0), turn=(0, 0, 0)):
    """The points in one frame, [P, 3]."""
    frame = np.array([[*place, *turn, *angles]], np.float64)
    return forward_kinematics(skeleton, frame)[0]


# --- Skeletons -----------------------------------------------------------------------


def test_a_skeleton_is_as_its_file_says():
    skeleton = decode_tiny()
    assert skeleton.name == "tiny body"
    assert (skeleton.mass_unit, skeleton.length_unit) == (1.0, 0.45)
    assert skeleton.root.order == ("TX", "TY", "TZ", "RX", "RY", "RZ")
    assert skeleton.points == ("root", "hip", "leg", "foot")
    np.testing.assert_array_equal(skeleton.parents, [-1, 0, 1, 2])
    root = [f"root.{name}" for name in skeleton.root.order]
    legs = ["leg.rx", "leg.ry", "leg.rz", "foot.rx", "foot.rz"]
    assert skeleton.channels == (*root, *legs)
    hip, leg, foot = skeleton.bones
    assert (hip.dof, hip.limits) == ((), ())
    assert leg.limits == ((-160.0, 20.0), (-70.0, 70.0), (-60.0, 70.0))
    assert foot.limits == ((-45.0, 90.0), (-70.0, 20.0))
    assert (foot.length, foot.axis_order, foot.dof) == (1.5, "XYZ", ("rx", "rz"))
    np.testing.assert_array_equal(foot.axis, [-90.0, 0.0, 20.0])
    np.testing.assert_allclose(leg.direction, [0.6, -0.8, 0.0], rtol=1e-15)


def same(first, other):
    frame = np.random.default_rng(3).uniform(-90.0, 90.0, (4, len(first.channels)))
    found = forward_kinematics(other, frame)
    np.testing.assert_allclose(forward_kinematics(first, frame), found, atol=1e-12)
    return True


def test_line_ends_blank_lines_and_remarks_do_not_matter():
    for text in (
        ASF.replace("\n", "\r\n"),
        ASF.replace("\n", "\r"),
        ASF.replace("\n", "\n\n# a remark\n"),
        ASF.replace("  ", "\t "),
    ):
        assert same(decode_tiny(), decode_tiny(text))


def test_radians_are_given_in_degrees():
    text = ASF.replace("angle deg", "angle rad")
    angles = ("-160.0", "20.0", "-70.0", "70.0", "-60.0", "-45.0", "90.0")
    for degrees in (*angles, "-90", "30", "20"):
        radians = str(np.radians(float(degrees)))
        text = re.sub(rf"(?<=[( ]){degrees}(?=[ )])", radians, text)
    turned = decode_tiny(text)
    np.testing.assert_allclose(turned.bones[2].axis, [-90.0, 0.0, 20.0], rtol=1e-12)
    for mine, other in zip(turned.bones, decode_tiny().bones, strict=True):
        np.testing.assert_allclose(mine.limits, other.limits, rtol=1e-12)
    assert same(decode_tiny(), turned)


def test_bones_need_not_be_in_the_order_of_the_tree():
    begin, end = ASF.index("  begin"), ASF.index(":hierarchy")
    blocks = re.findall(r"  begin.*?  end\n", ASF[begin:end], re.DOTALL)
    skeleton = decode_tiny(ASF[:begin] + "".join(blocks[::-1]) + ASF[end:])
    assert skeleton.points == ("root", "foot", "leg", "hip")
    np.testing.assert_array_equal(skeleton.parents, [-1, 2, 3, 0])
    assert skeleton.channels[6:] == ("foot.rx", "foot.rz", "leg.rx", "leg.ry", "leg.rz")
    order = [0, 3, 2, 1]
    columns = [*range(6), 9, 10, 6, 7, 8]
    np.testing.assert_allclose(
        forward_kinematics(skeleton, VALUES[:, columns])[:, order],
        forward_kinematics(decode_tiny(), VALUES),
        rtol=1e-14,
    )


def test_directions_are_made_exact_unit_vectors():
    skeleton = body(("a", "0.342020 -0.939693 0", 7, "0 0 0 XYZ", ""))
    assert np.linalg.norm(skeleton.bones[0].direction) == pytest.approx(1.0, abs=1e-15)
    assert np.linalg.norm(ends(skeleton)[1]) == pytest.approx(7.0, abs=1e-14)


def test_infinite_limits_are_none():
    text = ASF.replace("(-45.0 90.0)", "(-inf inf)")
    assert decode_tiny(text).bones[2].limits[0] == (-np.inf, np.inf)


# --- Motions -------------------------------------------------------------------------


def test_a_motion_is_read_by_the_channels_of_the_skeleton():
    skeleton = decode_tiny()
    found = decode_amc("a", AMC.encode(), skeleton)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, VALUES)
    swapped = re.sub(r"(leg .*\n)(foot .*\n)", r"\2\1", AMC)
    assert swapped != AMC
    for text in (
        swapped,
        AMC.replace("\n", "\r\n"),
        AMC.replace("leg", "\n# a remark\n\nleg"),
        AMC.replace(":FULLY-SPECIFIED\n", ""),
        AMC.replace(" 4 5 6", "   +4e0\t.5E1 6."),
    ):
        np.testing.assert_array_equal(decode_amc("a", text.encode(), skeleton), VALUES)


def test_motions_in_radians_keep_their_translations():
    found = decode_amc("a", AMC.replace(":DEGREES", ":RADIANS").encode(), decode_tiny())
    np.testing.assert_array_equal(found[:, :3], VALUES[:, :3])
    np.testing.assert_allclose(found[:, 3:], np.degrees(VALUES[:, 3:]), rtol=1e-15)


def test_files_are_read_from_disk_packed_or_not(tmp_path):
    (tmp_path / "a.asf").write_text(ASF)
    (tmp_path / "a.amc").write_text(AMC)
    skeleton = asf_amc.read_asf(tmp_path / "a.asf")
    found = asf_amc.read_amc(str(tmp_path / "a.amc"), skeleton)
    np.testing.assert_array_equal(found, VALUES)
    (tmp_path / "a.amc").write_text(AMC[:-1])
    wanted = (
        f"{tmp_path}/a.amc, line 15: is cut off after 'foot 3 3', wanted a line end"
    )
    assert message(asf_amc.read_amc, tmp_path / "a.amc", skeleton) == wanted
    assert message(asf_amc.read_asf, tmp_path / "b.asf") == (
        f"{tmp_path}/b.asf: cannot be read: No such file or directory"
    )


# --- Broken files --------------------------------------------------------------------

SECTIONS = ":version :name :documentation :skin :units :root :bonedata :hierarchy"
FINITE = "wanted a finite number of at most 1,000,000"
FIELDS = "one of name direction length axis id dof limits bodymass cofmass"
ROOT = "wanted each of TX TY TZ RX RY RZ once"
UNIT = ":DEGREES or :RADIANS before the first frame"
TREE = "wanted a tree with the root on top"


def table(text):
    """Cases of two lines: what is replaced | by what, and the line it ends with."""
    lines = text.strip("\n").splitlines()
    cases = []
    for change, wanted in zip(lines[::2], lines[1::2], strict=True):
        old, new = change.replace("\\n", "\n").split(" |")
        cases.append((old, new.removeprefix(" "), wanted.strip()))
    return cases


BROKEN_ASF = table(rf"""
  length 0.45\n |
    4: :units has no length, wanted length angle
length 0.45 | length -1
    6: length is -1.0, wanted a positive number
length 0.45 | length x
    6: length has 'x', {FINITE}
length 0.45 | length
    6: length has 0 values, wanted 1 number
angle deg | angle turns
    7: unknown unit 'turns' of angle, wanted deg or rad
angle deg | angle
    7: angle has 0 values, wanted deg or rad
mass 1.0 | mas 1.0
    5: unknown 'mas' in :units, wanted one of length angle mass
mass 1.0 | mass nan
    5: mass has 'nan', {FINITE}
:root\n | :rot\n
    10: unknown section ':rot', wanted one of {SECTIONS}
:units\n | :units\n:units\n
    5: a second section :units, wanted one
:hierarchy | :skin
    48: the file ends without the section :hierarchy, wanted a whole skeleton
TX TY TZ RX RY RZ | TX TY TZ RX RY
    11: order is 'TX TY TZ RX RY', {ROOT}
TX TY TZ RX RY RZ | TX TY TZ RX RY RY
    11: order is 'TX TY TZ RX RY RY', {ROOT}
axis XYZ\n | axis XYX\n
    12: axis has the order 'XYX', wanted such as XYZ
position 0 0 0 | position 0 0
    13: position has 2 values, wanted 3 numbers
orientation 0 0 0\n | orientation 0 0 inf\n
    14: orientation has 'inf', {FINITE}
   orientation 0 0 0\n |
    10: :root has no orientation, wanted order axis position orientation
id 2 | id 1
    24: id is '1', wanted a whole number of its own
id 2 | id two
    24: id is 'two', wanted a whole number of its own
name leg | name hip
    25: a second bone 'hip', wanted one of that name
name leg | name root
    25: a second bone 'root', wanted one of that name
name leg | name left leg
    25: name has 2 values, wanted one word
name leg | nme leg
    25: unknown 'nme' in bone, wanted {FIELDS}
     name leg\n |
    23: bone has no name, wanted name direction length axis
direction 0.6 -0.8 0 | direction 0.6 -0.8
    26: direction has 2 values, wanted 3 numbers
direction 0.6 -0.8 0 | direction 0.6 -0.8 1
    26: direction has length 1.41421, wanted 1
direction 0.6 -0.8 0 | direction 0 0 0
    26: direction has length 0, wanted 1
direction 0.6 | direction 0,6
    26: direction has '0,6', {FINITE}
length 5 | length -5
    27: length is -5.0, wanted 0 or more
length 5 | length 5 5
    27: length has 2 values, wanted 1 number
length 5 | length 1e400
    27: length has '1e400', {FINITE}
length 5 | length 1_0
    27: length has '1_0', {FINITE}
axis 0 0 30 XYZ | axis 0 0 30
    28: axis has 3 values, wanted 3 angles and an order such as XYZ
axis 0 0 30 XYZ | axis 0 0 30 XYY
    28: axis has the order 'XYY', wanted such as XYZ
axis 0 0 30 XYZ | axis 0 0 z XYZ
    28: axis has 'z', {FINITE}
dof rx ry rz | dof rx ry rw
    29: dof of leg is 'rx ry rw', wanted some of rx ry rz, each once
dof rx ry rz | dof rx ry rx
    29: dof of leg is 'rx ry rx', wanted some of rx ry rz, each once
dof rx ry rz | dof
    29: dof of leg is '', wanted some of rx ry rz, each once
dof rx ry rz | dof rx ry
    30: 3 limits of leg, wanted 2, one for each dof
    dof rx ry rz\n |
    29: 3 limits of leg, wanted 0, one for each dof
(-70.0 70.0) | (-70.0 70.0
    31: limits are '(-70.0 70.0', wanted such as (-20.0 45.0)
(-70.0 70.0) | (70.0 -70.0)
    31: limits are '70.0 -70.0', wanted two numbers, the lower one first
(-70.0 70.0) | (-70.0 nan)
    31: limits are '-70.0 nan', wanted two numbers, the lower one first
           (-70.0 70.0)\n |
    30: 2 limits of leg, wanted 3, one for each dof
(-70.0 70.0) | -70.0 70.0
    31: unknown '-70.0' in bone, wanted {FIELDS}
  end\n  begin\n     id 2 |   begin\n     id 2
    22: begin within what begins at line 16, wanted end
  begin\n     id 2 |      id 2
    23: 'id 2' in :bonedata, wanted begin
  end\n:hierarchy | :hierarchy
    34: begin without an end in :bonedata, wanted end
    root hip\n |     root hop\n
    45: unknown bone 'hop', wanted one of :bonedata, or root
    leg foot\n |
    36: the bone 'foot' hangs on nothing, wanted it in :hierarchy
    leg foot\n |     leg\n
    47: nothing hangs on 'leg', wanted one bone or more
    leg foot\n |     leg foot\n    hip foot\n
    48: 'foot' hangs on 'hip' and on 'leg', {TREE}
    leg foot\n |     leg foot root\n
    47: 'root' hangs on 'leg', {TREE}
    root hip\n    hip leg\n    leg foot |     leg hip\n    hip leg\n    root foot
    18: the bone 'hip' hangs on itself by way of others, {TREE}
  begin\n    root hip |     root hip
    44: 'root hip' in :hierarchy, wanted begin
    leg foot\n  end |     leg foot
    44: begin without an end in :hierarchy, wanted end
""")
BROKEN_AMC = table(rf"""
1\nroot 1 | root 1
    7: frame 1 ends at '2', wanted the bone root
2\nroot | 3\nroot
    8: '3' in frame 2, wanted the frame number 2 alone
2\nroot | 1\nroot
    8: '1' in frame 2, wanted the frame number 2 alone
2\nroot | two\nroot
    8: 'two' in frame 2, wanted the frame number 2 alone
2\nroot | 2 2\nroot
    8: '2' with 1 value in frame 2, wanted the frame number 2 alone
:DEGREES\n |
    3: '1' comes after 0 units of angles, wanted {UNIT}
:DEGREES | :GRADS
    3: unknown line ':GRADS', wanted :FULLY-SPECIFIED, :DEGREES or :RADIANS
:DEGREES | :DEGREES\n:RADIANS
    5: '1' comes after 2 units of angles, wanted {UNIT}
leg 1 2 3\n | arm 1 2 3\n
    6: unknown bone 'arm' in frame 1, wanted bones of the skeleton that have dof
leg 1 2 3\n |
    7: frame 1 ends at '2', wanted the bone leg
leg 1 2 3\n | leg 1 2 3\nleg 1 2 3\n
    7: leg twice in frame 1, wanted the bone foot
leg 1 2 3\n | hip 1 2 3\n
    6: unknown bone 'hip' in frame 1, wanted bones of the skeleton that have dof
leg 1 2 3\n | leg 1 2\n
    6: 'leg' with 2 values in frame 1, wanted leg with 3 values
leg 1 2 3\n | leg 1 2 3 4\n
    6: 'leg' with 4 values in frame 1, wanted leg with 3 values
leg 4 5 6\n | leg 4 5\n
    10: 'leg' with 2 values in frame 2, wanted leg with 3 values
leg 4 5 6\n |
    10: 'foot' with 2 values in frame 2, wanted leg with 3 values
leg 4 5 6\n | leg 4 5 6\nleg 4 5 6\n
    11: 'leg' with 3 values in frame 2, wanted foot with 2 values
leg 4 5 6\nfoot 2 2\n | foot 2 2\nleg 4 5 6\n
    10: 'foot' with 2 values in frame 2, wanted leg with 3 values
leg 4 5 6\n | leg 4 5 nan\n
    10: 'leg' in frame 2 has 'nan', {FINITE}
leg 4 5 6\n | leg 4 -inf 6\n
    10: 'leg' in frame 2 has '-inf', {FINITE}
leg 4 5 6\n | leg 4 5 1e999\n
    10: 'leg' in frame 2 has '1e999', {FINITE}
leg 4 5 6\n | leg 4 5 1e30\n
    10: 'leg' in frame 2 has '1e30', {FINITE}
leg 4 5 6\n | leg 4 5 1_0\n
    10: 'leg' in frame 2 has '1_0', {FINITE}
leg 4 5 6\n | leg 4 5 6,0\n
    10: 'leg' in frame 2 has '6,0', {FINITE}
leg 4 5 6\n | leg 4 5 0x10\n
    10: 'leg' in frame 2 has '0x10', {FINITE}
leg 4 5 6\n | leg 4 5 6.0.1\n
    10: 'leg' in frame 2 has '6.0.1', {FINITE}
leg 4 5 6\n | leg\n
    10: 'leg' in frame 2, wanted leg with 3 values
leg 4 5 6\n | leg456\n
    10: 'leg456' in frame 2, wanted leg with 3 values
leg 4 5 6\n | :leg 4 5 6\n
    10: ':leg' with 3 values in frame 2, wanted leg with 3 values
foot 3 3\n |
    14: the file ends within frame 3, after 'leg', wanted foot with 2 values
leg 7 8 9\nfoot 3 3\n |
    13: the file ends within frame 3, after 'root', wanted leg with 3 values
foot 3 3\n | foot 3\n
    15: 'foot' with 1 value in frame 3, wanted foot with 2 values
foot 3 3\n | foot 3 3
    15: is cut off after 'foot 3 3', wanted a line end
foot 3 3\n | foot 3 3\n4\n
    16: the file ends within frame 4, after '4', wanted root with 6 values
foot 3 3\n | foot 3 3\n1\n
    16: '1' in frame 4, wanted the frame number 4 alone
""")


def changed(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new).encode()


@pytest.mark.parametrize(("old", "new", "wanted"), BROKEN_ASF)
def test_a_broken_skeleton_is_refused_with_its_line(old, new, wanted):
    assert message(decode_asf, "a", changed(ASF, old, new)) == f"a, line {wanted}"


@pytest.mark.parametrize(("old", "new", "wanted"), BROKEN_AMC)
def test_a_broken_motion_is_refused_with_its_line(old, new, wanted):
    content = changed(AMC, old, new)
    assert message(decode_amc, "a", content, decode_tiny()) == f"a, line {wanted}"


@pytest.mark.parametrize(
    ("content", "line", "seen"),
    [
        (b"", 1, "nothing"),
        (b" \n\r\n", 1, "nothing"),
        (b"\x80\x04K\x01.\n", 1, "holds the byte 80 of a Python pickle"),
        (
            b":units\nPK\x00\n",
            2,
            "holds the byte 00 of a file that begins with 3a 75 6e 69",
        ),
        (
            b":name caf\xc3\xa9\n",
            1,
            "holds the byte c3 of a file that begins with 3a 6e 61 6d",
        ),
    ],
)
def test_what_is_no_text_is_refused(content, line, seen):
    end = ", which is ASCII text" if seen != "nothing" else ""
    assert message(decode_asf, "a", content) == (
        f"a, line {line}: {seen}, wanted an .asf skeleton{end}"
    )
    assert message(decode_amc, "a", content, decode_tiny()) == (
        f"a, line {line}: {seen}, wanted an .amc motion{end}"
    )


def test_other_files_in_the_wrong_place_are_refused():
    page = b"<!doctype html>\n"
    assert message(decode_asf, "a", page) == (
        f"a, line 1: '<!doctype' is in no section, wanted one of {SECTIONS}"
    )
    for content, seen in ((page, "<!doctype"), (AMC[AMC.index("1\n") :].encode(), "1")):
        assert message(decode_amc, "a", content, decode_tiny()) == (
            f"a, line 1: '{seen}' comes after 0 units of angles, wanted :DEGREES or "
            ":RADIANS before the first frame"
        )
    assert message(decode_amc, "a", ASF.encode(), decode_tiny()) == (
        "a, line 2: unknown line ':version 1.10', wanted :FULLY-SPECIFIED, :DEGREES or "
        ":RADIANS"
    )
    assert message(decode_asf, "a", AMC.encode()) == (
        f"a, line 2: unknown section ':FULLY-SPECIFIED', wanted one of {SECTIONS}"
    )


def test_messages_stay_short():
    long = "x" * 10_000
    for found in (
        message(decode_asf, "a", changed(ASF, "name leg", f"name leg\n{long}")),
        message(decode_asf, "a", changed(ASF, "angle deg", f"angle {long}")),
        message(decode_amc, "a", changed(AMC, "leg 4 5 6", long), decode_tiny()),
        message(
            decode_amc, "a", changed(AMC, "leg 4 5 6", f"leg 4 5 {long}"), decode_tiny()
        ),
    ):
        assert len(found) < 200


def corrupt(text, generator):
    """The text with one random fault."""
    content = bytearray(text.encode())
    lines = text.splitlines(keepends=True)
    at = int(generator.integers(len(content)))
    i, j = generator.integers(len(lines), size=2)
    fault = generator.integers(8)
    if fault == 0:
        content[at] = generator.integers(256)
    elif fault == 1:
        del content[at : at + int(generator.integers(1, 30))]
    elif fault == 2:
        del content[at:]
    elif fault == 3:
        content[at:at] = generator.bytes(int(generator.integers(1, 4)))
    elif fault == 4:
        lines[i], lines[j] = lines[j], lines[i]
    elif fault == 5:
        lines.insert(i, lines[j])
    elif fault == 6:
        del lines[i]
    else:
        words = re.split(r"(\s+)", text)
        other = ("nan", "-inf", "1e999", "--1", "root", ":root", "begin", "end", "0")
        words[2 * int(generator.integers(len(words) // 2))] = str(
            generator.choice(other)
        )
        return "".join(words).encode()
    return bytes(content) if fault < 4 else "".join(lines).encode()


def check_outcome(read, content):
    """Whether it is refused, as it should be, or else gives finite numbers."""
    try:
        found = read(content)
    except DataError as error:
        line = str(error)
    else:
        assert np.isfinite(found).all()
        return False
    match = re.fullmatch(r"a, line (\d+): [^\n]+, wanted [^\n]+", line)
    assert match, line
    assert 1 <= int(match[1]) <= max(1, len(content.splitlines()))
    return True


def test_any_fault_is_refused_or_leaves_finite_numbers():
    generator = np.random.default_rng(0)
    frames = np.random.default_rng(1).uniform(-180.0, 180.0, (2, 11))

    def pose(content):
        skeleton = decode_asf("a", content)
        return forward_kinematics(skeleton, frames[:, : len(skeleton.channels)])

    refused = [check_outcome(pose, corrupt(ASF, generator)) for _ in range(1500)]
    assert 0.4 < np.mean(refused) < 0.95  # remarks, and numbers that still are some
    skeleton = decode_tiny()

    def read(content):
        return decode_amc("a", content, skeleton)

    refused = [check_outcome(read, corrupt(AMC, generator)) for _ in range(1500)]
    assert 0.4 < np.mean(refused) < 0.95


# --- Kinematics: closed forms --------------------------------------------------------


@pytest.mark.parametrize("axes", ["xyz", "xzy", "yxz", "yzx", "zxy", "zyx", "xz", "y"])
def test_rotations_agree_with_scipy(axes):
    angles = np.random.default_rng(0).uniform(-180.0, 180.0, (7, len(axes)))
    wanted = Rotation.from_euler(axes, angles, degrees=True).as_matrix()
    found = rotation_matrices(axes.upper(), angles)
    np.testing.assert_allclose(found, wanted.reshape(7, 3, 3), atol=1e-14)


@pytest.mark.parametrize(
    ("axis", "moved", "fixed"), [("x", "y", "z"), ("y", "z", "x"), ("z", "x", "y")]
)
def test_a_quarter_turn_takes_each_axis_to_the_next(axis, moved, fixed):
    unit = dict(zip("xyz", np.eye(3), strict=True))
    (turn,) = rotation_matrices(axis, np.array([[90.0]]))
    np.testing.assert_allclose(turn @ unit[axis], unit[axis], atol=1e-15)
    np.testing.assert_allclose(turn @ unit[moved], unit[fixed], atol=1e-15)


@pytest.mark.parametrize(
    ("direction", "axis", "dof", "angles", "wanted"),
    [
        # Axes of the skeleton's frame: an elbow, bent in each of its planes.
        ("1 0 0", "0 0 0 XYZ", "rz", [90], [0, 1, 0]),
        ("1 0 0", "0 0 0 XYZ", "ry", [90], [0, 0, -1]),
        ("0 1 0", "0 0 0 XYZ", "rx", [90], [0, 0, 1]),
        ("1 0 0", "0 0 0 XYZ", "rx", [50], [1, 0, 0]),
        # Several angles turn in the order they are named.
        ("0 1 0", "0 0 0 XYZ", "rx rz", [90, 90], [0, 0, 1]),
        ("0 1 0", "0 0 0 XYZ", "rz rx", [90, 90], [-1, 0, 0]),
        ("1 0 0", "0 0 0 XYZ", "rx ry rz", [90, 90, 90], [0, 0, -1]),
        ("1 0 0", "0 0 0 XYZ", "rz ry rx", [90, 90, 90], [0, 0, 1]),
        # The bone's own axis: x is turned to y, and rx is a turn about y.
        ("1 0 0", "0 0 90 XYZ", "rx", [90], [0, 0, -1]),
        ("0 1 0", "0 0 90 XYZ", "rx", [90], [0, 1, 0]),
        ("0 0 1", "0 0 -90 XYZ", "ry", [90], [0, -1, 0]),
        # Order of the axes: its numbers are named by its letters.
        ("0 0 1", "90 90 0 XYZ", "rz", [90], [-1, 0, 0]),
        ("0 0 1", "90 90 0 YXZ", "rz", [90], [0, -1, 0]),
        # At rest the axis turns nothing.
        ("0.6 -0.8 0", "10 20 30 XYZ", "rx ry rz", [0, 0, 0], [0.6, -0.8, 0]),
    ],
)
def test_a_bone_turns_about_its_own_axes(direction, axis, dof, angles, wanted):
    skeleton = body(("arm", direction, 2.5, axis, dof))
    np.testing.assert_allclose(
        ends(skeleton, *angles), [[0, 0, 0], 2.5 * np.array(wanted)], atol=1e-14
    )


def test_a_bone_is_carried_by_the_ones_it_hangs_on():
    arm = body(
        ("upper", "1 0 0", 3, "0 0 0 XYZ", "rz"),
        ("lower", "1 0 0", 2, "0 0 0 XYZ", "rz"),
    )
    np.testing.assert_allclose(
        ends(arm, 90, 0), [[0, 0, 0], [0, 3, 0], [0, 5, 0]], atol=1e-14
    )
    np.testing.assert_allclose(
        ends(arm, 90, 90), [[0, 0, 0], [0, 3, 0], [-2, 3, 0]], atol=1e-14
    )
    a, b = np.radians([25.0, -60.0])  # a planar chain: angles add up
    elbow = 3 * np.array([np.cos(a), np.sin(a), 0])
    hand = elbow + 2 * np.array([np.cos(a + b), np.sin(a + b), 0])
    np.testing.assert_allclose(ends(arm, 25, -60)[1:], [elbow, hand], atol=1e-14)


def test_a_chain_turns_about_the_axes_of_its_parent_after_it_has_turned():
    """First about z at the shoulder, then about the elbow's x, which is then y."""
    arm = body(
        ("upper", "1 0 0", 3, "0 0 0 XYZ", "rz"),
        ("lower", "0 1 0", 2, "0 0 0 XYZ", "rx"),
    )
    wanted = [[0, 0, 0], [0, 3, 0], [0, 3, 2]]
    np.testing.assert_allclose(ends(arm, 90, 90), wanted, atol=1e-14)


def test_the_root_moves_and_turns_the_body():
    stick = ("stick", "0 1 0", 1, "0 0 0 XYZ", "")
    place = (1, 2, 3)
    found = ends(body(stick), place=place, turn=(90, 0, 0))
    np.testing.assert_allclose(found, [[1, 2, 3], [1, 2, 4]], atol=1e-15)
    found = ends(body(stick), place=place, turn=(90, 0, 90))
    np.testing.assert_allclose(found, [[1, 2, 3], [1, 2, 4]], atol=1e-15)
    # The other order of the same turns, and of the translations.
    other = body(stick, root="order RZ RY RX TZ TY TX")
    frame = np.array([[90.0, 0.0, 90.0, 3.0, 2.0, 1.0]])
    found = forward_kinematics(other, frame)[0]
    np.testing.assert_allclose(found, [[1, 2, 3], [0, 2, 3]], atol=1e-15)


def test_the_standing_body_is_placed_and_turned_before_it_is_moved():
    stick = ("stick", "0 1 0", 1, "0 0 0 XYZ", "")
    skeleton = body(stick, orientation="90 0 90", axis="ZYX")  # y to -x, which stays
    np.testing.assert_allclose(ends(skeleton), [[0, 0, 0], [-1, 0, 0]], atol=1e-15)
    found = ends(skeleton, turn=(0, 90, 0))  # then -x to z
    np.testing.assert_allclose(found, [[0, 0, 0], [0, 0, 1]], atol=1e-15)
    skeleton = decode_tiny(ASF.replace("position 0 0 0", "position 5 6 7"))
    np.testing.assert_allclose(
        forward_kinematics(skeleton, VALUES),
        forward_kinematics(decode_tiny(), VALUES) + np.array([5.0, 6.0, 7.0]),
        rtol=1e-14,
    )


def test_lengths_of_bones_are_the_same_in_every_frame():
    skeleton = decode_tiny()
    channels = np.random.default_rng(0).uniform(-360.0, 360.0, (500, 11))
    check_lengths(skeleton, forward_kinematics(skeleton, channels))


def check_lengths(skeleton, positions):
    vectors = positions[:, 1:] - positions[:, skeleton.parents[1:]]
    lengths = np.broadcast_to(
        [bone.length for bone in skeleton.bones], vectors.shape[:2]
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), lengths, rtol=1e-12)


def by_recursion(skeleton, frame):
    """Points of one frame, bone by bone from the root, with SciPy's rotations."""
    values = dict(zip(skeleton.channels, frame, strict=True))
    found = {}

    def walk(point, place, turn):
        found[point] = place
        for child in np.flatnonzero(skeleton.parents == point):
            bone = skeleton.bones[child - 1]
            own = Rotation.from_euler(bone.axis_order.lower(), bone.axis, degrees=True)
            here = Rotation.identity()
            for dof in bone.dof:  # one angle at a time, each about a fixed axis
                vector = np.eye(3)["xyz".index(dof[1])]
                angle = np.radians(values[f"{bone.name}.{dof}"])
                here = Rotation.from_rotvec(angle * vector) * here
            below = turn * own * here * own.inv()
            walk(child, place + below.apply(bone.length * bone.direction), below)

    turn = Rotation.from_euler(
        "xyz", [values[f"root.R{a}"] for a in "XYZ"], degrees=True
    )
    walk(0, np.array([values[f"root.T{a}"] for a in "XYZ"]), turn)
    return np.array([found[point] for point in range(len(skeleton.points))])


def check_recursion(skeleton, channels):
    wanted = [by_recursion(skeleton, frame) for frame in channels]
    found = forward_kinematics(skeleton, channels)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_points_agree_with_a_recursion_of_rotations():
    channels = np.random.default_rng(1).uniform(-180.0, 180.0, (20, 11))
    check_recursion(decode_tiny(), channels)


def test_channels_of_another_shape_are_refused():
    assert message(forward_kinematics, decode_tiny(), VALUES[0], error=ValueError) == (
        "channels must be [T, 11], got (11,)"
    )
    assert forward_kinematics(decode_tiny(), VALUES[:0]).shape == (0, 4, 3)


# --- The set of CMU: a small one made here -------------------------------------------

# The joints of CMU's bodies, in the order of their .asf files.
LEG = {
    "hipjoint": "",
    "femur": "rx ry rz",
    "tibia": "rx",
    "foot": "rx rz",
    "toes": "rx",
}
SPINE = ("lowerback", "upperback", "thorax", "lowerneck", "upperneck", "head")
ARM = {"clavicle": "ry rz", "humerus": "rx ry rz", "radius": "rx", "wrist": "ry"}
ARM |= {"hand": "rx rz", "fingers": "rx", "thumb": "rx rz"}
BONES = {f"{side}{name}": dof for side in "lr" for name, dof in LEG.items()}
BONES |= dict.fromkeys(SPINE, "rx ry rz")
BONES |= {f"{side}{name}": dof for side in "lr" for name, dof in ARM.items()}
# 1-based, as in N. Lawrence's toolbox: [7:38 41:47 49:50 53:59 61:62].
KEPT = [*range(6, 38), *range(40, 47), 48, 49, *range(52, 59), 60, 61]
TRIALS = {  # motion and number of frames
    "35_01.amc": ("walking", 200),
    "35_02.amc": ("walking", 160),
    "35_17.amc": ("jogging", 90),
    "49_18.amc": ("balancing", 120),
    "02_05.amc": ("punching", 150),
    "10_01.amc": ("kicking", 140),
}
COUNTS = {"num_train": 400, "num_validation": 80, "num_test": 60}


def cmu_skeleton():
    """A body with CMU's joints, its bones random."""
    generator = np.random.default_rng(0)
    bones = []
    for name, dof in BONES.items():
        direction = generator.standard_normal(3)
        direction = " ".join(f"{x:.9f}" for x in direction / np.linalg.norm(direction))
        axis = " ".join(str(x) for x in generator.integers(-180, 180, 3))
        length = f"{generator.uniform(0.5, 5.0):.3f}"
        bones.append((name, direction, length, f"{axis} XYZ", dof))
    return bones


def cmu_motion(skeleton, num_frames, seed):
    """Channels that change smoothly, hands that turn about, constant ones."""
    generator = np.random.default_rng(seed)
    steps = generator.standard_normal((num_frames, len(skeleton.channels)))
    channels = np.cumsum(steps, axis=0) + 20.0 * steps[0]
    for column, name in enumerate(skeleton.channels):
        if name.startswith(("ltibia", *cmu_mocap.FOLDED)):
            channels[:, column] *= 8.0
        if name in cmu_mocap.CONSTANT:
            channels[:, column] = cmu_mocap.CONSTANT[name] + 2e-5
    return channels.round(4)


def amc_text(skeleton, channels):
    lines = [":FULLY-SPECIFIED", ":DEGREES"]
    parts = [("root", 6), *((b.name, len(b.dof)) for b in skeleton.bones if b.dof)]
    for number, frame in enumerate(channels.tolist(), 1):
        lines.append(str(number))
        numbers = iter(frame)
        for name, count in parts:
            lines.append(
                " ".join([name, *(f"{next(numbers):g}" for _ in range(count))])
            )
    return "\n".join([*lines, ""])


def tiny_files():
    """The files of a small set by name, and the channels of each trial."""
    files = {"35.asf": body_text(*cmu_skeleton())}
    skeleton = decode_asf("made", files["35.asf"].encode())
    channels = {}
    labels = ["file,motion,frames,frame_rate_hz,source"]
    for seed, (name, (motion, num_frames)) in enumerate(TRIALS.items()):
        files[name] = amc_text(skeleton, cmu_motion(skeleton, num_frames, seed))
        channels[name] = decode_amc(name, files[name].encode(), skeleton)
        labels.append(f'{name},{motion},{num_frames},120,"made, here"')
    files["labels.csv"] = "\n".join([*labels, ""])
    return {name: text.encode() for name, text in files.items()}, channels


FILES, CHANNELS = tiny_files()
ALL = np.concatenate(list(CHANNELS.values()))
CMU = decode_asf("made", FILES["35.asf"])


def write_archive(path, members, change=None):
    """A packed archive; `change` may alter or add to the members."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if change is not None:
            archive.addfile(change)


def listing(contents):
    return "\n".join(
        f"{name} {sha256(content).hexdigest()[:32]}"
        for name, content in contents.items()
    )


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Its folder, in tmp_path."""
    return write_tiny(tmp_path, monkeypatch)


def write_tiny(parent, monkeypatch):
    """Writes the small set, whose files are the right ones for a while."""
    monkeypatch.setattr(cmu_mocap, "CHECKSUMS", listing(FILES))
    folder = parent / "cmu_mocap"
    folder.mkdir()
    members = {f"cmu_mocap/{name}": content for name, content in FILES.items()}
    write_archive(folder / cmu_mocap.ARCHIVE, {**members, "cmu_mocap/notes.txt": b"x"})
    return folder


def tiny_load(folder, **options):
    return cmu_mocap.load(folder.parent, **{**COUNTS, **options})


def unpack(folder, changes):
    """Leaves the files unpacked, some of them changed or, where None, left out."""
    (folder / cmu_mocap.ARCHIVE).unlink(missing_ok=True)
    for name, content in {**FILES, **changes}.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)


def folded(channels):
    """All 62 channels with hands and thumbs folded."""
    channels = channels.copy()
    for column, name in enumerate(CMU.channels):
        if name.split(".")[0] in ("lhand", "rhand", "lthumb", "rthumb"):
            turns = np.radians(channels[:, column])
            channels[:, column] = np.degrees(np.arcsin(np.sin(turns)))
    return channels


def rows_of(split, units):
    """Which frame of all each example is; every frame is another one."""
    angles = split.examples * units.scale + units.mean
    wanted = folded(ALL)[:, KEPT]
    # Squared distances but for what is the same for all frames.
    return (np.sum(wanted**2, axis=1) - 2.0 * angles @ wanted.T).argmin(axis=1)


def test_the_features_are_those_of_taylor_hinton_and_roweis():
    assert len(CMU.channels) == 62
    names = cmu_mocap.feature_names("a", CMU)
    assert names == tuple(CMU.channels[column] for column in KEPT)
    assert len(names) == 50


def test_examples_are_standardised_angles_with_labels(tiny):
    dataset = tiny_load(tiny, scaling="standard")
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.target_kind) == ("cmu_mocap", "label")
    assert dataset.source == (
        f"{tiny}/cmu_mocap.tar.gz, checksums verified; blocks split with seed 0, 120 "
        "frames a second, standard scaling"
    )
    motions = ("walking", "jogging", "balancing", "punching", "kicking")
    assert dataset.label_names == motions
    numbers = [motions.index(motion) for motion, n in TRIALS.values() for _ in range(n)]
    angles = folded(ALL)[:, KEPT]
    units = dataset.standardisation
    rows = {}
    for name, count in zip(SPLITS, COUNTS.values(), strict=True):
        split = getattr(dataset, name)
        assert split.examples.shape == (count, 50)
        assert split.examples.dtype == np.float32
        assert split.targets.dtype == np.int64
        rows[name] = rows_of(split, units)
        assert (np.diff(rows[name]) > 0).all()  # by trial and time
        wanted = (angles[rows[name]] - units.mean) / units.scale
        np.testing.assert_allclose(split.examples, wanted, atol=2e-6)
        np.testing.assert_array_equal(split.targets, np.array(numbers)[rows[name]])
    assert len(np.unique(np.concatenate(list(rows.values())))) == sum(COUNTS.values())
    # Of the training split alone.
    train = angles[rows["train"]]
    for found in units:
        assert (found.shape, found.dtype) == ((50,), np.float64)
    np.testing.assert_allclose(units.mean, train.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(units.scale, train.std(axis=0), rtol=1e-12)
    assert (np.abs(angles.mean(axis=0) - units.mean) > 1e-3).all()


@pytest.mark.parametrize("scaling", ["turns", "radians", "standard", "range"])
def test_scalings_are_of_the_training_split(tiny, scaling):
    dataset = tiny_load(tiny, scaling=scaling)
    assert dataset.source.endswith(f"{scaling} scaling")
    train = dataset.train.examples.astype(np.float64)
    if scaling == "range":
        np.testing.assert_allclose(train.min(axis=0), 0.0, atol=1e-7)
        np.testing.assert_allclose(train.max(axis=0), 1.0, atol=1e-7)
    else:
        np.testing.assert_allclose(train.mean(axis=0), 0.0, atol=1e-6)
    if scaling == "standard":
        np.testing.assert_allclose(train.std(axis=0), 1.0, atol=1e-6)
    if scaling in ("turns", "radians"):
        angles = folded(ALL)[:, KEPT][rows_of(dataset.train, dataset.standardisation)]
        unit = {"turns": 360.0, "radians": 180.0 / np.pi}[scaling]
        wanted = (angles - angles.mean(axis=0)) / unit
        np.testing.assert_allclose(train, wanted, atol=1e-6)


def test_a_feature_that_does_not_change_is_only_centred():
    angles = np.array([[1.0, 7.0], [3.0, 7.0]])
    for scaling, mean, scale in (("standard", 2.0, 1.0), ("range", 1.0, 2.0)):
        found = cmu_mocap.fit_scaling(angles, scaling)
        np.testing.assert_allclose(found.mean, [mean, 7.0])
        np.testing.assert_allclose(found.scale, [scale, 1.0])


def test_folding_keeps_sines_and_small_angles():
    angles = np.linspace(-500.0, 500.0, 1001)
    found = cmu_mocap.fold(angles)
    assert np.abs(found).max() <= 90.0
    sines = np.sin(np.radians(angles))
    np.testing.assert_allclose(np.sin(np.radians(found)), sines, atol=1e-12)
    small = np.abs(angles) <= 89.0
    np.testing.assert_allclose(found[small], angles[small], atol=1e-10)
    np.testing.assert_allclose(cmu_mocap.fold(np.array([170.0, -328.0])), [10.0, 32.0])


def test_only_hands_and_thumbs_are_folded(tiny):
    dataset = tiny_load(tiny)
    mean, scale = dataset.standardisation.mean, dataset.standardisation.scale
    largest = np.abs(dataset.train.examples * scale + mean).max(axis=0)
    for joint, columns in dataset.motion.joints.items():
        if joint in ("lhand", "rhand", "lthumb", "rthumb"):
            assert (largest[list(columns)] < 90.01).all()
    unfolded = np.abs(ALL[:, KEPT]).max(axis=0)
    assert (unfolded[list(dataset.motion.joints["lhand"])] > 100.0).all()
    assert (largest[list(dataset.motion.joints["ltibia"])] > 100.0).all()


@pytest.mark.parametrize("scaling", ["standard", "range", "radians"])
def test_poses_undo_the_scaling(tiny, scaling):
    dataset = tiny_load(tiny, scaling=scaling)
    motion = dataset.motion
    assert motion.points == CMU.points
    np.testing.assert_array_equal(motion.parents, CMU.parents)
    examples = dataset.test.examples
    wanted = folded(ALL)[rows_of(dataset.test, dataset.standardisation)]
    wanted[:, :6] = 0.0
    found = motion.poses(examples)
    assert (found.shape, found.dtype) == ((len(examples), 31, 3), np.float64)
    np.testing.assert_allclose(found, forward_kinematics(CMU, wanted), atol=1e-4)
    assert (found[:, 0] == 0.0).all()
    check_lengths(CMU, found)


def test_each_joint_moves_what_hangs_on_it(tiny):
    dataset = tiny_load(tiny)
    motion = dataset.motion
    assert list(motion.joints) == [
        name
        for name in BONES
        if BONES[name] and "clavicle" not in name
        if "fingers" not in name
    ]
    columns = [column for own in motion.joints.values() for column in own]
    assert columns == list(range(50))
    example = dataset.test.examples[:1]
    rest = motion.poses(example)[0]
    for joint, own in motion.joints.items():
        assert len(own) == len(BONES[joint].split())
        changed_example = example.copy()
        changed_example[:, list(own)] += 0.3
        moved = np.abs(motion.poses(changed_example)[0] - rest).max(axis=-1) > 1e-9
        hanging = np.zeros(31, bool)
        hanging[motion.points.index(joint)] = True
        for point, parent in enumerate(motion.parents):  # parents come first here
            hanging[point] |= parent >= 0 and hanging[parent]
        np.testing.assert_array_equal(moved, hanging)


@pytest.mark.parametrize("frame_rate", [120, 60, 24])
def test_lower_frame_rates_keep_every_nth_frame(tiny, frame_rate):
    contents = cmu_mocap.read_archive(tiny / cmu_mocap.ARCHIVE)
    step = 120 // frame_rate
    _, frames = cmu_mocap.decode(tiny, contents, step, True)
    wanted = [folded(channels)[::step, KEPT] for channels in CHANNELS.values()]
    np.testing.assert_allclose(frames.angles, np.concatenate(wanted), rtol=1e-13)
    assert frames.lengths == tuple(map(len, wanted))
    dataset = tiny_load(
        tiny, frame_rate=frame_rate, num_train=50, num_validation=9, num_test=9
    )
    assert f", {frame_rate} frames a second," in dataset.source
    rows = rows_of(dataset.train, dataset.standardisation)
    starts = np.cumsum([0, *(n for _, n in TRIALS.values())])
    within = rows - starts[np.searchsorted(starts, rows, side="right") - 1]
    assert (within % step == 0).all()


def test_files_may_be_unpacked_here_or_one_folder_down(tiny):
    packed = tiny_load(tiny)
    unpack(tiny, {})
    found = tiny_load(tiny)
    assert found.source.startswith(f"{tiny}, checksums verified; ")
    np.testing.assert_array_equal(found.test.examples, packed.test.examples)
    (tiny / "cmu_mocap").mkdir()
    for path in tiny.glob("*.*"):
        path.rename(tiny / "cmu_mocap" / path.name)
    (tiny / "labels.csv").write_bytes(FILES["labels.csv"])  # lies beside the archive
    found = tiny_load(tiny)
    assert found.source.startswith(f"{tiny}/cmu_mocap, checksums verified; ")
    np.testing.assert_array_equal(found.test.examples, packed.test.examples)


HOME = "mocap.cs.cmu.edu (labels.csv lists the trials)"


def test_what_is_missing_is_named(tiny):
    for name, why in (
        ("49_18.amc", "a trial of balancing that labels.csv lists"),
        ("35.asf", "the skeleton of the poses"),
    ):
        unpack(tiny, {name: None})
        assert message(tiny_load, tiny) == (
            f"{tiny}: no file {name}, {why}; to be had from {HOME}"
        )
    unpack(tiny, {"labels.csv": None})
    wanted = f"{tiny}: no file cmu_mocap.tar.gz or labels.csv, to be had from {HOME}"
    assert message(tiny_load, tiny) == wanted
    members = {name: FILES[name] for name in FILES if name != "10_01.amc"}
    write_archive(tiny / cmu_mocap.ARCHIVE, members)
    assert message(tiny_load, tiny) == (
        f"{tiny}/cmu_mocap.tar.gz: no file 10_01.amc, a trial of kicking that "
        f"labels.csv lists; to be had from {HOME}"
    )
    assert message(cmu_mocap.load) == (
        "cmu_mocap: no data directory, wanted one with a folder cmu_mocap/; the files "
        f"are to be had from {HOME}, not from tensorflow-datasets"
    )
    assert message(cmu_mocap.load, tiny) == (
        f"cmu_mocap: no folder {tiny}/cmu_mocap, wanted one with the files from {HOME}"
    )


def test_other_content_is_refused_unless_asked_for(tiny):
    other = FILES["35_17.amc"].replace(b"lfoot ", b"lfoot 1", 1)
    unpack(tiny, {"35_17.amc": other})
    assert message(tiny_load, tiny) == (
        f"{tiny}/35_17.amc: the content has sha256 {sha256(other).hexdigest()}, wanted "
        f"{sha256(FILES['35_17.amc']).hexdigest()[:32]}... (verify=False takes it "
        "as it is)"
    )
    dataset = tiny_load(tiny, verify=False)
    assert dataset.source.startswith(f"{tiny}, checksums NOT verified; ")
    more = FILES["labels.csv"].replace(b"35_17", b"35_18")
    unpack(tiny, {"labels.csv": more, "35_18.amc": FILES["35_17.amc"]})
    assert message(tiny_load, tiny).startswith(f"{tiny}/labels.csv: the content has ")
    np.testing.assert_array_equal(
        tiny_load(tiny, verify=False).test.targets, dataset.test.targets
    )


def test_a_file_not_listed_here_is_unknown(tiny, monkeypatch):
    monkeypatch.setattr(cmu_mocap, "CHECKSUMS", listing({**FILES, "35_02.amc": b""}))
    with pytest.raises(DataError, match=r"35_02\.amc: the content has sha256"):
        tiny_load(tiny)
    known = {name: FILES[name] for name in FILES if name != "35_02.amc"}
    monkeypatch.setattr(cmu_mocap, "CHECKSUMS", listing(known))
    assert message(tiny_load, tiny) == (
        f"{tiny}/cmu_mocap.tar.gz, 35_02.amc: the content has sha256 "
        f"{sha256(FILES['35_02.amc']).hexdigest()}, wanted a file that is known here "
        "(verify=False takes it as it is)"
    )


def test_frames_are_counted_and_constant_channels_are_constant(tiny):
    text = FILES["02_05.amc"]
    unpack(tiny, {"02_05.amc": text[: text.index(b"\n150\n") + 1]})
    assert message(tiny_load, tiny, verify=False) == (
        f"{tiny}/02_05.amc: 149 frames, wanted 150 as in labels.csv"
    )
    at = text.index(b"lfingers", text.index(b"\n70\n"))
    line = text[at : text.index(b"\n", at)]
    moved = text[:at] + b"lfingers 9" + text[at + len(line) :]
    unpack(tiny, {"02_05.amc": moved})
    assert message(tiny_load, tiny, verify=False) == (
        f"{tiny}/02_05.amc: lfingers.rx is 9 in frame 70, wanted 7.125 in all frames "
        "of all trials"
    )


def test_broken_files_of_the_set_are_named_with_their_line(tiny):
    broken = FILES["35_02.amc"].replace(b"lfoot ", b"lfoot nan ", 1)
    line = broken[: broken.index(b"lfoot nan")].count(b"\n") + 1
    members = {f"cmu_mocap/{name}": content for name, content in FILES.items()}
    members["cmu_mocap/35_02.amc"] = broken
    write_archive(tiny / cmu_mocap.ARCHIVE, members)
    assert message(tiny_load, tiny, verify=False) == (
        f"{tiny}/cmu_mocap.tar.gz, 35_02.amc, line {line}: 'lfoot' with 3 values in "
        "frame 1, wanted lfoot with 2 values"
    )
    unpack(tiny, {"35.asf": FILES["35.asf"].replace(b"dof rx ry rz", b"dof rx ry", 1)})
    assert message(tiny_load, tiny, verify=False) == (
        f"{tiny}/35.asf: 49 angles besides lclavicle.ry, lclavicle.rz, lfingers.rx, "
        "rclavicle.ry, rclavicle.rz, rfingers.rx, wanted 50 besides all of these"
    )


HEADER = "file,motion,frames,frame_rate_hz"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", f", line 1: nothing, wanted columns {HEADER}"),
        ("a,b\n", f", line 1: 'a,b', wanted columns {HEADER}"),
        (f"{HEADER}\n", ": no trial, wanted one or more below the header"),
        (f"{HEADER}\na.amc,walking\n", ", line 2: 2 values, wanted 4 or more"),
        (
            f"{HEADER}\n../a.amc,walking,3,120\n",
            ", line 2: the file '../a.amc', wanted a name such as 35_01.amc",
        ),
        (
            f"{HEADER}\na.asf,walking,3,120\n",
            ", line 2: the file 'a.asf', wanted a name such as 35_01.amc",
        ),
        (
            f"{HEADER}\na.amc,walking,3,120\na.amc,kicking,3,120\n",
            ", line 3: a.amc a second time, wanted each file once",
        ),
        (
            f"{HEADER}\na.amc,flying,3,120\n",
            ", line 2: the motion 'flying', wanted one of walking, jogging, balancing, "
            "punching, kicking",
        ),
        (
            f"{HEADER}\na.amc,walking,0,120\n",
            ", line 2: '0' frames, wanted a number from 1 on",
        ),
        (
            f"{HEADER}\na.amc,walking,many,120\n",
            ", line 2: 'many' frames, wanted a number from 1 on",
        ),
        (
            f"{HEADER}\na.amc,walking,3,60\n",
            ", line 2: '60' frames a second, wanted 120",
        ),
    ],
)
def test_a_broken_list_of_trials_is_refused(text, wanted):
    assert message(cmu_mocap.decode_labels, "a", text.encode()) == f"a{wanted}"


@pytest.mark.parametrize("content", [b"\x80\x04K.", b'file,"motion\n'])
def test_a_list_of_trials_that_is_no_table_is_refused(content):
    found = message(cmu_mocap.decode_labels, "a", content)
    assert re.match("a(, line 1)?: .*, wanted co", found)


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PATHS = "wanted paths inside the archive"
KINDS = "wanted files and folders alone"


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (member("../35_01.amc"), f"holds the unsafe path '../35_01.amc', {PATHS}"),
        (member("/etc/a.amc"), f"holds the unsafe path '/etc/a.amc', {PATHS}"),
        (
            member("cmu_mocap/../../a"),
            f"holds the unsafe path 'cmu_mocap/../../a', {PATHS}",
        ),
        (member("..\\a.amc"), f"holds the unsafe path '..\\\\a.amc', {PATHS}"),
        (member("C:/a.amc"), f"holds the unsafe path 'C:/a.amc', {PATHS}"),
        (
            member("a.amc", tarfile.SYMTYPE, "/etc/passwd"),
            f"'a.amc' is a link, {KINDS}",
        ),
        (member("a.amc", tarfile.LNKTYPE, "35.asf"), f"'a.amc' is a link, {KINDS}"),
        (member("a.amc", tarfile.CHRTYPE), f"'a.amc' is a device, {KINDS}"),
        (member("a.amc", tarfile.FIFOTYPE), f"'a.amc' is a device, {KINDS}"),
        (member("cmu_mocap/35.asf"), "holds 35.asf twice, wanted each file once"),
    ],
)
def test_unsafe_archives_are_refused(tiny, info, wanted):
    path = tiny / cmu_mocap.ARCHIVE
    write_archive(path, {f"cmu_mocap/{name}": FILES[name] for name in FILES}, info)
    assert message(tiny_load, tiny) == f"{path}: {wanted}"


def test_damaged_archives_are_refused(tiny, monkeypatch):
    path = tiny / cmu_mocap.ARCHIVE
    packed = path.read_bytes()
    path.write_bytes(packed[:-50])
    assert message(tiny_load, tiny).startswith(f"{path}: the gzip stream ends after ")
    unpacked = gzip.decompress(packed)
    for content in (b"", b"no archive", unpacked[:1_000], unpacked[:60_000]):
        path.write_bytes(gzip.compress(content))
        found = message(tiny_load, tiny, verify=False)
        assert found.startswith((f"{path}: damaged tar archive: ", f"{path}: no file "))
    path.write_bytes(unpacked)  # not packed
    assert len(tiny_load(tiny).test.examples) == COUNTS["num_test"]
    monkeypatch.setattr(cmu_mocap, "MAX_MEMBER_BYTES", 100)
    assert message(tiny_load, tiny).endswith(" bytes, wanted at most 100")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_test": 0}, "num_test must be at least 1, got 0"),
        ({"split": "fair"}, "split must be 'blocks' or 'random', got 'fair'"),
        (
            {"scaling": "none"},
            "scaling must be one of turns, radians, standard, range, got 'none'",
        ),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"frame_rate": 50}, "frame_rate must divide 120, got 50"),
        ({"frame_rate": 0}, "frame_rate must divide 120, got 0"),
        (
            {"num_train": 600},
            "600 + 80 + 60 = 740 frames wanted, but of the 860 at this frame_rate 644 "
            "are left after 0.15 s between blocks; ask for fewer, or for "
            "split='random'",
        ),
        (
            {"num_train": 800, "split": "random"},
            "800 + 80 + 60 = 940 frames wanted, but there are 860 at this frame_rate",
        ),
    ],
)
def test_arguments_out_of_range_are_named(tiny, options, wanted):
    assert message(tiny_load, tiny, error=ValueError, **options) == wanted


# --- Splits --------------------------------------------------------------------------

# Frames of the trials of CMU that the data set has, by motion.
# fmt: off
LENGTHS = {
    "walking": [358, 406, 427, 433, 427, 438, 360, 455, 384, 432, 385, 397, 454, 411,
        406, 443, 417, 497, 412, 421, 392, 421, 415, 343, 298],
    "jogging": [167, 175, 160, 163, 161, 167, 162, 150, 165, 138, 173],
    "punching": [1854],
    "balancing": [1102, 957, 898],
    "kicking": [801, 590, 362, 436, 572, 597],
}
# fmt: on
TRIAL_LENGTHS = [n for lengths in LENGTHS.values() for n in lengths]
TRIAL_OF = np.repeat(np.arange(46), TRIAL_LENGTHS)
MOTION_OF = np.repeat(np.arange(5), [sum(lengths) for lengths in LENGTHS.values()])
PAPER = (12_653, 2_531, 2_531)
EACH = [(PAPER, 120, 0), (PAPER, 120, 7), ((300, 60, 90), 120, 1)]
EACH += [((5_000, 1_000, 1_000), 60, 2), ((46, 46, 46), 20, 3), ((1, 1, 1), 120, 0)]


def at_rate(lengths, frame_rate):
    return [-(-n * frame_rate // 120) for n in lengths]


@pytest.mark.parametrize(("counts", "frame_rate", "seed"), EACH)
def test_blocks_are_disjoint_and_apart_in_time(counts, frame_rate, seed):
    lengths = at_rate(TRIAL_LENGTHS, frame_rate)
    parts = cmu_mocap.split_blocks(lengths, counts, frame_rate, seed)
    owner = np.full(sum(lengths), -1)
    for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
        assert len(part) == count
        assert (owner[part] == -1).all()
        assert (np.diff(part) > 0).all()
        owner[part] = index
    gap = 0.15 * frame_rate
    trial_of = np.repeat(np.arange(46), lengths)
    used = np.flatnonzero(owner >= 0)
    for before, after in itertools.pairwise(used):
        if owner[before] != owner[after] and trial_of[before] == trial_of[after]:
            assert after - before > gap


@pytest.mark.parametrize(("counts", "frame_rate", "seed"), EACH[:4])
def test_blocks_have_all_motions_and_trials_in_proportion(counts, frame_rate, seed):
    lengths = at_rate(TRIAL_LENGTHS, frame_rate)
    parts = cmu_mocap.split_blocks(lengths, counts, frame_rate, seed)
    trial_of = np.repeat(np.arange(46), lengths)
    motion_of = np.repeat(np.arange(5), [len(own) for own in LENGTHS.values()])[
        trial_of
    ]
    share = np.bincount(motion_of) / len(motion_of)
    for part, count in zip(parts, counts, strict=True):
        found = np.bincount(motion_of[part], minlength=5) / count
        # The shortest trials lose most to the gaps; a frame or two to rounding.
        np.testing.assert_allclose(found, share, atol=0.02 + 2.0 / count)
        if count > 1_000:
            assert (np.bincount(trial_of[part], minlength=46) > 0).all()
    shares = [np.bincount(motion_of[p], minlength=5) / len(p) for p in parts]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.01 + 3.0 / min(counts))


def test_a_split_has_one_run_of_frames_for_five_seconds_of_a_trial():
    parts = cmu_mocap.split_blocks(TRIAL_LENGTHS, PAPER, 120, 0)
    for part in parts:
        runs = np.zeros(46, int)
        gaps = np.diff(part) > 18
        np.add.at(runs, TRIAL_OF[part[1:]][gaps | (np.diff(TRIAL_OF[part]) > 0)], 1)
        runs[TRIAL_OF[part[0]]] += 1
        most = np.maximum(1, np.round(np.array(TRIAL_LENGTHS) / 600))
        assert (runs >= 1).all()
        assert (runs <= most).all()
        # All but a few frames of each run are used: 3 in 100 are more than is wanted.
        assert np.mean(np.diff(part)[~gaps] == 1) > 0.96


def test_few_frames_are_spread_over_their_blocks():
    few = cmu_mocap.split_blocks([5_000], (50, 5, 5), 120, 0)
    for part in few:
        assert np.ptp(part) > 2_000
    inside = np.diff(few[0])
    assert np.median(inside) > 60


def test_the_seed_decides_the_order_of_the_blocks():
    first, again, other = (
        cmu_mocap.split_blocks(TRIAL_LENGTHS, PAPER, 120, seed) for seed in (0, 0, 1)
    )
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    begins = set()
    for trial in range(46):
        at = [part[TRIAL_OF[part] == trial][0] for part in first]
        begins.add(tuple(np.argsort(at).tolist()))
    assert len(begins) == 6  # all orders of the three are drawn


def test_all_frames_beside_the_gaps_may_be_asked_for():
    """One segment a trial: two gaps of 18 frames."""
    lengths = [100, 60, 30]
    parts = cmu_mocap.split_blocks(lengths, (60, 14, 14), 120, 0)
    assert sum(map(len, parts)) == 100 - 36 + 60 - 36
    with pytest.raises(ValueError, match=r"88 are left"):
        cmu_mocap.split_blocks(lengths, (60, 14, 15), 120, 0)


def test_the_random_split_draws_frames_singly():
    num_frames = len(TRIAL_OF)
    parts = cmu_mocap.split_random(num_frames, PAPER, 0)
    joined = np.concatenate(parts)
    assert tuple(map(len, parts)) == PAPER
    assert len(np.unique(joined)) == len(joined)
    assert (joined >= 0).all()
    assert (joined < num_frames).all()
    for part in parts:
        assert (np.diff(part) > 0).all()
    # A frame has both its neighbours outside the training split with 0.373^2.
    train = np.zeros(num_frames + 2, bool)
    train[parts[0] + 1] = True
    twins = train[parts[1]] | train[parts[1] + 2]
    alone = (1.0 - PAPER[0] / num_frames) ** 2
    assert abs(1.0 - twins.mean() - alone) < 4.0 * np.sqrt(alone / PAPER[1])
    for index in (0, 1):
        again, other = (
            cmu_mocap.split_random(num_frames, PAPER, seed)[index] for seed in (0, 1)
        )
        np.testing.assert_array_equal(parts[index], again)
        assert (parts[index] != other).any()


def test_the_random_split_is_there_by_name(tiny):
    dataset = tiny_load(tiny, split="random", seed=3)
    assert "; random split with seed 3, " in dataset.source
    rows = [rows_of(getattr(dataset, name), dataset.standardisation) for name in SPLITS]
    wanted = cmu_mocap.split_random(len(ALL), tuple(COUNTS.values()), 3)
    for found, want in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(found, want)


# --- CMU's own files -----------------------------------------------------------------


def published():
    """The data directory, where it has this set; skips the test elsewhere."""
    directory = os.environ.get("VHP_DATA_DIR")
    if not directory or not (Path(directory) / "cmu_mocap").is_dir():
        pytest.skip("no cmu_mocap in VHP_DATA_DIR")
    return Path(directory)


@pytest.fixture(scope="module")
def originals():
    """Skeletons by subject and channels by trial, of some trials."""
    place, contents = cmu_mocap.read_folder(published() / "cmu_mocap")
    names = ("02", "35", "49")
    for name in names:
        if f"{name}.asf" not in contents:
            pytest.skip(f"no {name}.asf in {place}")
    skeletons = {name: decode_asf(name, contents[f"{name}.asf"]) for name in names}
    channels = {
        trial: decode_amc(trial, contents[f"{trial}.amc"], skeletons[trial[:2]])
        for trial in ("02_01", "35_01", "35_20", "49_20")
    }
    return contents, skeletons, channels


def test_published_skeletons_stand_as_their_directions_say(originals):
    contents, skeletons, _ = originals
    for name, skeleton in skeletons.items():
        text = contents[f"{name}.asf"].decode()
        found = re.findall(
            r"name (\S+)\s+direction (\S+) (\S+) (\S+)\s+length (\S+)", text
        )
        offsets = {
            bone: np.array(rest[:3], float) * float(rest[3]) for bone, *rest in found
        }
        places = {"root": np.zeros(3)}
        tree = [line.split() for line in text.split(":hierarchy")[1].splitlines()]
        for parent, *children in filter(None, tree):
            for child in children:
                places[child] = places[parent] + offsets[child]
        standing = forward_kinematics(skeleton, np.zeros((1, 62)))[0]
        assert len(places) == 31
        for point, place in zip(skeleton.points, standing, strict=True):
            np.testing.assert_allclose(place, places[point], atol=2e-5)
        # Upright, head above, feet below, hands out to the sides, toes ahead.
        at = dict(zip(skeleton.points, standing, strict=True))
        assert at["head"][1] > 8.0 > -10.0 > at["lfoot"][1]
        assert at["lhand"][0] > 10.0 > -10.0 > at["rhand"][0]
        assert at["ltoes"][2] > at["ltibia"][2] + 2.0


def test_published_motions_agree_with_reading_line_by_line(originals):
    contents, skeletons, channels = originals
    rows, values = [], {}
    for line in contents["35_01.amc"].decode().splitlines():
        words = line.split()
        if line[0] in "#:":
            continue
        if len(words) == 1:
            values = {}
            rows.append(values)
        else:
            values[words[0]] = [float(word) for word in words[1:]]
    parts = ["root", *(bone.name for bone in skeletons["35"].bones if bone.dof)]
    wanted = [[x for part in parts for x in row[part]] for row in rows]
    assert channels["35_01"].shape == (358, 62)
    np.testing.assert_array_equal(channels["35_01"], wanted)
    assert next(iter(rows[0])) == "root"
    assert parts != list(rows[0])  # so that the order of the skeleton is tried


def test_published_motions_keep_lengths_and_agree_with_a_recursion(originals):
    _, skeletons, channels = originals
    for trial, frames in channels.items():
        skeleton = skeletons[trial[:2]]
        check_lengths(skeleton, forward_kinematics(skeleton, frames))
        check_recursion(skeleton, frames[:: len(frames) // 2])


def read_bvh(text):
    """Joints as (name, parent, offset, channels), ends included, and the frames."""
    words = text.split()
    joints, above = [], []
    at = 0
    while words[at] != "MOTION":
        word = words[at]
        if word in ("ROOT", "JOINT", "End"):
            name = words[at + 1] if word != "End" else f"{joints[above[-1]][0]}.end"
            joints.append([name, above[-1] if above else -1, None, []])
        elif word == "{":
            above.append(len(joints) - 1)
        elif word == "}":
            above.pop()
        elif word == "OFFSET":
            joints[above[-1]][2] = np.array(words[at + 1 : at + 4], float)
        elif word == "CHANNELS":
            joints[above[-1]][3] = words[at + 2 : at + 2 + int(words[at + 1])]
        at += 1
    num_frames = int(words[at + 2])  # MOTION Frames: N Frame Time: S
    return joints, np.array(words[at + 6 :], float).reshape(num_frames, -1)


def bvh_points(joints, frames):
    """Where the joints are, [T, J, 3]: each turns its own frame, the first one last."""
    places, turns = [], []
    columns = iter(frames.T)
    for _, parent, offset, channels in joints:
        turn = Rotation.identity(len(frames)) if parent < 0 else turns[parent]
        place = np.tile(offset, (len(frames), 1))
        if parent >= 0:
            place = places[parent] + turn.apply(offset)
        for channel in channels:
            values = next(columns)
            if channel.endswith("position"):
                place[:, "XYZ".index(channel[0])] += values
            else:
                turn = turn * Rotation.from_euler(
                    channel[0].lower(), values[:, None], degrees=True
                )
        places.append(place)
        turns.append(turn)
    return np.stack(places, axis=1)


# Where the joints of the BVH files are in the skeletons: at the ends of these bones.
BVH_POINTS = {"Hips": "root", "LHipJoint": "root", "RHipJoint": "root"}
BVH_POINTS |= {"LowerBack": "root", "Spine": "lowerback", "Spine1": "upperback"}
BVH_POINTS |= {"Neck": "thorax", "Neck1": "lowerneck", "Head": "upperneck"}
BVH_POINTS |= {"Head.end": "head", "LeftShoulder": "thorax", "RightShoulder": "thorax"}
for side, initial in (("Left", "l"), ("Right", "r")):
    BVH_POINTS |= {
        f"{side}UpLeg": f"{initial}hipjoint",
        f"{side}Leg": f"{initial}femur",
    }
    BVH_POINTS |= {f"{side}Foot": f"{initial}tibia", f"{side}ToeBase": f"{initial}foot"}
    BVH_POINTS |= {
        f"{side}ToeBase.end": f"{initial}toes",
        f"{side}Arm": f"{initial}clavicle",
    }
    BVH_POINTS |= {
        f"{side}ForeArm": f"{initial}humerus",
        f"{side}Hand": f"{initial}radius",
    }
    BVH_POINTS |= {f"{side}FingerBase": f"{initial}wrist"}
    BVH_POINTS |= {f"{side[0]}Thumb": f"{initial}wrist"}
    BVH_POINTS |= {f"{side}HandIndex1": f"{initial}hand"}
    BVH_POINTS |= {f"{side}HandIndex1.end": f"{initial}fingers"}
    BVH_POINTS |= {f"{side[0]}Thumb.end": f"{initial}thumb"}


def test_published_motions_agree_with_another_format_of_the_same(originals):
    """Positions of all joints, against the conversion of CMU's set to BVH.

    That one has angles about the axes of the skeleton, no axes of bones. It leaves out
    the lengths of three bones; these are then left out here too, and all else is in the
    same units. Both have angles to 0.0001 degree and offsets to five digits.
    """
    path = published() / "cmu_mocap" / "cmu_mocap_sources.tar.gz"
    if not path.is_file():
        pytest.skip("no cmu_mocap_sources.tar.gz in VHP_DATA_DIR")
    _, skeletons, channels = originals
    found = {}
    with tarfile.open(path) as archive:
        for info in archive:
            trial = Path(info.name).name.removesuffix(".bvh")
            if trial in channels:
                found[trial] = read_bvh(archive.extractfile(info).read().decode())
    assert found.keys() == channels.keys()
    for trial, (joints, frames) in found.items():
        skeleton = skeletons[trial[:2]]
        shorter = skeleton._replace(
            bones=tuple(
                bone._replace(length=0.0)
                if bone.name in ("thorax", "lwrist", "rwrist")
                else bone
                for bone in skeleton.bones
            )
        )
        ours = forward_kinematics(shorter, channels[trial])
        theirs = bvh_points(joints, frames[1:])  # the first one is a pose at rest
        points = [skeleton.points.index(BVH_POINTS[name]) for name, *_ in joints]
        assert set(points) == set(range(31))
        size = np.linalg.norm(ours - ours[:, :1], axis=-1).max()
        np.testing.assert_allclose(ours[:, points], theirs, atol=1e-5 * size, rtol=0.0)


@pytest.fixture(scope="module")
def dataset():
    return cmu_mocap.load(published())


@pytest.mark.slow
def test_published_counts_and_motions(dataset):
    for name, count in zip(SPLITS, PAPER, strict=True):
        split = getattr(dataset, name)
        assert split.examples.shape == (count, 50)
        assert np.isfinite(split.examples).all()
        share = np.bincount(split.targets) / count
        wanted = np.bincount(MOTION_OF)[[0, 1, 3, 2, 4]] / len(MOTION_OF)
        np.testing.assert_allclose(share, wanted, atol=0.015)


@pytest.mark.slow
def test_published_lengths_are_those_of_the_tests_of_splits(originals):
    contents, _, _ = originals
    trials = cmu_mocap.decode_labels("labels.csv", contents["labels.csv"])
    for index, motion in enumerate(cmu_mocap.MOTIONS):
        found = [trial.num_frames for trial in trials if trial.motion == index]
        assert found == LENGTHS[motion]


@pytest.mark.slow
def test_published_bodies_are_whole(dataset):
    skeleton_points = dataset.motion.points
    examples = dataset.validation.examples
    positions = dataset.motion.poses(examples)
    assert np.isfinite(positions).all()
    vectors = positions[:, 1:] - positions[:, dataset.motion.parents[1:]]
    lengths = np.linalg.norm(vectors, axis=-1)
    np.testing.assert_allclose(lengths, lengths[:1].repeat(len(lengths), 0), rtol=1e-12)
    at = dict(zip(skeleton_points, positions.transpose(1, 0, 2), strict=True))
    # The root does not turn, so that a body bends; yet heads are above, feet below.
    assert (at["head"][:, 1] > 5.0).all()
    lowest = np.minimum(at["lfoot"][:, 1], at["rfoot"][:, 1])
    assert (lowest < -10.0).all()


@pytest.mark.slow
def test_published_blocks_keep_twins_apart(dataset):
    """The nearest training example is further off than in the paper's random split."""
    random = cmu_mocap.load(published(), split="random")
    medians = []
    for data in (dataset, random):
        tree = scipy.spatial.KDTree(data.train.examples)
        medians.append(np.median(tree.query(data.validation.examples[::4])[0]))
    assert medians[0] > 2.0 * medians[1]
