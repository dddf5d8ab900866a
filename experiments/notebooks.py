"""Executes the notebooks of colab/ and writes them with their outputs.

    python -m experiments.notebooks
    VHP_QUICK=1 python -m experiments.notebooks --names=pendulum --output=DIR

The sources are colab/NAME.py, in jupytext's percent format; the outputs NAME.ipynb. Of
these only what a reader sees is kept, so that the same results are the same file.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "colab"
CELL_SECONDS = 3600

FLAGS = flags.FLAGS
flags.DEFINE_list("names", None, "Which ones; all if not given.")
flags.DEFINE_string("output", str(SOURCES), "Folder that the notebooks are written to.")


def names() -> list[str]:
    """Names of all notebooks."""
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def read_source(name: str) -> Any:
    """The notebook of a source, without outputs.

    Its cells are numbered, where jupytext would give them names at random.
    """
    import jupytext

    notebook = jupytext.read(SOURCES / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}".replace("_", "-")
    return notebook


def execute(notebook: Any) -> None:
    """Runs all cells in a kernel of this interpreter, started in colab/.

    Raises:
      UserError: a cell fails; the message has its last line.
    """
    import nbclient
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:  # of the sockets: opens no port
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            startup_timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(SOURCES)}},
            config=Config({"KernelManager": sockets}),
        )
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            raise cli.UserError(f"{error.ename}: {error.evalue}") from error


def strip(notebook: Any) -> None:
    """Drops what differs from run to run, or from machine to machine, unseen."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "execute_result" and "image/png" in output.data:
                output.data.pop("text/plain", None)  # <Figure size ...>


def num_figures(notebook: Any) -> int:
    """Images among the outputs."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def main() -> None:
    """Executes as the flags say."""
    import nbformat

    chosen = FLAGS.names or names()
    for name in chosen:
        if name not in names():
            raise cli.UsageError(
                f"no notebook is called {name!r}; there are: {', '.join(names())}"
            )
    folder = Path(FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        began = time.monotonic()
        notebook = read_source(name)
        try:
            execute(notebook)
        except cli.UserError as error:
            raise cli.UserError(f"colab/{name}.py: {error}") from error
        strip(notebook)
        path = folder / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(
            f"{path}: {num_figures(notebook)} figures, {path.stat().st_size // 1024} "
            f"KiB, {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    cli.Command(__doc__, main).run()
