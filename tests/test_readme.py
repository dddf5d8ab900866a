"""What the README and the docs say is so."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md"]
DOCUMENTS += [ROOT / "docs" / f"{name}.md" for name in ("pendulum", "likelihood")]


def python_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.optax
@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(python_blocks())))
def test_code_of_the_readme_runs(index):
    exec(compile(python_blocks()[index], f"README block {index}", "exec"), {})


def test_readme_has_code():
    assert len(python_blocks()) >= 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_quoted_tables_are_the_written_ones(document):
    quoted = re.findall(
        r"<!-- (results/\S+) -->\n(.*?)<!-- end -->", document.read_text(), re.S
    )
    assert quoted
    for name, text in quoted:
        assert text == (ROOT / name).read_text(), name


def test_tables_are_what_their_json_says():
    from experiments import reproduce, tables

    for path in sorted((ROOT / "results").glob("table*.json")):
        table = tables.TABLES.get(path.stem, tables.TABLE1)  # table1_centred is one
        rows = json.loads(path.read_text())["rows"]
        assert reproduce.markdown(table, rows) == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_figures_exist(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    for link in links:
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link
