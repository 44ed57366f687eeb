"""The format of the log: one line for each message, whatever it quotes, and none of our secrets.

Messages quote Kling, hosts, hooks, brokers and database drivers: a line end in their words would forge a line.
"""

import copy
import logging
from collections.abc import Iterable

from kling_callback.display import Mask, escape

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LineFormatter(logging.Formatter):
    """Formats a record on one line, and each line of a traceback indented below it: no other text begins a line."""

    def __init__(self, line_format: str = FORMAT, hidden: Iterable[str] = ()) -> None:
        """`hidden`: secrets that no line shows."""
        super().__init__(line_format)
        self._mask = Mask(hidden)

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, also of one whose traceback another formatter has cached."""
        plain = copy.copy(record)
        plain.exc_info = plain.exc_text = plain.stack_info = None
        traceback = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        below = [*traceback.splitlines(), *(record.stack_info or "").splitlines()]
        lines = [super().format(plain), *(f"    {line}" for line in below if line.strip())]
        return "\n".join(escape(self._mask(line)) for line in lines)


def use_line_format(hidden: Iterable[str] = ()) -> None:
    """Log to stderr in this format. Without any other handler, only warnings and errors are shown."""
    formatter = LineFormatter(hidden=hidden)
    if logging.lastResort:
        logging.lastResort.setFormatter(formatter)
