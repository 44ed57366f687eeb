"""The figures, as a table: for people, or as Markdown for the docs."""

from collections.abc import Sequence

HEAD = ("killed at", "kills", "lost", "worst s")
"""The seconds are those from ready until all is done."""


def show(rows: Sequence[Sequence[object]], *, markdown: bool) -> str:
    """A table of rows, below HEAD."""
    lines = [[str(cell) for cell in row] for row in (HEAD, *rows)]
    if markdown:
        lines.insert(1, ["---"] * len(HEAD))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)
