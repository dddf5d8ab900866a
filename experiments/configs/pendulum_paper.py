"""Pendulum with the settings the paper prints and plain choices where it is silent.

Command:   python -m experiments.train --config=pendulum_paper
Hardware:  2 CPU cores, about an hour; not run to the end yet
Expected:  an uneven ring: the same networks and start in `pendulum`'s 6,000 steps are
           the rows of `reproduce --target=table1_plain`: 0.2 to 0.4 rad
"""

from ml_collections import ConfigDict

from experiments.configs import pendulum

# What most code does where the paper is silent: see docs/pendulum.md.
PLAIN = {
    "initialisation": "he",
    "start": "random",
    "encoder_head_scale": 1.0,
    "decoder_head_scale": 1.0,
    "posterior_scale_init": 1.0,
    "prior_encoder_scale_init": 1.0,
    "prior_decoder_head_scale": 1.0,
    "prior_decoder_scale_init": 1.0,
}


def get_config() -> ConfigDict:
    """Returns `pendulum` with He initialisation, a plain scale and long training."""
    config = pendulum.get_config()
    config.model.update(PLAIN)
    config.beta.init = 1e-3
    config.beta.max_initial_steps = 20_000
    config.train.batch_size = 128
    config.train.scale_learning_rate = 1e-4
    config.train.num_steps = 150_000
    config.train.snapshot_steps = (400, 5_000, 27_500, 150_000)
    return config
