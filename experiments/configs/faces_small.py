"""Fewer faces and views, narrower networks: `faces` for two CPU cores.

Command:   python -m experiments.train --config=faces_small
Hardware:  2 CPU cores; 18 minutes on one with other jobs beside it
Expected:  C_hat < kappa^2 after 300 steps, 0.004 at the end; largest step along graph
           paths 0.030, sharpness 0.041 (`evaluate --metrics=interpolation`)
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
    faces.shrink(config)
    return config
