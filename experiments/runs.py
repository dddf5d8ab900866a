"""A training run in its work directory: lock, config, metrics, checkpoints, summary.

The directory is the run: whatever kills the process, the newest whole checkpoint and
the lines of metrics.jsonl up to it are enough to go on to the same parameters.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

import vhp_jax
from experiments import build, cli, tracking
from experiments.processes import ALONE, Group
from vhp_jax import (
    devices,
    evaluation,
    graph,
    kappa,
    plotting,
    sharing,
    storage,
    training,
)
from vhp_jax.checkpoints import Checkpointer, CheckpointError
from vhp_jax.data import Dataset, Standardisation, cache
from vhp_jax.training import StepMetrics, TrainState
from vhp_jax.types import Params, PRNGKey, PyTree

BEST = "best"  # beside checkpoints/: the parameters of the best validation
LINE_SECONDS = 5.0  # plain progress lines are at least this far apart
DATA = "data.json"  # digest of the user's own examples
# Config keys that may change while a run goes on: they change no step.
LAYOUT = ("mesh", "beta.max_initial_steps")
# Values of keys that older directories lack, computed from the section that holds the
# key: what runs did then. None where the section has no use for the key.
BEFORE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mesh": lambda config: 1,
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
            write_json(self.path / DATA, {"sha256": digest})
        write_json(path, json.loads(config.to_json()))

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
        write_text(self.path / "metrics.jsonl", text)
        return lines

    def save_snapshot(self, step: int, **arrays: np.ndarray) -> None:
        """Writes snapshots/step_N.npz."""
        write_npz(self.path / "snapshots" / f"step_{step:08d}.npz", **arrays)

    def snapshots(self) -> dict[int, dict[str, np.ndarray]]:
        """All snapshots by step."""
        found = {}
        for path in sorted((self.path / "snapshots").glob("step_*.npz")):
            with np.load(path) as arrays:
                found[int(path.stem.removeprefix("step_"))] = dict(arrays)
        return found


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a work directory, with the keys that are younger than it."""
    config = read_json(path / "config.json")
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
    wanted = _flat(json.loads(config.to_json()))
    seen = _flat(read_config(path))
    for key in sorted((seen | wanted).keys() - set(LAYOUT)):
        if wanted.get(key) != seen.get(key):
            raise cli.UserError(
                f"{path} holds a run of another config: {key} is {seen.get(key)!r} "
                f"there and {wanted.get(key)!r} here; choose another --workdir"
            )


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    with storage.replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file in one step; floats that are not finite become null."""
    write_text(path, storage.json_text(value))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Replaces an .npz file in one step."""
    with storage.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; UserError names a file that is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise cli.UserError(f"{path} does not exist") from None
    except ValueError as error:  # not JSON, or not even text
        raise cli.UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise cli.UserError(f"{path} holds {type(value).__name__}; wanted an object")
    return value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


class Run:
    """A built experiment, its state and its work directory.

    Attributes:
      config: the resolved config.
      experiment: the objects built from it, or given.
      seeds: one per member.
      state: the TrainState; with several seeds its leaves have a leading seed axis.
    """

    def __init__(self, config: ConfigDict, experiment: build.Experiment | None = None):
        self.config = config
        self.experiment = experiment or build.build(config)
        self.seeds = list(range(config.seed, config.seed + config.num_seeds))

    def train_loop(self, mesh: Mesh | None = None) -> training.TrainLoop:
        """The compiled loop over steps, for as many seeds as the run has."""
        experiment, batch_size = self.experiment, self.config.train.batch_size
        step = training.make_train_step(
            experiment.training_objective,
            experiment.beta_scheme,
            experiment.optimizers,
            self.config.train.average_decay,
            experiment.rate_factor,
        )
        arguments = step, batch_size, experiment.draw_batch, mesh
        if self.config.train.stream_data:
            return training.make_streamed_loop(*arguments)
        if takes_steps_alone(self.config) and len(self.seeds) == 1:
            return training.make_stepwise_loop(*arguments)
        loop = training.make_train_loop(*arguments)
        return training.jit_train_loop(loop, len(self.seeds), mesh)

    def training_data(self, mesh: Mesh | None = None) -> np.ndarray | jax.Array:
        """What the loop takes: on the host if streamed, else whole on each device."""
        examples = self.experiment.dataset.train.examples
        if self.config.train.stream_data:
            return examples
        if mesh is None:
            return jnp.asarray(examples)
        return devices.replicate_data(examples, mesh)

    def initial_state(self) -> TrainState:
        """A fresh state, stacked over seeds if there are several."""

        def init(key: jax.Array) -> TrainState:
            return training.init_state(
                key,
                self.experiment.init_params,
                self.experiment.optimizers,
                self.experiment.beta_scheme,
                keep_average=self.config.train.average_decay > 0.0,
                statistics=statistics,
            )

        statistics = _statistics(self.experiment.dataset.standardisation)

        keys = [jax.random.key(seed) for seed in self.seeds]
        if len(keys) == 1:
            return jax.jit(init)(keys[0])
        # One by one, so that each member is the one that its seed gives alone.
        members = [jax.jit(init)(key) for key in keys]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    def prior_graph(
        self, params: Params, key: PRNGKey
    ) -> tuple[graph.LatentGraph, int]:
        """The config's graph over prior samples, bridged, and its number of bridges."""
        config, model = self.config.graph, self.experiment.model
        return evaluation.prior_graph(
            model, params, key, config.num_nodes, config.num_neighbours
        )

    def members(self, tree: PyTree) -> Iterator[PyTree]:
        """The tree of each seed."""
        if len(self.seeds) == 1:
            yield tree
        else:
            for index in range(len(self.seeds)):
                yield jax.tree.map(lambda leaf, i=index: leaf[i], tree)


Draw = Callable[[Run, WorkDir, Params], Iterable[tuple[str, Figure]]]


def make_mesh(config: ConfigDict) -> Mesh | None:
    """The devices that share a batch; None where one process has one.

    Raises:
      UserError: there are fewer devices, or the batch does not divide.
    """
    if config.mesh == 1 and jax.process_count() == 1:
        return None
    try:
        mesh = devices.make_mesh(config.mesh)
    except ValueError as error:
        raise cli.UserError(f"config.mesh: {error}") from None
    try:
        devices.check_batch(mesh, config.train.batch_size)
    except ValueError as error:
        raise cli.UserError(f"config.train.batch_size: {error}") from None
    return mesh


def fingerprint(run: Run) -> dict[str, str]:
    """Of what all processes of a run must have in common."""
    config = run.config.to_json(sort_keys=True)
    examples = np.ascontiguousarray(run.experiment.dataset.train.examples)
    return {
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "training data": hashlib.sha256(examples.view(np.uint8).data).hexdigest(),
    }


def check_followers(run: Run, group: Group) -> None:
    """Waits until all processes have built the run; refuses one with another.

    Raises:
      UserError: names the process.
    """
    own = fingerprint(run) if group.size > 1 else {}
    for index, seen in group.gather().items():
        for name, value in own.items():
            if seen[name] != value:
                raise cli.UserError(
                    f"process {index} has another {name} than process 0; start all "
                    "with the same flags and files"
                )


def takes_steps_alone(config: ConfigDict) -> bool:
    """Whether a scan over steps would be slow: convolutions on a CPU."""
    convolutions = config.model.network in ("gated_conv", "conv")
    return convolutions and jax.default_backend() == "cpu"


class Restored(NamedTuple):
    """A run read back from its work directory.

    Attributes:
      run: the experiment, built anew.
      state: the newest whole checkpoint.
      params: what is evaluated: the best parameters of a run that is stopped early,
        else those of the checkpoint; stacked over seeds if there are several.
      step: at which `params` were reached.
    """

    run: Run
    state: TrainState
    params: Params
    step: int

    def first(self) -> Params:
        """The parameters of the first seed."""
        return next(self.run.members(self.params))


def restore(workdir: str | os.PathLike[str]) -> Restored:
    """Rebuilds a run and its newest whole checkpoint, or the model of an export.

    Raises:
      UserError: there is no run or no checkpoint in `workdir`.
      ExportError: it holds an export that is not whole.
    """
    path = Path(workdir)
    config = read_config(path)
    if sharing.is_export(path) and "estimator" in config:
        raise cli.UserError(
            f"{path} was saved by VHP.save and knows no data set: VHP.load reads it"
        )
    try:
        run = Run(ConfigDict(config))
    except (AttributeError, KeyError, TypeError) as error:
        raise cli.UserError(
            f"{path / 'config.json'} is not a config of this version: {error}"
        ) from None
    if sharing.is_export(path):
        return _from_export(path, run)
    check_digest(path, run.experiment.dataset)
    like = jax.eval_shape(run.initial_state)
    with Checkpointer(path / "checkpoints") as checkpointer:
        newest = checkpointer.restore_latest(like)
    if newest is None:
        raise cli.UserError(f"{path} holds no checkpoint yet")
    step, state = newest
    check_statistics(path, run, state)
    return Restored(run, state, *evaluated(path, run.config, step, state))


def _from_export(path: Path, run: Run) -> Restored:
    """The model of an exported run in the place of its newest state."""
    shared = sharing.read(path)
    if "examples sha256" in shared.facts:
        compare_digest(path, shared.facts["examples sha256"], run.experiment.dataset)
    if len(run.seeds) > 1:
        run.seeds = [int(shared.facts["seed"])]
    if sharing.describe(shared.model) != sharing.describe(run.experiment.model):
        raise cli.UserError(
            f"{path}: the networks of {sharing.MODEL} are not those of config.json"
        )
    step = int(shared.facts["steps"])
    params = jax.tree.map(jnp.asarray, shared.params)
    state = run.initial_state().replace(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        statistics=_statistics(shared.standardisation),
    )
    check_statistics(path, run, state)
    return Restored(run, state, params, step)


def opened(workdir: str | None) -> Restored:
    """`restore` for a command: says first what it works on.

    Raises:
      UsageError: `workdir` is not given.
      UserError: there is no run or no checkpoint in it.
    """
    if not workdir:
        raise cli.UsageError("--workdir=DIR is missing: the directory of a run")
    restored = restore(workdir)
    run, dataset = restored.run, restored.run.experiment.dataset
    print(banner(f"{dataset.name} ({dataset.source})", Path(workdir)), flush=True)
    if len(run.seeds) > 1:
        print(f"{len(run.seeds)} seeds from {run.seeds[0]}; pictures are of the first")
    return restored


def evaluated(
    path: Path, config: ConfigDict, step: int, state: TrainState
) -> tuple[Params, int]:
    """The parameters of a run that are evaluated, and the step they were reached at.

    Args:
      path: directory of the run.
      config: its config.
      step: of `state`.
      state: the newest one.

    Raises:
      UserError: the best parameters of a run that keeps them are not there.
    """
    with Checkpointer(path / BEST) as checkpointer:
        best = checkpointer.restore_latest(state.eval_params)
    if best is not None:
        return best[1], best[0]
    if config.train.patience and validation_bounds(WorkDir(path)):
        raise cli.UserError(
            f"{path / BEST} is missing: the best validation's parameters are lost; "
            "start afresh in another --workdir"
        )
    return state.eval_params, step


def check_digest(path: Path, dataset: Dataset) -> None:
    """Refuses a work directory whose run was begun with other examples than these."""
    kept = path / DATA
    if kept.exists():
        compare_digest(path, read_json(kept).get("sha256"), dataset)


def compare_digest(path: Path, digest: object, dataset: Dataset) -> None:
    """Refuses what was trained on other examples than these."""
    if digest != dataset.digest:
        raise cli.UserError(
            f"{path} holds a run on other examples than {dataset.source.split(';')[0]};"
            " wanted the same files, or another --workdir"
        )


def _statistics(units: Standardisation | None) -> dict[str, np.ndarray] | None:
    """As they are kept in checkpoints, float32."""
    if units is None:
        return None
    return {
        name: np.asarray(array, np.float32) for name, array in units._asdict().items()
    }


def check_statistics(path: Path, run: Run, state: TrainState) -> None:
    """Refuses a checkpoint whose data were standardised otherwise than these."""
    if state.statistics is None:
        return
    kept = next(run.members(state.statistics))
    found = _statistics(run.experiment.dataset.standardisation) or {}
    for name, array in found.items():
        seen, wanted = np.ravel(array), np.ravel(kept[name])
        far = ~np.isclose(seen, wanted, rtol=1e-4, atol=1e-6)
        if far.any():
            index = int(np.argmax(far))
            raise cli.UserError(
                f"{path}: {name} of feature {index} was {wanted[index]:.6g} in the "
                f"data it was trained on, here it is {seen[index]:.6g}; wanted the "
                "same files"
            )


def banner(run_source: str, workdir: Path) -> str:
    """First line of every command: device, data source, work directory."""
    device = jax.devices()[0]
    kind = "" if device.platform == "cpu" else f" {device.device_kind}"
    return (
        f"device: {jax.device_count()} x {device.platform}{kind} | "
        f"data: {run_source} | work directory: {workdir}"
    )


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    max_minutes: float = math.inf,
    tensorboard: bool = False,
    group: Group = ALONE,
    draw: Draw | None = None,
) -> dict[str, Any] | None:
    """Trains, or goes on training, in `workdir`; called by the process that leads.

    Args:
      config: the resolved config.
      workdir: directory of the run.
      max_minutes: stop cleanly with a checkpoint after this long.
      tensorboard: whether metrics and figures are also written as TensorBoard events.
      group: the processes that take part; all but this one are in `follow`.
      draw: the figures of a finished run, by name.

    Returns:
      The summary, or None if `max_minutes` ran out first.

    Raises:
      UserError: the directory, the config or the numbers do not allow it.
      InterruptedRunError: a signal came; the state is in a checkpoint. One that comes
        while the data are made or the last figures are drawn ends the run at once.
    """
    start = time.monotonic()
    with WorkDir(workdir) as directory:
        mesh = make_mesh(config)
        run = Run(config)  # may render images for minutes; a signal ends that at once
        dataset = run.experiment.dataset
        directory.claim(config, dataset.digest)
        check_digest(directory.path, dataset)
        print(banner(f"{dataset.name} ({dataset.source})", directory.path), flush=True)
        done = directory.path / "summary.json"
        if done.exists() and (summary := read_json(done)).get("completed"):
            print(f"already complete at step {summary['step']}: {done}")
            return summary
        checkpoints = directory.path / "checkpoints"
        with cli.StopSignal() as stop, Checkpointer(checkpoints) as checkpointer:
            check_followers(run, group)
            trainer = _Trainer(run, directory, checkpointer, start, mesh, group)
            if tensorboard:
                directory.track(trainer.step)
            finished = trainer.run(stop, start + 60.0 * max_minutes)
        if signum := stop.signum or group.signum:
            raise cli.InterruptedRunError(signum)
        return trainer.finish(draw) if finished else None


def follow(config: ConfigDict, group: Group) -> None:
    """Takes part in a training that process 0 leads: no file, no decision.

    Raises:
      UserError: process 0 ended with an error.
      InterruptedRunError: it was stopped by a signal; it has written a checkpoint.
    """
    mesh = make_mesh(config)
    run = Run(config)
    with cli.StopSignal() as stop:
        group.tell(**fingerprint(run))
        state: TrainState | None = None
        for order in group.orders(stop):
            if state is None:
                assert mesh is not None  # with several processes there is one
                state = devices.replicate(run.initial_state(), mesh)
                loop, data = run.train_loop(mesh), run.training_data(mesh)
            else:
                state, metrics = loop(state, data, num_steps=order["steps"])
                jax.block_until_ready(metrics)


def validation_bounds(directory: WorkDir) -> dict[int, float]:
    """Minus (distortion + rate) on the validation split, by step, of the first seed."""
    lines = [line for line in directory.metrics() if line.get("split") == "validation"]
    return {
        line["step"]: -line["distortion"] - line["rate"]
        for line in lines
        if line["seed"] == lines[0]["seed"]
    }


def _is_whole(checkpointer: Checkpointer, like: PyTree) -> bool:
    """Whether the newest checkpoint can be read."""
    try:
        return checkpointer.restore_latest(like) is not None
    except CheckpointError:
        return False


class _Trainer:
    """The loop of one run; split by what each part touches."""

    def __init__(
        self,
        run: Run,
        directory: WorkDir,
        checkpointer: Checkpointer,
        start: float,
        mesh: Mesh | None,
        group: Group,
    ):
        self.run_ = run
        self.mesh, self.group = mesh, group
        self.directory = directory
        self.checkpointer = checkpointer
        self.start = start
        self.earlier_seconds = 0.0
        self.smallest_constraint = np.full(len(run.seeds), math.inf)
        self.waited_until = 0  # last logged step of the initial phase
        self.constraints: list[tuple[int, float]] = []  # of the initial phase
        self.saved_step: int | None = None
        self.state = self._resume_or_start()
        self.loop = run.train_loop(mesh)
        self.step = int(np.max(np.asarray(self.state.step)))
        self.starts = self._note_start()
        self.best_step, self.best_bound = self._best_so_far()

    def _resume_or_start(self) -> TrainState:
        state = self.run_.initial_state()
        found = self.checkpointer.restore_latest(state)
        if found is None:
            self.directory.rewind_metrics(0)
            return state
        step, state = found
        check_statistics(self.directory.path, self.run_, state)
        self.saved_step = step
        lines = self.directory.rewind_metrics(step)
        trained = [line for line in lines if "split" not in line]
        if trained:
            self.earlier_seconds = trained[-1]["wall_seconds"]
            for line in trained:
                member = self.run_.seeds.index(line.get("seed", self.run_.seeds[0]))
                self.smallest_constraint[member] = min(
                    self.smallest_constraint[member], line["constraint"]
                )
                if line["initial_phase"]:
                    self.waited_until = line["step"]
        print(f"resuming at step {step} of {self.run_.config.train.num_steps}")
        return state

    def _note_start(self) -> list[dict[str, Any]]:
        """What took which steps: starts.json, this start and those it goes on from."""
        path = self.directory.path / "starts.json"
        earlier: list[dict[str, Any]]
        # A directory that is older than this file does not say what began it.
        earlier = [{"step": 0, "git_revision": None, "hardware": "unknown"}]
        if path.exists():
            earlier = read_json(path)["starts"]
        starts = [start for start in earlier if start["step"] < self.step]
        if starts and self.step >= self.run_.config.train.num_steps:
            return starts  # no step is left to be taken
        starts.append(
            {
                "step": self.step,
                "git_revision": git_revision(),
                "versions": versions(),
                "device": str(jax.devices()[0].device_kind),
                "hardware": hardware(),
                "num_devices": 1 if self.mesh is None else self.mesh.size,
                "num_processes": self.group.size,
            }
        )
        write_json(path, {"starts": starts})
        return starts

    def _best_so_far(self) -> tuple[int, float]:
        """Step and value of the best validation; (0, -inf) before the first.

        What is not in best/ as it should be is written from this step's state, or will
        be computed again, or is lost; then the best is sought anew.
        """
        if not self.run_.config.train.patience:
            return 0, -math.inf
        bounds = validation_bounds(self.directory)
        step = max(bounds, key=lambda step: (bounds[step], -step), default=0)
        folder = self.directory.path / BEST
        with Checkpointer(folder, max_to_keep=1) as best:
            kept = best.steps()[-1:]
            if kept and kept[0] > self.step:  # of steps that will be taken again
                shutil.rmtree(folder)
            elif step == self.step > 0 and kept != [step]:  # killed before it was there
                best.save(step, self.state.eval_params)
            elif step > 0 and not (
                kept == [step] and _is_whole(best, self.state.eval_params)
            ):
                print(f"{folder}: no whole parameters of step {step}, the best so far")
                return 0, -math.inf
        return step, bounds.get(step, -math.inf)

    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations were all worse than one before.

        None of a warm-up or of the initial phase counts: beta is still below 1.
        """
        config, warm_up = self.run_.config.train, self.run_.experiment.warm_up_steps
        since = max(self.best_step, warm_up, self.waited_until) // config.eval_every
        return 0 < config.patience <= self.step // config.eval_every - since

    def seconds(self) -> float:
        """Wall-clock seconds of this run, earlier parts included."""
        return self.earlier_seconds + time.monotonic() - self.start

    def run(self, stop: cli.StopSignal, deadline: float) -> bool:
        """Trains to the end (True), or to the deadline or signal (False)."""
        config = self.run_.config.train
        self._check_phase()  # a run that gave up gives up again
        self._spread()
        with Progress(config.num_steps, self.step) as progress:
            while self.step < config.num_steps and not self.out_of_patience():
                stopped = stop.signum is not None or self.group.signum is not None
                if stopped or time.monotonic() >= deadline:
                    self.save()
                    progress.note(f"stopped at step {self.step}, checkpoint written")
                    return False
                length = min(config.log_every, config.num_steps - self.step)
                began = time.monotonic()
                metrics = self._advance(length)
                self.step += length
                self._check_finite(metrics)
                lines = self._log(metrics, length, time.monotonic() - began)
                progress.update(self.step, lines[0])
                self._check_constraint(metrics)
                self._foresee(progress)
                ends = self.step == config.num_steps
                if self.step in config.snapshot_steps or (
                    ends and config.snapshot_steps
                ):
                    self.snapshot()
                if ends or self.step % config.eval_every == 0:
                    self.validate(progress)
                if self.step % config.checkpoint_every == 0:
                    self.save()
            self.save()
            if self.out_of_patience():
                progress.note(
                    f"no better validation bound than {self.best_bound:.2f} of step "
                    f"{self.best_step}: stopped at step {self.step}"
                )
        return True

    def _spread(self) -> None:
        """Puts state and data where the loop wants them, in all processes."""
        self.group.tell(start=True)
        mesh = self.mesh
        # `state` is one device's copy, for all that is not training.
        self.spread = (
            self.state if mesh is None else devices.replicate(self.state, mesh)
        )
        self.data = self.run_.training_data(mesh)

    def _advance(self, length: int) -> StepMetrics:
        """Takes so many steps, with all processes; metrics on the host."""
        self.group.tell(steps=length)
        self.spread, metrics = self.loop(self.spread, self.data, num_steps=length)
        metrics = jax.tree.map(np.asarray, metrics)
        self.state = self.spread if self.mesh is None else devices.local(self.spread)
        return metrics

    def _log(
        self, metrics: StepMetrics, length: int, seconds: float
    ) -> list[dict[str, Any]]:
        lines = []
        config = self.run_.config
        for seed, member in zip(
            self.run_.seeds, self.run_.members(metrics), strict=True
        ):
            line: dict[str, Any] = {
                **training.summarise(self.step, config.beta.kappa, member),
                "examples_per_second": length * config.train.batch_size / seconds,
                "wall_seconds": self.seconds(),
            }
            if len(self.run_.seeds) > 1:
                line["seed"] = seed
            if line["initial_phase"]:
                self.waited_until = self.step
            lines.append(line)
        self.directory.append_metrics(*lines)
        return lines

    def _check_finite(self, metrics: StepMetrics) -> None:
        """Stops at the first step whose numbers are not finite, naming the place."""
        names = np.array(["distortion", "rate", "constraint", "beta", "loss"])
        values = np.stack([getattr(metrics, name) for name in names])
        values = values.reshape(len(names), -1, values.shape[-1])  # [term, seed, step]
        finite = np.isfinite(values)
        groups = [
            name
            for name, tree in self.state.params._asdict().items()
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        ]
        if finite.all() and not groups:
            return
        # [step]; where all are finite, the update of the last step broke something.
        whole = finite.all(axis=(0, 1))
        offset = len(whole) - 1 if whole.all() else int(np.argmin(whole))
        step = self.step - len(whole) + offset + 1
        terms = ", ".join(names[~finite[:, :, offset].all(axis=1)]) or "the update"
        kept = f"the checkpoint of step {self.saved_step} stays"
        raise cli.UserError(
            f"not finite at step {step}: {terms}; parameters not finite after it: "
            f"{', '.join(groups) or 'none'}; "
            f"{'no checkpoint yet' if self.saved_step is None else kept}; "
            "try a smaller learning rate"
        )

    def _check_constraint(self, metrics: StepMetrics) -> None:
        """Notes the smallest C_hat; gives up where kappa is out of reach."""
        seen = metrics.constraint.reshape(len(self.run_.seeds), -1).min(axis=1)
        self.smallest_constraint = np.minimum(self.smallest_constraint, seen)
        self._check_phase()

    def _check_phase(self) -> None:
        """Gives up on an initial phase that outlasts its steps."""
        config = self.run_.config.beta
        waiting = np.asarray(self.state.beta_state.initial_phase).reshape(-1)
        if waiting.any() and self.step >= config.max_initial_steps:
            self.save()
            member = int(np.argmax(waiting))
            smallest = self.smallest_constraint[member]
            raise cli.UserError(
                f"kappa^2 = {config.kappa**2:g} not reached in {self.step} steps (seed "
                f"{self.run_.seeds[member]}): the smallest C_hat was {smallest:.3g}; "
                f"try kappa >= {1.1 * math.sqrt(smallest):.2g}, a smaller "
                "beta.init, wider networks, or more steps (beta.max_initial_steps); "
                "`python -m experiments.suggest_kappa` measures a kappa"
            )

    def _foresee(self, progress: "Progress") -> None:
        """Says once, a quarter of the way, that kappa looks out of reach."""
        config, state = self.run_.config.beta, self.state.beta_state
        waiting = np.asarray(state.initial_phase).reshape(-1)
        if not waiting.any():
            return
        averages = np.asarray(state.constraint_average).reshape(-1)
        self.constraints.append((self.step, float(averages[waiting].max())))
        quarter = config.max_initial_steps / 4
        if not self.step - self.run_.config.train.log_every < quarter <= self.step:
            return
        steps, seen = zip(*self.constraints, strict=True)
        forecast = kappa.steps_to_reach(steps, seen, config.kappa**2)
        if forecast > config.max_initial_steps:
            pace = f"that takes {forecast:.0f} steps at this pace"
            progress.note(
                f"kappa^2 = {config.kappa**2:g} looks out of reach: C_hat is "
                f"{seen[-1]:.3g} after {self.step} steps, "
                f"{'and no longer falls' if forecast == math.inf else pace}; the run "
                f"gives up at step {config.max_initial_steps}"
            )

    def save(self) -> None:
        """Writes a checkpoint of the current step."""
        if self.step != self.saved_step:
            self.checkpointer.save(self.step, self.state)
            self.saved_step = self.step

    def validate(self, progress: "Progress") -> None:
        """Adds a validation line per seed."""
        experiment, config = self.run_.experiment, self.run_.config.train
        split = experiment.dataset.validation
        for seed, params in zip(
            self.run_.seeds, self.run_.members(self.state.eval_params), strict=True
        ):
            # The same draws at every validation, and none that training uses.
            key = jax.random.fold_in(jax.random.key(seed), 1_000_000)
            measured = evaluation.rate_distortion(
                experiment.objective, params, key, split.examples
            )
            line: dict[str, Any] = {
                "step": self.step,
                "split": "validation",
                "seed": seed,
                "distortion": measured.distortion,
                "rate": measured.rate,
                "constraint": measured.constraint,
            }
            if (
                experiment.dataset.target_kind == "angle"
                and experiment.model.latent_dim == 2
            ):
                codes = evaluation.encode_dataset(
                    experiment.model, params, split.examples
                )
                line["ols_error"] = evaluation.regress_angle(
                    codes.mean, split.targets
                ).error
            self.directory.append_metrics(line)
            angle = (
                f", OLS error {line['ols_error']:.4f} rad"
                if "ols_error" in line
                else ""
            )
            progress.note(
                f"step {self.step} validation: distortion {measured.distortion:.2f}, "
                f"rate {measured.rate:.3f}{angle}"
            )
            if (
                config.patience
                and -measured.distortion - measured.rate > self.best_bound
            ):
                self.keep_best(-measured.distortion - measured.rate)

    def keep_best(self, bound: float) -> None:
        """Keeps the evaluated parameters of this step in best/.

        The checkpoint of the same step comes first, so that a run that is resumed is
        never behind its best parameters.
        """
        self.save()
        with Checkpointer(self.directory.path / BEST, max_to_keep=1) as best:
            best.save(self.step, self.state.eval_params)
        self.best_step, self.best_bound = self.step, bound

    def snapshot(self) -> None:
        """Keeps posterior and prior of this step for Fig. 2."""
        experiment = self.run_.experiment
        split = experiment.dataset.validation
        parts = []
        for params in self.run_.members(self.state.eval_params):
            codes = evaluation.encode_dataset(experiment.model, params, split.examples)
            key, count = jax.random.key(self.step), len(split.examples)
            drawn = evaluation.sample_prior(experiment.model, params, key, count)
            parts.append((codes.mean, codes.scale, drawn))
        mean, scale, samples = (np.stack(part) for part in zip(*parts, strict=True))
        self.directory.save_snapshot(
            self.step,
            posterior_mean=mean,
            posterior_scale=scale,
            prior_samples=samples,
            targets=split.targets,
        )

    def finish(self, draw: Draw | None) -> dict[str, Any]:
        """Draws the figures and writes summary.json, last of all."""
        path, config = self.directory.path, self.run_.config
        params, _ = evaluated(path, config, self.step, self.state)
        drawn = draw(self.run_, self.directory, params) if draw else ()
        for name, figure in drawn:
            plotting.save_figure(figure, path / "figures" / f"{name}.png")
        self.directory.track_figures(self.step)
        lines = self.directory.metrics()
        seconds = self.seconds()
        num_parameters = sum(
            leaf.size
            for leaf in jax.tree.leaves(next(self.run_.members(self.state.params)))
        )
        summary = self.starts[-1] | {
            "completed": True,
            "step": self.step,
            "best_step": self.best_step if config.train.patience else None,
            "final_metrics": [line for line in lines if line["step"] == self.step],
            "parameters": num_parameters,
            "seed": config.seed,
            "num_seeds": config.num_seeds,
            "starts": self.starts,
            "wall_seconds": seconds,
            "examples_per_second": self.step * config.train.batch_size / seconds,
        }
        write_json(self.directory.path / "summary.json", summary)
        waiting = np.asarray(self.state.beta_state.initial_phase).reshape(-1)
        if waiting.any():
            seeds = np.array(self.run_.seeds)[waiting]
            print(
                f"kappa^2 = {config.beta.kappa**2:g} was not reached, the prior was "
                f"not trained (seed {', '.join(map(str, seeds))}): wanted more "
                "--config.train.num_steps or a larger --config.beta.kappa"
            )
        print(f"done: step {self.step} in {seconds:.0f} s, see {self.directory.path}")
        return summary


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, initial: int):
        self._total, self._initial = total, initial
        self._last = -math.inf
        self._began = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._initial, file=sys.stdout, unit="step"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, line: dict[str, Any]) -> None:
        """Shows one log interval."""
        text = training.progress_text(line)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS or step == self._total:
            left = (now - self._began) * (self._total - step) / (step - self._initial)
            print(f"step {step}/{self._total}: {text}, {left:.0f} s left", flush=True)
            self._last = now

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)


def hardware() -> str:
    """What a run had to itself: the accelerators, or the usable CPU cores."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"CPU, {cache.processors()} core(s)"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib import metadata

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return found | {"python": platform.python_version(), "vhp_jax": vhp_jax.__version__}


def git_revision() -> str | None:
    """Commit of the working tree, with "+changes" if it is not clean; None without."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
