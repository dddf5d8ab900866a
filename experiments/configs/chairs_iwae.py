"""The IWAE beside `chairs`: 16 importance samples.

Command:   python -m experiments.train --config=chairs_iwae
Hardware:  as chairs
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import chairs


def get_config() -> ConfigDict:
    """Returns `chairs` with the IWAE bound."""
    config = chairs.get_config()
    config.model.prior = "standard_normal"
    config.objective.name = "iwae"
    config.beta.scheme = "constant"
    config.beta.init = 1.0
    return config
