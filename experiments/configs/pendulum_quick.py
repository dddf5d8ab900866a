"""Pendulum in about a minute: the same model and data, stopped early.

Command:   python -m experiments.train --config=pendulum_quick
"""

from ml_collections import ConfigDict

from experiments.configs import pendulum


def get_config() -> ConfigDict:
    """Returns `pendulum` with K = 4 and fewer, larger steps of beta."""
    config = pendulum.get_config()
    config.objective.num_samples = 4
    config.beta.nu = 15.0
    config.train.num_steps = 3_000
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.train.snapshot_steps = (500, 1_000, 2_000, 3_000)
    return config
