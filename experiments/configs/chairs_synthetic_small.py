"""Fewer shapes and views, narrower networks: `chairs_synthetic` for two CPU cores.

Command:   python -m experiments.train --config=chairs_synthetic_small
Hardware:  2 CPU cores; 25 minutes on one with other jobs beside it
Expected:  C_hat 0.013 at the end, kappa^2 is 0.04; largest step along graph paths
           0.044, sharpness 0.031 (`evaluate --metrics=interpolation`)
"""

from ml_collections import ConfigDict

from experiments.configs import chairs_synthetic, faces


def get_config() -> ConfigDict:
    """Returns a smaller `chairs_synthetic`."""
    config = chairs_synthetic.get_config()
    config.data.num_shapes = 500
    config.data.num_azimuths = 12
    config.data.num_validation = 25
    config.data.num_test = 75
    faces.shrink(config)
    return config
