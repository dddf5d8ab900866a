r"""Runs or resumes every row of a table or figure of the paper and writes the results.

    python -m experiments.reproduce --target=table1
    python -m experiments.reproduce --target=fig2
    python -m experiments.reproduce --target=table1 --budget_minutes=30 \
        --rows="VHP + REWO,VHP + GECO"

Runs live in --workdir and are resumed; results/TARGET.json (and TARGET.md
for a table, results/figures/*.png for a figure) are written anew from what is complete
there. A row that is not complete stands as "not run".

Targets: table1, table1_plain, ablation; fig1, fig2, fig3, fig4, fig12, fig13, fig14,
fig15, fig16, fig18 by their numbers in the arXiv version, and fig10 of the later one.
"""

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import cli, figures, runs
from vhp_jax import evaluation, plotting

FLAGS = flags.FLAGS
flags.DEFINE_string("target", None, "What to reproduce, see above.")
flags.DEFINE_float("budget_minutes", math.inf, "Stop training after so many minutes.")
flags.DEFINE_list("rows", None, "Only these rows, by name.")
flags.DEFINE_integer(
    "num_seeds", 3, "Seeds per row of a table: 1, 2, ... Figures take the first."
)
flags.DEFINE_string("workdir", "runs", "Where the runs are.")
flags.DEFINE_string("output", "results", "Where the results go.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: a config with overrides.

    Attributes:
      config: name of the config.
      overrides: dotted key -> value, as on the command line.
      paper: the paper's number, None if it gives none.
    """

    config: str
    overrides: Mapping[str, str]
    paper: float | None = None

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


GECO = {"beta.scheme": "geco", "beta.init": "1.0"}
BOUND = {"beta.scheme": "constant", "beta.init": "1.0"}
WARM_UP = {"beta.scheme": "warm_up"}
WARM_UP_200 = WARM_UP | {
    "beta.warm_up_epochs": "200",
    "train.num_steps": "48000",
    "train.snapshot_steps": "1000,12000,24000,48000",
}
IWAE = BOUND | {"objective.name": "iwae", "model.prior": "standard_normal"}
# What most code does where the paper is silent: see docs/pendulum.md.
PLAIN = {
    "model.initialisation": "he",
    "model.start": "random",
    "model.encoder_head_scale": "1.0",
    "model.decoder_head_scale": "1.0",
    "model.posterior_scale_init": "1.0",
    "model.prior_encoder_scale_init": "1.0",
    "model.prior_decoder_head_scale": "1.0",
    "model.prior_decoder_scale_init": "1.0",
}

TABLES: dict[str, dict[str, Row]] = {
    # The paper's Table 1, and the variants of its appendices.
    "table1": {
        "VHP + REWO": Row("pendulum", {}, 0.054),
        "VHP + GECO": Row("pendulum", GECO, 0.53),
        "VHP": Row("pendulum", BOUND, 0.49),
        "VHP + WU (20 epochs)": Row("pendulum", WARM_UP, 0.20),
        "VHP + WU (200 epochs)": Row("pendulum", WARM_UP_200, 0.31),
        "VHP + REWO (App. B.1)": Row("pendulum", {"beta.scheme": "rewo_alternative"}),
        "VHP + REWO (K = 1)": Row("pendulum", {"objective.num_samples": "1"}),
        "IWAE (L=1)": Row("pendulum", IWAE),
    },
    # The same data and schemes from a plain initialisation.
    "table1_plain": {
        "VHP + REWO (plain)": Row("pendulum", PLAIN, 0.054),
        "VHP + GECO (plain)": Row("pendulum", PLAIN | GECO, 0.53),
        "VHP (plain)": Row("pendulum", PLAIN | BOUND, 0.49),
        "VHP + WU (20 epochs) (plain)": Row("pendulum", PLAIN | WARM_UP, 0.20),
    },
    # VHP + REWO with one choice at a time put back.
    "ablation": {
        "centred start": Row("pendulum", {"model.start": "centred"}),
        "random start": Row("pendulum", {"model.start": "random"}),
        "He weights (centred start)": Row(
            "pendulum", {"model.initialisation": "he", "model.start": "centred"}
        ),
        "wide first posterior": Row("pendulum", {"model.posterior_scale_init": "1.0"}),
        "wide first prior": Row("pendulum", {"model.prior_decoder_scale_init": "1.0"}),
        "no image noise": Row("pendulum", {"data.noise": "0.0"}),
        "hard rod": Row(
            "pendulum",
            {
                "data.rod_width": "1.0",
                "data.bob_width": "1.5",
                "data.rod_length": "5.0",
                "data.amplitude": "0.4",
            },
        ),
    },
}
ROWS = {name: row for table in TABLES.values() for name, row in table.items()}
PAPER_ROWS = [name for name, row in TABLES["table1"].items() if row.paper is not None]


def slug(name: str) -> str:
    """A row's name as a folder's."""
    letters = "".join(c if c.isalnum() else " " for c in name.lower())
    return "_".join(letters.split())


def folder(name: str, seed: int) -> Path:
    """Work directory of one seed of a row."""
    return Path(FLAGS.workdir) / "pendulum_rows" / slug(name) / f"seed_{seed}"


def is_complete(path: Path) -> bool:
    """Whether a run is done."""
    return (path / "summary.json").exists()


def train_rows(names: list[str], num_seeds: int, deadline: float) -> None:
    """Trains what is missing: all rows' first seed, then the second, and so on."""
    for seed in range(1, num_seeds + 1):
        for name in names:
            row, path = ROWS[name], folder(name, seed)
            if is_complete(path):
                runs.check_config(path, row.resolved(seed))
                continue
            left = (deadline - time.monotonic()) / 60.0
            if left <= 0:
                print(f"{name}, seed {seed}: no time left")
                continue
            print(f"--- {name}, seed {seed}")
            runs.train(row.resolved(seed), path, left)


def measure(name: str, num_seeds: int | None = None) -> dict[str, Any]:
    """OLS errors on the test set of a row's complete runs, or of the first of them."""
    row = ROWS[name]
    record: dict[str, Any] = {
        "name": name,
        "dataset": "pendulum",
        "metric": "OLS absolute error, radians, whole circle, test set",
        "mean": None,
        "stderr": None,
        "seeds": [],
        "paper": row.paper,
        "command": row.command("SEED"),
        "commit": None,
        "hardware": None,
        "minutes": None,
    }
    paths = (Path(FLAGS.workdir) / "pendulum_rows" / slug(name)).glob("seed_*")
    numbers = sorted(int(path.name.removeprefix("seed_")) for path in paths)
    done = [number for number in numbers if is_complete(folder(name, number))]
    done = done[:num_seeds]
    if not done:
        return record
    fits, summaries = [], []
    for number in done:
        runs.check_config(folder(name, number), row.resolved(number))
        run, _, params, _ = runs.restore(folder(name, number))
        fits.append(figures.test_regression(run, params))
        summaries.append(runs.read_json(folder(name, number) / "summary.json"))
    errors = np.array([fit.error for fit in fits])
    spread = errors.std(ddof=1) / math.sqrt(len(errors)) if len(errors) > 1 else None
    return record | {
        "mean": errors.mean(),
        "stderr": spread,
        "seeds": errors,
        "seed_numbers": done,
        "winding": [fit.winding for fit in fits],
        "crossings": [fit.crossings for fit in fits],
        "largest_gap": [fit.largest_gap for fit in fits],
        "final_beta": [final_line(summary)["beta"] for summary in summaries],
        "final_constraint": [
            final_line(summary)["constraint"] for summary in summaries
        ],
        "final_rate": [final_line(summary)["rate"] for summary in summaries],
        "steps": summaries[0]["step"],
        "commit": ", ".join(sorted({str(s["git_revision"]) for s in summaries})),
        "hardware": ", ".join(sorted({s["hardware"] for s in summaries})),
        "minutes": sum(summary["wall_seconds"] for summary in summaries) / 60.0,
    }


def final_line(summary: dict[str, Any]) -> dict[str, Any]:
    """The last training line of a run."""
    return next(line for line in summary["final_metrics"] if "split" not in line)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table as the README shows it."""
    lines = [
        "| method | error, mean ± s.e. (rad) | each seed | rate (nats) | final beta "
        "| steps | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = "-" if row["paper"] is None else f"{row['paper']:g}"
        if row["mean"] is None:
            lines.append(f"| {row['name']} | not run | | | | | {paper} |")
            continue
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.3f}"
        seeds = ", ".join(f"{value:.3f}" for value in row["seeds"])
        lines.append(
            f"| {row['name']} | {row['mean']:.3f}{error} | {seeds} | "
            f"{np.mean(row['final_rate']):.1f} | {np.mean(row['final_beta']):.3g} | "
            f"{row['steps']:,} | {paper} |"
        )
    return "\n".join(lines) + "\n"


def quote(document: Path, name: str, text: str) -> None:
    """Replaces what `document` quotes between <!-- NAME --> and <!-- end -->."""
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = document.read_text().partition(start)
    if found:
        after = rest.partition(end)[2]
        runs.write_text(document, f"{before}{start}{text}{end}{after}")


def write_table(target: str, output: Path) -> None:
    """results/TARGET.json and results/TARGET.md, ours beside the paper's."""
    rows = [measure(name) for name in TABLES[target]]
    runs.write_json(output / f"{target}.json", {"target": target, "rows": rows})
    text = markdown(rows)
    runs.write_text(output / f"{target}.md", text)
    if output == Path("results"):  # the tables that this repository shows
        for document in (Path("README.md"), Path("docs/pendulum.md")):
            quote(document, f"results/{target}.md", text)
    print(text)


def completed(name: str) -> Path:
    """Work directory of seed 1 of a row; UserError if it is not complete."""
    path = folder(name, 1)
    if not is_complete(path):
        raise cli.UserError(f"{path} is not complete; raise --budget_minutes")
    return path


def restored(name: str) -> runs.Restored:
    """Seed 1 of a row, read back."""
    return runs.restore(completed(name))


def snapshots(name: str) -> Figure:
    """Latent space over training of seed 1 of a row."""
    return figures.snapshot_figure(runs.WorkDir(completed(name)), 1, name)


def interpolations(names: list[str]) -> dict[str, figures.Interpolation]:
    """Paths from 0 to 180 degrees for seed 1 of each row."""
    found = {}
    for name in names:
        run, _, params, _ = restored(name)
        pair = figures.default_pair(run)
        found[name] = figures.Interpolation(run, params, [pair], seed=0)
    return found


COMPARED = ["VHP + REWO", "VHP + GECO", "IWAE (L=1)"]


def fig3() -> dict[str, Figure]:
    """Graphs over prior samples with the path from 0 to 180 degrees."""
    panels = [found.panel(name) for name, found in interpolations(COMPARED).items()]
    return {"fig3_graphs": plotting.plot_latent_graphs(panels)}


def fig15() -> dict[str, Figure]:
    """Joint angle against arcsin(z2 / r), and the regression on the whole circle."""
    quarter, whole, errors = {}, {}, {}
    for name in PAPER_ROWS:
        if not is_complete(folder(name, 1)):
            print(f"{name}: not run, not drawn")
            continue
        run, _, params, _ = restored(name)
        angle, arcsine, fit = figures.quarter_circle(run, params)
        quarter[name], errors[name] = (angle, arcsine), fit.error
        whole[name] = (run.experiment.dataset.test.targets, fit.fitted)
    return {
        "fig15_quarter_circle": plotting.plot_quarter_circle(quarter, errors),
        "fig15_regression": plotting.plot_regression(whole, errors),
    }


def fig18() -> dict[str, Figure]:
    """Posterior and prior of REWO, GECO and IWAE at the end of training."""
    panels = {}
    for name in COMPARED:
        run, _, params, step = restored(name)
        split = run.experiment.dataset.test
        model = run.experiment.model
        codes = evaluation.encode_dataset(model, params, split.examples)
        drawn = model.prior.sample(params, jax.random.key(0), len(split.examples))
        panels[name] = plotting.Snapshot(
            step, codes.mean, codes.scale, np.asarray(drawn), split.targets
        )
    return {"fig18_latent_spaces": plotting.plot_latent_spaces(panels)}


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
      rows: rows that must be trained for it.
      seeds: seeds it needs; None: as many as --num_seeds.
      draw: figures by file name; none for a table.
    """

    rows: list[str]
    seeds: int | None
    draw: Callable[[], dict[str, Figure]]


TARGETS = {
    **{name: Target(list(table), None, dict) for name, table in TABLES.items()},
    "fig1": Target([], 0, lambda: {"fig1_beta_update": figures.beta_surfaces()}),
    "fig2": Target(
        ["VHP + REWO", "VHP + GECO"],
        1,
        lambda: {
            "fig2a_rewo": snapshots("VHP + REWO"),
            "fig2b_geco": snapshots("VHP + GECO"),
        },
    ),
    "fig3": Target(COMPARED, 1, fig3),
    "fig4": Target(
        COMPARED, 1, lambda: {"fig4_strips": figures.strips(interpolations(COMPARED))}
    ),
    "fig10": Target(
        ["VHP + REWO (App. B.1)"],
        1,
        lambda: {"fig10_rewo_alternative": snapshots("VHP + REWO (App. B.1)")},
    ),
    "fig12": Target(["VHP"], 1, lambda: {"fig12_vhp": snapshots("VHP")}),
    "fig13": Target(
        ["VHP + WU (20 epochs)"],
        1,
        lambda: {"fig13_wu20": snapshots("VHP + WU (20 epochs)")},
    ),
    "fig14": Target(
        ["VHP + WU (200 epochs)"],
        1,
        lambda: {"fig14_wu200": snapshots("VHP + WU (200 epochs)")},
    ),
    "fig15": Target(PAPER_ROWS, 1, fig15),
    "fig16": Target(
        ["VHP + REWO (K = 1)"],
        1,
        lambda: {"fig16_elbo": snapshots("VHP + REWO (K = 1)")},
    ),
    "fig18": Target(COMPARED, 1, fig18),
}


def main() -> None:
    """Reproduces as the flags say."""
    if FLAGS.target not in TARGETS:
        raise cli.UsageError(
            f"--target must be one of {', '.join(TARGETS)}; got {FLAGS.target!r}"
        )
    target = TARGETS[FLAGS.target]
    names = target.rows if FLAGS.rows is None else FLAGS.rows
    unknown = [name for name in names if name not in target.rows]
    if unknown:
        raise cli.UsageError(
            f"{FLAGS.target} has no row {unknown[0]!r}; there are: "
            f"{'; '.join(target.rows)}"
        )
    if FLAGS.num_seeds < 1:
        raise cli.UsageError(f"--num_seeds must be >= 1, got {FLAGS.num_seeds}")
    if not FLAGS.budget_minutes > 0:
        raise cli.UsageError(
            f"--budget_minutes must be positive, got {FLAGS.budget_minutes}"
        )
    deadline = time.monotonic() + 60.0 * FLAGS.budget_minutes
    seeds = FLAGS.num_seeds if target.seeds is None else target.seeds
    train_rows(names, seeds, deadline)
    output = Path(FLAGS.output)
    if FLAGS.target in TABLES:
        write_table(FLAGS.target, output)
        return
    drawn = target.draw()
    figures.save_all(drawn, output / "figures")
    rows = [measure(name, seeds) for name in target.rows]
    record = {"target": FLAGS.target, "figures": sorted(drawn), "rows": rows}
    runs.write_json(output / f"{FLAGS.target}.json", record)


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
