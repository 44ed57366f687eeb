"""The figures, as a table: for people, or as Markdown for the docs."""

from collections.abc import Sequence

EVERYWHERE = ("killed at", "calls in a run", "kills", "lost", "worst s")
"""Seconds from ready until all is done."""
RANDOMLY = ("killed at", "kills", "lost", "worst s")
"""Seconds from ready until all is seen to be scheduled."""
CUT = ("link cut while", "hold given up after s")
TRACED = ("in a trace", "times", "wrong")


def show(head: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool) -> str:
    """A table of rows below its head."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    if markdown:
        lines.insert(1, ["---"] * len(head))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)
