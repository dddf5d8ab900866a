"""Checkpoints come back bit for bit, or are noticed to be damaged; nothing between."""

import asyncio
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forked import Forked

from vhp_jax import checkpoints
from vhp_jax.checkpoints import Checkpointer, CheckpointError, CheckpointWarning

ROOT = Path(__file__).resolve().parents[1]

# Any state, whatever arithmetic made it.
pytestmark = pytest.mark.optax


class Carry(NamedTuple):
    beta: jax.Array
    counters: tuple[Any, ...]


@flax.struct.dataclass
class State:
    params: Any
    carry: Carry
    name: str = flax.struct.field(pytree_node=False, default="static")


def make_state(seed: int = 0) -> dict[str, Any]:
    """A state with noise, which no compression can shrink to nothing."""
    noise = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    return {
        "weights": jnp.asarray(noise),
        "key": jax.random.key(seed),
        "step": jnp.int32(seed),
    }


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_bytes(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    data = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return str(leaf.dtype), leaf.shape, np.asarray(data).tobytes()


def assert_same(seen: Any, wanted: Any) -> None:
    assert jax.tree.structure(seen) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(wanted), strict=True):
        assert as_bytes(one) == as_bytes(other)


def save_all(directory: Path, *steps: int, max_to_keep: int = 3) -> None:
    with Checkpointer(directory, max_to_keep=max_to_keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step))


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def run_python(code: str, *arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def nasty_floats() -> np.ndarray:
    """Values that a careless copy changes: a NaN with a payload, -0, a subnormal."""
    bits = [0x7FC12345, 0xFFC00001, 0x80000000, 0x00000001, 0x7F800000]
    return np.array(bits, np.uint32).view(np.float32)


ROUND_TRIPS = {
    "dtypes": lambda: {
        "float32": jnp.asarray(nasty_floats()),
        "bfloat16": jnp.array([1.0, -0.0, jnp.nan, 3e38], jnp.bfloat16),
        "int32": jnp.array([[-(2**31), 2**31 - 1]], jnp.int32),
        "uint32": jnp.uint32(2**32 - 1),
        "bool": jnp.array([True, False]),
    },
    "scalars": lambda: [jnp.float32(0.1), jnp.bfloat16(0.1), jnp.bool_(True)],
    "numpy": lambda: {"int64": np.array(2**40), "float64": np.array([0.1, -0.0])},
    "zeros": lambda: {"plus": jnp.zeros(3), "minus": -jnp.zeros(3), "none": None},
    "keys": lambda: {
        "threefry": jax.random.split(jax.random.key(7), (2, 3)),
        "rbg": jax.random.key(7, impl="rbg"),
        "raw": jax.random.key_data(jax.random.key(7)),
    },
    "struct": lambda: State(
        params={"a/b.c": jnp.ones(2), "a": {"b": {"c": jnp.zeros(2)}}},
        carry=Carry(jnp.float32(1e-3), (jnp.int32(3), (), [jnp.arange(2)])),
    ),
    "optax": lambda: optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(
        {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    ),
    "no leaves": lambda: {"empty": optax.EmptyState()},
    "no elements": lambda: {
        "array": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(0), 2)[:0],
    },
    "one array": lambda: jnp.arange(3),
}


@pytest.mark.parametrize("abstract", [False, True], ids=["concrete", "abstract"])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip_is_bit_exact(tmp_path: Path, name: str, abstract: bool) -> None:
    if abstract and name == "numpy":
        pytest.skip("an abstract leaf does not say that it is NumPy's")
    state = ROUND_TRIPS[name]()
    # Of the same structure, but without one value in common.
    like = jax.tree.map(lambda x: x if is_key(x) else (x == 0).astype(x.dtype), state)
    if abstract:
        like = jax.eval_shape(lambda: like)
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(5, state)
    with Checkpointer(tmp_path / "run") as checkpointer:
        latest = checkpointer.restore_latest(like)
        assert latest is not None
        assert latest[0] == 5
        assert_same(latest[1], state)
        assert_same(checkpointer.restore(5, like), state)
    kinds = [type(leaf) for leaf in jax.tree.leaves(latest[1])]
    assert kinds == [type(leaf) for leaf in jax.tree.leaves(state)]


def test_python_numbers_come_back_as_arrays(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {"step": 3, "rate": 0.5})
        state = checkpointer.restore(0, {"step": jnp.int32(0), "rate": 0.0})
    assert_same(state, {"step": jnp.int32(3), "rate": jnp.float32(0.5)})


def test_saved_state_may_be_donated_and_restored_state_too(tmp_path: Path) -> None:
    update = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    state = jnp.arange(8.0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        update(state)
        update(checkpointer.restore(0, jnp.zeros(8)))
        assert_same(checkpointer.restore(0, jnp.zeros(8)), jnp.arange(8.0))


@pytest.mark.slow
def test_restores_on_another_number_of_devices(tmp_path: Path) -> None:
    code = """
        import sys, jax, jax.numpy as jnp
        from vhp_jax.checkpoints import Checkpointer
        mesh = jax.make_mesh((4,), ("i",))
        spec = jax.sharding.PartitionSpec("i")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        x = jax.device_put(jnp.arange(8.0), sharding)
        assert len(x.sharding.device_set) == 4
        Checkpointer(sys.argv[1]).save(1, {"x": x})
        """
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=4"
    run_python(code, str(tmp_path), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    state = Checkpointer(tmp_path).restore(1, {"x": jnp.zeros(8)})
    assert_same(state, {"x": jnp.arange(8.0)})
    assert state["x"].devices() == {jax.devices()[0]}


def test_works_where_an_event_loop_runs(tmp_path: Path) -> None:
    async def cell() -> Any:  # As a notebook runs its cells.
        save_all(tmp_path, 1)
        return Checkpointer(tmp_path).restore_latest(make_state())

    step, state = asyncio.run(cell())
    assert step == 1
    assert_same(state, make_state(1))


@pytest.mark.slow
def test_import_is_lazy_and_use_is_quiet(tmp_path: Path) -> None:
    code = """
        import sys
        import jax.numpy as jnp
        from vhp_jax.checkpoints import Checkpointer
        assert Checkpointer(sys.argv[1]).restore_latest(0) is None
        assert not any(name.startswith("orbax") for name in sys.modules)
        from absl import logging
        logging.set_verbosity(logging.INFO)
        with Checkpointer(sys.argv[1], max_to_keep=1) as checkpointer:
            for step in range(3):
                checkpointer.save(step, {"x": jnp.full(3, step)})
            step, state = checkpointer.restore_latest({"x": jnp.zeros(3, int)})
            assert step == 2 and state["x"].tolist() == [2, 2, 2]
        logging.warning("still heard")
        """
    done = run_python(code, str(tmp_path))
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "still heard" in done.stderr


def test_keeps_the_newest(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "none").steps() == []
    save_all(tmp_path, 0, 9, 10, 100, 101)
    assert Checkpointer(tmp_path).steps() == [10, 100, 101]
    assert sorted(os.listdir(tmp_path)) == ["10", "100", "101"]
    with pytest.raises(ValueError, match="max_to_keep: seen 0, wanted at least 1"):
        Checkpointer(tmp_path, max_to_keep=0)


def test_no_checkpoint_is_none_and_reading_writes_nothing(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.restore_latest(make_state()) is None
    assert not (tmp_path / "run").exists()


DAMAGES = {
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed(tmp_path: Path, damage: str) -> None:
    save_all(tmp_path / "run", 1, 2)
    newest = tmp_path / "run" / "2"
    shutil.copytree(newest, tmp_path / "whole")
    files = [path for path in files_of(newest) if path.stat().st_size]
    assert len(files) > 5
    for path in files:
        DAMAGES[damage](path)
        with pytest.warns(CheckpointWarning, match=f"skipped: {newest}: ") as heard:
            latest = Checkpointer(tmp_path / "run").restore_latest(make_state())
        assert latest is not None
        assert latest[0] == 1
        assert_same(latest[1], make_state(1))
        assert len(heard) == 1
        assert heard[0].filename == __file__
        assert "\n" not in str(heard[0].message)
        shutil.rmtree(newest)
        shutil.copytree(tmp_path / "whole", newest)
    latest = Checkpointer(tmp_path / "run").restore_latest(make_state())
    assert latest is not None
    assert latest[0] == 2


@pytest.mark.parametrize(
    "part", ["nothing", "value", "dtype", "swap", "step", "digest", "path"]
)
def test_digest_notices_a_well_formed_lie(tmp_path: Path, part: str) -> None:
    """Damage that no layer under ours can see: every file is as it says."""
    import orbax.checkpoint as ocp

    save_all(tmp_path, 1, 2)
    path = tmp_path / "2"
    orbax = ocp.PyTreeCheckpointer()
    tree = orbax.restore(path / "state")
    name, other = "state['weights']", "state['step']"
    if part == "value":
        tree[name] = tree[name].copy()
        tree[name].view(np.uint32)[3, 4] ^= 1
    elif part == "dtype":
        tree[name] = tree[name].view(np.int32)
    elif part == "swap":
        tree[name], tree[other] = tree[other], tree[name]
    orbax.save(path / "state", tree, force=True)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {}
    if part == "digest":
        manifest["digest"] = "0" * 64
    elif part == "path":
        manifest["leaves"][0][0], manifest["leaves"][1][0] = name, other
    (path / "manifest.json").write_text(json.dumps(manifest))
    if part == "step":
        path = path.rename(tmp_path / "3")
    if part == "nothing":
        assert_same(Checkpointer(tmp_path).restore(2, make_state()), make_state(2))
        return
    with pytest.warns(CheckpointWarning, match="the digest of its leaves is not"):
        latest = Checkpointer(tmp_path).restore_latest(make_state())
    assert latest is not None
    assert latest[0] == 1
    assert_same(latest[1], make_state(1))


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / str(step) / "manifest.json").unlink()
    checkpointer = Checkpointer(tmp_path)
    with (
        pytest.warns(CheckpointWarning, match="skipped") as heard,
        pytest.raises(CheckpointError, match=r"none of its 2 .*steps 1, 2") as error,
    ):
        checkpointer.restore_latest(make_state())
    assert len(heard) == 2
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="/2: "):
        checkpointer.restore(2, make_state())
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; present: 1, 2"):
        checkpointer.restore(3, make_state())


def test_too_many_open_files_is_no_damage(tmp_path: Path, monkeypatch) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"x": jnp.float32(step)})

        def refuse(path: Path) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            with pytest.raises(CheckpointError, match="Too many open files"):
                checkpointer.restore_latest({"x": jnp.float32(0)})
        assert checkpointer.restore_latest({"x": jnp.float32(0)}) == (2, {"x": 2.0})


def test_leftovers_are_ignored_then_removed(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2)
    half = tmp_path / "3.tmp"
    shutil.copytree(tmp_path / "2", half)
    (half / "manifest.json").unlink()
    deleted = tmp_path / "0.tmp"
    deleted.mkdir()
    latest = Checkpointer(tmp_path).restore_latest(make_state())
    assert latest is not None
    assert latest[0] == 2
    assert half.is_dir()  # It may be the live write of another process.
    save_all(tmp_path, 4)
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "4"]


def test_damaged_ones_are_replaced_as_the_run_goes_on(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / str(step) / "state" / "_METADATA").unlink()
    with Checkpointer(tmp_path, max_to_keep=2) as checkpointer:
        checkpointer.save(2, make_state(2))
        assert checkpointer.steps() == [1, 2]
        assert_same(checkpointer.restore(2, make_state()), make_state(2))


def test_whole_checkpoints_are_never_overwritten(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 3)
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, make_state(3))  # The same once more: nothing to do.
    with pytest.raises(CheckpointError, match=r"/3: already .* of another state"):
        checkpointer.save(3, make_state(4))
    with pytest.raises(CheckpointError, match=r"/3: already .* of a later step"):
        checkpointer.save(2, make_state(2))
    with pytest.raises(CheckpointError, match="step: seen -1, wanted >= 0"):
        checkpointer.save(-1, make_state(2))
    assert before == {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.zeros((64, 32))}, r"seen float32\[64,64\], .*float32\[64,32"),
        (
            {"weights": jnp.zeros((64, 64), jnp.bfloat16)},
            r"seen .*, wanted bfloat16\[64,64",
        ),
        ({"key": jax.random.key(0, impl="rbg")}, r"seen key<fry>\[\], wanted key<rbg>"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"seen key<fry>\[\], wanted uint32\[2\]"),
        ({"more": jnp.zeros(3)}, r"not in the checkpoint, wanted float32\[3\]"),
        ({"weights": (jnp.zeros(3),)}, "not in the checkpoint, wanted"),
        ({"weights": None}, r"seen float32\[64,64\], wanted no such leaf"),
    ],
)
def test_mismatch_names_the_leaf(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_all(tmp_path, 1)
    like = make_state() | change
    pattern = rf"/1: state\['{next(iter(change))}'\].*: {message}"
    for wanted in (like, jax.eval_shape(lambda: like)):
        with pytest.raises(CheckpointError, match=pattern) as error:
            Checkpointer(tmp_path).restore_latest(wanted)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("leaf", ["text", np.array(["text"]), np.array([{}]), open])
def test_only_numbers_are_saved(tmp_path: Path, leaf: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\['x'\]: seen .*, wanted an arr"):
        Checkpointer(tmp_path).save(1, {"x": leaf})
    assert os.listdir(tmp_path) == []


def assert_write_fails_safely(directory: Path, state: Any, reason: str) -> None:
    """With room for one checkpoint only, the old one must outlive the failure."""
    checkpointer = Checkpointer(directory, max_to_keep=1)
    with pytest.raises(
        CheckpointError, match=f"not written.*{reason}.*; step 1 stays"
    ) as e:
        checkpointer.save(2, state)
    assert str(directory / "2") in str(e.value)
    assert "\n" not in str(e.value)
    assert os.listdir(directory) == ["1"]  # The half-written one frees its space.
    latest = Checkpointer(directory).restore_latest(make_state())
    assert latest is not None
    assert latest[0] == 1
    assert_same(latest[1], make_state(1))


def too_large() -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    return make_state() | {"large": jnp.asarray(noise)}


def test_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=-3).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        save_all(tmp_path / "run", 1)
        assert_write_fails_safely(tmp_path / "run", too_large(), "No space left")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_file_size_limit(tmp_path: Path) -> None:
    save_all(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        assert_write_fails_safely(tmp_path, too_large(), "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_that_is_full_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space is allocated late: the rename went well, the flush does not."""
    save_all(tmp_path, 1)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", refuse)
    assert_write_fails_safely(tmp_path, make_state(2), "No space left")


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(CheckpointError, match=r"file/run/1: checkpoint not written"):
        Checkpointer(tmp_path / "file" / "run").save(1, make_state(1))


def content(step: int) -> dict[str, Any]:
    key = jax.random.key(step)
    x = jax.random.normal(key, (256, 256))
    return {"key": key, "x": x, "step": jnp.int32(step)}


def save_for_ever(directory: Path) -> None:
    checkpointer = Checkpointer(directory, max_to_keep=2)
    step, state = checkpointer.restore_latest(content(0)) or (0, content(0))
    while multiprocessing.parent_process().is_alive():
        assert int(state["step"]) == step
        assert jnp.array_equal(state["x"], content(step)["x"])
        step, state = step + 1, content(step + 1)
        checkpointer.save(step, state)
        print(step, flush=True)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(0)
    out, err, directory = tmp_path / "out", tmp_path / "err", tmp_path / "run"
    done = 0
    for _ in range(10):
        give_up = time.monotonic() + 120.0
        with Forked(out, err, save_for_ever, directory) as process:
            while not out.read_text().endswith("\n"):
                assert process.poll() is None, err.read_text()
                assert time.monotonic() < give_up
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.3))
        assert process.poll() == -signal.SIGKILL
        told = [int(line) for line in out.read_text().split()]
        assert told[0] in (done + 1, done + 2)  # One may be done but not told.
        done = told[-1]
        latest = Checkpointer(directory).restore_latest(content(0))
        assert latest is not None
        step, state = latest
        assert step in (done, done + 1)  # What was told is on disk.
        assert_same(state, content(step))
