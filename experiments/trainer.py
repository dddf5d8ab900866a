"""Training in a work directory, to the end, a deadline or a signal, and on from there.

The directory is the run: whatever kills the process, the newest whole checkpoint and
the lines of metrics.jsonl up to it are enough to go on to the same parameters.
"""

import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import cli, files, provenance, run_files, runs
from experiments.processes import ALONE, Group
from experiments.run_files import WorkDir
from experiments.runs import Run
from vhp_jax import devices, evaluation, kappa, plotting, training
from vhp_jax.checkpoints import Checkpointer, CheckpointError
from vhp_jax.training import StepMetrics, TrainState
from vhp_jax.types import Params, PyTree

LINE_SECONDS = 5.0  # plain progress lines are at least this far apart

Draw = Callable[[Run, WorkDir, Params], Iterable[tuple[str, Figure]]]


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
        runs.check_digest(directory.path, dataset)
        print(
            runs.banner(f"{dataset.name} ({dataset.source})", directory.path),
            flush=True,
        )
        done = directory.path / "summary.json"
        if done.exists() and (summary := files.read_json(done)).get("completed"):
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
        runs.check_statistics(self.directory.path, self.run_, state)
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
            earlier = files.read_json(path)["starts"]
        starts = [start for start in earlier if start["step"] < self.step]
        if starts and self.step >= self.run_.config.train.num_steps:
            return starts  # no step is left to be taken
        starts.append(
            {
                "step": self.step,
                "git_revision": provenance.git_revision(),
                "versions": provenance.versions(),
                "device": str(jax.devices()[0].device_kind),
                "hardware": provenance.hardware(),
                "num_devices": 1 if self.mesh is None else self.mesh.size,
                "num_processes": self.group.size,
            }
        )
        files.write_json(path, {"starts": starts})
        return starts

    def _best_so_far(self) -> tuple[int, float]:
        """Step and value of the best validation; (0, -inf) before the first.

        What is not in best/ as it should be is written from this step's state, or will
        be computed again, or is lost; then the best is sought anew.
        """
        if not self.run_.config.train.patience:
            return 0, -math.inf
        bounds = self.directory.validation_bounds()
        step = max(bounds, key=lambda step: (bounds[step], -step), default=0)
        folder = self.directory.path / run_files.BEST
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
        with Checkpointer(self.directory.path / run_files.BEST, max_to_keep=1) as best:
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
        params, _ = runs.evaluated(path, config, self.step, self.state)
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
        files.write_json(self.directory.path / "summary.json", summary)
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
