"""Several devices and processes: the same steps, one writer, and an end for all."""

import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked
from test_experiments import arguments, command, lines_of, tiny

from experiments import cli, processes, run_files, runs, trainer
from experiments.processes import Group
from vhp_jax import devices, evaluation, training
from vhp_jax.checkpoints import Checkpointer
from vhp_jax.types import Params

pytestmark = pytest.mark.optax
# Wide and long enough for layouts to differ, had they any reason to.
STEPS = 100
EVERY = 10  # lines and checkpoints
SETTINGS = {
    "mesh": "0",
    "model.hidden": "32,32",
    "model.dropout": "0.1",
    "train.batch_size": "16",
    "data.num_train": "96",
    "train.num_steps": str(STEPS),
    "train.log_every": str(EVERY),
    "train.eval_every": "50",
    "train.checkpoint_every": str(EVERY),
    "train.snapshot_steps": str(STEPS),
}
WAIT = 600  # seconds for what takes ten where nothing else runs
END_SECONDS = 15.0  # after a kill: docs/devices.md says when the others are gone


def params_of(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(runs.restore(workdir).params)]


def assert_close(seen: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    differences = [np.abs(a - b).max() for a, b in zip(seen, wanted, strict=True)]
    assert max(differences) <= 1e-5


# --- Meshes --------------------------------------------------------------------------


def test_a_mesh_of_too_many_devices_is_refused(tmp_path):
    done = command("train", f"--workdir={tmp_path}", "--config.mesh=16")
    assert done.code == 1
    wanted = "error: config.mesh: seen 16, wanted 0 (all) to 1: there are no more"
    assert done.err.startswith(wanted)
    assert done.err.count("\n") == 1


def test_a_batch_that_does_not_divide_is_refused():
    eight = jax.sharding.AbstractMesh((8,), (devices.BATCH,))
    devices.check_batch(eight, 64)
    with pytest.raises(
        ValueError, match=r"^a batch of 100 .* 8 devices; 96 or 104 can"
    ):
        devices.check_batch(eight, 100)
    with pytest.raises(ValueError, match=r"a batch of 5 .* 8 devices; 8 can$"):
        devices.check_batch(eight, 5)


def test_the_layout_is_no_part_of_a_run(tmp_path):
    with run_files.WorkDir(tmp_path) as directory:
        directory.claim(tiny(mesh="8"), None)
        directory.claim(tiny(mesh="0"), None)
        with pytest.raises(cli.UserError, match="num_seeds is 1 there and 2 here"):
            directory.claim(tiny(mesh="8", num_seeds="2"), None)


def eight_devices() -> None:
    """Prints how far each loop's parameters end from those of one device."""
    assert jax.device_count() == 8

    def trained(kind, size, **overrides):
        run = runs.Run(tiny(**SETTINGS | overrides))
        experiment, batch = run.experiment, run.config.train.batch_size
        step = training.make_train_step(
            experiment.training_objective,
            experiment.beta_scheme,
            experiment.optimizers,
        )
        mesh = devices.make_mesh(size) if size else None
        state, data = run.initial_state(), run.training_data(mesh)
        if mesh is not None:
            state = devices.replicate(state, mesh)
        if kind == "scanned":
            loop = training.make_train_loop(step, batch, None, mesh)
            loop = training.jit_train_loop(loop, len(run.seeds), mesh)
        else:
            make = getattr(training, f"make_{kind}_loop")
            loop = make(step, batch, None, mesh)
        if mesh is not None and kind == "scanned" and len(run.seeds) == 1:
            text = loop.lower(state, data, num_steps=STEPS).compile().as_text()
            pattern = r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[(-]"
            found = re.findall(pattern, text)
            assert sorted(found) == ["all-reduce", "all-reduce"], found
        state, _ = loop(state, data, num_steps=STEPS)
        if mesh is not None:
            leaves = jax.tree.leaves(state)
            assert all(leaf.sharding.is_fully_replicated for leaf in leaves)
            state = devices.local(state)
        return run, state.params

    run, wanted = trained("scanned", 0)
    started = run.initial_state().params
    for kind in ("scanned", "streamed", "stepwise"):
        streamed = {"train.stream_data": str(kind == "streamed")}
        _, seen = trained(kind, 8, **streamed)
        assert farthest(seen, started) > 1e-3
        print(kind, farthest(seen, wanted))
    _, several = trained("scanned", 8, num_seeds="2")
    print("seeds", farthest(jax.tree.map(lambda leaf: leaf[0], several), wanted))

    x = run.experiment.dataset.test.examples[:13]
    given = run.experiment.model, wanted, jax.random.key(0), x, 50
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.BATCH,))
    on_one = evaluation.log_likelihood(*given, mesh=one).log_likelihood
    on_all = evaluation.log_likelihood(*given).log_likelihood
    assert np.ptp(on_one) > 1.0
    print("likelihood", np.abs(on_one - on_all).max())


def farthest(some: Params, others: Params) -> float:
    pairs = zip(*map(jax.tree.leaves, (some, others)), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def on_eight_devices(function, folder: Path, monkeypatch) -> list[list[str]]:
    """Runs it in a process of its own; returns the words it printed, by lines."""
    # On busy cores eight threads may take minutes to meet.
    wait = f"--xla_cpu_collective_call_terminate_timeout_seconds={WAIT}"
    own = os.environ.get("XLA_FLAGS", "")
    eight = "--xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", f"{own} {eight} {wait}")
    out, err = folder / "out", folder / "err"
    with Forked(out, err, function) as process:
        assert process.wait(WAIT) == 0, err.read_text()
    return [line.split() for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one(tmp_path, monkeypatch):
    """Each loop, and the likelihood; the gradients are all that the devices share."""
    lines = on_eight_devices(eight_devices, tmp_path, monkeypatch)
    assert len(lines) == 5
    for name, difference in lines:
        assert float(difference) <= (1e-4 if name == "likelihood" else 1e-5), lines


def whole_networks() -> None:
    """Prints how far ten steps in float64 move them, and one device from eight."""
    jax.config.update("jax_enable_x64", True)
    run = runs.Run(cli.load_config("pendulum"))
    experiment, batch = run.experiment, 64
    step = training.make_train_step(
        experiment.training_objective,
        experiment.beta_scheme,
        experiment.optimizers,
    )

    def double(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float64) if floating else leaf

    data = np.asarray(experiment.dataset.train.examples, np.float64)
    started = run.initial_state().params
    ended = []
    for size in (1, 8):
        mesh = devices.make_mesh(size)
        loop = training.make_train_loop(step, batch, experiment.draw_batch, mesh)
        loop = training.jit_train_loop(loop, 1, mesh)
        state = devices.replicate(jax.tree.map(double, run.initial_state()), mesh)
        state, _ = loop(state, devices.replicate_data(data, mesh), num_steps=10)
        ended.append(devices.local(state).params)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(ended))
    print(farthest(ended[0], started), farthest(*ended))


@pytest.mark.slow
def test_whole_networks_take_the_same_steps(tmp_path, monkeypatch):
    """In float64: rounding in float32 moves weights that the loss hardly feels."""
    ((moved, apart),) = on_eight_devices(whole_networks, tmp_path, monkeypatch)
    assert float(moved) > 1e-4
    assert float(apart) <= 1e-10


# --- Flags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--process_id=0"], "--process_id wants --coordinator_address beside it"),
        (
            ["--coordinator_address=localhost", "--num_processes=2", "--process_id=0"],
            "--coordinator_address wants HOST:PORT of process 0, got 'localhost'",
        ),
        (
            ["--coordinator_address=a:1", "--num_processes=0", "--process_id=0"],
            "--num_processes must be >= 1, got 0",
        ),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id must be from 0 to 1 (--num_processes=2), got 2",
        ),
    ],
)
def test_flags_that_do_not_fit_together(words, line, tmp_path):
    for name in ("train", "evaluate"):
        done = command(name, f"--workdir={tmp_path / 'run'}", *words)
        assert (done.code, done.err) == (2, f"error: {line}\n")
    assert not (tmp_path / "run").exists()


# --- What processes say to each other ------------------------------------------------


@pytest.fixture
def pair(monkeypatch):
    """A leader and a follower in this process; what would end it is noted."""
    ended = []
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.8)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(processes, "LEAVE_SECONDS", 0.4)
    monkeypatch.setattr(processes, "_exit", ended.append)
    leader, follower = Group(0, 2), Group(1, 2)
    door = leader.listen()
    stranger = socket.create_connection(("localhost", door["port"]))
    stranger.sendall(b'{"token": "guessed", "index": 1}\n')
    admitting = threading.Thread(target=leader.admit)
    admitting.start()
    follower.connect(["localhost"], door)
    admitting.join(10)
    yield leader, follower, ended
    stranger.close()
    peers = [*leader._peers.values(), *follower._peers.values()]
    for group in (leader, follower):
        group._closed.set()
    for peer in peers:
        peer.close()  # the other's listener ends
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "_listen_to" in thread.name:
            thread.join(10)
    for peer in peers:
        peer.drop()


def test_orders_words_and_a_good_end(pair):
    leader, follower, ended = pair
    follower.tell(config="c")
    assert leader.gather() == {1: {"config": "c"}}
    with leader:
        leader.tell(steps=3)
    with follower:
        assert list(follower.orders(cli.StopSignal())) == [{"steps": 3}]
    time.sleep(0.5)
    assert ended == []


def test_the_leader_leaves_last(pair, monkeypatch):
    monkeypatch.setattr(processes, "LEAVE_SECONDS", 60.0)
    leader, follower, ended = pair
    left = threading.Thread(target=leader.__exit__, args=(None, None, None))
    left.start()
    with follower:
        assert list(follower.orders(cli.StopSignal())) == []
    left.join(0.5)
    assert left.is_alive()  # the follower's process is still there
    for peer in follower._peers.values():
        peer.close()  # as the end of the process does
    left.join(10.0)
    assert not left.is_alive()
    assert ended == []


def test_a_signal_to_a_follower_stops_all(pair):
    leader, follower, _ = pair
    stop = cli.StopSignal()
    stop.signum = signal.SIGTERM
    orders = follower.orders(stop)
    leader.tell(steps=1)
    assert next(orders) == {"steps": 1}
    deadline = time.monotonic() + 10
    while leader.signum is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert leader.signum == signal.SIGTERM
    with pytest.raises(cli.InterruptedRunError), leader:
        raise cli.InterruptedRunError(leader.signum)
    with pytest.raises(cli.InterruptedRunError) as stopped:
        next(orders)
    assert stopped.value.signum == signal.SIGTERM


def test_followers_are_told_the_leaders_error(pair):
    leader, follower, _ = pair
    with pytest.raises(cli.UserError), leader:
        raise cli.UserError("the disk is full")
    with pytest.raises(cli.UserError, match=r"^process 0 ended: the disk is full$"):
        list(follower.orders(cli.StopSignal()))


def wait_for(ended: list[int]) -> None:
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_follower_that_fails_ends_the_leader(pair, capfd):
    _, follower, ended = pair
    with pytest.raises(cli.UserError), follower:
        raise cli.UserError("no such file")
    wait_for(ended)
    assert ended == [1]
    line = f"error: process 1 ended: no such file; {processes.RESUMABLE}\n"
    assert capfd.readouterr().err == line


def test_silence_ends_a_process(pair, capfd):
    """Heart beats keep it alive; without them it waits so long, and no longer."""
    _, follower, ended = pair
    time.sleep(1.5)
    assert ended == []
    follower._closed.set()  # its heart stops, its socket stays open
    start = time.monotonic()
    wait_for(ended)
    assert ended == [1]
    assert 0.3 < time.monotonic() - start < 5.0
    assert "process 1 was silent for 0.8 s" in capfd.readouterr().err


# --- Real processes ------------------------------------------------------------------


class Two:
    """Two processes of one device each, over loopback; only the first may write.

    Forked, or started as users do, which is slower: a fork ends without the last steps
    of an interpreter.
    """

    def __init__(self, folder: Path, name: str, *own_words: str, fork: bool = True):
        self.folder, self.workdir = folder, folder / "run"
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        shared = f"--coordinator_address=localhost:{port}", "--num_processes=2"
        workdirs = self.workdir, folder / "not written"
        self.processes = []
        for index, workdir in enumerate(workdirs):
            files = folder / f"out{index}", folder / f"err{index}"
            own = f"--process_id={index}", f"--workdir={workdir}"
            words = f"experiments.{name}", *shared, *own_words, *own
            if fork:
                process = Forked(*files, forked.run_module, *words)
            else:
                line = [sys.executable, "-m", *words]
                with files[0].open("w") as out, files[1].open("w") as err:
                    process = Popen(line, cwd=forked.ROOT, stdout=out, stderr=err)
            self.processes.append(process)

    @classmethod
    def train(cls, folder: Path, **overrides: str) -> "Two":
        return cls(folder, "train", *arguments(**SETTINGS | overrides))

    def __enter__(self) -> "Two":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index: int) -> tuple[str, str]:
        """Output of a process and its errors, without the lines of XLA."""
        out, err = ((self.folder / f"{n}{index}").read_text() for n in ("out", "err"))
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        return out, "\n".join(lines)

    def codes(self) -> list[int]:
        return [process.wait(WAIT) for process in self.processes]

    def wait_for_checkpoint(self, step: int) -> None:
        deadline = time.monotonic() + WAIT
        checkpoints = Checkpointer(self.workdir / "checkpoints")
        while max(checkpoints.steps(), default=0) < step:
            alive = [process.poll() is None for process in self.processes]
            assert all(alive), [self.said(index) for index in (0, 1)]
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process with one device, only to be read."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    trainer.train(tiny(**SETTINGS), workdir)
    return workdir


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    """With streamed data; `test_layouts_go_on_from_each_other` has it resident."""
    with Two.train(tmp_path, train__stream_data="True") as two:
        assert two.codes() == [0, 0], [two.said(index) for index in (0, 1)]
    assert not (tmp_path / "not written").exists()
    assert_close(params_of(two.workdir), params_of(alone))
    summary = json.loads((two.workdir / "summary.json").read_text())
    assert (summary["num_devices"], summary["num_processes"]) == (2, 2)
    steps = [line["step"] for line in lines_of(two.workdir)]
    assert steps == [line["step"] for line in lines_of(alone)]


@pytest.mark.slow
def test_two_processes_find_the_likelihood_of_one(alone, tmp_path):
    """Of 13 examples: the two do not share them out evenly."""
    words = ["--metrics=nll", "--num_samples=50", "--num_examples=13"]
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        shutil.copytree(alone, folder / "run")
        if name == "one":
            done = command("evaluate", f"--workdir={folder / 'run'}", *words)
            assert (done.code, done.err) == (0, "")
        else:
            with Two(folder, "evaluate", *words, fork=False) as two:
                assert two.codes() == [0, 0], [two.said(index) for index in (0, 1)]
        assert not (folder / "not written").exists()
        with np.load(folder / "run" / "eval" / "nll.npz") as file:
            found.append(file["log_likelihood"])
    assert np.ptp(found[0]) > 1.0
    np.testing.assert_allclose(*found, rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_layouts_go_on_from_each_other(alone, tmp_path):
    """One device, then two processes, of which the second is stopped, then one."""
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        steps_taken = trainer._Trainer._advance

        def advance(self, length):
            metrics = steps_taken(self, length)
            if self.step == 2 * EVERY:
                os.kill(os.getpid(), signal.SIGTERM)
            return metrics

        patch.setattr(trainer._Trainer, "_advance", advance)
        with pytest.raises(cli.InterruptedRunError):
            trainer.train(tiny(**SETTINGS), workdir)
    first = runs.restore(workdir).step
    assert 0 < first < STEPS
    with Two.train(tmp_path) as two:
        two.wait_for_checkpoint(first + EVERY)
        two.processes[1].send_signal(signal.SIGTERM)
        assert two.codes() == [143, 143], [two.said(index) for index in (0, 1)]
        assert f"resuming at step {first} of {STEPS}" in two.said(0)[0]
        stopped = re.search(r"stopped at step (\d+), checkpoint", two.said(0)[0])
    second = runs.restore(workdir).step
    assert first < second == int(stopped[1]) < STEPS
    trainer.train(tiny(**SETTINGS), workdir)
    assert_close(params_of(workdir), params_of(alone))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(victim, tmp_path):
    # Long enough that it cannot be over before the kill.
    long = {"train.num_steps": "20000", "train.snapshot_steps": "20000"}
    with Two.train(tmp_path, **long) as two:
        two.wait_for_checkpoint(2 * EVERY)
        two.processes[victim].kill()
        start = time.monotonic()
        assert two.processes[1 - victim].wait(WAIT) == 1
        assert time.monotonic() - start < END_SECONDS
        line = f"error: process {victim} is gone: killed, or its host is down; "
        assert two.said(1 - victim)[1] == line + processes.RESUMABLE
    assert runs.restore(two.workdir).step >= 2 * EVERY


@pytest.mark.slow
def test_an_error_of_one_is_told_by_both(tmp_path):
    """Of the leader, which alone knows that the directory is another run's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with Two.train(tmp_path) as two:
        assert two.codes() == [1, 1]
        said = [two.said(index)[1] for index in (0, 1)]
    assert "holds a run of another config" in said[0]
    assert said[1] == said[0].replace("error: ", "error: process 0 ended: ")
