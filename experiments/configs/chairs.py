"""3D chairs of Aubry et al. (2014), VHP + REWO (Sec. 4.4, Figs. 10 and 23).

Command:   python -m experiments.train --config=chairs
Hardware:  one H100-class GPU
Expected:  not run: the images could not be had; see chairs_synthetic
"""

from ml_collections import ConfigDict

from experiments.configs import chairs_synthetic


def get_config() -> ConfigDict:
    """Returns `chairs_synthetic` with the published images."""
    config = chairs_synthetic.get_config()
    config.data = ConfigDict()
    config.data.name = "chairs"
    config.data.dir = ""  # else VHP_DATA_DIR
    config.data.verify = True  # refuse another number of chairs than the published one
    config.data.cache_dir = ""  # of the scaled images, else XDG_CACHE_HOME/vhp_jax
    config.data.num_azimuths = 31  # at each of two elevations
    config.data.num_validation = 70  # chairs
    config.data.num_test = 140
    return config
