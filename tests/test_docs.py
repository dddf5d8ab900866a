"""What README and docs say is so: code runs, commands parse, links lead somewhere."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from test_experiments import import_command

from experiments import cli

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")
PAGES = [ROOT / name for name in NAMES] + sorted((ROOT / "docs").rglob("*.md"))
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES]
)
# python runs; sh is parsed; of diff, each + is a line of the file; text is for looking.
LANGUAGES = {"python", "sh", "diff", "text", "{eval-rst}"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    found = FENCE.findall(page.read_text())
    return [text for name, text in found if name == language]


def with_blocks(language: str) -> list:
    """Parameters: the pages that have such blocks."""
    pages = [page for page in PAGES if blocks(page, language)]
    return [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in pages]


@each_page
def test_blocks_say_what_they_are(page):
    assert {name for name, _ in FENCE.findall(page.read_text())} <= LANGUAGES


# --- Code ----------------------------------------------------------------------------


@pytest.mark.optax
@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("python"))
def test_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for index, text in enumerate(blocks(page, "python"), start=1):
        exec(compile(text, f"{page.name}, block {index}", "exec"), namespace)


def test_readme_and_how_tos_have_code():
    names = {param.id for param in with_blocks("python")}
    wanted = ("choose_kappa", "add_data_set", "add_prior", "add_beta_scheme")
    assert names >= {"README.md", *(f"docs/howto/{name}.md" for name in wanted)}


def quoted(pattern: str) -> list[tuple[Path, str, str]]:
    """(page, what, text) of every <!-- what --> text <!-- end -->."""
    found = re.compile(rf"<!-- ({pattern}) -->\n(.*?)<!-- end -->", re.S)
    return [(p, *match) for p in PAGES for match in found.findall(p.read_text())]


def test_quoted_code_is_the_library_s():
    found = quoted(r"vhp_jax\.\S+")
    assert found
    for page, name, text in found:
        module, _, attribute = name.rpartition(".")
        source = inspect.getsource(getattr(importlib.import_module(module), attribute))
        assert source in text, f"{page}: {name}"


@pytest.mark.parametrize("page", with_blocks("diff"))
def test_added_lines_are_in_their_files(page):
    for text in blocks(page, "diff"):
        (name,) = re.findall(r"^\+\+\+ b/(.*)$", text, re.M)
        lines = (ROOT / name).read_text().splitlines()
        kept = [line for line in text.splitlines() if re.match(r"[+ ][^+]", line)]
        assert len(kept) > 1
        for line in kept:
            assert line[1:] in lines, f"{name}: {line}"


# --- Commands ------------------------------------------------------------------------


def commands_in(text: str) -> list[list[str]]:
    """Words of every `python -m experiments.X ...` of a text."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python -m experiments\.([a-z][^\n`#&|]*)", text)
    return [shlex.split(re.sub(r"\[[^]]*\]", "", words)) for words in found]


def parse(words: list[str]) -> None:
    """Has a command parse its flags and its config; NAME and X stand for any.

    Raises:
      AssertionError: it would have ended with exit code 2.
    """
    name, *rest = words
    given = []
    for word in rest:
        if not word.startswith("--"):
            break  # prose after the command
        key, _, value = word.partition("=")
        given.append(
            "--config=pendulum" if (key, value) == ("--config", "NAME") else word
        )
    module = import_command(name)
    takes_config = "takes_config=True" in inspect.getsource(module)
    binary = cli.Command(module.__doc__, module.main, takes_config)
    errors, code = io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            binary._parse_flags([name, *given])
        except SystemExit as stop:
            code = stop.code
    assert not code, f"{shlex.join(words)}: {errors.getvalue()}"


@each_page
def test_commands_parse(page):
    for words in commands_in(page.read_text()):
        parse(words)


SOURCES = [*(ROOT / "vhp_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]


def test_commands_in_docstrings_parse():
    docs = [ast.get_docstring(ast.parse(path.read_text())) for path in sorted(SOURCES)]
    found = [words for text in docs for words in commands_in(text or "")]
    assert len(found) > 20
    for words in found:
        parse(words)


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_shell_blocks_are_commands_of_ours(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for text in blocks(page, "sh"):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            program, *words = shlex.split(line, comments=True)
            if program == "make":
                assert words[0] in targets, line
            else:
                assert program == "python", line
                assert words[1].startswith("experiments."), line


@pytest.mark.parametrize(
    "words",
    [
        "train --confg=pendulum",
        "train --config=pendulun",
        "train --config.train.lr=1",
        "evaluate --num_samples=many",
        "reproduce --config=pendulum",
    ],
)
def test_wrong_commands_are_found(words):
    (found,) = commands_in(f"text `python -m experiments.{words}` text")
    with pytest.raises(AssertionError, match="error: "):
        parse(found)


# --- Links ---------------------------------------------------------------------------


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Of the headings, as Sphinx and GitHub make them."""
    text = FENCE.sub("", page.read_text())
    headings = [
        re.sub(r"[^\w\- ]", "", line) for line in re.findall(r"^#+ (.*)", text, re.M)
    ]
    return {heading.lower().replace(" ", "-") for heading in headings}


@each_page
def test_links_and_figures_exist(page):
    for link in re.findall(r"\]\(([^)\s]*)\)", prose(page)):
        url = urlsplit(link)
        if url.scheme:
            assert url.scheme == "https", link
            assert "." in url.netloc, link
            continue
        target = page.parent / url.path if url.path else page
        assert target.is_file(), link
        assert not url.fragment or url.fragment in anchors(target), link


def test_links_are_found():
    assert len(re.findall(r"\]\(([^)\s]*)\)", prose(ROOT / "README.md"))) > 10
    assert "where-the-paper-is-silent-and-the-side-taken" in anchors(
        ROOT / "docs" / "notation.md"
    )


# --- Contents of the site ------------------------------------------------------------


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "conf.py").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(ROOT).with_suffix("").as_posix()
        assert f"\n{name}\n" in contents, name


def test_every_module_has_a_page_of_its_own():
    listed = re.findall(
        r"^   (vhp_jax\.\S+)$", (ROOT / "docs/api.md").read_text(), re.M
    )
    there = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "vhp_jax").rglob("*.py")
        if path.stem != "__init__"
    ]
    assert sorted(listed) == sorted(there)


# --- Quoted tables -------------------------------------------------------------------


def test_quoted_tables_are_the_written_ones():
    found = quoted(r"results/\S+")
    assert {page.stem for page, _, _ in found} >= {"README", "pendulum", "likelihood"}
    for page, name, text in found:
        assert text == (ROOT / name).read_text(), f"{page}: {name}"


def test_a_table_of_results_goes_into_what_quotes_it(tmp_path):
    from experiments import documents

    readme, page = tmp_path / "README.md", tmp_path / "docs" / "page.md"
    for folder in ("docs", "results", "elsewhere"):
        (tmp_path / folder).mkdir()
    readme.write_text("a\n<!-- results/t.md -->\nold\n<!-- end -->\nb\n")
    page.write_text("<!-- results/t.md -->\n<!-- end -->\n<!-- results/u.md -->\nu\n")
    documents.write_table(tmp_path / "elsewhere" / "t.md", "| 1 |\n", tmp_path)
    assert "old" in readme.read_text()
    documents.write_table(tmp_path / "results" / "t.md", "| 2 |\n", tmp_path)
    wanted = "<!-- results/t.md -->\n| 2 |\n<!-- end -->\n"
    assert readme.read_text() == f"a\n{wanted}b\n"
    assert page.read_text() == f"{wanted}<!-- results/u.md -->\nu\n"
    for folder in ("elsewhere", "results"):
        assert (tmp_path / folder / "t.md").exists()
    with pytest.raises(ValueError, match=r"page\.md: <!-- results/u.md --> has no"):
        documents.write_table(tmp_path / "results" / "u.md", "", tmp_path)


def test_tables_are_what_their_json_says():
    from experiments import tables

    def written(pattern: str, text_of) -> None:
        for path in sorted((ROOT / "results").glob(pattern)):
            rows = json.loads(path.read_text())["rows"]
            assert text_of(path.stem, rows) == path.with_suffix(".md").read_text()

    def table(name: str, rows: list) -> str:
        """By the target's name, or as older versions of it: table1_centred."""
        known = [target for target in tables.TABLES if name.startswith(target)]
        names.add(name)
        return import_command("reproduce").markdown(
            tables.TABLES[max(known, key=len)], rows
        )

    names: set[str] = set()
    for target in tables.TABLES:
        written(f"{target}*.json", table)
    assert {"table1", "ablation", "motion", "faces_small"} <= names
    benchmark = import_command("benchmark")
    written("benchmark*.json", lambda name, rows: benchmark.table(rows))
