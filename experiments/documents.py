"""Tables that the documents of this repository quote from results/."""

from pathlib import Path

from experiments import runs


def quote(document: Path, name: str, text: str) -> None:
    """Replaces what `document` quotes between <!-- NAME --> and <!-- end -->."""
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = document.read_text().partition(start)
    if found:
        after = rest.partition(end)[2]
        runs.write_text(document, f"{before}{start}{text}{end}{after}")


def write_table(path: Path, text: str) -> None:
    """Writes a table; one of results/ also into the documents that quote it."""
    runs.write_text(path, text)
    if path.parent == Path("results"):
        for document in [Path("README.md"), *Path("docs").glob("*.md")]:
            quote(document, str(path), text)
