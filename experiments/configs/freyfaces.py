"""Frey faces, VHP + REWO: 1,965 frames of one face in two dimensions.

Command:   python -m experiments.train --config=freyfaces
Hardware:  2 CPU cores, a minute
Expected:  on the test frames -714 nats of distortion + rate, rate 8.5; the prior cannot
           be told from the encodings (`evaluate --metrics=rate_distortion,prior_match`)
"""

from ml_collections import ConfigDict

from experiments.configs import pendulum


def get_config() -> ConfigDict:
    """Returns `pendulum` with other data, a start that fits them and another kappa."""
    config = pendulum.get_config()
    config.data = ConfigDict()
    config.data.name = "freyfaces"
    config.data.dir = ""  # else VHP_DATA_DIR
    config.data.seed = 0  # of the split
    config.data.num_validation = 200
    config.data.num_test = 200
    config.data.verify = True  # refuse a file with another checksum
    config.model.start = "fitting"
    config.model.encoder_head_scale = 1.0
    config.model.prior_decoder_scale_init = 0.5
    config.beta.kappa = 0.075
    return config
