"""From a config to the library's objects. The only reader of most config keys."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from experiments.cli import UserError
from vhp_jax import beta, networks, objectives, priors, training
from vhp_jax.data import Dataset, pendulum
from vhp_jax.model import VAE
from vhp_jax.types import Params, PRNGKey, PyTree


class Experiment(NamedTuple):
    """Everything a run is made of, all of it static.

    Attributes:
      dataset: the three splits, NumPy.
      model: the VAE.
      objective: per-example terms.
      beta_scheme: sets beta.
      optimizers: of the two halves.
      init_params: draws the parameters from a key.
    """

    dataset: Dataset
    model: VAE
    objective: objectives.Objective
    beta_scheme: beta.BetaScheme
    optimizers: training.OptimizerPair
    init_params: Callable[[PRNGKey], Params]


def build(config: ConfigDict) -> Experiment:
    """Builds the experiment that `config` describes.

    Raises:
      UserError: a value that no part of the library takes.
      ValueError: a value that the library refuses.
    """
    check(config)
    dataset = build_data(config.data)
    model = build_model(config.model, dataset)
    examples = dataset.train.examples
    steps_per_epoch = len(examples) / config.train.batch_size

    def principal(params: Params, key: PRNGKey) -> Params:
        if config.model.initialisation != "looks_linear":
            raise UserError("config.model.start=principal wants looks_linear networks")
        scale = config.model.encoder_head_scale
        components = networks.principal_components(examples, config.model.latent_dim)
        return networks.start_principal(params, key, components, scale)

    def centred(params: Params, key: PRNGKey) -> Params:
        del key
        flat = examples.reshape(len(examples), -1)
        return networks.centre(params, flat.mean(axis=0, dtype="f8"))

    starts: dict[str, Callable[[Params, PRNGKey], Params]] = {
        "principal": principal,
        "centred": centred,
        "random": lambda params, key: params,
    }
    start = choose("model.start", config.model.start, starts)

    def init_params(key: PRNGKey) -> Params:
        key_init, key_start = jax.random.split(key)
        params = model.init(key_init, examples.shape[1:])
        return start(params, key_start)

    return Experiment(
        dataset,
        model,
        build_objective(config.objective, model),
        build_beta_scheme(config.beta, steps_per_epoch),
        build_optimizers(config.train),
        init_params,
    )


def check(config: ConfigDict) -> None:
    """Refuses numbers that cannot work, before anything is computed."""
    model, train = config.model, config.train
    counts = {
        "num_seeds": config.num_seeds,
        "model.latent_dim": model.latent_dim,
        "model.inner_dim": model.inner_dim,
        "model.posterior_scale_init": model.posterior_scale_init,
        "model.decoder_scale_init": model.decoder_scale_init,
        "model.prior_encoder_scale_init": model.prior_encoder_scale_init,
        "model.prior_decoder_scale_init": model.prior_decoder_scale_init,
        "objective.num_samples": config.objective.num_samples,
        "beta.warm_up_epochs": config.beta.warm_up_epochs,
        "beta.max_initial_steps": config.beta.max_initial_steps,
        "train.num_steps": train.num_steps,
        "train.batch_size": train.batch_size,
        "train.log_every": train.log_every,
        "train.eval_every": train.eval_every,
        "train.checkpoint_every": train.checkpoint_every,
        "train.learning_rate": train.learning_rate,
        "train.prior_learning_rate": train.prior_learning_rate,
        "train.scale_learning_rate": train.scale_learning_rate,
    }
    for name, value in counts.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"config.{name} must be positive, got {value}")
    pairs = model.initialisation == "looks_linear"
    for width in model.hidden:
        if width < 1 or (pairs and width % 2):
            raise UserError(
                f"config.model.hidden must be positive{' and even' if pairs else ''}, "
                f"got {width}"
            )
    intervals = {
        "num_steps": train.num_steps,
        "eval_every": train.eval_every,
        "checkpoint_every": train.checkpoint_every,
    }
    for step in train.snapshot_steps:
        intervals[f"snapshot_steps ({step})"] = step
    for name, value in intervals.items():
        if value % train.log_every:
            raise UserError(
                f"config.train.{name} must be a multiple of log_every "
                f"({train.log_every}), got {value}"
            )
    if not model.hidden:
        raise UserError("config.model.hidden wants widths >= 1, got ()")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed must be from 0 to 2^31 - 1, got {config.seed}")
    if train.num_steps * train.batch_size >= 2**31:
        raise UserError(
            f"num_steps * batch_size must stay below 2^31, got "
            f"{train.num_steps} * {train.batch_size}"
        )


def build_data(config: ConfigDict) -> Dataset:
    """Loads or generates the data set."""
    options = {key: value for key, value in config.items() if key != "name"}
    loaders = {"pendulum": pendulum.load}
    return choose("data.name", config.name, loaders)(**options)


def build_model(config: ConfigDict, dataset: Dataset) -> VAE:
    """The networks of Table 3 around the chosen prior."""
    features = math.prod(dataset.train.examples.shape[1:])
    network = functools.partial(
        networks.NormalMLP,
        tuple(config.hidden),
        initialisation=config.initialisation,
    )
    makers: dict[str, Callable[[], priors.Prior]] = {
        "vhp": lambda: priors.HierarchicalPrior(
            encoder=network(
                features=config.inner_dim,
                head_scale=config.prior_encoder_head_scale,
                scale_init=config.prior_encoder_scale_init,
            ),
            decoder=network(
                features=config.latent_dim,
                head_scale=config.prior_decoder_head_scale,
                scale_init=config.prior_decoder_scale_init,
            ),
            latent_dim=config.latent_dim,
            inner_dim=config.inner_dim,
        ),
        "standard_normal": lambda: priors.StandardNormal(config.latent_dim),
    }
    return VAE(
        encoder=networks.Flat(
            network(
                features=config.latent_dim,
                head_scale=config.encoder_head_scale,
                scale_init=config.posterior_scale_init,
            )
        ),
        decoder=networks.GaussianDecoder(
            tuple(config.hidden),
            features,
            initialisation=config.initialisation,
            head_scale=config.decoder_head_scale,
            scale_init=config.decoder_scale_init,
        ),
        prior=choose("model.prior", config.prior, makers)(),
    )


def build_objective(config: ConfigDict, model: VAE) -> objectives.Objective:
    """The VHP Lagrangian's terms or the IWAE bound's."""
    makers = {
        "vhp": objectives.make_vhp_objective,
        "iwae": objectives.make_iwae_objective,
    }
    constraint = choose(
        "objective.constraint", config.constraint, objectives.CONSTRAINTS
    )
    return choose("objective.name", config.name, makers)(
        model, config.num_samples, constraint
    )


def build_beta_scheme(config: ConfigDict, steps_per_epoch: float) -> beta.BetaScheme:
    """One of the schemes of `vhp_jax.beta`."""
    common = {"kappa": config.kappa, "alpha": config.alpha}
    rewo = {"nu": config.nu, "tau": config.tau, "beta_init": config.init}
    warm_up_steps = max(1, round(config.warm_up_epochs * steps_per_epoch))
    schemes: dict[str, Callable[[], beta.BetaScheme]] = {
        "rewo": lambda: beta.rewo(**common, **rewo),
        "rewo_alternative": lambda: beta.rewo_alternative(**common, **rewo),
        "geco": lambda: beta.geco(**common, nu=config.nu, beta_init=config.init),
        "warm_up": lambda: beta.warm_up(warm_up_steps, **common),
        "constant": lambda: beta.constant(config.init, **common),
    }
    return choose("beta.scheme", config.scheme, schemes)()


def build_optimizers(config: ConfigDict) -> training.OptimizerPair:
    """Adam for both halves; the decoder's log-scale may have a rate of its own."""

    def is_log_scale(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path).endswith("['log_scale']"), params
        )

    ratio = config.scale_learning_rate / config.learning_rate
    return training.OptimizerPair(
        vae=optax.chain(
            optax.adam(config.learning_rate),
            optax.masked(optax.scale(ratio), is_log_scale),
        ),
        prior=optax.adam(config.prior_learning_rate),
    )


def choose(key: str, name: str, options: dict[str, Callable]) -> Callable:
    """options[name], or a UserError that lists what there is."""
    if name not in options:
        raise UserError(
            f"config.{key} must be one of {', '.join(sorted(options))}, got {name!r}"
        )
    return options[name]
