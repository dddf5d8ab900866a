"""Human motion, VampPrior with 64 pseudo-inputs (Sec. 4.2).

Command:   python -m experiments.train --config=cmu_vamp
Hardware:  2 CPU cores, one minute
Expected:  smoothness 0.21 degrees per squared step, neighbours 0.999, squared
           discrepancy of the prior 0.005 (results/motion.md)
"""

from ml_collections import ConfigDict

from experiments.configs import cmu_vhp


def get_config() -> ConfigDict:
    """Returns `cmu_vhp` with another prior, at beta = 1 after a warm-up."""
    config = cmu_vhp.get_config()
    config.model.prior = "vamp"
    config.model.num_pseudo_inputs = 64
    config.objective.num_samples = 1
    config.beta.scheme = "warm_up"
    return config
