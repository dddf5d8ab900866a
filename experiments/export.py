"""Writes a trained run as a self-contained folder: parameters, config, model card.

    python -m experiments.export --workdir=runs/pendulum --output=exported/pendulum

The folder holds model.safetensors, model.json, config.json, the encoder and decoder
compiled for `jax.export`, and README.md; no pickle. `VHP.load` reads it without any
data; `evaluate`, `sample` and `interpolate` take it as their --workdir.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, files, provenance, runs
from vhp_jax import sharing

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a run.")
flags.DEFINE_string("output", None, "Folder to write.")
flags.DEFINE_integer("seed", None, "Which seed of a run of several; the first.")


def shared_model(
    restored: runs.Restored, seed: int | None = None
) -> sharing.SharedModel:
    """The model of one seed of a run as it is shared."""
    run = restored.run
    seeds = list(run.seeds)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise cli.UserError(f"--seed must be one of {seeds}, got {seed}")
    params = list(run.members(restored.params))[seeds.index(seed)]
    dataset, config = run.experiment.dataset, run.config
    facts: dict[str, Any] = {
        "data": dataset.name,
        "kappa": config.beta.kappa,
        "prior": config.model.prior,
        "scheme": config.beta.scheme,
        "steps": restored.step,
        "seed": seed,
        "versions": ", ".join(f"{k} {v}" for k, v in provenance.versions().items()),
        "git revision": provenance.git_revision(),
    }
    if dataset.digest:
        facts["examples sha256"] = dataset.digest
    folder = Path(FLAGS.workdir) / "eval"
    if len(seeds) > 1:
        folder /= f"seed_{seed}"
    return sharing.SharedModel(
        run.experiment.model,
        jax.tree.map(np.asarray, params),
        dataset.train.examples.shape[1:],
        dataset.standardisation,
        json.loads(config.to_json()),
        facts | measured(folder, restored.step),
    )


def measured(folder: Path, step: int) -> dict[str, str]:
    """What `evaluate` found of the parameters of that step, by metric."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        read = files.read_json(path)
        if isinstance(read.get("value"), int | float) and read.get("step") == step:
            found[path.stem] = (
                f"{read['value']:.4g} ({read.get('num_examples')} examples of the "
                f"{read.get('split')} split)"
            )
    return found


def main() -> None:
    """Exports as the flags say."""
    if not FLAGS.output:
        raise cli.UsageError("--output=FOLDER is missing: where to write")
    restored = runs.opened(FLAGS.workdir)
    folder = sharing.write(shared_model(restored, FLAGS.seed), FLAGS.output)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder}: {size / 1e6:.1f} MB, {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
