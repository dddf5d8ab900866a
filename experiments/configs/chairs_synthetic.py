"""Parametric chairs, a stand-in for the rendered ones of Aubry et al. (Sec. 4.4).

Command:   python -m experiments.train --config=chairs_synthetic
Hardware:  one H100-class GPU; chairs_synthetic_small is for a CPU
Expected:  not run yet; not comparable with the paper's chairs
"""

from ml_collections import ConfigDict

from experiments.configs import faces


def get_config() -> ConfigDict:
    """Returns `faces` with other data."""
    config = faces.get_config()
    config.data = ConfigDict()
    config.data.name = "chairs_synthetic"
    config.data.cache_dir = ""  # of the rendered images, else XDG_CACHE_HOME/vhp_jax
    config.data.seed = 0  # of the shapes
    config.data.num_shapes = 1_393
    config.data.num_azimuths = 31  # at each of two elevations
    config.data.num_validation = 70  # shapes
    config.data.num_test = 140

    config.graph.num_nodes = 8_637
    # Azimuth, radians: front to back, front to front, side to side.
    config.graph.start_targets = (0.0, 0.0, 1.6)
    config.graph.end_targets = (3.1, 0.0, 1.6)
    return config
