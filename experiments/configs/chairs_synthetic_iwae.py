"""The IWAE beside `chairs_synthetic`: 16 importance samples.

Command:   python -m experiments.train --config=chairs_synthetic_iwae
Hardware:  as chairs_synthetic
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import as_iwae, chairs_synthetic


def get_config() -> ConfigDict:
    """Returns `chairs_synthetic` with the IWAE bound."""
    config = chairs_synthetic.get_config()
    as_iwae(config)
    return config
