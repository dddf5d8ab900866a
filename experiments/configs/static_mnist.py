"""Static MNIST, VHP + REWO with the gated convolutions of Table 3 (Sec. 4.3, Table 2).

Command:   python -m experiments.train --config=static_mnist
Hardware:  one H100-class GPU; a CPU takes seconds a step, see static_mnist_mlp
Expected:  not run yet; `evaluate --metrics=nll` has 82.74 nats in the paper
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the whole configuration; the other image configs start from it."""
    config = ConfigDict()
    config.seed = 1  # of initialisation, batches and noise
    config.num_seeds = 1  # runs seed, seed + 1, ... at once
    config.mesh = 1  # devices that share a batch; 0: all, of all processes

    config.data = ConfigDict()
    config.data.name = "static_mnist"
    config.data.dir = ""  # else VHP_DATA_DIR, else tensorflow-datasets' cache
    config.data.verify = True  # refuse files with other checksums

    config.model = ConfigDict()
    config.model.network = "gated_conv"
    config.model.strides = (1, 2, 1, 2, 1)  # the later appendix has 1 for the fourth
    config.model.prior_hidden = (256, 256)  # gated, of q(zeta|z) and p(z|zeta)
    config.model.log_scale_range = (-3.0, 1.0)  # of all three normals
    config.model.latent_dim = 32  # z
    config.model.inner_dim = 32  # zeta
    config.model.prior = "vhp"  # or vamp, mixture, standard_normal
    config.model.num_pseudo_inputs = 500  # of vamp
    config.model.num_components = 500  # of mixture

    config.objective = ConfigDict()
    config.objective.name = "vhp"  # or iwae
    config.objective.num_samples = 16  # K of zeta; S of (z, zeta) for iwae
    config.objective.constraint = "mse_mean"  # or nll_mean

    config.beta = ConfigDict()
    config.beta.scheme = "rewo"  # rewo_alternative, geco, warm_up, constant
    config.beta.kappa = 0.18
    config.beta.nu = 1.0
    config.beta.tau = 3.0
    config.beta.alpha = 0.99
    config.beta.init = 0.1  # of the initial phase of rewo
    config.beta.value = 1.0  # of constant; where geco starts
    config.beta.warm_up_epochs = 100.0
    config.beta.max_initial_steps = 20_000  # give up if kappa is not reached by then

    config.train = ConfigDict()
    config.train.num_steps = 500_000  # at most: 1,000 epochs
    config.train.batch_size = 100
    config.train.learning_rate = 5e-4  # Adam, theta and phi
    config.train.prior_learning_rate = 5e-4  # Adam, Theta and Phi
    config.train.milestones = ()  # steps of the run after which all rates fall,
    config.train.milestone_factor = 0.1  # to this share, if it comes that far
    config.train.weight_decay = 0.0  # decoupled (AdamW), of theta's and phi's weights
    config.train.prior_weight_decay = 0.0  # of Theta's and Phi's; biases never decay
    config.train.average_decay = 0.999  # of the parameters that are evaluated; 0: none
    config.train.patience = 50  # validations without a better bound; 0: never stop
    config.train.stream_data = False  # True: the data stay on the host
    config.train.log_every = 100  # steps
    config.train.eval_every = 1_000
    config.train.checkpoint_every = 1_000
    config.train.snapshot_steps = ()  # for latent spaces of two dimensions

    config.graph = ConfigDict()
    config.graph.num_nodes = 1_000
    config.graph.num_neighbours = 18
    config.graph.start_targets = (0,)  # labels of the default end points
    config.graph.end_targets = (1,)
    return config
