"""The IWAE beside `faces_small`: 16 importance samples.

Command:   python -m experiments.train --config=faces_small_iwae
Hardware:  as faces_small
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import faces_small


def get_config() -> ConfigDict:
    """Returns `faces_small` with the IWAE bound."""
    config = faces_small.get_config()
    config.model.prior = "standard_normal"
    config.objective.name = "iwae"
    config.beta.scheme = "constant"
    config.beta.init = 1.0
    return config
