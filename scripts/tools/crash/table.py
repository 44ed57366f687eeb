"""Tables of the results: plain text, or Markdown for the docs."""

from collections.abc import Sequence

EVERYWHERE = ("killed at", "calls in a run", "kills", "lost", "worst s")
"""Seconds from ready until all work is done."""
RANDOM = ("killed at", "kills", "lost", "worst s")
"""Seconds from ready until all open work has a job."""
CLOCK = ("clock set", "tasks", "jumps", "process stopped", "lost")
CUT = ("link cut while", "lock released after s")
SURROUNDINGS = ("surrounding", "the receiver", "says", "wrong")
POWER = ("power cut", "cuts", "started after", "callbacks told", "permissions told", "events told", "files", "lost")
"""What others had been told before a cut, and the files that were stored, summed up over all cuts."""
SOAK = ("minutes", "tasks", "visits", "RSS MB", "MB an hour", "descriptors", "threads", "WAL MB at most", "lost")
"""`RSS`, descriptors and threads: the first sample after the warm-up, and the last."""
TRACED = ("in a trace", "times", "wrong")


def render(head: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool) -> str:
    """A table: its head, then its rows."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    if markdown:
        lines.insert(1, ["---"] * len(head))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)
