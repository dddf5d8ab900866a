"""Keeps images that take minutes to make, rendered or scaled, on disk.

A folder holds the images of one set of parameters, in parts of some megabytes. Its name
has a hash of the parameters, a part's name the hash of its own content; a part gets its
name once it is whole. Hence a run that is killed goes on where it was, two runs at once
write the same files, and what was damaged since is found and made again.

The parts are made by several processes of their own (see `main`) that are told the
numbers of parts on their standard input, one at a time, and end when it ends. They
share nothing with this process, which may have threads and a device.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vhp_jax import storage
from vhp_jax.data.base import DataError
from vhp_jax.data.files import StrPath

# Makes the images of the items from a first to before a last one.
Make = Callable[[int, int], np.ndarray]

FORMAT = 1  # of the folder
PROGRESS_SECONDS = 5.0
LEFTOVER_SECONDS = 3_600.0  # after which a part that is not whole never will be


class Recipe(NamedTuple):
    """How to make the images of a data set.

    Attributes:
      name: of the data set.
      maker: "module:function"; the function takes all parameters and places by name and
        returns a `Make`.
      parameters: what the images depend on, as JSON has it.
      places: paths of the files that they are made from. The hash has none of them,
        so that moving a file changes nothing; `parameters` should have its checksum.
      num_items: of which each gives the same number of images.
      item_shape: (images, height, width) of one item.
      items_per_part: made and kept together.
    """

    name: str
    maker: str
    parameters: Mapping[str, object]
    places: Mapping[str, str]
    num_items: int
    item_shape: tuple[int, int, int]
    items_per_part: int

    @property
    def num_parts(self) -> int:
        """Files that the images are kept in."""
        return -(-self.num_items // self.items_per_part)

    @property
    def num_bytes(self) -> int:
        """Of all images."""
        return self.num_items * int(np.prod(self.item_shape))

    def items(self, part: int) -> tuple[int, int]:
        """The first item of a part and the one after its last."""
        first = part * self.items_per_part
        return first, min(first + self.items_per_part, self.num_items)


def default_directory() -> Path:
    """vhp_jax/ in XDG_CACHE_HOME, or in ~/.cache where that is not set."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vhp_jax"


def folder(recipe: Recipe, cache_dir: StrPath | None = None) -> Path:
    """Where the images of a recipe are kept."""
    wanted = {key: v for key, v in recipe._asdict().items() if key != "places"}
    content = json.dumps([FORMAT, wanted], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    base = default_directory() if cache_dir is None else Path(cache_dir)
    return base / f"{recipe.name}-{digest}"


def load(
    recipe: Recipe, cache_dir: StrPath | None = None, processes: int | None = None
) -> np.ndarray:
    """Reads all images, after making those that are not there.

    Args:
      recipe: see `Recipe`.
      cache_dir: holds the folder; None takes `default_directory`.
      processes: that make parts at the same time; None takes one a processor, 1 makes
        them in this process.

    Returns:
      uint8 [num_items, *item_shape].

    Raises:
      DataError: the folder cannot be written or the disk is full; what the maker finds
        wrong.
      ValueError: `processes` is less than 1.
    """
    if processes is None:
        processes = processors()
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    place = folder(recipe, cache_dir)
    images = np.empty((recipe.num_items, *recipe.item_shape), np.uint8)
    with _writing(place, recipe):
        place.mkdir(parents=True, exist_ok=True)
        _tidy(place)
        parts = range(recipe.num_parts)
        missing = [
            part for part in parts if not _read_part(place, recipe, part, images)
        ]
        if missing:
            _write(place / "parameters.json", _describe(recipe))
            _make_parts(place, recipe, missing, processes)
    for part in missing:
        if not _read_part(place, recipe, part, images):
            raise DataError(f"{place}: part {part} went missing, wanted it left there")
    return images


def _describe(recipe: Recipe) -> bytes:
    content = {"format": FORMAT, **recipe._asdict()}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


@contextlib.contextmanager
def _writing(place: Path, recipe: Recipe) -> Iterator[None]:
    """Says in one line why something could not be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written: {error.strerror or error}; wanted "
            f"{recipe.num_bytes / 1e6:,.0f} MB for the images of {recipe.name} "
            "(cache_dir names another place)"
        ) from error


# --- Parts ---------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
    """Writes a file that gets its name once it is whole."""
    with storage.replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_part(place: Path, recipe: Recipe, part: int, make: Make) -> None:
    first, last = recipe.items(part)
    images = make(first, last)
    wanted = (last - first, *recipe.item_shape)
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(
            f"{recipe.maker} made {images.dtype} {images.shape}, wanted uint8 {wanted}"
        )
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:16]
    _write(place / f"part-{part:05}-{digest}.npy", content)


def _read_part(place: Path, recipe: Recipe, part: int, images: np.ndarray) -> bool:
    """Reads a part into its place in all images; removes it if it is damaged."""
    first, last = recipe.items(part)
    for path in sorted(place.glob(f"part-{part:05}-*.npy")):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        if path.stem.endswith(f"-{digest}"):
            # What has the digest in its name was written by this module.
            found = np.load(io.BytesIO(content), allow_pickle=False)
            if found.shape == (last - first, *recipe.item_shape):
                images[first:last] = found
                return True
        _say(f"{recipe.name}: {path} is damaged and is made again")
        path.unlink(missing_ok=True)
    return False


def _tidy(place: Path) -> None:
    """Removes what runs that were killed left unfinished."""
    for path in place.glob(".part-*"):
        with contextlib.suppress(FileNotFoundError):  # another run's, and now whole
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


# --- Processes -----------------------------------------------------------------------


def processors() -> int:
    """Processors that this process may run on, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _maker(recipe: Recipe) -> Make:
    module, _, function = recipe.maker.partition(":")
    start = getattr(importlib.import_module(module), function)
    make: Make = start(**recipe.parameters, **recipe.places)
    return make


def _make_parts(
    place: Path, recipe: Recipe, missing: list[int], processes: int
) -> None:
    progress = _Progress(recipe, place, missing)
    processes = min(processes, len(missing))
    if processes == 1:
        make = _maker(recipe)
        for part in missing:
            _write_part(place, recipe, part, make)
            progress.done(part)
        return
    parts: queue.SimpleQueue[int] = queue.SimpleQueue()
    for part in missing:
        parts.put(part)
    errors: list[DataError] = []
    workers: list[subprocess.Popen[str]] = []
    threads = []
    try:
        for _ in range(processes):
            worker = _start_worker(place, recipe)
            workers.append(worker)
            arguments = (worker, recipe, parts, progress, errors)
            thread = threading.Thread(target=_feed, args=arguments, daemon=True)
            threads.append(thread)
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:  # a signal is heeded in between
                thread.join(0.1)
    finally:
        for worker in workers:
            worker.terminate()
        for worker, thread in zip(workers, threads, strict=False):
            worker.wait()
            thread.join()
        for worker in workers:
            _close(worker)
            for path in place.glob(f".*.{worker.pid}"):
                path.unlink()
    if errors:
        raise errors[0]


def _start_worker(place: Path, recipe: Recipe) -> subprocess.Popen[str]:
    """Starts a process that makes parts; see `main`."""
    # The package without what its __init__ imports: JAX is slow to start, and of no use
    # here. One thread each, since there is a process a processor.
    package = str(Path(__file__).resolve().parents[1])
    code = (
        "import sys, types\n"
        "sys.modules['vhp_jax'] = package = types.ModuleType('vhp_jax')\n"
        f"package.__path__ = [{package!r}]\n"
        f"from {__name__} import main\n"
        "main()\n"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # `_feed` notices
        worker.stdin.write(json.dumps([str(place), recipe]) + "\n")
        worker.stdin.flush()
    return worker


def _close(worker: "subprocess.Popen[str]") -> None:
    """Closes the pipes to a process that has ended."""
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # of what it did not read
            pipe.close()


def _feed(
    worker: subprocess.Popen[str],
    recipe: Recipe,
    parts: "queue.SimpleQueue[int]",
    progress: "_Progress",
    errors: list[DataError],
) -> None:
    """Tells one process which parts to make, until there are none or one failed."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    while not errors:
        try:
            part = parts.get_nowait()
        except queue.Empty:
            return
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(f"{part}\n")
            worker.stdin.flush()
        answer = worker.stdout.readline()
        if answer == "made\n":
            progress.done(part)
        elif answer.endswith("\n"):
            errors.append(DataError(json.loads(answer)))
        else:
            errors.append(
                DataError(
                    f"{recipe.name}: the process that made part {part} ended with exit "
                    f"code {worker.wait()}, wanted the part; another start goes on "
                    "from here"
                )
            )


def main() -> None:
    """Makes the parts whose numbers are on the standard input.

    The first line is the folder and the recipe, as JSON. Answers each number with a
    line: "made", or what is wrong, as JSON.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    header = sys.stdin.readline()
    if not header:
        return
    place, values = json.loads(header)
    recipe = Recipe(*values)
    images, height, width = recipe.item_shape  # a list, as JSON has it
    recipe = recipe._replace(item_shape=(images, height, width))
    make = None
    for line in sys.stdin:
        try:
            with _writing(Path(place), recipe):
                make = make or _maker(recipe)
                _write_part(Path(place), recipe, int(line), make)
            answer = "made"
        except DataError as error:
            answer = json.dumps(str(error))
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # nobody is there any more
            os._exit(1)


def _say(text: str) -> None:
    """A line on stderr: stdout is the caller's, whose first line names the data."""
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """Prints a line every few seconds."""

    def __init__(self, recipe: Recipe, place: Path, missing: list[int]):
        self._recipe = recipe
        self._total = recipe.num_items * recipe.item_shape[0]
        self._left = sum(map(self._images, missing))
        self._made = 0
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()
        _say(
            f"{recipe.name}: {self._total - self._left:,} of {self._total:,} images "
            f"are in {place}; the others are made now"
        )

    def _images(self, part: int) -> int:
        first, last = self._recipe.items(part)
        return (last - first) * self._recipe.item_shape[0]

    def done(self, part: int) -> None:
        """Counts a part."""
        with self._lock:
            self._made += self._images(part)
            self._left -= self._images(part)
            now = time.monotonic()
            if self._left and now - self._last < PROGRESS_SECONDS:
                return
            self._last = now
            speed = self._made / max(now - self._start, 1e-3)
            _say(
                f"{self._recipe.name}: {self._total - self._left:,} of "
                f"{self._total:,} images, {speed:.0f} a second, "
                f"{self._left / speed / 60.0:.1f} minutes left"
            )
