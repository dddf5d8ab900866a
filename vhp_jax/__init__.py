"""Learning Hierarchical Priors in VAEs (Klushyn et al., 2019): VHP and REWO in JAX."""

import typing

from vhp_jax import beta, distributions, evaluation, graph, networks, objectives, priors
from vhp_jax.model import VAE
from vhp_jax.training import (
    OptimizerPair,
    TrainState,
    init_state,
    jit_train_loop,
    make_train_loop,
    make_train_step,
)
from vhp_jax.types import Params

if typing.TYPE_CHECKING:
    from vhp_jax.estimator import VHP

__all__ = [
    "VAE",
    "VHP",
    "OptimizerPair",
    "Params",
    "TrainState",
    "beta",
    "distributions",
    "evaluation",
    "graph",
    "init_state",
    "jit_train_loop",
    "make_train_loop",
    "make_train_step",
    "networks",
    "objectives",
    "priors",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports the estimator, and scikit-learn with it, when it is first asked for."""
    if name == "VHP":
        from vhp_jax.estimator import VHP

        return VHP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
