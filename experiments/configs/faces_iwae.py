"""The IWAE beside `faces`: 16 importance samples.

Command:   python -m experiments.train --config=faces_iwae
Hardware:  as faces
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import as_iwae, faces


def get_config() -> ConfigDict:
    """Returns `faces` with the IWAE bound."""
    config = faces.get_config()
    as_iwae(config)
    return config
