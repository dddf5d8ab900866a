"""From a config to the library's objects. The only reader of most config keys."""

import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from experiments.cli import UserError, flatten
from vhp_jax import beta, distributions, networks, objectives, priors, starts, training
from vhp_jax.data import (
    DataError,
    Dataset,
    chairs,
    chairs_synthetic,
    cmu_mocap,
    custom,
    faces,
    fashion_mnist,
    freyfaces,
    mnist,
    omniglot,
    pendulum,
    static_mnist,
)
from vhp_jax.model import VAE
from vhp_jax.types import Params, PRNGKey, PyTree

DATA_DIR = "VHP_DATA_DIR"

# Numbers that a config may hold and that must be above zero.
POSITIVE = {
    "num_seeds",
    "model.latent_dim",
    "model.inner_dim",
    "model.num_pseudo_inputs",
    "model.num_components",
    "model.dense",
    "model.posterior_scale_init",
    "model.decoder_scale_init",
    "model.prior_encoder_scale_init",
    "model.prior_decoder_scale_init",
    "objective.num_samples",
    "beta.warm_up_epochs",
    "beta.value",
    "beta.max_initial_steps",
    "train.num_steps",
    "train.batch_size",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.learning_rate",
    "train.prior_learning_rate",
    "train.scale_learning_rate",
}
WIDTHS = {"model.hidden", "model.prior_hidden", "model.strides", "model.channels"}
# Keys that only some configs have, and what wants them.
NETWORK_KEYS = {
    "relu_mlp": ("hidden", "dropout", "initialisation", "decoder_scale_init"),
    "gated_mlp": ("hidden", "dropout", "prior_hidden", "log_scale_range"),
    "gated_conv": ("strides", "prior_hidden", "log_scale_range"),
    "conv": ("channels", "dense", "prior_hidden", "log_scale_range"),
    "fitting_mlp": (
        *("hidden", "dropout", "initialisation"),
        *("prior_hidden", "log_scale_range"),
    ),
}


class Experiment(NamedTuple):
    """Everything a run is made of, all of it static.

    Attributes:
      dataset: the three splits, NumPy.
      model: the VAE.
      objective: per-example terms, as they are evaluated.
      training_objective: the same, with dropout.
      beta_scheme: sets beta.
      optimizers: of the two halves.
      rate_factor: of their learning rates over the steps; None for 1.
      init_params: draws the parameters from a key.
      draw_batch: makes training examples of the stored ones; None leaves them.
      warm_up_steps: of a linear warm-up, else 0.
    """

    dataset: Dataset
    model: VAE
    objective: objectives.Objective
    training_objective: objectives.Objective
    beta_scheme: beta.BetaScheme
    optimizers: training.OptimizerPair
    rate_factor: optax.Schedule | None
    init_params: Callable[[PRNGKey], Params]
    draw_batch: training.DrawBatch | None
    warm_up_steps: int


def build(config: ConfigDict, dataset: Dataset | None = None) -> Experiment:
    """Builds the experiment that `config` describes.

    Args:
      config: the resolved config.
      dataset: stands in for the config's own where it is given.

    Raises:
      UserError: a value that no part of the library takes.
      ValueError: a value that the library refuses.
    """
    check(config)
    if dataset is None:
        dataset = build_data(config.data)
    model = build_model(config.model, dataset)
    steps_per_epoch = len(dataset.train.examples) / config.train.batch_size
    warm_up_steps = max(1, round(config.beta.warm_up_epochs * steps_per_epoch))
    return Experiment(
        dataset,
        model,
        build_objective(config.objective, model),
        build_objective(config.objective, model, dropout=True),
        build_beta_scheme(config.beta, warm_up_steps),
        build_optimizers(config.train),
        build_rate_factor(config.train),
        build_init(config.model, model, dataset),
        distributions.draw_binary if dataset.dynamic else None,
        warm_up_steps if config.beta.scheme == "warm_up" else 0,
    )


def check(config: ConfigDict) -> None:
    """Refuses numbers that cannot work, before anything is computed."""
    model, train = config.model, config.train
    for key in NETWORK_KEYS.get(model.network, ()):
        if key not in model:
            raise UserError(
                f"config.model.network={model.network} wants config.model.{key}, which "
                "this config has not: start from another --config"
            )
    if "log_scale_range" in model:
        limits = tuple(model.log_scale_range)
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise UserError(
                f"config.model.log_scale_range wants LOW,HIGH, got {limits}"
            )
    if config.data.name == "custom" and config.beta.kappa == 0.0:
        raise UserError(
            "config.beta.kappa is not given: `python -m experiments.suggest_kappa "
            f"--config=custom --config.data.path={config.data.path}` measures one"
        )
    values: dict[str, Any] = dict(flatten(config))
    for name in sorted(POSITIVE & values.keys()):
        value = values[name]
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"config.{name} must be positive, got {value}")
    pairs = model.get("initialisation") == "looks_linear"
    for name in sorted(WIDTHS & values.keys()):
        if not values[name]:
            raise UserError(f"config.{name} wants widths >= 1, got ()")
        for width in values[name]:
            if width < 1 or (pairs and width % 2):
                raise UserError(
                    f"config.{name} must be positive{' and even' if pairs else ''}, "
                    f"got {width}"
                )
    ends = config.graph.start_targets, config.graph.end_targets
    if not len(ends[0]) == len(ends[1]) > 0:
        raise UserError(
            "config.graph wants as many start_targets as end_targets, and some, got "
            f"{ends[0]} and {ends[1]}"
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
    if not 0.0 <= train.average_decay < 1.0:
        raise UserError(
            f"config.train.average_decay must be in [0, 1), got {train.average_decay}"
        )
    for name in ("weight_decay", "prior_weight_decay"):
        decay = getattr(train, name)
        if not (decay >= 0.0 and math.isfinite(decay)):
            raise UserError(f"config.train.{name} must be >= 0, got {decay}")
    steps = [0, *train.milestones]  # later ones than num_steps are not reached
    if any(step >= later for step, later in itertools.pairwise(steps)):
        raise UserError(
            f"config.train.milestones wants growing steps from 1, got {steps[1:]}"
        )
    if not 0.0 < train.milestone_factor < 1.0:
        raise UserError(
            "config.train.milestone_factor must be between 0 and 1, got "
            f"{train.milestone_factor}"
        )
    if not 0.0 <= model.get("dropout", 0.0) < 1.0:
        raise UserError(f"config.model.dropout must be in [0, 1), got {model.dropout}")
    if train.patience < 0:
        raise UserError(f"config.train.patience must be >= 0, got {train.patience}")
    for name in ("patience", "stream_data"):
        if getattr(train, name) and config.num_seeds > 1:
            raise UserError(
                f"config.train.{name} is for one seed: num_seeds must be 1, "
                f"got {config.num_seeds}"
            )
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed must be from 0 to 2^31 - 1, got {config.seed}")
    if train.num_steps * train.batch_size >= 2**31:
        raise UserError(
            f"num_steps * batch_size must stay below 2^31, got "
            f"{train.num_steps} * {train.batch_size}"
        )


def build_data(config: ConfigDict) -> Dataset:
    """Loads or generates the data set; files from data.dir, else VHP_DATA_DIR."""
    loaders: dict[str, Callable[..., Dataset]] = {
        "pendulum": pendulum.load,
        "static_mnist": static_mnist.load,
        "mnist": mnist.load,
        "fashion_mnist": fashion_mnist.load,
        "omniglot": omniglot.load,
        "freyfaces": freyfaces.load,
        "cmu_mocap": cmu_mocap.load,
        "faces": faces.load,
        "chairs": chairs.load,
        "chairs_synthetic": chairs_synthetic.load,
        "custom": custom.load,
    }
    load = choose("data.name", config.name, loaders)
    options = {key: value for key, value in config.items() if key != "name"}
    for key in options:
        argument = "directory" if key == "dir" else key
        if argument not in inspect.signature(load).parameters:
            raise UserError(
                f"config.data.name={config.name} has no config.data.{key}: start from "
                "another --config"
            )
    if "dir" in options:
        options["directory"] = options.pop("dir") or os.environ.get(DATA_DIR) or None
    if "cache_dir" in options:
        options["cache_dir"] = options["cache_dir"] or None
    try:
        return load(**options)
    except DataError as error:
        if options.get("directory", "") is None:
            how = f"--config.data.dir=DIR or {DATA_DIR}"
            raise DataError(f"{error} ({how})") from error
        raise


class Networks(NamedTuple):
    """The four networks of a VHP.

    Attributes:
      encoder: q(z|x).
      decoder: p(x|z).
      prior_encoder: q(zeta|z).
      prior_decoder: p(z|zeta).
    """

    encoder: nn.Module
    decoder: nn.Module
    prior_encoder: nn.Module
    prior_decoder: nn.Module


def build_model(config: ConfigDict, dataset: Dataset) -> VAE:
    """The networks of Table 3 around the chosen prior."""
    shape = dataset.train.examples.shape[1:]
    makers: dict[str, Callable[..., Networks]] = {
        "relu_mlp": relu_mlp,
        "gated_mlp": gated_mlp,
        "gated_conv": gated_conv,
        "conv": conv,
        "fitting_mlp": gated_mlp if dataset.standardisation is None else relu_mlp,
    }
    built = choose("model.network", config.network, makers)(config, shape)
    prior_makers: dict[str, Callable[[], priors.Prior]] = {
        "vhp": lambda: priors.HierarchicalPrior(
            encoder=built.prior_encoder,
            decoder=built.prior_decoder,
            latent_dim=config.latent_dim,
            inner_dim=config.inner_dim,
        ),
        "vamp": lambda: priors.VampPrior(
            encoder=built.encoder,
            latent_dim=config.latent_dim,
            example_shape=shape,
            num_components=config.num_pseudo_inputs,
            bounds=(0.0, 1.0) if dataset.standardisation is None else None,
        ),
        "mixture": lambda: priors.MixturePrior(
            config.latent_dim, config.num_components
        ),
        "standard_normal": lambda: priors.StandardNormal(config.latent_dim),
    }
    prior = choose("model.prior", config.prior, prior_makers)()
    return VAE(built.encoder, built.decoder, prior)


def relu_mlp(config: ConfigDict, shape: tuple[int, ...]) -> Networks:
    """Fully connected ReLU networks and a Gaussian decoder: the pendulum's."""
    network = functools.partial(
        networks.NormalMLP,
        tuple(config.hidden),
        initialisation=config.initialisation,
    )
    return Networks(
        encoder=networks.Flat(
            network(
                features=config.latent_dim,
                head_scale=config.encoder_head_scale,
                scale_init=config.posterior_scale_init,
            )
        ),
        decoder=networks.GaussianDecoder(
            tuple(config.hidden),
            math.prod(shape),
            initialisation=config.initialisation,
            head_scale=config.decoder_head_scale,
            scale_init=config.decoder_scale_init,
            dropout=config.dropout,
        ),
        prior_encoder=network(
            features=config.inner_dim,
            head_scale=config.prior_encoder_head_scale,
            scale_init=config.prior_encoder_scale_init,
        ),
        prior_decoder=network(
            features=config.latent_dim,
            head_scale=config.prior_decoder_head_scale,
            scale_init=config.prior_decoder_scale_init,
        ),
    )


def gated_mlp(config: ConfigDict, shape: tuple[int, ...]) -> Networks:
    """Gated fully connected networks and a Bernoulli decoder: the peers' MLP."""
    hidden = tuple(config.hidden)
    return Networks(
        encoder=networks.Flat(gated_normal(config, hidden, config.latent_dim)),
        decoder=networks.BernoulliDecoder(
            hidden, math.prod(shape), dropout=config.dropout
        ),
        **gated_prior(config),
    )


def gated_conv(config: ConfigDict, shape: tuple[int, ...]) -> Networks:
    """Gated convolutions and a Bernoulli decoder: Table 3's images of 28 pixels."""
    layers = networks.GatedConvEncoder.layers
    check_length("strides", config.strides, layers)
    return Networks(
        encoder=networks.GatedConvEncoder(
            config.latent_dim,
            tuple(
                (channels, size, stride)
                for (channels, size, _), stride in zip(
                    layers, config.strides, strict=True
                )
            ),
            log_scale_range=tuple(config.log_scale_range),
        ),
        decoder=networks.GatedConvDecoder(shape),
        **gated_prior(config),
    )


def conv(config: ConfigDict, shape: tuple[int, ...]) -> Networks:
    """ReLU convolutions and a Bernoulli decoder: Table 3's faces and chairs."""
    check_length("channels", config.channels, networks.FACE_LAYERS)
    layers = tuple(
        (channels, size, stride)
        for channels, (_, size, stride) in zip(
            config.channels, networks.FACE_LAYERS, strict=True
        )
    )
    limits = tuple(config.log_scale_range)
    encoder = networks.ConvEncoder(config.latent_dim, layers, config.dense, limits)
    hidden = tuple(config.prior_hidden)
    prior = functools.partial(networks.NormalMLP, hidden, log_scale_range=limits)
    return Networks(
        encoder=encoder,
        decoder=networks.ConvDecoder(shape, layers, config.dense),
        prior_encoder=prior(features=config.inner_dim),
        prior_decoder=prior(features=config.latent_dim),
    )


def check_length(key: str, values: Sequence[int], layers: Sequence[object]) -> None:
    """Refuses another number of values than there are layers."""
    if len(values) != len(layers):
        raise UserError(
            f"config.model.{key} wants {len(layers)} numbers, got {tuple(values)}"
        )


def gated_prior(config: ConfigDict) -> dict[str, nn.Module]:
    """Gated fully connected q(zeta|z) and p(z|zeta)."""
    hidden = tuple(config.prior_hidden)
    return {
        "prior_encoder": gated_normal(config, hidden, config.inner_dim),
        "prior_decoder": gated_normal(config, hidden, config.latent_dim),
    }


def gated_normal(
    config: ConfigDict, hidden: tuple[int, ...], features: int
) -> nn.Module:
    """A gated MLP onto a normal with a limited log-scale."""
    limits = tuple(config.log_scale_range)
    return networks.NormalMLP(hidden, features, gated=True, log_scale_range=limits)


def build_init(
    config: ConfigDict, model: VAE, dataset: Dataset
) -> Callable[[PRNGKey], Params]:
    """Draws all parameters, and sets those that start from statistics of the data."""
    examples = dataset.train.examples

    def principal(params: Params, key: PRNGKey) -> Params:
        if config.initialisation != "looks_linear":
            raise UserError("config.model.start=principal wants looks_linear networks")
        components = starts.principal_components(examples, config.latent_dim)
        scale = config.encoder_head_scale
        return starts.start_principal(params, key, components, scale)

    def fitting(params: Params, key: PRNGKey) -> Params:
        """Of ReLU networks, principal where it can be; of others random."""
        if not isinstance(model.decoder, networks.GaussianDecoder):
            return params
        if config.initialisation != "looks_linear":
            return centred(params, key)
        scale = config.encoder_head_scale
        hidden, latent_dim = config.hidden, config.latent_dim
        return starts.fitting_start(examples, hidden, latent_dim, scale)(params, key)

    def centred(params: Params, key: PRNGKey) -> Params:
        del key
        flat = examples.reshape(len(examples), -1)
        return starts.centre(params, flat.mean(axis=0, dtype="f8"))

    def pseudo_inputs(params: Params, key: PRNGKey) -> Params:
        key = jax.random.fold_in(key, 1)  # the start before it draws from the key
        drawn = priors.init_pseudo_inputs(key, examples, config.num_pseudo_inputs)
        return params._replace(prior={"pseudo_inputs": drawn})

    choices: dict[str, Callable[[Params, PRNGKey], Params]] = {
        "principal": principal,
        "centred": centred,
        "fitting": fitting,
        "random": lambda params, key: params,
    }
    steps = [choose("model.start", config.get("start", "random"), choices)]
    if isinstance(model.prior, priors.VampPrior):
        steps.append(pseudo_inputs)

    def init_params(key: PRNGKey) -> Params:
        key_init, key_start = jax.random.split(key)
        params = model.init(key_init, examples.shape[1:])
        for step in steps:
            params = step(params, key_start)
        return params

    return init_params


def build_objective(
    config: ConfigDict, model: VAE, dropout: bool = False
) -> objectives.Objective:
    """The VHP Lagrangian's terms or the IWAE bound's."""
    makers = {
        "vhp": objectives.make_vhp_objective,
        "iwae": objectives.make_iwae_objective,
    }
    constraint = choose(
        "objective.constraint", config.constraint, objectives.CONSTRAINTS
    )
    return choose("objective.name", config.name, makers)(
        model, config.num_samples, constraint, dropout
    )


def build_beta_scheme(config: ConfigDict, warm_up_steps: int) -> beta.BetaScheme:
    """One of the schemes of `vhp_jax.beta`."""
    common = {"kappa": config.kappa, "alpha": config.alpha}
    rewo = {"nu": config.nu, "tau": config.tau, "beta_init": config.init}
    schemes: dict[str, Callable[[], beta.BetaScheme]] = {
        "rewo": lambda: beta.rewo(**common, **rewo),
        "rewo_alternative": lambda: beta.rewo_alternative(**common, **rewo),
        "geco": lambda: beta.geco(**common, nu=config.nu, beta_init=config.value),
        "warm_up": lambda: beta.warm_up(warm_up_steps, **common),
        "constant": lambda: beta.constant(config.value, **common),
    }
    return choose("beta.scheme", config.scheme, schemes)()


def build_optimizers(config: ConfigDict) -> training.OptimizerPair:
    """Adam for both halves; a decoder's log-scale may have a rate of its own."""

    def adam(learning_rate: float, decay: float) -> optax.GradientTransformation:
        if decay == 0.0:
            return optax.adam(learning_rate)
        return optax.adamw(learning_rate, weight_decay=decay, mask=is_kernel)

    vae = adam(config.learning_rate, config.weight_decay)
    if "scale_learning_rate" in config:
        ratio = config.scale_learning_rate / config.learning_rate
        vae = optax.chain(vae, optax.masked(optax.scale(ratio), is_log_scale))
    prior = adam(config.prior_learning_rate, config.prior_weight_decay)
    return training.OptimizerPair(vae, prior)


def build_rate_factor(config: ConfigDict) -> optax.Schedule | None:
    """What the learning rates are multiplied by; None where they do not change."""
    if not config.milestones:
        return None
    return optax.piecewise_constant_schedule(
        1.0, dict.fromkeys(config.milestones, config.milestone_factor)
    )


def is_kernel(params: PyTree) -> PyTree:
    """Marks the leaves that are weights: no biases, scales or pseudo-inputs."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path).endswith("['kernel']"), params
    )


def is_log_scale(params: PyTree) -> PyTree:
    """Marks the leaves that are a decoder's log-scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path).endswith("['log_scale']"), params
    )


def choose(key: str, name: str, options: dict[str, Callable]) -> Callable:
    """options[name], or a UserError that lists what there is."""
    if name not in options:
        raise UserError(
            f"config.{key} must be one of {', '.join(sorted(options))}, got {name!r}"
        )
    return options[name]
