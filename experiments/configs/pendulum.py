"""Pendulum, VHP + REWO: the main job (Sec. 4.1, Table 1).

Command:   python -m experiments.train --config=pendulum
Hardware:  2 CPU cores, one to three minutes; one core: three to five
Expected:  a closed even ring; `evaluate --metrics=ols` gives 0.011 to 0.020 rad
           (results/table1.md; the paper has 0.054)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the whole configuration; the other pendulum configs start from it."""
    config = ConfigDict()
    config.seed = 1  # of initialisation, batches and noise; the data have their own
    config.num_seeds = 1  # runs seed, seed + 1, ... at once
    config.mesh = 1  # devices that share a batch; 0: all, of all processes

    config.data = ConfigDict()
    config.data.name = "pendulum"
    config.data.seed = 0
    config.data.num_train = 15_000
    config.data.num_validation = 2_000
    config.data.num_test = 2_000
    config.data.noise = 0.015  # observation noise, standard deviation
    config.data.rod_length = 4.0  # pixels, as the two widths
    config.data.rod_width = 1.2
    config.data.bob_width = 2.5
    config.data.amplitude = 0.5

    config.model = ConfigDict()
    config.model.network = "relu_mlp"  # with a Gaussian decoder
    config.model.latent_dim = 2  # z
    config.model.inner_dim = 2  # zeta
    config.model.hidden = (256, 256, 256, 256)  # of all four networks
    config.model.dropout = 0.0  # share of p(x|z)'s hidden units, in training
    config.model.prior = "vhp"  # or vamp, mixture, standard_normal
    config.model.num_pseudo_inputs = 500  # of vamp
    config.model.num_components = 500  # of mixture
    config.model.initialisation = "looks_linear"  # or he
    config.model.start = "principal"  # the linear VAE's optimum; or centred, random
    config.model.encoder_head_scale = 0.3
    config.model.decoder_head_scale = 0.3
    config.model.posterior_scale_init = 0.05  # of q(z|x)
    config.model.decoder_scale_init = 1.0  # of p(x|z)
    config.model.prior_encoder_head_scale = 1.0  # q(zeta|z)
    config.model.prior_encoder_scale_init = 0.3
    config.model.prior_decoder_head_scale = 0.0  # p(z|zeta): N(0, 0.2^2) at the start
    config.model.prior_decoder_scale_init = 0.2

    config.objective = ConfigDict()
    config.objective.name = "vhp"  # or iwae
    config.objective.num_samples = 16  # K of zeta; S of (z, zeta) for iwae
    config.objective.constraint = "mse_mean"  # or nll_mean

    config.beta = ConfigDict()
    config.beta.scheme = "rewo"  # rewo_alternative, geco, warm_up, constant
    config.beta.kappa = 0.02
    config.beta.nu = 5.0
    config.beta.tau = 3.0
    config.beta.alpha = 0.99
    config.beta.init = 1e-2  # of the initial phase of rewo
    config.beta.value = 1.0  # of constant; where geco starts
    config.beta.warm_up_epochs = 20.0
    config.beta.max_initial_steps = 2_000  # give up if kappa is not reached by then

    config.train = ConfigDict()
    config.train.num_steps = 6_000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-4  # Adam, theta and phi
    config.train.prior_learning_rate = 1e-4  # Adam, Theta and Phi
    config.train.scale_learning_rate = 1e-3  # Adam, the decoder's log-scale
    config.train.milestones = ()  # steps of the run after which all rates fall,
    config.train.milestone_factor = 0.1  # to this share, if it comes that far
    config.train.weight_decay = 0.0  # decoupled (AdamW), of theta's and phi's weights
    config.train.prior_weight_decay = 0.0  # of Theta's and Phi's; biases never decay
    config.train.average_decay = 0.0  # of the parameters that are evaluated; 0: none
    config.train.patience = 0  # validations without a better bound; 0: never stop
    config.train.stream_data = False  # True: the data stay on the host
    config.train.log_every = 100  # steps
    config.train.eval_every = 1_000
    config.train.checkpoint_every = 1_000
    config.train.snapshot_steps = (500, 2_000, 4_000, 6_000)  # Fig. 2

    config.graph = ConfigDict()
    config.graph.num_nodes = 1_000
    config.graph.num_neighbours = 18
    config.graph.start_targets = (0.0,)  # default end points: nearest to these
    config.graph.end_targets = (3.141592653589793,)
    return config
