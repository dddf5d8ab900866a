"""The IWAE beside `chairs`: 16 importance samples.

Command:   python -m experiments.train --config=chairs_iwae
Hardware:  as chairs
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import as_iwae, chairs


def get_config() -> ConfigDict:
    """Returns `chairs` with the IWAE bound."""
    config = chairs.get_config()
    as_iwae(config)
    return config
