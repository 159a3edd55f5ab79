"""Writes what was measured into its place on a page of docs/, between two marks."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def write(page: str, mark: str, lines: list[str]) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end mark -->`; raises SystemExit without these."""
    path, begin, end = DOCS / page, f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
    head, begins, rest = path.read_text().partition(begin)
    _, ends, tail = rest.partition(end)
    if not (begins and ends):
        raise SystemExit(f"{page} has no place for it: the marks {begin.strip()} and {end}")
    path.write_text(head + begin + "\n".join(lines) + "\n" + end + tail)
