"""Every error of a user gets one line that says what is wrong; nothing is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import forked
import jax
import numpy as np
import pytest
from test_experiments import (
    Done,
    arguments,
    command,
    lines_of,
    read,
    tiny,
)

from experiments import build, cli, files, run_files, runs, trainer
from vhp_jax.checkpoints import Checkpointer, CheckpointError, CheckpointWarning

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("undrawn")]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run to work on."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unfinished(workdir) -> Path:
    """The run as it was at step 2."""
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    lines = [json.dumps(line) for line in lines_of(workdir) if line["step"] <= 2]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return workdir


def assert_one_line(done: Done, code: int, *parts: str) -> None:
    """One line on stderr with all parts in it, no traceback anywhere."""
    assert done.code == code, done
    assert done.err.startswith("error: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err + done.out


def run_binary(name: str, *words: str) -> Done:
    """A command in a process of its own."""
    return Done(*forked.run(f"experiments.{name}", *words))


def params_of(workdir: Path):
    return runs.restore(workdir).state.params


# --- The command line: exit code 2 ---------------------------------------------------

USAGE_ERRORS = {
    "config": (["--config=pendulun"], ["pendulun", "did you mean pendulum"]),
    "key": (
        ["--config.train.learning_rat=1"],
        ["learning_rat", "did you mean train.learning_rate"],
    ),
    "group": (["--config.trian.batch_size=1"], ["did you mean train.batch_size"]),
    "section": (["--config.model=1"], ["no key 'model'"]),
    "no value": (["--config.seed"], ["--config.seed=VALUE"]),
    "not an int": (["--config.seed=1.5"], ["config.seed", "int", "'1.5'"]),
    "not a float": (["--config.beta.nu=fast"], ["config.beta.nu", "float", "'fast'"]),
    "not a number": (["--config.beta.tau=maybe"], ["config.beta.tau", "float"]),
    "not a tuple": (["--config.model.hidden=8,x"], ["config.model.hidden", "tuple"]),
    "not an empty tuple": (
        ["--config.train.milestones=8,x"],
        ["train.milestones", "tuple such as (1000, 2000), got '8,x'"],
    ),
    "flag": (["--worxdir=x"], ["worxdir", "workdir"]),
    "argument": (["pendulum"], ["unexpected argument 'pendulum'"]),
    "minutes": (["--max_minutes=0"], ["--max_minutes must be positive"]),
    "minutes type": (["--max_minutes=soon"], ["max_minutes", "soon"]),
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_usage_errors_exit_2_with_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, parts = USAGE_ERRORS[case]
    assert_one_line(command("train", *words), 2, *parts)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.slow
def test_exit_codes_of_the_real_process():
    command = [sys.executable, "-m", "experiments.train"]
    command += ["--config.train.learning_rat=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    done = Done(done.returncode, done.stdout, done.stderr)
    assert_one_line(done, 2, "did you mean train.learning_rate")
    assert_one_line(run_binary("train", "--config.train.batch_size=0"), 1, "batch_size")
    assert_one_line(run_binary("sample"), 2, "--workdir=DIR is missing")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "interpolate", "reproduce"])
def test_help_explains_every_flag(name):
    done = run_binary(name, "--help")
    assert (done.code, done.err) == (0, "")
    source = (ROOT / "experiments" / f"{name}.py").read_text()
    for flag in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source):
        assert f"--{flag}: " in done.out
    if name == "train":
        for key, _ in cli.flatten(cli.load_config("pendulum")):
            assert f"--config.{key}=" in done.out


@pytest.mark.parametrize("words", [["--config=cmu_vhp"], ["--config", "cmu_vhp"]])
def test_help_is_of_the_config_that_is_named(words):
    done = run_binary("train", "--help", *words)
    assert (done.code, done.err) == (0, "")
    assert "--config.data.frame_rate=" in done.out


OTHER_USAGE_ERRORS = {
    "evaluate": [
        ([], "--workdir=DIR is missing"),
        (["--workdir=x", "--metrics=fid"], "no metric is called 'fid'"),
        (["--workdir=x", "--num_samples=0"], "--num_samples must be >= 1"),
        (["--workdir=x", "--split=dev"], "split"),
    ],
    "interpolate": [([], "--workdir=DIR is missing")],
    "sample": [
        ([], "--workdir=DIR is missing"),
        (["--workdir=x", "--num_samples=0"], "--num_samples must be >= 1"),
    ],
    "reproduce": [
        ([], "--target must be one of table1"),
        (["--target=fig99"], "'fig99'"),
        (["--target=fig1", "--num_seeds=0"], "--num_seeds must be >= 1"),
        (["--target=fig1", "--budget_minutes=0"], "--budget_minutes must be positive"),
        (["--target=table1", "--rows=VHP + SGD"], "no row 'VHP + SGD'"),
    ],
}


@pytest.mark.parametrize("name", OTHER_USAGE_ERRORS)
def test_other_commands_refuse_bad_flags(name):
    for words, part in OTHER_USAGE_ERRORS[name]:
        assert_one_line(command(name, *words), 2, part)


# --- Values of the config ------------------------------------------------------------

BAD_VALUES = [
    ("num_seeds", "0"),
    ("seed", "-1"),
    ("data.name", "mnits"),
    ("data.num_train", "0"),
    ("data.num_test", "-1"),
    ("data.noise", "-0.1"),
    ("data.amplitude", "2"),
    ("data.rod_length", "0"),
    ("model.latent_dim", "0"),
    ("model.inner_dim", "0"),
    ("model.hidden", "8,0"),
    ("model.hidden", "7"),
    ("model.prior", "flow"),
    ("model.initialisation", "xavier"),
    ("model.start", "warm"),
    ("model.posterior_scale_init", "0"),
    ("model.decoder_scale_init", "-1"),
    ("objective.num_samples", "0"),
    ("objective.name", "elbo"),
    ("objective.constraint", "bce"),
    ("beta.scheme", "annealing"),
    ("beta.kappa", "0"),
    ("beta.nu", "-1"),
    ("beta.tau", "nan"),
    ("beta.alpha", "1"),
    ("beta.init", "0"),
    ("beta.value", "0"),
    ("beta.warm_up_epochs", "inf"),
    ("beta.max_initial_steps", "-1"),
    ("train.num_steps", "0"),
    ("train.batch_size", "0"),
    ("train.learning_rate", "0"),
    ("train.prior_learning_rate", "-1"),
    ("train.scale_learning_rate", "inf"),
    ("train.log_every", "0"),
    ("train.eval_every", "0"),
    ("train.checkpoint_every", "0"),
]
# The library's argument where it is not called as the key.
CALLED = {"beta.init": "beta_init"}


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_bad_values_are_refused_by_name(key, value, tmp_path):
    overrides = {key: value}
    if (key, value) == ("model.hidden", "7"):  # one that wants pairs of units
        overrides["model.initialisation"] = "looks_linear"
    words = [f"--workdir={tmp_path / 'run'}", *arguments(**overrides)]
    done = command("train", *words)
    assert_one_line(done, 1, CALLED.get(key, key.rsplit(".", 1)[-1]))
    seen = value.split(",")[-1].lstrip("-")
    assert re.search(rf"\b{re.escape(seen)}\b", done.err)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_choices_are_listed():
    for key, names in {
        "model.prior": ["mixture", "standard_normal", "vamp", "vhp"],
        "model.network": ["gated_conv", "gated_mlp", "relu_mlp"],
        "objective.name": ["iwae", "vhp"],
        "objective.constraint": ["mse_mean", "nll_mean"],
        "beta.scheme": ["constant", "geco", "rewo", "rewo_alternative", "warm_up"],
        "data.name": [
            "fashion_mnist",
            "freyfaces",
            "mnist",
            "omniglot",
            "pendulum",
            "static_mnist",
        ],
    }.items():
        with pytest.raises(cli.UserError, match=", ".join(names)):
            build.build(tiny(**{key: "nothing"}))


INTERVALS = ["num_steps", "eval_every", "checkpoint_every", "snapshot_steps"]


@pytest.mark.parametrize("key", INTERVALS)
def test_intervals_must_fit(key, tmp_path):
    overrides = {f"train.{name}": "3" for name in ["log_every", *INTERVALS]}
    words = arguments(**overrides | {f"train.{key}": "4"})
    done = command("train", f"--workdir={tmp_path}", *words)
    assert_one_line(done, 1, key, "must be a multiple of log_every (3), got 4")


def test_batch_positions_must_fit_int32(tmp_path):
    words = arguments(**{"train.num_steps": str(2**28)})
    done = command("train", f"--workdir={tmp_path}", *words)
    assert_one_line(done, 1, "must stay below 2^31")


# --- The work directory --------------------------------------------------------------


def test_directory_of_another_config_is_refused(unfinished):
    before = read(unfinished / "config.json")
    words = arguments(**{"beta.nu": "7.5"})
    done = command("train", f"--workdir={unfinished}", *words)
    assert_one_line(done, 1, str(unfinished), "beta.nu is 5.0 there and 7.5 here")
    assert read(unfinished / "config.json") == before
    assert (unfinished / "checkpoints" / "2").is_dir()


def test_directory_held_by_a_live_process_is_refused(unfinished):
    with run_files.WorkDir(unfinished):
        done = command("train", f"--workdir={unfinished}", *arguments())
        assert_one_line(done, 1, "held by a live process", f"pid {os.getpid()}")
    assert (unfinished / "checkpoints" / "2").is_dir()
    with run_files.WorkDir(unfinished):  # and free again
        pass


def test_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        done = command("train", f"--workdir={path}", *arguments())
        assert_one_line(done, 1, str(path), "not a directory")
    assert (tmp_path / "file").read_text() == "mine"


def test_directory_that_cannot_be_made_is_refused():
    done = command("train", "--workdir=/proc/nowhere/run", *arguments())
    assert_one_line(done, 1, "/proc/nowhere")


def test_checkpoints_without_a_config_are_left_alone(unfinished):
    (unfinished / "config.json").unlink()
    done = command("train", f"--workdir={unfinished}", *arguments())
    assert_one_line(done, 1, "config.json is missing beside checkpoints/")
    assert (unfinished / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("name", ["evaluate", "interpolate", "sample"])
def test_other_commands_want_a_run(name, tmp_path, unfinished):
    done = command(name, f"--workdir={tmp_path / 'nowhere'}")
    assert_one_line(done, 1, str(tmp_path / "nowhere"), "config.json does not exist")
    assert not (tmp_path / "nowhere").exists()
    shutil.rmtree(unfinished / "checkpoints")
    done = command(name, f"--workdir={unfinished}")
    assert_one_line(done, 1, f"{unfinished} holds no checkpoint yet")
    (unfinished / "config.json").write_text('{"seed": 1')
    done = command(name, f"--workdir={unfinished}")
    assert_one_line(done, 1, "config.json is not JSON")


def test_config_of_another_version_is_named(workdir):
    config = read(workdir / "config.json")
    del config["beta"]["nu"]
    (workdir / "config.json").write_text(json.dumps(config))
    done = command("sample", f"--workdir={workdir}")
    assert_one_line(done, 1, "config.json is not a config of this version", "nu")
    (workdir / "config.json").write_text(json.dumps(config | {"train": None}))
    done = command("sample", f"--workdir={workdir}")
    assert_one_line(done, 1, "config.json is not a config of this version")


# --- Checkpoints ---------------------------------------------------------------------


def damage(checkpoint: Path) -> None:
    biggest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-7])


def test_damaged_newest_checkpoint_is_skipped_with_a_warning(workdir, finished):
    (workdir / "summary.json").unlink()
    damage(workdir / "checkpoints" / "4")
    with pytest.warns(CheckpointWarning, match=r"damaged checkpoint skipped.*/4"):
        trainer.train(tiny(), workdir)
    # The damaged one is replaced by the same state again.
    chex.assert_trees_all_equal(params_of(workdir), params_of(finished))
    assert [line["step"] for line in lines_of(workdir)] == [1, 2, 2, 3, 4, 4]


def test_all_checkpoints_damaged_is_an_error(workdir):
    (workdir / "summary.json").unlink()
    for step in (2, 4):
        damage(workdir / "checkpoints" / str(step))
    lines = lines_of(workdir)
    with pytest.warns(CheckpointWarning):
        done = command("train", f"--workdir={workdir}", *arguments())
    assert_one_line(done, 1, "none of its 2 checkpoints is whole", "move the directory")
    assert lines_of(workdir) == lines
    with pytest.warns(CheckpointWarning):
        done = command("sample", f"--workdir={workdir}")
    assert_one_line(done, 1, "none of its 2 checkpoints is whole")


# --- A full disk ---------------------------------------------------------------------


@pytest.mark.slow
def test_full_disk_at_a_checkpoint_loses_nothing(unfinished, finished, monkeypatch):
    def write(self, step, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_write", write)
        done = command("train", f"--workdir={unfinished}", *arguments())
    assert_one_line(done, 1, "checkpoint not written", "No space left", "step 2 stays")
    assert runs.restore(unfinished).step == 2
    trainer.train(tiny(), unfinished)
    chex.assert_trees_all_equal(params_of(unfinished), params_of(finished))
    assert [line["step"] for line in lines_of(unfinished)] == [1, 2, 2, 3, 4, 4]


@pytest.mark.slow
def test_full_disk_in_a_metrics_line_loses_nothing(unfinished, finished, monkeypatch):
    """The line is cut off in the middle, as the kernel does it."""
    whole = run_files.WorkDir.append_metrics

    def append(self, *lines):
        if lines[0]["step"] == 3:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(lines[0])[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, *lines)

    with monkeypatch.context() as patch:
        patch.setattr(run_files.WorkDir, "append_metrics", append)
        done = command("train", f"--workdir={unfinished}", *arguments())
    assert_one_line(done, 1, "disk is full", "what was written before stays")
    assert runs.restore(unfinished).step == 2
    trainer.train(tiny(), unfinished)
    chex.assert_trees_all_equal(params_of(unfinished), params_of(finished))
    assert [line["step"] for line in lines_of(unfinished)] == [1, 2, 2, 3, 4, 4]


def test_other_errors_of_the_system_name_their_file(workdir, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/that/file")

    monkeypatch.setattr(files, "write_json", refuse)
    done = command("evaluate", f"--workdir={workdir}", "--metrics=ols")
    assert_one_line(done, 1, "Permission denied", "/that/file")


# --- Numbers -------------------------------------------------------------------------


@pytest.mark.slow
def test_non_finite_step_is_named_and_the_checkpoint_stays(tmp_path):
    overrides = {
        "train.learning_rate": "1e30",
        "train.scale_learning_rate": "1e30",
        "train.checkpoint_every": "1",
    }
    words = [f"--workdir={tmp_path}", *arguments(**overrides)]
    done = command("train", *words)
    assert_one_line(
        done, 1, "not finite at step 2", "distortion", "encoder", "step 1 stays"
    )
    restored = runs.restore(tmp_path)
    assert restored.step == 1
    chex.assert_tree_all_finite(restored.state.params)
    assert {line["step"] for line in lines_of(tmp_path)} == {1}


@pytest.mark.slow
def test_non_finite_step_inside_a_chunk_is_counted_from_the_start(tmp_path):
    overrides = {"train.learning_rate": "1e30", "train.log_every": "4"}
    overrides |= {"train.checkpoint_every": "4", "train.eval_every": "4"}
    overrides |= {"train.snapshot_steps": "4"}
    done = command("train", f"--workdir={tmp_path}", *arguments(**overrides))
    assert_one_line(done, 1, "not finite at step 2", "no checkpoint yet")
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_no_checkpoint_of_parameters_that_are_not_finite(tmp_path):
    """Where the terms of the step are finite and only beta or the update is not."""
    overrides = {
        "beta.scheme": "geco",
        "beta.kappa": "10",
        "beta.nu": "10",
        "train.checkpoint_every": "1",
    }
    done = command("train", f"--workdir={tmp_path}", *arguments(**overrides))
    assert_one_line(done, 1, "not finite at step 1", "beta", "encoder")
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_no_checkpoint_where_only_the_last_update_broke(tmp_path, monkeypatch):
    """Finite terms, but parameters that are not: found before they are saved."""
    real = trainer._Trainer.__init__

    def init(self, *arguments):
        real(self, *arguments)
        loop = self.loop

        def broken(state, data, num_steps):
            state, metrics = loop(state, data, num_steps=num_steps)
            nan = jax.tree.map(lambda leaf: leaf * np.float32("nan"), state.params)
            params = state.params._replace(prior=nan.prior)
            return state.replace(params=params), metrics

        self.loop = broken

    monkeypatch.setattr(trainer._Trainer, "__init__", init)
    words = arguments(**{"train.checkpoint_every": "1"})
    done = command("train", f"--workdir={tmp_path}", *words)
    assert_one_line(done, 1, "at step 1: the update; parameters", "after it: prior;")
    assert not (tmp_path / "checkpoints").exists()


def test_one_seed_of_several_is_enough_to_stop(finished, tmp_path):
    run = runs.Run(tiny())
    run.seeds = [5, 6]
    training = object.__new__(trainer._Trainer)
    training.run_, training.step, training.saved_step = run, 10, 8
    params = params_of(finished)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params.decoder)
    training.state = runs.restore(finished).state.replace(
        params=params._replace(decoder=broken)
    )
    rate = np.zeros((2, 2))
    rate[1, 1] = np.inf
    fine = np.zeros((2, 2))
    metrics = trainer.StepMetrics(fine, fine, rate, fine, fine, fine.astype(bool))
    with pytest.raises(
        cli.UserError, match=r"at step 10: rate; .*: decoder; .* step 8"
    ):
        training._check_finite(metrics)


@pytest.mark.parametrize("log_every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kappa_out_of_reach_ends_with_the_smallest_c_hat(tmp_path, log_every):
    overrides = {
        "beta.kappa": "1e-5",
        "beta.max_initial_steps": "2",
        "train.log_every": str(log_every),
    }
    words = [f"--workdir={tmp_path}", *arguments(**overrides)]
    done = command("train", *words)
    assert_one_line(done, 1, "kappa^2 = 1e-10 not reached in 2 steps", "try kappa >=")
    smallest = float(re.search(r"smallest C_hat was ([\d.e+-]+)", done.err)[1])
    seen = [line["constraint"] for line in lines_of(tmp_path)]
    assert smallest <= min(seen) * 1.01
    assert smallest == pytest.approx(min(seen), rel=0.5)
    advice = float(re.search(r"try kappa >= ([\d.e+-]+),", done.err)[1])
    assert advice == pytest.approx(1.1 * smallest**0.5, rel=0.05)
    assert runs.restore(tmp_path).step == 2
    # The smallest C_hat is remembered over a resume.
    again = command("train", *words)
    assert again.code == 1
    assert float(re.search(r"C_hat was ([\d.e+-]+)", again.err)[1]) <= smallest * 1.01


@pytest.mark.slow
def test_schemes_without_phases_never_wait_for_kappa(tmp_path):
    config = tiny(
        beta__kappa="1e-5", beta__max_initial_steps="1", beta__scheme="constant"
    )
    assert trainer.train(config, tmp_path)["completed"]


# --- Interpolation -------------------------------------------------------------------

BAD_PAIRS = {
    "missing": (None, "cannot read --pairs"),
    "words": ("0 1\nzero one\n", "line 2: wanted two test indices"),
    "three": ("0 1 2\n", "line 1: wanted two test indices"),
    "floats": ("0 1.5\n", "line 1: wanted two test indices"),
    "empty": ("\n\n", "holds no pair"),
    "binary": (b"\xff\xfe\x00", "cannot read --pairs"),
    "too large": ("0 16\n", "no test example 16; wanted 0 to 15"),
    "negative": ("-1 3\n", "no test example -1"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_named(case, workdir, tmp_path):
    content, part = BAD_PAIRS[case]
    path = tmp_path / "pairs.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = command("interpolate", f"--workdir={workdir}", f"--pairs={path}")
    assert_one_line(done, 1, part)
    assert not (workdir / "interpolation.npz").exists()


def test_end_points_go_together(workdir):
    for words, part in [
        (["--start=1"], "--start and --end go together"),
        (["--end=1"], "--start and --end go together"),
        (["--start=1", "--end=2", "--pairs=x"], "exclude each other"),
    ]:
        done = command("interpolate", f"--workdir={workdir}", *words)
        assert_one_line(done, 2, part)


def change_config(workdir: Path, section: str, key: str, value: object) -> None:
    config = read(workdir / "config.json")
    config[section][key] = value
    (workdir / "config.json").write_text(json.dumps(config))


def test_a_graph_in_parts_is_bridged_and_it_is_said(workdir):
    change_config(workdir, "graph", "num_neighbours", 1)
    done = command("interpolate", f"--workdir={workdir}")
    assert (done.code, done.err) == (0, "")
    found = re.search(r"the graph had (\d+) components, now joined by", done.out)
    assert int(found[1]) > 1


def test_graph_wants_fewer_neighbours_than_nodes(workdir):
    change_config(workdir, "graph", "num_neighbours", 24)
    done = command("interpolate", f"--workdir={workdir}")
    assert_one_line(done, 1, "num_neighbours")


# --- Evaluation ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 17])
def test_number_of_examples_must_fit(workdir, count):
    words = [f"--workdir={workdir}", f"--num_examples={count}"]
    assert_one_line(command("evaluate", *words), 2, "from 2 to 16", f"got {count}")


def test_reproduce_without_runs_says_what_is_missing(tmp_path):
    words = [f"--workdir={tmp_path}", f"--output={tmp_path}", "--budget_minutes=1e-9"]
    done = command("reproduce", "--target=fig2", *words)
    assert_one_line(done, 1, "is not complete; raise --budget_minutes")


def test_checkpoint_of_another_structure_names_the_leaf(workdir):
    change_config(workdir, "model", "hidden", [9])
    done = command("sample", f"--workdir={workdir}")
    assert_one_line(done, 1, "seen float32[", "wanted float32[")
    with pytest.raises(CheckpointError):
        runs.restore(workdir)
