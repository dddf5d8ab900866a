r"""Data of one's own: a file of rows or a folder of images.

Command:   python -m experiments.train --config=custom \
           --config.data.path=FILE_OR_FOLDER --config.beta.kappa=0.5
Hardware:  2 CPU cores, a few minutes for 20,000 rows of 50 columns
Expected:  a kappa that fits the data is measured first, by
           `python -m experiments.suggest_kappa --config=custom --config.data.path=FILE`
"""

from ml_collections import ConfigDict

from experiments.configs import pendulum


def get_config() -> ConfigDict:
    """Returns `pendulum` with other data and networks that fit them."""
    config = pendulum.get_config()
    config.data = ConfigDict()
    config.data.name = "custom"
    # .npy, .npz, .parquet, a folder of images, or .csv of numbers, its first line names
    # or not.
    config.data.path = ""
    config.data.key = ""  # of the array in an .npz with several
    config.data.likelihood = "auto"  # by the data; or gaussian, bernoulli
    config.data.scaling = "auto"  # by the data; or columns, common, none
    config.data.seed = 0  # of the split
    config.data.validation_share = 0.1
    config.data.test_share = 0.1
    config.data.image_size = ()  # HEIGHT,WIDTH to resize images to
    config.data.colour = False  # True: images keep three channels

    config.model.network = "fitting_mlp"  # relu_mlp, or gated_mlp for Bernoulli
    config.model.start = "fitting"  # principal for relu_mlp, random for gated_mlp
    config.model.hidden = (256, 256)
    config.model.prior_hidden = (256, 256)  # of gated_mlp; relu_mlp has `hidden`
    config.model.log_scale_range = (-6.0, 1.0)  # of gated_mlp
    config.model.encoder_head_scale = 1.0
    config.model.decoder_scale_init = 0.5
    config.model.prior_decoder_scale_init = 0.5

    config.beta.kappa = 0.0  # to be given: experiments.suggest_kappa measures one
    config.beta.nu = 0.1
    config.beta.init = 0.05
    config.beta.max_initial_steps = 4_000

    config.train.num_steps = 8_000
    config.train.batch_size = 128
    config.train.learning_rate = 5e-4
    config.train.prior_learning_rate = 5e-4
    config.train.snapshot_steps = (1_000, 2_000, 4_000, 8_000)

    config.graph.start_targets = (0,)  # labels, where there are any
    config.graph.end_targets = (1,)
    return config
