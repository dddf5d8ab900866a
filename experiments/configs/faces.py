"""3D faces, VHP + REWO with Table 3's convolutions (Sec. 4.4, Figs. 9 and 22).

Command:   python -m experiments.train --config=faces
Hardware:  one H100-class GPU; faces_small is for a CPU
Expected:  not run yet
"""

from ml_collections import ConfigDict

from experiments.configs import static_mnist


def get_config() -> ConfigDict:
    """Returns `static_mnist` with other data and networks."""
    config = static_mnist.get_config()
    config.data = ConfigDict()
    config.data.name = "faces"
    config.data.dir = ""  # else VHP_DATA_DIR
    config.data.verify = True  # refuse a model with another checksum
    config.data.cache_dir = ""  # of the rendered images, else XDG_CACHE_HOME/vhp_jax
    config.data.model = "ict"  # or basel
    config.data.seed = 0  # of the identities
    config.data.num_faces = 2_000
    config.data.num_views = 37
    config.data.yaw_degrees = 90.0  # from minus this to this
    config.data.num_validation = 100  # identities
    config.data.num_test = 300

    config.model.network = "conv"
    del config.model.strides
    config.model.channels = (32, 32, 48, 48, 64, 64, 96, 96)  # of eight convolutions
    config.model.dense = 256

    config.beta.kappa = 0.2
    config.train.batch_size = 64
    config.train.num_steps = 100_000
    config.train.patience = 0

    config.graph.num_nodes = 10_000
    # Yaw, radians: half left to half right, front to front, left to left.
    config.graph.start_targets = (-0.8, 0.0, -1.2)
    config.graph.end_targets = (0.8, 0.0, -1.2)
    return config


def shrink(config: ConfigDict) -> None:
    """Half the channels, a batch of 32, 5,000 steps: for two CPU cores."""
    config.model.channels = (16, 16, 24, 24, 32, 32, 48, 48)
    config.model.dense = 128
    config.model.prior_hidden = (128, 128)
    config.train.batch_size = 32
    config.train.num_steps = 5_000
    config.beta.max_initial_steps = 5_000
    config.graph.num_nodes = 2_000
