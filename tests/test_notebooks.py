"""Notebooks: sources and outputs agree, nothing failed, nothing is missing."""

import ast
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from experiments import cli, notebooks

jupytext = pytest.importorskip("jupytext", reason="wants the extra [notebooks]")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("mnist_likelihood", "own_data", "pendulum")
LARGEST = 1_500_000  # bytes of a notebook
each_notebook = pytest.mark.parametrize("name", NAMES)


def committed(name: str):
    path = ROOT / "colab" / f"{name}.ipynb"
    return nbformat.read(path, as_version=4)


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook) -> str:
    parts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    return "\n\n".join(parts)


def test_every_notebook_has_a_source_and_every_source_a_notebook():
    assert set(notebooks.names()) == set(NAMES)
    assert {path.stem for path in (ROOT / "colab").glob("*.ipynb")} == set(NAMES)


@each_notebook
def test_sources_and_notebooks_have_the_same_cells(name):
    assert cells(committed(name)) == cells(notebooks.read_source(name))


@each_notebook
def test_notebooks_were_executed_whole_and_nothing_failed(name):
    notebook = committed(name)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            text = output.get("text", "")
            assert output.get("name") != "stderr", f"a warning: {text}"
            assert "Traceback" not in text
            assert "NO MNIST HERE" not in text, "the committed one wants VHP_DATA_DIR"


def draws(source: str) -> bool:
    """Whether the last expression of a cell is a figure."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    *_, last = ast.parse("\n".join(lines)).body
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)):
        return False
    name = ast.unparse(last.value.func)
    return name.startswith("plotting.plot_") or name.endswith("_figure")


@each_notebook
def test_no_figure_is_missing(name):
    wanted = 0
    for cell in code(committed(name)):
        images = ["image/png" in output.get("data", {}) for output in cell.outputs]
        assert any(images) == draws(cell.source), cell.source
        wanted += draws(cell.source)
    assert wanted >= 4
    assert wanted == notebooks.num_figures(committed(name))


@each_notebook
def test_notebooks_are_small_and_hold_nothing_that_changes_from_run_to_run(name):
    path = ROOT / "colab" / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    raw = json.loads(path.read_text())
    assert set(raw["metadata"]) == {"kernelspec", "language_info"}
    assert raw["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in raw["cells"])
    ids = [cell["id"] for cell in raw["cells"]]
    wanted = name.replace("_", "-")
    assert ids == [f"{wanted}-{number}" for number in range(len(ids))]


@each_notebook
def test_the_first_cell_of_code_installs(name):
    first, second, *_ = code(committed(name))
    assert 'REPOSITORY = ".."' in first.source
    assert '"pip", "install"' in first.source
    assert "import jax" not in first.source  # a fresh JAX has to be the first one
    assert second.source.count("QUICK = ") == 1
    assert "VHP_QUICK" in second.source


def anchors(path: Path) -> set[str]:
    """What may stand behind # in a link to a document."""
    if path.suffix == ".ipynb":
        text = markdown(nbformat.read(path, as_version=4))
        return {h.replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(path: Path, text: str) -> list[str]:
    """Links of a document to files or headings that are not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if place.startswith("https://"):
            continue
        target = path.parent / place if place else path
        if not target.exists() or (anchor and unquote(anchor) not in anchors(target)):
            broken.append(link)
    return broken


@each_notebook
def test_links_lead_somewhere(name):
    path = ROOT / "colab" / f"{name}.ipynb"
    text = markdown(committed(name))
    assert broken_links(path, text) == []
    assert len(re.findall(r"\]\(", text)) >= 5


def test_broken_links_are_found():
    path = ROOT / "colab" / "pendulum.ipynb"
    text = "[a](../README.md#no-such) [b](none.md) [c](#1.-The-data) [d](https://x.y)"
    assert broken_links(path, text) == ["../README.md#no-such", "none.md"]


def test_headings_of_a_notebook_are_listed_at_its_top():
    for name in NAMES:
        text = markdown(committed(name))
        listed = re.findall(r"^\d+\. \[(.+?)\]", text, re.M)
        headings = [h.split(". ")[1] for h in re.findall(r"^## (.+)$", text, re.M)]
        assert listed == headings


# --- The command ---------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A folder of its own for sources."""
    pytest.importorskip("nbclient")
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path)
    return tmp_path


TWO_CELLS = '# %% [markdown]\nr"""\n# A $\\beta$\n"""\n\n# %%\n'


@pytest.mark.slow
def test_a_notebook_is_executed_and_stripped_alike_each_time(sources):
    body = "import os, sys\nprint(os.getcwd())\nprint('two', flush=True)\nsys.version"
    (sources / "small.py").write_text(TWO_CELLS + body)
    texts = []
    for _ in range(2):
        notebook = notebooks.read_source("small")
        notebooks.execute(notebook)
        notebooks.strip(notebook)
        nbformat.validate(notebook)
        texts.append(nbformat.writes(notebook))
    assert texts[0] == texts[1]
    (stream, result) = notebook.cells[1].outputs
    assert stream.text == f"{sources}\ntwo\n"
    assert "image/png" not in result.data


@pytest.mark.slow
def test_a_cell_that_fails_is_told_in_one_line(sources):
    (sources / "small.py").write_text(TWO_CELLS + "1 / 0")
    with pytest.raises(cli.UserError, match=r"^ZeroDivisionError: division by zero$"):
        notebooks.execute(notebooks.read_source("small"))
