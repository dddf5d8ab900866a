"""The IWAE beside `chairs_synthetic_small`: 4 importance samples.

Command:   python -m experiments.train --config=chairs_synthetic_small_iwae
Hardware:  as chairs_synthetic_small
Expected:  largest step along graph paths 0.052, sharpness 0.029
"""

from ml_collections import ConfigDict

from experiments.configs import as_iwae, chairs_synthetic_small


def get_config() -> ConfigDict:
    """Returns `chairs_synthetic_small` with the IWAE bound."""
    config = chairs_synthetic_small.get_config()
    as_iwae(config)
    config.objective.num_samples = 4  # each is a decoded image
    return config
