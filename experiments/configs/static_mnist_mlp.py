"""Static MNIST, VHP + REWO with the two-layer gated MLP of the peers: 300 units, 40 z.

Command:   python -m experiments.train --config=static_mnist_mlp
Hardware:  one CPU core, 40 minutes, and 10 more for the likelihood; older cores, twice
Expected:  `evaluate --metrics=nll` gives 83.2 nats (results/table2_mlp.md, one seed)
"""

from ml_collections import ConfigDict

from experiments.configs import static_mnist


def get_config() -> ConfigDict:
    """Returns `static_mnist` with fully connected networks."""
    config = static_mnist.get_config()
    config.model.network = "gated_mlp"
    del config.model.strides
    config.model.hidden = (300, 300)  # gated, of q(z|x) and p(x|z)
    config.model.latent_dim = 40
    config.model.inner_dim = 40
    # Where the rest comes from: docs/likelihood.md.
    config.model.dropout = 0.03  # share of p(x|z)'s hidden units, in training
    config.train.learning_rate = 1e-3
    config.train.prior_learning_rate = 1e-3
    config.train.milestones = (80_000, 100_000, 110_000)
    config.train.milestone_factor = 0.3
    config.train.weight_decay = 0.1
    config.train.average_decay = 0.9997
    config.train.num_steps = 120_000  # 240 epochs, evaluated at their end
    config.train.patience = 0
    return config
