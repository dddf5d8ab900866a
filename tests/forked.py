"""Processes of their own, forked from one that has imported what takes seconds.

That one has asked JAX for no device, so no backend is lost in the fork. JAX reads its
environment variables when it is imported, before a worker's first fork; XLA_FLAGS are
read with the first backend, in the fork.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["experiments.metrics"])  # which imports nearly all


def run_module(name: str, *words: str) -> None:
    """As `python -m NAME WORDS`, but for what is imported already."""
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _become(
    environment: dict[str, str], out: Path, err: Path, function: Callable, *args: Any
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((out, err), start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(ROOT)
    try:
        function(*args)
    finally:
        atexit._run_exitfuncs()  # a fork ends without; JAX leaves its group there


class Forked:
    """A function of a module in a process that prints to two files, as a `Popen`.

    It is killed at the end of a `with`.
    """

    def __init__(self, out: Path, err: Path, function: Callable, *args: Any):
        for path in (out, err):
            path.write_text("")  # nothing of a process before this one
        everything = (dict(os.environ), out, err, function, *args)
        self._process = _CONTEXT.Process(target=_become, args=everything, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.wait()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # gone meanwhile
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(name: str, *words: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed on each stream."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with Forked(out, err, run_module, name, *map(str, words)) as process:
            code = process.wait(300.0)
        return code, out.read_text(), err.read_text()
