"""Human motion, IWAE with 32 importance samples (Sec. 4.2).

Command:   python -m experiments.train --config=cmu_iwae
Hardware:  TODO
Expected:  TODO
"""

from ml_collections import ConfigDict

from experiments.configs import cmu_vhp


def get_config() -> ConfigDict:
    """Returns `cmu_vhp` with the IWAE bound."""
    config = cmu_vhp.get_config()
    config.model.prior = "standard_normal"
    config.objective.name = "iwae"
    config.beta.scheme = "constant"
    config.beta.init = 1.0
    return config
