"""The IWAE beside `chairs_synthetic_small`: 16 importance samples.

Command:   python -m experiments.train --config=chairs_synthetic_small_iwae
Hardware:  as chairs_synthetic_small
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import chairs_synthetic_small


def get_config() -> ConfigDict:
    """Returns `chairs_synthetic_small` with the IWAE bound."""
    config = chairs_synthetic_small.get_config()
    config.model.prior = "standard_normal"
    config.objective.name = "iwae"
    config.beta.scheme = "constant"
    config.beta.init = 1.0
    return config
