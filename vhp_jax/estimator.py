"""VHP with scikit-learn's habits: a thin face over the functional core.

    from vhp_jax import VHP

    model = VHP(latent_dim=2, random_state=0).fit(x)
    z = model.transform(x)

Everything here is glue: the networks, the objective, the training loop and the measures
are those of the other rooms, and those stay the interface to build on.
"""

import functools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from vhp_jax import (
    beta,
    evaluation,
    graph,
    networks,
    objectives,
    sharing,
    starts,
    training,
)
from vhp_jax import kappa as kappas
from vhp_jax.data import Standardisation, custom
from vhp_jax.model import VAE
from vhp_jax.priors import HierarchicalPrior
from vhp_jax.training import progress_text
from vhp_jax.types import Params, PRNGKey

ROWS = 256  # examples per compiled call, always: a row is coded alike in any company
INTERVAL = 100  # steps per compiled call of the training loop
RELAXATION = 1.1  # of a kappa that was suggested and is not reached


class VHP(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """VAE with a learned hierarchical prior, trained with REWO (Klushyn et al., 2019).

    Args:
      latent_dim: dimensions of z.
      kappa: RMS error per feature, in scaled units, under which training holds the
        reconstructions; "auto" measures one first (`vhp_jax.kappa`).
      likelihood: "gaussian", "bernoulli", or "auto" by the data
        (`vhp_jax.data.custom.choose_units`).
      scaling: of Gaussian data: "columns", "common", "none" or "auto" by the data.
      hidden: widths of the hidden layers of all networks.
      inner_dim: dimensions of zeta; None for as many as z.
      num_samples: K, importance samples of zeta.
      batch_size: examples a step.
      learning_rate: of Adam.
      max_steps: training steps.
      nu: learning rate of beta, in 1 / (units of C); "auto": 30 / (max_steps kappa^2),
        and at most 1 / (tau kappa^2), beyond which beta overshoots 1.
      tau: slope of the update of beta.
      beta_init: beta until the error is below kappa.
      max_initial_steps: steps after which a kappa that is not reached is given up;
        None: half of `max_steps`.
      kappa_steps: at most, of the run that measures kappa; None: half of `max_steps`.
      random_state: int, RandomState or None, as everywhere in scikit-learn. The same
        int gives the same bits.
      verbose: 0 says nothing, 1 what was chosen and how it ended, 2 also the progress.

    Attributes:
      model_: the `vhp_jax.VAE`.
      params_: its parameters, NumPy.
      likelihood_: "gaussian" or "bernoulli".
      mean_: [*example], what the data were centred with.
      scale_: [*example], what they were divided by.
      example_shape_: of one example.
      n_features_in_: values of one example.
      kappa_: the bound that was trained with.
      kappa_suggestion_: where it comes from; None for one that was given.
      history_: columns by name, one entry per `INTERVAL` steps, as in metrics.jsonl.
      n_iter_: training steps.
      seed_: what all draws start from.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        kappa: float | str = "auto",
        likelihood: str = "auto",
        scaling: str = "auto",
        hidden: tuple[int, ...] = (256, 256),
        inner_dim: int | None = None,
        num_samples: int = 16,
        batch_size: int = 128,
        learning_rate: float = 5e-4,
        max_steps: int = 6_000,
        nu: float | str = "auto",
        tau: float = 3.0,
        beta_init: float = 0.05,
        max_initial_steps: int | None = None,
        kappa_steps: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 1,
    ):
        self.latent_dim = latent_dim
        self.kappa = kappa
        self.likelihood = likelihood
        self.scaling = scaling
        self.hidden = hidden
        self.inner_dim = inner_dim
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.nu = nu
        self.tau = tau
        self.beta_init = beta_init
        self.max_initial_steps = max_initial_steps
        self.kappa_steps = kappa_steps
        self.random_state = random_state
        self.verbose = verbose

    # --- Training --------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains on X.

        Args:
          X: examples: rows [N, D], images [N, H, W] or [N, H, W, C], a generator of
            batches of either, or the name of a data set of images of
            tensorflow-datasets.
          y: not looked at.

        Raises:
          ValueError: parameters or examples that cannot be trained with, a kappa that
            is not reached, or numbers that did not stay finite. The estimator is as
            it was before, then.
        """
        del y
        before = dict(self.__dict__)
        try:
            self._fit(X)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _fit(self, X: Any) -> None:
        self._check_parameters()
        X = self._examples(X, reset=True)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        units = custom.choose_units(X, self.likelihood, self.scaling)
        self.likelihood_ = units.likelihood
        self.mean_, self.scale_ = units.standardisation
        self._say(1, units.reason)
        examples = units.standardisation.apply(X)
        self.model_ = self._make_model(examples)
        keys = jax.random.split(jax.random.key(self.seed_), 3)
        key_split, key_kappa, key_train = keys
        self.kappa_suggestion_ = None
        if self.kappa == "auto":
            found = self._suggest(key_split, key_kappa, examples)
            self.kappa_suggestion_ = found
            self._say(1, f"kappa = {found.kappa:g}: {found.reasoning}")
        self._train(key_train, self._make_start(examples), examples)

    def _check_parameters(self) -> None:
        """Refuses parameters that cannot work."""
        whole = ("latent_dim", "num_samples", "batch_size", "max_steps")
        optional = ("inner_dim", "max_initial_steps", "kappa_steps")
        for name in (*whole, *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not (isinstance(value, numbers.Integral) and int(value) >= 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        positive = {n: getattr(self, n) for n in ("learning_rate", "tau", "beta_init")}
        automatic = {n: getattr(self, n) for n in ("kappa", "nu")}
        positive |= {n: value for n, value in automatic.items() if value != "auto"}
        for name, value in positive.items():
            words = ' or "auto"' if name in automatic else ""
            is_number = isinstance(value, numbers.Real)
            if not (is_number and 0.0 < float(value) < math.inf):
                raise ValueError(f"{name} must be positive{words}, got {value!r}")
        widths = tuple(self.hidden) if isinstance(self.hidden, Iterable) else ()
        if not widths or any(
            not isinstance(w, numbers.Integral) or w < 1 for w in widths
        ):
            raise ValueError(f"hidden must be widths >= 1, got {self.hidden!r}")
        if self.max_steps * self.batch_size >= 2**31:
            raise ValueError(
                "max_steps * batch_size must stay below 2^31, got "
                f"{self.max_steps} * {self.batch_size}"
            )

    def _make_model(self, examples: np.ndarray) -> VAE:
        """Table 3's fully connected networks, for the likelihood that was chosen."""
        hidden, pixels = tuple(self.hidden), math.prod(examples.shape[1:])
        inner_dim = self.inner_dim or self.latent_dim
        make: Callable[..., networks.NormalMLP]
        if self.likelihood_ == "bernoulli":
            make = functools.partial(
                networks.NormalMLP, hidden, gated=True, log_scale_range=(-6.0, 1.0)
            )
            decoder: Any = networks.BernoulliDecoder(hidden, pixels)
            encoder = make(self.latent_dim)
            prior = HierarchicalPrior(
                make(inner_dim), make(self.latent_dim), self.latent_dim, inner_dim
            )
            return VAE(networks.Flat(encoder), decoder, prior)
        even = all(width % 2 == 0 for width in hidden)
        style = "looks_linear" if even else "he"
        make = functools.partial(networks.NormalMLP, hidden, initialisation=style)
        decoder = networks.GaussianDecoder(hidden, pixels, style, scale_init=0.5)
        encoder = make(self.latent_dim, scale_init=0.05)
        prior = HierarchicalPrior(
            make(inner_dim, scale_init=0.3),
            make(self.latent_dim, head_scale=0.0, scale_init=0.5),
            self.latent_dim,
            inner_dim,
        )
        return VAE(networks.Flat(encoder), decoder, prior)

    def _make_start(self, examples: np.ndarray) -> Callable[[PRNGKey], Params]:
        """Draws the parameters; Gaussian networks start at the linear VAE's optimum."""
        model, shape = self.model_, examples.shape[1:]
        if self.likelihood_ == "bernoulli":
            return lambda key: model.init(key, shape)
        start = starts.fitting_start(examples, self.hidden, self.latent_dim)

        def init(key: PRNGKey) -> Params:
            key_init, key_start = jax.random.split(key)
            return start(model.init(key_init, shape), key_start)

        return init

    def _suggest(
        self,
        key_split: PRNGKey,
        key: PRNGKey,
        examples: np.ndarray,
    ) -> kappas.KappaSuggestion:
        """Measures a kappa with a tenth of the examples held out, also of the start."""
        if len(examples) < 10:
            raise ValueError(
                f'kappa="auto" wants at least 10 examples, got {len(examples)}: '
                "give a number"
            )
        order = np.asarray(jax.random.permutation(key_split, len(examples)))
        num_held_out = max(2, min(len(examples) // 10, kappas.NUM_EXAMPLES))
        held_out, seen = np.split(examples[order], [num_held_out])
        steps = self.kappa_steps or max(20, self.max_steps // 2)
        return kappas.suggest_kappa(
            key,
            self._make_start(seen),
            objectives.make_vhp_objective(self.model_, 1),
            _optimizers(self.learning_rate),
            seen,
            held_out,
            batch_size=self.batch_size,
            num_steps=max(20, steps),
            measure=objectives.make_vhp_objective(self.model_, self.num_samples),
        )

    def _train(
        self,
        key: PRNGKey,
        start: Callable[[PRNGKey], Params],
        examples: np.ndarray,
    ) -> None:
        """Runs the loop; sets what is fitted."""
        found = self.kappa_suggestion_
        self.kappa_ = float(found.kappa if found is not None else self.kappa)
        optimizers = _optimizers(self.learning_rate)
        scheme, loop = _compiled(self._recipe())
        state = training.init_state(key, start, optimizers, scheme)
        data = jnp.asarray(examples)
        limit = self.max_initial_steps or max(1, self.max_steps // 2)
        limit = min(limit, self.max_steps)
        columns: list[dict[str, Any]] = []
        done, told = 0, False
        while done < self.max_steps:
            length = min(INTERVAL, self.max_steps - done)
            state, metrics = loop(state, data, num_steps=length)
            done += length
            metrics = jax.tree.map(np.asarray, metrics)
            last = training.summarise(done, self.kappa_, metrics)
            columns.append(last)
            self._say(2, f"step {done}/{self.max_steps}: {progress_text(last)}")
            if not math.isfinite(last["loss"]):
                raise ValueError(
                    f"not finite within {done} steps: try a smaller learning_rate than "
                    f"{self.learning_rate:g}"
                )
            if not last["initial_phase"]:
                continue
            seen = [column["constraint"] for column in columns]
            least = math.sqrt(min(seen))
            if done >= limit:
                if found is None:
                    raise ValueError(
                        f"kappa = {self.kappa_:g} was not reached in {done} steps: the "
                        f"least error was {least:.3g}; try kappa={1.1 * least:.2g}, "
                        'kappa="auto", wider hidden, or more max_initial_steps'
                    )
                if done >= self.max_steps:
                    self._say(
                        1,
                        f"the suggested kappa = {self.kappa_:g} was not reached in "
                        f"{done} steps: beta stayed at {self.beta_init:g}",
                    )
                    break
                self.kappa_ = float(f"{RELAXATION * least:.2g}")
                self._say(
                    1,
                    f"the suggested kappa = {found.kappa:g} was not reached in {done} "
                    f"steps: going on with {self.kappa_:g}",
                )
                _, loop = _compiled(self._recipe())
                limit = done + INTERVAL
            elif not told and 4 * done >= limit:
                steps = [column["step"] for column in columns]
                forecast = kappas.steps_to_reach(steps, seen, self.kappa_**2)
                told = forecast > limit
                if told and found is None:
                    wanted = (
                        f"{forecast:.0f}" if forecast < math.inf else "no number of"
                    )
                    warnings.warn(
                        f"kappa = {self.kappa_:g} looks out of reach: the error is "
                        f"{least:.3g} after {done} steps, at this pace {wanted} steps "
                        f"would do, {limit} are granted",
                        ConvergenceWarning,
                        stacklevel=3,
                    )
        self.params_ = jax.tree.map(np.asarray, state.params)
        self.n_iter_ = done
        self.history_ = {
            name: np.array([column[name] for column in columns]) for name in columns[0]
        }
        self._say(
            1,
            f"{done} steps: distortion {last['distortion']:.2f}, rate "
            f"{last['rate']:.2f} nats, error {math.sqrt(last['constraint']):.3g}, "
            f"beta {last['beta']:.2g}",
        )

    def _recipe(self) -> "_Recipe":
        """What the compiled loop depends on."""
        nu = self.nu
        if nu == "auto":
            nu = min(30.0 / self.max_steps, 1.0 / self.tau) / self.kappa_**2
        return _Recipe(
            self.model_,
            int(self.num_samples),
            self.kappa_,
            float(nu),
            float(self.tau),
            float(self.beta_init),
            float(self.learning_rate),
            int(self.batch_size),
        )

    # --- Use -------------------------------------------------------------------------

    def transform(self, X: Any) -> np.ndarray:
        """Means of q(z|x), float32 [N, latent_dim]."""
        return self.encode(X).mean

    def encode(self, X: Any) -> evaluation.Encodings:
        """Means and standard deviations of q(z|x), float32 [N, latent_dim] each."""
        check_is_fitted(self)
        return self._encode(self._scaled(X))

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """E[x|z] in the units and the shape of the data, float32 [N, *example].

        Args:
          Z: [N, latent_dim].
        """
        check_is_fitted(self)
        z = _one_line(lambda: check_array(Z, dtype=np.float32))
        if z.shape[1] != self.model_.latent_dim:
            raise ValueError(
                f"Z has {z.shape[1]} columns, wanted {self.model_.latent_dim}"
            )
        decoded = evaluation.decode(self.model_, self.params_, z, ROWS)
        decoded = decoded.reshape(len(z), *self.example_shape_)
        return self._units().invert(decoded)

    def sample(self, num: int = 1, random_state: Any = None) -> np.ndarray:
        """Means of x of draws from the learned prior, float32 [num, *example].

        Args:
          num: how many.
          random_state: of the draws; None for the one that the model was fitted with,
            which gives the same samples each time.
        """
        return self.inverse_transform(self.sample_latent(num, random_state))

    def sample_latent(self, num: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws of z from the learned prior, float32 [num, latent_dim].

        Args:
          num: how many.
          random_state: as of `sample`, which decodes the same draws.
        """
        check_is_fitted(self)
        return self._draw(num, random_state)

    def log_likelihood(
        self, X: Any, num_samples: int = 500, random_state: Any = None
    ) -> np.ndarray:
        """Importance-sampled log p(x) of each example, nats, float64 [N].

        In expectation a lower bound that rises with `num_samples`. Of Gaussian data it
        is the density in their own units; of bytes, of their 255ths as means. Draws
        are by the position in X: the same example elsewhere has another estimate.

        Args:
          X: examples.
          num_samples: draws of (z, zeta) per example.
          random_state: as of `sample`.
        """
        check_is_fitted(self)
        if not (isinstance(num_samples, numbers.Integral) and num_samples >= 1):
            raise ValueError(f"num_samples must be >= 1, got {num_samples!r}")
        found = evaluation.log_likelihood(
            self.model_,
            self.params_,
            self._key("likelihood", random_state),
            self._scaled(X),
            int(num_samples),
        )
        if self.likelihood_ == "bernoulli":
            return found.log_likelihood
        return found.log_likelihood - np.log(self.scale_).sum()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `log_likelihood` over X, nats per example."""
        del y
        return float(self.log_likelihood(X).mean())

    def interpolate(
        self,
        a: Any,
        b: Any,
        num: int = 10,
        *,
        num_nodes: int = 1_000,
        num_neighbours: int = 18,
    ) -> np.ndarray:
        """Decoded points of the shortest path from a to b through the latent graph.

        The graph is over samples of the prior (Sec. 2.3), its components joined by
        their shortest bridges.

        Args:
          a: one example.
          b: another one.
          num: points, evenly spaced, the two ends with them.
          num_nodes: samples of the prior.
          num_neighbours: that each of them is joined to.

        Returns:
          float32 [num, *example]; the ends are the reconstructions of a and b.
        """
        check_is_fitted(self)
        for name, value in (("num", num), ("num_nodes", num_nodes)):
            if not (isinstance(value, numbers.Integral) and value >= 2):
                raise ValueError(f"{name} must be a whole number >= 2, got {value!r}")
        ends = [np.asarray(end).reshape(1, *self.example_shape_) for end in (a, b)]
        start, end = self._encode(self._scaled(np.concatenate(ends))).mean
        found, num_bridges = evaluation.prior_graph(
            self.model_, self.params_, self._key("samples"), num_nodes, num_neighbours
        )
        if num_bridges:
            parts = num_bridges + 1
            self._say(1, f"the latent graph had {parts} parts, joined by bridges")
        path = graph.shortest_path(found, start, end)
        return self.inverse_transform(graph.resample_path(path.points, num))

    # --- Keeping ---------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a self-contained folder: see `vhp_jax.sharing`."""
        check_is_fitted(self)
        sharing.write(self.shared(), folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save`, or the command `export`, has written; the same bits.

        Raises:
          ExportError: the folder is not the whole of an export.
        """
        shared = sharing.read(folder)
        facts, shape = shared.facts, shared.example_shape
        kept = dict(shared.config.get("estimator") or {})
        known = set(cls().get_params())
        estimator = cls(**{k: v for k, v in kept.items() if k in known})
        if "hidden" in kept:
            estimator.hidden = tuple(kept["hidden"])
        else:  # an export of a run
            estimator.latent_dim = shared.model.latent_dim
        estimator.model_, estimator.params_ = shared.model, shared.params
        is_normal = isinstance(shared.model.decoder, networks.GaussianDecoder)
        estimator.likelihood_ = "gaussian" if is_normal else "bernoulli"
        units = shared.standardisation
        estimator.mean_ = np.zeros(shape) if units is None else units.mean
        estimator.scale_ = np.ones(shape) if units is None else units.scale
        estimator.example_shape_ = shape
        estimator.n_features_in_ = math.prod(shape)
        if names := shared.config.get("feature_names"):
            estimator.feature_names_in_ = np.array(names, dtype=object)
        estimator.kappa_ = float(facts.get("kappa") or math.nan)
        estimator.kappa_suggestion_ = None
        estimator.history_ = {}
        estimator.n_iter_ = int(facts.get("steps") or 0)
        estimator.seed_ = int(facts.get("seed") or 0)
        return estimator

    def shared(self) -> sharing.SharedModel:
        """The fitted model as `vhp_jax.sharing` knows it."""
        check_is_fitted(self)
        parameters = self.get_params()
        seed = parameters["random_state"]
        if not isinstance(seed, numbers.Integral | None):
            parameters["random_state"] = None  # a RandomState has no place in JSON
        is_plain = not np.any(self.mean_) and np.all(self.scale_ == 1.0)
        config: dict[str, Any] = {"estimator": parameters}
        if hasattr(self, "feature_names_in_"):
            config["feature_names"] = list(self.feature_names_in_)
        return sharing.SharedModel(
            self.model_,
            self.params_,
            tuple(self.example_shape_),
            None if is_plain else self._units(),
            config,
            {
                "likelihood": self.likelihood_,
                "kappa": self.kappa_,
                "steps": self.n_iter_,
                "seed": self.seed_,
            }
            | {
                f"last {name}": float(self.history_[name][-1])
                for name in ("distortion", "rate", "beta")
                if name in self.history_
            },
        )

    # --- Within ----------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.model_.latent_dim

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _units(self) -> Standardisation:
        return Standardisation(np.asarray(self.mean_), np.asarray(self.scale_))

    def _examples(self, X: Any, reset: bool) -> np.ndarray:
        """X as an array of examples, checked; remembers its shape with `reset`."""
        least = 2 if reset else 1
        X = _gathered(X)
        if isinstance(X, list | tuple | np.ndarray):
            try:
                array = np.asarray(X)
            except ValueError:
                array = custom.checked("X", X)  # says which one is ragged
            is_plain = array.ndim == 2 and array.dtype.kind == "f"
            if array.size and (array.ndim > 2 or is_plain):
                array = custom.checked("X", array, least=1)
            if array.ndim > 2:
                if len(array) < least:
                    raise ValueError(f"X has 1 sample, wanted at least {least}")
                self._check_shape(array.shape[1:], reset)
                return array
            X = array
        array = _one_line(
            lambda: validate_data(self, X, reset=reset, ensure_min_samples=least)
        )
        array = custom.checked("X", array, least)
        self._check_shape(array.shape[1:], reset)
        return array

    def _check_shape(self, shape: tuple[int, ...], reset: bool) -> None:
        if reset:
            self.example_shape_ = shape
            self.n_features_in_ = math.prod(shape)
        elif shape != tuple(self.example_shape_):
            raise ValueError(
                f"X has examples of shape {shape}, but VHP was fitted with "
                f"{tuple(self.example_shape_)}"
            )

    def _scaled(self, X: Any) -> np.ndarray:
        """Examples in the units of the model."""
        array = self._examples(X, reset=False)
        scaled = self._units().apply(array)
        if self.likelihood_ == "bernoulli" and not (
            0.0 <= scaled.min() <= scaled.max() <= 1.0
        ):
            raise ValueError(
                f"X has values from {array.min():g} to {array.max():g}, but VHP was "
                f"fitted with values from 0 to {np.max(self.scale_):g}; divide by the "
                'full scale before fit, or take likelihood="gaussian"'
            )
        return scaled

    def _encode(self, examples: np.ndarray) -> evaluation.Encodings:
        parts = [
            evaluation.encode_dataset(self.model_, self.params_, part, ROWS)
            for part in _in_rows(examples)
        ]
        fields = (np.concatenate(field) for field in zip(*parts, strict=True))
        return evaluation.Encodings(*(field[: len(examples)] for field in fields))

    def _draw(self, num: int, random_state: Any) -> np.ndarray:
        """Samples of z from the prior, float32 [num, latent_dim]."""
        if not (isinstance(num, numbers.Integral) and num >= 1):
            raise ValueError(f"num must be a whole number >= 1, got {num!r}")
        key = self._key("samples", random_state)
        return evaluation.sample_prior(self.model_, self.params_, key, int(num))

    def _key(self, use: str, random_state: Any = None) -> PRNGKey:
        """A key of its own for each use, none that training uses; or one's own."""
        if random_state is not None:
            seed = check_random_state(random_state).randint(2**31 - 1)
            return jax.random.key(int(seed))
        number = 1_000_000 + ("likelihood", "samples").index(use)
        return jax.random.fold_in(jax.random.key(self.seed_), number)

    def _say(self, level: int, text: str) -> None:
        if self.verbose >= level:
            print(text, flush=True)


class _Recipe(NamedTuple):
    """All that a compiled training loop depends on."""

    model: VAE
    num_samples: int
    kappa: float
    nu: float
    tau: float
    beta_init: float
    learning_rate: float
    batch_size: int


@functools.lru_cache(maxsize=16)
def _compiled(recipe: _Recipe) -> tuple[beta.BetaScheme, training.TrainLoop]:
    """Scheme and loop; kept, so that a second fit does not compile again."""
    scheme = beta.rewo(
        recipe.kappa, recipe.nu, tau=recipe.tau, beta_init=recipe.beta_init
    )
    objective = objectives.make_vhp_objective(recipe.model, recipe.num_samples)
    optimizers = _optimizers(recipe.learning_rate)
    step = training.make_train_step(objective, scheme, optimizers)
    loop = training.make_train_loop(step, recipe.batch_size)
    return scheme, training.jit_train_loop(loop)


def _optimizers(learning_rate: float) -> training.OptimizerPair:
    return training.OptimizerPair(optax.adam(learning_rate), optax.adam(learning_rate))


def _in_rows(array: np.ndarray) -> Iterable[np.ndarray]:
    """Parts of exactly `ROWS` rows, the last one filled up."""
    padding = [(0, -len(array) % ROWS)] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, padding, "edge")
    return padded.reshape(-1, ROWS, *array.shape[1:])


def _gathered(X: Any) -> Any:
    """The batches of a generator as one array, a data set's name as its images."""
    if isinstance(X, str):
        return custom.read_tfds(X)
    is_sized = any(hasattr(X, name) for name in ("__len__", "__array__", "shape"))
    if is_sized or not isinstance(X, Iterable):
        return X
    batches = [custom.checked("X", batch, least=1) for batch in X]
    shapes = {batch.shape[1:] for batch in batches}
    if len(shapes) != 1:
        seen = " and ".join(sorted(map(str, shapes))) or "no batch"
        raise ValueError(f"X gives {seen}, wanted batches of examples of one shape")
    return np.concatenate(batches)


def _one_line(read: Callable[[], Any]) -> Any:
    """Scikit-learn's own checks, their messages without line ends."""
    try:
        return read()
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise type(error)(text) from None
