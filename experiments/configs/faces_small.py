"""Fewer faces and views, narrower networks: `faces` for two CPU cores.

Command:   python -m experiments.train --config=faces_small
Hardware:  2 CPU cores
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import faces


def get_config() -> ConfigDict:
    """Returns a smaller `faces`."""
    config = faces.get_config()
    config.data.num_faces = 500
    config.data.num_views = 13
    config.data.num_validation = 25
    config.data.num_test = 75
    config.model.channels = (16, 16, 24, 24, 32, 32, 48, 48)
    config.model.dense = 128
    config.model.prior_hidden = (128, 128)
    config.train.num_steps = 10_000
    config.graph.num_nodes = 2_000
    return config
