"""TensorBoard events: the lines of metrics.jsonl once more, and the figures."""

import json
import struct
import sys

import pytest
from two_steps import TWO_STEPS

from experiments import cli, figures, tracking, trainer

pytest.importorskip("tensorboardX")

TINY = TWO_STEPS | {
    "data.num_train": "16",
    "data.num_validation": "16",
    "data.num_test": "16",
    "beta.kappa": "0.5",
}


def values(folder):
    """(tag, step) -> value, or "image", of all event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                is_image = value.HasField("image")
                kept = "image" if is_image else value.simple_value
                found[value.tag, event.step] = kept
    return found


def test_lines_become_scalars(tmp_path):
    events = tracking.Events(tmp_path, 0)
    events.add([{"step": 5, "loss": 1.5, "initial_phase": True, "beta": None}])
    events.add([{"step": 5, "split": "validation", "seed": 1, "rate": 2.5}])
    events.add([{"step": 6, "seed": 2, "loss": 0.5}])
    events.close()
    assert values(tmp_path) == {
        ("train/loss", 5): 1.5,
        ("train/initial_phase", 5): 1.0,
        ("validation/rate", 5): 2.5,
        ("train_seed_2/loss", 6): 0.5,
    }


def test_the_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(cli.UserError, match=r"pip install 'vhp_jax\[tensorboard\]'"):
        tracking.Events(tmp_path, 0)


@pytest.mark.slow
@pytest.mark.optax
def test_a_run_writes_its_metrics_and_figures_only_when_asked(tmp_path):
    config = cli.load_config("pendulum", list(TINY.items()))
    trainer.train(config, tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()
    draw = figures.training_figures
    trainer.train(config, tmp_path / "with", tensorboard=True, draw=draw)
    found = values(tmp_path / "with" / "tensorboard")
    lines = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        if "split" not in line:
            value = found["train/loss", line["step"]]
            assert value == pytest.approx(line["loss"], rel=1e-6)
    assert ("validation/distortion", 2) in found
    assert found["history", 2] == "image"


@pytest.mark.slow
@pytest.mark.optax
def test_a_kappa_out_of_reach_is_foreseen(tmp_path, capsys):
    slow = {
        "beta.kappa": "1e-4",
        "train.num_steps": "16",
        "train.learning_rate": "1e-9",
    }
    slow |= {"beta.max_initial_steps": "12", "train.eval_every": "16"}
    slow |= {"train.checkpoint_every": "16", "train.snapshot_steps": "16"}
    config = cli.load_config("pendulum", list((TINY | slow).items()))
    with pytest.raises(cli.UserError, match="not reached in 12 steps"):
        trainer.train(config, tmp_path)
    said = capsys.readouterr().out
    assert said.count("looks out of reach") == 0  # three lines are too few to judge by
    config.beta.max_initial_steps = 16
    with pytest.raises(cli.UserError, match="not reached in 16 steps"):
        trainer.train(config, tmp_path / "longer")
    assert capsys.readouterr().out.count("kappa^2 = 1e-08 looks out of reach") == 1
