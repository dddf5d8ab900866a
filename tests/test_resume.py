"""Stopped in any way and continued, a run ends bit for bit where it would have."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import chex
import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked
from test_experiments import arguments, command, lines_of, read, tiny

from experiments import cli, run_files, runs, trainer
from vhp_jax.checkpoints import Checkpointer

# Whole runs, again and again: the fast suite has `test_training` for the same.
pytestmark = [pytest.mark.optax, pytest.mark.slow]
pytestmark += [pytest.mark.usefixtures("undrawn")]

# Large steps, so that the initial phase ends within the run; a checkpoint now and then.
SHORT = {
    "beta.alpha": "0.5",
    "beta.kappa": "0.14",
    "model.start": "random",
    "train.learning_rate": "1e-2",
    "train.prior_learning_rate": "1e-2",
    "train.num_steps": "12",
    "train.milestones": "6",
    "train.eval_every": "4",
    "train.checkpoint_every": "4",
    "train.snapshot_steps": "4,12",
}
# A checkpoint at each step: a process spends most of its time in writing them.
LONG = SHORT | {
    "train.num_steps": "150",
    "train.eval_every": "30",
    "train.checkpoint_every": "1",
    "train.snapshot_steps": "30,150",
}
# What may differ: the clock, and the commit if one is made while the test runs.
TIMES = ("wall_seconds", "examples_per_second", "git_revision", "starts")


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """An undisturbed run, only to be read."""
    workdir = tmp_path_factory.mktemp("short")
    trainer.train(tiny(**SHORT), workdir)
    return workdir


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """An undisturbed run, only to be read."""
    workdir = tmp_path_factory.mktemp("long")
    trainer.train(tiny(**LONG), workdir)
    return workdir


def without_times(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in TIMES}


def state_of(workdir: Path):
    """The newest state, keys as integers."""

    def convert(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(convert, runs.restore(workdir).state)


def assert_same_run(seen: Path, wanted: Path) -> None:
    """The same state bit for bit, and the same files but for the clock."""
    chex.assert_trees_all_equal(state_of(seen), state_of(wanted))
    lines = [[without_times(line) for line in lines_of(p)] for p in (seen, wanted)]
    assert lines[0] == lines[1]
    summaries = [without_times(read(path / "summary.json")) for path in (seen, wanted)]
    for summary in summaries:
        summary["final_metrics"] = [*map(without_times, summary["final_metrics"])]
    assert summaries[0] == summaries[1]
    snapshots = [run_files.WorkDir(path).snapshots() for path in (seen, wanted)]
    chex.assert_trees_all_equal(*snapshots)
    assert not list((seen / "checkpoints").glob("*.tmp"))


def stop_after(step: int, config, workdir: Path, monkeypatch) -> None:
    """Trains until a SIGTERM right after the line of `step`."""
    log = trainer._Trainer._log

    def log_and_signal(self, *arguments):
        lines = log(self, *arguments)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return lines

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_log", log_and_signal)
        with pytest.raises(cli.InterruptedRunError) as stopped:
            trainer.train(config, workdir)
    assert stopped.value.signum == signal.SIGTERM
    assert runs.restore(workdir).step == step
    assert not (workdir / "summary.json").exists()


def phase_end(workdir: Path) -> int:
    """The first step of the main phase."""
    lines = [line for line in lines_of(workdir) if "split" not in line]
    phases = [line["initial_phase"] for line in lines]
    assert phases == sorted(phases, reverse=True)
    return lines[phases.index(False)]["step"]


def test_the_runs_cross_the_phase_switch(short):
    assert 3 <= phase_end(short) <= 10


@pytest.mark.parametrize("offset", [-1, 0])
def test_stopped_at_the_phase_switch_equals_uninterrupted(
    offset, short, tmp_path, monkeypatch
):
    config = tiny(**SHORT)
    cut = phase_end(short) + offset
    stop_after(cut, config, tmp_path, monkeypatch)
    assert bool(state_of(tmp_path).beta_state.initial_phase) == (offset < 0)
    trainer.train(config, tmp_path)
    assert_same_run(tmp_path, short)


def test_stopped_again_and_again_equals_uninterrupted(short, tmp_path, monkeypatch):
    config, end = tiny(**SHORT), phase_end(short)
    cuts = sorted({1, 2, end - 2, end - 1, end, end + 1, 11})
    for cut in cuts:
        stop_after(cut, config, tmp_path, monkeypatch)
    trainer.train(config, tmp_path)
    assert_same_run(tmp_path, short)
    seconds = [line["wall_seconds"] for line in lines_of(tmp_path) if "loss" in line]
    assert seconds == sorted(seconds)  # earlier parts are counted


@pytest.mark.parametrize("scheme", ["rewo_alternative", "geco", "warm_up"])
def test_resume_carries_the_state_of_every_scheme(scheme, tmp_path, monkeypatch):
    config = tiny(**SHORT | {"beta.scheme": scheme})
    trainer.train(config, tmp_path / "whole")
    stop_after(7, config, tmp_path / "parts", monkeypatch)
    trainer.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_resume_of_several_seeds_at_once(tmp_path, monkeypatch):
    config = tiny(**SHORT | {"num_seeds": "2"})
    trainer.train(config, tmp_path / "whole")
    stop_after(7, config, tmp_path / "parts", monkeypatch)
    trainer.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_crash_between_line_and_checkpoint_leaves_no_line_twice(
    short, tmp_path, monkeypatch
):
    """The lines after the newest checkpoint are computed, and written, again."""
    config = tiny(**SHORT)

    def crash(self, step, state):
        if step == 8:
            raise RuntimeError("power cut")
        save(self, step, state)

    save = Checkpointer.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.train(config, tmp_path)
    assert runs.restore(tmp_path).step == 4
    assert lines_of(tmp_path)[-1]["step"] == 8
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # and the last line cut off
    trainer.train(config, tmp_path)
    assert_same_run(tmp_path, short)


def test_crash_before_the_first_checkpoint_starts_again(short, tmp_path):
    """All that is there is a config and some lines."""
    lines = [json.dumps(line) for line in lines_of(short)[:3]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "config.json").write_bytes((short / "config.json").read_bytes())
    trainer.train(tiny(**SHORT), tmp_path)
    assert_same_run(tmp_path, short)


def test_signal_handlers_are_put_back(tmp_path, monkeypatch):
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(signum) for signum in handled]
    stop_after(1, tiny(**SHORT), tmp_path, monkeypatch)
    assert [signal.getsignal(signum) for signum in handled] == before


def test_second_signal_does_not_wait():
    with cli.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        assert stop.signum == signal.SIGINT
        with pytest.raises(cli.InterruptedRunError):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_the_data_are_made_is_not_kept_waiting(tmp_path, monkeypatch):
    went_on = []

    def build(config):
        os.kill(os.getpid(), signal.SIGTERM)
        went_on.append(config)

    monkeypatch.setattr(trainer, "Run", build)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = command("train", f"--workdir={tmp_path}", *arguments(**SHORT))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.code, done.err, went_on) == (143, "", [])


# --- Processes of their own ----------------------------------------------------------


class Process:
    """`experiments.train` in a process of its own; what it prints goes to files."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.out, self.err = workdir.with_suffix(".out"), workdir.with_suffix(".err")
        words = "experiments.train", f"--workdir={workdir}", *arguments(**LONG)
        self.process = Forked(self.out, self.err, forked.run_module, *words)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.__exit__(*exception)

    def printed(self) -> str:
        return self.out.read_text()

    def complained(self) -> str:
        return self.err.read_text()

    def newest(self) -> int:
        return max(Checkpointer(self.workdir / "checkpoints").steps(), default=0)

    def wait_until(self, condition, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.complained()
            assert time.monotonic() < deadline, self.printed() + self.complained()
            time.sleep(0.005)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signals_checkpoint_and_exit(signum, code, long, tmp_path):
    workdir = tmp_path / "run"
    with Process(workdir) as process:
        process.wait_until(lambda: process.newest() >= 3)
        refused = command("train", f"--workdir={workdir}", *arguments(**LONG))
        assert refused.code == 1
        assert f"held by a live process (pid {process.process.pid})" in refused.err
        process.process.send_signal(signum)
        assert process.process.wait(120) == code
        assert process.complained() == ""
        stopped = re.search(r"stopped at step (\d+), checkpoint", process.printed())
    assert runs.restore(workdir).step == int(stopped[1]) < 150
    trainer.train(tiny(**LONG), workdir)
    assert_same_run(workdir, long)


def test_killed_at_20_random_moments(long, tmp_path):
    """SIGKILL: 16 times around the writing of a checkpoint, 4 times while starting."""
    workdir, torn, number = tmp_path / "run", 0, 0
    generator = random.Random(0)
    checkpoints = workdir / "checkpoints"
    for number in range(20):
        with Process(workdir) as process:
            if number % 5 == 4:
                process.wait_until(lambda p=process: "device:" in p.printed())
                time.sleep(generator.uniform(0.0, 1.5))
            else:
                wanted = process.newest() + generator.randint(1, 5)
                process.wait_until(lambda p=process, w=wanted: p.newest() >= w)
                time.sleep(generator.uniform(0.0, 0.03))
            assert process.process.poll() is None, process.complained()
            process.process.kill()
            assert process.process.wait() == -signal.SIGKILL
            torn += bool(list(checkpoints.glob("*.tmp")))
    assert not (workdir / "summary.json").exists()
    assert torn >= 3  # some of them did hit a checkpoint in the making
    with Process(workdir) as process:
        assert process.process.wait(300) == 0, process.complained()
        assert process.complained() == ""
    assert_same_run(workdir, long)


def test_checkpoints_written_here_are_finite(short):
    chex.assert_tree_all_finite(jax.tree.map(np.asarray, state_of(short).params))
