"""Files that are whole or not there."""

import json
import math

import numpy as np
import pytest

from vhp_jax import storage


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.npz"
    with storage.replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        # What looks for files of its kind does not find it.
        assert not list(path.parent.glob("*.npz"))
    before = path.read_bytes()

    def fail():
        with storage.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_json_cannot_hold_is_null_or_a_list():
    value = {1: np.arange(2), "a": (np.float32(0.5), math.inf, [np.nan]), "b": None}
    wanted = {"1": [0, 1], "a": [0.5, None, [None]], "b": None}
    assert storage.plain(value) == wanted
    assert json.loads(json.dumps(storage.plain(value), allow_nan=False)) == wanted
