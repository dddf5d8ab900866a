"""Checkpoints of a training state: the one place that knows Orbax.

A checkpoint is one directory, named by its step and renamed to that name only when all
of it is on disk: `state/` is Orbax's, `manifest.json` lists the path, dtype and shape
of every leaf with one SHA-256 digest of them all, and a digest of every file. A file
that was cut short, emptied or flipped is so noticed before Orbax sees it, and anything
else before it becomes a state.

With several processes one writes and reads for all: a state is whole on every device.

Only `Checkpointer.save` changes anything on disk. Reading leaves a directory as it is,
so an evaluation may look at a run that is still being trained.
"""

import contextlib
import errno
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vhp_jax.types import PyTree

T = TypeVar("T")

_STEP_NAME = re.compile(r"0|[1-9][0-9]*")
_TEMPORARY = ".tmp"  # Follows the step of a checkpoint being written or deleted.
# Errors of the process, not of the file: they make no checkpoint a damaged one.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
_MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be read into the wanted state."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped in favour of an older one."""


class _DamagedError(CheckpointError):
    """A checkpoint is not what was written; an older one may still be whole."""


class _Leaf(NamedTuple):
    """What the manifest knows of one leaf."""

    name: str  # where it is in the tree: "state.params['Dense_0']['kernel']"
    dtype: str  # of the leaf as JAX sees it: "float32", "bfloat16", "key<fry>"
    shape: tuple[int, ...]
    key_impl: str | None = None  # "threefry2x32", ...: not None means a typed PRNG key

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    Args:
      directory: holds one sub-directory a step; made by the first `save`.
      max_to_keep: how many of the newest checkpoints stay (at least 1). Older ones
        go only after the newer one is whole and on disk.

    Raises:
      ValueError: `max_to_keep` is under 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_to_keep: int = 3):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep: seen {max_to_keep}, wanted at least 1")
        self._directory = Path(directory).absolute()
        self._max_to_keep = max_to_keep
        self._orbax: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases what Orbax holds. Every `save` was complete before."""
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first; whole or not is unknown."""
        if not self._directory.is_dir():
            return []
        names = (entry.name for entry in self._directory.iterdir())
        return sorted(int(name) for name in names if _STEP_NAME.fullmatch(name))

    def save(self, step: int, state: PyTree) -> None:
        """Writes a checkpoint, atomically; it is on disk when this returns.

        The arrays are copied to the host and written before the return, so the caller
        may donate them next. Saving the same state of the same step again does nothing.
        A damaged checkpoint of this step is replaced; damaged ones of later steps
        (those that `restore_latest` skipped) are dropped once the new one is whole.

        Args:
          step: number of training steps done, >= 0.
          state: pytree of arrays, typed PRNG keys and Python numbers.

        Raises:
          CheckpointError: a leaf is not an array; another whole checkpoint of this
            step, or one of a later step, is there; the disk is full or refuses the
            write. Whole checkpoints on disk stay as they were.
        """
        step = int(step)
        if step < 0:
            raise CheckpointError(f"checkpoint step: seen {step}, wanted >= 0")
        named = [(_describe(name, leaf), leaf) for name, leaf in _named_leaves(state)]
        leaves = [leaf for leaf, _ in named]
        arrays = {leaf.name: _to_host(leaf, value) for leaf, value in named}
        digest = _digest(step, leaves, arrays)
        for later in (s for s in self.steps() if s >= step):
            with contextlib.suppress(_DamagedError):
                found = self._read(later)[2]
                if (later, found) == (step, digest):
                    return
                raise CheckpointError(
                    f"{self._path(later)}: already holds a whole checkpoint of "
                    f"{'another state' if later == step else 'a later step'}, so step "
                    f"{step} is not written; move it away or use another directory"
                )
        try:
            _call_quietly(lambda: self._write(step, leaves, arrays, digest))
        except CheckpointError as error:
            self._remove_leftovers()
            last = max((s for s in self.steps() if s < step), default=None)
            kept = "no earlier one exists" if last is None else f"step {last} stays"
            raise CheckpointError(
                f"{self._path(step)}: checkpoint not written ({error}); {kept}"
            ) from None
        for later in (s for s in self.steps() if s > step):  # All damaged: see above.
            self._delete(later)
        for old in self.steps()[: -self._max_to_keep]:
            self._delete(old)

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Reads the newest whole checkpoint.

        Args:
          like: as for `restore`.

        Returns:
          The step and the state, or None where there is no checkpoint at all. A
          damaged one is skipped with a `CheckpointWarning`.

        Raises:
          CheckpointError: there are checkpoints, but none is whole; or the newest
            whole one is not of the structure, shapes and dtypes of `like`.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(step, like)
            except _DamagedError as error:
                message = f"damaged checkpoint skipped: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
        if not steps:
            return None
        raise CheckpointError(
            f"{self._directory}: none of its {len(steps)} checkpoints is whole (steps "
            f"{', '.join(map(str, steps))}); to start afresh, move the directory away"
        )

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Reads the checkpoint of one step.

        Args:
          step: one of `steps()`.
          like: a state of the wanted structure, shapes and dtypes; its leaves are
            arrays or `jax.ShapeDtypeStruct` and their values are not looked at.

        Returns:
          A state of the structure of `like` with the saved values, bit for bit: NumPy
          arrays where `like` has them, elsewhere JAX arrays on the default device,
          whatever device they were saved from.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or it differs
            from `like` (the first differing leaf is named, seen and wanted).
        """
        if step not in self.steps():
            raise CheckpointError(
                f"{self._directory}: no checkpoint of step {step}; present: "
                f"{', '.join(map(str, self.steps())) or 'none'}"
            )
        leaves, arrays, _ = self._read(step)
        wanted = _named_leaves(like)
        difference = _first_difference(leaves, [_describe(*pair) for pair in wanted])
        if difference is not None:
            raise CheckpointError(f"{self._path(step)}: {difference}")
        seen = {leaf.name: leaf for leaf in leaves}
        values = [_place(seen[name], arrays[name], leaf) for name, leaf in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), values)

    def _path(self, step: int) -> Path:
        return self._directory / str(step)

    def _backend(self) -> Any:
        if self._orbax is None:
            import orbax.checkpoint as ocp

            # This process alone writes and reads: no barrier where it waits for others.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix="alone",
            )
            # Float32 noise, which weights are to a compressor, is not worth its time.
            handler = ocp.PyTreeCheckpointHandler(
                use_compression=False, multiprocessing_options=alone
            )
            self._orbax = ocp.Checkpointer(handler, multiprocessing_options=alone)
        return self._orbax

    def _write(
        self,
        step: int,
        leaves: list[_Leaf],
        arrays: dict[str, np.ndarray],
        digest: str,
    ) -> None:
        """Writes the arrays and the manifest and waits for the disk."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        if step in self.steps():  # Damaged, or `save` would not come here.
            self._delete(step)
        # Orbax refuses arrays of size zero; the manifest alone brings them back. The
        # step keeps the tree from being empty.
        tree = {name: array for name, array in arrays.items() if array.size}
        tree["step"] = np.asarray(step, np.int64)
        draft = self._path(step).with_suffix(_TEMPORARY)
        draft.mkdir()
        self._backend().save(draft / "state", tree)
        manifest = {"leaves": leaves, "digest": digest, "files": _file_digests(draft)}
        (draft / _MANIFEST).write_text(json.dumps(manifest))
        for path in (*draft.rglob("*"), draft):
            _sync_to_disk(path)
        draft.rename(self._path(step))
        _sync_to_disk(self._directory)

    def _read(self, step: int) -> tuple[list[_Leaf], dict[str, np.ndarray], str]:
        """Reads and verifies one checkpoint: manifest, host arrays by name, digest."""
        path = self._path(step)
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            files = _file_digests(path)
            for name, saved in manifest["files"].items():
                if files.get(name) != saved:
                    raise ValueError(
                        f"{name} is {'changed' if name in files else 'gone'}"
                    )
            leaves = [
                _Leaf(name, dtype, tuple(shape), key_impl)
                for name, dtype, shape, key_impl in manifest["leaves"]
            ]
            arrays = _call_quietly(lambda: self._backend().restore(path / "state"))
            for leaf in leaves:
                if leaf.name not in arrays:
                    arrays[leaf.name] = _empty(leaf)
            digest = _digest(step, leaves, arrays)
            if digest != manifest["digest"]:
                raise ValueError("the digest of its leaves is not the saved one")
        except Exception as error:  # What damage does to a file has no one type.
            if isinstance(error, OSError) and error.errno in _UNREADABLE:
                raise CheckpointError(f"{path}: {_reason(error)}") from error
            raise _DamagedError(f"{path}: {_reason(error)}") from error
        return leaves, arrays, digest

    def _remove_leftovers(self) -> None:
        """Removes what killed writes and deletions left under temporary names."""
        for path in self._directory.glob(f"*{_TEMPORARY}"):
            if _STEP_NAME.fullmatch(path.stem):
                shutil.rmtree(path, ignore_errors=True)

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; killed midway it is a leftover, not a damaged one."""
        doomed = self._path(step).with_suffix(_TEMPORARY)
        self._path(step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _named_leaves(state: PyTree) -> list[tuple[str, Any]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(state)
    named = [("state" + jax.tree_util.keystr(path), leaf) for path, leaf in pairs]
    if len(dict(named)) != len(named):
        raise CheckpointError("two leaves of the state have the same path")
    return named


def _describe(name: str, leaf: Any) -> _Leaf:
    if isinstance(leaf, bool | int | float | complex):
        return _Leaf(name, str(jnp.result_type(leaf)), ())
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        # An abstract key cannot be asked for its implementation; its dtype says it.
        key_impl = str(jax.random.key_impl(leaf)) if isinstance(leaf, jax.Array) else ""
        return _Leaf(name, str(dtype), tuple(leaf.shape), key_impl)
    if dtype is None or not (
        jnp.issubdtype(dtype, np.bool) or jnp.issubdtype(dtype, jnp.number)
    ):
        seen = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
        raise CheckpointError(f"{name}: seen {seen}, wanted an array of numbers")
    return _Leaf(name, str(np.dtype(dtype)), tuple(leaf.shape))


def _first_difference(seen: list[_Leaf], wanted: list[_Leaf]) -> str | None:
    """Names the first leaf of `wanted`, else of `seen`, that the other has not."""
    found = {leaf.name: leaf for leaf in seen}
    for leaf in wanted:
        other = found.pop(leaf.name, None)
        if other is None:
            return f"{leaf.name}: not in the checkpoint, wanted {leaf}"
        if (other.dtype, other.shape) != (leaf.dtype, leaf.shape):
            return f"{leaf.name}: seen {other}, wanted {leaf}"
    for leaf in found.values():
        return f"{leaf.name}: seen {leaf}, wanted no such leaf"
    return None


def _to_host(leaf: _Leaf, value: Any) -> np.ndarray:
    if leaf.key_impl is not None:
        return np.asarray(jax.random.key_data(value))
    return np.asarray(value, np.dtype(leaf.dtype))


def _place(leaf: _Leaf, array: np.ndarray, like: Any) -> Any:
    if leaf.key_impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=leaf.key_impl)
    # JAX without x64 has no 64-bit arrays: those stay in NumPy rather than lose bits.
    is_narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    if isinstance(like, np.ndarray | np.generic) or is_narrowed:
        return array
    return jnp.array(array)


def _empty(leaf: _Leaf) -> np.ndarray:
    """The data of a leaf of size zero, which is not stored."""
    if 0 not in leaf.shape:
        raise ValueError(f"{leaf.name} is missing")
    if leaf.key_impl is None:
        return np.zeros(leaf.shape, np.dtype(leaf.dtype))
    one = jax.random.key_data(jax.random.key(0, impl=leaf.key_impl))
    return np.zeros(leaf.shape + one.shape, one.dtype)


def _digest(step: int, leaves: list[_Leaf], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the step and of every leaf's path, dtype, shape and bytes."""
    sha = hashlib.sha256(json.dumps([step, leaves]).encode())
    for leaf in leaves:
        array = np.ascontiguousarray(arrays[leaf.name])
        sha.update(f"{array.dtype}{arrays[leaf.name].shape}".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, by its path under `directory`."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }


def _sync_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # Some file systems cannot sync a directory.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """One line that says what went wrong, out of an error of Orbax or TensorStore."""
    text = str(error)
    if isinstance(error, CheckpointError):
        return text
    code = re.search(r"os_error_code='(\d+)'", text)
    if code is not None:  # TensorStore's, at the end of a long chain of what it did.
        files = re.findall(r'"(/[^"]+)"', text.partition(" [")[0])
        return ": ".join([os.strerror(int(code[1])), *files[-1:]])
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"


def _call_quietly(action: Callable[[], T]) -> T:
    """Calls Orbax without its log and warnings; what matters comes as one line.

    Raises:
      CheckpointError: `action` failed. Orbax wraps the errors of the file system in
        its own, and a damaged file can make it fail in any way, so all are taken.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return action()
            except Exception as error:
                reason = _reason(error)
            # The other writes that Orbax had begun complain too, when they end and when
            # they are freed. Let them do so here, where nobody hears it.
            time.sleep(0.2)
            gc.collect()
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    raise CheckpointError(reason)
