"""The rooms of the code base: who may import whom, and that nothing is dead or mute."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "vhp_jax").rglob("*.py"))
COMMANDS = sorted((ROOT / "experiments").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.py"))

# types -> distributions -> {networks, priors, objectives}; beta knows no model;
# training gets the model as an argument; graph knows no other room, data and plotting
# none but storage.
ARROWS = {
    "types": set(),
    "beta": {"types"},
    "devices": {"types"},
    "checkpoints": {"types"},
    "distributions": {"types"},
    "storage": set(),
    "graph": set(),
    "plotting": {"storage"},
    "networks": {"types", "distributions"},
    "starts": {"types"},
    "priors": {"types", "distributions"},
    "model": {"types", "distributions", "priors"},
    "objectives": {"types", "distributions", "model"},
    "training": {"types", "beta", "devices", "objectives"},
    "evaluation": {"types", "devices", "distributions", "graph", "model", "objectives"}
    | {"priors"},
    "data": {"data", "storage"},
    "kappa": {"types", "beta", "evaluation", "objectives", "training"},
    "sharing": {"types", "data", "model", "networks", "priors", "storage"},
}
# A face over all of them, which none of them knows.
ARROWS["estimator"] = set(ARROWS) - {"checkpoints", "distributions", "plotting"}


def imports(path: Path) -> dict[str, int]:
    """Every module that a file imports, anywhere in it, with its line."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                found[f"{node.module}.{alias.name}"] = node.lineno
    return found


def starts(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room(path: Path) -> str:
    return path.relative_to(ROOT / "vhp_jax").with_suffix("").parts[0]


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_library_file = pytest.mark.parametrize("path", LIBRARY, ids=ids)
each_file = pytest.mark.parametrize("path", LIBRARY + COMMANDS + NOTEBOOKS, ids=ids)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


# --- Arrows --------------------------------------------------------------------------


@each_library_file
def test_rooms_import_along_the_arrows(path):
    if path == ROOT / "vhp_jax" / "__init__.py":
        return
    assert room(path) in ARROWS, "a new room: say above what it may import"
    allowed = ARROWS[room(path)]
    for name, line in imports(path).items():
        if starts(name, "vhp_jax"):
            assert name.split(".")[1] in allowed, f"line {line}: {name}"


@each_library_file
def test_library_knows_no_flags_configs_or_experiments(path):
    foreign = ("absl", "ml_collections", "experiments", "tests", "colab", "tqdm")
    for name, line in imports(path).items():
        assert not any(starts(name, f) for f in foreign), f"line {line}: {name}"


@each_library_file
def test_heavy_packages_stay_in_their_room(path):
    homes = {
        "matplotlib": {"plotting"},
        "orbax": {"checkpoints"},
        "pyarrow": {"data"},
        "safetensors": {"sharing"},
        "sklearn": {"estimator", "graph"},
        "tensorflow": set(),
        "tensorflow_datasets": {"data"},
        "torch": set(),
    }
    for name, line in imports(path).items():
        for package, rooms in homes.items():
            if starts(name, package):
                assert room(path) in rooms, f"line {line}: {name}"


@pytest.mark.parametrize("path", COMMANDS, ids=ids)
def test_commands_leave_drawing_and_orbax_to_the_library(path):
    for name, line in imports(path).items():
        assert not starts(name, "orbax"), f"line {line}: {name}"
        if starts(name, "matplotlib"):  # the type of what they pass on
            assert name == "matplotlib.figure.Figure", f"line {line}: {name}"


@each_file
def test_no_private_imports(path):
    """Neither of other packages (jax._src) nor of another room (vhp_jax.x._y)."""
    for name, line in imports(path).items():
        parts = name.split(".")
        private = [part for part in parts if part.startswith("_") and part[1] != "_"]
        assert not private, f"line {line}: {name}"
    modules = {"jax", "optax", "flax", "orbax", "vhp_jax"}
    modules |= {path.stem for path in LIBRARY + COMMANDS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            used = f"{node.value.id}.{node.attr}"
            assert not (private and node.value.id in modules), f"{node.lineno}: {used}"


def test_import_is_light_and_starts_no_device():
    """A backend that does not exist is only missed by who asks for a device."""
    code = """
import sys, vhp_jax
heavy = ("matplotlib", "orbax", "tensorflow", "tensorflow_datasets", "torch")
heavy += ("ml_collections", "tqdm", "experiments", "sklearn", "safetensors")
print([name for name in heavy if name in sys.modules])
"""
    done = run_python(code, JAX_PLATFORMS="nowhere")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.slow
def test_importing_everything_starts_no_device():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in LIBRARY + [p for p in COMMANDS if p.parent.name == "configs"]
        if path.stem != "__init__"
    ]
    modules += ["experiments.trainer", "experiments.figures", "experiments.train"]
    code = f"import importlib\nfor m in {modules}: importlib.import_module(m)\n"
    done = run_python(code + "print('loaded')", JAX_PLATFORMS="nowhere")
    assert (done.returncode, done.stdout.strip()) == (0, "loaded"), done.stderr
    control = run_python("import jax; jax.devices()", JAX_PLATFORMS="nowhere")
    assert control.returncode != 0  # so the first half could have failed


# --- Docstrings and exports ----------------------------------------------------------


@each_file
def test_everything_public_says_what_it_does(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    scopes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]
    for scope in scopes:
        if getattr(scope, "name", "").startswith("_"):
            continue
        for node in scope.body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"line {node.lineno}: {node.name}"


@pytest.mark.parametrize("name", ["vhp_jax", "vhp_jax.data"])
def test_exports_are_explicit_sorted_and_there(name):
    module = importlib.import_module(name)
    assert all(hasattr(module, export) for export in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    source = ast.parse(Path(module.__file__).read_text())
    bound = {
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {"VHP"} if name == "vhp_jax" else set()  # it imports scikit-learn
    assert bound | lazy == set(module.__all__)


# --- Config keys ---------------------------------------------------------------------

CONFIGS = cli.config_names()


class Spy:
    """A config that notes which keys are read."""

    def __init__(self, config, seen: set[str], prefix: str = ""):
        self._config, self._seen, self._prefix = config, seen, prefix

    def __getattr__(self, key: str):
        value = getattr(self._config, key)
        if type(value) is type(self._config):
            return Spy(value, self._seen, f"{self._prefix}{key}.")
        if not callable(value):
            self._seen.add(self._prefix + key)
        return value

    def __contains__(self, key: str) -> bool:
        return key in self._config

    def get(self, key: str, default=None):
        return getattr(self, key) if key in self else default

    def items(self):
        """Read as a whole: passed on as arguments, which refuse unknown names."""
        for key, value in self._config.items():
            self._seen.add(self._prefix + key)
            yield key, value


def test_configs_of_one_data_set_have_the_same_keys():
    keys = {name: [key for key, _ in cli.flatten(load(name))] for name in CONFIGS}
    for name, found in keys.items():
        for family, base in (
            ("pendulum", "pendulum"),
            ("cmu", "cmu_vhp"),
            ("faces", "faces"),
            ("chairs_synthetic", "chairs_synthetic"),
        ):
            if name.startswith(family):
                assert found == keys[base]
        drawn = {"data.values", "data.seed"}  # binary images of grey ones
        if name in ("dynamic_mnist", "fashion_mnist", "omniglot"):
            assert set(found) == set(keys["static_mnist"]) | drawn


def load(name: str):
    return cli.load_config(name)


# Keys that nothing but a rival reads.
OF_RIVALS = {"model.num_pseudo_inputs", "model.num_components", "beta.value"}


def unread_keys(config, workdir: Path) -> set[str]:
    """Keys that neither training nor an interpolation reads."""
    from experiments import figures, runs, trainer

    seen: set[str] = set()
    spy = Spy(config, seen)
    trainer.train(spy, workdir)
    run = runs.Run(spy)
    params = run.initial_state().params
    figures.Interpolation(run, params, figures.default_pairs(run), seed=0)
    return {key for key, _ in cli.flatten(config)} - seen


@pytest.mark.slow
@pytest.mark.optax
def test_every_config_key_is_read(tmp_path):
    """By one short run and its interpolation, with the config replaced by a spy."""
    tiny = {
        "data.num_train": "16",
        "data.num_validation": "16",
        "data.num_test": "16",
        "model.hidden": "8",
        "beta.kappa": "0.3",
        "train.num_steps": "1",
        "train.log_every": "1",
        "train.batch_size": "4",
        "train.snapshot_steps": "1",
        "train.eval_every": "1",
        "train.checkpoint_every": "1",
        "graph.num_nodes": "20",
        "graph.num_neighbours": "19",
    }
    config = cli.load_config("pendulum", list(tiny.items()))
    assert unread_keys(config, tmp_path) == OF_RIVALS


def test_spy_notes_what_is_read_and_no_more():
    seen: set[str] = set()
    spy = Spy(load("pendulum"), seen)
    assert spy.beta.kappa == 0.02
    assert seen == {"beta.kappa"}
    assert dict(spy.data.items())["seed"] == 0
    assert "data.seed" in seen
    assert "data.num_nodes" not in seen
