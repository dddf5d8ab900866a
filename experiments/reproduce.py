r"""Runs or resumes every row of a table or figure of the paper and writes the results.

    python -m experiments.reproduce --target=table1
    python -m experiments.reproduce --target=fig2
    python -m experiments.reproduce --target=table1 --budget_minutes=30 \
        --rows="VHP + REWO,VHP + GECO"

Runs live in --workdir and are resumed; results/TARGET.json (and TARGET.md
for a table, results/figures/*.png for a figure) are written anew from what is complete
there. A row that is not complete keeps the numbers that the file has, its commit with
them; without any it stands as "not run".

Targets: table1, table1_plain, ablation; table2 (the paper's networks, for a GPU),
table2_mlp (the peers' MLP on static MNIST, for a CPU); motion (CMU movements, what the
paper gives as Fig. 8); faces, chairs (for a GPU) and faces_small (for a CPU); the
stand-ins chairs_synthetic and chairs_synthetic_small; fig1 to fig10, fig12 to fig16,
fig18 to fig23 by their numbers in the arXiv version, and fig10_later, of the later
one. The figures of faces and chairs are also there with the ending of their config:
fig9_small, fig10_synthetic, fig10_synthetic_small, ...
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import (
    cli,
    documents,
    figures,
    files,
    metrics,
    run_files,
    runs,
    tables,
    trainer,
)
from experiments.tables import TABLES, Row, Table
from vhp_jax import evaluation, graph, plotting

FLAGS = flags.FLAGS
flags.DEFINE_string("target", None, "What to reproduce, see above.")
flags.DEFINE_float("budget_minutes", math.inf, "Stop training after so many minutes.")
flags.DEFINE_list("rows", None, "Only these rows, by name.")
flags.DEFINE_list("datasets", None, "Only these data sets (table2).")
flags.DEFINE_integer(
    "num_seeds", None, "Seeds per row of a table: 1, 2, ... Figures take the first."
)
flags.DEFINE_string("workdir", "runs", "Where the runs are.")
flags.DEFINE_string("output", "results", "Where the results go.")


def is_complete(path: Path) -> bool:
    """Whether a run is done."""
    return (path / "summary.json").exists()


def folder(table: Table, row: Row, seed: int) -> Path:
    """Work directory of one seed of a row."""
    return table.path(FLAGS.workdir, row, seed)


def trained_seeds(table: Table, row: Row) -> list[int]:
    """Seeds of a row whose runs are done, in order."""
    found = folder(table, row, 1).parent.glob("seed_*")
    names = [path.name.removeprefix("seed_") for path in found if is_complete(path)]
    return sorted(int(name) for name in names if name.isdecimal())


def train_rows(
    table: Table, rows: Sequence[Row], seeds: int, deadline: float
) -> list[str]:
    """Trains what is missing: all rows' first seed, then the second, and so on.

    Returns:
      A line for each run that ended with an error; the others do not wait for it.
    """
    failures = []
    for seed in range(1, seeds + 1):
        for row in rows:
            path, title = folder(table, row, seed), f"{row.name}, {row.dataset}"
            left = (deadline - time.monotonic()) / 60.0
            try:
                if is_complete(path):
                    run_files.check_config(path, row.resolved(seed))
                elif left <= 0:
                    print(f"{title}, seed {seed}: no time left")
                else:
                    print(f"--- {title}, seed {seed}")
                    draw = figures.training_figures
                    trainer.train(row.resolved(seed), path, left, draw=draw)
            except cli.FAILURES as error:
                failures.append(f"{title}, seed {seed}: {error}")
                print(failures[-1], flush=True)
    return failures


def measured(
    table: Table, row: Row, seed: int, deadline: float | None
) -> dict[str, metrics.Result]:
    """The table's metrics on the whole test set, each from its file if there.

    Args:
      table: whose metrics.
      row: of it.
      seed: of the row, trained.
      deadline: of what takes long; None: nothing is measured that is not there.

    Raises:
      OutOfTimeError: one is not there, and not to be measured or not in time.
      UserError: the run is of another config.
    """
    path = folder(table, row, seed)
    run_files.check_config(path, row.resolved(seed))
    summary = files.read_json(path / "summary.json")
    wanted = {
        "step": summary.get("best_step") or summary["step"],
        "split": "test",
        "whole_split": True,
        "evaluation_seed": 0,
    }
    results = {}
    opened: runs.Restored | None = None  # reads the data, which may take seconds
    for metric in table.metrics:
        samples = {"num_samples": metrics.NUM_SAMPLES} if metric == "nll" else {}
        file = path / "eval" / f"{metric}.json"
        found = files.read_json(file) if file.exists() else {}
        if (wanted | samples).items() <= found.items():
            results[metric] = found
            continue
        if deadline is None or (metric == "nll" and time.monotonic() >= deadline):
            raise metrics.OutOfTimeError(f"{metric} is not measured")
        opened = opened or runs.restore(path)
        results[metric] = metrics.measure(
            metric,
            metrics.Setting(
                opened.run,
                opened.params,
                opened.step,
                opened.run.experiment.dataset.test,
                "test",
                file.parent,
                training_seed=seed,
                deadline=deadline,
            ),
        )
    for metric, result in results.items():
        if result["value"] is None or not math.isfinite(result["value"]):
            raise cli.UserError(f"{metric} is not finite, see {path / 'eval'}")
    return results


def row_record(
    table: Table, row: Row, deadline: float | None, num_seeds: int | None = None
) -> dict[str, Any]:
    """A row of results/TARGET.json from its complete runs, or the first of them.

    What is not measured by the deadline (see `measured`), or is of another config, is
    left out, and all seeds after it.
    """
    record: dict[str, Any] = {
        "name": row.name,
        "dataset": row.dataset,
        "metric": table.description,
        "mean": None,
        "stderr": None,
        "seeds": [],
        "paper": row.paper,
        "command": row.command("SEED"),
        "commit": None,
        "hardware": None,
        "minutes": None,
        "published": row.published,
    }
    numbers = trained_seeds(table, row)[:num_seeds]
    results: list[dict[str, metrics.Result]] = []
    for number in numbers:
        try:
            results.append(measured(table, row, number, deadline))
        except (metrics.OutOfTimeError, *cli.FAILURES) as error:
            print(f"{row.name}, {row.dataset}, seed {number}: left out, {error}")
            break
    numbers = numbers[: len(results)]
    if not numbers:
        return record
    directories = [run_files.WorkDir(folder(table, row, number)) for number in numbers]
    summaries = [files.read_json(d.path / "summary.json") for d in directories]
    starts = [start for s in summaries for start in s.get("starts", [s])]
    own = [result[table.metric] for result in results]
    steps = [result["step"] for result in own]
    reached = [state_at(d, step) for d, step in zip(directories, steps, strict=True)]
    values = np.array([result["value"] for result in own])
    spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return (
        record
        | {"mean": values.mean(), "stderr": spread, "seeds": values}
        | {"seed_numbers": numbers, "steps": steps}
        | {name: [result[name] for result in own] for name in table.details}
        | {
            name: [result[metric][key or "value"] for result in results]
            for name in table.also
            for metric, _, key in [name.partition(".")]
        }
        | {
            f"final_{name}": [state[name] for state in reached]
            for name in ("beta", "constraint", "rate")
        }
        | {
            "last_steps": [summary["step"] for summary in summaries],
            "commit": ", ".join(sorted({str(s["git_revision"]) for s in starts})),
            "hardware": ", ".join(sorted({s["hardware"] for s in starts})),
            "minutes": sum(summary["wall_seconds"] for summary in summaries) / 60.0,
            "evaluation_minutes": sum(result["seconds"] for result in own) / 60.0,
        }
    )


def state_at(directory: run_files.WorkDir, step: int) -> dict[str, Any]:
    """Beta at a step, and rate and constraint on the validation split there."""
    lines = [line for line in directory.metrics() if line["step"] == step]
    training = next(line for line in lines if "split" not in line)
    return training | next((line for line in lines if "split" in line), {})


def markdown(table: Table, records: list[dict[str, Any]]) -> str:
    """A table as the README shows it."""
    several = len({record["dataset"] for record in records}) > 1
    published = any(record.get("published") is not None for record in records)
    head = ["method", *["data"] * several, table.header, "each seed"]
    head += [name.rpartition(".")[2].replace("_", " ") for name in table.also]
    head += ["rate (nats)", "final beta", "steps", *["published"] * published, "paper"]
    lines = [head]
    for record in records:
        ours = ["not run", "", "", "", "", *[""] * len(table.also)]
        if record["mean"] is not None:
            error = record["stderr"]
            number = f"{{:.{table.digits}f}}".format
            spread = "" if error is None else f" ± {number(error)}"
            ours = [
                f"{number(record['mean'])}{spread}",
                ", ".join(map(number, record["seeds"])),
                *[f"{np.mean(record[name]):.4g}" for name in table.also],
                f"{np.mean(record['final_rate']):.1f}",
                f"{np.mean(record['final_beta']):.3g}",
                ", ".join(f"{step:,}" for step in np.unique(record["steps"])),
            ]
        theirs = [record.get("published")] * published + [record["paper"]]
        lines.append(
            [record["name"], *[record["dataset"]] * several, *ours]
            + ["-" if value is None else f"{value:g}" for value in theirs]
        )
    first, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return f"{first}|{'---|' * len(head)}\n{''.join(rest)}"


def write_table(
    target: str, output: Path, chosen: Sequence[Row], deadline: float
) -> None:
    """results/TARGET.json and results/TARGET.md, ours beside the paper's.

    Only the chosen rows are measured; the others stand with what is measured already.
    A row without a number keeps the one that the file has.
    """
    table, path = TABLES[target], output / f"{target}.json"
    kept = files.read_json(path)["rows"] if path.exists() else []
    known = {(record["name"], record["dataset"]): record for record in kept}
    rows = []
    for row in table.rows:
        record = row_record(table, row, deadline if row in chosen else None)
        if record["mean"] is None:
            record = known.get((row.name, row.dataset), record)
        rows.append(record)
    files.write_json(path, {"target": target, "rows": rows})
    text = markdown(table, rows)
    documents.write_table(output / f"{target}.md", text)
    print(text)


PENDULUM = tables.TABLE1  # the figures of Sec. 4.1 are of its rows
MLP = tables.TABLE2_MLP
MOTION = tables.MOTION
MOTION_ROWS = [row.name for row in MOTION.rows]


def completed(table: Table, name: str) -> Path:
    """Work directory of seed 1 of a row; UserError if it is not complete."""
    path = folder(table, table.named(name), 1)
    if not is_complete(path):
        raise cli.UserError(f"{path} is not complete; raise --budget_minutes")
    return path


def those_completed(table: Table, names: list[str]) -> list[str]:
    """The names whose seed 1 is complete; of each other one it is said.

    Raises:
      UserError: there are none.
    """
    found = [n for n in names if is_complete(folder(table, table.named(n), 1))]
    for name in names:
        if name not in found:
            print(f"{name}: not run, not drawn")
    if not found:
        raise cli.UserError("nothing is complete to be drawn; raise --budget_minutes")
    return found


def restored(table: Table, name: str) -> runs.Restored:
    """Seed 1 of a row, read back."""
    return runs.restore(completed(table, name))


def snapshots(name: str) -> Figure:
    """Latent space over training of seed 1 of a row."""
    path = completed(PENDULUM, name)
    return figures.snapshot_figure(
        runs.restore(path).run, run_files.WorkDir(path), name
    )


def interpolations(table: Table, names: list[str]) -> dict[str, figures.Interpolation]:
    """Paths between the default end points for seed 1 of each row."""
    found = {}
    for name in names:
        run, _, params, _ = restored(table, name)
        pairs = figures.default_pairs(run)
        found[name] = figures.Interpolation(run, params, pairs, seed=0)
    return found


def latent_graphs(table: Table, names: list[str]) -> Figure:
    """Graphs over prior samples with the paths between the default end points."""
    found = interpolations(table, names)
    return plotting.plot_latent_graphs([i.panel(name) for name, i in found.items()])


def latent_spaces(table: Table, names: list[str]) -> Figure:
    """Posterior and prior of each row at the end of training."""
    found = {name: restored(table, name) for name in names}
    return plotting.plot_latent_spaces(
        {
            name: figures.latent_space(r.run, r.params, r.step)
            for name, r in found.items()
        },
        color_by=figures.color_by(found[names[0]].run.experiment.dataset),
    )


def path_strips(table: Table, names: list[str], *numbers: int) -> list[Figure]:
    """Decoded paths of each row, by the number of the default pair."""
    found = interpolations(table, names)
    return [figures.strips(found, number) for number in numbers]


COMPARED = ["VHP + REWO", "VHP + GECO", "IWAE (L=1)"]


def fig15() -> dict[str, Figure]:
    """Joint angle against arcsin(z2 / r), and the regression on the whole circle."""
    quarter, whole, errors = {}, {}, {}
    for name in those_completed(PENDULUM, PAPER_ROWS):
        run, _, params, _ = restored(PENDULUM, name)
        angle, arcsine, fit = figures.quarter_circle(run, params)
        quarter[name], errors[name] = (angle, arcsine), fit.error
        whole[name] = (run.experiment.dataset.test.targets, fit.fitted)
    return {
        "fig15_quarter_circle": plotting.plot_quarter_circle(quarter, errors),
        "fig15_regression": plotting.plot_regression(whole, errors),
    }


TRAINING = ["VHP + REWO", "VHP + GECO", "VHP + WU (100 epochs)"]


def fig20() -> dict[str, Figure]:
    """Rate, distortion and their sum over training, on the validation split."""
    curves = {}
    for name in those_completed(MLP, TRAINING):
        lines = figures.validation_lines(run_files.WorkDir(completed(MLP, name)), 1)
        if lines is not None:
            curves[name] = lines
    return {"fig20_rate_distortion": plotting.plot_rate_distortion(curves)}


def fig21() -> dict[str, Figure]:
    """KL of each inner latent, sorted, REWO beside warm-up."""
    kl = {}
    for name in ("VHP + REWO", "VHP + WU (100 epochs)"):
        run, _, params, _ = restored(MLP, name)
        test = run.experiment.dataset.test.examples
        key = jax.random.key(0)
        found = evaluation.active_units(run.experiment.model, params, key, test)
        kl[name] = np.sort(found.kl)[::-1]
    return {"fig21_active_units": plotting.plot_active_units(kl)}


def fig8() -> dict[str, Figure]:
    """Smoothness factor of each joint, mean and deviation over all paths and seeds.

    What the table has of these runs is measured first where it is missing.
    """
    resampled, raw, joints = {}, {}, []
    for name in MOTION_ROWS:
        completed(MOTION, name)
        row = MOTION.named(name)
        found = [
            measured(MOTION, row, seed, math.inf)[MOTION.metric]
            for seed in trained_seeds(MOTION, row)
        ]
        joints = found[0]["joints"]
        title = f"{name} ({len(found)} seed{'s'[: len(found) - 1]})"
        resampled[title] = pooled(found)
        raw[title] = pooled([result["raw"] for result in found])
    unit = "degrees / step²"
    return {
        "fig8_smoothness": plotting.plot_smoothness(resampled, joints, unit),
        "fig8_smoothness_raw": plotting.plot_smoothness(raw, joints, unit),
    }


def pooled(results: Sequence[metrics.Result]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each joint over several seeds' paths, as many of each."""
    means = np.array([result["joint_mean"] for result in results])  # [seeds, J]
    deviations = np.array([result["joint_deviation"] for result in results])
    mean = means.mean(axis=0)
    variance = (np.square(deviations) + np.square(means - mean)).mean(axis=0)
    return mean, np.sqrt(variance)


def fig19() -> dict[str, Figure]:
    """The three paths of App. C: within walking, and two between movements."""
    drawn = path_strips(MOTION, MOTION_ROWS, 1, 2, 3)
    return {f"fig19_strips_{i}": figure for i, figure in enumerate(drawn, start=1)}


def shape_strips(table: Table, *numbers: int) -> list[Figure]:
    """Paths between views: both methods along their graphs, VHP + REWO also straight.

    All of as many frames, evenly spaced in latent space.
    """
    names = [row.name for row in table.rows]
    found = interpolations(table, names)
    first = found[names[0]]
    drawn = []
    for number in numbers:
        frames = {name: i.even_frames(number, 14) for name, i in found.items()}
        straight = first.straight_frames(number, 14)
        frames[f"{names[0]}, straight line"] = straight
        jumps = {name: graph.find_jumps(strip) for name, strip in frames.items()}
        drawn.append(first.view.strips(frames, jumps))
    return drawn


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
      table: whose rows must be trained for it.
      rows: which of them, by name.
      seeds: seeds it needs; None: as many as --num_seeds or the table says.
      draw: figures by file name; none for a table.
    """

    table: Table
    rows: list[str]
    seeds: int | None
    draw: Callable[[], dict[str, Figure]]


def whole(table: Table) -> Target:
    """A table as a target."""
    names = list(dict.fromkeys(row.name for row in table.rows))
    return Target(table, names, None, dict)


def over_training(name: str, file: str) -> Target:
    """The latent space of a pendulum row over training."""
    return Target(PENDULUM, [name], 1, lambda: {file: snapshots(name)})


def one(
    table: Table, names: list[str], file: str, draw: Callable[..., Figure]
) -> Target:
    """One figure of seed 1 of some rows."""
    return Target(table, names, 1, lambda: {file: draw(table, names)})


def shape_targets(config: str, first: str, more: str) -> dict[str, Target]:
    """Targets of one of the tables of shapes: its first pair, and the other two."""
    table = tables.SHAPES[config]
    names = [row.name for row in table.rows]

    def draw_first() -> dict[str, Figure]:
        return {f"{first}_strips": shape_strips(table, 0)[0]}

    def draw_more() -> dict[str, Figure]:
        drawn = enumerate(shape_strips(table, 1, 2), start=1)
        return {f"{more}_strips_{i}": figure for i, figure in drawn}

    return {
        first: Target(table, names, 1, draw_first),
        more: Target(table, names, 1, draw_more),
    }


PAPER_ROWS = [row.name for row in PENDULUM.rows if row.paper is not None]
TARGETS = {
    **{name: whole(table) for name, table in TABLES.items()},
    "fig1": Target(
        PENDULUM, [], 0, lambda: {"fig1_beta_update": figures.beta_surfaces()}
    ),
    "fig2": Target(
        PENDULUM,
        ["VHP + REWO", "VHP + GECO"],
        1,
        lambda: {
            "fig2a_rewo": snapshots("VHP + REWO"),
            "fig2b_geco": snapshots("VHP + GECO"),
        },
    ),
    "fig3": one(PENDULUM, COMPARED, "fig3_graphs", latent_graphs),
    "fig4": one(PENDULUM, COMPARED, "fig4_strips", lambda *of: path_strips(*of, 0)[0]),
    "fig5": one(MOTION, MOTION_ROWS, "fig5_latent_spaces", latent_spaces),
    "fig6": one(MOTION, MOTION_ROWS, "fig6_graphs", latent_graphs),
    "fig7": one(MOTION, MOTION_ROWS, "fig7_strips", lambda *of: path_strips(*of, 0)[0]),
    "fig8": Target(MOTION, MOTION_ROWS, None, fig8),
    "fig10_later": over_training(
        "VHP + REWO (App. B.1)", "fig10_later_rewo_alternative"
    ),
    "fig12": over_training("VHP", "fig12_vhp"),
    "fig13": over_training("VHP + WU (20 epochs)", "fig13_wu20"),
    "fig14": over_training("VHP + WU (200 epochs)", "fig14_wu200"),
    "fig15": Target(PENDULUM, PAPER_ROWS, 1, fig15),
    "fig16": over_training("VHP + REWO (K = 1)", "fig16_elbo"),
    "fig18": one(PENDULUM, COMPARED, "fig18_latent_spaces", latent_spaces),
    "fig19": Target(MOTION, MOTION_ROWS, 1, fig19),
    "fig20": Target(MLP, TRAINING, 1, fig20),
    "fig21": Target(MLP, ["VHP + REWO", "VHP + WU (100 epochs)"], 1, fig21),
    **shape_targets("faces", "fig9", "fig22"),
    **shape_targets("faces_small", "fig9_small", "fig22_small"),
    **shape_targets("chairs", "fig10", "fig23"),
    **shape_targets("chairs_synthetic", "fig10_synthetic", "fig23_synthetic"),
    **shape_targets(
        "chairs_synthetic_small", "fig10_synthetic_small", "fig23_synthetic_small"
    ),
}


def chosen(flag: str, words: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """What a flag lists, or all there is; UsageError at the first unknown one."""
    for word in words or ():
        if word not in known:
            raise cli.UsageError(
                f"{FLAGS.target} has no {flag} {word!r}; there are: {'; '.join(known)}"
            )
    return list(known if words is None else words)


def main() -> None:
    """Reproduces as the flags say."""
    if FLAGS.target not in TARGETS:
        raise cli.UsageError(
            f"--target must be one of {', '.join(TARGETS)}; got {FLAGS.target!r}"
        )
    target = TARGETS[FLAGS.target]
    table = target.table
    names = chosen("row", FLAGS.rows, target.rows)
    datasets = list(dict.fromkeys(row.dataset for row in table.rows))
    datasets = chosen("data set", FLAGS.datasets, datasets)
    rows = [row for row in table.rows if row.name in names and row.dataset in datasets]
    num_seeds = table.num_seeds if FLAGS.num_seeds is None else FLAGS.num_seeds
    if num_seeds < 1:
        raise cli.UsageError(f"--num_seeds must be >= 1, got {FLAGS.num_seeds}")
    if not FLAGS.budget_minutes > 0:
        raise cli.UsageError(
            f"--budget_minutes must be positive, got {FLAGS.budget_minutes}"
        )
    deadline = time.monotonic() + 60.0 * FLAGS.budget_minutes
    seeds = num_seeds if target.seeds is None else target.seeds
    failures = train_rows(table, rows, seeds, deadline)
    output = Path(FLAGS.output)
    if FLAGS.target in TABLES:
        write_table(FLAGS.target, output, rows, deadline)
    elif not failures:
        drawn = target.draw()
        figures.save_all(drawn, output / "figures")
        # Likelihoods are not measured for a figure, but recorded if they are there.
        records = [row_record(table, row, -math.inf, seeds) for row in rows]
        record = {"target": FLAGS.target, "figures": sorted(drawn), "rows": records}
        files.write_json(output / f"{FLAGS.target}.json", record)
    if failures:
        raise cli.UserError(f"{len(failures)} run(s) failed, first {failures[0]}")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
