"""The work directory of a run: its lock, config, metrics and snapshots."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, files, tracking

BEST = "best"  # beside checkpoints/: the parameters of the best validation
DATA = "data.json"  # digest of the user's own examples
# Config keys that may change while a run goes on: they change no step.
LAYOUT = ("mesh", "beta.max_initial_steps")
# Values of keys that older directories lack, computed from the section that holds the
# key: what runs did then. None where the section has no use for the key.
BEFORE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mesh": lambda config: 1,
    "beta.value": lambda beta: (
        beta["init"] if beta["scheme"] in ("geco", "constant") else 1.0
    ),
    "train.milestones": lambda train: [],
    "train.milestone_factor": lambda train: 0.1,
    "train.prior_weight_decay": lambda train: train.get("weight_decay", 0.0),
    "model.dropout": lambda model: 0.0 if "hidden" in model else None,
}


class WorkDir:
    """The files of one run; holds a lock while open.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._events: tracking.Events | None = None

    def __enter__(self) -> "WorkDir":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise cli.UserError(f"{self.path} is not a directory") from None
        self._lock = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise cli.UserError(
                f"{self.path} is held by a live process (pid {holder}); wait for it or "
                "choose another --workdir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events is not None:
            self._events.close()
        self._lock.close()  # the kernel drops the lock, also on SIGKILL

    def track(self, step: int) -> None:
        """From now on also writes TensorBoard events, those after `step` anew."""
        self._events = tracking.Events(self.path / "tensorboard", step)

    def track_figures(self, step: int) -> None:
        """Puts the figures among the events, where there are any."""
        if self._events is not None:
            self._events.add_figures(self.path / "figures", step)

    def claim(self, config: ConfigDict, digest: str | None) -> None:
        """Writes config.json and data.json, or refuses one that holds another config.

        Args:
          config: the resolved config.
          digest: of the user's own examples, None of others.
        """
        path = self.path / "config.json"
        if path.exists():
            check_config(self.path, config)
            return
        if (self.path / "checkpoints").exists():
            raise cli.UserError(f"{path} is missing beside checkpoints/")
        if digest:
            files.write_json(self.path / DATA, {"sha256": digest})
        files.write_json(path, json.loads(config.to_json()))

    def metrics(self) -> list[dict[str, Any]]:
        """Whole lines of metrics.jsonl; a line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return lines

    def append_metrics(self, *lines: dict[str, Any]) -> None:
        """Adds lines to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        if self._events is not None:
            self._events.add(lines)

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drops the lines after `step`, which will be computed again."""
        lines = [line for line in self.metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(self.path / "metrics.jsonl", text)
        return lines

    def save_snapshot(self, step: int, **arrays: np.ndarray) -> None:
        """Writes snapshots/step_N.npz."""
        files.write_npz(self.path / "snapshots" / f"step_{step:08d}.npz", **arrays)

    def snapshots(self) -> dict[int, dict[str, np.ndarray]]:
        """All snapshots by step."""
        found = {}
        for path in sorted((self.path / "snapshots").glob("step_*.npz")):
            with np.load(path) as arrays:
                found[int(path.stem.removeprefix("step_"))] = dict(arrays)
        return found

    def validation_bounds(self) -> dict[int, float]:
        """Minus (distortion + rate) on the validation split, by step, of one seed."""
        lines = [line for line in self.metrics() if line.get("split") == "validation"]
        return {
            line["step"]: -line["distortion"] - line["rate"]
            for line in lines
            if line["seed"] == lines[0]["seed"]
        }


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a work directory, with the keys that are younger than it."""
    config = files.read_json(path / "config.json")
    for key, earlier in BEFORE.items():
        parent, _, name = key.rpartition(".")
        tree = config.get(parent) if parent else config
        if not isinstance(tree, dict):  # an estimator's export has no training
            continue
        value = earlier(tree)
        if value is not None:
            tree.setdefault(name, value)
    return config


def check_config(path: Path, config: ConfigDict) -> None:
    """Refuses a work directory whose config.json is not `config`."""
    wanted = dict(cli.flatten(json.loads(config.to_json())))
    seen = dict(cli.flatten(read_config(path)))
    for key in sorted((seen | wanted).keys() - set(LAYOUT)):
        if wanted.get(key) != seen.get(key):
            raise cli.UserError(
                f"{path} holds a run of another config: {key} is {seen.get(key)!r} "
                f"there and {wanted.get(key)!r} here; choose another --workdir"
            )
