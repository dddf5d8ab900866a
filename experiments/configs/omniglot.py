"""OMNIGLOT, VHP + REWO with the gated convolutions of Table 3 (Sec. 4.3, Table 2).

Command:   python -m experiments.train --config=omniglot
Hardware:  one H100-class GPU
Expected:  not run yet; `evaluate --metrics=nll` has 101.78 nats in the paper
"""

from ml_collections import ConfigDict

from experiments.configs import static_mnist


def get_config() -> ConfigDict:
    """Returns `static_mnist` with other data."""
    config = static_mnist.get_config()
    config.data.name = "omniglot"
    config.data.values = "dynamic"  # or grey: pixels as Bernoulli means
    config.data.seed = 0  # of the binary validation and test images
    return config
