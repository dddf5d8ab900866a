"""Runs: what a config builds, and what is read back from a work directory."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import build, cli, files, run_files
from experiments.run_files import WorkDir
from vhp_jax import devices, evaluation, graph, sharing, training
from vhp_jax.checkpoints import Checkpointer
from vhp_jax.data import Dataset, Standardisation
from vhp_jax.training import TrainState
from vhp_jax.types import Params, PRNGKey, PyTree


class Run:
    """What a config builds, for one seed or several that are trained at once.

    Attributes:
      config: the resolved config.
      experiment: the objects built from it, or given.
      seeds: of the members, in order.
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
        statistics = _statistics(self.experiment.dataset.standardisation)

        def init(key: jax.Array) -> TrainState:
            return training.init_state(
                key,
                self.experiment.init_params,
                self.experiment.optimizers,
                self.experiment.beta_scheme,
                keep_average=self.config.train.average_decay > 0.0,
                statistics=statistics,
            )

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
    config = run_files.read_config(path)
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
    with Checkpointer(path / run_files.BEST) as checkpointer:
        best = checkpointer.restore_latest(state.eval_params)
    if best is not None:
        return best[1], best[0]
    if config.train.patience and WorkDir(path).validation_bounds():
        raise cli.UserError(
            f"{path / run_files.BEST} is missing: the best validation's parameters are "
            "lost; start afresh in another --workdir"
        )
    return state.eval_params, step


def check_digest(path: Path, dataset: Dataset) -> None:
    """Refuses a work directory whose run was begun with other examples than these."""
    kept = path / run_files.DATA
    if kept.exists():
        compare_digest(path, files.read_json(kept).get("sha256"), dataset)


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
