"""The tables of the paper: each row a config with overrides, and what is measured."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli
from experiments.configs import pendulum_paper


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      name: as in the paper.
      config: name of the config.
      overrides: dotted key -> value, as on the command line.
      dataset: as in the results.
      paper: the paper's number, None if it gives none.
      published: another publication's number for the same class of networks.
    """

    name: str
    config: str
    overrides: Mapping[str, str]
    dataset: str = "pendulum"
    paper: float | None = None
    published: float | None = None

    def resolved(self, seed: int) -> ConfigDict:
        """The config of one seed."""
        return cli.load_config(
            self.config, [*self.overrides.items(), ("seed", str(seed))]
        )

    def command(self, seed: str) -> str:
        """A command line that repeats the row."""
        pairs = [*self.overrides.items(), ("seed", seed)]
        words = [f"--config.{key}={value}" for key, value in pairs]
        return shlex.join(
            ["python", "-m", "experiments.train", f"--config={self.config}", *words]
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that are measured alike.

    Attributes:
      rows: in the order of the paper.
      metric: of `experiments.metrics`, on the whole test set.
      description: what the numbers are, with their unit.
      header: the same, short, for mean and standard error.
      digits: after the point.
      folder: of the runs; tables may share it where their rows' names differ.
      details: what else of the metric's file the results keep, one value a seed.
      num_seeds: where the command line does not say.
      also: other metrics that are measured, or METRIC.KEY for another number of their
        files; one value a seed.
    """

    rows: tuple[Row, ...]
    metric: str
    description: str
    header: str
    digits: int
    folder: str
    details: tuple[str, ...]
    num_seeds: int
    also: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that are measured, each once; the table's own is the first."""
        others = [name.partition(".")[0] for name in self.also]
        return tuple(dict.fromkeys((self.metric, *others)))

    def path(self, workdir: str, row: Row, seed: int) -> Path:
        """Work directory of one seed of a row."""
        several = len({row.dataset for row in self.rows}) > 1
        folder = Path(workdir) / self.folder / (slug(row.dataset) if several else "")
        return folder / slug(row.name) / f"seed_{seed}"

    def named(self, name: str) -> Row:
        """The first row of that name."""
        return next(row for row in self.rows if row.name == name)


def slug(name: str) -> str:
    """A row's name as a folder's."""
    letters = "".join(c if c.isalnum() else " " for c in name.lower())
    return "_".join(letters.split())


# --- The pendulum: Table 1 -----------------------------------------------------------

GECO = {"beta.scheme": "geco"}
BOUND = {"beta.scheme": "constant"}
WARM_UP = {"beta.scheme": "warm_up"}
WARM_UP_200 = WARM_UP | {
    "beta.warm_up_epochs": "200",
    "train.num_steps": "48000",
    "train.snapshot_steps": "1000,12000,24000,48000",
}
IWAE = BOUND | {"objective.name": "iwae", "model.prior": "standard_normal"}
PLAIN = {f"model.{key}": str(value) for key, value in pendulum_paper.PLAIN.items()}


def pendulum_table(rows: Mapping[str, tuple[Mapping[str, str], float | None]]) -> Table:
    """Rows of (overrides, paper's number) of the main config."""
    return Table(
        tuple(
            Row(name, "pendulum", overrides, paper=paper)
            for name, (overrides, paper) in rows.items()
        ),
        metric="ols",
        description="OLS absolute error, radians, whole circle, test set",
        header="error, mean ± s.e. (rad)",
        digits=3,
        folder="pendulum_rows",
        details=("winding", "crossings", "largest_gap"),
        num_seeds=3,
    )


TABLE1 = pendulum_table(
    {
        "VHP + REWO": ({}, 0.054),
        "VHP + GECO": (GECO, 0.53),
        "VHP": (BOUND, 0.49),
        "VHP + WU (20 epochs)": (WARM_UP, 0.20),
        "VHP + WU (200 epochs)": (WARM_UP_200, 0.31),
        # Variants of the appendices.
        "VHP + REWO (App. B.1)": ({"beta.scheme": "rewo_alternative"}, None),
        "VHP + REWO (K = 1)": ({"objective.num_samples": "1"}, None),
        "IWAE (L=1)": (IWAE, None),
    }
)

# The same data and schemes from a plain initialisation.
TABLE1_PLAIN = pendulum_table(
    {
        "VHP + REWO (plain)": (PLAIN, 0.054),
        "VHP + GECO (plain)": (PLAIN | GECO, 0.53),
        "VHP (plain)": (PLAIN | BOUND, 0.49),
        "VHP + WU (20 epochs) (plain)": (PLAIN | WARM_UP, 0.20),
    }
)

# VHP + REWO with one choice at a time put back.
ABLATION = pendulum_table(
    {
        "centred start": ({"model.start": "centred"}, None),
        "random start": ({"model.start": "random"}, None),
        "He weights (centred start)": (
            {"model.initialisation": "he", "model.start": "centred"},
            None,
        ),
        "wide first posterior": ({"model.posterior_scale_init": "1.0"}, None),
        "wide first prior": ({"model.prior_decoder_scale_init": "1.0"}, None),
        "no image noise": ({"data.noise": "0.0"}, None),
        "hard rod": (
            {
                "data.rod_width": "1.0",
                "data.bob_width": "1.5",
                "data.rod_length": "5.0",
                "data.amplitude": "0.4",
            },
            None,
        ),
    }
)

# --- Images: Table 2 -----------------------------------------------------------------

METHODS = {
    "VHP + REWO": {},
    "VHP + GECO": GECO,
    "VampPrior": WARM_UP | {"model.prior": "vamp", "objective.num_samples": "1"},
    "IWAE (L=1)": IWAE,
    "IWAE (L=2)": BOUND | {"objective.name": "iwae"},
}
MLP_METHODS = METHODS | {
    "VAE": WARM_UP | {"model.prior": "standard_normal", "objective.num_samples": "1"},
    "VHP + WU (100 epochs)": WARM_UP,
}
DATASETS = {
    "static MNIST": {"VHP + REWO": 82.74, "VHP + GECO": 96.32, "VampPrior": 84.02}
    | {"IWAE (L=1)": 84.46, "IWAE (L=2)": 82.83},
    "dynamic MNIST": {"VHP + REWO": 78.88, "VHP + GECO": 95.01, "VampPrior": 80.42}
    | {"IWAE (L=1)": 81.36, "IWAE (L=2)": 80.66},
    "Fashion-MNIST": {"VHP + REWO": 225.37, "VHP + GECO": 234.73, "VampPrior": 232.78}
    | {"IWAE (L=1)": 226.83, "IWAE (L=2)": 225.39},
    "OMNIGLOT": {"VHP + REWO": 101.78, "VHP + GECO": 108.97, "VampPrior": 101.97}
    | {"IWAE (L=1)": 101.57, "IWAE (L=2)": 101.83},
}
# Tomczak and Welling (2018), gated MLPs of 300 units, 40 latents.
PUBLISHED_MLP = {"VampPrior": 85.57}


def likelihood_table(rows: tuple[Row, ...], folder: str, num_seeds: int) -> Table:
    """Rows whose test likelihood is estimated."""
    return Table(
        rows,
        metric="nll",
        description="negative test log-likelihood, nats, 5,000 importance samples",
        header="NLL, mean ± s.e. (nats)",
        digits=2,
        folder=folder,
        details=("mean_effective_sample_size", "pareto_k_share_above_0.7"),
        num_seeds=num_seeds,
    )


def config_of(dataset: str) -> str:
    """Name of a data set's config."""
    return slug(dataset)


# The paper's networks on the paper's data.
TABLE2 = likelihood_table(
    tuple(
        Row(name, config_of(dataset), overrides, dataset, paper=paper[name])
        for dataset, paper in DATASETS.items()
        for name, overrides in METHODS.items()
    ),
    folder="table2",
    num_seeds=3,
)

# The two-layer gated MLP of the peers, which a CPU can train.
TABLE2_MLP = likelihood_table(
    tuple(
        Row(
            name,
            "static_mnist_mlp",
            overrides,
            "static MNIST",
            published=PUBLISHED_MLP.get(name),
        )
        for name, overrides in MLP_METHODS.items()
    ),
    folder="table2_mlp",
    num_seeds=1,
)

# --- Human motion: Sec. 4.2 ----------------------------------------------------------

MOTION = Table(
    tuple(
        Row(name, config, {}, "CMU motion")
        for name, config in {
            "VHP + REWO": "cmu_vhp",
            "VampPrior": "cmu_vamp",
            "IWAE": "cmu_iwae",
        }.items()
    ),
    metric="smoothness",
    description="smoothness factor, degrees per squared step, even steps, test set",
    header="smoothness, mean ± s.e. (°/step²)",
    digits=3,
    folder="motion",
    details=(
        "joints",
        "joint_mean",
        "joint_deviation",
        "raw",
        "mean_path_points",
        "mean_bridges",
    ),
    num_seeds=3,
    also=(
        "neighbours",
        "neighbours.by_training",
        "prior_match",
        "prior_match.squared_maximum_mean_discrepancy",
        "rate_distortion",
    ),
)

# --- Faces and chairs: Sec. 4.4 -------------------------------------------------------


def shapes_table(config: str) -> Table:
    """Interpolation between views of shapes, by a config and its IWAE."""
    return Table(
        tuple(
            Row(name, f"{config}{ending}", {}, config.replace("_", " "))
            for name, ending in {"VHP + REWO": "", "IWAE": "_iwae"}.items()
        ),
        metric="interpolation",
        description="largest RMS step between neighbouring frames along a graph path, "
        "per pixel; 20 pairs of test images, 20 frames each",
        header="largest step, mean ± s.e.",
        digits=4,
        folder=config,
        details=("graph", "straight", "sharpness_of_the_data", "num_bridges"),
        num_seeds=1,
        also=("active_units", "rate_distortion"),
    )


SHAPES = {
    config: shapes_table(config)
    for config in (
        *("faces", "faces_small", "chairs"),
        *("chairs_synthetic", "chairs_synthetic_small"),
    )
}

TABLES = {
    "table1": TABLE1,
    "table1_plain": TABLE1_PLAIN,
    "ablation": ABLATION,
    "table2": TABLE2,
    "table2_mlp": TABLE2_MLP,
    "motion": MOTION,
    **SHAPES,
}
