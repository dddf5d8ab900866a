"""Pendulum in a minute or two: the same model and data, stopped early.

Command:   python -m experiments.train --config=pendulum_quick
Hardware:  2 CPU cores; 130 to 145 s with half of them busy otherwise
Expected:  a ring with rounded corners, 0.015 to 0.02 rad on three seeds, beta at 1; the
           prior is there too, a little wider than after the full run
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
