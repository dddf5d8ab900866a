"""Human motion, IWAE with 32 importance samples (Sec. 4.2).

Command:   python -m experiments.train --config=cmu_iwae
Hardware:  2 CPU cores, 4 minutes
Expected:  smoothness 0.24 degrees per squared step, neighbours 0.997, squared
           discrepancy of the prior 0.023 (results/motion.md)
"""

from ml_collections import ConfigDict

from experiments.configs import as_iwae, cmu_vhp


def get_config() -> ConfigDict:
    """Returns `cmu_vhp` with the IWAE bound."""
    config = cmu_vhp.get_config()
    as_iwae(config)
    return config
