"""Tables that the documents of this repository quote from results/."""

from pathlib import Path

from experiments import files

ROOT = Path(__file__).resolve().parents[1]


def quote(document: Path, name: str, text: str) -> None:
    """Replaces what `document` quotes between <!-- NAME --> and <!-- end -->.

    Raises:
      ValueError: it begins a quotation and does not end it.
    """
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = document.read_text().partition(start)
    if found:
        _, ended, after = rest.partition(end)
        if not ended:
            raise ValueError(f"{document}: {start.strip()} has no {end}")
        files.write_text(document, f"{before}{start}{text}{end}{after}")


def write_table(path: Path, text: str, root: Path = ROOT) -> None:
    """Writes a table; one of ROOT/results also into the documents that quote it."""
    files.write_text(path, text)
    if path.resolve().parent == root / "results":
        for document in [root / "README.md", *root.glob("docs/*.md")]:
            quote(document, f"results/{path.name}", text)
