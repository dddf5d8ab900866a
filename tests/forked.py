"""Processes of their own, forked from one that has imported what takes seconds.

That one has imported JAX but asked for no device, so it has no threads to lose.
"""

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
    """`python -m NAME WORDS`."""
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _become(out: Path, err: Path, function: Callable[..., None], *arguments: Any):
    for descriptor, path in enumerate((out, err), start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(ROOT)
    function(*arguments)


class Forked:
    """A function of a module in a process that prints to files, as a `Popen`."""

    def __init__(self, out: Path, err: Path, function: Callable, *arguments: Any):
        everything = (out, err, function, *arguments)
        self._process = _CONTEXT.Process(target=_become, args=everything)
        self._process.start()
        self.pid = self._process.pid

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
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(name: str, *words: str) -> tuple[int, str, str]:
    """The exit code of `python -m NAME WORDS`, and what it printed on each stream."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = Forked(out, err, run_module, name, *map(str, words)).wait(300.0)
        return code, out.read_text(), err.read_text()
